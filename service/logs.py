"""Log lines, JSON or console, on stdout: the service's own and uvicorn's alike."""

import logging.config
from contextvars import ContextVar
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request in hand."""

LogFormat = Literal["console", "json"]


def configuration(level: str, log_format: LogFormat) -> dict[str, Any]:
    """Describe the logging of this process and, through uvicorn, of its workers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"all": {"()": "service.logs.formatter", "log_format": log_format}},
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
                "formatter": "all",
                "stream": "ext://sys.stdout",
            }
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
    render: Processor
    if log_format == "json":
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(colors=False)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), _drop_colours],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )


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
