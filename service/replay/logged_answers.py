"""The answers of a traffic log that can be replayed: parsed lines with their images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from service.api.record_answer_for_log_shadow_feedback import NATIVE_ROUTES, PROTOCOL_ROUTES
from service.replay.traffic_log_line_schema import Answer, LogLine, ModelOfLine
from service.traffic_log.image_files import Floats, StoredImageError, read_image
from service.traffic_log.log_reading import read_lines
from service.traffic_log.traffic_record import ANSWER_MARK, TrafficOptions


@dataclass(frozen=True)
class LoggedAnswer:
    """One line of the log, and its image, float32 [C, H, W]."""

    request_id: str | None
    route: str
    version: str
    options: TrafficOptions | None
    image: Floats
    answer: Answer
    abstain: bool | None
    """None where that was not asked."""
    text: bytes
    """The end of the line, as `encode_answer` writes it."""

    @property
    def is_native(self) -> bool:
        """Whether /predict or /uncertainty answered, with more digits than the protocols have."""
        return self.route in NATIVE_ROUTES


@dataclass
class LoggedAnswers:
    """The answers of one model in a folder, and how many lines could not be used."""

    folder: Path
    model: str
    lines: int = 0
    """Of the model, the unusable ones included."""
    without_image: int = 0
    unreadable: int = 0
    """Lines, of any model, that are not whole or whose image is damaged."""
    models: set[str] = field(default_factory=set)
    """All models that have lines."""

    def __iter__(self) -> Iterator[LoggedAnswer]:
        """Yield each answer, in the order of the lines; raises TrafficLogError."""
        for text, images in read_lines(self.folder):
            try:
                model = ModelOfLine.model_validate_json(text).model
                self.models.add(model)
                if model != self.model:
                    continue
                self.lines += 1
                answer = _parse(text, LogLine.model_validate_json(text), images)
            except (ValueError, StoredImageError):  # pydantic's errors are ValueErrors
                self.unreadable += 1
                continue
            if answer is None:
                self.without_image += 1
            else:
                yield answer


def _parse(text: bytes, line: LogLine, images: Path) -> LoggedAnswer | None:
    """Return a line's answer; None: its image was not stored.

    Raises:
        ValueError: the line is none of the service's.
        StoredImageError: the image is damaged.
    """
    if line.route not in (*NATIVE_ROUTES, *PROTOCOL_ROUTES):
        raise ValueError(line.route)
    image = read_image(images, line.digest)
    if image is None:
        return None
    _, mark, rest = text.partition(ANSWER_MARK)
    return LoggedAnswer(
        line.request_id,
        line.route,
        line.version,
        line.traffic_options(summary_only=line.route in PROTOCOL_ROUTES),
        image,
        line.answer,
        line.doubt.abstain,
        mark + rest,
    )
