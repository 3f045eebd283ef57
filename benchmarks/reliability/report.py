"""The result of a program of this package: a table, criteria met or missed, and a dated entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

_RECORDS = "\n## Records\n\nNewest first.\n"


@dataclass(frozen=True)
class Criterion:
    """A measured value and the limit that it has to meet."""

    name: str
    measured: str
    required: str
    is_met: bool


@dataclass(frozen=True)
class Report:
    """The measurements of one program."""

    title: str
    setting: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    criteria: Sequence[Criterion]
    notes: Sequence[str] = ()
    """Sentences: cases that were left out and why, and further observations."""

    @property
    def status(self) -> int:
        """The exit status: 1 where a criterion was missed."""
        return 0 if all(each.is_met for each in self.criteria) else 1

    def print(self, console: Console) -> None:
        """Print the table, the notes and the criteria."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        for note in self.notes:
            console.print(note, markup=False)
        for criterion in self.criteria:
            verdict = "met" if criterion.is_met else "MISSED"
            console.print(
                f"{verdict}: {criterion.name}: {criterion.measured} ({criterion.required})",
                markup=False,
            )

    def entry(self, command: str) -> str:
        """Return the dated entry as Markdown."""
        return "\n\n".join(
            [
                f"### {date.today():%Y-%m-%d} · {self.title}",
                f"`{command}`: {self.setting}",
                markdown_table(self.columns, self.rows),
                markdown_table(
                    ("criterion", "measured", "required", ""),
                    [
                        (each.name, each.measured, each.required, _verdict(each))
                        for each in self.criteria
                    ],
                ),
                *self.notes,
            ]
        )

    def add_to(self, file: Path, command: str) -> None:
        """Insert the entry before the others, below the heading "Records" of a file."""
        head, heading, rest = file.read_text(encoding="utf-8").partition(_RECORDS)
        if not heading:
            raise SystemExit(
                f"--record: {file} has no heading 'Records' with 'Newest first.' below it."
            )
        text = f"{head}{heading}\n{self.entry(command)}\n{rest}"
        file.write_text(text, encoding="utf-8")


def _verdict(criterion: Criterion) -> str:
    return "met" if criterion.is_met else "**missed**"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    head = "| " + " | ".join(columns) + " |"
    return "\n".join([head, "|" + "---|" * len(columns), *lines])
