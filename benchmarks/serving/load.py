"""Load generators on their own cores: wrk (closed loop), h2load (paced), `open_loop` (open loop).

Needs wrk (https://github.com/wg/wrk) and h2load (of nghttp2). Knows no server, only a port and a
request.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.serving.environments import ROOT
from benchmarks.serving.open_loop import OpenLoopResult
from benchmarks.serving.payloads import Content

_SCRIPT = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = "POST"; wrk.body = file:read("*a"); file:close()
for name, value in string.gmatch(os.getenv("HEADERS"), "([^\\n:]+):([^\\n]*)\\n") do
  wrk.headers[name] = value
end
function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format('{"requests":%d,"microseconds":%d,"refused":%d,"lost":%d,"p50":%f,"p99":%f}',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


class LoadGeneratorError(Exception):
    """A load generator has failed; the message is its output."""


@dataclass(frozen=True)
class Target:
    """A request, and the port and path that it is sent to."""

    port: int
    path: str
    content: Content

    @property
    def url(self) -> str:
        """The URL of the request."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    @property
    def message(self) -> bytes:
        """The bytes of the whole HTTP/1.1 request."""
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Length": str(len(self.content.body)),
            **self.content.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*lines, "", ""]).encode() + self.content.body


@dataclass(frozen=True)
class ClosedLoopResult:
    """One measurement by wrk: each connection waits for a response before its next request."""

    connections: int
    rate: float
    """Responses with status 200 per second."""
    refused: int
    """Responses with another status."""
    lost: int
    """Requests without a response."""
    p50: float
    """Milliseconds."""
    p99: float
    """Milliseconds."""


@dataclass(frozen=True)
class PacedResult:
    """One measurement by h2load: requests at a fixed rate."""

    offered: float
    """Requests per second."""
    rate: float
    """Responses with status 2xx per second."""
    statuses: dict[str, int]
    """How many responses of each class of status (`2xx`), and how many requests without one."""


class LoadGenerator:
    """Runs the load generators on the cores that are reserved for them."""

    def __init__(self, cores: str, folder: Path) -> None:
        """Check that the programs are installed.

        cores: as `taskset -c` takes them; empty for all.
        folder: an empty folder for scripts and request bodies.
        """
        if not shutil.which("wrk"):
            raise SystemExit("Install wrk, which sends the load: apt-get install wrk")
        if not shutil.which("h2load"):
            raise SystemExit("Install h2load, which paces it: apt-get install nghttp2-client")
        self._pin = ["taskset", "-c", cores] if cores else []
        self._folder = folder
        (folder / "load.lua").write_text(_SCRIPT)

    def closed_loop(self, target: Target, connections: int, seconds: int) -> ClosedLoopResult:
        """Load with `connections` connections; each sends its next request after a response."""
        body = self._folder / "body"
        body.write_bytes(target.content.body)
        headers = "".join(f"{name}:{value}\n" for name, value in target.content.headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
        script = ["-s", str(self._folder / "load.lua"), target.url]
        text = self._run(
            [*self._pin, *command, *script], {"BODY": str(body), "HEADERS": headers}, seconds
        )
        return parse_wrk(text, connections)

    def open_loop(
        self, target: Target, rate: float, seconds: int, seed: int, *, even: bool = False
    ) -> OpenLoopResult:
        """Send at a rate (requests per second), whether or not responses come.

        even: with equal gaps; otherwise the arrivals are a Poisson process.
        """
        file = self._folder / "request"
        file.write_bytes(target.message)
        program = [sys.executable, "-m", "benchmarks.serving.open_loop"]
        options = {"--port": target.port, "--rate": rate, "--seconds": seconds, "--seed": seed}
        flags = [f"{name}={value}" for name, value in options.items()]
        flags += ["--even"] if even else []
        text = self._run([*self._pin, *program, *flags, str(file)], {}, seconds)
        return OpenLoopResult(**orjson.loads(text))

    def paced(self, target: Target, rate: float, connections: int, seconds: int) -> PacedResult:
        """Send at a rate that `open_loop`, in Python, could not keep up with.

        Each connection sends its share at equal gaps, or later where it still waits for a response.
        """
        body = self._folder / "body"
        body.write_bytes(target.content.body)
        headers = [f"--header={name}: {value}" for name, value in target.content.headers.items()]
        command = ["h2load", "--h1", "--threads=1", f"--clients={connections}"]
        command += [f"--duration={seconds}", "--warm-up-time=1", f"--rps={rate / connections}"]
        text = self._run(
            [*self._pin, *command, f"--data={body}", *headers, target.url], {}, seconds
        )
        return parse_h2load(text, rate, seconds)

    def _run(self, command: list[str], environment: dict[str, str], seconds: int) -> str:
        try:
            done = subprocess.run(  # noqa: S603
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=60 + 3 * seconds,
            )
        except subprocess.TimeoutExpired:
            raise LoadGeneratorError(f"{command[0]} did not end in time") from None
        if done.returncode:
            raise LoadGeneratorError((done.stderr or done.stdout).strip()[-500:])
        return done.stdout


def parse_h2load(text: str, rate: float, seconds: int) -> PacedResult:
    """Parse the output of h2load.

    Raises:
        LoadGeneratorError: it is no measurement.
    """
    statuses = {name: int(count) for count, name in re.findall(r"(\d+) ([2345]xx)", text)}
    lost = re.search(r"(\d+) errored, (\d+) timeout", text)
    if not statuses or lost is None:
        raise LoadGeneratorError(text.strip()[-500:])
    statuses["lost"] = sum(map(int, lost.groups()))
    return PacedResult(
        rate, statuses["2xx"] / seconds, {each: n for each, n in statuses.items() if n}
    )


def parse_wrk(text: str, connections: int) -> ClosedLoopResult:
    """Parse the output of wrk with our script."""
    summary = orjson.loads(text.strip().splitlines()[-1])
    good = summary["requests"] - summary["refused"]
    return ClosedLoopResult(
        connections=connections,
        rate=1e6 * good / summary["microseconds"],
        refused=summary["refused"],
        lost=summary["lost"],
        p50=summary["p50"],
        p99=summary["p99"],
    )
