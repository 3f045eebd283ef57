import logging
from pathlib import Path

import numpy as np
import pytest

from model.errors import SettingsError
from tests.training.data.folders import picture
from training.data.image_inspection import Inspected, inspect_pixels
from training.selection.choose_images import choose_images, shortlist_size
from training.selection.joint_label_configurations import Probabilities
from training.selection.pool_scores import PoolScores
from training.selection.selection_config import Method, SelectionConfig


def config(tmp_path: Path, **options: object) -> SelectionConfig:
    fixed = {"model": tmp_path, "pool": "digits", "output": tmp_path / "a.csv"}
    return SelectionConfig.model_validate(fixed | options)


@pytest.mark.parametrize("method", ["bald", "entropy", "variation-ratio", "typical", "random"])
def test_only_batchbald_keeps_samples_in_memory(method: Method, tmp_path: Path) -> None:
    options = {"count": 7_000, "samples": 4096}
    assert shortlist_size(config(tmp_path, method=method, **options), classes=10) == 7_000
    with pytest.raises(SettingsError, match="take more than 1 GiB; lower --samples, --count or"):
        shortlist_size(config(tmp_path, **options), classes=10)


@pytest.mark.parametrize("duplicates", ["remove", "keep"])
@pytest.mark.parametrize(("images", "is_advised"), [(20, False), (21, True)])
def test_larger_shortlist_is_advised_only_where_an_image_is_outside(
    images: int,
    is_advised: bool,
    duplicates: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    options = config(tmp_path, count=20, shortlist=20, duplicates=duplicates, typicality_at_least=0)
    chosen = choose_images(options, equal_scores(images), pictures(images), 20, equal_samples)
    assert len(chosen.values) == 20
    assert ("a larger --shortlist may find better ones" in caplog.text) is is_advised


def equal_scores(images: int) -> PoolScores:
    """Return equal scores, with more mutual information than the last image gains."""
    each = np.full(images, 0.5)
    rows = np.arange(images)
    return PoolScores(rows, rows, each, each, each, each, each)


def equal_samples(rows: np.ndarray) -> Probabilities:
    """Return the samples of images whose first label tells all the others."""
    sure = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
    return np.broadcast_to(sure, (len(rows), 2, 2)).copy()


def pictures(count: int) -> list[Inspected]:
    return [
        inspect_pixels(np.asarray(picture(number, (64, 64)).convert("L"))[np.newaxis])
        for number in range(count)
    ]
