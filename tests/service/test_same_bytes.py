"""The same image, bundle, samples and seed give the same bytes: alone, in any batch, among others.

Other workers, other numbers of threads and a restart are in test_workers.py.
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
    HeldPredictor,
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
    "/uncertainty?method=analytic",
]


@pytest.mark.parametrize("route", ROUTES)
def test_an_answer_is_repeated_byte_for_byte(
    service: Application, digit: Pixels, route: str
) -> None:
    answers = {service.post(route, encode(digit), headers=PNG).content for _ in range(5)}
    assert len(answers) == 1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_an_image_is_answered_the_same_at_every_place_of_a_batch(
    service: Application, digits: Pixels, route: str, size: int
) -> None:
    (alone,) = predictions(service.post(route, encode(digits[0]), headers=PNG))
    for place in range(size):
        batch = [encode(digits[each]) for each in range(1, size)]
        batch.insert(place, encode(digits[0]))
        assert predictions(service.post(route, instances(batch), headers=JSON))[place] == alone


def test_requests_that_share_a_run_get_the_bytes_they_would_get_alone(
    models_folder: Path, service: Application, digits: Pixels
) -> None:
    """Forced: all but the first wait while it runs, and then go together."""
    asked = [(route, encode(digit)) for digit in digits[1:13] for route in ROUTES]
    alone = [service.post(route, body, headers=PNG).content for route, body in asked]
    held = HeldPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, held, max_samples=MAX_SAMPLES) as together:
        first = together.submit("POST", "/predict", content=encode(digits[0]), headers=PNG)
        held.wait_until_running()
        answers = [
            together.submit("POST", route, content=body, headers=PNG) for route, body in asked
        ]
        while together.metric("dropserve_queue_rows", model="digits") < len(asked):
            pass  # the others are being decoded
        held.permission.set()
        assert [answer.result().content for answer in answers] == alone
        assert predictions(first.result())
    assert held.runs == [1, len(asked)]


def test_whatever_is_asked_at_once_everyone_gets_the_bytes_they_would_get_alone(
    models_folder: Path, digits: Pixels
) -> None:
    """Unforced: a hundred requests in a seeded order, batched as it comes."""
    generator = np.random.default_rng(0)
    with serving_models(models_folder, max_batch_rows=16) as service:
        asked = []
        for _ in range(100):
            rows = generator.integers(0, len(digits), generator.integers(1, 6))
            route = f"/uncertainty?samples=16&seed={generator.integers(3)}"
            route = route if generator.random() < 0.5 else "/predict"
            asked.append((route, instances([encode(digits[row]) for row in rows])))
        pending = [
            service.submit("POST", route, content=body, headers=JSON) for route, body in asked
        ]
        together = [answer.result().content for answer in pending]
        runs = service.metric("dropserve_batch_rows_count", model="digits")
        alone = [service.post(route, body, headers=JSON).content for route, body in asked]
    assert together == alone
    assert runs < len(asked), "nothing was batched"
    assert len(set(together)) > 90, "the requests cannot be told apart"
