"""The log line of each request, rendered directly where it holds nothing that must be escaped.

The general renderer takes five times as long, a quarter of a small request. Its lines are the same,
up to the order of a JSON object's fields, and it renders whatever is not plain here. Knows no
request's meaning.
"""

import logging
import re
from datetime import UTC, datetime

EVENT = "request"
OPTIONAL = ("client", "key")
"""Fields that are left out where they are None: the address of the client that sent the request
(None: a control listener's, or unknown), and the name of its API key, if it needed one."""

_PLAIN = re.compile(r"[A-Za-z0-9_/.:~%+@!$&*(),;-]+")
"""Text that neither JSON nor the console renderer quotes or escapes."""


class RequestRecord(logging.LogRecord):
    """The log record of a request; other handlers than the service's see its fields as `extra`."""

    def __init__(
        self,
        level: int,
        *,
        method: str,
        path: str,
        status: int,
        milliseconds: float,
        **ids: str | None,
    ) -> None:
        """Make the record that an answered request logs.

        ids: `request_id`, `trace_id` and the fields of `OPTIONAL`; None: it has none.
        """
        super().__init__("service", level, "", 0, EVENT, None, None)
        self.method = method
        self.path = path
        self.status = status
        self.milliseconds = milliseconds
        for name, value in ids.items():
            if value is not None:
                self.__dict__[name] = value

    def plain_line(self, *, as_json: bool) -> str | None:
        """Return the line; None: something in it has to be quoted, or it has no request id."""
        method, path, request_id = self.method, self.path, self.__dict__.get("request_id")
        fields = self.__dict__
        values = named = ""
        for name in OPTIONAL:
            value = fields.get(name)
            if value is not None:
                values += value
                named += f'"{name}": "{value}", ' if as_json else f"{name}={value} "
        if request_id is None or not _PLAIN.fullmatch(f"{method}{path}{request_id}{values}"):
            return None
        trace_id = self.__dict__.get("trace_id")
        level, status, milliseconds = self.levelname.lower(), self.status, self.milliseconds
        timestamp = datetime.fromtimestamp(self.created, UTC).replace(tzinfo=None).isoformat()
        if as_json:
            traced = "" if trace_id is None else f'"trace_id": "{trace_id}", '
            return (
                f'{{{named}{traced}"method": "{method}", "path": "{path}", "status": {status}, '
                f'"milliseconds": {milliseconds}, "event": "{EVENT}", '
                f'"request_id": "{request_id}", "level": "{level}", "timestamp": "{timestamp}Z"}}'
            )
        traced = "" if trace_id is None else f" trace_id={trace_id}"
        return (
            f"{timestamp}Z [{level:9}] {EVENT:30} {named}method={method} "
            f"milliseconds={milliseconds} path={path} request_id={request_id} status={status}"
            f"{traced}"
        )
