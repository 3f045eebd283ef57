"""The lines of an output, and the file as it grows, is sorted, and becomes Parquet."""

import csv
import importlib.util
import json
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from model.errors import SettingsError
from service.scoring.output_file import OutputError, OutputFile, drop_lines, require_file
from service.scoring.parquet_output import require_pyarrow, states_in, write_parquet
from service.scoring.result_lines import FIGURES, LineLayout, State
from service.scoring.score_settings import OutputFormat
from service.scoring.sort_output_by_field import sort_output

CLASSES = ("ant", "bee,\n")
LAYOUTS = {kind: LineLayout(kind, FIGURES, CLASSES) for kind in OutputFormat}
TEXT = [OutputFormat.CSV, OutputFormat.JSONL]


def prediction(mutual_information: float | None = 1e-17, **changes: Any) -> dict[str, Any]:
    figures = {
        "label": "ant",
        "confidence": 0.1 + 0.2,
        "probabilities": {"ant": 0.1 + 0.2, "bee,\n": 5e-324},
        "predictive_entropy": 1 / 3,
        "expected_entropy": 0.0,
        "mutual_information": mutual_information,
        "variation_ratio": 1.0,
        "prediction_set": ["ant", "bee,\n"],
        "typicality": float("nan"),
        "abstain": True,
        "abstain_because": None,
        "probability_std": {},
    }
    return figures | changes


def line(layout: LineLayout, name: str, mutual_information: float | None = None) -> bytes:
    return layout.result(name, prediction(mutual_information))


def test_number_has_the_same_text_in_csv_and_jsonl() -> None:
    kinds = LAYOUTS[OutputFormat.CSV], LAYOUTS[OutputFormat.JSONL]
    texts = kinds[0].header() + kinds[0].result("x.png", prediction())
    (row,) = csv.DictReader(texts.decode().splitlines())
    record = json.loads(kinds[1].result("x.png", prediction()), parse_float=str)
    assert record["mutual_information"] == row["mutual_information"] == "1e-17"
    assert record["confidence"] == row["confidence"] == "0.30000000000000004"
    assert record["probabilities"]["bee,\n"] == row["probability_bee,\\n"] == "5e-324"
    assert record["typicality"] is None
    assert row["typicality"] == row["abstain_because"] == row["error"] == ""
    assert json.loads(row["prediction_set"]) == record["prediction_set"] == ["ant", "bee,\n"]
    assert row["abstain"] == "true"
    assert "error" not in record


@pytest.mark.parametrize("kind", TEXT)
def test_line_is_one_line_whatever_the_names(kind: OutputFormat) -> None:
    for name in ("a\nb.png", 'quo"te,comma.png', "ünï 🐜.png", "\u2028.png"):
        for each in (line(LAYOUTS[kind], name), LAYOUTS[kind].error(name, "Broken.")):
            assert each.count(b"\n") == 1
            assert each.endswith(b"\n")


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("cut", range(1, 12))
def test_cut_last_line_is_dropped_and_others_are_kept(
    tmp_path: Path, kind: OutputFormat, cut: int
) -> None:
    layout, path = LAYOUTS[kind], tmp_path / "output"
    with OutputFile(path, layout) as file:
        assert file.states == {}
        file.append(line(layout, "a.png") + line(layout, "b,b.png"))
        file.append(layout.error("c.png", "Broken."))
        whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with OutputFile(path, layout) as file:
        assert set(file.states) == {"a.png", "b,b.png"}
        file.append(layout.error("c.png", "Broken."))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", TEXT)
def test_file_that_was_cut_anywhere_is_continued(tmp_path: Path, kind: OutputFormat) -> None:
    layout, path = LAYOUTS[kind], tmp_path / "output"
    lines = {f"{number}.png": layout.error(f"{number}.png", "Broken.") for number in range(3)}
    whole = layout.header() + b"".join(lines.values())
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with OutputFile(path, layout) as file:
            file.append(b"".join(lines[name] for name in lines if name not in file.states))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", TEXT)
def test_line_of_another_program_is_an_error_and_stays(tmp_path: Path, kind: OutputFormat) -> None:
    path = tmp_path / "output"
    content = LAYOUTS[kind].header() + b'\n"\nother\n'
    path.write_bytes(content)
    with pytest.raises(OutputError, match=r"Line \d of .* was not written by this program"):
        OutputFile(path, LAYOUTS[kind])
    assert path.read_bytes() == content


def test_output_has_one_writer(tmp_path: Path) -> None:
    layout = LAYOUTS[OutputFormat.JSONL]
    with (
        OutputFile(tmp_path / "output", layout),
        pytest.raises(OutputError, match="is being written by another run"),
    ):
        OutputFile(tmp_path / "output", layout)


def test_lines_that_find_no_room_are_an_error_and_not_half_written(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OutputFile(tmp_path / "output", LAYOUTS[OutputFormat.JSONL]) as file:
        file.append(b'{"path":"a"}\n')
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            with pytest.raises(OutputError, match=r"\(File too large\).* What is written stays"):
                file.append(b'{"path":"b"}\n')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "output").read_bytes() == b'{"path":"a"}\n'


@pytest.mark.parametrize("path", ["/dev/zero", "/dev"])
def test_output_is_a_file(path: str) -> None:
    with pytest.raises(OutputError, match=f"^{path} is a folder or a device, not a file; name"):
        require_file(Path(path))


VALUES = {"low": 0.1, "b-tie": 0.5, "high": 0.9, "none": None, "a-tie": 0.5}
DESCENDING = ["high", "a-tie", "b-tie", "low", "broken", "none"]


def written(layout: LineLayout, path: Path, names: Iterable[str]) -> None:
    with OutputFile(path, layout) as file:
        for name in names:
            if name == "broken":
                file.append(layout.error(name, "Broken."))
            else:
                file.append(line(layout, name, VALUES[name]))


@pytest.mark.parametrize("kind", TEXT)
def test_sorted_output_has_the_same_lines_what_to_look_at_first_on_top(
    tmp_path: Path, kind: OutputFormat
) -> None:
    layout, path = LAYOUTS[kind], tmp_path / "output"
    written(layout, path, ["broken", *VALUES])
    before = path.read_bytes().splitlines()
    sort_output(path, layout, "mutual_information")
    assert sorted(path.read_bytes().splitlines()) == sorted(before)
    with OutputFile(path, layout):  # it is read again without an error
        pass
    names = [each.split(b".")[0] for each in path.read_bytes().splitlines()]
    order = [name for row in names for name in DESCENDING if name.encode() in row[:20]]
    assert order == DESCENDING
    assert [each.name for each in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize("kind", OutputFormat)
def test_replaced_output_keeps_its_permissions_and_its_link(
    tmp_path: Path, kind: OutputFormat
) -> None:
    layout, output, link = LAYOUTS[kind], tmp_path / "output", tmp_path / "folder" / "link"
    link.parent.mkdir()
    link.symlink_to(output)
    is_parquet = kind is OutputFormat.PARQUET
    lines = tmp_path / "lines" if is_parquet else link
    written(layout, lines, ["low", "broken"])
    if is_parquet:
        write_parquet(link, lines, layout)
    output.chmod(0o600)
    if is_parquet:
        write_parquet(link, lines, layout)
    else:
        drop_lines(link, layout, {"broken"})
        sort_output(link, layout, "path")
    assert output.stat().st_mode & 0o777 == 0o600
    assert link.readlink() == output
    assert list(link.parent.iterdir()) == [link]


def test_parquet_has_what_was_there_and_what_is_new(tmp_path: Path) -> None:
    layout, lines = LAYOUTS[OutputFormat.PARQUET], tmp_path / "lines"
    output = tmp_path / "output.parquet"
    assert states_in(output, layout) == {}
    written(layout, lines, ["low", "broken"])
    write_parquet(output, lines, layout)
    assert states_in(output, layout) == {"low": State.ABSTAINED, "broken": State.FAILED}
    written(layout, lines, VALUES)  # low again, as after a kill before the lines were removed
    write_parquet(output, lines, layout, "mutual_information")
    table = pyarrow.parquet.read_table(output)
    assert table["path"].to_pylist() == DESCENDING
    assert table.column_names == list(layout.columns)
    (row,) = [row for row in table.to_pylist() if row["path"] == "low"]
    expected = prediction(0.1, typicality=None)
    assert {name: row[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert row["probability_bee,\n"] == 5e-324
    assert row["error"] is None


def change_columns(output: Path, change: Callable[[Any], Any]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(output)), output)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda output: change_columns(output, lambda table: table.append_column("x", table[0])),
        lambda output: change_columns(output, lambda table: table.drop_columns(["typicality"])),
        lambda output: output.write_bytes(output.read_bytes()[:300]),
        lambda output: output.write_bytes(bytes(4) + output.read_bytes()[4:-80] + bytes(80)),
        lambda output: output.write_bytes(
            output.read_bytes()[:4] + bytes(500) + output.read_bytes()[504:]
        ),
    ],
    ids=["column added", "column removed", "cut", "footer damaged", "rows damaged"],
)
def test_parquet_of_another_program_is_one_sentence_and_stays(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    layout, lines = LAYOUTS[OutputFormat.PARQUET], tmp_path / "lines"
    output = tmp_path / "output.parquet"
    written(layout, lines, VALUES)
    write_parquet(output, lines, layout)
    spoil(output)
    before = output.read_bytes()
    for read in (states_in, lambda *_: write_parquet(output, lines, layout)):
        with pytest.raises(OutputError, match=f"^{output} was not written by this program, or is"):
            read(output, layout)
    assert output.read_bytes() == before


def test_parquet_without_pyarrow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_pyarrow()
    monkeypatch.setattr("service.scoring.parquet_output.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install '\.\[parquet\]'"):
        require_pyarrow()
    assert importlib.util.find_spec("pyarrow") is not None
