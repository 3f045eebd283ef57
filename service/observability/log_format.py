"""Configures logging: JSON or console lines on stdout, the service's own and uvicorn's.

Text that a client sends can neither end its log line nor send control codes to a terminal.
"""

import logging.config
import sys
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.observability.log_writer import LineWriter
from service.observability.request_log import RequestRecord
from service.tracing.request_trace import CURRENT_TRACE_ID

CURRENT_REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
CURRENT_KEY_NAME: ContextVar[str | None] = ContextVar("key_name", default=None)
"""The name of the API key of the request; None where none is needed."""
"""The X-Request-ID of the request that the current task answers."""

LogFormat = Literal["console", "json"]

_INDENT = "    "
_TRACES = ("exception", "stack")


class StdoutHandler(logging.Handler):
    """Passes each line to a thread that writes it, so that a slow reader delays no request."""

    def __init__(self) -> None:
        super().__init__()
        self._writer = LineWriter(_stdout_descriptor(), self._format_dropped)

    @property
    def dropped_lines(self) -> int:
        """The lines that standard output has not got, and never will."""
        return self._writer.dropped_lines

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record here, where its request is known, and queue the line."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
        else:
            self._writer.put(_encode(line))

    def flush(self) -> None:
        """Wait a moment until the queued lines are written."""
        self._writer.flush()

    def close(self) -> None:
        """Accept no more lines."""
        self._writer.close()
        super().close()

    def _format_dropped(self, count: int) -> bytes:
        record = logging.LogRecord(
            "service", logging.WARNING, __file__, 0, "log lines dropped", (), None
        )
        record.count = count
        return _encode(self.format(record))


def dropped_lines() -> int:
    """Return how many lines of this process's log were dropped since logging was configured."""
    handlers = logging.getLogger().handlers
    return sum(each.dropped_lines for each in handlers if isinstance(each, StdoutHandler))


def _stdout_descriptor() -> int | None:
    """Return the descriptor of standard output; None where it is closed or not a file."""
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _encode(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def logging_config(level: str, log_format: LogFormat) -> dict[str, Any]:
    """Return a `logging.config` dictionary; uvicorn passes it to its workers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "all": {
                "()": "service.observability.log_format.create_formatter",
                "log_format": log_format,
            }
        },
        "handlers": {
            "stdout": {
                "class": "service.observability.log_format.StdoutHandler",
                "formatter": "all",
            }
        },
        "root": {"handlers": ["stdout"], "level": level.upper()},
        "loggers": {"httpx": {"level": "WARNING"}},  # else a line for each image that is fetched
    }


def configure(level: str, log_format: LogFormat) -> None:
    """Configure logging and structlog in this process."""
    logging.config.dictConfig(logging_config(level, log_format))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def silence_log() -> None:
    """Write no line of the service's log, in a command that reports by itself."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def create_formatter(log_format: LogFormat) -> logging.Formatter:
    """Build the formatter that `logging_config` names."""
    render: list[Processor]
    if log_format == "json":
        render = [_replace_surrogates, structlog.processors.JSONRenderer()]
    else:
        render = [_escape, structlog.dev.ConsoleRenderer(colors=False)]
    return _LineFormatter(
        log_format,
        foreign_pre_chain=[*_shared_processors(), _drop_colours],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


class _LineFormatter(structlog.stdlib.ProcessorFormatter):
    """Renders plain lines of requests directly, and all others by the processors."""

    def __init__(self, log_format: LogFormat, **options: Any) -> None:
        super().__init__(**options)
        self._is_json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        if isinstance(record, RequestRecord):
            line = record.plain_line(as_json=self._is_json)
            if line is not None:
                return line
        return super().format(record)


def _escape(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Replace characters that a terminal would obey, or that end a line, by their escapes.

    These are all characters that Unicode does not count as printable: control characters, line and
    paragraph separators, marks that change the direction of writing, and lone surrogates. Lines of
    a traceback are indented, so that none can pass for a log line.
    """
    for name, value in event.items():
        if name in _TRACES:
            lines = str(value).split("\n")
            event[name] = "\n".join(_INDENT + _escape_unprintable(line) for line in lines)
        elif isinstance(value, str) and not value.isprintable():
            event[name] = _escape_unprintable(value)
    return event


def _escape_unprintable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _replace_surrogates(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Escape lone surrogates, which file names may contain and JSON may not."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isascii():
            event[name] = value.encode("utf-8", "backslashreplace").decode()
    return event


def _shared_processors() -> list[Processor]:
    return [
        add_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]


def add_ids(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Add request id and trace id to a line that is logged while a request is answered."""
    for name, current in (("request_id", CURRENT_REQUEST_ID), ("trace_id", CURRENT_TRACE_ID)):
        value = current.get()
        if value is not None:
            event[name] = value
    return event


def _drop_colours(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn repeats each message with terminal codes
    return event
