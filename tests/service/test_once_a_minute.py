"""Tests of how often a fault that lasts is logged."""

from service.once_a_minute import OnceAMinute


def test_fault_is_logged_at_first_and_then_once_a_minute() -> None:
    moments = [5.0, 5.0, 64.9, 65.0, 124.0, 200.0]
    limit = OnceAMinute(iter(moments).__next__)
    assert [limit.may_log() for _ in moments] == [True, False, False, True, False, True]
