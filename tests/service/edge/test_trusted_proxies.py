"""Path prefixes and trusted proxies."""

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from service.app import create_app
from service.edge.trusted_proxies import (
    MAX_PREFIX_LENGTH,
    ReverseProxies,
    parse_networks,
    parse_prefix,
)
from service.settings import FIRST_SEGMENTS, ServiceSettings

SEGMENT = st.from_regex(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,9}", fullmatch=True)
PREFIX = st.lists(SEGMENT, max_size=4).map(lambda names: "".join(f"/{name}" for name in names))
PATH = st.lists(SEGMENT, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


@given(PREFIX, PATH)
def test_path_is_the_same_with_and_without_the_root_path(prefix: str, path: str) -> None:
    proxies = ReverseProxies(prefix)
    assert proxies.route_path(prefix + path) == path
    if not path.startswith(f"{prefix}/"):
        assert proxies.route_path(path) == path


@given(st.text())
def test_without_a_root_path_no_path_is_changed(path: str) -> None:
    assert ReverseProxies().route_path(path) == path


def test_only_a_whole_root_path_is_removed() -> None:
    proxies = ReverseProxies("/dropserve")
    assert proxies.route_path("/dropserver/docs") == "/dropserver/docs"
    assert proxies.route_path("/dropserve") == "/dropserve"  # which is redirected
    assert proxies.route_path("/dropserve/") == "/"


@given(PREFIX)
def test_prefix_loses_the_slash_at_its_end_alone(prefix: str) -> None:
    assert parse_prefix(prefix) == parse_prefix(f"{prefix}/") == prefix


@pytest.mark.parametrize(
    "text",
    [
        "dropserve",
        "//evil.example",
        "/a//b",
        "/a/../b",
        "/.",
        "/a b",
        "/%2e%2e",
        "/a?b",
        "/a#b",
        "/<script>",
        '/"',
        "/a\nb",
        "/é",
        "https://evil.example",
        "/" + "a" * MAX_PREFIX_LENGTH,
    ],
)
def test_other_text_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="is no path prefix; write"):
        parse_prefix(text)
    assert ReverseProxies("/mine", parse_networks("::1")).public_prefix("::1", text) == "/mine"


def test_addresses_and_networks_are_trusted_and_no_others() -> None:
    proxies = ReverseProxies(trusted=parse_networks("10.1.0.0/16, 192.0.2.7,fd00::/8"))
    assert all(
        proxies.trusts(peer)
        for peer in ("10.1.2.3", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3", "::ffff:192.0.2.7")
    )
    assert not any(
        proxies.trusts(peer) for peer in ("10.2.0.1", "192.0.2.8", "::1", "fe80::1", None)
    )


def test_nobody_is_trusted_by_default() -> None:
    assert not any(ReverseProxies().trusts(peer) for peer in ("127.0.0.1", "::1", None))
    assert ReverseProxies("/mine").public_prefix("127.0.0.1", "/theirs") == "/mine"


def test_trusted_proxy_names_the_public_prefix_outermost_first() -> None:
    proxies = ReverseProxies("/mine", parse_networks("127.0.0.1"))
    assert proxies.public_prefix("127.0.0.1", "/outer, /inner/") == "/outer/inner"
    assert proxies.public_prefix("127.0.0.1", "/") == ""
    assert proxies.public_prefix("127.0.0.1", None) == "/mine"
    assert proxies.public_prefix("127.0.0.1", "/outer,https://evil.example") == "/mine"


@pytest.mark.parametrize("text", ["proxy.example", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "*"])
def test_other_text_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match="is neither an address nor a network"):
        parse_networks(text)


def test_root_path_may_not_begin_like_any_route() -> None:
    app = create_app(ServiceSettings())
    paths = [route.path for route in app.routes if isinstance(route, APIRoute)]
    assert {path.split("/")[1] for path in paths} - {""} <= set(FIRST_SEGMENTS)
