"""Every change of a rollout."""

import pytest

from service.errors import RolloutError
from service.registry.rollout_spec import RolloutSpec


def test_rollout_starts_promotes_and_ends_a_canary() -> None:
    tried = RolloutSpec().with_canary(1, 2, 0.25)
    assert tried == RolloutSpec(held=1, canary=2, share=0.25)
    assert tried.promoted(1) == RolloutSpec(held=2, previous=1)
    assert tried.rolled_back(None) == RolloutSpec(held=1)


def test_rollback_returns_to_the_previous_or_next_lower_version() -> None:
    assert RolloutSpec(held=2, previous=1).rolled_back(None) == RolloutSpec(held=1)
    assert RolloutSpec().rolled_back(3) == RolloutSpec(held=3)
    with pytest.raises(RolloutError, match="no earlier version"):
        RolloutSpec().rolled_back(None)
    with pytest.raises(RolloutError, match="no canary to promote"):
        RolloutSpec().promoted(1)
    with pytest.raises(RolloutError, match="stable one already"):
        RolloutSpec().with_canary(1, 1, 0.5)
    with pytest.raises(RolloutError, match="not in service"):
        RolloutSpec().with_canary(None, 1, 0.5)


def test_unload_and_load_keep_pin_and_canary() -> None:
    wanted = RolloutSpec().with_canary(1, 2, 0.5)
    assert wanted.as_unloaded().unloaded
    assert wanted.as_unloaded().as_loaded() == wanted.model_copy(update={"attempt": 1})
    assert wanted.pinned(7).unpinned() == RolloutSpec()
    assert wanted.as_unloaded().pinned(7) == RolloutSpec(held=7, unloaded=True)
