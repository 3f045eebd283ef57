from collections.abc import Callable
from math import log
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.api import schemas
from service.sandbox.sandboxed_image_reader import IMAGE_TYPES
from tests.pictures import Pixels, encode, encode_16_bits, form, instances, numbers
from tests.service.serving import (
    JSON,
    MAX_SAMPLES,
    PNG,
    Application,
    check_error,
    predictions,
    serving_models,
)
from training.data.dataset import Split

Send = Callable[[Application, str, Pixels], httpx.Response]


def _as_numbers(service: Application, route: str, pixels: Pixels) -> httpx.Response:
    return service.post(route, instances([numbers(image) for image in pixels]), headers=JSON)


def _as_numbers_with_channels(service: Application, route: str, pixels: Pixels) -> httpx.Response:
    return service.post(
        route, instances([numbers(image[..., None]) for image in pixels]), headers=JSON
    )


def _as_base64(service: Application, route: str, pixels: Pixels) -> httpx.Response:
    return service.post(route, instances([encode(image) for image in pixels]), headers=JSON)


def _as_mixture(service: Application, route: str, pixels: Pixels) -> httpx.Response:
    mixed = [numbers(image) if row % 2 else encode(image) for row, image in enumerate(pixels)]
    return service.post(route, instances(mixed), headers=JSON)


def _as_form(service: Application, route: str, pixels: Pixels) -> httpx.Response:
    return service.post(route, files=form(*map(encode, pixels)))


@pytest.mark.parametrize(
    "headers",
    [
        b"name=\"file\"; filename*=utf-8''%D1%84.png",
        b"name=file; filename*=UTF-8'en'a.png",
        'name="file"; filename="ф 🐈.png"'.encode(),
        b'name="file"; filename="\xff.png"',
        b'name="file"; filename=""',
        b'name="file"\r\nContent-Type: image/png',
        b'name="file"\r\ncontent-type: Application/Octet-Stream',
    ],
)
def test_form_takes_files_of_any_name_or_none(
    service: Application, digit: Pixels, headers: bytes
) -> None:
    part = b"--XyZ\r\nContent-Disposition: form-data; " + headers + b"\r\n\r\n" + encode(digit)
    kind = {"Content-Type": "multipart/form-data; boundary=XyZ"}
    answer = service.post("/predict", part + b"\r\n--XyZ--\r\n", headers=kind)
    assert predictions(answer) == predictions(_as_form(service, "/predict", digit[None]))


@pytest.mark.parametrize("route", ["/predict", "/uncertainty"])
@pytest.mark.parametrize(
    "send", [_as_numbers, _as_numbers_with_channels, _as_base64, _as_mixture, _as_form]
)
def test_predictions_are_the_same_for_every_content_type(
    service: Application, digits: Pixels, route: str, send: Send
) -> None:
    alone = [predictions(service.post(route, encode(image), headers=PNG)) for image in digits[:3]]
    together = predictions(send(service, route, digits[:3]))
    assert together == [answer for answers in alone for answer in answers]


def test_predict_returns_the_documented_schema(service: Application, digits: Pixels) -> None:
    response = _as_base64(service, "/predict", digits[:4])
    answer = schemas.Predictions.model_validate_json(response.content)
    assert response.headers["Content-Type"] == "application/json"
    assert (answer.model, answer.version, len(answer.predictions)) == ("digits", "1", 4)
    for each in answer.predictions:
        assert list(each.probabilities) == list("0123456789")
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert each.confidence == each.probabilities[each.label] == max(each.probabilities.values())


def test_uncertainty_returns_the_documented_schema(service: Application, digits: Pixels) -> None:
    response = _as_base64(service, "/uncertainty", digits[:8])
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    described = (answer.model, answer.version, answer.method, answer.samples, answer.seed)
    assert described == ("digits", "1", "mc_dropout", 64, 0)
    assert all("samples_used" not in each.model_fields_set for each in answer.predictions)
    assert len(answer.predictions) == 8
    for each in answer.predictions:
        for by_class in (each.probabilities, each.probability_std, each.standard_error):
            assert list(by_class) == list("0123456789")
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert each.confidence == each.probabilities[each.label] == max(each.probabilities.values())


def test_uncertainty_values_satisfy_their_definitions(service: Application, digits: Pixels) -> None:
    answers = predictions(_as_base64(service, "/uncertainty?samples=16", digits[:8]))
    for each in answers:
        entropy, expected = each["predictive_entropy"], each["expected_entropy"]
        assert each["mutual_information"] == pytest.approx(entropy - expected, abs=1e-12)
        assert 0 <= each["mutual_information"] <= entropy <= log(10)
        assert each["variation_ratio"] * 16 == int(each["variation_ratio"] * 16)
        for name, deviation in each["probability_std"].items():
            # The bound is equal for independent samples; both values were computed as float32.
            assert each["standard_error"][name] >= deviation / 15**0.5 * (1 - 1e-6)
        assert each["mutual_information_error"] >= 0
        assert max(each["probability_std"].values()) > 0, "dropout is not active"


@pytest.mark.parametrize("samples", [64, 1, "auto"])
def test_per_sample_adds_the_samples_and_their_votes_and_changes_nothing_else(
    service: Application, digits: Pixels, samples: int | str
) -> None:
    route = f"/uncertainty?samples={samples}"
    answers = predictions(_as_base64(service, f"{route}&per_sample=true", digits[:8]))
    without = predictions(_as_base64(service, route, digits[:8]))
    assert without == predictions(_as_base64(service, f"{route}&per_sample=false", digits[:8]))
    for each, plain in zip(answers, without, strict=True):
        by_class, votes = each.pop("sample_probabilities"), each.pop("votes")
        assert each == plain
        assert list(by_class) == list(votes) == list("0123456789")
        count = each["samples_used"] if samples == "auto" else samples
        assert {len(probabilities) for probabilities in by_class.values()} == {count}
        assert sum(votes.values()) == count
        for name, probabilities in by_class.items():
            assert np.mean(probabilities) == pytest.approx(each["probabilities"][name], abs=1e-6)
            assert np.std(probabilities) == pytest.approx(each["probability_std"][name], abs=1e-6)
        others = count - votes[each["label"]]
        assert others == pytest.approx(each["variation_ratio"] * count, abs=1e-4)


def test_per_sample_returns_the_documented_schema(service: Application, digits: Pixels) -> None:
    response = _as_base64(service, "/uncertainty?per_sample=true", digits[:2])
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    assert all(each.votes and each.sample_probabilities for each in answer.predictions)


def test_per_sample_is_refused_where_the_response_would_be_huge(
    models_folder: Path, digits: Pixels
) -> None:
    with serving_models(models_folder, max_samples=40_000) as large:
        check_error(
            _as_base64(large, "/uncertainty?per_sample=true&samples=6000", digits[:5]),
            413,
            "too_costly",
            "Parameter 'per_sample': 5 x 6000 x 10 probabilities (images x samples x classes) are "
            "more than the 262,144 of one response; draw at most 5242 samples.",
        )
        check_error(
            _as_base64(large, "/uncertainty?per_sample=true&samples=auto", digits[:1]),
            413,
            "too_costly",
            "Parameter 'per_sample': 1 x 40000 x 10 probabilities (images x most samples x "
            "classes) are more than the 262,144 of one response; draw at most 26214 samples.",
        )


def test_uncertainty_of_one_sample_has_no_standard_error(
    service: Application, digit: Pixels
) -> None:
    response = service.post("/uncertainty?samples=1", encode(digit), headers=PNG)
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    (each,) = answer.predictions
    assert set(each.standard_error.values()) == {None}
    assert set(each.probability_std.values()) == {0.0}
    assert each.mutual_information == 0
    assert each.mutual_information_error is None


def test_adaptive_sampling_stops_once_the_labels_are_decided(
    service: Application, digits: Pixels
) -> None:
    response = _as_base64(service, "/uncertainty?samples=auto&seed=2", digits[:8])
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    assert (answer.samples, answer.seed) == ("auto", 2)
    used = [each.samples_used for each in answer.predictions]
    assert set(used) <= {16, 32, 64, 128, 256, 512}
    assert set(used) != {MAX_SAMPLES}, "no digit is clear"
    assert {each.stopped_because for each in answer.predictions} <= {"settled", "maximum"}


def test_adaptive_sampling_stops_at_the_maximum(models_folder: Path, digit: Pixels) -> None:
    with serving_models(models_folder, max_samples=4, default_samples=4) as service:
        response = service.post("/uncertainty?samples=auto", encode(digit), headers=PNG)
    (each,) = predictions(response)
    assert (each["samples_used"], each["stopped_because"]) == (4, "maximum")


def test_analytic_method_draws_no_samples(service: Application, digits: Pixels) -> None:
    response = _as_base64(service, "/uncertainty?method=analytic", digits[:8])
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    assert (answer.method, answer.samples, answer.seed) == ("analytic", None, None)
    sampled = predictions(_as_base64(service, f"/uncertainty?samples={MAX_SAMPLES}", digits[:8]))
    for each, other in zip(answer.predictions, sampled, strict=True):
        assert set(each.standard_error.values()) == {None}
        assert each.mutual_information_error is None
        assert "samples_used" not in each.model_fields_set
        for name, probability in each.probabilities.items():
            error = 5 * other["standard_error"][name] + 1e-3
            assert probability == pytest.approx(other["probabilities"][name], abs=error)


def test_design_selects_orthogonal_or_independent_masks(
    service: Application, digit: Pixels
) -> None:
    ours, named, independent = (
        predictions(service.post(f"/uncertainty{query}", encode(digit), headers=PNG))
        for query in ("", "?design=orthogonal", "?design=independent")
    )
    assert ours == named != independent


def test_uncertainty_uses_seed_and_samples_of_the_query(
    service: Application, digit: Pixels
) -> None:
    response = service.post("/uncertainty?samples=33&seed=7", encode(digit), headers=PNG)
    answer = schemas.UncertainPredictions.model_validate_json(response.content)
    assert (answer.samples, answer.seed) == (33, 7)
    other = service.post("/uncertainty?samples=33&seed=8", encode(digit), headers=PNG)
    assert predictions(other) != predictions(response)


def test_uncertainty_uses_seed_and_samples_of_the_settings_by_default(
    models_folder: Path, digit: Pixels
) -> None:
    with serving_models(models_folder, default_seed=7, default_samples=33) as service:
        unnamed = service.post("/uncertainty", encode(digit), headers=PNG)
        named = service.post("/uncertainty?seed=7&samples=33", encode(digit), headers=PNG)
    assert unnamed.content == named.content


def test_predict_and_uncertainty_accept_model_version_and_method(
    service: Application, digit: Pixels
) -> None:
    named = "?model=digits&version=1"
    plain = service.post("/predict", encode(digit), headers=PNG)
    assert service.post(f"/predict{named}", encode(digit), headers=PNG).content == plain.content
    sampled = service.post("/uncertainty", encode(digit), headers=PNG)
    named += "&method=mc_dropout"
    assert (
        service.post(f"/uncertainty{named}", encode(digit), headers=PNG).content == sampled.content
    )


def _grey_in_colour(digit: Pixels) -> Pixels:
    return np.stack([digit] * 3, axis=-1)


LOSSLESS: dict[str, tuple[str, Callable[[Pixels], bytes]]] = {
    "PNG": ("image/png", encode),
    "PNG of 16 bits": ("image/png", encode_16_bits),
    "PNG in colour": ("image/png", lambda digit: encode(_grey_in_colour(digit))),
    "PNG with alpha": ("image/png", lambda digit: encode(digit, mode="RGBA")),
    "PNG grey with alpha": ("image/png", lambda digit: encode(digit, mode="LA")),
    "PNG with a palette": ("image/png", lambda digit: encode(digit, mode="P")),
    "GIF": ("image/gif", lambda digit: encode(digit, "GIF")),
    "BMP": ("image/bmp", lambda digit: encode(digit, "BMP")),
    "BMP by its other name": ("image/x-ms-bmp", lambda digit: encode(digit, "BMP")),
    "WebP": ("image/webp", lambda digit: encode(digit, "WEBP", lossless=True)),
    "TIFF": ("image/tiff", lambda digit: encode(digit, "TIFF")),
    "TIFF, packed": ("image/tiff", lambda digit: encode(digit, "TIFF", compression="tiff_lzw")),
    "of a named type that it is not": ("image/jpeg", encode),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_predict_of_a_lossless_file_equals_that_of_its_pixels(
    service: Application, digit: Pixels, name: str
) -> None:
    media_type, encoded = LOSSLESS[name]
    response = service.post("/predict", encoded(digit), headers={"Content-Type": media_type})
    expected = service.post("/predict", instances([numbers(digit)]), headers=JSON)
    assert predictions(response) == predictions(expected)


@pytest.mark.parametrize("media_type", [each for each in IMAGE_TYPES if "hei" not in each])
def test_predict_accepts_every_documented_image_type(
    service: Application, digit: Pixels, media_type: str
) -> None:
    file_format = media_type.removeprefix("image/").upper()
    headers = {"Content-Type": f"{media_type.upper()}; charset=binary"}
    (answer,) = predictions(service.post("/predict", encode(digit, file_format), headers=headers))
    assert answer["label"] in "0123456789"


def test_predict_recognises_enlarged_jpeg_digits(service: Application, held_out: Split) -> None:
    """The digits are enlarged 5 times and sent in colour as JPEG."""
    labels, predicted = held_out.labels[:80], []
    for image in held_out.images[:80, 0]:
        large = _grey_in_colour(image.repeat(5, axis=0).repeat(5, axis=1))
        jpeg = encode(large, "JPEG", quality=95)
        (answer,) = predictions(
            service.post("/predict", jpeg, headers={"Content-Type": "image/jpeg"})
        )
        predicted.append(int(answer["label"]))
    assert (np.array(predicted) == labels).mean() > 0.8


@pytest.mark.parametrize("shape", [(1, 1), (8, 40), (40, 8), (100, 100)])
def test_predict_resizes_images_of_any_size(service: Application, shape: tuple[int, int]) -> None:
    blank = np.zeros(shape, np.uint8)
    answer = predictions(service.post("/predict", encode(blank), headers=PNG))
    black = np.zeros((8, 8), np.uint8)
    assert answer == predictions(service.post("/predict", encode(black), headers=PNG))


def test_uncertainty_is_404_if_it_is_disabled_and_predict_still_works(
    models_folder: Path, digit: Pixels
) -> None:
    with serving_models(models_folder, uncertainty=False) as service:
        response = service.post("/uncertainty", encode(digit), headers=PNG)
        paths = service.get("/openapi.json").json()["paths"]
        assert predictions(service.post("/predict", encode(digit), headers=PNG))
    sentence = "POST /uncertainty is switched off on this server; use /predict, or start it …"
    check_error(response, 404, "uncertainty_disabled", sentence)
    assert "/uncertainty" not in paths
    assert "/predict" in paths
