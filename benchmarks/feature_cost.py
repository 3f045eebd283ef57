"""What features at the edge cost in processor time: `python -m benchmarks.feature_cost [NAME …]`.

Two services answer the same requests in turns, one with the feature and one without it. What is
compared is the processor time of each process for a request, which other programs disturb less than
they disturb its duration; all that it does between two turns is included, since the traffic log and
the feedback are written after the responses. Two services without any feature (`nothing`) show what
the method resolves. Takes about half a minute for each feature.
"""

import statistics
import sys
import tempfile
import timeit
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from benchmarks.features import NOTHING, Feature, features
from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.processor_time import KeptConnection, connected, picture, seconds_from_turn_to_turn
from service.http.client_rate_limits import ClientRates, RateLimits
from service.http.rate_table_of_all_workers import table_in_memory
from service.keys.access_control import AccessControl
from service.keys.key_ring import KeyRing
from service.observability.metrics_recorder import Metrics

_TURNS, _REQUESTS = 20, 100
_MODELS_FOLDER = Path("models")
_ROUTES = ("/predict", "/uncertainty")
_CHECKS = 100_000
_WITHOUT, _WITH = "without", "with"


def _compare(services: Mapping[str, KeptConnection], name: str, route: str) -> str:
    """Measure a route in turns, and return a line about it."""
    turns = seconds_from_turn_to_turn(
        {each: service.processor_seconds for each, service in services.items()},
        lambda each: services[each].post(route, "image/png", picture(), _REQUESTS),
        _TURNS,
    )
    costs = ", ".join(
        f"{1e6 / _REQUESTS * statistics.median(turn[each] for turn in turns):.1f} us {each}"
        for each in services
    )
    ratio = statistics.median(turn[_WITH] / turn[_WITHOUT] for turn in turns)
    return (
        f"{name}: POST {route} {costs}; "
        f"median ratio of {_TURNS} turns of {_REQUESTS} requests {ratio:.3f}\n"
    )


def _service(feature: Feature) -> AbstractContextManager[KeptConnection]:
    options = ("--control", "nobody", *feature.options)
    return connected(_MODELS_FOLDER, *options, headers=feature.headers)


def _keys_alone(feature: Feature) -> str:
    metrics = Metrics()
    access = AccessControl(KeyRing(Path(feature.options[-1]), metrics), metrics)
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
    end_like_ctrl_c()
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
                services = {
                    which: stack.enter_context(_service(feature))
                    for which, feature in ((_WITHOUT, NOTHING), (_WITH, every[name]))
                }
                for route in _ROUTES:
                    sys.stdout.write(_compare(services, name, route))
                    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
