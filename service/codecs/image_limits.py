"""Limits of one request: images, pixels and bytes."""

from dataclasses import dataclass

from service.errors import TooManyImagesError


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that apply while a request body is decoded."""

    images: int
    """Number of images."""
    image_pixels: int
    """Pixels of one encoded image, before resizing."""
    request_pixels: int
    """Pixels of all encoded images together, before resizing."""
    body_bytes: int
    """Bytes of the decompressed body."""

    def check_count(self, count: int) -> None:
        """Raise TooManyImagesError if `count` exceeds the number of images of a request."""
        if count > self.images:
            most = f"{self.images} images" if self.images > 1 else "one image"
            raise TooManyImagesError(f"One request takes at most {most}; send several.")
