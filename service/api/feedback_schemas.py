"""Pydantic schemas of the routes of feedback. They validate bodies and make the description."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from model.uncertainty.prediction_sets import SetKind
from service.api.schemas import ModelQuery, Probability
from service.feedback.remembered_answer import MAX_REQUEST_ID

MAX_LABELS = 500
"""Most true labels of a request."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FeedbackQuery(ModelQuery):
    """Query parameters of POST /feedback; all of them are for images."""

    label: str | None = Field(
        None,
        min_length=1,
        description="true class of the images in the body; if left out, the body has the labels of "
        "earlier answers",
    )
    keep: bool = Field(
        False,
        description="with label: store the images, as the network takes them, for an export; "
        "nothing of an image is stored otherwise",
    )


class LabelOfAnswer(_Schema):
    """The true label of one image of an earlier answer."""

    request_id: str = Field(
        min_length=1,
        max_length=MAX_REQUEST_ID,
        description="the header X-Request-ID of the answer",
    )
    image: int = Field(
        0, ge=0, strict=True, description="number of the image in that request, from 0"
    )
    label: str = Field(min_length=1, max_length=1000, description="its true class")


LabelsOfAnswers: TypeAdapter[list[LabelOfAnswer]] = TypeAdapter(list[LabelOfAnswer])
LABELS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"$ref": "#/components/schemas/LabelOfAnswer"},
        {
            "type": "array",
            "items": {"$ref": "#/components/schemas/LabelOfAnswer"},
            "minItems": 1,
            "maxItems": MAX_LABELS,
        },
        {"$ref": "#/components/schemas/Instances"},
    ]
}


class FeedbackResult(_Schema):
    """What became of one true label."""

    request_id: str
    image: int = Field(ge=0)
    outcome: Literal["added", "unchanged", "replaced", "refused"] = Field(
        description="unchanged: the image had this label already. replaced: it had another one"
    )
    model: str | None = Field(description="that has answered; null: refused")
    version: str | None = Field(description="null: refused")
    predicted: str | None = Field(description="the label of the answer; null: refused")
    correct: bool | None = Field(description="whether that was the true one; null: refused")
    error: str | None = Field(description="why it is refused; null: it is not")
    code: str | None = Field(description="code of that error; null: it is not refused")


class FeedbackResults(_Schema):
    """The response of POST /feedback: one result for each label, in order."""

    results: list[FeedbackResult]


class Share(_Schema):
    """A share of labelled images, with its 95 % score interval (Wilson 1927)."""

    estimate: float
    low: float
    high: float


class PromiseAlarm(_Schema):
    """A moment at which the evidence against a promise was enough."""

    label: int = Field(ge=1, description="number of the label that raised it, from 1")
    time: AwareDatetime = Field(description="when it arrived, UTC")


class PromiseTest(_Schema):
    """The sequential test of one promise; it may be looked at after every label."""

    promise: Literal["max_risk", "coverage"]
    sets: SetKind | None = Field(description="kind of the prediction sets; null: max_risk")
    coverage: Probability | None = Field(description="that they promise; null: max_risk")
    labels: int = Field(ge=0, description="labels that were tested, as they first arrived")
    missed: int = Field(ge=0, description="wrong answers, or sets without the true class")
    missed_share: Share | None = Field(description="null: no label yet")
    log_wealth: float = Field(
        description="natural logarithm of the wealth of the test now; 0 at first"
    )
    p_value: Probability = Field(
        description="1 / the highest wealth so far: while the promise is kept, the probability of "
        "as much evidence is at most this"
    )
    alarm: PromiseAlarm | None = Field(description="null: there is no alarm")


class ConfidenceBin(_Schema):
    """Labelled images whose confidence lies in one of 15 bins of equal width."""

    low: Probability
    high: Probability
    labels: int = Field(ge=1)
    confidence: Probability = Field(description="mean")
    accuracy: Share


class VersionFeedback(_Schema):
    """The response of GET /models/{name}/feedback: what the true labels of a version say."""

    model: str
    version: str
    labels: int = Field(ge=0, description="answered images with a true label")
    accuracy: Share | None = Field(description="null: no label")
    coverage: Share | None = Field(
        description="prediction sets with the true class; null: no set has a label"
    )
    set_size: float | None = Field(description="mean classes of these sets; null as above")
    answered: Share | None = Field(
        description="answers that do not abstain; null: none says whether it does"
    )
    error_among_answered: Share | None = Field(
        description="wrong ones among the answers that do not abstain; null: there is none"
    )
    overconfidence: Share | None = Field(
        description="mean confidence minus accuracy, with the interval of the accuracy; null: no "
        "label"
    )
    calibration_error: float | None = Field(
        ge=0,
        description="expected calibration error in 15 bins; few labels make it too high; null: no "
        "label",
    )
    bins: list[ConfidenceBin] = Field(description="those with labels")
    alarm_rate: Probability = Field(
        description="largest probability that any test ever raises the alarm while the promises "
        "are kept"
    )
    alarm: bool = Field(description="whether one of the tests has an alarm")
    tests: list[PromiseTest]
