"""The predictor of one bundle: ONNX Runtime over its graphs. Knows no HTTP and no torch.

Training computes all reported metrics with it and the service predicts with it, so the report
describes what the server does. Rows never influence each other: the outputs of an image have the
same bytes alone and in any batch, with any number of threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from model.bundle.architecture_description import DropoutLayer
from model.bundle.golden_outputs import Golden
from model.bundle.store import HEAD_FILE, MC_STATISTICS_FILE, MODEL_FILE
from model.dropout.sampling_methods import FixedSamples, Sampling
from model.errors import BundleError
from model.graphs import softmax_temperature
from model.graphs.execution_provider import ProviderName, providers_of
from model.graphs.external_data_check import OnnxEncodingError, require_self_contained
from model.graphs.mc_statistics import MCStatistics
from model.graphs.sessions import (
    CPU_PROVIDER,
    CancellationToken,
    Provider,
    ProviderError,
    RunOptions,
    Session,
    create_session,
)
from model.inference.head_sampler import HeadSampler
from model.inference.prediction import Float32Array, Prediction
from model.inference.row_slices import row_slices
from model.uncertainty.calibration import Calibrator
from model.uncertainty.prediction_sets import uniform_draws
from model.uncertainty.uncertainty_measures import Summary, Uncertainty

_SMALL_HEAD_BYTES = 2**20
"""Size of a head up to which the memory of its plans does not matter."""

_MOST_TRUNK_ROWS = 64
"""Rows of one trunk run; more rows only grow the arena of ONNX Runtime."""

_MODEL_OUTPUTS = ["logits", "features", *softmax_temperature.OUTPUTS]
OOD_SCORES = "ood_scores"
"""Output of the graph of a calibrated bundle: out-of-distribution scores, float32 [N]."""


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
        self._graphs = tuple(layers), model, head, statistics
        self._model = model
        self._calibrator = calibrator
        parameters = None if calibrator is None else calibrator.parameters
        self.temperature = 1.0 if parameters is None else parameters.temperature
        """Divides the logits of the deterministic pass."""
        outputs = model.get_outputs()
        self.classes = int(outputs[0].shape[-1])
        self.computes_ood_scores = any(each.name == OOD_SCORES for each in outputs)
        self._model_outputs = [*_MODEL_OUTPUTS, *([OOD_SCORES] * self.computes_ood_scores)]
        sampled_temperature = 1.0 if parameters is None else parameters.sampled_temperature
        self._sampler = HeadSampler(
            head, layers, statistics, self.classes, sampled_temperature, run_options
        )

    @property
    def sampled_temperature(self) -> float:
        """Divides the logits of every sample."""
        return self._sampler.temperature

    @property
    def run_options(self) -> RunOptions | None:
        """Options of every run of a graph, by which another thread can terminate it.

        None: no run can be terminated. With options a short run takes up to a tenth longer.
        """
        return self._sampler.run_options

    @run_options.setter
    def run_options(self, options: RunOptions | None) -> None:
        self._sampler.run_options = options

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
            MemoryError: there is not enough for it.
        """
        try:
            model = _create_session(
                read(MODEL_FILE), threads, cancellation, providers=providers_of(provider)
            )
            # More threads would split sums, and so round them, by their number.
            head = _create_session(read(HEAD_FILE), 1, cancellation, plans=True)
            graph = read(MC_STATISTICS_FILE)
            require_self_contained(graph)
        except (BundleError, MemoryError):
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
        return type(self)(*self._graphs, self.run_options, calibrator)

    @property
    def calibrator(self) -> Calibrator | None:
        """Read-only, since cached inputs depend on its temperatures; None: uncalibrated."""
        return self._calibrator

    def predict(self, images: Float32Array) -> Prediction:
        """Run the network once without dropout; images float32 [N, C, H, W] in 0..1."""
        if len(images) <= _MOST_TRUNK_ROWS:
            return self._predict(images)
        return Prediction.concatenate(
            [self._predict(images[part]) for part in row_slices(len(images), _MOST_TRUNK_ROWS)]
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
        return self._sampler.sample(features, sampling)

    def summary(self, prediction: Prediction, sampling: FixedSamples) -> Summary:
        """Estimate the uncertainty of a prediction, without the details of `uncertainty`.

        sampling: must be `summary_only`.
        """
        summary = self._sampler.summary(prediction.features, sampling)
        if self._calibrator is not None:
            summary.typicality = prediction.typicality
        return summary

    def uncertainty(self, prediction: Prediction, sampling: Sampling) -> Uncertainty:
        """Estimate the uncertainty of a prediction.

        Raises:
            MethodError: the analytic method, for a head with several dropout layers, or with
                layers after its dropout that are not linear.
        """
        uncertainty = self._sampler.uncertainty(prediction, sampling)
        if self._calibrator is None:
            return uncertainty
        return replace(
            uncertainty,
            typicality=prediction.typicality,
            set_draws=uniform_draws(prediction.features),
        )

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
