"""Loads the labelled images that a network is measured with, as three splits of a data set.

A network from elsewhere was not trained here, so no image has to be kept for that. `train` is what
the out-of-distribution score is fitted on, `validation` what everything else is, and `test` is only
measured.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from model.cli_and_env_settings import describe_validation_error
from model.errors import DataError, SettingsError
from model.images.preprocessing import InputSpec
from model.uncertainty.calibration import MIN_CALIBRATION_IMAGES
from training.adoption.adoption_config import AdoptionConfig
from training.config import DatasetConfig
from training.data.dataset import Dataset, Split, load_dataset
from training.data.image_folder_layout import list_images
from training.data_options import FOLDER_PREFIX

logger = logging.getLogger(__name__)

_SEED = 0
_SMALLEST_SHARE = 0.001
_DEFAULT_TEST_SHARE = 0.2
_MIN_REST = 3
"""Images at least that are not calibrated on, for the test and the score."""


def load_images(config: AdoptionConfig, spec: InputSpec) -> Dataset:
    """Load the images and divide them; the class names are those of the data.

    A folder's own train/ is used for the out-of-distribution score alone, since the network may
    have been trained on it.

    Args:
        config: names the data set and folders.
        spec: what the images are turned into.

    Raises:
        DropserveError: the data set cannot be used.
    """
    own: set[str] = {"train", "validation", "test"}
    share: float | None = None
    if config.data.startswith(FOLDER_PREFIX):
        own = set(list_images(Path(config.data.removeprefix(FOLDER_PREFIX))).splits)
        share = _SMALLEST_SHARE  # the images are divided anew below
    try:
        options = DatasetConfig(
            data=config.data,
            name=config.name,
            colour="grey" if spec.channels == 1 else "rgb",
            resize=config.resize,
            max_image_megapixels=config.max_image_megapixels,
            duplicates=config.duplicates,
            data_dir=config.data_dir,
            cache_dir=config.cache_dir,
            validation_share=share,
            test_share=_DEFAULT_TEST_SHARE if share is None else share,
        )
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None
    data = load_dataset(options, spec)
    if {"validation", "test"} <= own and len(data.validation) >= MIN_CALIBRATION_IMAGES:
        return data
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    held_out = [splits[name] for name in ("validation", "test") if name in own]
    if held_out:
        validation, test = divide(_together(held_out), 2)
        return replace(data, validation=validation, test=test)
    validation, test, train = divide(_together(list(splits.values())), 3)
    return replace(data, train=train, validation=validation, test=test)


def divide(split: Split, parts: int) -> list[Split]:
    """Divide images into parts of about equal size with each class in its share.

    The first part has at least MIN_CALIBRATION_IMAGES images where there are enough. Where there
    are not, nothing is gained by taking images from the others, which are measured.

    Raises:
        DataError: there are too few images to divide.
    """
    count = len(split)
    if count < _MIN_REST * parts:
        raise DataError(
            f"There are only {count} labelled images that the network was not trained on; give it "
            f"{_MIN_REST * parts} or more, and {MIN_CALIBRATION_IMAGES * 3 // 2} to be calibrated."
        )
    first = count // parts
    if count - _MIN_REST * (parts - 1) >= MIN_CALIBRATION_IMAGES:
        first = max(first, MIN_CALIBRATION_IMAGES)
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(count)
    rows = order[np.argsort(split.labels[order], kind="stable")]
    chosen = _evenly_spaced(rows, first)
    rest = rows[~np.isin(rows, chosen)]
    return [
        split.take(np.sort(part))
        for part in (chosen, *(rest[k :: parts - 1] for k in range(parts - 1)))
    ]


def name_classes(data: Dataset, class_names: Sequence[str], outputs: NDArray[np.int64]) -> Dataset:
    """Return the data set with the classes of the network instead of its own.

    Args:
        data: with its own classes.
        class_names: of the network.
        outputs: the network's class for each class of the data.
    """

    def relabelled(split: Split) -> Split:
        return Split(split.images, outputs[split.labels], split.names)

    return replace(
        data,
        class_names=tuple(class_names),
        train=relabelled(data.train),
        validation=relabelled(data.validation),
        test=relabelled(data.test),
    )


def _evenly_spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    places = (np.arange(count) + 0.5) * len(rows) / count
    return rows[places.astype(np.int64)]


def _together(splits: Sequence[Split]) -> Split:
    return Split(
        np.concatenate([each.images for each in splits]),
        np.concatenate([each.labels for each in splits]),
    )
