"""Scores images with one bundle: references -> lines of the output. Knows no process.

Reader, predictor, calibrator and response builder are those of POST /uncertainty, so the figures
are its figures.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle.store import Bundle, Manifest
from model.errors import DropserveError
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from service.api.response_builders import sampling_fields, uncertain_predictions
from service.api.sampling_validation import parse_sampling
from service.errors import BodyTooCostlyError
from service.observability.metrics_recorder import Metrics
from service.sandbox.sandboxed_image_reader import ImageReader
from service.scoring.image_file import ImageReference
from service.scoring.result_lines import LineLayout
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import ModelFacts, ScoredBatch

Floats = NDArray[np.float32]

_MAX_JOINT_BYTES = 4 * 2**20
"""Files that are decoded together have at most so many bytes: one time limit is for all of them."""
_CLIENT = "score"
_TOO_COSTLY = (
    "It takes too much time or memory to decode; save it smaller or more simply encoded, or allow "
    "more time with --decode-timeout-seconds."
)
"""Instead of a server's sentence, which speaks of a body that was sent."""


@dataclass(frozen=True)
class ReadImages:
    """A batch whose files are read and decoded."""

    images: Sequence[ImageReference]
    errors: dict[int, str]
    """Position in `images` -> why that one cannot be scored."""
    pixels: Floats
    """Of the others, float32 [N, C, H, W] in 0..1."""


class ImageScorer:
    """Reads, decodes and scores batches of images; create and use it in one event loop."""

    def __init__(self, settings: ScoreSettings, bundle: Bundle, processes: int) -> None:
        """Load the predictor, and run it once.

        processes: how many scorers there are, which divide the memory among themselves.

        Raises:
            BundleError: the bundle fails its self-test.
            MethodError, InvalidQueryError: it cannot be sampled as the settings say.
        """
        service_settings = settings.service_settings(processes)
        self.manifest: Manifest = bundle.manifest
        self._settings = settings
        self._query = settings.query()
        self._sampling = parse_sampling(self._query, service_settings)
        self._predictor: Predictor = load_predictor(
            bundle, settings.threads, provider=settings.provider
        )
        self._reader = ImageReader(service_settings, Metrics())
        self._layout = LineLayout.of(settings, bundle.manifest.class_names)
        self._predictor.uncertainty(self._predictor.predict(self._zeros(1)), self._sampling)

    def facts(self, digest: str) -> ModelFacts:
        """Describe the bundle, and how it is sampled.

        digest: SHA-256 of its manifest.
        """
        sampling = sampling_fields(self._sampling, None)
        return ModelFacts(
            self.manifest.name,
            self.manifest.version,
            self.manifest.class_names,
            digest,
            sampling["samples"],
            sampling["seed"],
            calibrated=self._predictor.calibrator is not None,
        )

    async def close(self) -> None:
        """End the processes that decode."""
        await self._reader.close()

    async def read(self, images: Sequence[ImageReference]) -> ReadImages:
        """Read and decode a batch; an image that fails fails alone."""
        files, errors = await asyncio.to_thread(self._read_files, images)
        decoded: dict[int, Floats] = {}
        for positions in _joint(files):
            decoded |= await self._decode(positions, files, errors)
        pixels = [decoded[position] for position in sorted(decoded)]
        return ReadImages(images, errors, np.stack(pixels) if pixels else self._zeros(0))

    def score(self, batch: ReadImages) -> ScoredBatch:
        """Run the network on a batch, and build its lines."""
        abstentions = 0
        predictions = iter(self._predict(batch.pixels) if len(batch.pixels) else ())
        lines = []
        for position, image in enumerate(batch.images):
            if position in batch.errors:
                lines.append(self._layout.error(image.name, batch.errors[position]))
                continue
            prediction = next(predictions)
            abstentions += bool(prediction["abstain"])
            lines.append(self._layout.result(image.name, prediction))
        return ScoredBatch(b"".join(lines), len(batch.errors), abstentions)

    def _predict(self, pixels: Floats) -> list[dict[str, Any]]:
        query = self._query
        uncertainty = self._predictor.uncertainty(self._predictor.predict(pixels), self._sampling)
        decisions = None
        if self._predictor.calibrator is not None:
            decisions = self._predictor.calibrator.decide(
                uncertainty, query.coverage, query.sets, query.max_risk, query.max_false_alarm
            )
        names = self.manifest.class_names
        return uncertain_predictions(uncertainty, names, decisions, self._sampling)

    def _read_files(
        self, images: Sequence[ImageReference]
    ) -> tuple[dict[int, bytes], dict[int, str]]:
        """Return the bytes of the files that can be read, and the errors of the others."""
        files: dict[int, bytes] = {}
        errors: dict[int, str] = {}
        for position, image in enumerate(images):
            try:
                files[position] = image.read(self._settings.max_file_bytes)
            except DropserveError as error:
                errors[position] = str(error)
        return files, errors

    async def _decode(
        self, positions: Sequence[int], files: dict[int, bytes], errors: dict[int, str]
    ) -> dict[int, Floats]:
        """Decode files together or, where that fails, each alone; add what fails to `errors`."""
        try:
            pixels = await self._reader.decode(
                [files[position] for position in positions], self.manifest.input, _CLIENT
            )
        except DropserveError as error:
            if len(positions) == 1:
                is_costly = isinstance(error, BodyTooCostlyError)
                errors[positions[0]] = _TOO_COSTLY if is_costly else str(error)
                return {}
            decoded: dict[int, Floats] = {}
            for position in positions:
                decoded |= await self._decode([position], files, errors)
            return decoded
        return dict(zip(positions, pixels, strict=True))

    def _zeros(self, count: int) -> Floats:
        spec = self.manifest.input
        return np.zeros((count, spec.channels, spec.height, spec.width), np.float32)


def _joint(files: dict[int, bytes]) -> Iterable[list[int]]:
    """Divide positions into groups whose files have few bytes together."""
    group: list[int] = []
    size = 0
    for position, file in files.items():
        if group and size + len(file) > _MAX_JOINT_BYTES:
            yield group
            group, size = [], 0
        group.append(position)
        size += len(file)
    if group:
        yield group
