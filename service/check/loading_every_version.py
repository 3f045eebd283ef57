"""Loads versions as the service does and lets them answer their examples. Knows no rollout."""

import io
from datetime import datetime
from pathlib import Path

from PIL import Image

from model.dropout.sampling_methods import FixedSamples
from model.errors import BundleError, DropserveError
from service.engine.model_loader import LoadedModel, Loader
from service.observability.memory_and_cpu_reading import ProcessUsage
from service.observability.metrics_recorder import Metrics
from service.registry.models_folder_scan import ModelsFolder
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings

_CLIENT = "check"
_LARGE_SIDE = 512
"""Pixels; more than `sandboxed_image_reader` decodes on the event loop."""


class VersionTrials:
    """The outcome of each version that was tried; create and use it in one event loop."""

    def __init__(self, settings: ServiceSettings, folder: ModelsFolder) -> None:
        """Load nothing yet; the folder must have been listed."""
        metrics = Metrics()
        self._settings = settings
        self._folder = folder
        self._loader = Loader(settings, metrics)
        self._reader = ImageReader(settings, metrics)
        self._kept: list[LoadedModel] = []
        self._outcomes: dict[tuple[str, int], str | None] = {}
        self.latest_publication: tuple[datetime, str] | None = None
        """When the version that was published last was published, and which it is."""

    async def passes(self, name: str, version: int, *, keep: bool = True) -> bool:
        """Return whether a version loads and answers its examples; try it if that is unknown.

        keep: whether it stays in memory; then it has to take the images of a version of the model
            that was kept before, as in the service.
        """
        key = name, version
        if key not in self._outcomes:
            self._outcomes[key] = await self._try(name, version, keep=keep)
        return self._outcomes[key] is None

    def refusal(self, name: str, version: int) -> str | None:
        """Return why a version that was tried is refused, in a sentence; None if it is not."""
        return self._outcomes.get((name, version))

    async def sandbox_refusal(self) -> str | None:
        """Return why no sandbox process can read a large image; None if one does, and stays."""
        spec = self._kept[0].bundle.manifest.input
        try:
            await self._reader.decode([_large_image()], spec, _CLIENT)
        except DropserveError as refusal:
            return str(refusal)
        except Exception as reason:  # whatever keeps a process from starting
            return str(reason).strip().rpartition("\n")[2]
        return None

    def memory_bytes(self) -> int:
        """Return the resident memory of this process and of its sandbox process now."""
        return ProcessUsage().read()[0] * 1024

    async def close(self) -> None:
        """Release everything."""
        await self._reader.close()
        for model in self._kept:
            await model.batcher.close()

    async def _try(self, name: str, version: int, *, keep: bool) -> str | None:
        path = self._folder.path(name, version)
        kept = [each.bundle.manifest.input for each in self._kept if keep and each.name == name]
        try:
            model = await self._loader.open(path, kept[0] if kept else None)
        except BundleError as refusal:
            return str(refusal)
        except Exception as reason:  # whatever a damaged graph raises, as in the service
            return _unexpected(path, reason)
        if keep:
            self._kept.append(model)
        try:
            await self._answer_examples(model)
        except DropserveError as refusal:
            return f"It loads, but does not answer its examples: {refusal}"
        except Exception as reason:
            return _unexpected(path, reason)
        finally:
            if not keep:
                await model.batcher.close()
        published = model.bundle.manifest.published
        if published is not None:
            latest = published, f"{name} version {version}"
            self.latest_publication = max(self.latest_publication or latest, latest)
        return None

    async def _answer_examples(self, model: LoadedModel) -> None:
        """Send the examples through reader and network, as a client of both routes does."""
        how = FixedSamples(self._settings.default_seed, self._settings.default_samples)
        for file in model.bundle.examples:
            images = await self._reader.decode([file], model.bundle.manifest.input, _CLIENT)
            await model.batcher.predict(images)
            await model.batcher.uncertainty(images, how)


def _large_image() -> bytes:
    """Return an image that the service does not read itself."""
    file = io.BytesIO()
    Image.new("L", (_LARGE_SIDE, _LARGE_SIDE)).save(file, "PNG")
    return file.getvalue()


def _unexpected(path: Path, reason: Exception) -> str:
    first_line = str(reason).partition("\n")[0]
    return f"{path} cannot be opened ({type(reason).__name__}: {first_line}); export it again."
