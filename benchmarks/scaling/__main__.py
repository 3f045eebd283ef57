"""Plan replicas from measured parts: `python -m benchmarks.scaling [--record docs]`.

Measures what a request costs one replica on one core, checks a simulation of that replica against
loads that it was not fitted to, simulates several replicas, and computes what large loads need.
The service has one core, the load another; plain predictions and those with dropout active.
"""

import argparse
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.scaling.capacity_plan import Demand, replica_rate
from benchmarks.scaling.cost_measurement import ReplicaLoad, costs_of, measure_runs
from benchmarks.scaling.proxy_cost import PROXIES, proxy_seconds
from benchmarks.scaling.scaling_records import (
    Kind,
    check_predictions,
    check_record,
    plan_record,
    replicas_record,
)
from benchmarks.serving.comparison import first_response, image_of
from benchmarks.serving.load import LoadGenerator, Target
from benchmarks.serving.payloads import open_inference
from benchmarks.serving.peers import OURS, LaunchSpec, service
from benchmarks.serving.servers import Server
from benchmarks.serving.setup import Setup, add_flags, read_flags, recorded_flags
from model.bundle.store import SAMPLED_SUFFIX
from model.inference.predictor_loading import load_predictor

_KINDS = {"plain": None, "64 samples": 64}
_BATCH_ROWS = 64


class _Measuring:
    """Starts one replica, and measures it."""

    def __init__(self, setup: Setup, python: Path, folder: Path, seconds: int) -> None:
        self._setup, self._python, self._folder, self._seconds = setup, python, folder, seconds
        self._load = LoadGenerator(setup.load_cores, self._new("load"))

    def kind(self, name: str, rounds: int) -> Kind:
        """Measure one kind of request in several rounds."""
        bundle, samples = self._setup.bundle, _KINDS[name]
        image, predictor = image_of(bundle), load_predictor(bundle)
        with ExitStack() as stack:
            server, target = self._start(stack, name, samples)
            response = first_response(server, target)
            replica_load = ReplicaLoad(server, target, self._load, self._seconds)
            measurements = [
                replica_load.measure(measure_runs(predictor, image[None], samples), seed)
                for seed in range(rounds)
            ]
            proxies = {proxy: self._proxy_seconds(proxy, name, target) for proxy in PROXIES}
        costs = costs_of(measurements, _BATCH_ROWS)
        head = sum(len(f"{key}: {value}\r\n") for key, value in response.headers.items())
        wire_bytes = len(target.message) + head + len(response.body)
        demand = Demand(costs, min(proxies.values()), wire_bytes)
        return Kind(name, demand, proxies, measurements, replica_rate(costs))

    def _start(self, stack: ExitStack, name: str, samples: int | None) -> tuple[Server, Target]:
        setup = self._setup
        spec = LaunchSpec(self._python, setup.bundle, self._new(name), setup.first_port)
        model = setup.bundle.manifest.name + ("" if samples is None else SAMPLED_SUFFIX)
        content = open_inference(image_of(setup.bundle), samples)
        target = Target(spec.port, f"/v2/models/{model}/infer", content)
        batch = ("--max-batch-rows", str(_BATCH_ROWS))
        server = stack.enter_context(Server(service(spec, *batch), setup.server_cores, spec.folder))
        first_response(server, target)
        return server, target

    def _proxy_seconds(self, proxy: str, name: str, target: Target) -> float:
        folder = self._folder / f"{proxy}-{name}".replace(" ", "-")  # nginx.conf has no quotes
        port = self._setup.first_port + 1
        return proxy_seconds(proxy, target, self._load, port, folder, self._seconds)

    def _new(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        return folder


def main(arguments: list[str]) -> None:
    """Measure, check, simulate and plan; the exit status is 1 if a prediction is too far off."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    options = parser.parse_args(arguments)
    setup, console = read_flags(options), Console()
    measuring = _Measuring(setup, setup.python(OURS, console.log), setup.scratch(), options.seconds)
    with setup.exclusive():
        kinds = [measuring.kind(name, options.rounds) for name in _KINDS]
    setting = f"{setup} OIP JSON, one image; {options.rounds} rounds of {options.seconds} s."
    rows = [row for kind in kinds for row in check_predictions(kind)]
    records = [
        check_record(kinds, rows, setting),
        replicas_record(kinds[0].demand.costs, kinds[0].replica),
        plan_record(kinds),
    ]
    command = shlex.join(["python", "-m", "benchmarks.scaling", *recorded_flags(arguments)])
    for record in reversed(records):
        record.print(console)
        if options.record:
            record.add_to(options.record, command)
    sys.exit(0 if all(row.is_close for row in rows) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
