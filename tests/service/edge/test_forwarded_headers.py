"""Who sent a request, by the headers of proxies that are trusted, and of everybody else."""

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.edge.forwarded_headers import MAX_PROXIES, Sender, find_sender
from service.edge.trusted_proxies import ReverseProxies, parse_networks

PROXY, CLIENT = "10.0.0.1", "198.51.100.7"
PROXIES = ReverseProxies(trusted=parse_networks("10.0.0.0/8,fd00::/8"))
LAST = f"for={CLIENT};proto=https;host=example.org"


def sender(peer: str = PROXY, **headers: str) -> Sender:
    values = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return find_sender(peer, "http", values.get, PROXIES)


@given(st.dictionaries(st.sampled_from(["forwarded", "x_forwarded_for"]), st.text()))
def test_header_of_an_untrusted_peer_changes_nothing(headers: dict[str, str]) -> None:
    assert sender("198.51.100.99", **headers) == Sender("198.51.100.99", "http")


@given(
    st.dictionaries(
        st.sampled_from(["forwarded", "x_forwarded_for", "x_forwarded_proto", "x_forwarded_host"]),
        st.text() | st.text('for="10.0.0.1[]:;,\\= \t_', max_size=40),
    )
)
def test_any_header_of_a_proxy_gives_an_address_and_a_scheme(headers: dict[str, str]) -> None:
    found = sender(**headers)
    ip_address(found.address)
    assert found.scheme in ("http", "https")


@given(st.text())
def test_what_a_client_writes_does_not_move_its_address(written: str) -> None:
    """A proxy appends to whatever its client has sent."""
    assert sender(x_forwarded_for=f"{written}, {CLIENT}").address == CLIENT
    assert sender(forwarded=f"{written}, {LAST}") == Sender(CLIENT, "https", ("example.org",))


@pytest.mark.parametrize(
    "written",
    ['for="', 'for=6.6.6.6;x="', 'for="[', "for=6.6.6.6", 'a="b\\', ",,,", 'for="6.6.6.6", for="'],
)
@pytest.mark.parametrize("appended", [LAST, f'for="{CLIENT}:80";proto="https";host="example.org"'])
def test_quotation_mark_that_a_client_leaves_open_hides_nothing(
    written: str, appended: str
) -> None:
    found = sender(forwarded=f"{written}, {appended}")
    assert found == Sender(CLIENT, "https", ("example.org",))


def test_rightmost_untrusted_address_is_the_client() -> None:
    assert sender(x_forwarded_for=f"6.6.6.6, {CLIENT}, 10.9.9.9").address == CLIENT
    assert sender(forwarded=f"for=6.6.6.6, for={CLIENT}, for=10.9.9.9").address == CLIENT


def test_client_within_the_trusted_networks_is_the_first_of_the_chain() -> None:
    assert sender(x_forwarded_for="10.3.3.3, 10.2.2.2").address == "10.3.3.3"


@pytest.mark.parametrize(
    ("node", "address"),
    [
        ("192.0.2.43", "192.0.2.43"),
        ("192.0.2.43:47011", "192.0.2.43"),
        ("[2001:db8:cafe::17]", "2001:db8:cafe::17"),
        ("[2001:DB8:cafe::17]:4711", "2001:db8:cafe::17"),
        ("2001:db8:cafe::17", "2001:db8:cafe::17"),
        ("::ffff:192.0.2.43", "192.0.2.43"),
    ],
)
def test_node_may_be_any_form_of_an_address(node: str, address: str) -> None:
    assert sender(x_forwarded_for=node).address == address
    assert sender(forwarded=f'For="{node}"').address == address


@pytest.mark.parametrize("node", ["unknown", "_hidden", "_SEVKISEK:_port"])
def test_proxy_that_hides_its_client_stands_for_it(node: str) -> None:
    assert sender(forwarded=f'for=6.6.6.6, for="{node}";proto=https') == Sender(PROXY, "https")
    assert sender(forwarded=f"for={CLIENT}, for=_x, for=10.9.9.9").address == "10.9.9.9"


@pytest.mark.parametrize(
    "header",
    [
        {"x_forwarded_for": ""},
        {"x_forwarded_for": "evil.example"},
        {"x_forwarded_for": "1.2.3.4.5"},
        {"x_forwarded_for": "300.1.1.1"},
        {"x_forwarded_for": "fe80::1%eth0"},
        {"x_forwarded_for": "[::1"},
        {"x_forwarded_for": f"{CLIENT},"},
        {"forwarded": "for"},
        {"forwarded": f"for={CLIENT};for=6.6.6.6"},
        {"forwarded": f"for={CLIENT}; proto=https"},
        {"forwarded": f"for={CLIENT};host=a\x00b"},
        {"forwarded": f"for={CLIENT},,"},
    ],
)
def test_malformed_header_is_ignored_as_a_whole(header: dict[str, str]) -> None:
    assert sender(**header) == Sender(PROXY, "http")


def test_unknown_scheme_is_that_of_the_connection() -> None:
    found = sender(x_forwarded_for=CLIENT, x_forwarded_proto="javascript")
    assert found == Sender(CLIENT, "http")


def test_scheme_and_host_are_of_the_hop_that_received_the_client() -> None:
    found = sender(
        x_forwarded_for=f"6.6.6.6, {CLIENT}, 10.9.9.9",
        x_forwarded_proto="http, https, http",
        x_forwarded_host="evil.example, example.org, inner",
    )
    assert found == Sender(CLIENT, "https", ("example.org",))
    single = sender(x_forwarded_for=f"{CLIENT}, 10.9.9.9", x_forwarded_proto="HTTPS")
    assert single.scheme == "https"


def test_two_kinds_of_header_count_where_they_agree() -> None:
    """A proxy that writes one kind passes the other on as it came."""
    assert sender(x_forwarded_for=CLIENT, forwarded=f"for={CLIENT}").address == CLIENT
    assert sender(x_forwarded_for=CLIENT, forwarded="for=6.6.6.6") == Sender(PROXY, "http")
    assert sender(x_forwarded_for="6.6.6.6", forwarded=f"for={CLIENT}") == Sender(PROXY, "http")


def test_no_header_of_a_client_hides_the_host_that_its_proxy_names() -> None:
    """A page whose name was made to resolve to the proxy may add any header to its requests."""
    named = {"x_forwarded_for": CLIENT, "x_forwarded_host": "evil.example"}
    expected = Sender(PROXY, "http", ("evil.example",))
    for written in ("for=6.6.6.6", "for", "for=6.6.6.6;host=", '"'):
        assert sender(**named, forwarded=written).hosts[-1] == "evil.example"
    assert sender(**named, forwarded="for=6.6.6.6") == expected
    assert sender(x_forwarded_for="no address", x_forwarded_host="evil.example") == expected
    named["x_forwarded_host"] = "example.org, evil.example/example.org"
    assert sender(**named) == Sender(PROXY, "http", ("",))


def test_chain_of_trusted_proxies_has_an_end() -> None:
    longest = ", ".join(["10.0.0.2"] * (MAX_PROXIES - 1))
    assert sender(x_forwarded_for=f"{CLIENT}, {longest}").address == CLIENT
    assert sender(x_forwarded_for=f"{CLIENT}, 10.0.0.3, {longest}") == Sender(PROXY, "http")


def test_long_chain_of_clients_is_not_read() -> None:
    others = "6.6.6.6, " * 7_000
    assert sender(x_forwarded_for=others + CLIENT).address == CLIENT
    assert sender(forwarded="for=6.6.6.6, " * 5_000 + LAST).address == CLIENT


def test_ipv6_proxy_is_trusted_by_its_network() -> None:
    assert sender(peer=str(IPv6Address("fd00::7")), x_forwarded_for=CLIENT).address == CLIENT
