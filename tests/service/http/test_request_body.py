"""Tests of request and response bodies: Content-Encoding in both directions, and the limits."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs.compression import choose_compressor
from tests.pictures import Pixels, encode
from tests.service.serving import PNG, Application, check_error

Compressors = dict[str, Callable[[bytes], bytes]]

COMPRESS: Compressors = {"gzip": gzip.compress, "deflate": zlib.compress}
DECOMPRESS: Compressors = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


@pytest.mark.parametrize("encoding", [*COMPRESS, "GZIP", "x-gzip"])
def test_compressed_body_gives_the_response_of_the_plain_body(
    service: Application, digit: Pixels, encoding: str
) -> None:
    plain = service.post("/predict", encode(digit), headers=PNG)
    body = COMPRESS[encoding.lower().removeprefix("x-")](encode(digit))
    compressed = service.post("/predict", body, headers=PNG | {"Content-Encoding": encoding})
    assert compressed.status_code == 200
    assert compressed.content == plain.content


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [100_001, 50_000_000])
def test_body_that_decompresses_beyond_the_limit_is_refused(
    service: Application, encoding: str, size: int
) -> None:
    bomb = COMPRESS[encoding](bytes(size))
    assert len(bomb) < 100_000
    refused = service.post("/predict", bomb, headers=PNG | {"Content-Encoding": encoding})
    check_error(refused, 413, "body_too_large", "The body is larger than 100,000 bytes; …")


@pytest.mark.parametrize("encoding", COMPRESS)
def test_truncated_or_trailing_compressed_body_is_refused(
    service: Application, digit: Pixels, encoding: str
) -> None:
    whole = COMPRESS[encoding](encode(digit))
    for body in (whole[:-1], whole + b"x", b"", whole[1:]):
        refused = service.post("/predict", body, headers=PNG | {"Content-Encoding": encoding})
        check_error(refused, 400, "invalid_compression", f"The body is not one whole {encoding} …")


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("br;q=1.0, *;q=0.1", "gzip"),
        ("GZip", "gzip"),
        ("gzip;q=0", None),
        ("identity", None),
        ("br", None),
        ("", None),
        ("gzip;q=much", None),
    ],
)
def test_choose_compressor_takes_the_encoding_that_the_client_prefers(
    accepted: str, chosen: str | None
) -> None:
    compressor = choose_compressor(accepted)
    assert (None if compressor is None else compressor[0]) == chosen


@given(st.binary(max_size=1000), st.sampled_from(list(COMPRESS)))
def test_compressed_response_decompresses_to_the_original(body: bytes, encoding: str) -> None:
    compressor = choose_compressor(encoding)
    assert compressor is not None
    assert DECOMPRESS[encoding](compressor[1](body)) == body
