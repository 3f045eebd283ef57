"""Makes the tables of the OOD benchmark. Measures nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from benchmarks.ood.costs import BATCH_SIZE, Cost, ensemble_name
from benchmarks.ood.measurements import (
    FALSE_ALARM_RATES,
    LOGIT_VARIANCE,
    ONE_NETWORK,
    THINNED_NETWORKS,
    TYPICALITY,
    WITH_TYPICALITY,
    BundleFigures,
    Detection,
    EnsembleFigures,
    Quality,
)
from benchmarks.ood.ood_images import MAX_IMAGES
from benchmarks.ood.published import PUBLISHED
from training.evaluation.metrics import SAMPLES
from training.experiments.experiment_record import Record

SCORES = (
    *("maximum probability", "predictive entropy", "mutual information"),
    *(LOGIT_VARIANCE, TYPICALITY),
)
_ENSEMBLE = "ensemble's "
_THIS_RUN = "this run"


@dataclass(frozen=True)
class Comparison:
    """All figures of one data set."""

    data: str
    """The option that names the data set."""
    description: str
    """Of the data set, which may be a part of what the option names."""
    test_images: int
    bundles: Sequence[BundleFigures]
    """Of one or several seeds."""
    ensemble: EnsembleFigures | None
    costs: Mapping[str, Cost]
    """By way to predict, of the first bundle."""
    machine: str
    """That the costs were measured on."""


def records(comparison: Comparison) -> list[Record]:
    """Return the tables in the order in which they are to be read."""
    tables = [
        quality_record(comparison),
        detection_record(comparison),
        answers_record(comparison),
        prediction_sets_record(comparison),
    ]
    published = published_record(comparison)
    return tables if published is None else [*tables, published]


def quality_record(comparison: Comparison) -> Record:
    """Return how good each way to predict is on the test images, and what it costs."""
    bundles, ensemble = comparison.bundles, comparison.ensemble
    one_network = [each.quality[ONE_NETWORK] for each in bundles]
    thinned = [each.quality[THINNED_NETWORKS] for each in bundles]
    measured: list[tuple[str, str, Sequence[Quality]]] = [
        (ONE_NETWORK, "", one_network),
        (WITH_TYPICALITY, "", one_network),
        (THINNED_NETWORKS, "", thinned),
    ]
    if ensemble is not None:
        name = ensemble_name(ensemble.members)
        measured.append((name, "", [ensemble.quality]))
        measured.append((name, ", before calibration", [ensemble.uncalibrated_quality]))
    rows = []
    for name, note, found in measured:
        cost = comparison.costs[name]
        rows.append(
            (
                name + note,
                format_mean_range([100 * each.accuracy for each in found], "{:.2f}") + " %",
                format_mean_range([each.nll for each in found], "{:.4f}"),
                format_mean_range([each.ece for each in found], "{:.4f}"),
                format_mean_range([each.aurc for each in found], "{:.4f}"),
                f"{cost.single_ms:.2f} ms",
                f"{cost.batch_ms:.2f} ms",
                f"{cost.size_bytes / 1000:,.0f} kB",
            )
        )
    slower = comparison.costs[WITH_TYPICALITY].batch_ms / comparison.costs[ONE_NETWORK].batch_ms
    return Record(
        name=f"ood-quality-{comparison.data}",
        title=f"{comparison.data}: answers to test images, and their cost",
        setting=f"{_seeds(comparison)}; {comparison.test_images:,} test images. Times are of an "
        f"image alone, and of one in a batch of {BATCH_SIZE}, on one core of "
        f"{comparison.machine}, measured by turns: medians; the kB are of graphs and calibration.",
        columns=("prediction", "accuracy", "NLL", "ECE", "AURC", "alone", "in a batch", "size"),
        rows=rows,
        finding=f"Typicality makes a prediction in a batch take {slower:.2f} times as long.",
    )


def detection_record(comparison: Comparison) -> Record:
    """Return how well each score detects each kind of OOD images."""
    aurocs = _detections(comparison, lambda detection: detection.auroc)
    rates = _detections(comparison, lambda detection: detection.fpr95)
    means = {
        score: float(np.mean([np.mean(aurocs[kind][score]) for kind in aurocs]))
        for score in _score_names(comparison)
    }
    hardest = min(aurocs, key=lambda kind: float(np.mean(aurocs[kind][TYPICALITY])))
    others = {score: mean for score, mean in means.items() if score != TYPICALITY}
    best_other = max(others, key=others.__getitem__)
    rows = [
        (
            kind,
            *(
                format_mean_range(aurocs[kind][score], "{:.3f}")
                + f", {100 * np.mean(rates[kind][score]):.1f} %"
                for score in means
            ),
        )
        for kind in aurocs
    ]
    rows.append(("mean of all kinds", *(f"{mean:.3f}" for mean in means.values())))
    return Record(
        name=f"ood-detection-{comparison.data}",
        title=f"{comparison.data}: which score detects OOD images",
        setting=f"{_seeds(comparison)}; AUROC, FPR95 of each score, {comparison.test_images:,} "
        f"test images against at most {MAX_IMAGES:,} of each kind. Mutual information and logit "
        f"variance are those between {SAMPLES} samples. The weights of typicality's score were "
        "chosen on noise, blanks and altered training images too, but on no other data set.",
        columns=("OOD images", *means),
        rows=rows,
        finding=f"Mean AUROC over the kinds: {means[TYPICALITY]:.3f} by typicality, "
        f"{means[best_other]:.3f} by the next best, {best_other}. Typicality detects "
        f"“{hardest}” worst: {np.mean(aurocs[hardest][TYPICALITY]):.3f}.",
        figure=_figure(comparison, aurocs),
    )


def answers_record(comparison: Comparison) -> Record:
    """Return what is called unusual, and what is answered with default settings."""
    bundles = comparison.bundles
    measured = [bundle.abstention["error"] for bundle in bundles]
    errors = [error for error in measured if error is not None]
    risks = sorted({bundle.abstention["max_risk"] for bundle in bundles})
    kinds = bundles[0].kinds
    rows = [
        (
            "none: test images",
            f"{comparison.test_images:,}",
            *(
                _percent([each.false_alarms[rate] for each in bundles])
                for rate in FALSE_ALARM_RATES
            ),
            _percent([bundle.abstention["answered"] for bundle in bundles]),
        )
    ]
    rows += [
        (
            kind,
            f"{kinds[kind].images:,}",
            *(
                _percent([bundle.kinds[kind].unusual[rate] for bundle in bundles])
                for rate in FALSE_ALARM_RATES
            ),
            _percent([bundle.kinds[kind].answered for bundle in bundles]),
        )
        for kind in kinds
    ]
    answered = {kind: np.mean([each.kinds[kind].answered for each in bundles]) for kind in kinds}
    most = max(answered, key=answered.__getitem__)
    wrong = "No test image is answered: the confidence keeps to no such risk."
    if errors:
        wrong = f"Of the answered test images {_percent(errors)} are wrong."
    return Record(
        name=f"ood-answers-{comparison.data}",
        title=f"{comparison.data}: what is called unusual, and what is answered",
        setting=f"{_seeds(comparison)}; the share of images that are unusual at two false-alarm "
        "rates, and of those that get a label with default settings, "
        f"`max_risk` {' or '.join(f'{risk:g}' for risk in risks)}.",
        columns=(
            "OOD images",
            "images",
            *(f"unusual at {100 * rate:.0f} %" for rate in FALSE_ALARM_RATES),
            "answered",
        ),
        rows=rows,
        finding=f"{wrong} The OOD images that are answered most often are “{most}”: "
        f"{100 * answered[most]:.1f} %.",
    )


def prediction_sets_record(comparison: Comparison) -> Record:
    """Return the coverage of prediction sets over all test images, and of the worst class."""
    rows = []
    for kind in comparison.bundles[0].prediction_sets:
        metrics = [bundle.prediction_sets[kind] for bundle in comparison.bundles]
        rows.append(
            (
                f"`{kind}`",
                f"{100 * metrics[0]['coverage']:.0f} %",
                _percent([each["covered"] for each in metrics]),
                _percent([each["by_class"][each["worst_class"]] for each in metrics]),
                ", ".join(sorted({each["worst_class"] for each in metrics})),
                format_mean_range([each["size"] for each in metrics], "{:.2f}"),
            )
        )
    return Record(
        name=f"ood-sets-{comparison.data}",
        title=f"{comparison.data}: prediction sets by class",
        setting=f"{_seeds(comparison)}; {comparison.test_images:,} test images.",
        columns=("sets", "promised", "covered", "covered, worst class", "that class", "size"),
        rows=rows,
        finding=f"The worst class is covered to {rows[0][3]} with {rows[0][0]} sets and to "
        f"{rows[-1][3]} with {rows[-1][0]} sets.",
    )


def published_record(comparison: Comparison) -> Record | None:
    """Return published results beside those of this run; None if there are none of this data."""
    kinds = comparison.bundles[0].kinds
    published = [each for each in PUBLISHED if each.data == comparison.data and each.ood in kinds]
    if not published:
        return None
    aurocs = _detections(comparison, lambda detection: detection.auroc)
    accuracies = [each.quality[ONE_NETWORK].accuracy for each in comparison.bundles]
    rows = [
        (
            ood,
            score,
            format_mean_range(aurocs[ood][score], "{:.3f}"),
            _accuracy(comparison, score, accuracies),
            _THIS_RUN,
        )
        for ood in dict.fromkeys(each.ood for each in published)
        for score in _score_names(comparison)
    ]
    rows += [
        (each.ood, each.method, f"{each.auroc:.3f}", f"{100 * each.accuracy:.1f} %", each.source)
        for each in published
    ]
    return Record(
        name=f"ood-published-{comparison.data}",
        title=f"{comparison.data}: OOD detection beside published results",
        setting=f"{_seeds(comparison)}; at most {MAX_IMAGES:,} OOD images here. The networks of "
        "the sources are others than those of this run, so this is no comparison of methods.",
        columns=("OOD images", "score", "AUROC", "accuracy", "source"),
        rows=rows,
        finding="Published figures are quoted, not measured here.",
    )


def format_mean_range(values: Sequence[float], template: str) -> str:
    """Format the mean, and in parentheses the range; only the mean of a single value."""
    mean = template.format(np.mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({template.format(min(values))} to {template.format(max(values))})"


def _percent(shares: Sequence[float]) -> str:
    return format_mean_range([100 * share for share in shares], "{:.1f}") + " %"


def _accuracy(comparison: Comparison, score: str, one_network: Sequence[float]) -> str:
    """Return the accuracy of what the score belongs to."""
    if comparison.ensemble is not None and score.startswith(_ENSEMBLE):
        return f"{100 * comparison.ensemble.quality.accuracy:.1f} %"
    return format_mean_range([100 * each for each in one_network], "{:.1f}") + " %"


def _seeds(comparison: Comparison) -> str:
    count = len(comparison.bundles)
    bundles = "one bundle" if count == 1 else f"mean and range of {count} bundles"
    return f"{bundles}, trained on {comparison.description}"


def _score_names(comparison: Comparison) -> list[str]:
    if comparison.ensemble is None:
        return list(SCORES)
    scores = next(iter(comparison.ensemble.detection.values()))
    return [*SCORES, *(_ENSEMBLE + score for score in scores)]


def _detections(
    comparison: Comparison, figure: Callable[[Detection], float]
) -> dict[str, dict[str, list[float]]]:
    """Return a figure of each kind of images and score, of every bundle or of the ensemble."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in comparison.bundles[0].kinds:
        found[kind] = {
            score: [figure(bundle.kinds[kind].detection[score]) for bundle in comparison.bundles]
            for score in SCORES
        }
        if comparison.ensemble is not None:
            for score, detection in comparison.ensemble.detection[kind].items():
                found[kind][_ENSEMBLE + score] = [figure(detection)]
    return found


def _figure(comparison: Comparison, aurocs: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(aurocs)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(aurocs))
    for score in _score_names(comparison):
        means = [float(np.mean(each[score])) for each in aurocs.values()]
        marker = "x" if score.startswith(_ENSEMBLE) else "o"
        axes.plot(means, places, marker, label=score, alpha=0.8)
    axes.set_yticks(places, list(aurocs))
    axes.invert_yaxis()
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(xlabel="AUROC", xlim=(None, 1.02))
    axes.set_title(f"{comparison.data}: which score detects OOD images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure
