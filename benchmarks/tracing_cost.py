"""What traces cost the service in processor time: `python -m benchmarks.tracing_cost`.

Services side by side answer the same requests in turns: two that trace nothing, of which the second
shows the noise, one that samples no request, and one that samples a tenth and sends to a collector
in this process. What is compared is the processor time of each process for a request, all that it
does between two turns included, since spans are sent later. Takes five to ten minutes.
"""

import json
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.processor_time import KeptConnection, connected, picture, seconds_from_turn_to_turn

_TURNS, _REQUESTS = 20, 300
_EXPORT_MILLISECONDS = 2000
"""Shorter than the usual 5 s, so that each turn has its exports; smaller batches cost more."""
_SAMPLERS = {
    "off": None,
    "off again": None,
    "always_off": "always_off",
    "a tenth": "parentbased_traceidratio",
}
_IMAGE = np.linspace(0, 1, 64).reshape(1, 1, 8, 8).round(3).tolist()
_INFER = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": _IMAGE}]}
_REQUESTS_BY_ROUTE = {
    "/v2/models/digits/infer": ("application/json", json.dumps(_INFER).encode()),
    "/predict": ("image/png", picture()),
    "/uncertainty": ("image/png", picture()),
}


@contextmanager
def _collector() -> Iterator[str]:
    """Run a collector that takes everything; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _compare(services: Mapping[str, KeptConnection], route: str) -> str:
    """Measure a route in turns, and return a line for each service."""
    kind, body = _REQUESTS_BY_ROUTE[route]
    turns = seconds_from_turn_to_turn(
        {name: each.processor_seconds for name, each in services.items()},
        lambda name: services[name].post(route, kind, body, _REQUESTS),
        _TURNS,
    )
    lines = []
    for name in services:
        ratio = statistics.median(each[name] / each["off"] for each in turns)
        cost = statistics.median(each[name] for each in turns) / _REQUESTS * 1e6
        total = sum(each[name] for each in turns) / sum(each["off"] for each in turns)
        lines.append(f"  {name}: {cost:.1f} us, ratio {ratio:.3f}, of the sums {total:.3f}\n")
    return f"POST {route}, {_TURNS} turns of {_REQUESTS} requests\n{''.join(lines)}"


def main(models_folder: Path = Path("models")) -> None:
    """Print what each route costs with each sampler, and the ratios to no traces at all."""
    end_like_ctrl_c()
    options = ("--control", "nobody", "--keep-alive-seconds", "3600")
    with ExitStack() as stack:
        url = stack.enter_context(_collector())
        services = {}
        for name, sampler in _SAMPLERS.items():
            variables = {}
            if sampler is not None:
                variables = {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": url,
                    "OTEL_TRACES_SAMPLER": sampler,
                    "OTEL_TRACES_SAMPLER_ARG": "0.1",
                    "OTEL_BSP_SCHEDULE_DELAY": str(_EXPORT_MILLISECONDS),
                }
            services[name] = stack.enter_context(
                connected(models_folder, *options, variables=variables)
            )
        sys.stdout.write(f"{describe_machine()}\n")
        for route in _REQUESTS_BY_ROUTE:
            sys.stdout.write(_compare(services, route))
            sys.stdout.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
