"""POST /predict and POST /uncertainty."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from model.predictor import Prediction
from model.sampling import Analytic, Auto, Fixed, Sampling
from model.uncertainty import Uncertainty
from service import schemas
from service.errors import InvalidQueryError, UncertaintyDisabledError
from service.images import FORM_TYPE, IMAGE_TYPES, JSON_TYPE, ImageReader
from service.metrics import Metrics
from service.repository import Repository
from service.routes import json_response
from service.settings import ServiceSettings

_FILES = {
    "type": "object",
    "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    },
    "required": ["file"],
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON_TYPE: {"schema": schemas.Instances.model_json_schema()},
            FORM_TYPE: {"schema": _FILES},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
        },
    }
}
_ERRORS = schemas.error_responses(400, 404, 408, 413, 415, 500, 503, 504)


def router(
    settings: ServiceSettings, repository: Repository, reader: ImageReader, metrics: Metrics
) -> APIRouter:
    """Build both routes, or the first alone where uncertainty is switched off."""
    routes = APIRouter(tags=["predictions"])

    @routes.post(
        "/predict",
        summary="Classify images",
        response_model=schemas.Predictions,
        responses=_ERRORS,
        openapi_extra=_BODY,
    )
    async def predict(request: Request, query: Annotated[schemas.ModelQuery, Query()]) -> Response:
        served = repository.get(query.model, query.version)
        manifest = served.bundle.manifest
        images = await reader.read(request, manifest.input)
        prediction = await served.batcher.predict(images)
        return json_response(
            {
                "model": manifest.name,
                "version": served.version,
                "predictions": _predictions(prediction, manifest.class_names),
            }
        )

    async def uncertainty(
        request: Request, query: Annotated[schemas.UncertaintyQuery, Query()]
    ) -> Response:
        served = repository.get(query.model, query.version)
        sampling = _sampling(query, settings)
        manifest = served.bundle.manifest
        images = await reader.read(request, manifest.input)
        answer = await served.batcher.uncertainty(images, sampling)
        _observe(answer, manifest.name, metrics)
        return json_response(
            {
                "model": manifest.name,
                "version": served.version,
                "method": query.method,
                **_drawn(sampling),
                "predictions": _uncertain_predictions(answer, manifest.class_names, sampling),
            }
        )

    async def disabled(request: Request) -> Response:
        raise UncertaintyDisabledError(
            "POST /uncertainty is switched off on this server; use /predict, or start it without "
            "--no-uncertainty."
        )

    if settings.uncertainty:
        routes.post(
            "/uncertainty",
            summary="Classify images and say how sure each answer is",
            response_model=schemas.UncertainPredictions,
            responses=_ERRORS,
            openapi_extra=_BODY,
        )(uncertainty)
    else:
        routes.post("/uncertainty", include_in_schema=False)(disabled)
    return routes


def _sampling(query: schemas.UncertaintyQuery, settings: ServiceSettings) -> Sampling:
    if query.method == "analytic":
        _refuse(query, ("samples", "seed", "design"), "method=analytic draws no samples")
        return Analytic()
    seed = settings.default_seed if query.seed is None else query.seed
    if query.samples == "auto":
        _refuse(query, ("design",), "samples=auto draws masks in independent pairs")
        return Auto(seed, settings.max_samples)
    samples = settings.default_samples if query.samples is None else query.samples
    if samples > settings.max_samples:
        raise InvalidQueryError(
            f"Query parameter 'samples': at most {settings.max_samples} are drawn here, "
            f"but got {samples}."
        )
    return Fixed(seed, samples, query.design or "orthogonal")


def _refuse(query: schemas.UncertaintyQuery, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(query, name) is not None:
            raise InvalidQueryError(f"Query parameter {name!r}: {reason}; leave it out.")


def _drawn(sampling: Sampling) -> dict[str, Any]:
    match sampling:
        case Fixed(seed, samples):
            return {"samples": samples, "seed": seed}
        case Auto(seed):
            return {"samples": "auto", "seed": seed}
        case Analytic():
            return {"samples": None, "seed": None}


def _observe(answer: Uncertainty, model: str, metrics: Metrics) -> None:
    entropy = metrics.predictive_entropy.labels(model)
    information = metrics.mutual_information.labels(model)
    for row in range(len(answer.labels)):
        entropy.observe(answer.predictive_entropy[row])
        information.observe(answer.mutual_information[row])


def _predictions(answer: Prediction, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "label": class_names[row.argmax()],
            "confidence": float(row.max()),
            "probabilities": dict(zip(class_names, row.tolist(), strict=True)),
        }
        for row in answer.probabilities
    ]


def _uncertain_predictions(
    answer: Uncertainty, class_names: tuple[str, ...], sampling: Sampling
) -> list[dict[str, Any]]:
    """List the predictions as they go over the wire, where NaN becomes null."""

    def by_class(values: Any) -> dict[str, float]:
        return dict(zip(class_names, values.tolist(), strict=True))

    return [
        {
            "label": class_names[label],
            "confidence": float(answer.mean_probabilities[row, label]),
            "probabilities": by_class(answer.mean_probabilities[row]),
            "probability_std": by_class(answer.probability_std[row]),
            "standard_error": by_class(answer.standard_error[row]),
            "predictive_entropy": float(answer.predictive_entropy[row]),
            "expected_entropy": float(answer.expected_entropy[row]),
            "mutual_information": float(answer.mutual_information[row]),
            "mutual_information_error": float(answer.mutual_information_error[row]),
            "variation_ratio": float(answer.variation_ratio[row]),
            **(_stopped(answer, row) if isinstance(sampling, Auto) else {}),
        }
        for row, label in enumerate(answer.labels)
    ]


def _stopped(answer: Uncertainty, row: int) -> dict[str, Any]:
    return {
        "samples_used": int(answer.samples_used[row]),
        "stopped_because": "settled" if answer.settled[row] else "maximum",
    }
