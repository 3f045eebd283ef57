"""Tests that the metrics in a report are those of the predictions that the server gives."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from tests.pictures import encode, instances
from tests.service.process import service_process
from tests.service.serving import predictions
from training.data.dataset import Split

IMAGES_PER_REQUEST = 60


def predict_all(client: httpx.Client, route: str, held_out: Split) -> list[Any]:
    """Return the predictions of a route for every held-out digit, sent as PNG files in JSON."""
    collected = []
    for start in range(0, len(held_out), IMAGES_PER_REQUEST):
        images = held_out.images[start : start + IMAGES_PER_REQUEST, 0]
        body = instances([encode(image) for image in images])
        headers = {"Content-Type": "application/json"}
        collected += predictions(client.post(route, content=body, headers=headers))
    return collected


def accuracy(served: list[Any], held_out: Split) -> float:
    labels = np.array([int(prediction["label"]) for prediction in served])
    return float((labels == held_out.labels).mean())


def negative_log_likelihood(served: list[Any], held_out: Split) -> float:
    true_class = [
        prediction["probabilities"][str(label)]
        for prediction, label in zip(served, held_out.labels, strict=True)
    ]
    return float(-np.log(true_class).mean())


def test_served_predictions_have_the_metrics_of_the_report(
    models_folder: Path, bundle_folder: Path, held_out: Split
) -> None:
    measured = orjson.loads((bundle_folder / "manifest.json").read_bytes())["metrics"]["test"]
    with service_process(models_folder) as service, service.client() as client:
        plain = predict_all(client, "/predict", held_out)
        sampled = predict_all(client, "/uncertainty", held_out)
        (summary,) = client.get("/models").json()["models"]
    assert len(plain) == len(sampled) == measured["images"] == len(held_out)
    assert accuracy(plain, held_out) == measured["accuracy"] == summary["test_accuracy"]
    assert accuracy(sampled, held_out) == measured["mc_dropout"]["accuracy"]
    assert measured["accuracy"] > 0.9, "8 epochs are enough to learn the digits"
    for served, metrics in ((plain, measured), (sampled, measured["mc_dropout"])):
        loss = negative_log_likelihood(served, held_out)
        np.testing.assert_allclose(loss, metrics["nll"], rtol=1e-12)
