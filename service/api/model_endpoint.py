"""What the protocols see of a model: named tensors in, named tensors out. Knows no bytes of them.

A bundle NAME is offered as two models: NAME, deterministic, and NAME-mc with dropout alive.
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
from model.dropout.sampling import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.graphs.mc_statistics import BY_CLASS, BY_IMAGE
from model.images.preprocessing import InputSpec
from model.inference.predictor import Prediction
from service.api.sampling_options import sampling
from service.api.schemas import SamplingQuery
from service.codecs.image_bodies import INPUT, of_tensors
from service.codecs.tensors import Datatype, Tensor
from service.engine.loader import LoadedModel
from service.errors import InvalidQueryError, UncertaintyDisabledError
from service.observability.model_statistics import Statistics
from service.sandbox.image_reader import ImageReader, as_floats, client_of
from service.settings import ServiceSettings

_SHOWN = 100  # characters of a wrong value
_PARAMETERS = frozenset(SamplingQuery.model_fields)
_NOTHING_SAID = SamplingQuery()


@dataclass(frozen=True, slots=True)
class Description:
    """A tensor that a model takes or gives: [N, *shape]."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(slots=True)  # frozen ones take long to make
class ModelEndpoint:
    """One of the two models of a bundle."""

    served: LoadedModel
    sampled: bool

    @property
    def name(self) -> str:
        """The name it has on the protocols."""
        return self.served.name + (SAMPLED_SUFFIX if self.sampled else "")

    @property
    def statistics(self) -> Statistics:
        """Its counters."""
        batcher = self.served.batcher
        return batcher.sampled_statistics if self.sampled else batcher.statistics

    @property
    def spec(self) -> InputSpec:
        """The images it takes."""
        return self.served.bundle.manifest.input

    @property
    def input(self) -> Description:
        """The one input, as its numbers are taken; UINT8 and BYTES are taken too."""
        spec = self.spec
        return Description(INPUT, "FP32", (spec.channels, spec.height, spec.width))

    @property
    def outputs(self) -> list[Description]:
        """Everything it gives."""
        classes = (len(self.served.bundle.manifest.class_names),)
        label = Description("label", "BYTES", ())
        if not self.sampled:
            return [Description("probabilities", "FP32", classes), label]
        by_class = [Description(name, "FP32", classes) for name in BY_CLASS]
        return [*by_class, *(Description(name, "FP32", ()) for name in BY_IMAGE), label]

    async def images(
        self, tensors: list[Tensor], reader: ImageReader, request: Request
    ) -> NDArray[np.float32]:
        """Turn the inputs of a request into float32 [N, C, H, W] in 0..1.

        Raises:
            InvalidTensorError: another input than `images`, or another rank.
            InputError, TooManyImagesError, InvalidBase64Error: about the images.
        """
        spec = self.spec
        images = of_tensors(tensors, spec)
        if isinstance(images, list):
            return await reader.decode(images, spec, client_of(request))
        if images.itemsize > 1:
            return cast("NDArray[np.float32]", images)
        return await as_floats(images)

    def how(self, parameters: Mapping[str, Any], settings: ServiceSettings) -> Sampling | None:
        """Read how to sample from a request's parameters, passing over those of other servers.

        Raises:
            InvalidQueryError: one that cannot be used.
        """
        if not self.sampled:
            return None
        given = {name: value for name, value in parameters.items() if name in _PARAMETERS}
        for name, value in given.items():
            if isinstance(value, bool):
                raise InvalidQueryError(f"Parameter {name!r}: {value} is no value for it.")
        try:
            query = SamplingQuery.model_validate(given) if given else _NOTHING_SAID
            return sampling(query, settings, brief=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = first["msg"][0].lower() + first["msg"][1:]
            raise InvalidQueryError(
                f"Parameter {str(first['loc'][0])!r}: {message}, but got "
                f"{str(first['input'])[:_SHOWN]!r}."
            ) from None

    async def answer(
        self, images: NDArray[np.float32], how: Sampling | None, within: float | None
    ) -> list[Tensor]:
        """Answer images float32 [N, C, H, W] with every output; raises as the batcher does."""
        answer = await self.served.batcher.answer(images, how, within)
        if isinstance(answer, Prediction):
            columns, labels = {"probabilities": answer.classification[0]}, answer.classification[1]
        else:
            columns, labels = answer.columns(), answer.labels
        figures = [Tensor(name, "FP32", values) for name, values in columns.items()]
        return [*figures, self._label(labels)]

    def _label(self, indices: NDArray[np.int64]) -> Tensor:
        names = _encoded(self.served.bundle.manifest.class_names)
        return Tensor("label", "BYTES", names[indices])


@lru_cache(maxsize=64)
def _encoded(class_names: tuple[str, ...]) -> NDArray[np.object_]:
    return np.array([name.encode() for name in class_names], object)


def bundle_name(name: str, settings: ServiceSettings) -> tuple[str, bool]:
    """Split a model's name into the bundle's and whether dropout is to be alive.

    Raises:
        UncertaintyDisabledError: it is, but that is switched off.
    """
    if not name.endswith(SAMPLED_SUFFIX):
        return name, False
    if not settings.uncertainty:
        raise UncertaintyDisabledError(
            f"{name} is switched off on this server; use {name.removesuffix(SAMPLED_SUFFIX)}, or "
            "start it without --no-uncertainty."
        )
    return name.removesuffix(SAMPLED_SUFFIX), True


def told(how: Sampling | None) -> dict[str, str | int]:
    """Say how an answer was sampled, as parameters of the response."""
    match how:
        case None:
            return {}
        case FixedSamples(seed, samples, design):
            drawn: dict[str, str | int] = {"method": "mc_dropout", "samples": samples, "seed": seed}
            return drawn if design == "orthogonal" else drawn | {"design": design}
        case AdaptiveSamples(seed):
            return {"method": "mc_dropout", "samples": "auto", "seed": seed}
        case Analytic():
            return {"method": "analytic"}
