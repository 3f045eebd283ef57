"""Which answers count as those of a version that does not serve, beside commands of known times."""

import pytest

from benchmarks.reliability.version_watch import (
    Answer,
    Message,
    Serving,
    messages_with_ids,
    stale_answers,
)
from service.registry.canary_and_shadow_traffic_split import routes_to_canary

HISTORY = [
    Serving("1", None, 0.0, 0.0, 0.0),
    Serving("1", "2", 0.5, 10.0, 11.0),
    Serving("2", None, 0.0, 20.0, 21.0),
]
MESSAGES = [Message(b"", f"{number}", 0) for number in range(20)]
TO_CANARY = next(each for each in MESSAGES if routes_to_canary(each.request_id, 0.5))
TO_STABLE = next(each for each in MESSAGES if not routes_to_canary(each.request_id, 0.5))


@pytest.mark.parametrize(
    ("message", "sent_at", "done_at", "version", "is_stale"),
    [
        (TO_CANARY, 1, 2, "1", False),
        (TO_CANARY, 1, 2, "2", True),
        (TO_CANARY, 9, 10.5, "2", False),
        (TO_CANARY, 10.5, 10.6, "1", False),
        (TO_CANARY, 12, 13, "1", True),
        (TO_CANARY, 12, 13, "2", False),
        (TO_STABLE, 12, 13, "2", True),
        (TO_STABLE, 20.5, 22, "1", False),
        (TO_STABLE, 21.5, 22, "1", True),
        (TO_STABLE, 1, 30, "3", True),
    ],
)
def test_answer_is_stale_if_no_state_during_the_request_allows_its_version(
    message: Message, sent_at: float, done_at: float, version: str, is_stale: bool
) -> None:
    answer = Answer(message, sent_at, done_at, version)
    assert stale_answers([answer], HISTORY) == ([answer] if is_stale else [])


def test_every_message_has_an_id_and_images_repeat() -> None:
    messages = messages_with_ids(2)
    assert len({each.request_id for each in messages}) == len(messages)
    assert {each.image for each in messages} == {0, 1}
    assert all(f"X-Request-ID: {each.request_id}".encode() in each.content for each in messages)
