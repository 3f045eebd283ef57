from pathlib import Path

import numpy as np
import pytest

from model.images.occlusion import OcclusionGrid, occluded
from service.api import schemas
from tests.pictures import Pixels, encode, form, instances, numbers
from tests.service.serving import JSON, PNG, Application, check_error, predictions, serving_models


def occlusion(
    service: Application, image: bytes, query: str = "", headers: dict[str, str] = PNG
) -> schemas.OcclusionMap:
    response = service.post(f"/occlusion?{query}", image, headers=headers)
    assert response.status_code == 200, response.text
    return schemas.OcclusionMap.model_validate_json(response.content)


def test_occlusion_returns_the_probabilities_of_the_images_with_patches(
    service: Application, digit: Pixels
) -> None:
    answer = occlusion(service, encode(digit), "grid=4&patch=3")
    (whole,) = predictions(service.post("/predict", encode(digit), headers=PNG))
    described = (answer.model, answer.version, answer.label, answer.confidence)
    assert described == ("digits", "1", whole["label"], whole["confidence"])
    assert (answer.grid, answer.stride, answer.patch) == ([4, 4], [2, 2], [3, 3])
    grid = OcclusionGrid.of(8, 8, 4, 3)
    copies = occluded(digit[np.newaxis].astype(np.float32) / np.float32(255), grid, 0, 16)
    for row in range(4):
        body = instances([copy[0].tolist() for copy in copies[4 * row : 4 * row + 4]])
        expected = [
            each["probabilities"][answer.label]
            for each in predictions(service.post("/predict", body, headers=JSON))
        ]
        assert answer.probabilities[row] == expected
        drops = [answer.confidence - each for each in expected]
        assert answer.importance[row] == drops
    assert answer.fill == pytest.approx([digit.mean() / 255], abs=1e-6)


def test_occlusion_of_any_content_type_is_the_same(service: Application, digit: Pixels) -> None:
    """Numbers have no file, so nothing of them is cut off: their region is the whole image."""
    answers = {
        service.post("/occlusion", encode(digit), headers=PNG).content,
        service.post("/occlusion", encode(digit), headers=PNG).content,
        service.post("/occlusion", instances([encode(digit)]), headers=JSON).content,
        service.post("/occlusion", instances([numbers(digit)]), headers=JSON).content,
        service.post("/occlusion", files=form(encode(digit))).content,
    }
    assert len(answers) == 1


def test_occlusion_follows_the_label_that_is_asked_for(service: Application, digit: Pixels) -> None:
    (whole,) = predictions(service.post("/predict", encode(digit), headers=PNG))
    for label, probability in whole["probabilities"].items():
        answer = occlusion(service, encode(digit), f"grid=2&label={label}")
        assert (answer.label, answer.confidence) == (label, probability)


def test_occlusion_of_blank_cells_changes_nothing(service: Application) -> None:
    """An image of one colour has patches of the same colour."""
    answer = occlusion(service, encode(np.full((8, 8), 255, np.uint8)))
    assert answer.grid == [8, 8]
    assert not np.any(answer.importance)
    assert answer.fill == [1]


def test_region_tells_where_the_grid_lies_on_an_upright_image(service: Application) -> None:
    """The digits' model pads, so a wide image has borders above and below."""
    wide = np.full((10, 40), 200, np.uint8)
    region = occlusion(service, encode(wide), "grid=2").region
    assert (region.left, region.width) == (0, 1)
    assert (region.top, region.height) == (-1.5, 4)
    turned = encode(
        wide,
        "JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    )
    region = occlusion(service, turned, "grid=2", {"Content-Type": "image/jpeg"}).region
    assert (region.top, region.height) == (0, 1)
    assert (region.left, region.width) == (-1.5, 4)


def test_occlusion_takes_one_image(service: Application, digit: Pixels) -> None:
    check_error(
        service.post("/occlusion", instances([numbers(digit)] * 2), headers=JSON),
        413,
        "too_many_images",
        "One request takes at most one image; send several.",
    )


def test_field_beside_the_image_is_named_and_not_counted_as_an_image(
    service: Application, digit: Pixels
) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    body = head % (b'file"; filename="a.png', encode(digit)) + head % (b"label", b"9") + b"--x--"
    check_error(
        service.post(
            "/occlusion", body, headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
        400,
        "invalid_request",
        "A field of the form has the name 'label'; send image files in fields named 'file' alone.",
    )


def test_occlusion_is_refused_before_it_runs_where_it_would_take_too_long(
    models_folder: Path, digit: Pixels
) -> None:
    with serving_models(models_folder, inference_timeout_seconds=1e-5) as hurried:
        check_error(
            hurried.post("/occlusion", encode(digit), headers=PNG),
            413,
            "too_costly",
            "This map of 8 x 8 cells would take about … seconds, and 1e-05 are allowed; ask for "
            "grid=… or less.",
        )
