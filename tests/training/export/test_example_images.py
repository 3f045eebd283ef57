import logging
from pathlib import Path

import numpy as np
import pytest

from model.bundle.example_images import MAX_EXAMPLE_BYTES, is_example
from model.images.preprocessing import InputSpec, decode
from training.data.dataset import Dataset, Split
from training.evaluation.metrics import Evaluation
from training.export.example_images import choose_examples, encode_example, write_examples


def test_examples_run_from_the_surest_to_the_least_sure_with_a_mistake(
    evaluation: Evaluation,
) -> None:
    entropy = evaluation.answers.uncertainty.predictive_entropy
    wrong = evaluation.answers.mean_probabilities.argmax(axis=1) != evaluation.labels
    rows = choose_examples(evaluation, 8)
    assert len(set(rows)) == 8
    assert (np.diff(entropy[rows]) >= 0).all()
    assert (rows[0], rows[-1]) == (entropy.argmin(), entropy.argmax())
    assert np.flatnonzero(wrong)[entropy[wrong].argmin()] in rows
    assert set(evaluation.labels[rows]) == set(evaluation.labels)
    assert choose_examples(evaluation, 8).tolist() == rows.tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
def test_as_many_examples_are_chosen_as_wanted_and_there(
    evaluation: Evaluation, count: int
) -> None:
    rows = choose_examples(evaluation, count)
    assert len(set(rows)) == len(rows) == min(count, len(evaluation.labels))


@pytest.mark.parametrize("channels", [1, 3])
def test_small_image_keeps_every_pixel(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 28, 28), dtype=np.uint8)
    spec = InputSpec(channels=1 if channels == 1 else 3, height=28, width=28, resize="pad")
    file = encode_example(image)
    assert is_example(file)
    assert np.array_equal(decode(file, spec), image)


def test_large_image_becomes_a_small_file() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 400, 300), dtype=np.uint8)
    file = encode_example(noise)
    assert is_example(file)
    assert len(file) <= MAX_EXAMPLE_BYTES / 2


def test_examples_are_written_with_their_true_classes(
    tmp_path: Path, dataset: Dataset, evaluation: Evaluation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = with_validation(dataset, dataset.test)
    entries = write_examples(tmp_path, data, evaluation, 4)
    rows = choose_examples(evaluation, 4)
    assert [each["label"] for each in entries] == [
        dataset.class_names[evaluation.labels[row]] for row in rows
    ]
    for entry, row in zip(entries, rows, strict=True):
        assert (tmp_path / entry["file"]).read_bytes() == encode_example(data.test.images[row])
    assert "--examples 0 leaves them out" in caplog.text
    assert write_examples(tmp_path / "none", data, evaluation, 0) == []
    assert not (tmp_path / "none").exists()


def with_validation(dataset: Dataset, split: Split) -> Dataset:
    return Dataset(**{**vars(dataset), "validation": split})
