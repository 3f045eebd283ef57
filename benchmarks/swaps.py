"""Measures failed requests, latency and memory while versions are switched under a steady load.

    python -m benchmarks.swaps models/NAME/1 OTHER_MODELS/NAME/1 [--swaps 100] [--record docs]

Two bundles with the same input become versions 1 and 2 of one model. wrk sends the same image over
16 connections that each pause between two requests; every response must equal, to the byte, the one
of the version that it names. Rounds with and without swaps alternate, so that changes in the
machine's speed affect both. Needs wrk (https://github.com/wg/wrk).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import orjson
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.machine import end_like_ctrl_c
from benchmarks.reliability.services import Service
from model.bundle.store import Manifest
from tests.bundles import copy_bundle
from training.experiments.experiment_record import Record

_NAME = "swapped"
_CONNECTIONS = 16
_ROUNDS = 5
_WARMUP_SWAPS = 5  # memory growth is measured from here

# Each connection waits `pause` milliseconds before a request: about 16,000 / pause a second.
_SCRIPT = """
local expected = {}
for path in string.gmatch(os.getenv("ANSWERS"), "[^:]+") do
  local file = io.open(path, "rb"); expected[file:read("*a")] = true; file:close()
end
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = "POST"; wrk.body = file:read("*a"); file:close()
wrk.headers["Content-Type"] = "application/json"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() failed = 0; wrong = 0; answered = 0 end
function delay() return tonumber(os.getenv("PAUSE")) end
function response(status, headers, body)
  answered = answered + 1
  if status ~= 200 then failed = failed + 1
  elseif not expected[body] then wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local answered, failed, wrong = 0, 0, 0
  for _, thread in ipairs(threads) do
    answered = answered + thread:get("answered"); failed = failed + thread:get("failed")
    wrong = wrong + thread:get("wrong")
  end
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format('{"answered":%d,"failed":%d,"wrong":%d,"lost":%d,"p50":%f,"p99":%f,"maximum":%f}',
    answered, failed, wrong, lost,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000))
end
"""


@dataclass(frozen=True)
class Round:
    """The counts of one wrk run, and its latencies in milliseconds.

    wrong: 200 responses with a body that neither version gives.
    lost: requests without a response.
    """

    answered: int
    failed: int
    wrong: int
    lost: int
    p50: float
    p99: float
    maximum: float
    """The maximum latency."""


class Load:
    """Runs wrk against one URL."""

    def __init__(self, folder: Path, url: str, body: bytes, pause: int) -> None:
        self._folder, self._url, self._pause = folder, url, pause
        self.expected: list[Path] = []
        (folder / "body.json").write_bytes(body)
        (folder / "load.lua").write_text(_SCRIPT)

    def expect(self, body: bytes) -> None:
        """Count responses with this body as correct."""
        self.expected.append(self._folder / f"answer{len(self.expected)}.json")
        self.expected[-1].write_bytes(body)

    @contextmanager
    def running(self, seconds: float, rounds: list[Round]) -> Iterator[None]:
        """Load the service for `seconds`, beside the block, and append the result to `rounds`."""
        command = ["taskset", "-c", "1", "wrk", f"-d{seconds:.0f}s", "-t1", f"-c{_CONNECTIONS}"]
        environment = {
            "ANSWERS": ":".join(map(str, self.expected)),
            "BODY": str(self._folder / "body.json"),
            "PAUSE": str(self._pause),
        }
        script = ["-s", str(self._folder / "load.lua"), self._url]
        with subprocess.Popen(  # noqa: S603
            command + script, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            yield
            assert process.stdout is not None
            text = process.stdout.read()
        if process.returncode:
            raise SystemExit(f"wrk failed:\n{text}")
        rounds.append(Round(**orjson.loads(text.splitlines()[-1])))


def main(arguments: list[str]) -> None:
    """Swap under load, print and record; status 1 if a request failed or a body was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("one", type=Path, help="folder of one version")
    parser.add_argument("other", type=Path, help="folder of a version of the same input")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two swaps")
    parser.add_argument("--pause", type=int, default=60, help="of each connection, milliseconds")
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    if options.swaps % _ROUNDS or options.swaps * options.every < _ROUNDS:
        parser.error(
            f"--swaps: write a multiple of {_ROUNDS}, so large that each of the {_ROUNDS} rounds "
            "takes a second or more."
        )
    end_like_ctrl_c()
    record, bad = measure([options.one, options.other], options)
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.swaps --swaps {options.swaps}")
    sys.exit(1 if bad else 0)


def measure(bundles: Sequence[Path], options: argparse.Namespace) -> tuple[Record, int]:
    """Alternate rounds without and with swaps; return the record and the count of bad responses."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for version, bundle in enumerate(bundles, start=1):
            copy_bundle(bundle, folder / "models", _NAME, version)
        # Versions are pinned over the public port.
        flags = ("--control", "anyone")
        with (
            Service(folder, folder / "models", 0, *flags, cores="0") as service,
            httpx.Client(base_url=service.url, timeout=60) as client,
        ):
            body = _body(folder / "models" / _NAME / "1")
            load = Load(folder, f"{service.url}/v2/models/{_NAME}/infer", body, options.pause)
            for version in (1, 2):
                _pin(client, version)
                load.expect(client.post(f"/v2/models/{_NAME}/infer", content=body).content)
            if load.expected[0].read_bytes() == load.expected[1].read_bytes():
                raise SystemExit("Both bundles give the same answer; name two that differ.")
            quiet: list[Round] = []
            swapped: list[Round] = []
            memory: list[float] = []
            swaps_per_round = options.swaps // _ROUNDS
            seconds = swaps_per_round * options.every
            with load.running(3, []):
                pass
            for _ in range(_ROUNDS):
                with load.running(seconds, quiet):
                    pass
                with load.running(seconds, swapped):
                    for _ in range(swaps_per_round):
                        started = time.monotonic()
                        _pin(client, 1 + len(memory) % 2)
                        memory.append(_resident_megabytes(service.pid))
                        time.sleep(max(0.0, options.every - (time.monotonic() - started)))
    return _record(quiet, swapped, memory, options)


def _record(
    quiet: list[Round], swapped: list[Round], memory: list[float], options: argparse.Namespace
) -> tuple[Record, int]:
    bad = sum(each.failed + each.wrong + each.lost for each in quiet + swapped)
    ratios = [one.p99 / other.p99 for one, other in zip(swapped, quiet, strict=True)]
    growth = memory[-1] / memory[_WARMUP_SWAPS - 1]
    rows = [
        (
            title,
            f"{sum(each.answered for each in rounds):,}",
            *(
                str(sum(getattr(each, bad) for each in rounds))
                for bad in ("failed", "wrong", "lost")
            ),
            *(
                f"{np.median([getattr(each, latency) for each in rounds]):.2f}"
                for latency in ("p50", "p99", "maximum")
            ),
        )
        for title, rounds in (("without swaps", quiet), ("with swaps", swapped))
    ]
    record = Record(
        name="swaps",
        title="New versions under load",
        setting=f"{len(memory)} swaps between two versions, one every {options.every:g} seconds, "
        f"in {_ROUNDS} rounds beside rounds without; {_CONNECTIONS} connections, each pausing "
        f"{options.pause} ms before a request; the service on one core, wrk on the other. "
        "Latencies in milliseconds, medians of the rounds.",
        columns=("rounds", "answers", "failed", "wrong", "lost", "p50", "p99", "maximum"),
        rows=rows,
        finding=f"{bad} requests failed or had the body of another version than the one they name. "
        f"The 99th percentile with swaps is {np.median(ratios):.2f} times that without "
        f"({min(ratios):.2f} to {max(ratios):.2f}). Resident memory after {len(memory)} swaps is "
        f"{memory[-1]:.0f} MB, {growth:.2f} times that after {_WARMUP_SWAPS}.",
        figure=_plot(quiet, swapped, memory),
    )
    return record, bad


def _pin(client: httpx.Client, version: int) -> None:
    response = client.post(f"/models/{_NAME}/pin", params={"version": version})
    if response.status_code != 200:
        raise SystemExit(f"The swap failed: {response.text}")


def _body(bundle: Path) -> bytes:
    """Return a request with a random image as JSON numbers."""
    spec = Manifest.model_validate_json((bundle / "manifest.json").read_bytes()).input
    shape = [1, spec.channels, spec.height, spec.width]
    values = np.random.default_rng(0).random(shape, np.float32).ravel().round(3).tolist()
    tensor = {"name": "images", "shape": shape, "datatype": "FP32", "data": values}
    return orjson.dumps({"inputs": [tensor]})


def _resident_megabytes(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(kilobytes) / 1000


def _plot(quiet: list[Round], swapped: list[Round], memory: list[float]) -> Figure:
    """Draw latency by round and memory by swap."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    latency, resident = figure.subplots(1, 2)
    numbers = range(1, len(quiet) + 1)
    for rounds, label, colour in ((quiet, "without swaps", "C0"), (swapped, "with swaps", "C1")):
        for name, style in (("p50", "o-"), ("p99", "s--")):
            values = [getattr(each, name) for each in rounds]
            latency.plot(numbers, values, style, color=colour, label=f"{label}, {name}")
    latency.set(xlabel="round", ylabel="latency (ms)", ylim=(0, None), xticks=list(numbers))
    latency.legend()
    resident.plot(range(1, len(memory) + 1), memory)
    resident.set(xlabel="swaps", ylabel="resident memory (MB)", ylim=(0, None))
    for axes in (latency, resident):
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
