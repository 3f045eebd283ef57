"""What a program of this package ends in: a table, bars kept or missed, and a dated entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

_RECORDS = "\n## Records\n\nNewest first.\n"


@dataclass(frozen=True)
class Bar:
    """A figure that must be reached."""

    name: str
    measured: str
    wanted: str
    is_kept: bool


@dataclass(frozen=True)
class Report:
    """What one program saw."""

    title: str
    setting: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bars: Sequence[Bar]
    notes: Sequence[str] = ()
    """Sentences: what was left out and why, what was seen beside."""

    @property
    def status(self) -> int:
        """The exit status: 1 where a bar was missed."""
        return 0 if all(each.is_kept for each in self.bars) else 1

    def print(self, console: Console) -> None:
        """Show it."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        for note in self.notes:
            console.print(note, markup=False)
        for bar in self.bars:
            verdict = "kept" if bar.is_kept else "MISSED"
            console.print(f"{verdict}: {bar.name}: {bar.measured} ({bar.wanted})", markup=False)

    def entry(self, command: str) -> str:
        """Return the entry, Markdown, with today's date."""
        return "\n\n".join(
            [
                f"### {date.today():%Y-%m-%d} · {self.title}",
                f"`{command}`: {self.setting}",
                _table(self.columns, self.rows),
                _table(
                    ("bar", "measured", "wanted", ""),
                    [(b.name, b.measured, b.wanted, _verdict(b)) for b in self.bars],
                ),
                *self.notes,
            ]
        )

    def add_to(self, file: Path, command: str) -> None:
        """Put the entry before the others, below the heading "Records" of a file."""
        head, heading, rest = file.read_text(encoding="utf-8").partition(_RECORDS)
        if not heading:
            raise SystemExit(
                f"--record: {file} has no heading 'Records' with 'Newest first.' below it."
            )
        text = f"{head}{heading}\n{self.entry(command)}\n{rest}"
        file.write_text(text, encoding="utf-8")


def _verdict(bar: Bar) -> str:
    return "kept" if bar.is_kept else "**missed**"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    head = "| " + " | ".join(columns) + " |"
    return "\n".join([head, "|" + "---|" * len(columns), *lines])
