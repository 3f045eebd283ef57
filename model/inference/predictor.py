"""The predictor of one bundle: ONNX Runtime over its graphs. Knows no HTTP and no torch.

Training computes all reported metrics with it and the service predicts with it, so the report
describes what the server does. Rows never influence each other: the outputs of an image have the
same bytes alone and in any batch, with any number of threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from model.bundle.architecture_description import DropoutLayer
from model.bundle.golden_outputs import Golden
from model.bundle.store import HEAD_FILE, MC_STATISTICS_FILE, MODEL_FILE
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
from model.errors import BundleError, MethodError
from model.graphs import mc_statistics, softmax_temperature
from model.graphs.execution_provider import ProviderName, providers_of
from model.graphs.external_data_check import OnnxEncodingError, require_self_contained
from model.graphs.mc_statistics import (
    DETAIL_OUTPUTS,
    SUMMARY_OUTPUTS,
    VECTOR_WIDTH,
    Feeds,
    MCStatistics,
)
from model.graphs.output_tolerance import scaled_tolerance
from model.graphs.sessions import (
    CPU_PROVIDER,
    CancellationToken,
    Provider,
    ProviderError,
    RunOptions,
    Session,
    create_session,
)
from model.inference.head_io_binding import BoundHead
from model.uncertainty.calibration import Calibrator
from model.uncertainty.prediction_sets import uniform_draws
from model.uncertainty.uncertainty_measures import (
    Summary,
    Uncertainty,
    concatenate,
    softmax,
    summarise,
    summarise_points,
    to_uncertainty,
)

_HEAD_BYTES = 32 * 2**20
"""Size limit of the largest array of one head run, [rows, samples, width]."""

_MAX_BOUND_HEADS = 4
"""How many samplings keep their inputs bound to the head; each takes as much memory as one run."""

_SMALL_HEAD_BYTES = 2**20
"""Size of a head up to which the memory of its plans does not matter."""

_MAX_TRUNK_ROWS = 64
"""Rows of one trunk run; more rows only grow the arena of ONNX Runtime."""

_ADDITIVE = 1e-3
"""By how much the logits of a linear head may differ from the sum of its units' contributions."""

_MODEL_OUTPUTS = ["logits", "features", *softmax_temperature.OUTPUTS]
OOD_SCORES = "ood_scores"
"""Output of the graph of a calibrated bundle: out-of-distribution scores, float32 [N]."""

Float32Array = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)


@dataclass
class Prediction:
    """The outputs of the deterministic pass for N images over K classes.

    Attributes:
        logits: float32 [N, K], not divided by the temperature.
        features: float32 [N, F], the output of the trunk.
        classification: calibrated probabilities, float32 [N, K], and the labels, int64 [N].
        temperature: divides the logits in the softmax.
        ood_scores: out-of-distribution scores, float32 [N], higher for more typical images; None:
            the graph computes none.
        calibrator: of the bundle; None: uncalibrated.
    """

    logits: Float32Array
    features: Float32Array
    classification: tuple[Float32Array, NDArray[np.int64]]
    temperature: float = 1.0
    ood_scores: Float32Array | None = None
    calibrator: Calibrator | None = None
    _source: "tuple[Prediction, slice | NDArray[np.int64]] | None" = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits over the temperature, float64 [N, K]."""
        if self._source is None:
            return softmax(self.logits, self.temperature)
        whole, rows = self._source
        return whole.probabilities[rows]  # computed once for all its parts

    @cached_property
    def typicality(self) -> NDArray[np.float64]:
        """Conformal p-value of each image among the validation images, [N]; NaN: uncalibrated."""
        if self._source is not None:
            whole, rows = self._source
            return whole.typicality[rows]
        if self.calibrator is None or self.ood_scores is None:
            return np.full(len(self.logits), np.nan)
        return self.calibrator.typicality(self.ood_scores)

    def take(self, rows: slice | NDArray[np.int64]) -> "Prediction":
        """Return some of the rows."""
        probabilities, labels = self.classification
        return Prediction(
            self.logits[rows],
            self.features[rows],
            (probabilities[rows], labels[rows]),
            self.temperature,
            None if self.ood_scores is None else self.ood_scores[rows],
            self.calibrator,
            (self, rows),
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[Prediction]") -> "Prediction":
        """Return the rows of several predictions, in order."""
        scores = [part.ood_scores for part in parts]
        probabilities, labels = zip(*[part.classification for part in parts], strict=True)
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.features for part in parts]),
            (np.concatenate(probabilities), np.concatenate(labels)),
            parts[0].temperature,
            _concatenate_if_all(scores),
            parts[0].calibrator,
        )


class Predictor:
    """The graphs of one bundle and its calibrator. Only one thread may use it at a time."""

    def __init__(
        self,
        layers: Sequence[DropoutLayer],
        model: Session,
        head: Session,
        statistics: MCStatistics,
        run_options: RunOptions | None = None,
        calibrator: Calibrator | None = None,
    ) -> None:
        self._layers = tuple(layers)
        self._model = model
        self._head = head
        self._statistics = statistics
        self._calibrator = calibrator
        parameters = None if calibrator is None else calibrator.parameters
        self.temperature = 1.0 if parameters is None else parameters.temperature
        """Divides the logits of the deterministic pass."""
        self.sampled_temperature = 1.0 if parameters is None else parameters.sampled_temperature
        """Divides the logits of every sample."""
        self.run_options = run_options
        """Options of every run of a graph, by which another thread can terminate it; None: no
        run can be terminated. With options a short run takes up to a tenth longer.
        """
        self._bound_heads: LRUCache[FixedSamples, BoundHead] = LRUCache(_MAX_BOUND_HEADS)
        self._last_sampling: FixedSamples | None = None
        self._last_bound_head: BoundHead
        outputs = model.get_outputs()
        self.classes = int(outputs[0].shape[-1])
        self.computes_ood_scores = any(each.name == OOD_SCORES for each in outputs)
        self._model_outputs = [*_MODEL_OUTPUTS, *([OOD_SCORES] * self.computes_ood_scores)]
        # The MC statistics hold two numbers for each class and sample.
        self._widest = max(2 * self.classes, *(layer.width for layer in self._layers))

    @classmethod
    def open(cls, folder: Path, layers: Sequence[DropoutLayer], threads: int = 1) -> Self:
        """Create an uncalibrated predictor from the graphs in `folder`.

        Args:
            folder: has the graphs, as `training.export.serving_graphs` leaves them.
            layers: the dropout layers of the head.
            threads: how many threads compute the trunk.

        Raises:
            BundleError: a graph cannot be read, or ONNX Runtime cannot load it.
        """
        return cls.from_files(lambda file: (folder / file).read_bytes(), folder, layers, threads)

    @classmethod
    def from_files(
        cls,
        read: Callable[[str], bytes],
        folder: Path,
        layers: Sequence[DropoutLayer],
        threads: int = 1,
        cancellation: CancellationToken | None = None,
        provider: ProviderName = "cpu",
    ) -> Self:
        """Create an uncalibrated predictor from graphs whose bytes `read` returns by file name.

        Args:
            read: called with MODEL_FILE, HEAD_FILE and MC_STATISTICS_FILE.
            folder: named in errors.
            layers: the dropout layers of the head.
            threads: how many threads compute the trunk.
            cancellation: cancels this and every later run; None: neither can be cancelled.
            provider: what computes the trunk.

        Raises:
            BundleError: a graph is refused, ONNX Runtime cannot load it, or there is no such
                provider.
        """
        try:
            model = _create_session(
                read(MODEL_FILE), threads, cancellation, providers=providers_of(provider)
            )
            # More threads would split sums, and so round them, by their number.
            head = _create_session(read(HEAD_FILE), 1, cancellation, plans=True)
            graph = read(MC_STATISTICS_FILE)
            require_self_contained(graph)
        except BundleError:
            raise
        except ProviderError as error:
            raise BundleError(
                f"{folder} cannot be loaded with --provider {provider} ({error}); see that "
                "nvidia-smi shows the GPU and that the libraries of CUDA are installed, or leave "
                "the option out."
            ) from None
        except OnnxEncodingError as error:
            raise BundleError(
                f"{folder} has a graph that is refused: {error}; export it again."
            ) from None
        except Exception as error:  # ONNX Runtime raises its own untyped exceptions
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{folder} cannot be loaded by ONNX Runtime ({reason}); export it again."
            ) from None
        run_options = None if cancellation is None else cancellation.run_options
        return cls(layers, model, head, MCStatistics(graph, cancellation), run_options)

    def with_calibrator(self, calibrator: Calibrator | None) -> Self:
        """Return a predictor over the same graphs with another calibrator; None: uncalibrated."""
        graphs = self._model, self._head, self._statistics
        return type(self)(self._layers, *graphs, self.run_options, calibrator)

    @property
    def calibrator(self) -> Calibrator | None:
        """Read-only, since cached inputs depend on its temperatures; None: uncalibrated."""
        return self._calibrator

    def predict(self, images: Float32Array) -> Prediction:
        """Run the network once without dropout; images float32 [N, C, H, W] in 0..1."""
        if len(images) <= _MAX_TRUNK_ROWS:
            return self._predict(images)
        return Prediction.concatenate(
            [
                self._predict(images[start:stop])
                for start, stop in _chunks(len(images), _MAX_TRUNK_ROWS)
            ]
        )

    def _predict(self, images: Float32Array) -> Prediction:
        feeds = {"images": images, **softmax_temperature.temperature_input(self.temperature)}
        logits, features, probabilities, labels, *scores = self._model.run(
            self._model_outputs, feeds, self.run_options
        )
        return Prediction(
            logits,
            features,
            (probabilities, labels),
            self.temperature,
            scores[0] if scores else None,
            self._calibrator,
        )

    def sample(self, features: Float32Array, sampling: FixedSamples) -> Float32Array:
        """Run the head with dropout active.

        Args:
            features: float32 [N, F], the output of the trunk.
            sampling: the number of samples T, their seed and their design.

        Returns:
            Logits, float32 [N, T, K], not divided by the temperature.
        """
        return self._run_samples(features, self._draw_masks(sampling))

    def summary(self, prediction: Prediction, sampling: FixedSamples) -> Summary:
        """Estimate the uncertainty of a prediction, without the details of `uncertainty`.

        sampling: must be `summary_only`.
        """
        features, head = prediction.features, self._bind_head(sampling)
        rows = self._max_head_rows(sampling.samples)
        if len(features) <= rows:
            summary = Summary.from_outputs(head.run(features, self.run_options))
        else:
            summary = Summary.concatenate(
                [
                    Summary.from_outputs(head.run(features[start:stop], self.run_options))
                    for start, stop in _chunks(len(features), rows)
                ]
            )
        if self._calibrator is not None:
            summary.typicality = prediction.typicality
        return summary

    def uncertainty(self, prediction: Prediction, sampling: Sampling) -> Uncertainty:
        """Estimate the uncertainty of a prediction.

        Raises:
            MethodError: the analytic method, for a head with several dropout layers, or with
                layers after its dropout that are not linear.
        """
        match sampling:
            case FixedSamples(samples=samples) | AdaptiveSamples(max_samples=samples):
                pass
            case Analytic():
                samples = max(QMC_POINTS, self._layers[0].width + 1)
        count, rows = len(prediction.logits), self._max_head_rows(samples)
        if count <= rows:
            return self._uncertainty(prediction, sampling)
        return concatenate(
            [
                self._uncertainty(prediction.take(slice(start, stop)), sampling)
                for start, stop in _chunks(count, rows)
            ]
        )

    def _uncertainty(self, prediction: Prediction, sampling: Sampling) -> Uncertainty:
        match sampling:
            case FixedSamples():
                outputs = self._bind_head(sampling).run(prediction.features, self.run_options)
                uncertainty = to_uncertainty(
                    outputs, sampling.samples, keep_samples=sampling.keep_samples
                )
            case AdaptiveSamples():
                uncertainty = self._adaptive(prediction, sampling)
            case Analytic():
                uncertainty = self._analytic(prediction)
        if self._calibrator is None:
            return uncertainty
        return replace(
            uncertainty,
            typicality=prediction.typicality,
            set_draws=uniform_draws(prediction.features),
        )

    def _adaptive(self, prediction: Prediction, sampling: AdaptiveSamples) -> Uncertainty:
        """Draw samples, in blocks that double their number, until each label is decided."""
        all_masks = masks.draw(sampling.seed, sampling.max_samples, self._layers, "paired")
        expected = prediction.logits.argmax(axis=-1)
        undecided = np.arange(len(expected))
        logits = np.empty((len(expected), 0, self.classes), np.float32)
        parts, order = [], []
        total = 0
        while len(undecided):
            start, total = total, min(max(FIRST_BLOCK, 2 * total), sampling.max_samples)
            block = tuple(mask[start:total] for mask in all_masks)
            more = self._run_samples(prediction.features[undecided], block)
            logits = np.concatenate([logits, more], axis=1)
            decided = label_is_decided(
                softmax(logits / np.float64(self.sampled_temperature)), expected[undecided]
            )
            finished = decided | (total == sampling.max_samples)
            if finished.any():
                part = summarise(
                    self._statistics,
                    logits[finished],
                    self.sampled_temperature,
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
        logits = self._run_samples(prediction.features, (single_units,))
        bias = logits[0, -1]
        contributions = logits[:, :-1] - bias
        difference = np.abs(bias + contributions.sum(axis=1) - prediction.logits).max()
        if difference > scaled_tolerance(_ADDITIVE, prediction.logits):
            raise MethodError(
                "The analytic method is for heads that are linear after their dropout layer, and "
                "this one is not; use mc_dropout."
            )
        points = normal_logits(contributions, bias, layer.p)
        return summarise_points(self._statistics, points, self.sampled_temperature)

    def _draw_masks(self, sampling: FixedSamples) -> Masks:
        return masks.draw(sampling.seed, sampling.samples, self._layers, sampling.design)

    def _run_samples(self, features: Float32Array, drawn: Masks) -> Float32Array:
        """Run the head with the masks: features [N, F] -> logits float32 [N, T, K]."""
        samples = len(drawn[0])
        inputs = self._head_inputs(drawn)
        runs = [
            self._head.run(
                ["logits"], {"features": features[start:stop], **inputs}, self.run_options
            )[0][:, :samples]
            for start, stop in _chunks(len(features), self._max_head_rows(samples))
        ]
        return _concatenate(runs)

    def _bind_head(self, sampling: FixedSamples) -> BoundHead:
        """Bind the inputs to the head that are the same for all requests with this sampling."""
        if sampling != self._last_sampling:
            if sampling not in self._bound_heads:
                only_summary = sampling.summary_only or sampling.samples == 1
                names = SUMMARY_OUTPUTS if only_summary else SUMMARY_OUTPUTS + DETAIL_OUTPUTS
                inputs = self._head_inputs(self._draw_masks(sampling))
                self._bound_heads[sampling] = BoundHead(self._head, inputs, names)
            self._last_sampling, self._last_bound_head = sampling, self._bound_heads[sampling]
        return self._last_bound_head

    def _head_inputs(self, drawn: Masks) -> Feeds:
        """Return the inputs of the head, except the features."""
        random = len(drawn[0]) > 1
        if not random:  # a single sample counts as two equal ones, so it has a variance, of 0
            drawn = tuple(np.repeat(mask, 2, axis=0) for mask in drawn)
        inputs: Feeds = {f"mask_{index}": mask for index, mask in enumerate(drawn)}
        return (
            inputs
            | mc_statistics.sample_count_inputs(len(drawn[0]), random)
            | mc_statistics.temperature_input(self.sampled_temperature)
        )

    def _max_head_rows(self, samples: int) -> int:
        """Return how many rows one run of the head may have."""
        if samples % VECTOR_WIDTH:
            return 1
        # First the head computes the weights times the features, then the samples.
        cells = max(samples * self._widest, self.classes * self._layers[0].width)
        return max(1, _HEAD_BYTES // (4 * cells))

    def self_test(self, golden: Golden) -> dict[str, float]:
        """Return the largest |difference| between golden and current logits, by their kind."""
        prediction = self.predict(golden.images)
        sampled = self.sample(prediction.features, FixedSamples(golden.seed, golden.samples))
        return {
            "logits": float(np.abs(prediction.logits - golden.logits).max()),
            "sampled logits": float(np.abs(sampled - golden.sampled_logits).max()),
        }


def _create_session(
    graph: bytes,
    threads: int,
    cancellation: CancellationToken | None,
    *,
    plans: bool = False,
    providers: Sequence[Provider] = (CPU_PROVIDER,),
) -> Session:
    """Create the session of a graph with all its weights; plans: keep them where it is small."""
    require_self_contained(graph)
    return create_session(
        graph,
        threads,
        memory_pattern=plans and len(graph) <= _SMALL_HEAD_BYTES,
        cancellation=cancellation,
        providers=providers,
    )


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _concatenate_if_all(parts: Sequence[Float32Array | None]) -> Float32Array | None:
    present = [part for part in parts if part is not None]
    return _concatenate(present) if len(present) == len(parts) else None


def _concatenate(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
