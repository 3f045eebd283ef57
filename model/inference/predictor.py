"""ONNX Runtime over one bundle's graphs. Knows no HTTP, no batching between callers, no torch.

Training measures every published figure through it and the service answers through it, so what the
report says is what the server does. Rows never influence each other: an image's numbers are the
same bytes alone and in any batch, with any number of threads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from pydantic import ValidationError

from model.bundle.architecture import DropoutLayer
from model.bundle.golden import Golden
from model.bundle.store import GOLDEN_FILE, HEAD_FILE, MODEL_FILE, Bundle
from model.dropout import masks
from model.dropout.analytic import POINTS, normal_logits
from model.dropout.masks import Masks
from model.dropout.sampling import FIRST_BLOCK, AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.dropout.sequential_test import settled
from model.errors import BundleError, MethodError
from model.graphs import calibrated_softmax as classification
from model.graphs.embedded_weights import WireError, require_self_contained
from model.graphs.mc_statistics import BLOCK, DETAILS, MAIN, Feeds, behind, rule, scaling
from model.graphs.sessions import RunOptions, Session, Stop, start
from model.uncertainty.calibration import CALIBRATION_FILE, Arrays, Calibrator, uniform_draws
from model.uncertainty.summary import (
    Summary,
    Uncertainty,
    answer,
    integrate,
    joined,
    softmax,
    summarise,
)

GOLDEN_TOLERANCE = 1e-3
"""Allowed |difference| of a golden logit: other processors round differently (about 1e-5), damage
does more. Of int8 too: its integers are exact, and what is rounded comes behind them."""

_HEAD_BYTES = 32 * 2**20
"""Bound on the largest array of one run of the head, [rows, samples, width]."""

_BOUND = 4
"""Ways of asking whose masks stay bound to the head; each holds as much as one of its runs."""

_SMALL_BYTES = 2**20
"""Of a head beside whose weights plans of memory do not count."""

_MAX_TRUNK_ROWS = 64
"""Rows of one trunk run: more only grow ONNX Runtime's arena."""

_ANSWER = ["logits", "features", *classification.OUTPUTS]

Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)


@dataclass
class Prediction:
    """The deterministic pass over N images and K classes.

    Attributes:
        logits: float32 [N, K].
        features: float32 [N, F].
        classification: probabilities, float32 [N, K], and the likeliest labels, int64 [N].
        temperature: what the logits are divided by.
    """

    logits: Floats
    features: Floats
    classification: tuple[Floats, NDArray[np.int64]]
    temperature: float = 1.0
    _part_of: "tuple[Prediction, slice | NDArray[np.int64]] | None" = None

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits over the temperature, float64 [N, K]."""
        if self._part_of is None:
            return softmax(self.logits, self.temperature)
        whole, rows = self._part_of
        return whole.probabilities[rows]  # computed once for all parts

    def take(self, rows: slice | NDArray[np.int64]) -> "Prediction":
        """Return some of the rows."""
        singles, labels = self.classification
        return Prediction(
            self.logits[rows],
            self.features[rows],
            (singles[rows], labels[rows]),
            self.temperature,
            (self, rows),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Prediction]") -> "Prediction":
        """Put the rows of several passes one after another."""
        probabilities, labels = zip(*[part.classification for part in parts], strict=True)
        return cls(
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.features for part in parts]),
            (np.concatenate(probabilities), np.concatenate(labels)),
            parts[0].temperature,
        )


class _Bound:
    """What stays of the head's runs from one to the next: inputs, and the outputs' places."""

    def __init__(self, head: Session, feeds: Feeds, names: Sequence[str]) -> None:
        self._head = head
        self._feeds = feeds  # the binding may point into them
        self._names = names
        self._rows = 0
        self._binding = head.io_binding()
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, value)

    def run(self, features: Floats, options: RunOptions | None) -> Sequence[Any]:
        """Return the outputs for features [N, F]."""
        if len(features) != self._rows:
            self._rows = len(features)
            for name in self._names:
                self._binding.bind_output(name)
        self._binding.bind_cpu_input("features", features)
        self._head.run_with_iobinding(self._binding, options)
        return self._binding.copy_outputs_to_cpu()


class Predictor:
    """The two graphs of one bundle, opened. Not for two threads at once."""

    def __init__(
        self,
        layers: Sequence[DropoutLayer],
        model: Session,
        head: Session,
        options: RunOptions | None = None,
    ) -> None:
        self._layers = tuple(layers)
        self._model = model
        self._head = head
        self.calibrated: Calibrator | None = None
        """Its temperatures, and what turns answers into decisions; None: answers as they come."""
        self.run_options = options
        """Of every run of both graphs, to end it from another thread; None: it cannot be ended.

        With options a brief run takes up to a tenth longer.
        """
        self._bound: LRUCache[tuple[FixedSamples, float], _Bound] = LRUCache(_BOUND)
        self._last_asked: tuple[FixedSamples, float] | None = None
        self._last_bound: _Bound
        self.classes = int(model.get_outputs()[0].shape[-1])
        # The figures hold two numbers of a class and a sample.
        self._widest = max(2 * self.classes, *(layer.width for layer in self._layers))

    @classmethod
    def open(cls, folder: Path, layers: Sequence[DropoutLayer], threads: int = 1) -> Self:
        """Start ONNX Runtime on the graphs in `folder`, with `threads` threads for the trunk.

        Raises:
            BundleError: a graph cannot be read, or ONNX Runtime cannot load it.
        """
        return cls.start(lambda file: (folder / file).read_bytes(), folder, layers, threads)

    @classmethod
    def start(
        cls,
        read: Callable[[str], bytes],
        folder: Path,
        layers: Sequence[DropoutLayer],
        threads: int = 1,
        stop: Stop | None = None,
    ) -> Self:
        """Start ONNX Runtime on graphs that `read` gives by their file's name; as `open`.

        folder: what an error calls them.
        stop: by which the start and every run can be ended.
        """
        try:
            weights = _self_contained(read(MODEL_FILE))
            model = start(weights + classification.behind("logits"), threads, stop=stop)
            figures = behind("logits", int(model.get_outputs()[0].shape[-1]))
            # Several threads would split sums, and round them, by their number.
            weights = _self_contained(read(HEAD_FILE))
            small = len(weights) <= _SMALL_BYTES
            head = start(weights + figures, threads=1, plan=small, stop=stop)
        except BundleError:
            raise
        except WireError as error:
            raise BundleError(
                f"{folder} has a graph that is refused: {error}; export it again."
            ) from None
        except Exception as error:  # ONNX Runtime raises its own untyped exceptions
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{folder} cannot be loaded by ONNX Runtime ({reason}); export it again."
            ) from None
        return cls(layers, model, head, None if stop is None else stop.run_options)

    def predict(self, images: Floats) -> Prediction:
        """Run the whole network once; images float32 [N, C, H, W] in 0..1."""
        temperature = self.calibrated.numbers.temperature if self.calibrated else 1.0
        if len(images) <= _MAX_TRUNK_ROWS:
            return self._predict(images, temperature)
        return Prediction.joined(
            [
                self._predict(images[start:stop], temperature)
                for start, stop in _chunks(len(images), _MAX_TRUNK_ROWS)
            ]
        )

    def _predict(self, images: Floats, temperature: float) -> Prediction:
        feeds = {"images": images, **classification.scaling(temperature)}
        logits, features, probabilities, labels = self._model.run(_ANSWER, feeds, self.run_options)
        return Prediction(logits, features, (probabilities, labels), temperature)

    def sample(self, features: Floats, how: FixedSamples) -> Floats:
        """Run the head with dropout alive: features [N, F] -> logits float32 [N, T, K]."""
        return self._sampled(features, masks.draw(how.seed, how.samples, self._layers, how.design))

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        """Say how sure the answers of a deterministic pass are, in brief."""
        features, bound = prediction.features, self._bind(how)
        rows = self._head_rows(how.samples)
        if len(features) <= rows:
            return Summary.of(bound.run(features, self.run_options))
        return Summary.joined(
            [
                Summary.of(bound.run(features[start:stop], self.run_options))
                for start, stop in _chunks(len(features), rows)
            ]
        )

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        """Say how sure the answers of a deterministic pass are.

        Raises:
            MethodError: the analytic method, of a head with several dropout layers.
        """
        match how:
            case FixedSamples(samples=most) | AdaptiveSamples(most=most):
                pass
            case Analytic():
                most = max(POINTS, self._layers[0].width + 1)
        count, rows = len(prediction.logits), self._head_rows(most)
        if count <= rows:
            return self._uncertainty(prediction, how)
        return joined(
            [
                self._uncertainty(prediction.take(slice(start, stop)), how)
                for start, stop in _chunks(count, rows)
            ]
        )

    def _uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        found = self._asked(prediction, how)
        if self.calibrated is None:
            return found
        features = prediction.features
        return replace(
            found,
            typicality=self.calibrated.typicality(features),
            set_draws=uniform_draws(features),
        )

    def _asked(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        match how:
            case FixedSamples():
                return answer(
                    self._bind(how).run(prediction.features, self.run_options), how.samples
                )
            case AdaptiveSamples():
                return self._until_settled(prediction, how)
            case Analytic():
                return self._integral(prediction)

    def _until_settled(self, prediction: Prediction, how: AdaptiveSamples) -> Uncertainty:
        """Take samples, twice as many each time, until each image's label is settled."""
        drawn = masks.draw(how.seed, how.most, self._layers, "paired")
        expected = prediction.logits.argmax(axis=-1)
        waiting = np.arange(len(expected))
        logits = np.empty((len(expected), 0, self.classes), np.float32)
        parts, order = [], []
        total = 0
        while len(waiting):
            start, total = total, min(max(FIRST_BLOCK, 2 * total), how.most)
            block = tuple(mask[start:total] for mask in drawn)
            more = self._sampled(prediction.features[waiting], block)
            logits = np.concatenate([logits, more], axis=1)
            done = settled(
                softmax(logits / np.float64(self.sampled_temperature)), expected[waiting]
            )
            ready = done | (total == how.most)
            if ready.any():
                summary = summarise(logits[ready], self.sampled_temperature)
                parts.append(replace(summary, settled=done[ready]))
                order.append(waiting[ready])
            waiting, logits = waiting[~ready], logits[~ready]
        return joined(parts).take(np.argsort(np.concatenate(order)))

    def _integral(self, prediction: Prediction) -> Uncertainty:
        if len(self._layers) > 1:
            raise MethodError(
                f"The analytic method is for heads with one dropout layer, and this one has "
                f"{len(self._layers)}; use mc_dropout."
            )
        (layer,) = self._layers
        alone = np.eye(layer.width + 1, layer.width, dtype=np.float32)  # each unit, and none
        logits = self._sampled(prediction.features, (alone,))
        bias = logits[0, -1]
        return integrate(
            normal_logits(logits[:, :-1] - bias, bias, layer.p), self.sampled_temperature
        )

    @property
    def sampled_temperature(self) -> float:
        """What the logits of every sample are divided by."""
        return self.calibrated.numbers.sampled_temperature if self.calibrated else 1.0

    def _sampled(self, features: Floats, drawn: Masks) -> Floats:
        rows, samples = self._head_rows(len(drawn[0])), len(drawn[0])
        runs = [
            self._run(["logits"], features[start:stop], drawn)[0][:, :samples]
            for start, stop in _chunks(len(features), rows)
        ]
        return _joined(runs)

    def _run(self, names: Sequence[str], features: Floats, drawn: Masks) -> Sequence[Any]:
        feeds = {"features": features, **self._feeds(drawn)}
        return self._head.run(names, feeds, self.run_options)

    def _bind(self, how: FixedSamples) -> _Bound:
        """Bind to the head what does not change from one request to the next."""
        asked = how, self.sampled_temperature
        if asked != self._last_asked:
            if asked not in self._bound:
                drawn = masks.draw(how.seed, how.samples, self._layers, how.design)
                names = MAIN if how.brief or how.samples == 1 else MAIN + DETAILS
                self._bound[asked] = _Bound(self._head, self._feeds(drawn), names)
            self._last_asked, self._last_bound = asked, self._bound[asked]
        return self._last_bound

    def _feeds(self, drawn: Masks) -> Feeds:
        random = len(drawn[0]) > 1
        if not random:  # a single sample is taken twice: so it has a spread, of 0
            drawn = tuple(np.repeat(mask, 2, axis=0) for mask in drawn)
        named: Feeds = {f"mask_{index}": mask for index, mask in enumerate(drawn)}
        return named | rule(len(drawn[0]), random) | scaling(self.sampled_temperature)

    def _head_rows(self, samples: int) -> int:
        if samples % BLOCK:
            return 1
        # The head holds the weights times the features, then samples.
        cells = max(samples * self._widest, self.classes * self._layers[0].width)
        return max(1, _HEAD_BYTES // (4 * cells))

    def self_test(self, golden: Golden) -> dict[str, float]:
        """Return by how much the golden outputs differ from those of now, by their kind."""
        prediction = self.predict(golden.images)
        sampled = self.sample(prediction.features, FixedSamples(golden.seed, golden.samples))
        return {
            "logits": float(np.abs(prediction.logits - golden.logits).max()),
            "sampled logits": float(np.abs(sampled - golden.sampled_logits).max()),
        }


def open_tested(bundle: Bundle, threads: int = 1, stop: Stop | None = None) -> Predictor:
    """Start a verified bundle and run its self-test.

    stop: by which that, and every later run, can be ended.

    Raises:
        BundleError: it cannot be loaded, or gives other outputs than it must.
    """
    layers = bundle.manifest.dropout_layers
    predictor = Predictor.start(bundle.take, bundle.path, layers, threads, stop)
    named = len(bundle.manifest.class_names)
    if predictor.classes != named:
        raise BundleError(
            f"{bundle.path} names {named} classes, but its network tells {predictor.classes} "
            "apart; export the bundle again."
        )
    _test(predictor, bundle)
    predictor.calibrated = calibrated(bundle)
    return predictor


def _test(predictor: Predictor, bundle: Bundle) -> None:
    file, manifest = bundle.path / GOLDEN_FILE, bundle.manifest
    try:
        golden = Golden.read(bundle.take(GOLDEN_FILE), manifest.input, len(manifest.class_names))
        differences = predictor.self_test(golden)
    except BundleError:
        raise
    except Exception as error:  # whatever a damaged graph or archive raises
        raise BundleError(
            f"{file}: the self-test cannot run ({error}); export the bundle again."
        ) from None
    for what, difference in differences.items():
        if not difference <= GOLDEN_TOLERANCE:  # also true of NaN
            raise BundleError(
                f"{file}: the self-test's {what} differ by {difference:.2g}, more than "
                f"{GOLDEN_TOLERANCE:g}; export the bundle again."
            )


def calibrated(bundle: Bundle) -> Calibrator | None:
    """Read what was fitted on the validation images; None where nothing was.

    Raises:
        BundleError: the file cannot be used.
    """
    manifest, numbers = bundle.manifest, bundle.manifest.calibration
    if numbers is None:
        return None
    file = bundle.path / CALIBRATION_FILE
    content = bundle.take(CALIBRATION_FILE)
    try:
        arrays = Arrays.read(content, numbers.images, manifest.features, len(manifest.class_names))
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{file} cannot be used ({reason}); export it again.") from None
    if (len(arrays.thr), len(arrays.axes)) != (numbers.images, manifest.features):
        raise BundleError(f"{file} is of another model; export the bundle again.")
    return Calibrator(numbers, arrays)


def _self_contained(graph: bytes) -> bytes:
    require_self_contained(graph)
    return graph


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _joined(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
