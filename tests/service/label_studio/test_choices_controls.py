"""A label config says where a class can be chosen; a hostile one says nothing."""

import pytest

from service.errors import InvalidLabelConfigError
from service.label_studio.choices_controls import MAX_CONFIG_CHARACTERS, find_controls

DIGITS = [str(number) for number in range(10)]
IMAGE = '<Image name="image" value="$photo"/>'


def test_control_has_the_choices_that_are_classes() -> None:
    (control,) = find_controls(
        f'<View>{IMAGE}<Choices name="digit" toName="image"><Choice value="7"/>'
        '<Choice value="Eight" alias="8"/><Choice value="9" alias="nine"/><Choice value="cat"/>'
        "</Choices></View>",
        DIGITS,
    )
    assert (control.name, control.image, control.data_key) == ("digit", "image", "photo")
    assert control.choices == {"7": "7", "8": "8", "9": "nine"}
    assert [control.class_of(each) for each in ("7", "nine", "cat")] == ["7", "9", None]


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
