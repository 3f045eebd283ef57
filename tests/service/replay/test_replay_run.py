"""Logged images through a version: the same one gives the same bytes, another one disagrees."""

import asyncio
import errno
import os
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import orjson
import pytest

from service.replay.__main__ import main
from service.replay.replay_run import Replay, run
from service.replay.replay_settings import ReplaySettings
from service.shadow.difference_of_two_answers import largest_difference
from service.traffic_log.traffic_record import MAX_LOGGED_CLASSES
from tests.bundles import copy_bundle
from tests.pictures import Pixels, encode, instances, numbers
from tests.service.serving import JSON, PNG, serving_models

URLS = (
    *("/predict", "/uncertainty", "/uncertainty?samples=auto", "/uncertainty?method=analytic"),
    "/uncertainty?samples=7&seed=3&design=independent&max_risk=0.2&sets=aps&per_sample=true",
)
PROTOCOLS = ("/v1/models/digits:predict", "/v1/models/digits-mc:predict")


@pytest.fixture(scope="module")
def log(models_folder: Path, digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a run: each URL is asked for several digits, singly and together."""
    folder = tmp_path_factory.mktemp("traffic")
    with serving_models(models_folder, traffic_log=folder, traffic_log_images=True) as service:
        for digit in digits[:4]:
            for url in URLS:
                assert service.post(url, encode(digit), headers=PNG).status_code == 200
        several = instances([numbers(digit) for digit in digits[:20]])
        for url in (*URLS, *PROTOCOLS):
            assert service.post(url, several, headers=JSON).status_code == 200
        noise = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)  # no 8-bit pixels
        tensor = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8]}
        infer = orjson.dumps({"inputs": [tensor | {"data": noise.ravel().tolist()}]})
        for name in ("digits", "digits-mc"):
            path = f"/v2/models/{name}/infer"
            assert service.post(path, infer, headers=JSON).status_code == 200
    return folder


@pytest.fixture
def lines(log: Path) -> Path:
    """The file of its lines."""
    (file,) = log.glob("*.jsonl")
    return file


def replay(folder: Path, models: Path, version: int = 1) -> Replay:
    settings = ReplaySettings.model_construct(
        folder=folder, model="digits", version=version, models_folder=models, threads=1
    )
    return asyncio.run(run(settings))


def test_same_version_gives_the_same_bytes(log: Path, models_folder: Path) -> None:
    report = replay(log, models_folder).to_json()
    assert report["replayed"] == report["lines"] == 4 * 5 + 20 * 7 + 2
    assert (report["without_image"], report["unreadable"], report["refused"]) == (0, 0, 0)
    for each in report["comparisons"]:
        assert each["same_bytes"] == each["answers"]
        assert (each["labels_differ"], each["abstentions_differ"]) == (0, 0)
        assert each["probability_difference"]["max"] == 0
    assert {each["route"] for each in report["comparisons"]} == {
        *("/predict", "/uncertainty", "/v1/models/{name}:predict", "/v2/models/{name}/infer"),
    }


def test_other_version_disagrees_and_the_command_says_where(
    log: Path,
    bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other version calls every class by its successor's name."""
    other = copy_bundle(bundle_folder, tmp_path / "models", version=2)
    manifest = orjson.loads((other / "manifest.json").read_bytes())
    manifest["class_names"] = [*manifest["class_names"][1:], manifest["class_names"][0]]
    (other / "manifest.json").write_bytes(orjson.dumps(manifest))
    file = tmp_path / "report.json"
    options = ["--model", "digits", "--version", "2", "--report", str(file)]
    assert main([str(log), *options, "--models-folder", str(tmp_path / "models")]) == 0
    report = orjson.loads(file.read_bytes())
    for each in report["comparisons"]:
        assert each["labels_differ"] == each["answers"]
        assert each["abstentions_differ"] == 0
        assert each["probability_difference"]["max"] > 0.5
        assert len(each["examples"]) == min(10, each["answers"])
        assert each["label_changes"][0]["answers"] > 0
    printed = capsys.readouterr().out
    assert "162 of 162 answers of digits, replayed with version 2." in printed


def test_lines_that_cannot_be_replayed_are_counted(
    log: Path, models_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    (lines,) = folder.glob("*.jsonl")
    first, *rest = lines.read_bytes().splitlines(keepends=True)
    digest = orjson.loads(first)["digest"]
    (stored,) = folder.glob(f"*/{digest}.png")
    affected = sum(digest.encode() in line for line in [first, *rest])
    stored.unlink()
    evil = orjson.loads(first) | {"digest": "../" * 20 + "etc/passwd"}
    lines.write_bytes(first + b"no JSON\n" + orjson.dumps(evil) + b"\n" + b"".join(rest) + b"cut")
    report = replay(folder, models_folder).to_json()
    assert report["without_image"] == affected
    assert report["unreadable"] == 2
    assert report["replayed"] == report["lines"] - affected - 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("options.max_risk", [1]),
        ("options.max_risk", "x"),
        ("options.samples", 10_000_000),
        ("options.seed", -5),
        ("options.design", "zz"),
        ("version", [1]),
        ("answer", "4"),
        ("answer.label", None),
        ("answer.probabilities", {"4": "much"}),
        ("doubt", []),
    ],
)
def test_line_of_a_wrong_type_is_counted_as_unreadable(
    place: str, value: object, log: Path, models_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    (lines,) = folder.glob("*.jsonl")
    texts = lines.read_bytes().splitlines()
    number, line = next(
        (number, line)
        for number, line in enumerate(map(orjson.loads, texts))
        if line["options"] and "design" in line["options"]
    )
    *parents, last = place.split(".")
    reduce(getitem, parents, line)[last] = value
    texts[number] = orjson.dumps(line)
    lines.write_bytes(b"\n".join(texts) + b"\n")
    report = replay(folder, models_folder).to_json()
    assert (report["unreadable"], report["replayed"]) == (1, len(texts) - 1)


def test_changed_answer_of_the_same_version_is_exit_status_1(
    log: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    (lines,) = folder.glob("*.jsonl")
    lines.write_bytes(lines.read_bytes().replace(b'"confidence":0.', b'"confidence":0.1', 1))
    options = ["--model", "digits", "--version", "1", "--models-folder", str(models_folder)]
    assert main([str(folder), *options]) == 1
    assert "1 answers of version 1 itself have other bytes now" in capsys.readouterr().out


def test_report_that_cannot_be_written_leaves_the_one_before_as_it_was(
    log: Path,
    models_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    report = tmp_path / "report.json"
    report.write_text("the report before")
    monkeypatch.setattr("os.fsync", fail)
    options = ["--model", "digits", "--version", "1", "--models-folder", str(models_folder)]
    assert main([str(log), *options, "--report", str(report)]) == 2
    sentence = f"{report} cannot be written (No space left on device); name another --report.\n"
    assert capsys.readouterr().err == sentence
    assert report.read_text() == "the report before"
    assert list(tmp_path.iterdir()) == [report]


def test_interrupted_replay_ends_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(_settings: ReplaySettings) -> Replay:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.replay.__main__.run", interrupted)
    assert main([str(tmp_path), "--model", "digits", "--version", "1"]) == 130
    assert tuple(capsys.readouterr()) == ("", "Interrupted; no report was written.\n")


@pytest.mark.parametrize(
    ("folder", "options", "sentence"),
    [
        ("empty", "--model digits --version 1", "name the folder of --traffic-log"),
        ("plain", "--model letters --version 1", "There is no model 'letters'"),
        ("plain", "--model digits --version 9", "There is no version 9 of digits"),
        ("others", "--model digits --version 1", "there are lines of: letters"),
        ("plain", "--model digits --version 1", "log with --traffic-log-images"),
    ],
)
def test_replay_that_cannot_be_is_refused_with_one_sentence(
    lines: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    options: str,
    sentence: str,
) -> None:
    for name in ("empty", "others", "plain"):
        (tmp_path / name).mkdir()
    text = lines.read_bytes()
    (tmp_path / "plain" / lines.name).write_bytes(text)
    (tmp_path / "others" / lines.name).write_bytes(text.replace(b'"digits"', b'"letters"'))
    arguments = [str(tmp_path / folder), *options.split(), "--models-folder", str(models_folder)]
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_class_that_a_version_lacks_counts_as_probability_0() -> None:
    assert largest_difference({"a": 0.75, "b": 0.25}, {"b": 0.5, "c": 0.5}) == 0.75
    assert largest_difference({"a": 0.5, "b": 0.5}, {"a": 0.0, "b": 0.125, "c": 0.875}) == 0.875


def test_confident_answer_outside_of_the_logged_classes_counts_at_least_as_its_confidence() -> None:
    then = {str(number): 0.0625 for number in range(MAX_LOGGED_CLASSES)}
    now = {str(number): 0.0 for number in range(16)} | {"15": 1.0}
    assert largest_difference(then, now) == 1.0 - 0.0625
    assert largest_difference(then, dict.fromkeys(now, 0.0625)) == 0.0
