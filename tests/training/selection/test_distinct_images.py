import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.training.data.folders import picture
from training.data import duplicates
from training.data.image_inspection import Inspected, inspect_pixels
from training.selection.distinct_images import first_distinct


def inspected(image: Image.Image) -> Inspected:
    return inspect_pixels(np.asarray(image.convert("L"))[np.newaxis])


def copies(image: Image.Image) -> list[Inspected]:
    """Return ten images of one picture: four are equal, the others were changed a little."""
    changed = [ImageEnhance.Brightness(image).enhance(1 + step / 50) for step in range(1, 7)]
    return [inspected(each.convert("L")) for each in [image] * 4 + changed]


POOL = [each for number in range(30) for each in copies(picture(number, (64, 64)))]
RANKING = np.random.default_rng(0).permutation(len(POOL)).astype(np.int64)


@pytest.mark.parametrize("count", [1, 10, 30, 50])
def test_best_image_of_each_picture_is_kept_in_order(count: int) -> None:
    found = first_distinct(RANKING, POOL, count)
    first: dict[int, int] = {}
    for row in RANKING.tolist():
        first.setdefault(row // 10, row)
    assert found.tolist() == list(first.values())[:count]


def test_pool_that_is_too_much_alike_loses_only_equal_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 10)
    assert len(first_distinct(RANKING, POOL, 300)) == 30 * 7
    assert "only equal files were taken as duplicates" in caplog.text


def test_empty_ranking_gives_nothing() -> None:
    assert first_distinct(np.empty(0, np.int64), POOL, 5).tolist() == []
