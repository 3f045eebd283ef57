"""Delays after failures: they double, stay below the limit, and begin anew."""

from service.models_source.exponential_backoff import Backoff


def test_delay_doubles_up_to_the_limit_and_begins_anew() -> None:
    backoff = Backoff(1, 5)
    for most in (1, 2, 4, 5, 5):
        assert most / 2 <= backoff.after_failure() <= most
    backoff.reset()
    assert backoff.after_failure() <= 1


def test_first_delay_is_not_above_the_limit() -> None:
    assert Backoff(10, 2).after_failure() <= 2
