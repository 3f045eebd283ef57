import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.bundle.store import CARD_FILE
from tests.training.conftest import train_result
from training.data.dataset import Dataset
from training.evaluation.corruptions import CORRUPTIONS, CorruptionCurve
from training.evaluation.metrics import Evaluation
from training.evaluation.selective_prediction import selective_metrics
from training.fitting.unit_diagnostics import count_deaths_and_revivals
from training.report.html_report import (
    FILES_FILE,
    HTML_FILE,
    ReportData,
    render_page,
    write_card,
    write_plots,
)
from training.report.model_card import model_card
from training.report.plot_captions import CAPTIONS

VOID = {"meta", "img", "br", "hr", "link", "input"}
ADVICE = "dense 2: 12 of 100 units are dead. Try --learning-rate 0.002."


@pytest.fixture(scope="module")
def manifest(evaluation: Evaluation, dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a manifest that the report reads, for two layers and four epochs."""
    fitted = train_result(2, 4)
    changes = count_deaths_and_revivals(fitted.before, fitted.epochs)
    layers = [
        layer.model_dump(exclude={"dead_units"}) | {"dead": layer.dead, **vars(changes[layer.name])}
        for layer in fitted.after
    ]
    return {
        "name": "pictures",
        "class_names": dataset.class_names,
        "input": dataset.input.model_dump(),
        "architecture": {"preset": "mlp", "activation": "relu", "dropout": 0.5},
        "parameters": 12_345,
        "dropout_layers": [{"p": 0.5, "width": 500}],
        "training": {"seed": 7, "weight_averaging": 0.2},
        "data": dataset.manifest_entry(),
        "metrics": {
            "test": evaluation.metrics | {"trust": selective_metrics(evaluation, None)},
            "diagnosis": {"layers": layers, "advice": [ADVICE], "pruned_units": 24},
        },
    }


def test_card_shows_the_coverage_of_every_class(manifest: dict[str, Any], dataset: Dataset) -> None:
    names = dataset.class_names
    covered: dict[str, Any] = {
        "thr": {
            "coverage": 0.9,
            "covered": 0.91,
            "size": 1.25,
            "by_class": {names[0]: 0.5, names[1]: 1.0, names[2]: 0.75},
            "worst_class": names[0],
        },
        "class-conditional": {
            "coverage": 0.9,
            "covered": 0.9,
            "size": 1.5,
            "by_class": {names[1]: 0.875, names[2]: 0.9},
            "worst_class": names[1],
        },
    }
    test = manifest["metrics"]["test"]
    trust = test["trust"] | {"class_coverage": covered}
    metrics = manifest["metrics"] | {"test": test | {"trust": trust}}
    card = model_card(manifest | {"metrics": metrics}, 1, {})
    page = Page(render_page("pictures", card, Path()))
    assert "in thr sets" in card
    rows = [line for line in card.splitlines() if line.endswith(("| 50.00% | - |", "| 87.50% |"))]
    assert len(rows) == 2
    assert "of the kind thr, with the bundle's own calibration: 91.0% hold" in page.text
    assert f"of the worst class, {names[1]}, 87.5%" in page.text


@pytest.mark.parametrize(
    ("answered", "error", "sentence"),
    [
        (0.5, 0.02, "unusual: 50.0% of the images are answered, 2.00% of them wrong; 1.0% are"),
        (0.0, None, "unusual: none of the images is answered; 1.0% are unusual."),
    ],
)
def test_card_gives_an_error_only_of_images_that_are_answered(
    manifest: dict[str, Any], answered: float, error: float | None, sentence: str
) -> None:
    shares = {"max_risk": 0.2, "max_false_alarm": 0.01, "answered": answered, "unusual": 0.01}
    test = manifest["metrics"]["test"]
    trust = test["trust"] | {"selection": shares | {"error": error}}
    metrics = manifest["metrics"] | {"test": test | {"trust": trust}}
    assert sentence in model_card(manifest | {"metrics": metrics}, 1, {})


class Page(HTMLParser):
    """Parses a page, requires that elements close in order, and collects text and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        addresses = {"src", "href", "action", "data", "srcset", "poster"}
        self.addresses += [value or "" for name, value in attrs if name in addresses]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data


def corruption_curves() -> list[CorruptionCurve]:
    generator = np.random.default_rng(0)
    return [CorruptionCurve(each, *generator.random((4, 5)).tolist()) for each in CORRUPTIONS]


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    manifest: dict[str, Any],
    evaluation: Evaluation,
    dataset: Dataset,
) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    data = ReportData(dataset.test, dataset.class_names, evaluation, corruption_curves())
    write_card(folder, manifest, 3, write_plots(folder, data, train_result(2, 4)))
    return folder


@pytest.fixture(scope="module")
def plots(bundle: Path) -> dict[str, str]:
    """Return the titles of the plots by file name, as the card shows them."""
    shown = re.findall(r"^!\[(.*)\]\((\w+\.png)\)$", (bundle / CARD_FILE).read_text(), re.MULTILINE)
    return {name: title for title, name in shown}


@pytest.fixture(scope="module")
def html(bundle: Path) -> str:
    return (bundle / "report" / HTML_FILE).read_text(encoding="utf-8")


def test_report_names_no_file_and_can_do_without_pictures(
    tmp_path: Path, manifest: dict[str, Any], evaluation: Evaluation, dataset: Dataset
) -> None:
    curves = corruption_curves()
    data = ReportData(dataset.test, dataset.class_names, evaluation, curves, shows_images=False)
    plots = write_plots(tmp_path, data)
    write_card(tmp_path, manifest, 3, plots, "## Files\n\n- private/name.png\n")
    page = (tmp_path / "report" / HTML_FILE).read_text(encoding="utf-8")
    assert "private/name.png" not in page
    assert FILES_FILE in page
    assert "private/name.png" in (tmp_path / "report" / FILES_FILE).read_text(encoding="utf-8")
    assert not {"Most and least certain images", "Most confident mistakes"} & set(plots.values())


def test_report_page_loads_nothing_from_elsewhere(html: str, plots: dict[str, str]) -> None:
    addresses = Page(html).addresses
    assert len(addresses) == len(plots) == 10
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in html
    assert "@import" not in html


def test_every_plot_has_a_heading_and_a_caption(html: str, plots: dict[str, str]) -> None:
    for title in plots.values():
        assert f"<h3>{title}</h3>\n<p>{CAPTIONS[title][:20]}" in html
    assert set(CAPTIONS) == set(plots.values())


def test_report_page_contains_every_plot_of_the_folder(
    bundle: Path, html: str, plots: dict[str, str]
) -> None:
    inside = [base64.b64decode(address.partition(",")[2]) for address in Page(html).addresses]
    assert inside == [(bundle / "report" / name).read_bytes() for name in plots]
    for name in plots:
        with Image.open(bundle / "report" / name) as picture:
            assert min(picture.size) > 200


def test_report_page_shows_class_names_as_text(html: str, dataset: Dataset) -> None:
    read = Page(html)
    assert "script" not in read.tags
    assert set(dataset.class_names) <= set(read.cells)
    assert read.tags.count("table") == 3


def test_report_page_tables_have_rows_of_equal_length(html: str) -> None:
    """A `|` in a class name must not start another cell."""
    for table in html.split("<table>")[1:]:
        rows = table.partition("</table>")[0].split("<tr>")[1:]
        assert len({row.count("</td>") + row.count("</th>") for row in rows}) == 1


def test_render_page_shows_the_title_as_text(tmp_path: Path) -> None:
    read = Page(render_page("a <b>bold</b> & $title", "text", tmp_path))
    assert "a <b>bold</b> & $title" in read.text
    assert "b" not in read.tags


def test_model_card_and_page_name_every_layer_and_the_advice(
    bundle: Path, html: str, manifest: dict[str, Any], plots: dict[str, str]
) -> None:
    text = (bundle / CARD_FILE).read_text(encoding="utf-8")
    assert text == model_card(manifest, 3, plots)
    assert text.startswith("# pictures, version 3\n")
    for row in (
        "| dense 1 | 100 | 12 | 0 | 0 | 50.0% | - | 12 / 0 |",
        "| dense 2 | 100 | 12 | 0 | 0 | 50.0% | - | 12 / 0 |",
    ):
        assert row in text
    assert f"- {ADVICE}" in text
    assert "None of them is beyond" not in text
    assert "24 dead units were pruned; no answer on the test images moved." in text
    assert "below 0.30% (95 %)" in text
    read = Page(html)
    assert ADVICE in read.text
    assert {"dense 1", "dense 2"} <= set(read.cells)


def test_model_card_of_a_healthy_network_with_a_bounded_activation(
    manifest: dict[str, Any],
) -> None:
    layer = manifest["metrics"]["diagnosis"]["layers"][0] | {"dead": 0, "saturated": 0.123}
    diagnosis = {"layers": [layer], "advice": [], "pruned_units": 0}
    text = model_card(manifest | {"metrics": manifest["metrics"] | {"diagnosis": diagnosis}}, 3, {})
    assert "| 50.0% | 12.3% |" in text
    assert "None of them is beyond the limits of a warning." in text


@pytest.mark.parametrize(
    ("share", "sentence"),
    [
        (0.2, "The weights, averaged over about the last 20% of the steps, of the epoch with"),
        (0.0, "The weights of the epoch with the best validation loss were kept; nothing"),
    ],
)
def test_model_card_says_which_weights_were_kept(
    manifest: dict[str, Any], share: float, sentence: str
) -> None:
    assert sentence in model_card(
        manifest | {"training": {"seed": 7, "weight_averaging": share}}, 3, {}
    )
