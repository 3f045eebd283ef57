"""MC dropout as it is usually written: FastAPI and 100 passes through a whole torch module.

The architecture is the bundle's, built by `training.network.classifier`. The weights are random,
since torch cannot read those of a bundle; they cost the same time. The access log is on.
"""

import os

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import nn

from model.bundle.architecture_description import Architecture
from training.network.classifier import build_classifier

PASSES = 100

app = FastAPI()
torch.set_num_threads(1)
shape = tuple(map(int, os.environ["BENCHMARK_SHAPE"].split(",")))
architecture = Architecture.model_validate_json(os.environ["BENCHMARK_ARCHITECTURE"])
network = build_classifier(architecture).eval()
for module in network.modules():
    if isinstance(module, nn.Dropout):
        module.train()


class Features(BaseModel):
    """The body of a request."""

    image: list[float]


@app.post("/predict")
def predict(features: Features) -> dict[str, list[float]]:
    """Return the mean and standard deviation of the probabilities over the passes."""
    image = torch.tensor(features.image).reshape(1, *shape)
    with torch.no_grad():
        passes = torch.stack([network(image).softmax(dim=-1)[0] for _ in range(PASSES)])
    return {"probabilities": passes.mean(dim=0).tolist(), "std": passes.std(dim=0).tolist()}


uvicorn.run(app, port=int(os.environ["BENCHMARK_PORT"]))
