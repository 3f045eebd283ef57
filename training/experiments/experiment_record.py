"""Presents the result of an experiment: a table, a plot and a dated entry of the notes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from model.atomic_file_writing import write_whole
from model.errors import SettingsError

NOTES_FILE = "experiments.md"
PLOTS_FOLDER = "plots"


@dataclass(frozen=True)
class Record:
    """The result of one experiment, as text, table and plot."""

    name: str
    title: str
    setting: str
    """What was done, in a sentence or two of Markdown."""
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    finding: str
    """The result in Markdown, generated from the measured numbers."""
    figure: Figure | None = None
    """None: the table is enough."""

    def entry(self, command: str) -> str:
        """Return the entry in Markdown, with today's date."""
        lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in (self.columns, *self.rows)]
        lines.insert(1, "|" + "---|" * len(self.columns))
        table = "\n".join(lines)
        image = f"\n![{self.title}]({PLOTS_FOLDER}/{self.name}.svg)\n" if self.figure else ""
        return (
            f"## {date.today():%Y-%m-%d} · {self.title}\n\n`{command}`: {self.setting}\n\n{table}"
            f"\n\n{self.finding}\n{image}"
        )

    def print(self, console: Console) -> None:
        """Print the table and the finding."""
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        console.print(self.finding)

    def save(self, folder: Path, command: str) -> None:
        """Write the plot and the entry into `folder`, both under this name."""
        self.draw(folder / f"{self.name}.svg")
        write_whole(folder / f"{self.name}.md", self.entry(command).encode())

    def add_to(self, notes: Path, command: str) -> None:
        """Insert the entry before all others in `notes`/experiments.md, and save its plot there.

        Raises:
            SettingsError: there is no such file, or it has no entries.
        """
        file = notes / NOTES_FILE
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        head, heading, rest = text.partition("\n## ")
        if not heading:
            raise SettingsError(f"--record: {file} has no dated entries; name the notes' folder.")
        (notes / PLOTS_FOLDER).mkdir(exist_ok=True)
        self.draw(notes / PLOTS_FOLDER / f"{self.name}.svg")
        write_whole(file, f"{head}\n{self.entry(command)}{heading}{rest}".encode())

    def draw(self, file: Path) -> None:
        """Write the plot as SVG, if there is one; the same numbers give the same bytes."""
        if self.figure is None:
            return
        with mpl.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(file, metadata={"Date": None})


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")  # which would end the cell


def format_mean_std(values: Sequence[float], template: str = "{:.2f}") -> str:
    """Format the mean ± the sample standard deviation; only the mean of a single value."""
    mean = template.format(np.mean(values))
    return f"{mean} ± {template.format(np.std(values, ddof=1))}" if len(values) > 1 else mean


def format_percent(shares: Sequence[float]) -> str:
    """Format the mean ± the standard deviation of shares (0..1) in percent."""
    return format_mean_std([100 * share for share in shares]) + " %"
