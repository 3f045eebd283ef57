"""Pydantic schemas of the native routes. They validate queries and make the OpenAPI description."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Discriminator, Field, Tag

from model.bundle.architecture_description import DropoutLayer
from model.bundle.store import Manifest, Precision
from model.dropout.masks import MAX_SEED
from model.images.occlusion import MAX_CELLS
from model.images.preprocessing import InputSpec
from model.uncertainty.calibration import DEFAULT_MAX_FALSE_ALARM, AbstentionReason
from model.uncertainty.prediction_sets import SetKind

Method = Literal["mc_dropout", "analytic"]
OfferedDesign = Literal["orthogonal", "independent"]
AutoSamples = Literal["auto"]
Probability = Annotated[float, Field(ge=0, le=1)]
Nats = Annotated[float, Field(ge=0)]
ByClass = dict[str, Probability]


MAX_SAMPLE_PROBABILITIES = 2**18
"""Most numbers that `per_sample` adds to a response: about 3 MB of JSON. A single image may have
them all, and the interpreter serialises these without a pause, for some 10 ms."""

_VERSION = "an active version, by its number or as stable or canary; if left out, the stable one"


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelQuery(_Schema):
    """Query parameters of every route that answers for a model."""

    model: str | None = Field(None, description="model name; the default model if left out")
    version: str | None = Field(
        None, description=f"{_VERSION}, or the canary for its share of the requests"
    )


class NoQuery(_Schema):
    """The query of routes that take no parameters."""


class VersionQuery(_Schema):
    """Query parameters of the routes below GET /models/{name}."""

    version: str | None = Field(None, description=_VERSION)


class SamplingQuery(_Schema):
    """Query parameters that select how dropout is sampled."""

    samples: (
        Annotated[
            Annotated[AutoSamples, Tag("auto")] | Annotated[int, Field(ge=1), Tag("number")],
            Discriminator(lambda value: "auto" if value == "auto" else "number"),
        ]
        | None
    ) = Field(
        None,
        description="dropout samples T, or 'auto': as many as decide each label, at most the "
        "configured maximum; the configured number if left out",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="seed of the dropout masks; the configured one if left out",
    )
    method: Method = Field(
        "mc_dropout",
        description="mc_dropout draws samples; analytic integrates the distribution of the logits, "
        "and takes neither samples nor seed nor design. Of an adopted network that was not trained "
        "with dropout, both are a heuristic",
    )
    design: OfferedDesign | None = Field(
        None,
        description="how the masks depend on one another: orthogonal (if left out) are worth "
        "several times their number of independent ones",
    )


class AbstentionQuery(_Schema):
    """Query parameters that select when a prediction abstains."""

    max_risk: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="error rate to keep among the labels that are not abstained from; the model's "
        "if left out",
    )
    max_false_alarm: float = Field(
        DEFAULT_MAX_FALSE_ALARM,
        gt=0,
        lt=1,
        description="share of the images like the validation images that may count as unusual: "
        "those with a typicality of at most this abstain",
    )


class UncertaintyQuery(ModelQuery, SamplingQuery, AbstentionQuery):
    """Query parameters of POST /uncertainty."""

    coverage: float = Field(
        0.9, gt=0, lt=1, description="probability with which a prediction set holds the true class"
    )
    sets: SetKind = Field(
        "thr",
        description="thr: every class above one threshold, the smallest sets on average; "
        "class-conditional: a threshold for each class, so that the coverage holds for each; aps: "
        "the likeliest classes up to a total, fairer to hard images. Each set has the likeliest "
        "class too, so the coverage can only be higher",
    )
    per_sample: bool = Field(
        False,
        description="also return what each sample says: `sample_probabilities` and `votes`; "
        f"images x samples x classes may be at most {MAX_SAMPLE_PROBABILITIES:,}",
    )


class EncodedImage(_Schema):
    """A PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC file."""

    b64: str = Field(description="the file's bytes in base64")


class Instances(_Schema):
    """The JSON body of POST /predict and POST /uncertainty: one or more images."""

    instances: list[EncodedImage | list[list[Probability | list[Probability]]]] = Field(
        min_length=1,
        description='each {"b64": "..."} or nested numbers in 0..1, [H][W] (grey) or [H][W][C]',
    )


class OneInstance(_Schema):
    """The JSON body of POST /occlusion: one image."""

    instances: list[EncodedImage | list[list[Probability | list[Probability]]]] = Field(
        min_length=1, max_length=1, description="as in `Instances`"
    )


class NamedImage(_Schema):
    """An image under its input's name, as TensorFlow Serving's clients may send it."""

    images: EncodedImage | list[list[Probability | list[Probability]]]


class Rows(_Schema):
    """The body of /v1: `Instances` as TensorFlow Serving's clients send them."""

    instances: list[EncodedImage | NamedImage | list[list[Probability | list[Probability]]]] = (
        Field(min_length=1)
    )
    signature_name: Literal["serving_default"] = "serving_default"


class Prediction(_Schema):
    """The deterministic prediction for one image."""

    label: str = Field(description="the class of the highest probability")
    confidence: Probability = Field(description="the label's probability")
    probabilities: ByClass = Field(description="by class name; they add up to 1")
    typicality: Probability | None = Field(
        description="conformal p-value of the image among the validation images; null: uncalibrated"
    )


class Predictions(_Schema):
    """The response of POST /predict: one prediction per image, in order."""

    model: str
    version: str
    predictions: list[Prediction]


class UncertainPrediction(_Schema):
    """The prediction with dropout active for one image; entropies in nats."""

    label: str = Field(description="the class of the highest mean probability")
    confidence: Probability = Field(description="the label's mean probability")
    probabilities: ByClass = Field(description="mean over samples, by class name")
    probability_std: dict[str, float] = Field(description="standard deviation over samples")
    standard_error: dict[str, float | None] = Field(
        description="standard error of the mean, from the sampling alone, deliberately too large "
        "from 8 samples on; null where fewer than two samples were drawn"
    )
    predictive_entropy: Nats = Field(description="entropy of the mean, 0..ln K: total uncertainty")
    expected_entropy: Nats = Field(
        description="predictive entropy - mutual information: the aleatoric part"
    )
    mutual_information: Nats = Field(
        description="the epistemic part, corrected for the bias of few samples"
    )
    mutual_information_error: Nats | None = Field(description="its standard error; null as above")
    variation_ratio: Probability = Field(description="share of samples with another label")
    prediction_set: list[str] | None = Field(
        description="classes of which one is true with probability `coverage`, the likeliest "
        "first, which is always in it; null: uncalibrated"
    )
    typicality: Probability | None = Field(
        description="conformal p-value of the image among the n validation images, 1/(n + 1) to 1: "
        "the share of them, this image included, that are not more typical; null: uncalibrated"
    )
    abstain: bool | None = Field(
        description="true: do not act on the label, for the reason in `abstain_because`; null: "
        "uncalibrated"
    )
    abstain_because: AbstentionReason | None = Field(
        description="unsure: the confidence is below the threshold for `max_risk`; unusual: the "
        "typicality is at most `max_false_alarm`; null: it does not abstain, or is uncalibrated"
    )
    samples_used: int | None = Field(None, description="with samples=auto alone")
    stopped_because: Literal["settled", "maximum"] | None = Field(
        None,
        description="with samples=auto alone: settled, the label is decided: of all images, "
        "at most 1 % are decided for another label than endless sampling would give; maximum, the "
        "samples ran out first",
    )
    sample_probabilities: dict[str, list[Probability]] | None = Field(
        None,
        description="with per_sample alone: by class name, its probability in each of the T "
        "samples, in one order for all classes, float32; `probabilities` is their mean",
    )
    votes: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="with per_sample alone: by class name, in how many samples it is the likeliest "
        "class, the first of equal ones; they add up to T",
    )


class UncertainPredictions(_Schema):
    """The response of POST /uncertainty: one prediction per image, in order."""

    model: str
    version: str
    method: Method
    samples: int | AutoSamples | None = Field(description="null where none are drawn")
    seed: int | None
    calibration: Literal["fitted", "uncalibrated"] = Field(
        description="uncalibrated: too few validation images to fit temperature, sets, typicality "
        "and abstention"
    )
    coverage: float | None = Field(description="of the prediction sets; null: uncalibrated")
    max_risk: float | None = Field(
        description="error rate among answers that do not abstain; null: uncalibrated"
    )
    max_false_alarm: float | None = Field(
        description="share of unusual images among images like the validation images; null: "
        "uncalibrated"
    )
    predictions: list[UncertainPrediction]


class TestFigures(_Schema):
    """What was measured on the test images when a bundle was made; null: it was not measured."""

    images: int | None
    accuracy: float | None = Field(description="0..1")
    nll: float | None = Field(description="negative log-likelihood, nats")
    ece: float | None = Field(description="expected calibration error, 0..1")
    aurc: float | None = Field(description="area under the curve of risk over coverage")
    answered: float | None = Field(
        description="share of images that the version does not abstain from at its own limits"
    )
    error: float | None = Field(description="error rate among these; null: there are none")
    max_risk: float | None = Field(description="the error rate that it keeps there")


class VersionSummary(_Schema):
    """One version in service."""

    version: str
    role: Literal["stable", "canary"]
    share: float = Field(description="of the requests that name no version, 0..1")
    published: AwareDatetime | None = Field(
        description="when the bundle was written; null: by an earlier version of Dropserve"
    )
    preset: str = Field(
        description="kind of network: its preset or backbone; adopted: from elsewhere"
    )
    classes: int
    input: InputSpec
    parameters: int
    precision: Precision
    dropout: list[float] = Field(description="probability of zeroing, of each dropout layer")
    calibration_images: int | None = Field(description="null: uncalibrated")
    test: TestFigures
    hidden_units: int | None = Field(description="null: not measured, as of an adopted network")
    dead_units: int | None = Field(description="of these, units that never fire")
    examples: int = Field(description="number of validation images that it carries")
    has_report: bool


class OcclusionQuery(ModelQuery):
    """Query parameters of POST /occlusion."""

    label: str | None = Field(
        None, description="the class whose probability is followed; the answer's label if left out"
    )
    grid: int | None = Field(
        None,
        ge=1,
        le=MAX_CELLS,
        description="cells along the longer side of the model's input, at most its pixels; 14, or "
        "8 for more than 64 pixels, if left out",
    )
    patch: int | None = Field(
        None,
        ge=1,
        description="side of the patch that covers a cell and what is around it, in pixels of the "
        "model's input, at most its longer side; 2/9 of that if left out",
    )


class Region(_Schema):
    """A rectangle, in shares of the width and height of the upright image."""

    left: float
    top: float
    width: float
    height: float


class OcclusionMap(_Schema):
    """The response of POST /occlusion: what the probability of a label hangs on, cell by cell."""

    model: str
    version: str
    label: str
    confidence: Probability = Field(
        description="the label's probability for the whole image, as POST /predict gives it"
    )
    grid: list[int] = Field(description="[rows, columns] of cells, which tile the model's input")
    stride: list[float] = Field(description="[height, width] of a cell, pixels of that input")
    patch: list[int] = Field(
        description="[height, width] of the patch, centred on its cell and cut at the border, "
        "pixels of that input"
    )
    fill: list[Probability] = Field(
        description="the patch's colour, the mean of the image: one number (grey) or three (RGB)"
    )
    region: Region = Field(
        description="which part of the upright image the grid lies on; it begins below 0 and is "
        "larger than 1 where the model's resizing adds borders"
    )
    probabilities: list[list[Probability]] = Field(
        description="[rows][columns]: the label's probability with the patch on that cell"
    )
    importance: list[list[float]] = Field(
        description="[rows][columns]: `confidence` less `probabilities`, -1..1; above 0: what is "
        "there speaks for the label, below 0: against it"
    )


class ShadowImages(_Schema):
    """What became of the images that a shadow should be compared on."""

    compared: int
    dropped: int = Field(description="not compared, since there was no room")
    failed: int = Field(description="the shadow could not answer them")


class ShadowSummary(_Schema):
    """A shadow version, and how far its answers differ, since the service began or it loaded."""

    version: str
    share: float = Field(description="of the stable version's answers that are compared, 0..1")
    state: Literal["comparing", "failing", "refused"]
    reason: str | None = Field(description="why it fails or is refused, or what limits it")
    images: ShadowImages
    labels_differ: int
    abstentions_compared: int = Field(description="images of which both say whether they abstain")
    abstentions_differ: int
    mean_probability_difference: float | None = Field(
        description="mean over the images of the largest difference of a class's probability, 0..1"
    )


class ModelSummary(_Schema):
    """The active versions of a model."""

    name: str
    version: str
    class_names: list[str]
    input: InputSpec
    parameters: int
    precision: Precision = Field(description="what the trunk's convolutions compute with")
    dropout_layers: list[DropoutLayer]
    test_accuracy: float | None = Field(description="measured on the exported bundle, 0..1")
    held: bool = Field(description="false: a newer version takes over by itself")
    canary: str | None = Field(description="version on trial beside this one")
    canary_share: float = Field(description="of the requests that name no version, 0..1")
    shadow: ShadowSummary | None = Field(description="version that is compared with this one")
    versions: list[VersionSummary] = Field(description="every version in service, the stable first")


class CanaryQuery(_Schema):
    """Query parameters of POST /models/{name}/canary."""

    version: int = Field(ge=1, description="version to try")
    share: float = Field(0.1, gt=0, le=1, description="of the requests that name no version")


class ShadowQuery(_Schema):
    """Query parameters of POST /models/{name}/shadow."""

    version: int = Field(ge=1, description="version to compare")
    share: float = Field(1.0, gt=0, le=1, description="of the stable version's answers")


class PinQuery(_Schema):
    """Query parameters of POST /models/{name}/pin."""

    version: int = Field(ge=1, description="version to pin")


class RefusedVersion(_Schema):
    """A version that was refused when it was loaded."""

    name: str
    version: str
    reason: str


class Models(_Schema):
    """The response of GET /models."""

    default: str | None = Field(description="the model of requests that name none")
    models: list[ModelSummary]
    refused: list[RefusedVersion]
    unloaded: list[str] = Field(description="models that an operator has taken out of service")


class ModelCard(_Schema):
    """The response of GET /models/{name}: the manifest, and the model card as Markdown."""

    manifest: Manifest
    card: str


class ExampleImage(_Schema):
    """One of the validation images that a bundle carries."""

    number: int = Field(ge=0, description="0 for the one that the model is surest of")
    label: str = Field(description="its true class")
    href: str = Field(
        description="address of the image, a WebP file, relative to that of this response"
    )


class Examples(_Schema):
    """The response of GET /models/{name}/examples."""

    model: str
    version: str
    examples: list[ExampleImage] = Field(
        description="from the surest to the least sure; empty where the bundle carries none"
    )


class DriftMoment(_Schema):
    """An image of the stream that is tested."""

    image: int = Field(ge=1, description="its number, from 1")
    time: AwareDatetime = Field(description="when it was answered, UTC")


class DriftTail(_Schema):
    """How many images had a low p-value."""

    p_value: Probability = Field(description="images with this p-value or a lower one are counted")
    share: Probability | None = Field(description="of the images; null: there is none yet")
    expected: Probability = Field(
        description="of images like the validation images: `p_value`, in whole validation images"
    )


class DriftFigure(_Schema):
    """The drift test of one figure, by its rank among the validation images."""

    alarm: bool = Field(description="true: images like the validation images hardly explain it")
    log_wealth: float = Field(
        description="natural logarithm of the wealth of the test martingale now (an e-value); 0 at "
        "first"
    )
    p_value: Probability = Field(
        description="1 / the highest wealth so far: the probability that images like the "
        "validation images ever give as much evidence is at most this"
    )
    images: int = Field(ge=0, description="images that were tested")
    raised: DriftMoment | None = Field(
        description="the image that raised the alarm; null: there is no alarm"
    )
    since: DriftMoment | None = Field(
        description="the first image of the drift, by the hypothesis with the most evidence when "
        "the alarm was raised; null: there is no alarm"
    )
    tails: list[DriftTail]


class Drift(_Schema):
    """The response of GET /models/{name}/drift: both tests, each at half of the level."""

    model: str
    version: str
    calibration: Literal["fitted", "uncalibrated"] = Field(
        description="uncalibrated: too few validation images to test for drift; the rest is null"
    )
    level: Probability | None = Field(
        description="largest probability that images like the validation images ever raise the "
        "alarm; null: uncalibrated"
    )
    alarm: bool | None = Field(
        description="whether one of the figures has an alarm; null: uncalibrated"
    )
    typicality: DriftFigure | None = Field(description="null: uncalibrated")
    confidence: DriftFigure | None = Field(
        description="of images sampled as finely as the validation images were; null: uncalibrated"
    )


class DriftReset(_Schema):
    """The response of POST /models/{name}/drift/reset."""

    model: str
    versions: list[str] = Field(description="the active versions, which are tested anew")


class Live(_Schema):
    """The response of GET /health/live."""

    live: Literal[True]


class Ready(_Schema):
    """The response of GET /health/ready when its status is 200."""

    ready: Literal[True]


class Error(_Schema):
    """The response of every error, on every route."""

    error: str = Field(description="a sentence that says what to do")
    code: str = Field(description="a machine-readable code")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Build FastAPI's `responses` for a route's error statuses; all have the schema `Error`."""
    responses: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in statuses}
    return responses | {"default": {"model": Error, "description": "Any other error"}}
