"""A label config says where a class can be chosen; a hostile one says nothing."""

import pytest

from service.errors import InvalidLabelConfigError
from service.label_studio.choices_controls import (
    MAX_CONFIG_CHARACTERS,
    MAX_CONTROLS,
    MAX_TAGS,
    find_controls,
)

DIGITS = [str(number) for number in range(10)]
IMAGE = '<Image name="image" value="$photo"/>'
CHOICES = '<Choices name="d" toName="image"><Choice value="1"/></Choices>'


def test_control_has_the_choices_that_are_classes() -> None:
    (control,) = find_controls(
        f'<View>{IMAGE}<Choices name="digit" toName="image"><Choice value="7"/>'
        '<Choice value="Eight" alias="8"/><Choice value="9" alias="nine"/><Choice value="cat"/>'
        "</Choices></View>",
        DIGITS,
    )
    assert (control.name, control.image, control.data_key) == ("digit", "image", "photo")
    assert control.choices == {"7": "7", "8": "8", "9": "nine"}
    assert control.classes == {"7": "7", "8": "8", "nine": "9"}


def test_every_control_of_the_first_image_is_found() -> None:
    names = [
        each.name
        for each in find_controls(
            f'<View>{IMAGE}<Image name="other" value="$other"/>'
            '<Choices name="a" toName="image"><Choice value="1"/></Choices>'
            '<Choices name="b" toName="other"><Choice value="1"/></Choices>'
            '<Choices name="c" toName="image"><Choice value="2"/></Choices></View>',
            DIGITS,
        )
    ]
    assert names == ["a", "c"]


@pytest.mark.parametrize(
    "config",
    [
        "",
        "no XML",
        "<View/>",
        f"<View>{IMAGE}</View>",
        f'<View>{IMAGE}<Choices name="d" toName="image"><Choice value="cat"/></Choices></View>',
        f'<View>{IMAGE}<Choices name="d" toName="text"><Choice value="1"/></Choices></View>',
        '<View><Choices name="d" toName="image"><Choice value="1"/></Choices></View>',
        "<View>" * 100_000,
        f"<View>{IMAGE}{CHOICES}{'<a/>' * MAX_TAGS}</View>",
        f"<View>{IMAGE}{CHOICES * (MAX_CONTROLS + 1)}</View>",
        "<" * (MAX_CONFIG_CHARACTERS + 1),
        '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><View>&c;</View>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><View>&b;</View>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><View/>',
        "<View>\x00</View>",
        "<View>\ud800</View>",
    ],
    ids=lambda config: config[:30],
)
def test_config_without_a_class_to_choose_is_refused(config: str) -> None:
    with pytest.raises(InvalidLabelConfigError, match=r"^The label config .*\.$"):
        find_controls(config, DIGITS)


def test_choice_belongs_to_the_nearest_choices_and_may_be_in_other_tags() -> None:
    (control,) = find_controls(
        f'<View>{IMAGE}<Choices name="a" toName="image"><View><Choice value="1"/></View>'
        '<Choices><Choice value="2"/></Choices><Choice value="x"><Choice value="3"/></Choice>'
        "</Choices></View>",
        DIGITS,
    )
    assert list(control.choices) == ["1", "3"]
