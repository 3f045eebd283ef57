"""The same image, bundle, samples and seed give the same bytes: alone and in any batch.

Other workers, other numbers of threads and a restart are tested in test_workers.py.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.pictures import Pixels, encode, instances
from tests.service.serving import (
    JSON,
    MAX_SAMPLES,
    PNG,
    Application,
    BlockingPredictor,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)

ROUTES = [
    "/predict",
    "/uncertainty",
    "/uncertainty?samples=37&seed=3",
    "/uncertainty?samples=auto&seed=1",
    "/uncertainty?samples=auto&seed=1&per_sample=true",
    "/uncertainty?per_sample=true",
    "/uncertainty?method=analytic",
]


@pytest.mark.parametrize("route", ROUTES)
def test_repeated_request_gets_the_same_bytes(
    service: Application, digit: Pixels, route: str
) -> None:
    answers = {service.post(route, encode(digit), headers=PNG).content for _ in range(5)}
    assert len(answers) == 1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_prediction_is_the_same_at_every_position_of_a_batch(
    service: Application, digits: Pixels, route: str, size: int
) -> None:
    (alone,) = predictions(service.post(route, encode(digits[0]), headers=PNG))
    for position in range(size):
        batch = [encode(digits[each]) for each in range(1, size)]
        batch.insert(position, encode(digits[0]))
        assert predictions(service.post(route, instances(batch), headers=JSON))[position] == alone


def test_requests_in_one_inference_run_get_the_same_bytes_as_alone(
    models_folder: Path, service: Application, digits: Pixels
) -> None:
    """All requests but the first wait while it runs, and are then run as one batch."""
    requests = [(route, encode(digit)) for digit in digits[1:10] for route in ROUTES]
    alone = [service.post(route, body, headers=PNG).content for route, body in requests]
    held = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, held, max_samples=MAX_SAMPLES) as together:
        first = together.submit("POST", "/predict", content=encode(digits[0]), headers=PNG)
        held.wait_until_running()
        answers = [
            together.submit("POST", route, content=body, headers=PNG) for route, body in requests
        ]
        while together.metric("dropserve_queue_rows", model="digits") < len(requests):
            pass  # the other requests are being decoded
        held.released.set()
        assert [answer.result().content for answer in answers] == alone
        assert predictions(first.result())
    assert held.runs == [1, len(requests)]


def test_concurrent_requests_get_the_same_bytes_as_alone(
    models_folder: Path, digits: Pixels
) -> None:
    """A hundred requests in a seeded order, batched as they arrive."""
    generator = np.random.default_rng(0)
    with serving_models(models_folder, max_batch_rows=16) as service:
        requests = []
        for _ in range(100):
            rows = generator.integers(0, len(digits), generator.integers(1, 6))
            route = f"/uncertainty?samples=16&seed={generator.integers(3)}"
            route = route if generator.random() < 0.5 else "/predict"
            requests.append((route, instances([encode(digits[row]) for row in rows])))
        futures = [
            service.submit("POST", route, content=body, headers=JSON) for route, body in requests
        ]
        together = [answer.result().content for answer in futures]
        runs = service.metric("dropserve_batch_rows_count", model="digits")
        alone = [service.post(route, body, headers=JSON).content for route, body in requests]
    assert together == alone
    assert runs < len(requests), "nothing was batched"
    assert len(set(together)) > 90, "the responses do not differ between requests"
