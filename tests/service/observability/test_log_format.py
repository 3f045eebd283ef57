"""Tests of log lines, written by another process, since configuring logging is irreversible."""

import json
import subprocess
import sys
from functools import cache

import pytest

from service.observability import log_format
from tests.conftest import ROOT

SCRIPT = """
import logging, sys, structlog
from service.observability import log_format
logger = structlog.stdlib.get_logger("service")  # as the modules do, before it is configured
log_format.configure(sys.argv[1], sys.argv[2])
token = log_format.CURRENT_REQUEST_ID.set("mine")
logger.info("request", path="/predict", status=200)
try:
    raise RuntimeError("no memory")
except RuntimeError:
    logger.exception("request failed")
log_format.CURRENT_REQUEST_ID.reset(token)
logger.debug("detail")
logging.getLogger("uvicorn.error").warning("hello %s", "world", extra={"color_message": "painted"})
"""


@cache
def log_lines(level: str, log_format: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, level, log_format]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_json_lines_are_objects_with_event_level_and_time() -> None:
    lines = [json.loads(line) for line in log_lines("info", "json")]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("request", "info"),
        ("request failed", "error"),
        ("hello world", "warning"),
    ]
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_json_lines_have_fields_request_id_and_traceback() -> None:
    request, failed, foreign = (json.loads(line) for line in log_lines("info", "json"))
    assert (request["path"], request["status"], request["request_id"]) == ("/predict", 200, "mine")
    assert failed["request_id"] == "mine"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("RuntimeError: no memory")
    assert set(foreign) == {"event", "level", "timestamp"}


def test_console_lines_are_plain_text() -> None:
    text = "\n".join(log_lines("info", "console"))
    assert "[info     ] request" in text
    assert "request_id=mine" in text
    assert "\n    RuntimeError: no memory\n" in text
    assert "hello world" in text
    assert "\x1b" not in text
    assert "painted" not in text


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["request", "request failed", "detail", "hello world"]),
        ("warning", ["request failed", "hello world"]),
        ("error", ["request failed"]),
    ],
)
def test_log_level_filters_less_severe_lines(level: str, events: list[str]) -> None:
    assert [json.loads(line)["event"] for line in log_lines(level, "json")] == events


def test_logging_config_can_be_serialised_for_workers() -> None:
    config = log_format.logging_config("info", "json")
    assert json.loads(json.dumps(config)) == config
    assert config["root"] == {"handlers": ["stdout"], "level": "INFO"}


FLOOD = """
import logging, sys, structlog
from service.observability import log_format
log_format.configure("info", sys.argv[1])
logger = structlog.stdlib.get_logger("service")
for _ in range(200):
    logger.info("request", path="x" * 50_000)
print("written", file=sys.stderr, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_number_of_dropped_lines_is_logged_when_the_reader_resumes(log_format: str) -> None:
    """The process writes ten megabytes of lines, of which four are queued."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FLOOD, log_format],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "written\n"
        assert process.stdout is not None
        lines = list(iter(lambda: _read_line(process), ""))
        status = process.wait()
    assert status == 0
    *kept, last = lines
    assert len(kept) < 100
    if log_format == "json":
        line = json.loads(last)
        assert (line["event"], line["level"]) == ("log lines dropped", "warning")
        assert line["count"] == 200 - len(kept)
    else:
        assert f"[warning  ] log lines dropped              count={200 - len(kept)}\n" in last


def _read_line(process: "subprocess.Popen[str]") -> str:
    """Read one line; after the one about dropped lines, let the process end."""
    assert process.stdout is not None
    assert process.stdin is not None
    line = process.stdout.readline()
    if "dropped" in line:
        process.stdin.close()
    return line


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_lone_surrogates_are_escaped(log_format: str) -> None:
    script = SCRIPT.replace('"/predict"', '"/models/\\udcff"')
    done = subprocess.run(
        [sys.executable, "-c", script, "info", log_format],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    line = done.stdout.decode().splitlines()[0]
    assert "/models/\\udcff" in (json.loads(line)["path"] if log_format == "json" else line)
