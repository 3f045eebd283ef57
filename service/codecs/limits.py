"""What one request may hold. Knows no body and no image."""

from dataclasses import dataclass

from service.errors import TooManyImagesError


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that whoever reads a body has to keep."""

    images: int
    image_pixels: int
    """Of one encoded image, before resizing."""
    request_pixels: int
    """Of all encoded images together."""
    body_bytes: int
    """Unpacked."""

    def check_count(self, count: int) -> None:
        """Raise TooManyImagesError if these are more images than a request may have."""
        if count > self.images:
            raise TooManyImagesError(
                f"One request takes at most {self.images} images; send several."
            )
