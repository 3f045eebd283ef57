"""Which requests belong to a share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.registry.canary_and_shadow_traffic_split import routes_to_canary


@given(st.text(max_size=20))
def test_canary_routing_is_deterministic_and_monotonic_in_the_share(request_id: str) -> None:
    """An id in a small share is also in every larger one."""
    shares = [0, 0.1, 0.5, 0.9, 1]
    routed = [routes_to_canary(request_id, share) for share in shares]
    assert routed == [routes_to_canary(request_id, share) for share in shares]
    assert routed == sorted(routed)
    assert (routed[0], routed[-1]) == (False, True)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_canary_routing_matches_the_share(share: float) -> None:
    count = sum(routes_to_canary(str(number), share) for number in range(20_000))
    assert abs(count / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
