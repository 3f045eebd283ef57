"""Log lines, JSON or console, on stdout: the service's own and uvicorn's alike.

What a stranger sends stays within its line, and is shown as text alone.
"""

import logging.config
import sys
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.observability.log_writer import LineWriter

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request in hand."""

LogFormat = Literal["console", "json"]

_INDENT = "    "
_TRACES = ("exception", "stack")


class StandardOutput(logging.Handler):
    """Hands each line to a thread that writes it: whoever reads stdout holds up no request."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = LineWriter(_descriptor(), self._dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record here, where its request is known, and go on."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self._writer.put(_encoded(line))

    def flush(self) -> None:
        """Wait a moment for what is not yet written."""
        self._writer.flush()

    def close(self) -> None:
        """Take no more lines."""
        self._writer.close()
        super().close()

    def _dropped(self, count: int) -> bytes:
        record = logging.LogRecord(
            "service", logging.WARNING, __file__, 0, "log lines dropped", (), None
        )
        record.count = count
        return _encoded(self.format(record))


def _descriptor() -> int | None:
    """Find standard output; None where it was closed, or is none of the system's."""
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def configuration(level: str, log_format: LogFormat) -> dict[str, Any]:
    """Describe the logging of this process and, through uvicorn, of its workers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "all": {"()": "service.observability.logs.formatter", "log_format": log_format}
        },
        "handlers": {
            "stdout": {"class": "service.observability.logs.StandardOutput", "formatter": "all"}
        },
        "root": {"handlers": ["stdout"], "level": level.upper()},
    }


def configure(level: str, log_format: LogFormat) -> None:
    """Set up logging in this process."""
    logging.config.dictConfig(configuration(level, log_format))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Build the formatter that `configuration` names."""
    render: list[Processor]
    if log_format == "json":
        render = [_replace_surrogates, structlog.processors.JSONRenderer()]
    else:
        render = [_escape, structlog.dev.ConsoleRenderer(colors=False)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), _drop_colours],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def _escape(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Show what a terminal would obey, or take for the end of a line, as its escape.

    That is whatever Unicode does not count as printable: controls, line and paragraph separators,
    marks that turn the direction of writing, and halves of characters. Lines of a traceback are
    indented, so that none can pass for a log line.
    """
    for name, value in event.items():
        if name in _TRACES:
            lines = str(value).split("\n")
            event[name] = "\n".join(_INDENT + _printable(line) for line in lines)
        elif isinstance(value, str) and not value.isprintable():
            event[name] = _printable(value)
    return event


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _replace_surrogates(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Escape halves of characters, as names of files may have them: no JSON may hold one."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isascii():
            event[name] = value.encode("utf-8", "backslashreplace").decode()
    return event


def _shared() -> list[Processor]:
    return [
        add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def add_request_id(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Say which request a line is about, where it is about one."""
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event["request_id"] = request_id
    return event


def _drop_colours(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn repeats each message with terminal codes
    return event
