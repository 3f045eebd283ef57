"""The contact sheet: the chosen images on one HTML page, which needs no other file.

It runs no script, and its policy forbids a browser to load anything from elsewhere.
"""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from training.selection.selection_list import SelectedImage

IMAGE_SIZE = 160
"""Pixels of the longer side of an image on the page."""
_LARGEST_OF_PIXELS = 64
"""Of the longer side of an image that is stored without loss, and shown pixel by pixel."""
_QUALITY = 70
_TEMPLATE = Path(__file__).with_name("contact_sheet.html")


def render_contact_sheet(
    title: str, images: Sequence[SelectedImage], show: Callable[[int], Image.Image]
) -> str:
    """Return the page.

    Args:
        title: its heading.
        images: as they are listed.
        show: returns an image by its place in the list.
    """
    figures = [_figure(image, show(place)) for place, image in enumerate(images)]
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        summary=f"{len(images):,} images, most worth labelling first. Below each image: its file, "
        "and the label and the confidence of the model.",
        figures="\n".join(figures),
    )


def _figure(image: SelectedImage, picture: Image.Image) -> str:
    """Return an entry of the list of images."""
    is_small = max(picture.size) <= _LARGEST_OF_PIXELS
    typicality = "" if image.typicality is None else f", typicality {image.typicality:.3f}"
    return (
        f'<li><h2>{image.rank}</h2><img loading="lazy" alt="image {image.rank}"'
        f'{" class=pixels" if is_small else ""} src="{_data_url(picture, lossless=is_small)}">'
        f"<p>{escape(image.path)}</p><p>{escape(image.label)}, {image.confidence:.3f}</p>"
        f"<p>value {image.value:.4g}{typicality}</p></li>"
    )


def _data_url(picture: Image.Image, *, lossless: bool) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=lossless, quality=_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
