"""The version that answers a replay, with the very code that serves it. Knows no log's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from service.api.answer_by_another_version import answer_as_noted
from service.engine.model_loader import LoadedModel, Loader
from service.observability.metrics_recorder import Metrics
from service.settings import ServiceSettings
from service.traffic_log.image_files import Floats
from service.traffic_log.traffic_record import Row, Subject, TrafficOptions


class ReplayedVersion:
    """A loaded version; create and use it in one event loop."""

    def __init__(self, model: LoadedModel) -> None:
        """Take a loaded model."""
        self._model = model
        spec = model.bundle.manifest.input
        self.shape = spec.channels, spec.height, spec.width
        """Of the images that it takes: [C, H, W]."""

    @classmethod
    async def open(cls, bundle: Path, settings: ServiceSettings) -> Self:
        """Load a version as a server does; raises BundleError."""
        return cls(await Loader(settings, Metrics()).open(bundle, None))

    async def close(self) -> None:
        """End its threads."""
        await self._model.batcher.close()

    async def answer(
        self, images: Sequence[Floats], options: TrafficOptions | None, route: str
    ) -> Sequence[Row]:
        """Answer images of `shape` as the route and the options say.

        Raises:
            DropserveError: the version cannot be sampled like this.
        """
        model = self._model
        subject = Subject(route, model.name, model.version, np.stack(images), options)
        return await answer_as_noted(model, subject)
