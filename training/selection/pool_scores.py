"""Predicts a pool with a bundle: uncertainty and typicality of each image, and single samples.

All images get the same masks, so that the samples of different images belong together. Chooses
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from model.bundle.store import open_bundle
from model.container_resources import available_processors
from model.dropout.sampling_methods import FixedSamples
from model.errors import DataError
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from training.data.image_inspection import Inspected, Rejected, map_on_all_cores
from training.selection.joint_label_configurations import Probabilities
from training.selection.pool import Pool, PoolImage
from training.selection.selection_config import SelectionConfig

_CHUNK = 64  # images that are in memory at once, for each thread

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PoolScores:
    """What a bundle says of the N images of a pool that can be read.

    Attributes:
        rows: int64 [N], the row of each in the pool.
        labels: int64 [N], the class of the highest mean probability.
        confidences: [N], that probability.
        mutual_information, predictive_entropy, variation_ratio: [N], as of
            `model.uncertainty.uncertainty_measures.Uncertainty`.
        typicality: [N], above 0 and up to 1; NaN: the bundle is uncalibrated.
    """

    rows: Rows
    labels: Rows
    confidences: Floats
    mutual_information: Floats
    predictive_entropy: Floats
    variation_ratio: Floats
    typicality: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Rows) -> "PoolScores":
        """Return some of the images, in this order."""
        return PoolScores(*(getattr(self, each.name)[places] for each in fields(self)))


class PoolPredictor:
    """A bundle with a predictor for each thread, and the sampling that all images share."""

    def __init__(self, config: SelectionConfig, pool: Pool) -> None:
        """Load the bundle.

        Raises:
            BundleError: it cannot be loaded.
        """
        self._pool = pool
        self._sampling = FixedSamples(config.seed, config.samples, summary_only=True)
        self._threads = config.threads or available_processors()
        self._predictors: SimpleQueue[Predictor] = SimpleQueue()  # one thread may use one at a time
        for _ in range(self._threads):
            self._predictors.put(load_predictor(open_bundle(config.model)))

    def score(self) -> tuple[PoolScores, list[Inspected]]:
        """Score all images of the pool; return the scores [N], and by what images are compared.

        Raises:
            DataError: no image can be read.
        """
        found = map_on_all_cores(
            self._score, _chunks(range(len(self._pool.names))), "Scoring images", self._threads
        )
        for _, _, rejected in found:
            for row, reason in rejected:
                self._pool.leave_out(row, reason)
        self._pool.log_left_out()
        parts = [part for part, _, _ in found if part is not None]
        if not parts:
            raise DataError("The pool has no image that can be read; name another with --pool.")
        columns = (
            np.concatenate([getattr(part, each.name) for part in parts])
            for each in fields(PoolScores)
        )
        return PoolScores(*columns), [image for _, images, _ in found for image in images]

    def sample(self, rows: Rows) -> Probabilities:
        """Return the probabilities of each sample for rows of the pool, float32 [S, K, T].

        Raises:
            DataError: an image can no longer be read.
        """
        parts = map_on_all_cores(
            self._sample, _chunks(rows.tolist()), "Sampling the shortlist", self._threads
        )
        return np.concatenate(parts)

    def _score(
        self, rows: Sequence[int]
    ) -> tuple[PoolScores | None, list[Inspected], list[tuple[int, Rejected]]]:
        read = [(row, self._pool.read(row)) for row in rows]
        images = [(row, image) for row, image in read if isinstance(image, PoolImage)]
        rejected = [(row, image) for row, image in read if isinstance(image, Rejected)]
        if not images:
            return None, [], rejected
        predictor = self._predictors.get()
        try:
            prediction = predictor.predict(to_float(np.stack([each.pixels for _, each in images])))
            summary = predictor.summary(prediction, self._sampling)
        finally:
            self._predictors.put(predictor)
        columns = {name: column.astype(np.float64) for name, column in summary.columns().items()}
        scores = PoolScores(
            np.array([row for row, _ in images], np.int64),
            summary.labels,
            summary.confidences(),
            columns["mutual_information"],
            columns["predictive_entropy"],
            columns["variation_ratio"],
            summary.typicality,
        )
        return scores, [each.inspected for _, each in images], rejected

    def _sample(self, rows: Sequence[int]) -> Probabilities:
        images = [self._pool.read(row) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if isinstance(image, Rejected):
                raise DataError(
                    f"{self._pool.names[row]} can no longer be read; leave the pool as it is, and "
                    "run again."
                )
        pixels = np.stack([each.pixels for each in images if isinstance(each, PoolImage)])
        predictor = self._predictors.get()
        try:
            sampling = self._sampling._replace(summary_only=False, keep_samples=True)
            uncertainty = predictor.uncertainty(predictor.predict(to_float(pixels)), sampling)
        finally:
            self._predictors.put(predictor)
        return np.stack(list(uncertainty.sample_probabilities))


def _chunks(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
