"""From a data set to a served prediction: what the report says is what the server does."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from tests.pictures import encode, instances
from tests.service.process import service_process
from tests.service.serving import predictions
from training.data.dataset import Split

IMAGES_A_REQUEST = 60


def answers(client: httpx.Client, route: str, held_out: Split) -> list[Any]:
    """Ask for every held-out digit, as PNG files in JSON, some at a time."""
    found = []
    for start in range(0, len(held_out), IMAGES_A_REQUEST):
        images = held_out.images[start : start + IMAGES_A_REQUEST, 0]
        body = instances([encode(image) for image in images])
        headers = {"Content-Type": "application/json"}
        found += predictions(client.post(route, content=body, headers=headers))
    return found


def accuracy(found: list[Any], held_out: Split) -> float:
    labels = np.array([int(answer["label"]) for answer in found])
    return float((labels == held_out.labels).mean())


def negative_log_likelihood(found: list[Any], held_out: Split) -> float:
    right = [
        answer["probabilities"][str(label)]
        for answer, label in zip(found, held_out.labels, strict=True)
    ]
    return float(-np.log(right).mean())


def test_what_the_report_says_is_what_the_server_does(
    models_folder: Path, bundle_folder: Path, held_out: Split
) -> None:
    measured = orjson.loads((bundle_folder / "manifest.json").read_bytes())["metrics"]["test"]
    with service_process(models_folder) as service, service.client() as client:
        plain = answers(client, "/predict", held_out)
        sampled = answers(client, "/uncertainty", held_out)
        (summary,) = client.get("/models").json()["models"]
    assert len(plain) == len(sampled) == measured["images"] == len(held_out)
    assert accuracy(plain, held_out) == measured["accuracy"] == summary["test_accuracy"]
    assert accuracy(sampled, held_out) == measured["mc_dropout"]["accuracy"]
    assert measured["accuracy"] > 0.9, "8 epochs have taught it something"
    for found, figures in ((plain, measured), (sampled, measured["mc_dropout"])):
        loss = negative_log_likelihood(found, held_out)
        np.testing.assert_allclose(loss, figures["nll"], rtol=1e-12)
