"""Comparing a new bundle with an earlier one."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.errors import SettingsError
from model.inference.predictor_loading import load_predictor
from tests.bundles import copy_bundle, edit_manifest
from training.config import DatasetConfig
from training.data.dataset import load_dataset
from training.evaluation.earlier_bundle import (
    compare_with_earlier,
    mcnemar_p_value,
    open_earlier,
)
from training.evaluation.metrics import evaluate
from training.evaluation.metrics_schema import BundleMetrics
from training.report.earlier_section import earlier_section


def test_bundle_is_compared_image_by_image(bundle_folder: Path) -> None:
    """The new one is the earlier one, with the labels of some answers changed."""
    data = load_dataset(DatasetConfig(data="digits"))
    earlier = open_earlier(DatasetConfig(data="digits", compare_with=bundle_folder), data)
    assert earlier is not None
    same = evaluate(load_predictor(open_bundle(bundle_folder)), data.test, data.class_names)
    probabilities = same.answers.probabilities.copy()
    right = np.flatnonzero(probabilities.argmax(axis=1) == data.test.labels)[:7]
    probabilities[right] = 1 - probabilities[right]
    changed = replace(same, answers=replace(same.answers, probabilities=probabilities))
    metrics = compare_with_earlier(earlier, data, changed)
    test = open_bundle(bundle_folder).manifest.metrics["test"]
    assert (metrics["accuracy"], metrics["nll"]) == (test["accuracy"], test["nll"])
    assert (metrics["right_now"], metrics["right_before"]) == (0, 7)
    assert metrics["p_value"] == pytest.approx(2 / 2**7)
    assert metrics["doubt"] is None
    both = cast(BundleMetrics, {"test": test, "earlier": metrics})
    section = earlier_section({}, both)
    assert f"| before: digits, version 1 | {test['accuracy']:.2%} |" in section
    assert "0 test images right now and wrong before, 7 the other way round" in section


def test_p_value_is_symmetrical_and_1_without_a_difference() -> None:
    assert mcnemar_p_value(0, 0) == mcnemar_p_value(4, 4) == 1
    assert mcnemar_p_value(1, 9) == mcnemar_p_value(9, 1) == pytest.approx(2 * 11 / 2**10)


def test_bundle_of_other_images_is_refused(bundle_folder: Path) -> None:
    config = DatasetConfig(data="digits", compare_with=bundle_folder)
    data = load_dataset(config)
    other = replace(data, input=data.input.model_copy(update={"height": 9}))
    with pytest.raises(SettingsError, match="takes images of another size"):
        open_earlier(config, other)


def test_other_draw_of_the_test_images_causes_a_warning_in_log_and_report(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DatasetConfig(data="digits", compare_with=bundle_folder, split_seed=1)
    data = load_dataset(config)
    earlier = open_earlier(config, data)
    assert earlier is not None
    warning = "may have been trained on some of these test images, as it was tested on others"
    assert caplog.text.count(warning) == 1
    test = evaluate(load_predictor(earlier), data.test, data.class_names)
    metrics = compare_with_earlier(earlier, data, test)
    both = cast(BundleMetrics, {"test": test.metrics, "earlier": metrics})
    assert f"**Warning**: the earlier bundle {warning}" in earlier_section({}, both)


def test_bundle_that_does_not_say_what_it_was_tested_on_causes_a_warning(
    bundle_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = copy_bundle(bundle_folder, tmp_path)
    entry = dict(open_bundle(old).manifest.data)
    del entry["test_sha256"]
    edit_manifest(old, data=entry)
    config = DatasetConfig(data="digits", compare_with=old)
    open_earlier(config, load_dataset(config))
    assert "as it does not say what it was tested on, so its figures may be" in caplog.text


def test_other_test_images_cause_a_warning_where_the_options_are_the_same(
    bundle_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DatasetConfig(data="digits", compare_with=bundle_folder)
    data = load_dataset(config)
    open_earlier(config, data)
    assert caplog.text == ""
    in_other_order = data.test.take(np.arange(len(data.test))[::-1].copy())
    open_earlier(config, replace(data, test=in_other_order))
    assert caplog.text == ""
    open_earlier(config, replace(data, test=data.test.take(np.arange(1, len(data.test)))))
    assert "its figures may be too good" in caplog.text


def test_section_counts_what_was_added_and_left_out() -> None:
    left_out = {"damaged": 1, "duplicate": 2, "trained_on": 5}
    added = {"images_per_class": {"a|b": 3, "c": 1}, "left_out": left_out}
    section = earlier_section({"added": added}, cast(BundleMetrics, {}))
    assert "4 labelled images added to the training images" in section
    assert "Left out: 8 files, of which 2 for showing" in section
    assert "test image, and 5 for being training images already." in section
    assert "a|b" not in section
