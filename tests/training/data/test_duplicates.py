import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.training.data.folders import picture
from training.data import duplicates
from training.data.duplicates import TooAlikeError, duplicate_groups, similar_pairs
from training.data.image_inspection import Inspected


def inspected(image: Image.Image) -> Inspected:
    thumbnail = image.convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    return Inspected(hashlib.sha256(image.tobytes()).digest(), np.asarray(thumbnail))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((64, 64)),
    "grey": lambda image: image.convert("L"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copy_is_in_the_group_of_its_picture(change: str) -> None:
    images = [picture(number, (120, 90)) for number in range(20)]
    copies = [inspected(CHANGES[change](image)) for image in images]
    groups = duplicate_groups([*map(inspected, images), *copies])
    np.testing.assert_array_equal(groups[:20], groups[20:])
    assert len(set(groups.tolist())) == 20


def test_nearly_blank_images_are_one_picture_only_if_their_files_are_equal() -> None:
    blank = [Image.new("L", (32, 32), level) for level in (10, 10, 11)]
    first, second, third = duplicate_groups([inspected(image) for image in blank]).tolist()
    assert first == second != third


def test_too_many_pictures_alike_are_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 10)
    same = np.asarray(picture(0, (32, 32)).convert("L"))
    with pytest.raises(TooAlikeError):
        similar_pairs(np.stack([same] * 6))
    assert len(similar_pairs(np.stack([same] * 5))) == 10
