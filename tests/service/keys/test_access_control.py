"""Tests of the decision about one request: the key's headers, its scope, and repeated failures."""

import base64
import string
from pathlib import Path

import pytest

from service.errors import (
    InvalidKeyError,
    KeyRequiredError,
    KeyScopeError,
    TooManyAttemptsError,
)
from service.keys.access_control import AccessControl
from service.keys.key_file_changes import add_key
from service.keys.key_ring import KeyRing
from service.observability.metrics_recorder import Metrics
from tests.service.serving import metric

WRONG = "ds-00000000-" + "A" * 43


class Access:
    """An access control with one key, and its metrics."""

    def __init__(self, folder: Path) -> None:
        file = folder / "keys.json"
        self.token = add_key(file, "me", frozenset({"predict", "read"}), None)
        self.metrics = Metrics()
        self.control = AccessControl(KeyRing(file, self.metrics), self.metrics)

    def refusals(self) -> dict[str, float]:
        exposed = self.metrics.render().decode()
        reasons = ("no_key", "wrong_key", "wrong_scope", "too_many")
        name = "dropserve_access_refusals_total"
        return {each: metric(exposed, name, reason=each) for each in reasons}


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path)


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        ("Bearer {}", None),
        ("bearer   {} ", None),
        (None, "{}"),
        (None, " {} "),
        ("Basic dXNlcjpwYXNz", "{}"),
        ("Bearer {}", WRONG),
    ],
)
def test_key_is_taken_from_either_header(
    access: Access, authorization: str | None, api_key: str | None
) -> None:
    bearer, plain = (each and each.format(access.token) for each in (authorization, api_key))
    assert access.control.authorize(bearer, plain, "192.0.2.1", "read").name == "me"
    assert set(access.refusals().values()) == {0}


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_key_is_taken_from_the_password_of_basic_authentication(access: Access) -> None:
    assert access.control.authorize(basic(access.token), None, "192.0.2.1", "read").name == "me"
    with pytest.raises(InvalidKeyError):
        access.control.authorize(basic(WRONG), None, "192.0.2.1", "read")


@pytest.mark.parametrize("value", ["Basic *", "Basic", "Basic ", "Basic w7w6w7w=", "Basic YQ=="])
def test_basic_authentication_without_a_key_has_none(access: Access, value: str) -> None:
    with pytest.raises(KeyRequiredError):
        access.control.authorize(value, None, "192.0.2.1", "read")


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [(None, None), ("", ""), ("Basic dXNlcjpwYXNz", None), ("Bearer ", None), ("{}", None)],
)
def test_request_without_a_key_is_told_how_to_send_one(
    access: Access, authorization: str | None, api_key: str | None
) -> None:
    bearer, plain = (each and each.format(access.token) for each in (authorization, api_key))
    with pytest.raises(KeyRequiredError, match="send it as Authorization: Bearer KEY, or as X-API"):
        access.control.authorize(bearer, plain, "192.0.2.1", "read")
    assert access.refusals()["no_key"] == 1


def test_key_without_the_scope_is_refused(access: Access) -> None:
    with pytest.raises(KeyScopeError, match="needs the scope 'control'") as caught:
        access.control.authorize(None, access.token, "192.0.2.1", "control")
    assert caught.value.challenge.endswith('error="insufficient_scope", scope="control"')
    assert access.refusals()["wrong_scope"] == 1


def test_address_that_guesses_gets_429_and_a_right_key_is_still_served(access: Access) -> None:
    for _ in range(10):
        with pytest.raises(InvalidKeyError):
            access.control.authorize(None, WRONG, "192.0.2.1", "read")
    for _ in range(3):
        with pytest.raises(TooManyAttemptsError):
            access.control.authorize(None, WRONG, "192.0.2.1", "read")
    with pytest.raises(InvalidKeyError):
        access.control.authorize(None, WRONG, "192.0.2.2", "read")
    assert access.control.authorize(None, access.token, "192.0.2.1", "read").name == "me"
    assert access.refusals() == {"no_key": 0, "wrong_key": 11, "wrong_scope": 0, "too_many": 3}


def test_memory_of_failures_is_bounded(access: Access) -> None:
    for number in range(10_500):
        with pytest.raises(InvalidKeyError):
            access.control.authorize(None, WRONG, f"2001:db8:{number:x}::/64", "read")
    assert len(access.control._failures) == 10_000


def test_message_repeats_nothing_of_the_key(access: Access) -> None:
    sent = "ds-12345678-" + (string.ascii_letters * 2)[:43]
    with pytest.raises(InvalidKeyError) as caught:
        access.control.authorize(f"Bearer {sent}", None, "192.0.2.1", "read")
    assert sent[3:11] not in str(caught.value)
    assert sent[12:] not in str(caught.value)
