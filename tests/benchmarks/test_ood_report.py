from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ood.__main__ import main
from benchmarks.ood.costs import Cost, measure_costs
from benchmarks.ood.measurements import (
    FALSE_ALARM_RATES,
    ONE_NETWORK,
    THINNED_NETWORKS,
    WITH_TYPICALITY,
    BundleFigures,
    Detection,
    KindFigures,
    Quality,
    ensemble_scores,
    measure_ensemble,
)
from benchmarks.ood.report import (
    SCORES,
    Comparison,
    answers_record,
    detection_record,
    format_mean_range,
    prediction_sets_record,
    published_record,
    quality_record,
    records,
)
from training.data.dataset import Split

LABELS = np.array([0, 0, 1, 1])
TEST = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
OOD = np.array([[0.5, 0.5], [0.55, 0.45]])
COSTS = {
    ONE_NETWORK: Cost(0.1, 0.05, 100_000),
    WITH_TYPICALITY: Cost(0.2, 0.06, 200_000),
    THINNED_NETWORKS: Cost(1.0, 0.5, 210_000),
    "deep ensemble of 2 networks": Cost(0.2, 0.1, 200_000),
}


def bundle_figures(auroc: float, answered: float = 0.1) -> BundleFigures:
    detection = {score: Detection(auroc - 0.1, 0.5) for score in SCORES}
    detection["typicality"] = Detection(auroc, 0.05)
    unusual = dict.fromkeys(FALSE_ALARM_RATES, 0.8)
    return BundleFigures(
        quality=dict.fromkeys((ONE_NETWORK, THINNED_NETWORKS), Quality(auroc, 0.2, 0.01, 0.005)),
        kinds={
            "mnist": KindFigures(2, detection, unusual, answered),
            "noise": KindFigures(2, detection, unusual, 0.0),
        },
        false_alarms={0.01: 0.012, 0.05: 0.049},
        abstention={
            "max_risk": 0.01,
            "max_false_alarm": 0.01,
            "answered": 0.7,
            "unusual": 0.01,
            "error": 0.008,
        },
        prediction_sets={
            "thr": {
                "coverage": 0.9,
                "covered": 0.91,
                "size": 1.1,
                "by_class": {"a": 0.7, "b": 0.99},
                "worst_class": "a",
            }
        },
        test_probabilities=TEST,
        uncalibrated_probabilities=TEST,
        ood_probabilities={"mnist": OOD, "noise": OOD},
    )


@pytest.fixture
def comparison() -> Comparison:
    bundles = [bundle_figures(0.9), bundle_figures(0.96, answered=0.3)]
    ensemble = measure_ensemble(bundles, LABELS)
    return Comparison(
        "fashion-mnist", "a part of it", 4, bundles, ensemble, COSTS, machine="two cores"
    )


def test_mean_and_range_are_one_number_for_a_single_seed() -> None:
    assert format_mean_range([0.5], "{:.2f}") == "0.50"
    assert format_mean_range([0.4, 0.6, 0.8], "{:.1f}") == "0.6 (0.4 to 0.8)"


def test_equal_members_of_an_ensemble_have_no_mutual_information() -> None:
    scores = ensemble_scores(np.stack([TEST, TEST]))
    assert scores["mutual information"] == pytest.approx(np.zeros(4), abs=1e-12)
    assert scores["maximum probability"] == pytest.approx(1 - TEST.max(axis=1))


def test_members_that_are_sure_of_different_classes_have_a_bit_of_mutual_information() -> None:
    opposite = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert ensemble_scores(opposite)["mutual information"] == pytest.approx(np.log(2))


def test_ensemble_is_measured_on_the_mean_probabilities() -> None:
    members = [bundle_figures(0.9), replace(bundle_figures(0.9), test_probabilities=TEST[:, ::-1])]
    figures = measure_ensemble(members, LABELS)
    assert figures.members == 2
    assert figures.quality.nll == pytest.approx(np.log(2))  # the mean is 1/2 for every class


def test_quality_has_a_row_for_each_way_to_predict_and_its_cost(comparison: Comparison) -> None:
    rows = quality_record(comparison).rows
    assert [row[0] for row in rows] == [
        *COSTS,
        "deep ensemble of 2 networks, before calibration",
    ]
    assert rows[0][1:3] == ("93.00 (90.00 to 96.00) %", "0.2000 (0.2000 to 0.2000)")
    assert rows[0][-3:] == ("0.10 ms", "0.05 ms", "100 kB")
    assert rows[-1][1] == "75.00 %"


def test_detection_has_a_column_for_each_score_and_those_of_the_ensemble(
    comparison: Comparison,
) -> None:
    record = detection_record(comparison)
    assert record.columns[1:6] == SCORES
    assert record.columns[6:] == (
        "ensemble's maximum probability",
        "ensemble's predictive entropy",
        "ensemble's mutual information",
    )
    assert [row[0] for row in record.rows] == ["mnist", "noise", "mean of all kinds"]
    assert record.rows[0][5] == "0.930 (0.900 to 0.960), 5.0 %"
    assert record.rows[-1][5] == "0.930"
    assert all(len(row) == len(record.columns) for row in record.rows)


def test_answers_begin_with_the_test_images_and_name_the_kind_answered_most(
    comparison: Comparison,
) -> None:
    record = answers_record(comparison)
    assert record.rows[0][:3] == ("none: test images", "4", "1.2 (1.2 to 1.2) %")
    assert record.rows[1][-1] == "20.0 (10.0 to 30.0) %"
    assert "“mnist”: 20.0 %" in record.finding


def test_answers_claim_no_error_rate_where_nothing_is_answered(comparison: Comparison) -> None:
    silent = bundle_figures(0.9)
    silent = replace(silent, abstention={**silent.abstention, "answered": 0.0, "error": None})
    finding = answers_record(replace(comparison, bundles=[silent])).finding
    assert finding.startswith("No test image is answered")


def test_prediction_sets_name_the_worst_class(comparison: Comparison) -> None:
    assert prediction_sets_record(comparison).rows[0][3:5] == ("70.0 (70.0 to 70.0) %", "a")


def test_published_results_stand_below_those_of_the_run_with_their_source(
    comparison: Comparison,
) -> None:
    record = published_record(comparison)
    assert record is not None
    sources = [row[-1] for row in record.rows]
    assert sources[: len(SCORES)] == ["this run"] * len(SCORES)
    assert "van Amersfoort et al. 2020" in sources[-1]


def test_data_without_published_results_has_no_table_of_them(comparison: Comparison) -> None:
    tables = records(replace(comparison, data="digits", ensemble=None))
    assert len(tables) == 4
    assert len({table.name for table in tables}) == 4


def test_costs_are_those_of_each_way_to_predict(bundle_folder: Path, held_out: Split) -> None:
    costs = measure_costs([bundle_folder, bundle_folder], held_out.images[:3], rounds=1)
    assert list(costs) == list(COSTS)
    assert costs[ONE_NETWORK].size_bytes < costs[WITH_TYPICALITY].size_bytes
    assert costs["deep ensemble of 2 networks"].size_bytes == 2 * costs[ONE_NETWORK].size_bytes
    assert all(cost.single_ms > 0 < cost.batch_ms for cost in costs.values())


def test_program_measures_a_bundle_and_records_its_tables(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments.md").write_text("# Experiments\n\n## 2020-01-01 · Old\n\ntext\n")
    folder = str(bundle_folder)
    assert main([folder, folder, "--ensemble", "--record", str(tmp_path)]) == 0
    assert "upside down" in capsys.readouterr().out
    notes = (tmp_path / "experiments.md").read_text()
    titles = [line.partition(" · ")[2] for line in notes.splitlines() if line.startswith("## ")]
    assert titles == [
        "digits: answers to test images, and their cost",
        "digits: which score detects OOD images",
        "digits: what is called unusual, and what is answered",
        "digits: prediction sets by class",
        "Old",
    ]
    assert (tmp_path / "plots" / "ood-detection-digits.svg").is_file()
