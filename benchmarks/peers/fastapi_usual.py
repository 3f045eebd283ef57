"""The graph behind a usual FastAPI program: a list of floats, a plain function, all defaults.

Nothing is tuned: the access log is on, the response is a dict, the graph runs on a thread.
"""

import os

import uvicorn
from classifier import Classifier
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel

app = FastAPI()
classify = Classifier()


class Features(BaseModel):
    """The body of a request."""

    image: list[float]


@app.post("/predict")
def predict(features: Features) -> dict[str, list[float]]:
    """Classify flat numbers."""
    return {"probabilities": classify(classify.image(features.image))[0].tolist()}


@app.post("/png")
async def png(file: UploadFile) -> dict[str, list[float]]:
    """Classify an encoded file in a form."""
    return {"probabilities": classify(classify.decode(await file.read()))[0].tolist()}


uvicorn.run(app, port=int(os.environ["BENCHMARK_PORT"]))
