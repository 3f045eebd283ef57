"""Any request is answered 200, or with a documented error of a status below 500."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api import schemas
from service.codecs.body_to_images import FORM_TYPE, JSON_TYPE
from service.errors import STATUS_AND_CODE
from service.sandbox.sandboxed_image_reader import IMAGE_TYPES
from tests.pictures import encode
from tests.service.serving import Application

KNOWN = set(STATUS_AND_CODE.values())
DIGIT = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
FILES = [encode(DIGIT, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
FORM = f"{FORM_TYPE}; boundary=x"

EXAMPLES = settings(max_examples=60)
VALUES = ["digits", "1", "-1", "0.5", "nan", "mc_dropout", "aps", "%00", "%ff", "1e9"]
PARAMETERS = [*schemas.UncertaintyQuery.model_fields, "%ff", ""]


def check(service: Application, body: bytes, content_type: str, query: str = "") -> None:
    headers = {"Content-Type": content_type.encode()}
    for route in ("/predict", "/uncertainty"):
        response = service.post(route + query, body, headers=headers)
        if response.status_code == 200:
            shape = schemas.Predictions if route == "/predict" else schemas.UncertainPredictions
            assert shape.model_validate_json(response.content).predictions
        else:
            error = schemas.Error.model_validate_json(response.content)
            assert (response.status_code, error.code) in KNOWN
            assert response.status_code < 500


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A real image file with bytes changed, removed or inserted, or truncated."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(data) - 1))
        stop = min(position + draw(st.integers(0, 4)), len(data))
        data[position:stop] = draw(st.binary(max_size=4))
        if not data:
            break
    return bytes(data[: draw(st.integers(1, 2 * len(FILES[0])))] if draw(st.booleans()) else data)


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NESTED = st.recursive(
    NUMBERS,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=80,
)
ALMOST_IMAGES = st.lists(
    st.lists(st.floats(0, 1) | st.integers(0, 1) | NESTED, min_size=7, max_size=9),
    min_size=7,
    max_size=9,
)
OBJECTS = st.fixed_dictionaries({"b64": st.text(max_size=20) | NESTED}, optional={"id": NESTED})
BODIES = st.one_of(
    NESTED,
    st.fixed_dictionaries({"instances": st.lists(ALMOST_IMAGES | OBJECTS | NESTED, max_size=3)}),
)

PARTS = st.tuples(
    st.sampled_from([b'name="file"', b'name="file"; filename="a"', b'filename="a"', b"name=", b""])
    | st.binary(max_size=20),
    st.sampled_from(FILES) | damaged_files() | st.binary(max_size=40),
    st.sampled_from([b"\r\n--x", b"\r\n--x--\r\n", b"--x", b"\r\n"]) | st.binary(max_size=4),
)


@pytest.mark.parametrize("content_type", [JSON_TYPE, FORM, *IMAGE_TYPES])
@settings(max_examples=30)
@given(body=st.binary(max_size=300))
def test_any_bytes_are_answered(service: Application, content_type: str, body: bytes) -> None:
    check(service, body, content_type)


@EXAMPLES
@given(body=damaged_files(), content_type=st.sampled_from(IMAGE_TYPES))
def test_damaged_image_files_are_answered(
    service: Application, body: bytes, content_type: str
) -> None:
    check(service, body, content_type)


@settings(max_examples=30)
@given(body=BODIES)
def test_any_json_is_answered(service: Application, body: Any) -> None:
    check(service, json.dumps(body).encode(), JSON_TYPE)  # with NaN and lone surrogates


@EXAMPLES
@given(parts=st.lists(PARTS, max_size=4))
def test_any_form_is_answered(
    service: Application, parts: list[tuple[bytes, bytes, bytes]]
) -> None:
    body = b"--x" + b"".join(
        b"\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + end
        for head, data, end in parts
    )
    check(service, body, FORM)


@EXAMPLES
@given(content_type=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_content_type_is_answered(service: Application, content_type: str) -> None:
    check(service, FILES[0], content_type)
    check(service, FILES[0], f"{FORM_TYPE};{content_type}")


@EXAMPLES
@given(
    query=st.lists(
        st.tuples(
            st.sampled_from(PARAMETERS),
            st.sampled_from(
                ["digits", "1", "-1", "0.5", "nan", "mc_dropout", "aps", "%00", "%ff", "1e9"]
            )
            | st.integers().map(str),
        ),
        max_size=4,
    )
)
def test_any_query_is_answered(service: Application, query: list[tuple[str, str]]) -> None:
    text = "&".join(f"{name}={value}" for name, value in query)
    check(service, FILES[0], "image/png", f"?{text}")


def test_service_is_ready_after_all_fuzzing(service: Application) -> None:
    check(service, FILES[0], "image/png")
    assert service.get("/health/ready").status_code == 200
    assert service.metric("dropserve_requests_in_hand") == 1
    assert service.metric("dropserve_queue_rows", model="digits") == 0
