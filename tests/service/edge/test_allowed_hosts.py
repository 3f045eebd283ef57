"""Which hosts a service answers for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.edge.allowed_hosts import AllowedHosts, parse_hosts

HOSTS = AllowedHosts(parse_hosts("Example.org, *.example.net,127.0.0.1, [::1]"))


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "EXAMPLE.ORG:8000",
        "example.org.",
        "a.example.net",
        "b.a.example.net:443",
        "127.0.0.1:80",
        "[::1]",
        "[0:0::1]:8000",
    ],
)
def test_host_is_served_with_any_port_and_case(host: str) -> None:
    assert HOSTS.includes(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "example.org.evil.example",
        "evilexample.org",
        "sub.example.org",
        "example.net",
        ".example.net",
        "evilexample.net",
        "127.0.0.2",
        "[::2]",
        "[::1",
        "::1",
        "example.org..",
        "evil.example:example.org",
    ],
)
def test_other_host_is_not_served(host: str) -> None:
    assert not HOSTS.includes(host)


@given(st.text())
def test_no_text_that_is_sent_as_host_is_an_error(host: str) -> None:
    HOSTS.includes(host)
    HOSTS.includes(f"[{host}")


@pytest.mark.parametrize(
    "text", ["*", "*.*.org", "a.*.org", "http://a", "a:80", "[::1]:80", "a b", "-a", "é", "a/b"]
)
def test_other_text_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="is no host; write such as"):
        parse_hosts(text)
