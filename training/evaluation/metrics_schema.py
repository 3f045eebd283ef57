"""Types of the measured metrics as JSON: `metrics` in `manifest.json`, and `figures.json`.

Each is a plain dict at run time, written to a file as it is. Knows no numpy and measures nothing.
Shares and rates are 0..1; NLL is in nats; the Brier score is 0..2.
"""

from typing import Literal, TypedDict


class Top5Metrics(TypedDict, total=False):
    """Present only where there are more than 5 classes."""

    top5_accuracy: float


class ClassificationMetrics(Top5Metrics):
    """How good one array of class probabilities is, given the true classes."""

    accuracy: float
    nll: float
    brier: float
    ece: float


class McDropoutMetrics(ClassificationMetrics):
    """The metrics of the mean probabilities with dropout active."""

    samples: int
    seed: int


class PredictionMetrics(ClassificationMetrics):
    """The metrics of the deterministic predictions, and of those with dropout active."""

    mc_dropout: McDropoutMetrics


class ClassMetrics(TypedDict):
    """The metrics of one class."""

    precision: float
    recall: float
    images: int


class SplitMetrics(PredictionMetrics):
    """What is measured on one data split."""

    images: int
    uncalibrated: PredictionMetrics | None
    """The metrics before calibration; None for a bundle without a calibration."""
    per_class: dict[str, ClassMetrics]
    confusion_matrix: list[list[int]]
    """Counts of images by true class (row) and predicted class (column)."""


class AbstentionMetrics(TypedDict):
    """Selective prediction at the bundle's own maximum risk."""

    max_risk: float
    max_false_alarm: float
    answered: float
    """Share of images whose prediction does not abstain."""
    unusual: float
    """Share of images that are unusual."""
    error: float | None
    """Error rate among the answered images; None where there are none."""


class PredictionSetMetrics(TypedDict):
    """Conformal prediction sets, over several random halvings of the images."""

    coverage: float
    """The coverage that the sets are fitted for."""
    splits: int
    """Number of random halvings."""
    covered: float
    """Share of sets that contain the true class: the mean over the halvings."""
    covered_least: float
    covered_most: float
    size: float
    """Mean number of classes in a set."""


class ClassCoverageMetrics(TypedDict):
    """Prediction sets with the bundle's own calibration, by class."""

    coverage: float
    """The coverage that the sets promise."""
    covered: float
    """Share of sets that contain the true class."""
    size: float
    """Mean number of classes in a set."""
    by_class: dict[str, float]
    """Share of sets that contain the true class, for each class that has images."""
    worst_class: str
    """The class with the lowest such share."""


class SelectiveMetrics(TypedDict):
    """Selective prediction and prediction sets; `trust` in the files."""

    aurc: float
    augrc: float
    selection: AbstentionMetrics | None
    """None for an uncalibrated bundle."""
    prediction_sets: PredictionSetMetrics | None
    """None where there are too few images."""
    class_coverage: dict[str, ClassCoverageMetrics] | None
    """By kind of sets, `thr` and `class-conditional`; None for an uncalibrated bundle."""


class OodScoreMetrics(TypedDict):
    """How well one score separates out-of-distribution images from the test images."""

    auroc: float
    fpr95: float


class OodMetrics(TypedDict):
    """Out-of-distribution detection; `strangers` in the files."""

    name: str
    """Name of the data set that the out-of-distribution images are from."""
    images: int
    scores: dict[str, OodScoreMetrics]


class OodEntry(TypedDict, total=False):
    """Present only where an out-of-distribution data set was measured."""

    strangers: OodMetrics


class HeldOutMetrics(SplitMetrics):
    """What is measured on the test images."""

    trust: SelectiveMetrics


class EvaluationMetrics(HeldOutMetrics, OodEntry):
    """The content of `figures.json`, which `python -m training.evaluate` writes."""


PrecisionMetric = Literal[
    "accuracy",
    "nll",
    "ece",
    "sampled_accuracy",
    "sampled_nll",
    "sampled_ece",
    "mutual_information",
    "mistakes_by_entropy",
    "mistakes_by_information",
]
PrecisionMetrics = dict[PrecisionMetric, float]
"""What the gate of `--quantize` compares; `mistakes_by_…` only where some prediction is wrong."""


class QuantizationMetrics(TypedDict):
    """The decision of the gate of `--quantize`, and the metrics that it compared."""

    refusals: list[str]
    calibration_images: int
    fp32: PrecisionMetrics
    int8: PrecisionMetrics


class HiddenLayerMetrics(TypedDict):
    """The health of a hidden layer on the validation images (`fitting.unit_diagnostics`)."""

    name: str
    units: int
    images: int
    nearly_dead: int
    always_on: int
    silenced_by_bias: int
    sparsity: float
    saturated: float | None
    dead: int
    deaths: int
    revivals: int


class DiagnosisMetrics(TypedDict):
    """The health of the hidden layers."""

    layers: list[HiddenLayerMetrics]
    advice: list[str]
    pruned_units: int


class LabelMetrics(TypedDict, total=False):
    """Present only for images that have file names."""

    label_candidates: int
    """Number of held-out images whose label is possibly wrong."""


class EarlierMetrics(TypedDict):
    """An earlier bundle and the new one on the same test images."""

    name: str
    version: int
    accuracy: float
    """Of the earlier bundle, as the next two."""
    nll: float
    ece: float
    right_now: int
    """Test images that only the new bundle answers rightly."""
    right_before: int
    """Test images that only the earlier bundle answers rightly."""
    p_value: float
    """Chance of a difference at least as large if both were equally good (McNemar's exact test)."""
    doubt: str | None
    """Why the figures of the earlier bundle may be too good; None: it was tested on these."""


class ComparedMetrics(TypedDict, total=False):
    """Present only with `--compare-with`."""

    earlier: EarlierMetrics


class DistributionMetrics(TypedDict):
    """How uncertain images are: `model.uncertainty.uncertainty_of_validation_images`."""

    images: int
    predictive_entropy: list[float]
    """Nats, at 0, 1, …, 100 per cent of the images."""
    mutual_information: list[float]
    """The same."""
    set_sizes: list[int] | None
    """Number of images whose set has 1, 2, … classes; None for an uncalibrated bundle."""
    coverage: float
    """Of the prediction sets."""


class BundleMetrics(LabelMetrics, ComparedMetrics):
    """`metrics` in `manifest.json`."""

    test: HeldOutMetrics
    validation: SplitMetrics
    distributions: DistributionMetrics
    """Of the validation images."""
    parity: float
    """Largest difference of a logit between the network and the exported graphs."""
    quantization: QuantizationMetrics | None
    """None without `--quantize`."""
    epochs: int | None
    """None for a head on a frozen backbone, which is trained in steps."""
    diagnosis: DiagnosisMetrics


class DropoutChoiceMetrics(TypedDict):
    """What the dropout of an adopted network was chosen by, on validation images."""

    images: int
    deterministic_nll: float
    """Without dropout, calibrated."""
    nll: dict[str, float]
    """Of the calibrated mean probabilities, by the probability of zeroing."""


class AdoptedMetrics(TypedDict):
    """`metrics` in `manifest.json` of an adopted network."""

    test: HeldOutMetrics
    validation: SplitMetrics
    distributions: DistributionMetrics
    """Of the validation images."""
    parity: float
    """Largest difference of an answer between the file and the bundle's graphs."""
    dropout_choice: DropoutChoiceMetrics | None
    """None where the dropout is the network's own, or was named."""
