"""Dropout alive as people write it: FastAPI, a torch module, 100 passes through all of it.

The network is the bundle's, built by our own `training.network.classifier`; its weights are random, since a
bundle holds none that torch reads. They cost the same.
"""

import os

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import nn

from model.bundle.architecture import Architecture
from training.network.classifier import build

PASSES = 100

app = FastAPI()
torch.set_num_threads(1)
shape = tuple(map(int, os.environ["BENCHMARK_SHAPE"].split(",")))
network = build(Architecture.model_validate_json(os.environ["BENCHMARK_ARCHITECTURE"])).eval()
for module in network.modules():
    if isinstance(module, nn.Dropout):
        module.train()


class Features(BaseModel):
    """What a request holds."""

    image: list[float]


@app.post("/predict")
def predict(features: Features) -> dict[str, list[float]]:
    """Flat numbers -> means and standard deviations over the passes."""
    image = torch.tensor(features.image).reshape(1, *shape)
    with torch.no_grad():
        passes = torch.stack([network(image).softmax(dim=-1)[0] for _ in range(PASSES)])
    return {"probabilities": passes.mean(dim=0).tolist(), "std": passes.std(dim=0).tolist()}


uvicorn.run(app, port=int(os.environ["BENCHMARK_PORT"]))
