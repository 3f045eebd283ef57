"""Tests of the limits on a query string."""

import pytest

from service.errors import InvalidQueryError
from service.http.query_limits import MAX_QUERY_BYTES, MAX_QUERY_PARAMETERS, check_query
from tests.service.serving import check_sentence


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"model=digits&version=1",
        b"&" * (MAX_QUERY_PARAMETERS - 1),
        b"model=" + b"x" * (MAX_QUERY_BYTES - 6),
        b"%ff=\xff",
    ],
)
def test_check_query_accepts_a_short_query(query: bytes) -> None:
    check_query(query)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (b"x" * 4_097, "The query has 4,097 bytes, but at most 4,096 are read; …"),
        (b"&" * 32, "The query has 33 parameters, but at most 32 are read; leave out the others."),
        (b"&" * 60_000, "The query has 60,000 bytes, …"),
    ],
)
def test_check_query_refuses_a_long_query_in_one_sentence(query: bytes, sentence: str) -> None:
    with pytest.raises(InvalidQueryError) as refusal:
        check_query(query)
    check_sentence(str(refusal.value), sentence)
