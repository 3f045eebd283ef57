"""The direct rendering of requests' log lines, beside the general one."""

import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability import log_format
from service.observability.log_format import LogFormat
from service.observability.request_log import RequestRecord

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")

paths = st.text(max_size=20) | st.from_regex(r"/[a-z0-9_./-]*", fullmatch=True)


def rendered(record: logging.LogRecord, log_format_name: LogFormat) -> str:
    return log_format.create_formatter(log_format_name).format(record)


def general(record: RequestRecord, log_format_name: LogFormat) -> str:
    """Return what the processors make of the same fields."""
    plain = logging.LogRecord("service", record.levelno, "", 0, record.msg, None, None)
    plain.__dict__.update(record.__dict__)
    return rendered(plain, log_format_name)


@given(
    path=paths,
    method=st.sampled_from(["GET", "POST", "BREW"]),
    status=st.integers(100, 599),
    milliseconds=st.floats(0, 1e6).map(lambda value: round(value, 2)),
    request_id=st.none() | st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
    level=st.sampled_from([logging.DEBUG, logging.INFO]),
    key=st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    client=st.none() | st.ip_addresses().map(str),
)
def test_request_line_is_that_of_the_general_renderer(  # noqa: PLR0917
    path: str,
    method: str,
    status: int,
    milliseconds: float,
    request_id: str | None,
    level: int,
    key: str | None,
    client: str | None,
) -> None:
    record = RequestRecord(
        level,
        method=method,
        path=path,
        status=status,
        milliseconds=milliseconds,
        request_id=request_id,
        key=key,
        client=client,
    )
    console, expected = rendered(record, "console"), general(record, "console")
    assert TIMESTAMP.sub("", console) == TIMESTAMP.sub("", expected)
    line, fields = json.loads(rendered(record, "json")), json.loads(general(record, "json"))
    assert TIMESTAMP.fullmatch(line.pop("timestamp"))
    assert TIMESTAMP.fullmatch(fields.pop("timestamp"))
    assert line == fields


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("path", "is_plain"),
    [("/v2/models/digits/infer", True), ('/"', False), ("/a b", False), ("/\n", False)],
)
def test_only_plain_lines_are_rendered_directly(path: str, is_plain: bool, as_json: bool) -> None:
    record = RequestRecord(
        logging.INFO, method="GET", path=path, status=200, milliseconds=1.0, request_id="one"
    )
    assert (record.plain_line(as_json=as_json) is not None) == is_plain
