"""Log lines as another process writes them: configuring logging changes a process for good."""

import json
import subprocess
import sys
from functools import cache

import pytest

from service.observability import logs
from tests.conftest import ROOT

SCRIPT = """
import logging, sys, structlog
from service import logs
logger = structlog.stdlib.get_logger("service")  # as the modules do, before it is configured
logs.configure(sys.argv[1], sys.argv[2])
token = logs.REQUEST_ID.set("mine")
logger.info("request", path="/predict", status=200)
try:
    raise RuntimeError("no memory")
except RuntimeError:
    logger.exception("request failed")
logs.REQUEST_ID.reset(token)
logger.debug("detail")
logging.getLogger("uvicorn.error").warning("hello %s", "world", extra={"color_message": "painted"})
"""


@cache
def written(level: str, log_format: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, level, log_format]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_json_lines_are_objects_with_event_level_and_time() -> None:
    lines = [json.loads(line) for line in written("info", "json")]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("request", "info"),
        ("request failed", "error"),
        ("hello world", "warning"),
    ]
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_json_lines_carry_their_fields_the_request_id_and_the_trace() -> None:
    request, failed, foreign = (json.loads(line) for line in written("info", "json"))
    assert (request["path"], request["status"], request["request_id"]) == ("/predict", 200, "mine")
    assert failed["request_id"] == "mine"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("RuntimeError: no memory")
    assert set(foreign) == {"event", "level", "timestamp"}


def test_console_lines_are_plain_text() -> None:
    text = "\n".join(written("info", "console"))
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
def test_less_severe_lines_are_left_out(level: str, events: list[str]) -> None:
    assert [json.loads(line)["event"] for line in written(level, "json")] == events


def test_the_configuration_can_be_handed_to_workers() -> None:
    described = logs.configuration("info", "json")
    assert json.loads(json.dumps(described)) == described
    assert described["root"] == {"handlers": ["stdout"], "level": "INFO"}


FLOOD = """
import logging, sys, structlog
from service import logs
logs.configure("info", sys.argv[1])
logger = structlog.stdlib.get_logger("service")
for _ in range(200):
    logger.info("request", path="x" * 50_000)
print("written", file=sys.stderr, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_how_many_lines_were_dropped_is_said_when_somebody_reads(log_format: str) -> None:
    """Ten megabytes of lines, of which four wait."""
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
        lines = list(iter(lambda: _line(process), ""))
        found = process.wait()
    assert found == 0
    *kept, last = lines
    assert len(kept) < 100
    if log_format == "json":
        said = json.loads(last)
        assert (said["event"], said["level"]) == ("log lines dropped", "warning")
        assert said["count"] == 200 - len(kept)
    else:
        assert f"[warning  ] log lines dropped              count={200 - len(kept)}\n" in last


def _line(process: "subprocess.Popen[str]") -> str:
    """Read one line; after the one that says what was dropped, let the process end."""
    assert process.stdout is not None
    assert process.stdin is not None
    line = process.stdout.readline()
    if "dropped" in line:
        process.stdin.close()
    return line


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_halves_of_characters_are_escaped(log_format: str) -> None:
    script = SCRIPT.replace('"/predict"', '"/models/\\udcff"')
    done = subprocess.run(
        [sys.executable, "-c", script, "info", log_format],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    line = done.stdout.decode().splitlines()[0]
    assert "/models/\\udcff" in (json.loads(line)["path"] if log_format == "json" else line)
