"""The report that a browser opens: the card with its plots, one file with everything inside.

Measures nothing.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from model.bundle.store import CARD_FILE, REPORT_FOLDER
from training.data.dataset import Split
from training.evaluation.corruptions import CorruptionCurve
from training.evaluation.metrics import Evaluation
from training.evaluation.selective import FEWEST_IMAGES
from training.fitting.loop import TrainResult
from training.report import plots
from training.report import selective_plots as trust_plots
from training.report.card import card, evaluation_card
from training.report.selective_plots import OodAnswers

HTML_FILE = "report.html"

_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Subject:
    """What a report is of: the images, the answers to them, and to those images spoilt."""

    part: Split
    class_names: Sequence[str]
    evaluation: Evaluation
    corruption_curves: Sequence[CorruptionCurve]
    strangers: OodAnswers | None = None


def write_plots(folder: Path, subject: Subject, fitted: TrainResult) -> dict[str, str]:
    """Begin `report/` in a bundle's folder with its plots; return file -> title."""
    report = folder / REPORT_FOLDER
    report.mkdir()
    figures = {
        "Learning curves": plots.learning_curves(fitted.history),
        "Hidden layers, epoch by epoch": plots.hidden_layers(fitted.before, fitted.epochs),
        **drawn(subject),
    }
    return save(figures, report)


def write_card(
    folder: Path, manifest: dict[str, Any], version: int, pictures: Mapping[str, str]
) -> None:
    """Write into `report/` the card that shows its plots, and the page; over what was there."""
    report = folder / REPORT_FOLDER
    text = card(manifest, version, pictures)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    title = f"{manifest['name']}, version {version}"
    (report / HTML_FILE).write_text(page(title, text, report), encoding="utf-8")


def write_evaluation(
    folder: Path,
    manifest: dict[str, Any],
    data: str,
    same: bool,
    figures: dict[str, Any],
    subject: Subject,
) -> None:
    """Write the plots and the page of an evaluation into `folder`; see `training.report.card`."""
    text = evaluation_card(manifest, data, same, figures, save(drawn(subject), folder))
    title = f"{manifest['name']}, version {manifest['version']}, on {data}"
    (folder / HTML_FILE).write_text(page(title, text, folder), encoding="utf-8")


def drawn(subject: Subject) -> dict[str, Figure]:
    """Draw the answers: title -> plot."""
    evaluation = subject.evaluation
    counts = np.array(evaluation.metrics["confusion_matrix"])
    pictured = (evaluation, subject.part, subject.class_names)
    enough = len(evaluation.labels) >= FEWEST_IMAGES
    sets = {"Prediction sets": trust_plots.prediction_sets(evaluation)} if enough else {}
    return {
        "Confusion matrix": plots.confusion_matrix(counts, subject.class_names),
        "Reliability": plots.reliability(evaluation),
        "Risk and coverage": trust_plots.risk_coverage(evaluation),
        **sets,
        "Uncertainties": trust_plots.scores(evaluation, subject.strangers),
        "Noise, rotation, blur": trust_plots.corruptions(subject.corruption_curves),
        "Most and least certain images": trust_plots.certainty(*pictured),
        "Most confident mistakes": plots.mistakes(*pictured),
    }


def save(figures: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Write title -> plot into `folder` as PNG; return file -> title."""
    files = {re.sub(r"\W+", "_", title.lower()) + ".png": title for title in figures}
    for name, title in files.items():
        figures[title].savefig(folder / name, dpi=110)
    return files


def page(title: str, markdown: str, pictures: Path) -> str:
    """Turn the card into one HTML page that holds its PNG files, and whose text is only text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(markdown)
    for picture in pictures.glob("*.png"):
        encoded = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{encoded}"')
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)
