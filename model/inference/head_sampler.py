"""Runs the head of one bundle with dropout active. Knows no images and no calibrator.

A row's outputs have the same bytes alone and in any batch: the head runs on one thread, and the
number of samples alone decides how many rows one run has.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from cachetools import LRUCache

from model.bundle.architecture_description import DropoutLayer
from model.dropout import masks
from model.dropout.adaptive_stopping import label_is_decided
from model.dropout.analytic_integration import QMC_POINTS, normal_logits
from model.dropout.masks import Masks
from model.dropout.sampling_methods import (
    FIRST_BLOCK,
    AdaptiveSamples,
    Analytic,
    FixedSamples,
    Sampling,
)
from model.errors import MethodError
from model.graphs import mc_statistics
from model.graphs.mc_statistics import (
    DETAIL_OUTPUTS,
    SUMMARY_OUTPUTS,
    VECTOR_WIDTH,
    Feeds,
    MCStatistics,
)
from model.graphs.output_tolerance import scaled_tolerance
from model.graphs.sessions import RunOptions, Session
from model.inference.head_io_binding import BoundHead
from model.inference.prediction import Float32Array, Prediction
from model.inference.row_slices import row_slices
from model.uncertainty.uncertainty_measures import (
    Summary,
    Uncertainty,
    concatenate,
    softmax,
    summarise,
    summarise_points,
    to_uncertainty,
)

_RUN_BYTES = 32 * 2**20
"""Size limit of the largest array of one run, [rows, samples, width]."""

_MOST_BOUND = 4
"""How many samplings keep their inputs bound to the head; each takes as much memory as one run."""

_ADDITIVE = 1e-3
"""By how much the logits of a linear head may differ from the sum of its units' contributions."""


class HeadSampler:
    """The head of one bundle and its dropout masks. Only one thread may use it at a time."""

    def __init__(
        self,
        head: Session,
        layers: Sequence[DropoutLayer],
        statistics: MCStatistics,
        classes: int,
        temperature: float,
        run_options: RunOptions | None,
    ) -> None:
        """Run nothing yet.

        Args:
            head: features and masks to logits and their statistics.
            layers: its dropout layers.
            statistics: those of logits that were sampled before.
            classes: K.
            temperature: divides the logits of every sample.
            run_options: as `Predictor.run_options`.
        """
        self._head = head
        self._layers = tuple(layers)
        self._statistics = statistics
        self._classes = classes
        self.temperature = temperature
        self.run_options = run_options
        self._bound: LRUCache[FixedSamples, BoundHead] = LRUCache(_MOST_BOUND)
        self._last_sampling: FixedSamples | None = None
        self._last_bound: BoundHead
        # The MC statistics hold two numbers for each class and sample.
        self._widest = max(2 * classes, *(layer.width for layer in self._layers))

    def sample(self, features: Float32Array, sampling: FixedSamples) -> Float32Array:
        """Return the logits of every sample: features [N, F] -> float32 [N, T, K]."""
        return self._run(features, self._draw(sampling))

    def summary(self, features: Float32Array, sampling: FixedSamples) -> Summary:
        """Estimate the uncertainty of features [N, F] without the details of `uncertainty`.

        sampling: must be `summary_only`.
        """
        head = self._bind(sampling)
        rows = self._most_rows(sampling.samples)
        if len(features) <= rows:
            return Summary.from_outputs(head.run(features, self.run_options))
        return Summary.concatenate(
            [
                Summary.from_outputs(head.run(features[part], self.run_options))
                for part in row_slices(len(features), rows)
            ]
        )

    def uncertainty(self, prediction: Prediction, sampling: Sampling) -> Uncertainty:
        """Estimate the uncertainty of a prediction.

        Raises:
            MethodError: as `Predictor.uncertainty`.
        """
        match sampling:
            case FixedSamples(samples=samples) | AdaptiveSamples(max_samples=samples):
                pass
            case Analytic():
                samples = max(QMC_POINTS, self._layers[0].width + 1)
        count, rows = len(prediction.logits), self._most_rows(samples)
        if count <= rows:
            return self._uncertainty(prediction, sampling)
        return concatenate(
            [self._uncertainty(prediction.take(part), sampling) for part in row_slices(count, rows)]
        )

    def _uncertainty(self, prediction: Prediction, sampling: Sampling) -> Uncertainty:
        match sampling:
            case FixedSamples():
                outputs = self._bind(sampling).run(prediction.features, self.run_options)
                return to_uncertainty(outputs, sampling.samples, keep_samples=sampling.keep_samples)
            case AdaptiveSamples():
                return self._adaptive(prediction, sampling)
            case Analytic():
                return self._analytic(prediction)

    def _adaptive(self, prediction: Prediction, sampling: AdaptiveSamples) -> Uncertainty:
        """Draw samples, in blocks that double their number, until each label is decided."""
        all_masks = masks.draw(sampling.seed, sampling.max_samples, self._layers, "paired")
        expected = prediction.logits.argmax(axis=-1)
        undecided = np.arange(len(expected))
        logits = np.empty((len(expected), 0, self._classes), np.float32)
        parts, order = [], []
        total = 0
        while len(undecided):
            start, total = total, min(max(FIRST_BLOCK, 2 * total), sampling.max_samples)
            block = tuple(mask[start:total] for mask in all_masks)
            more = self._run(prediction.features[undecided], block)
            logits = np.concatenate([logits, more], axis=1)
            decided = label_is_decided(
                softmax(logits / np.float64(self.temperature)), expected[undecided]
            )
            finished = decided | (total == sampling.max_samples)
            if finished.any():
                part = summarise(
                    self._statistics,
                    logits[finished],
                    self.temperature,
                    keep_samples=sampling.keep_samples,
                )
                parts.append(replace(part, label_decided=decided[finished]))
                order.append(undecided[finished])
            undecided, logits = undecided[~finished], logits[~finished]
        return concatenate(parts).take(np.argsort(np.concatenate(order)))

    def _analytic(self, prediction: Prediction) -> Uncertainty:
        if len(self._layers) > 1:
            raise MethodError(
                f"The analytic method is for heads with one dropout layer, and this one has "
                f"{len(self._layers)}; use mc_dropout."
            )
        (layer,) = self._layers
        single_units = np.eye(layer.width + 1, layer.width, dtype=np.float32)  # the last: no unit
        logits = self._run(prediction.features, (single_units,))
        bias = logits[0, -1]
        contributions = logits[:, :-1] - bias
        difference = np.abs(bias + contributions.sum(axis=1) - prediction.logits).max()
        if difference > scaled_tolerance(_ADDITIVE, prediction.logits):
            raise MethodError(
                "The analytic method is for heads that are linear after their dropout layer, and "
                "this one is not; use mc_dropout."
            )
        points = normal_logits(contributions, bias, layer.p)
        return summarise_points(self._statistics, points, self.temperature)

    def _draw(self, sampling: FixedSamples) -> Masks:
        return masks.draw(sampling.seed, sampling.samples, self._layers, sampling.design)

    def _run(self, features: Float32Array, drawn: Masks) -> Float32Array:
        """Run the head with the masks: features [N, F] -> logits float32 [N, T, K]."""
        samples = len(drawn[0])
        inputs = self._inputs(drawn)
        runs = [
            self._head.run(["logits"], {"features": features[part], **inputs}, self.run_options)[0][
                :, :samples
            ]
            for part in row_slices(len(features), self._most_rows(samples))
        ]
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def _bind(self, sampling: FixedSamples) -> BoundHead:
        """Bind the inputs to the head that are the same for all requests with this sampling."""
        if sampling != self._last_sampling:
            if sampling not in self._bound:
                only_summary = sampling.summary_only or sampling.samples == 1
                names = SUMMARY_OUTPUTS if only_summary else SUMMARY_OUTPUTS + DETAIL_OUTPUTS
                inputs = self._inputs(self._draw(sampling))
                self._bound[sampling] = BoundHead(self._head, inputs, names)
            self._last_sampling, self._last_bound = sampling, self._bound[sampling]
        return self._last_bound

    def _inputs(self, drawn: Masks) -> Feeds:
        """Return the inputs of the head, except the features."""
        random = len(drawn[0]) > 1
        if not random:  # a single sample counts as two equal ones, so it has a variance, of 0
            drawn = tuple(np.repeat(mask, 2, axis=0) for mask in drawn)
        inputs: Feeds = {f"mask_{index}": mask for index, mask in enumerate(drawn)}
        return (
            inputs
            | mc_statistics.sample_count_inputs(len(drawn[0]), random)
            | mc_statistics.temperature_input(self.temperature)
        )

    def _most_rows(self, samples: int) -> int:
        """Return how many rows one run of the head may have."""
        if samples % VECTOR_WIDTH:
            return 1
        # First the head computes the weights times the features, then the samples.
        cells = max(samples * self._widest, self._classes * self._layers[0].width)
        return max(1, _RUN_BYTES // (4 * cells))
