"""The graph behind FastAPI as people write it: a list of floats, a plain function, the defaults.

Nothing is tuned: the access log is on, the answer is a dict, the graph runs on a thread.
"""

import os

import uvicorn
from classifier import Classifier
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel

app = FastAPI()
classify = Classifier()


class Features(BaseModel):
    """What a request holds."""

    image: list[float]


@app.post("/predict")
def predict(features: Features) -> dict[str, list[float]]:
    """Flat numbers."""
    return {"probabilities": classify(classify.image(features.image))[0].tolist()}


@app.post("/png")
async def png(file: UploadFile) -> dict[str, list[float]]:
    """An encoded file in a form."""
    return {"probabilities": classify(classify.decoded(await file.read()))[0].tolist()}


uvicorn.run(app, port=int(os.environ["BENCHMARK_PORT"]))
