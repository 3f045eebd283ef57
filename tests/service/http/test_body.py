"""Bodies: compressed as HTTP has it, both ways, and never larger than allowed."""

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs.compression import packer
from tests.pictures import Pixels, encode
from tests.service.serving import PNG, Application, check_error

Packing = dict[str, Callable[[bytes], bytes]]

PACKED: Packing = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACKED: Packing = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


@pytest.mark.parametrize("encoding", [*PACKED, "GZIP"])
def test_a_compressed_body_is_what_it_was(
    service: Application, digit: Pixels, encoding: str
) -> None:
    plain = service.post("/predict", encode(digit), headers=PNG)
    body = PACKED[encoding.lower()](encode(digit))
    packed = service.post("/predict", body, headers=PNG | {"Content-Encoding": encoding})
    assert packed.status_code == 200
    assert packed.content == plain.content


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("size", [100_001, 50_000_000])
def test_a_body_that_unpacks_to_more_than_allowed_is_too_large(
    service: Application, encoding: str, size: int
) -> None:
    bomb = PACKED[encoding](bytes(size))
    assert len(bomb) < 100_000
    refused = service.post("/predict", bomb, headers=PNG | {"Content-Encoding": encoding})
    check_error(refused, 413, "body_too_large", "The body is larger than 100,000 bytes; …")


@pytest.mark.parametrize("encoding", PACKED)
def test_a_stream_that_is_cut_or_goes_on_is_refused(
    service: Application, digit: Pixels, encoding: str
) -> None:
    whole = PACKED[encoding](encode(digit))
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
def test_an_answer_is_packed_as_the_client_prefers(accepted: str, chosen: str | None) -> None:
    packing = packer(accepted)
    assert (None if packing is None else packing[0]) == chosen


@given(st.binary(max_size=1000), st.sampled_from(list(PACKED)))
def test_what_is_packed_can_be_unpacked(body: bytes, encoding: str) -> None:
    packing = packer(encoding)
    assert packing is not None
    assert UNPACKED[encoding](packing[1](body)) == body
