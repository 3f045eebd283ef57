"""Tests of occluded copies that run in parts."""

import asyncio

import numpy as np

from model.images.occlusion import OcclusionGrid, occluded
from model.inference.prediction import Prediction
from service.engine.batcher import Batcher, Limits
from service.engine.occlusion_runs import predict_occluded
from service.observability.metrics_recorder import Metrics
from tests.service.engine.test_batcher import EchoPredictor
from tests.service.serving import BlockingPredictor, Floats

ROOMY = Limits(batch_rows=64, queue_rows=1024, timeout_seconds=60)


class MeanPredictor(EchoPredictor):
    """Its logits are the mean of each image, and 0."""

    def predict(self, images: Floats) -> Prediction:
        means = images.mean(axis=(1, 2, 3))
        logits = np.stack([means, np.zeros_like(means)], axis=1)
        return Prediction(logits, logits, (logits, logits.argmax(axis=1)))


def test_copies_of_a_large_image_run_in_parts_between_which_other_requests_run() -> None:
    image = np.random.default_rng(0).random((3, 500, 500), dtype=np.float32)
    grid = OcclusionGrid.of(500, 500, 3, 200)

    async def scenario() -> None:
        held = BlockingPredictor(MeanPredictor())
        queue = Batcher("mean", held, ROOMY, Metrics())
        mapping = asyncio.create_task(predict_occluded(queue, image, grid, 60))
        await asyncio.to_thread(held.wait_until_running)
        other = asyncio.create_task(queue.predict(image[np.newaxis][[0] * 5]))
        await asyncio.sleep(0)  # it is queued now
        held.released.set()
        await other
        assert held.runs[:2] == [3, 5], "the other request waited for the whole map"
        probabilities = await mapping
        assert held.runs == [3, 5, 2, 2, 2, 1]
        images = np.concatenate([image[np.newaxis], occluded(image, grid, 0, 9)])
        np.testing.assert_array_equal(probabilities, MeanPredictor().predict(images).probabilities)
        await queue.close()

    asyncio.run(scenario())
