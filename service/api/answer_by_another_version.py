"""Answers images by any version as a noted request was answered: for replays and shadows.

It is the code that serves; drift tests do not see these images, which are no new traffic.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.api.open_inference_tensors import InferOptions, ModelEndpoint
from service.api.record_answer_for_log_shadow_feedback import NATIVE_ROUTES, rows_of_outputs
from service.api.response_builders import deterministic_predictions, uncertain_predictions
from service.engine.model_loader import LoadedModel
from service.traffic_log.traffic_record import Row, Subject, TrafficOptions

Floats = NDArray[np.float32]


async def answer_as_noted(model: LoadedModel, subject: Subject) -> Sequence[Row]:
    """Answer the images of a subject, float32 [N, C, H, W], as its route and options say.

    Raises:
        DropserveError: the version cannot be sampled like this, or has too much to do.
    """
    if subject.route in NATIVE_ROUTES:
        return await _answer_native(model, subject.images, subject.options)
    return await _answer_as_tensors(model, subject.images, subject.options)


async def _answer_native(
    model: LoadedModel, images: Floats, options: TrafficOptions | None
) -> Sequence[Row]:
    batcher, calibrator = model.batcher, model.calibrator
    names = model.bundle.manifest.class_names
    if options is None:
        return deterministic_predictions(await batcher.predict(images), names)
    uncertainty = await batcher.uncertainty(images, options.sampling)
    decisions = None
    if calibrator is not None and options.coverage is not None and options.sets is not None:
        decisions = calibrator.decide(
            uncertainty, options.coverage, options.sets, options.max_risk, options.max_false_alarm
        )
    return uncertain_predictions(uncertainty, names, decisions, options.sampling)


async def _answer_as_tensors(
    model: LoadedModel, images: Floats, options: TrafficOptions | None
) -> Sequence[Row]:
    endpoint = ModelEndpoint(dataclasses.replace(model, drift=None), options is not None)
    asked = None
    if options is not None:
        asked = InferOptions(options.sampling, options.max_risk, options.max_false_alarm)
    outputs = await endpoint.infer(images, asked, None)
    return rows_of_outputs(outputs, model.bundle.manifest.class_names)
