from dataclasses import replace
from datetime import date
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from model.errors import SettingsError
from training.experiments.experiment_record import Record, format_mean_std, format_percent


@pytest.fixture
def record() -> Record:
    figure = Figure()
    figure.subplots().plot([1, 2])
    rows = [("relu", "1.00"), ("tanh", "2.00")]
    return Record(
        name="speed",
        title="Which is faster",
        setting="two arms.",
        columns=("arm", "epochs"),
        rows=rows,
        finding="relu is.",
        figure=figure,
    )


def test_record_entry_has_command_setting_table_finding_and_plot(record: Record) -> None:
    assert record.entry("python -m x") == (
        f"## {date.today():%Y-%m-%d} · Which is faster\n\n`python -m x`: two arms.\n\n"
        "| arm | epochs |\n|---|---|\n| relu | 1.00 |\n| tanh | 2.00 |\n\nrelu is.\n\n"
        "![Which is faster](plots/speed.svg)\n"
    )


def test_record_escapes_what_would_end_a_cell(record: Record) -> None:
    table = replace(record, columns=("arm", "|f'|"), rows=[("a|b", "1")]).entry("python -m x")
    assert "| arm | \\|f'\\| |\n|---|---|\n| a\\|b | 1 |\n" in table


def test_record_without_a_plot_is_a_table(record: Record, tmp_path: Path) -> None:
    table = replace(record, figure=None)
    table.save(tmp_path, "python -m x")
    assert (tmp_path / "speed.md").read_text().endswith("| tanh | 2.00 |\n\nrelu is.\n")
    assert not (tmp_path / "speed.svg").exists()


def test_record_is_inserted_before_the_other_entries(record: Record, tmp_path: Path) -> None:
    notes = tmp_path / "experiments.md"
    notes.write_text("# Experiments\n\nNewest first.\n\n## 2020-01-01 · Old\n\ntext\n")
    record.add_to(tmp_path, "python -m x")
    assert notes.read_text() == (
        "# Experiments\n\nNewest first.\n\n"
        + record.entry("python -m x")
        + "\n## 2020-01-01 · Old\n\ntext\n"
    )
    assert (tmp_path / "plots" / "speed.svg").read_text().startswith("<?xml")


def test_notes_are_replaced_as_a_whole(record: Record, tmp_path: Path) -> None:
    before = "# Experiments\n\n## 2020-01-01 · Old\n\ntext\n"
    notes = tmp_path / "experiments.md"
    notes.write_text(before)
    with notes.open() as reader:
        record.add_to(tmp_path, "python -m x")
        assert reader.read() == before
    assert {each.name for each in tmp_path.iterdir()} == {"experiments.md", "plots"}


@pytest.mark.parametrize("text", [None, "# Something else\n"])
def test_record_refuses_notes_without_entries(
    record: Record, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "experiments.md").write_text(text)
    with pytest.raises(SettingsError, match="has no dated entries; name the notes' folder"):
        record.add_to(tmp_path, "python -m x")
    assert not (tmp_path / "plots").exists()


def test_record_saves_the_same_bytes_each_time(record: Record, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        record.save(tmp_path / name, "python -m x")
    assert (tmp_path / "one/speed.svg").read_bytes() == (tmp_path / "two/speed.svg").read_bytes()
    assert (tmp_path / "one/speed.md").read_text() == record.entry("python -m x")


def test_record_prints_its_table(record: Record) -> None:
    console = Console(file=StringIO(), width=80)
    record.print(console)
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    for text in ("Which is faster", "arm", "epochs", "tanh", "2.00", "relu is."):
        assert text in shown


def test_format_mean_std_uses_the_sample_deviation() -> None:
    assert format_mean_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert format_mean_std([1.0]) == "1.00"
    assert format_percent([0.01, 0.03]) == "2.00 ± 1.41 %"
