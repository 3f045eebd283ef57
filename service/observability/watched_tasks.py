"""Tasks in the background: if one fails, the log says so at once. Knows no work."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

logger = structlog.stdlib.get_logger("service")


def watched(part: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start the work of a part of the service; if it fails, log that at once."""
    task = asyncio.create_task(work, name=part)
    task.add_done_callback(_log_failure)
    return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("background task failed", task=task.get_name(), exc_info=error)
