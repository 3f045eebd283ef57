"""Which bundles are loaded, at which version. Knows no route.

Of each model the highest version that opens and passes its self-test is served. A version that
does not is refused with its reason, which the log, GET /models and, when nothing else serves,
GET /health/ready tell.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from model.bundle import Bundle, names, open_bundle, versions
from model.calibration import Calibrated
from model.errors import BundleError
from model.predictor import Predictor, open_tested
from model.sampling import Fixed
from service.batching import Batcher, Limits, RowPredictor
from service.errors import (
    ModelRequiredError,
    NotReadyError,
    UnknownModelError,
    UnknownVersionError,
)
from service.metrics import Metrics
from service.settings import ServiceSettings

logger = structlog.stdlib.get_logger("service")


@dataclass(frozen=True)
class Served:
    """One model in service."""

    bundle: Bundle
    batcher: Batcher
    calibrated: Calibrated | None

    @property
    def version(self) -> str:
        """The version as it goes over the wire."""
        return str(self.bundle.manifest.version)


@dataclass(frozen=True)
class Refusal:
    """A version that was not loaded, and why."""

    name: str
    version: int
    reason: str


class Repository:
    """The models in service. Empty until `load` is done."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self.metrics = metrics
        self._served: dict[str, Served] = {}
        self._loading = True
        self._unreadable: str | None = None
        self.refusals: list[Refusal] = []

    @property
    def served(self) -> Sequence[Served]:
        """Everything in service, by name."""
        return [self._served[name] for name in sorted(self._served)]

    @property
    def default(self) -> str | None:
        """The model of requests that name none."""
        if self._settings.default_model is not None:
            return self._settings.default_model
        return next(iter(self._served)) if len(self._served) == 1 else None

    async def load(self) -> None:
        """Open, test and warm every model in the folder, one thread at a time."""
        folder = self._settings.models_folder
        try:
            for name in await asyncio.to_thread(names, folder):
                await self._load_model(folder, name)
        except OSError as error:
            self._unreadable = (
                f"{folder} cannot be read ({error.strerror}); "
                "choose another folder with --models-folder."
            )
        finally:
            self._loading = False
        problem = self.problem()
        if problem is not None:
            logger.error("not ready", reason=problem)

    async def close(self) -> None:
        """Answer what is queued, then let every model go."""
        for served in self._served.values():
            await served.batcher.close()

    def problem(self) -> str | None:
        """Say in one sentence why the service is not ready; None when it is."""
        if self._loading:
            return "The models are still being loaded; try again in a second."
        default = self._settings.default_model
        if self._served and (default is None or default in self._served):
            return None
        reasons = [
            refusal.reason
            for refusal in self.refusals
            if default is None or refusal.name == default
        ]
        if reasons:
            return reasons[0]
        if self._unreadable is not None:
            return self._unreadable
        wanted = "bundle" if default is None else f"bundle of the default model {default!r}"
        folder = self._settings.models_folder
        return f"{folder} holds no {wanted}; train one with python -m training --output {folder}."

    def get(self, name: str | None, version: str | None) -> Served:
        """Find a model in service; None for the default one and for the version that is served.

        Raises:
            NotReadyError: the models are still being loaded, or the default one could not be.
            ModelRequiredError: several models are loaded and none is the default.
            UnknownModelError, UnknownVersionError: it is not among what is loaded.
        """
        problem = self.problem()
        if problem is not None and (self._loading or not self._served or name is None):
            raise NotReadyError(problem)
        wanted = name if name is not None else self.default
        if wanted is None:
            raise ModelRequiredError(
                f"Several models are loaded; name one with ?model=, of {self._loaded()}."
            )
        served = self._served.get(wanted)
        if served is None:
            raise UnknownModelError(f"No model {wanted!r} is loaded; there is {self._loaded()}.")
        if version is not None and version != served.version:
            raise UnknownVersionError(
                f"Version {version!r} of {wanted} is not loaded; version {served.version} is."
            )
        return served

    def _loaded(self) -> str:
        return ", ".join(sorted(self._served))

    async def _load_model(self, folder: Path, name: str) -> None:
        for version in await asyncio.to_thread(versions, folder, name):
            try:
                bundle, predictor = await asyncio.to_thread(
                    self._open, folder / name / str(version)
                )
            except Exception as error:  # BundleError, or what nobody foresaw: the rest still loads
                self.refusals.append(Refusal(name, version, str(error)))
                logger.error(  # noqa: TRY400
                    "bundle refused", model=name, version=version, reason=str(error)
                )
                continue
            self._served[name] = Served(
                bundle, self._batcher(name, predictor), predictor.calibrated
            )
            self.metrics.model_info.labels(name, version).set(1)
            logger.info("model loaded", model=name, version=version)
            return

    def _open(self, path: Path) -> tuple[Bundle, Predictor]:
        bundle = open_bundle(path)
        predictor = open_tested(bundle, self._settings.threads)
        try:
            self._warm(bundle, predictor)
        except Exception as error:  # whatever a graph raises that its manifest does not describe
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{path} does not take the images its manifest declares ({reason}); "
                "export it again."
            ) from None
        return bundle, predictor

    def _warm(self, bundle: Bundle, predictor: Predictor) -> None:
        """Run the sizes to come, so that the first request pays for no allocation or mask."""
        spec = bundle.manifest.input
        for rows in (1, self._settings.max_batch_rows):
            images = np.zeros((rows, spec.channels, spec.height, spec.width), np.float32)
            prediction = predictor.predict(images).take(slice(1))
            predictor.uncertainty(
                prediction, Fixed(self._settings.default_seed, self._settings.default_samples)
            )

    def _batcher(self, name: str, predictor: RowPredictor) -> Batcher:
        settings = self._settings
        limits = Limits(
            batch_rows=settings.max_batch_rows,
            queue_rows=settings.max_queue_rows,
            timeout_seconds=settings.inference_timeout_seconds,
        )
        return Batcher(name, predictor, limits, self.metrics)
