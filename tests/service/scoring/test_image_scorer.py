"""The figures of the scorer are those of POST /uncertainty, in the text of each number."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.errors import DropserveError
from service.errors import BodyTooCostlyError
from service.sandbox.sandboxed_image_reader import ImageReader
from service.scoring.image_file import ImageReference
from service.scoring.image_scorer import ImageScorer
from service.scoring.result_lines import FIGURES, STOPPING_FIGURES
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import ScoredBatch
from tests.bundles import copy_bundle, edit_manifest
from tests.pictures import Pixels, bomb, encode
from tests.service.serving import MAX_SAMPLES, PNG, Application

QUERIES: list[dict[str, Any]] = [
    {},
    {"samples": 37, "seed": 3, "coverage": 0.99, "max_risk": 0.001, "max_false_alarm": 0.3},
    {"samples": 1, "design": "independent", "sets": "aps"},
    {"method": "analytic", "sets": "class-conditional"},
]


@pytest.fixture(scope="module")
def pictures(
    digits: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[ImageReference, bytes]]:
    """Images in several formats and sizes: those that are decoded inline, and one that is not."""
    large = np.kron(digits[7], np.ones((20, 20), np.uint8))
    files = {f"{number}.png": encode(digits[number]) for number in range(5)} | {
        "colour.jpg": encode(np.stack([digits[5]] * 3, axis=-1), "JPEG"),
        "large.png": encode(large),
        "small.gif": encode(digits[6], "GIF"),
    }
    folder = tmp_path_factory.mktemp("pictures")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: (ImageReference(str(folder / name), name), data) for name, data in files.items()}


def inline(pictures: dict[str, tuple[ImageReference, bytes]]) -> list[ImageReference]:
    """Return the images that need no sandbox process."""
    return [image for name, (image, _) in pictures.items() if name != "large.png"]


def settings(**changes: Any) -> ScoreSettings:
    return ScoreSettings(paths=["."], output=Path("x.jsonl"), **changes)


def score(
    bundle: Path, images: list[ImageReference], batch_size: int = 64, **changes: Any
) -> list[ScoredBatch]:
    async def run() -> list[ScoredBatch]:
        scorer = ImageScorer(settings(**changes), open_bundle(bundle), processes=1)
        try:
            return [
                scorer.score(await scorer.read(images[start : start + batch_size]))
                for start in range(0, len(images), batch_size)
            ]
        finally:
            await scorer.close()

    return asyncio.run(run())


def records(batches: list[ScoredBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for line in batch.lines.splitlines():
            yield json.loads(line, parse_float=str, parse_int=str)


def answer(service: Application, data: bytes, query: dict[str, Any]) -> dict[str, Any]:
    response = service.post(f"/uncertainty?{urlencode(query)}", data, headers=PNG)
    found: dict[str, Any] = json.loads(response.content, parse_float=str, parse_int=str)
    assert response.status_code == 200, found
    prediction: dict[str, Any] = found["predictions"][0]
    return prediction


@pytest.mark.parametrize("query", QUERIES)
def test_figures_are_those_of_the_server_in_any_batch(
    service: Application,
    bundle_folder: Path,
    pictures: dict[str, tuple[ImageReference, bytes]],
    query: dict[str, Any],
) -> None:
    images = inline(pictures)
    for order, batch_size in ((images, 64), (images[::-1], 3)):
        for record in records(score(bundle_folder, order, batch_size, probabilities=True, **query)):
            expected = answer(service, pictures[record["path"]][1], query)
            assert record == {"path": record["path"]} | {
                name: expected[name] for name in (*FIGURES, "probabilities")
            }


def test_figures_of_images_from_a_sandbox_process_are_those_of_the_server(
    service: Application,
    bundle_folder: Path,
    pictures: dict[str, tuple[ImageReference, bytes]],
) -> None:
    images = [image for image, _ in pictures.values()]
    for record in records(score(bundle_folder, images)):
        expected = answer(service, pictures[record["path"]][1], {})
        assert record == {"path": record["path"]} | {name: expected[name] for name in FIGURES}


def test_adaptive_samples_stop_where_the_server_stops(
    service: Application,
    bundle_folder: Path,
    pictures: dict[str, tuple[ImageReference, bytes]],
) -> None:
    query: dict[str, Any] = {"samples": "auto", "seed": 1}
    images = inline(pictures)
    for record in records(score(bundle_folder, images, **query)):
        expected = answer(service, pictures[record["path"]][1], query)
        if int(expected["samples_used"]) < MAX_SAMPLES:  # of the service under test
            names = (*FIGURES, *STOPPING_FIGURES)
            assert record == {"path": record["path"]} | {name: expected[name] for name in names}


def test_broken_image_fails_alone_and_changes_no_other(
    bundle_folder: Path, pictures: dict[str, tuple[ImageReference, bytes]], tmp_path: Path
) -> None:
    good = [image for image, _ in pictures.values()]
    png = pictures["large.png"][1]
    files = {
        "text.jpg": (b"text", "The file is not an image that can be read;"),
        "empty.png": (b"", "The file is empty;"),
        "cut.png": (png[: len(png) // 2], "The image is truncated or corrupt"),
        "bomb.png": (bomb(10_000, 10_000), "more than the 25,000,000 allowed"),
        "narrow.png": (bomb(200_000, 1), "no side may have more than"),
    }
    broken = []
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
        broken.append(ImageReference(str(tmp_path / name), name))
    mixed = [image for pair in zip(good, broken, strict=False) for image in pair] + good[5:]
    (batch,) = score(bundle_folder, mixed)
    assert batch.errors == len(files)
    found = {record["path"]: record for record in records([batch])}
    assert list(found) == [image.name for image in mixed]
    assert [found[image.name] for image in good] == list(records(score(bundle_folder, good)))
    for name, (_, sentence) in files.items():
        assert set(found[name]) == {"path", "error"}
        assert sentence in found[name]["error"]


def test_limits_are_those_of_the_settings(
    bundle_folder: Path, pictures: dict[str, tuple[ImageReference, bytes]]
) -> None:
    image, data = pictures["large.png"]
    (record,) = records(score(bundle_folder, [image], max_image_pixels=1000))
    assert "160 x 160 pixels, more than the 1,000 allowed" in record["error"]
    (record,) = records(score(bundle_folder, [image], max_file_bytes=len(data) - 1))
    assert "--max-file-bytes" in record["error"]


def test_image_that_takes_too_long_names_the_option_that_allows_more(
    bundle_folder: Path,
    pictures: dict[str, tuple[ImageReference, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def decode(*_: Any) -> None:
        raise BodyTooCostlyError("To read this body takes too much time; send fewer.")

    monkeypatch.setattr(ImageReader, "decode", decode)
    for record in records(score(bundle_folder, [image for image, _ in pictures.values()])):
        assert "body" not in record["error"]
        assert record["error"].endswith("or allow more time with --decode-timeout-seconds.")


def test_uncalibrated_bundle_has_figures_without_decisions(
    bundle_folder: Path, pictures: dict[str, tuple[ImageReference, bytes]], tmp_path: Path
) -> None:
    copy = copy_bundle(bundle_folder, tmp_path)
    edit_manifest(copy, calibration=None)
    (record,) = records(score(copy, [pictures["0.png"][0]]))
    assert float(record["confidence"]) > 0
    assert record["abstain"] is record["typicality"] is record["prediction_set"] is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "analytic", "samples": 3}, "method=analytic draws no samples; leave it out."),
        ({"samples": "auto", "design": "independent"}, "samples=auto draws masks in independent"),
    ],
)
def test_settings_that_exclude_one_another_are_an_error(
    bundle_folder: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DropserveError, match=sentence):
        score(bundle_folder, [], **changes)
