"""What features at the edge cost in processor time: `python -m benchmarks.feature_cost [NAME …]`.

Two services answer the same requests in turns, one with the feature and one without it. What is
compared is the processor time of each process for a request, which other programs disturb less than
they disturb its duration. Two services without any feature (`nothing`) show what the method
resolves. Takes about half a minute for each feature.
"""

import http.client
import sys
import tempfile
import timeit
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.features import NOTHING, Feature, features
from benchmarks.machine import describe_machine
from benchmarks.processor_time import (
    compare_in_turns,
    picture,
    processor_seconds,
    running_service,
)
from service.http.client_rate_limits import ClientRates, RateLimits
from service.http.rate_table_of_all_workers import table_in_memory
from service.keys.access_control import AccessControl
from service.keys.key_ring import KeyRing
from service.observability.metrics_recorder import Metrics

_TURNS, _REQUESTS = 20, 100
_MODELS_FOLDER = Path("models")
_ROUTES = ("/predict", "/uncertainty")
_CHECKS = 100_000


@dataclass(frozen=True)
class _Service:
    """A running service, and what the requests to it have."""

    pid: int
    connection: http.client.HTTPConnection
    headers: Mapping[str, str]


@contextmanager
def _service(models_folder: Path, feature: Feature) -> Iterator[_Service]:
    """Run a service, and connect to it."""
    options = ("--control", "nobody", *feature.options)
    with running_service(models_folder, *options) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port)
        yield _Service(service.pid, connection, {"Content-Type": "image/png", **feature.headers})
        connection.close()


def _cost(service: _Service, route: str) -> float:
    """Return the service's processor time for a request, seconds."""
    body = picture()
    before = processor_seconds(service.pid)
    for _ in range(_REQUESTS):
        service.connection.request("POST", route, body, service.headers)
        response = service.connection.getresponse()
        response.read()
        assert response.status == 200, response.status
    return (processor_seconds(service.pid) - before) / _REQUESTS


def _compare(plain: _Service, featured: _Service, name: str, route: str) -> str:
    """Measure a route in turns, and return a line about it."""
    cost = compare_in_turns(lambda: _cost(plain, route), lambda: _cost(featured, route), _TURNS)
    return (
        f"{name}: POST {route} {cost.first * 1e6:.1f} us without, {cost.second * 1e6:.1f} us with; "
        f"median ratio of {_TURNS} turns of {_REQUESTS} requests {cost.ratio:.3f}\n"
    )


def _keys_alone(feature: Feature) -> str:
    access = AccessControl(KeyRing(Path(feature.options[-1])), Metrics())
    header = feature.headers["Authorization"]
    seconds = timeit.repeat(
        lambda: access.authorize(header, None, "192.0.2.1", "predict"), repeat=5, number=_CHECKS
    )
    return f"keys: the decision alone {min(seconds) / _CHECKS * 1e6:.2f} us, the best of 5\n"


def _rates_alone() -> str:
    rates = ClientRates(RateLimits(1e9, 1e9, 10), table_in_memory(), Metrics())
    seconds = timeit.repeat(
        lambda: rates.admit("address 192.0.2.1").charge_images(1), repeat=5, number=_CHECKS
    )
    return f"rates: the decision alone {min(seconds) / _CHECKS * 1e6:.2f} us, the best of 5\n"


def main(names: list[str]) -> None:
    """Print what each feature costs: the median of the ratios with it and without."""
    with tempfile.TemporaryDirectory() as folder:
        every = features(Path(folder))
        unknown = set(names) - set(every)
        if unknown:
            sys.exit(f"There is no feature {unknown.pop()!r}; there is {', '.join(every)}.")
        sys.stdout.write(f"{describe_machine()}\n")
        alone = {"keys": lambda: _keys_alone(every["keys"]), "rates": _rates_alone}
        for name in names or every:
            if name in alone:
                sys.stdout.write(alone[name]())
            with ExitStack() as stack:
                plain, featured = (
                    stack.enter_context(_service(_MODELS_FOLDER, each))
                    for each in (NOTHING, every[name])
                )
                for route in _ROUTES:
                    sys.stdout.write(_compare(plain, featured, name, route))
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
