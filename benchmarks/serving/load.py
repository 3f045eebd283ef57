"""Load on one address, from cores of its own: wrk in a closed loop, ours in an open one.

Needs wrk (https://github.com/wg/wrk). Knows no server, only a port and a request.
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
from benchmarks.serving.open_loop import Arrivals
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


class LoadFailedError(Exception):
    """A load generator has failed; the message is what it said."""


@dataclass(frozen=True)
class Target:
    """Where a request goes."""

    port: int
    path: str
    content: Content

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    @property
    def message(self) -> bytes:
        """The request as it goes over the wire."""
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Length": str(len(self.content.body)),
            **self.content.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
        return "\r\n".join([*lines, "", ""]).encode() + self.content.body


@dataclass(frozen=True)
class Stretch:
    """What wrk saw of one stretch of load; latencies in milliseconds."""

    connections: int
    rate: float
    """Good answers a second."""
    refused: int
    lost: int
    p50: float
    p99: float


@dataclass(frozen=True)
class Paced:
    """What h2load saw of requests at a given rate."""

    offered: float
    """Requests a second."""
    rate: float
    """Good answers a second."""
    answers: dict[str, int]
    """How many of each class of status, `2xx` say, and without an answer."""


class Load:
    """The load generators, on their cores."""

    def __init__(self, cores: str, folder: Path) -> None:
        """Prepare them.

        cores: as `taskset -c` takes them; empty for all.
        folder: an empty one.
        """
        if not shutil.which("wrk"):
            raise SystemExit("Install wrk, which sends the load: apt-get install wrk")
        if not shutil.which("h2load"):
            raise SystemExit("Install h2load, which paces it: apt-get install nghttp2-client")
        self._pin = ["taskset", "-c", cores] if cores else []
        self._folder = folder
        (folder / "load.lua").write_text(_SCRIPT)

    def closed(self, target: Target, connections: int, seconds: int) -> Stretch:
        """Let so many connections each send the next request when the last is answered."""
        body = self._folder / "body"
        body.write_bytes(target.content.body)
        headers = "".join(f"{name}:{value}\n" for name, value in target.content.headers.items())
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
        script = ["-s", str(self._folder / "load.lua"), target.url]
        text = self._said(
            [*self._pin, *command, *script], {"BODY": str(body), "HEADERS": headers}, seconds
        )
        return stretch(text, connections)

    def open(
        self, target: Target, rate: float, seconds: int, seed: int, *, even: bool = False
    ) -> Arrivals:
        """Send at a rate, whether or not answers come; at random, or with equal gaps."""
        file = self._folder / "request"
        file.write_bytes(target.message)
        program = [sys.executable, "-m", "benchmarks.serving.open_loop"]
        options = {"--port": target.port, "--rate": rate, "--seconds": seconds, "--seed": seed}
        flags = [f"{name}={value}" for name, value in options.items()]
        flags += ["--even"] if even else []
        text = self._said([*self._pin, *program, *flags, str(file)], {}, seconds)
        return Arrivals(**orjson.loads(text))

    def paced(self, target: Target, rate: float, connections: int, seconds: int) -> Paced:
        """Send at a rate that `open`, in Python, could not keep up with.

        Each connection sends its part of it at equal gaps, or later where it awaits an answer.
        """
        body = self._folder / "body"
        body.write_bytes(target.content.body)
        headers = [f"--header={name}: {value}" for name, value in target.content.headers.items()]
        command = ["h2load", "--h1", "--threads=1", f"--clients={connections}"]
        command += [f"--duration={seconds}", "--warm-up-time=1", f"--rps={rate / connections}"]
        text = self._said(
            [*self._pin, *command, f"--data={body}", *headers, target.url], {}, seconds
        )
        return paced(text, rate, seconds)

    def _said(self, command: list[str], environment: dict[str, str], seconds: int) -> str:
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
            raise LoadFailedError(f"{command[0]} did not end in time") from None
        if done.returncode:
            raise LoadFailedError((done.stderr or done.stdout).strip()[-500:])
        return done.stdout


def paced(text: str, rate: float, seconds: int) -> Paced:
    """Read what h2load printed."""
    answers = {name: int(count) for count, name in re.findall(r"(\d+) ([2345]xx)", text)}
    lost = re.search(r"(\d+) errored, (\d+) timeout", text)
    if not answers or lost is None:
        raise LoadFailedError(text.strip()[-500:])
    answers["lost"] = sum(map(int, lost.groups()))
    return Paced(rate, answers["2xx"] / seconds, {each: n for each, n in answers.items() if n})


def stretch(text: str, connections: int) -> Stretch:
    """Read what wrk printed with our script."""
    told = orjson.loads(text.strip().splitlines()[-1])
    good = told["requests"] - told["refused"]
    return Stretch(
        connections=connections,
        rate=1e6 * good / told["microseconds"],
        refused=told["refused"],
        lost=told["lost"],
        p50=told["p50"],
        p99=told["p99"],
    )
