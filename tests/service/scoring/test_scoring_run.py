"""Runs of `python -m service.score` with its processes: whole, interrupted, killed, refused."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.errors import BundleError
from service.score import main
from service.scoring.batch_queue import BatchQueue
from service.scoring.image_file import ImageReference
from service.scoring.progress import Progress
from service.scoring.run_settings_file import settings_file
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process import BatchFailedError, ScoringProcess
from service.scoring.scoring_process_messages import ModelFacts, ScoredBatch
from service.scoring.scoring_process_pool import ScoringProcessPool
from tests.bundles import copy_bundle, edit_manifest
from tests.conftest import ROOT
from tests.pictures import Pixels, encode
from tests.service.serving import PNG, TIMEOUT_SECONDS, Application


@pytest.fixture(scope="module")
def folder(digits: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images and one broken one."""
    folder = tmp_path_factory.mktemp("folder")
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(encode(digits[number]))
    (folder / "broken.png").write_bytes(b"text")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of a run with one process."""
    output = tmp_path_factory.mktemp("whole") / "results.jsonl"
    assert main(arguments(folder, models_folder, output, "--processes", "1")) == 0
    return output.read_bytes()


def arguments(folder: Path, models_folder: Path, output: Path, *more: str) -> list[str]:
    return [str(folder), "--models-folder", str(models_folder), "--output", str(output), *more]


def test_lines_have_the_numbers_of_the_server_in_the_order_of_the_images(
    service: Application, folder: Path, whole: bytes
) -> None:
    for line, file in zip(whole.splitlines(), sorted(folder.iterdir()), strict=True):
        record = json.loads(line, parse_float=str)
        assert record.pop("path") == str(file)
        response = service.post("/uncertainty", file.read_bytes(), headers=PNG)
        answer = json.loads(response.content, parse_float=str)
        if file.name == "broken.png":
            assert record == {"error": answer["error"]}
        else:
            (prediction,) = answer["predictions"]
            assert record.items() <= prediction.items()


def test_two_processes_and_small_batches_write_the_same_bytes(
    folder: Path,
    models_folder: Path,
    whole: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.jsonl"
    more = ["--processes", "2", "--batch-size", "3", "--strict"]
    assert main(arguments(folder, models_folder, output, *more)) == 1
    assert output.read_bytes() == whole
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{output}: 41 images; 41 of them now in " in printed.err
    assert "errors: 1; other files left out: 0; named again: 0; " in printed.err


def kill_in_its_midst(command: list[str], output: Path) -> int:
    """Start a run of 41 images and kill it; return how many lines it has written, 1 to 40.

    A run that is over before this process sees its first line is tried again.
    """
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "service.score", *command], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while not output.exists() or not output.stat().st_size:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = output.read_bytes().count(b"\n")
        if 0 < written < 41:
            return written
        for file in output.parent.iterdir():
            file.unlink()
    raise AssertionError("no run was killed in its midst")


def test_killed_run_is_continued_without_a_lost_or_doubled_line(
    folder: Path,
    models_folder: Path,
    whole: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.jsonl"
    command = arguments(folder, models_folder, output, "--processes", "1", "--batch-size", "1")
    written = kill_in_its_midst(command, output)
    with output.open("ab") as file:
        file.write(b'{"path":"half a li')
    assert main([*command, "--sort", "path"]) == 0
    assert output.read_bytes() == whole
    assert f"41 images; {41 - written} of them now in " in capsys.readouterr().err


def test_batches_grow_while_they_are_fast_and_shrink_where_they_are_slow() -> None:
    images = [ImageReference(str(number), str(number)) for number in range(200)]
    batches = BatchQueue(images, largest=32)
    sizes = []
    for batch in batches:
        sizes.append(len(batch))
        batches.note(len(batch), seconds=0.03 * len(batch))
    assert sizes == [4, 8, 16, 32, 32, 32, 32, 32, 12]
    slow = iter(batches := BatchQueue(images, largest=3))
    for expected in (3, 1, 1):
        assert len(next(slow)) == expected
        batches.note(expected, seconds=9)


def test_progress_is_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2_000, line_seconds=0) as progress:
        progress.add(1_200)
        progress.add(800)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("1,200 of 2,000 images, ")
    assert last.startswith("2,000 of 2,000 images, ")


def test_killed_process_loses_no_line(folder: Path, bundle_folder: Path, whole: bytes) -> None:
    images = [ImageReference(str(file), str(file)) for file in sorted(folder.iterdir())]
    settings = ScoreSettings(paths=["."], output=Path("x.jsonl"))

    async def run() -> bytes:
        async with await ScoringProcessPool.open(settings, bundle_folder, 1) as pool:
            (process,) = pool.running
            os.kill(process.pid, signal.SIGSTOP)  # so that it cannot reply before it is killed
            scoring = asyncio.ensure_future(pool.score(0, images[:2]))
            os.kill(process.pid, signal.SIGKILL)
            first = await scoring
            second = await pool.score(0, images[2:])
            return first.lines + second.lines

    assert asyncio.run(run()) == whole


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("no JSON", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "KeyError: 'bytes'"),
        ("x" * 200, "ValueError: Separator is found, but chunk is longer than limit"),
    ],
)
def test_reply_that_cannot_be_read_fails_every_batch_that_waits(reply: str, reason: str) -> None:
    """Instead of waiting for ever; the process is ended, since what follows is out of step."""

    async def run() -> list[ScoredBatch | BaseException]:
        command = f"read batch; read batch; echo '{reply}'; cat >/dev/null"
        child = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=100,
        )
        facts = ModelFacts("digits", 1, ("0", "1"), "", None, None, calibrated=False)
        process = ScoringProcess(child, facts)
        images = [ImageReference("a.png", "a.png")]
        scoring = [process.score(images), process.score(images)]
        async with asyncio.timeout(TIMEOUT_SECONDS):
            results = await asyncio.gather(*scoring, return_exceptions=True)
            assert await child.wait() == -signal.SIGKILL
        return results

    results = asyncio.run(run())
    assert [str(each) for each in results] == 2 * [f"its reply cannot be read, {reason}"]
    assert {type(each) for each in results} == {BatchFailedError}


def test_processes_that_have_started_are_ended_where_another_cannot_start(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ScoreSettings(paths=["."], output=Path("x.jsonl"))
    start, started = ScoringProcess.start, list[ScoringProcess]()

    async def fail_at_the_second(*arguments: Any) -> ScoringProcess:
        started.append(process := await start(*arguments))
        if len(started) == 2:
            await process.close()
            raise BatchFailedError("it ended at its start, status 1")
        return process

    monkeypatch.setattr(ScoringProcess, "start", fail_at_the_second)

    async def run() -> None:
        async with await ScoringProcessPool.open(settings, bundle_folder, 3) as pool:
            await pool.start_others(3)

    with pytest.raises(BundleError, match=r"^A process that scores images cannot run \(it ended"):
        asyncio.run(run())
    assert len(started) == 3
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_table_of_parquet_has_the_figures_of_the_lines(
    folder: Path, models_folder: Path, whole: bytes, tmp_path: Path
) -> None:
    import pyarrow.parquet

    output = tmp_path / "results.parquet"
    assert main(arguments(folder, models_folder, output, "--processes", "1")) == 0
    rows = pyarrow.parquet.read_table(output).to_pylist()
    for row, line in zip(rows, whole.splitlines(), strict=True):
        assert {key: value for key, value in row.items() if value is not None} == {
            key: value for key, value in json.loads(line).items() if value is not None
        }
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "results.parquet",
        "results.parquet.settings.json",
    ]


def test_table_of_parquet_stays_where_nothing_is_new_or_it_is_of_another_program(
    folder: Path, models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.parquet"
    command = arguments(folder / "00.png", models_folder, output, "--processes", "1")
    assert main(command) == 0
    before = output.stat().st_ino
    assert main(command) == 0
    assert output.stat().st_ino == before
    output.write_bytes(b"text")
    capsys.readouterr()
    for more in ([], ["--retry-errors"]):
        assert "was not written by this program" in refused(capsys, [*command, *more])
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "results.parquet",
        "results.parquet.settings.json",
    ]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_output_inside_its_own_pattern_is_no_image_of_the_next_run(
    models_folder: Path, digits: Pixels, tmp_path: Path, name: str
) -> None:
    (tmp_path / "0.png").write_bytes(encode(digits[0]))
    output = tmp_path / name
    command = ["--models-folder", str(models_folder), "--output", str(output), "--processes", "1"]
    assert main([f"{tmp_path}/**", *command]) == 0
    before = output.read_bytes()
    shell = [str(each) for each in tmp_path.iterdir()]
    for paths in ([f"{tmp_path}/**"], shell):
        assert main([*paths, *command, "--strict"]) == 0
        assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_errors_of_the_whole_output_count_until_a_retry_succeeds(
    models_folder: Path,
    digits: Pixels,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    late = tmp_path / "late.png"
    table = tmp_path / "list.csv"
    table.write_text("path\nlate.png\nbroken.png\n")
    (tmp_path / "broken.png").write_bytes(b"text")
    (tmp_path / "good.png").write_bytes(encode(digits[1]))
    output = tmp_path / name
    command = arguments(table, models_folder, output, "--processes", "1")
    assert main(command) == 1  # nothing but errors
    printed = capsys.readouterr().err
    assert "2 images; 2 of them now" in printed
    assert "the same command with --retry-errors tries these again." in printed
    late.write_bytes(encode(digits[0]))
    # Errors of images that this run does not name stay.
    good = [str(tmp_path / "good.png"), *command[1:], "--retry-errors"]
    assert main([*good, "--strict"]) == 1
    assert "3 images; 1 of them now" in capsys.readouterr().err
    assert main([*command, "--retry-errors"]) == 0
    assert "3 images; 2 of them now" in capsys.readouterr().err
    assert errors(output) == {str(tmp_path / "broken.png")}
    (tmp_path / "broken.png").write_bytes(encode(digits[2]))
    assert main([*command, "--strict", "--retry-errors"]) == 0
    assert "3 images; 1 of them now" in capsys.readouterr().err
    assert errors(output) == set()


def errors(output: Path) -> set[str]:
    """Return the images of an output that have an error."""
    if output.suffix == ".parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(output).to_pylist()
    else:
        rows = list(csv.DictReader(output.read_text().splitlines()))
    names = [row["path"] for row in rows]
    assert len(set(names)) == len(names)
    return {row["path"] for row in rows if row.get("error")}


def refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """Return the one sentence of a run that is refused."""
    try:
        assert main(command) == 2
    except SystemExit as exit_:
        assert exit_.code == 2  # noqa: PT017 - either way ends the program with the same status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model", "cats"], "There is no model 'cats' in "),
        (["--version", "7"], "There is no version 7 of digits; there is 1."),
        (["--models-folder", "/nowhere"], "There is no bundle in /nowhere; train one with"),
        (["--output", "results.txt"], "names no format; end it in .csv, .jsonl, .parquet."),
        (["--output", "results"], "names no format; end it in .csv, .jsonl, .parquet."),
        (["--samples", "many"], "--samples: "),
        (["--coverage", "1"], "--coverage: input should be less than 1, but got '1'."),
        (["--sort", "beauty"], "--sort: input should be "),
        (["--sead", "3"], "--sead"),
        (["/nowhere/at/all.png"], "/nowhere/at/all.png: It cannot be read (No such file"),
        (
            ["--output", "/nowhere/results.csv"],
            "/nowhere/results.csv cannot be written (No such file",
        ),
        (["--method", "analytic", "--seed", "1"], "method=analytic draws no samples; leave it"),
    ],
)
def test_run_that_cannot_begin_is_one_sentence_and_status_2(
    folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    sentence: str,
) -> None:
    command = arguments(folder, models_folder, tmp_path / "x.csv", "--processes", "1", *more)
    printed = refused(capsys, command)
    assert sentence in printed
    assert "What is written stays" not in printed
    assert list(tmp_path.iterdir()) == []


def test_output_of_other_settings_or_of_something_else_is_refused_and_stays(
    folder: Path,
    models_folder: Path,
    whole: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.jsonl"
    command = arguments(folder, models_folder, output, "--processes", "1")
    output.write_bytes(whole)
    assert "does not say how it was written" in refused(capsys, command)
    output.unlink()
    assert main(command) == 0
    capsys.readouterr()
    sentence = refused(capsys, [*command, "--seed", "5"])
    assert f"{output} was written with seed 0, and now it is 5;" in sentence
    assert output.read_bytes() == whole
    assert json.loads(settings_file(output).read_bytes())["samples"] == 64


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_output_that_is_a_folder_is_said_to_be_one(
    folder: Path,
    models_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    (tmp_path / name).mkdir()
    sentence = refused(capsys, arguments(folder, models_folder, tmp_path / name))
    assert f"{tmp_path / name} is a folder or a device, not a file; name another" in sentence
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_several_models_need_a_name(
    folder: Path, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ants", "bees"):
        copy_bundle(bundle_folder, tmp_path / "models", name)
    command = arguments(folder, tmp_path / "models", tmp_path / "x.csv")
    assert "name one with --model: ants, bees." in refused(capsys, command)


def test_uncalibrated_model_says_so_and_refuses_options_without_effect(
    folder: Path, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    edit_manifest(copy_bundle(bundle_folder, models), calibration=None)
    output = tmp_path / "x.csv"
    command = arguments(folder / "00.png", models, output, "--processes", "1")
    for option in (["--sort", "typicality"], ["--max-risk", "0.1"], ["--sets", "aps"]):
        sentence = refused(capsys, [*command, *option])
        assert f"{option[0]}: digits version 1 is not calibrated, so this has no effect" in sentence
    assert not output.exists()
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert "Warning: digits version 1 is not calibrated, so prediction_set, " in printed
    assert "; abstained: not calibrated; errors: 0; " in printed


def test_version_that_fails_its_self_test_gives_way_to_the_one_before(
    folder: Path,
    models_folder: Path,
    whole: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models, output = tmp_path / "models", tmp_path / "x.jsonl"
    copy_bundle(models_folder / "digits" / "1", models)
    damaged = copy_bundle(models_folder / "digits" / "1", models, version=2)
    (damaged / "model.onnx").write_bytes(b"damaged")
    assert main(arguments(folder, models, output, "--processes", "1")) == 0
    assert "Warning: " in capsys.readouterr().err
    assert output.read_bytes() == whole


def test_paths_are_taken_as_they_are_written() -> None:
    from model.cli_and_env_settings import load

    paths = ["a,b.png", 'quo"te.png', "[1].png", " x ", "a\udcff.png"]
    for command in ([*paths, "--output", "x.csv"], ["--output", "x.csv", *paths]):
        assert load(ScoreSettings, command).paths == paths
    mixed: list[Any] = ["a.png", "--output", "x.csv", "b.png"]
    assert load(ScoreSettings, mixed).paths == ["a.png", "b.png"]
