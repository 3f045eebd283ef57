"""Features of images by a frozen backbone, and the cache that they are kept in."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from model.errors import DataError, RunError
from model.images.preprocessing import InputSpec
from training.transfer.backbone_features import FeatureExtractor

SPEC = InputSpec(channels=3, height=8, width=8, resize="crop")
IMAGES = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)


class MeanColour:
    """A backbone whose features are the mean of each channel."""

    digest = "0" * 64
    spec: InputSpec | None = None
    trunk = nn.Identity()

    def features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features, float32 [N, 3], of images float32 [N, 3, H, W]."""
        means: NDArray[np.float32] = images.mean(axis=(2, 3))
        return means


def extractor(cache: Path) -> FeatureExtractor:
    return FeatureExtractor(MeanColour(), SPEC, cache)


def test_features_are_computed_once_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the features are in the cache")

    first = extractor(tmp_path).of_images(IMAGES)
    np.testing.assert_allclose(first, IMAGES.mean(axis=(2, 3)) / 255, rtol=1e-6)
    monkeypatch.setattr(MeanColour, "features", fail)
    np.testing.assert_array_equal(extractor(tmp_path).of_images(IMAGES), first)


def test_full_disk_leaves_nothing_in_the_cache_and_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        RunError, match=r"to .* \(No space left on device\); free space, or .* --cache-dir\.$"
    ):
        extractor(tmp_path).of_images(IMAGES)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_cache_that_is_no_folder_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="choose another folder with --cache-dir"):
        extractor(tmp_path / "file").of_images(IMAGES)


def test_photograph_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cat\.png could be read before and cannot any more"):
        extractor(tmp_path).of_views([tmp_path / "cat.png"], 2, max_pixels=10**6)
