"""A model as the inference protocols see it: named tensors in, named tensors out.

The bundle NAME is served as two models: NAME is deterministic, and NAME-mc runs with dropout
active. This module knows no wire format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request

from model.bundle.store import SAMPLED_SUFFIX
from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.graphs.mc_statistics import PER_CLASS_COLUMNS, PER_IMAGE_COLUMNS
from model.images.preprocessing import InputSpec
from model.inference.prediction import Prediction
from model.uncertainty.calibration import ABSTENTION_REASONS
from model.uncertainty.uncertainty_measures import Summary, Uncertainty
from service.api.sampling_validation import parse_sampling
from service.api.schemas import AbstentionQuery, SamplingQuery
from service.codecs.body_to_images import INPUT_NAME, images_from_tensors
from service.codecs.tensors import Datatype, Tensor
from service.codecs.validation_sentence import quote
from service.engine.model_loader import LoadedModel
from service.errors import InvalidQueryError, UncertaintyDisabledError
from service.observability.triton_statistics import ModelStatistics
from service.sandbox.sandboxed_image_reader import ImageReader, as_floats, client_address
from service.settings import ServiceSettings


class _InferQuery(SamplingQuery, AbstentionQuery):
    """The parameters of a request for a model with dropout active."""


_PARAMETERS = frozenset(_InferQuery.model_fields)
_DEFAULT_QUERY = _InferQuery()
_ENCODED_REASONS = np.array([b"", *(reason.encode() for reason in ABSTENTION_REASONS)], object)
"""The elements of `abstain_because` by `Abstentions.reason_numbers`."""


@dataclass(slots=True)  # one per request; a frozen dataclass is slower to create
class InferOptions:
    """How a model with dropout active is sampled, and when its predictions abstain."""

    sampling: Sampling
    max_risk: float | None
    """None for an uncalibrated model, which never abstains."""
    max_false_alarm: float

    def parameters(self) -> dict[str, str | int | float]:
        """Build the parameters of the response, which name the values that were used."""
        described: dict[str, str | int | float] = {**sampling_parameters(self.sampling)}
        if self.max_risk is not None:
            described["max_risk"] = self.max_risk
            described["max_false_alarm"] = self.max_false_alarm
        return described


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output tensor of a model. Its full shape is [N, *shape]."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


_ABSTENTION_OUTPUTS = (
    TensorSpec("typicality", "FP32", ()),
    TensorSpec("abstain", "BOOL", ()),
    TensorSpec("abstain_because", "BYTES", ()),
)
"""The further outputs of a calibrated model with dropout active."""


@dataclass(slots=True)  # one per request; a frozen dataclass is slower to create
class ModelEndpoint:
    """One of the two models of a loaded bundle, deterministic or with dropout active."""

    model: LoadedModel
    dropout_active: bool

    @property
    def name(self) -> str:
        """The name in the URLs of the protocols."""
        return self.model.name + (SAMPLED_SUFFIX if self.dropout_active else "")

    @property
    def statistics(self) -> ModelStatistics:
        """The request statistics of this model."""
        batcher = self.model.batcher
        return batcher.sampled_statistics if self.dropout_active else batcher.statistics

    @property
    def spec(self) -> InputSpec:
        """The size, channels and resizing rule of the input images."""
        return self.model.bundle.manifest.input

    @property
    def input(self) -> TensorSpec:
        """The only input. UINT8 and BYTES are accepted besides the FP32 declared here."""
        spec = self.spec
        return TensorSpec(INPUT_NAME, "FP32", (spec.channels, spec.height, spec.width))

    @property
    def outputs(self) -> list[TensorSpec]:
        """All output tensors, in the order of `infer`."""
        classes = (len(self.model.bundle.manifest.class_names),)
        label = TensorSpec("label", "BYTES", ())
        if not self.dropout_active:
            return [TensorSpec("probabilities", "FP32", classes), label]
        by_class = [TensorSpec(name, "FP32", classes) for name in PER_CLASS_COLUMNS]
        by_image = [TensorSpec(name, "FP32", ()) for name in PER_IMAGE_COLUMNS]
        calibrated = self.model.calibrator is not None
        return [*by_class, *by_image, label, *(_ABSTENTION_OUTPUTS if calibrated else ())]

    async def read_images(
        self, tensors: list[Tensor], reader: ImageReader, request: Request
    ) -> NDArray[np.float32]:
        """Convert the input tensors of a request to float32 [N, C, H, W] in 0..1.

        Raises:
            InvalidTensorError: the request has an input other than `images`, or of another rank.
            InputError, TooManyImagesError, InvalidBase64Error: an image cannot be used.
        """
        spec = self.spec
        images = images_from_tensors(tensors, spec)
        if isinstance(images, list):
            return await reader.decode(images, spec, client_address(request))
        if images.itemsize > 1:
            return cast("NDArray[np.float32]", images)
        return await as_floats(images)

    def options(
        self, parameters: Mapping[str, Any], settings: ServiceSettings
    ) -> InferOptions | None:
        """Parse the parameters of a request; None for the deterministic model, which has none.

        Unknown parameters, which may be meant for other servers, are ignored.

        Raises:
            InvalidQueryError: a parameter has an invalid value.
        """
        if not self.dropout_active:
            return None
        fields = {name: value for name, value in parameters.items() if name in _PARAMETERS}
        for name, value in fields.items():
            if isinstance(value, bool):
                raise InvalidQueryError(f"Parameter {name!r}: {quote(value)} is no value for it.")
        try:
            query = _InferQuery.model_validate(fields) if fields else _DEFAULT_QUERY
            sampling = parse_sampling(query, settings, summary_only=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = first["msg"][0].lower() + first["msg"][1:]
            raise InvalidQueryError(
                f"Parameter {str(first['loc'][0])!r}: {message}, but got {quote(first['input'])}."
            ) from None
        max_risk, calibrator = query.max_risk, self.model.calibrator
        if calibrator is None:
            max_risk = None
        elif max_risk is None:
            max_risk = calibrator.parameters.max_risk
        return InferOptions(sampling, max_risk, query.max_false_alarm)

    async def infer(
        self,
        images: NDArray[np.float32],
        options: InferOptions | None,
        timeout_seconds: float | None,
    ) -> list[Tensor]:
        """Run the model on images and return all its output tensors.

        images: float32 [N, C, H, W] in 0..1. options: from `options`. timeout_seconds: None for no
        timeout of the client.
        Raises what `Batcher.infer` raises.
        """
        sampling = None if options is None else options.sampling
        result = await self.model.batcher.infer(images, sampling, timeout_seconds)
        if isinstance(result, Prediction):
            probabilities, labels = result.classification
            return [Tensor("probabilities", "FP32", probabilities), self._label_tensor(labels)]
        assert options is not None
        if isinstance(result, Uncertainty):
            self._observe_drift(result, options)
            return self._sampled_tensors(result, options)
        run, rows = result.whole_run()
        levels = options.max_risk, options.max_false_alarm
        tensors: list[Tensor] | None = run.derived.get(levels)
        if tensors is None:
            if not run.derived:
                self._observe_drift(run, options)
            tensors = run.derived[levels] = self._sampled_tensors(run, options)
        return [Tensor(each.name, each.datatype, each.values[rows]) for each in tensors]

    def _observe_drift(self, result: Summary | Uncertainty, options: InferOptions) -> None:
        if self.model.drift is not None:
            self.model.drift.observe(result.typicality, result.confidences(), options.sampling)

    def _sampled_tensors(
        self, result: Summary | Uncertainty, options: InferOptions
    ) -> list[Tensor]:
        """Return the output tensors; those of a whole run are shared by its requests."""
        tensors = [Tensor(name, "FP32", values) for name, values in result.columns().items()]
        tensors.append(self._label_tensor(result.labels))
        calibrator = self.model.calibrator
        if calibrator is not None:
            abstentions = calibrator.abstentions(
                result.confidences(), result.typicality, options.max_risk, options.max_false_alarm
            )
            values = (
                result.typicality.astype(np.float32),
                abstentions.abstain,
                _ENCODED_REASONS[abstentions.reason_numbers],
            )
            tensors += [
                Tensor(spec.name, spec.datatype, each)
                for spec, each in zip(_ABSTENTION_OUTPUTS, values, strict=True)
            ]
        return tensors

    def _label_tensor(self, indices: NDArray[np.int64]) -> Tensor:
        names = _encoded_names(self.model.bundle.manifest.class_names)
        return Tensor("label", "BYTES", names[indices])


@lru_cache(maxsize=64)
def _encoded_names(class_names: tuple[str, ...]) -> NDArray[np.object_]:
    return np.array([name.encode() for name in class_names], object)


def split_model_name(name: str, settings: ServiceSettings) -> tuple[str, bool]:
    """Split a protocol's model name into the bundle's name and whether dropout is active.

    No bundle's name ends in -mc, so NAME-mc-mc is a name like any other that is not there.

    Raises:
        UncertaintyDisabledError: the name ends in -mc, but the server runs --no-uncertainty.
    """
    bundle = name.removesuffix(SAMPLED_SUFFIX)
    if bundle == name or bundle.endswith(SAMPLED_SUFFIX):
        return name, False
    if not settings.uncertainty:
        raise UncertaintyDisabledError(
            f"{name} is switched off on this server; use {bundle}, or start it without "
            "--no-uncertainty."
        )
    return bundle, True


def sampling_parameters(sampling: Sampling) -> dict[str, str | int]:
    """Build the response parameters that describe the sampling."""
    match sampling:
        case FixedSamples(seed, samples, design):
            fixed: dict[str, str | int] = {"method": "mc_dropout", "samples": samples, "seed": seed}
            return fixed if design == "orthogonal" else fixed | {"design": design}
        case AdaptiveSamples(seed):
            return {"method": "mc_dropout", "samples": "auto", "seed": seed}
        case Analytic():
            return {"method": "analytic"}
