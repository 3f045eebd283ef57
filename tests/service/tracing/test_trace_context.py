"""W3C Trace Context: what is taken, and that all else is ignored."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tracing.trace_context import format_response, parse_parent, parse_state

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROWS = f"{TRACE}-{SPAN}"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (f"00-{ROWS}-01", True),
        (f"00-{ROWS}-00", False),
        (f"00-{ROWS}-03", True),
        (f"00-{ROWS}-fe", False),
        (f"cc-{ROWS}-01", True),
        (f"cc-{ROWS}-01-what-the-future-will-be", True),
    ],
)
def test_traceparent_is_taken(header: str, is_sampled: bool) -> None:
    assert parse_parent(header) == (TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{ROWS}",
        f"00-{ROWS}-1",
        f"00-{ROWS}-01-more",
        f"00-{ROWS}-01-",
        f"cc-{ROWS}-01.more",
        f"ff-{ROWS}-01",
        f"00-{ROWS.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f" 00-{ROWS}-01",
        f"00-{ROWS}-01, 00-{ROWS}-01",
        f"00-{ROWS}-01\n",
        f"00-{TRACE[:-1]}é-{SPAN}-01",
    ],
)
def test_malformed_traceparent_is_ignored(header: str) -> None:
    assert parse_parent(header) is None


@settings(max_examples=30)
@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_any_text_is_parsed_or_ignored(header: str) -> None:
    parent = parse_parent(header)
    assert parent is None or header[3:52] == f"{parent.trace_id}-{parent.span_id}"
    assert len(parse_state(header)) <= 32


def test_tracestate_is_parsed_in_order() -> None:
    header = "rojo=00f067aa0ba902b7 , ,congo=t61rcWkgMzE,a@b=c d"
    assert parse_state(header) == (
        ("rojo", "00f067aa0ba902b7"),
        ("congo", "t61rcWkgMzE"),
        ("a@b", "c d"),
    )


@pytest.mark.parametrize(
    "header",
    ["", "a", "A=1", "a=1,a=2", "a=é", "a=b=c", f"a={'x' * 600}", ",".join(["a=1"] * 40)],
)
def test_malformed_tracestate_is_left_out(header: str) -> None:
    assert parse_state(header) == ()


def test_response_header_is_a_traceparent_of_the_request_s_own_span() -> None:
    assert parse_parent(format_response(TRACE, SPAN).decode()) == (TRACE, SPAN, True)
