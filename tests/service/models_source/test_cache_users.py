"""What the processes that share a cache want: who counts, and what is not understood."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.models_source.cache_users import CacheUsers
from service.models_source.wanted_bundles import Wanted

WANTED = Wanted(
    newest=2,
    pins={"digits": 1, "letters": None},
    named={"digits": [3, 1]},
    kept=frozenset({("digits", 2)}),
)


@pytest.fixture
def me(tmp_path: Path) -> Iterator[CacheUsers]:
    users = CacheUsers(tmp_path)
    users.announce(Wanted(newest=9))
    yield users
    users.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[CacheUsers]:
    users = CacheUsers(tmp_path)
    users.announce(WANTED)
    yield users
    users.close()


def test_others_are_those_that_live_with_what_they_said_last(
    me: CacheUsers, other: CacheUsers, tmp_path: Path
) -> None:
    assert me.others() == [WANTED]
    shorter = Wanted(newest=1)
    other.announce(shorter)
    assert me.others() == [shorter]
    other.close()
    other.announce(WANTED)  # by a poll that had begun before
    assert me.others() == []
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", '{"newest": 1, "pi', '{"newest": 1, "later": 1}'])
def test_process_whose_file_is_not_understood_lets_everything_stay(
    me: CacheUsers, other: CacheUsers, tmp_path: Path, text: str
) -> None:
    (file,) = (each for each in tmp_path.iterdir() if '"newest":2' in each.read_text())
    file.write_text(text)
    assert [each.may_remove for each in me.others()] == [False]
    other.announce(WANTED)
    assert me.others() == [WANTED]
