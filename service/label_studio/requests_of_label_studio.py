"""Pydantic schemas of what Label Studio sends; fields that are not used here are ignored."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TASKS = 4096
"""Most tasks of a request; Label Studio sends all that are selected in one."""

_ANNOTATION_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")

Number = Annotated[int, Field(ge=0, lt=2**63)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Setup(_Schema):
    """The body of POST /setup; the token that it has, too, is not used."""

    label_config: str = Field(alias="schema", description="the project's label config, XML")


class Task(_Schema):
    """One task: an image to be labelled."""

    id: Number
    data: dict[str, Any] = Field(description="the image's URL under the key of the label config")


class PredictionRequest(_Schema):
    """The body of POST /predict."""

    tasks: list[Task] = Field(max_length=MAX_TASKS)
    label_config: str = Field(description="the project's label config, XML")


class Value(_Schema):
    """What a control holds; those that hold no choices have others of their own."""

    choices: list[str] = Field([], max_length=MAX_TASKS)


class Result(_Schema):
    """A part of an annotation, of one control."""

    from_name: str = ""
    value: Value | None = None


class Annotation(_Schema):
    """What somebody has labelled a task with."""

    task: Number
    was_cancelled: bool = False
    result: list[Result] = Field([], max_length=MAX_TASKS)


class Project(_Schema):
    """The project of an annotation."""

    label_config: str


class AnyEvent(_Schema):
    """The body of POST /webhook."""

    action: str = Field(max_length=100)

    @property
    def is_about_annotations(self) -> bool:
        """Whether it brings annotations; it is an `AnnotationEvent` then."""
        return self.action in _ANNOTATION_ACTIONS


class AnnotationEvent(AnyEvent):
    """The body of POST /webhook about annotations."""

    annotation: Annotation | Annotated[list[Annotation], Field(max_length=MAX_TASKS)]
    project: Project

    @property
    def annotations(self) -> list[Annotation]:
        """The annotations, of which there is mostly one."""
        return self.annotation if isinstance(self.annotation, list) else [self.annotation]
