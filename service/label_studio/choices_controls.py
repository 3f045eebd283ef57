"""Finds in a label config where a class can be chosen for an image. Knows no task.

A label config is XML of whoever may edit a project, so it is parsed without a DTD and within a
limit. https://labelstud.io/tags/choices describes the tags.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from service.errors import InvalidLabelConfigError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_CONFIG_CHARACTERS = 2**18
MAX_TAGS = 2**13
"""So many are parsed and searched in a few milliseconds."""
MAX_CONTROLS = 16
"""Most `Choices` over one image, each of which has a result in the prediction of every task."""


class ChoicesControl(NamedTuple):
    """One `Choices` tag over an image."""

    name: str
    image: str
    """The name of the `Image` tag that it is about."""
    data_key: str
    """The key of a task's data that has the image."""
    choices: Mapping[str, str]
    """The choice of each class, as results name it."""
    classes: Mapping[str, str]
    """The class of each choice."""


def find_controls(config: str, class_names: Sequence[str]) -> tuple[ChoicesControl, ...]:
    """Return the `Choices` tags over one image that have a choice for at least one class.

    That is the first image that has such a tag. A choice is that of the class whose name is its
    value or its alias.

    Raises:
        InvalidLabelConfigError: it is no XML, or has no such tag, or too many of them.
    """
    root = _parse(config)
    images = {
        tag.get("name", ""): tag.get("value", "")[1:]
        for tag in root.iter("Image")
        if tag.get("value", "").startswith("$")
    }
    found = tuple(_controls(root, images, class_names))
    if not found:
        shown = ", ".join(map(repr, class_names[:10]))
        raise InvalidLabelConfigError(
            "The label config has no <Choices> over an <Image> with a choice for a class of the "
            f'model; write <Image name="image" value="$image"/> and <Choices name="class" '
            f'toName="image"> with choices such as {shown[:300]}.'
        )
    of_first = tuple(each for each in found if each.image == found[0].image)
    if len(of_first) > MAX_CONTROLS:
        raise InvalidLabelConfigError(
            f"The label config has {len(of_first)} <Choices> over one <Image> with a choice for a "
            f"class of the model; leave at most {MAX_CONTROLS} of them."
        )
    return of_first


def _controls(
    root: "Element", images: Mapping[str, str], class_names: Sequence[str]
) -> Iterator[ChoicesControl]:
    for tag, inside in _choices_tags(root):
        name, image = tag.get("name", ""), tag.get("toName", "")
        shown = dict(_named_choices(inside))
        choices = {each: shown[each] for each in class_names if each in shown} if shown else {}
        if name and choices and image in images:
            classes = {choice: each for each, choice in reversed(choices.items())}
            yield ChoicesControl(name, image, images[image], choices, classes)


def _choices_tags(root: "Element") -> list[tuple["Element", list["Element"]]]:
    """Return each `Choices` tag, and the `Choice` tags of which it is the nearest such one.

    Each tag is visited once, however deep a hostile config nests them.
    """
    found: list[tuple[Element, list[Element]]] = []
    waiting: list[tuple[Element, list[Element]]] = [(root, [])]
    while waiting:
        tag, nearest = waiting.pop()
        if tag.tag == "Choices":
            nearest = []
            found.append((tag, nearest))
        elif tag.tag == "Choice":
            nearest.append(tag)
        waiting += ((child, nearest) for child in reversed(tag))
    return found


def _named_choices(choices: Iterable["Element"]) -> Iterator[tuple[str, str]]:
    """Yield each name of each `Choice` tag, and how results name it."""
    for choice in choices:
        value, alias = choice.get("value"), choice.get("alias")
        shown = alias or value
        if shown:
            yield from ((name, shown) for name in (value, alias) if name)


def _parse(config: str) -> "Element":
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if len(config) > MAX_CONFIG_CHARACTERS:
        raise InvalidLabelConfigError(
            f"The label config has more than {MAX_CONFIG_CHARACTERS:,} characters; shorten it."
        )
    if config.count("<") > MAX_TAGS:
        raise InvalidLabelConfigError(
            f"The label config has more than {MAX_TAGS:,} tags; shorten it."
        )
    try:
        root: Element = fromstring(config, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        reason = "it has a DTD" if isinstance(error, DefusedXmlException) else str(error)[:200]
        raise InvalidLabelConfigError(
            f"The label config is no XML that is read here: {reason}; correct it in the project's "
            "settings."
        ) from None
    return root
