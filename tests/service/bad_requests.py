"""Requests that fail, each with the code and the sentence that answers it.

They are meant for the shared application of `conftest.py`, whose limits the sentences name.
"""
# ruff: noqa: E501 (a row of a table is easier to read than a paragraph)

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.pictures import bomb, encode, form, instances, numbers
from tests.service.serving import JSON, PNG

GREY = np.zeros((8, 8), np.uint8)
PICTURE = encode(np.arange(64, dtype=np.uint8).reshape(8, 8))


@dataclass(frozen=True)
class Case:
    """A request, and the error that answers it."""

    what: str
    code: str
    sentence: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    url: str = "/predict"
    files: Any = None


def _json(code: str, sentence: str, bodies: Mapping[str, bytes | str]) -> list[Case]:
    return [Case(what, code, sentence, body, JSON) for what, body in bodies.items()]


def _png(code: str, sentence: str, bodies: Mapping[str, Any]) -> list[Case]:
    return [Case(what, code, sentence, body, PNG) for what, body in bodies.items()]


def _files(code: str, sentence: str, files: Mapping[str, Any]) -> list[Case]:
    return [Case(what, code, sentence, files=each) for what, each in files.items()]


def _form(code: str, sentence: str, bodies: Mapping[str, bytes], content_type: str) -> list[Case]:
    headers = {"Content-Type": content_type}
    return [Case(what, code, sentence, body, headers) for what, body in bodies.items()]


def _post(code: str, urls: Mapping[str, str]) -> list[Case]:
    """Good images to bad addresses: url -> sentence."""
    return [Case(url, code, sentence, PICTURE, PNG, url=url) for url, sentence in urls.items()]


def _get(code: str, urls: Mapping[str, str], method: str = "GET") -> list[Case]:
    return [
        Case(f"{method} {url}", code, sentence, method=method, url=url)
        for url, sentence in urls.items()
    ]


def _with_pixel(value: str) -> str:
    """The text of a body with one grey image whose last pixel is `value`."""
    rows = ["[0, 0, 0, 0, 0, 0, 0, 0]"] * 7 + [f"[0, 0, 0, 0, 0, 0, 0, {value}]"]
    return f'{{"instances": [[{", ".join(rows)}]]}}'


def _chunked(size: int) -> Callable[[], AsyncIterator[bytes]]:
    """A body in chunks, without a Content-Length; made anew for each request."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(0, size, 1000):
            yield bytes(1000)

    return chunks


_NESTED = '{"instances": ' + "[" * 10_000 + "]" * 10_000 + "}"
_NOT_BASE64 = "A 'b64' field is not base64; encode it (RFC 4648)."
_NOT_JSON = (
    "The body is not JSON that can be read (…); NaN and Infinity are not JSON, and nesting is "
    "limited."
)

BODIES = [
    *_png("empty_body", "The request has no body; send an image.", {"no body": None}),
    *_json("empty_body", "The request has no body; send an image.", {"no JSON body": ""}),
    *_json("empty_body", "'instances' is empty; send at least one image.", {"an empty batch": '{"instances": []}'}),
    *_json("invalid_json", _NOT_JSON, {
        "not JSON": "{instances: 1}",
        "cut JSON": '{"instances": [[0',
        "not UTF-8": b'{"instances": "\xff"}',
        "nested 10,000 deep": _NESTED,
        "nested 10,000 deep and cut": _NESTED[:9_000],
        "NaN": _with_pixel("NaN"),
        "Infinity": _with_pixel("-Infinity"),
        "1e999": _with_pixel("1e999"),
    }),
    *_json("invalid_request", 'The body is not of the form {"instances": [IMAGE, ...]} and nothing else.', {
        "a list": "[[0]]",
        "a number": "3",
        "null": "null",
        "another key": '{"inputs": []}',
        "one more key": '{"instances": [], "parameters": {}}',
    }),
    *_json("invalid_request", "'instances' is not a list; send {\"instances\": [IMAGE, ...]}.", {
        "a number for the list": '{"instances": 3}',
        "an object for the list": '{"instances": {"b64": ""}}',
    }),
    *_json("invalid_request", 'An image given as an object must be {"b64": "..."} alone.', {
        "an object without b64": '{"instances": [{"png": ""}]}',
        "b64 and more": '{"instances": [{"b64": "", "id": 1}]}',
        "b64 that is no text": '{"instances": [{"b64": 1}]}',
    }),
    *_json("invalid_base64", _NOT_BASE64, {
        "letters that are none of base64's": '{"instances": [{"b64": "aGVs*bG8="}]}',
        "base64 cut": '{"instances": [{"b64": "abcde"}]}',
        "not ASCII": '{"instances": [{"b64": "é"}]}',
    }),
    *_json("invalid_base64", "A 'b64' field is not base64; leave out the 'data:...;base64,' in front (RFC 4648).", {
        "a data URL": '{"instances": [{"b64": "data:image/png;base64,AAAA"}]}',
    }),
]  # fmt: skip

_TAKES = "but this model takes [8][8] numbers (height 8, width 8, grey)."
_RAGGED = (
    "The image's rows differ in length or depth; send [8][8] numbers (height 8, width 8, grey)."
)
_OUTSIDE = "outside 0..1; divide 8-bit values by 255 before sending them."

NUMBERS = [
    *_json("image_shape", f"The image is 9 x 8, {_TAKES}", {"too high": instances([[[0] * 8] * 9])}),
    *_json("image_shape", f"The image is 8 x 7, {_TAKES}", {"too narrow": instances([[[0] * 7] * 8])}),
    *_json("image_shape", f"The image is 8 x 8 x 3, {_TAKES}", {"colour": instances([[[[0] * 3] * 8] * 8])}),
    *_json("image_shape", f"The image is 64, {_TAKES}", {"flat": instances([[0] * 64])}),
    *_json("image_shape", f"The image is 0, {_TAKES}", {"no rows": instances([[]])}),
    *_json("image_shape", f"The image is a single value, {_TAKES}", {
        "one number": instances([0]),
        "null for an image": instances([None]),
        "text for an image": '{"instances": ["aGk="]}',
    }),
    *_json("image_shape", _RAGGED, {
        "ragged": instances([[[0] * 8] * 7 + [[0] * 7]]),
        "nested 500 deep": '{"instances": [' + "[" * 500 + "]" * 500 + "]}",
    }),
    *_json("pixel_value", f"A pixel is 1.5, {_OUTSIDE}", {"above 1": _with_pixel("1.5")}),
    *_json("pixel_value", f"A pixel is 255, {_OUTSIDE}", {"8 bits": _with_pixel("255")}),
    *_json("pixel_value", f"A pixel is -0.001, {_OUTSIDE}", {"below 0": _with_pixel("-0.001")}),
    *_json("pixel_value", f"A pixel is -1e-300, {_OUTSIDE}", {"just below 0": _with_pixel("-1e-300")}),
    *_json("pixel_value", f"A pixel is 1.18059162e+21, {_OUTSIDE}", {"huge": _with_pixel(str(2**70))}),
    *_json("pixel_value", f"A pixel is 2, {_OUTSIDE}", {
        "one bad image of two": instances([numbers(GREY), (GREY + 2).tolist()]),
    }),
    *_json("pixel_value", "A pixel is not a number; send numbers from 0 to 1.", {
        "a boolean": _with_pixel("true"),
        "a string": _with_pixel('"0.5"'),
        "a null": _with_pixel("null"),
        "an object": _with_pixel("{}"),
    }),
]  # fmt: skip

_NOT_AN_IMAGE = (
    "The file is not an image that can be read; send a PNG, JPEG, WebP, GIF or BMP file."
)
_DAMAGED = "The image is truncated or corrupt (…); send a whole PNG, JPEG, WebP, GIF or BMP file."
_TOO_MANY_BYTES = "The body is larger than 100,000 bytes; send fewer or smaller images."
_TOO_MANY_IMAGES = "One request takes at most 8 images; send several."

FILES = [
    *_png("image_unreadable", _NOT_AN_IMAGE, {
        "text": b"hello",
        "a TIFF file": encode(GREY, "TIFF"),
        "a header alone": PICTURE[:33],
    }),
    *_json("image_unreadable", _NOT_AN_IMAGE, {"empty base64": '{"instances": [{"b64": ""}]}'}),
    *_files("image_unreadable", _NOT_AN_IMAGE, {
        "an empty file": form(b""),
        "one bad file of two": form(PICTURE, b"hello"),
    }),
    *_png("image_unreadable", _DAMAGED, {
        "a truncated PNG": PICTURE[:45],
        "a truncated JPEG": encode(GREY, "JPEG")[:-40],
        "a truncated BMP": encode(GREY, "BMP")[:-1],
        "a corrupt PNG": PICTURE[:45] + b"\xff\xff\xff" + PICTURE[48:],
        "a PNG without its pixels": bomb(8, 8),
    }),
    *_png("image_too_large", "The image declares 10000 x 10000 pixels, more than the 30,000 allowed; send a smaller one.", {
        "a bomb": bomb(10_000, 10_000),
    }),
    *_png("image_too_large", "The image declares 100 x 301 pixels, …", {"one row too many": bomb(100, 301)}),
    *_png("image_too_large", "The image declares too many pixels; send a smaller one.", {
        "a bomb beyond what Pillow opens": bomb(200_000, 200_000),
    }),
    *_json("image_too_large", "The image declares 10000 x 10000 pixels, …", {
        "a bomb in JSON": instances([PICTURE, bomb(10_000, 10_000)]),
    }),
    *_files("image_too_large", "The image declares 10000 x 10000 pixels, …", {
        "a bomb in a form": form(PICTURE, bomb(10_000, 10_000)),
    }),
    *_files("image_too_large", "The images declare 60,000 pixels together, more than the 40,000 allowed; send fewer or smaller ones.", {
        "too many pixels together": form(bomb(100, 300), bomb(100, 300)),
    }),
    *_json("too_many_images", _TOO_MANY_IMAGES, {"9 instances": instances([numbers(GREY)] * 9)}),
    *_files("too_many_images", _TOO_MANY_IMAGES, {"9 files": form(*[PICTURE] * 9)}),
    *_png("body_too_large", _TOO_MANY_BYTES, {
        "one byte too many": bytes(100_001),
        "one chunk too many": _chunked(101_000),
    }),
    *_json("body_too_large", _TOO_MANY_BYTES, {"too much JSON": bytes(100_001)}),
    *_form("body_too_large", _TOO_MANY_BYTES, {"too long a form": bytes(100_001)}, "multipart/form-data; boundary=x"),
    Case("too many bytes declared", "body_too_large", _TOO_MANY_BYTES, b"", PNG | {"Content-Length": "100001"}),
]  # fmt: skip

_UNREADABLE = "The form cannot be read (…); send it with curl -F file=@IMAGE."
_PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
_FILE_PART = _PART % (b"file", b'; filename="a"', PICTURE)
_BOUNDARY = "multipart/form-data; boundary=x"
_END = b"--x--\r\n"

FORMS = [
    *_form("invalid_request", _UNREADABLE, {"no boundary": PICTURE}, "multipart/form-data"),
    *_form("invalid_request", _UNREADABLE, {"a charset that is none": _PART % (b"\xff", b"", b"") + _END}, f"{_BOUNDARY}; charset=undefined"),
    *_form("invalid_request", _UNREADABLE, {
        "no form": PICTURE,
        "no closing boundary": _FILE_PART,
        "cut in its second file": _FILE_PART + _FILE_PART[:-10],
        "a part without a name": b"--x\r\n\r\n\r\n--x--\r\n",
    }, _BOUNDARY),
    *_form("empty_body", "The form has no 'file' field; send an image in one.", {"no part": _END}, _BOUNDARY),
    *_form("invalid_request", "A field of the form has no file name; send image files in fields named 'file' alone.", {
        "no file name": _PART % (b"file", b"", PICTURE) + _END,
    }, _BOUNDARY),
    *_form("invalid_request", "A field of the form has the name 'seed'; send image files in fields named 'file' alone.", {
        "one more field": _FILE_PART + _PART % (b"seed", b"", b"1") + _END,
    }, _BOUNDARY),
    *_files("invalid_request", "A field of the form has the name 'image'; …", {
        "a field of another name": form(PICTURE, name="image"),
    }),
]  # fmt: skip

_TAKEN = (
    "send application/json, multipart/form-data, or an image as image/png, image/jpeg, "
    "image/webp, image/gif, image/bmp."
)

MEDIA_TYPES = [
    Case("no type", "unsupported_media_type", f"Content-Type is missing; {_TAKEN}", PICTURE),
    *[
        Case(
            kind,
            "unsupported_media_type",
            f"Content-Type {kind!r} is not taken; {_TAKEN}",
            PICTURE,
            {"Content-Type": f"{kind.title()}; charset=utf-8"},
        )
        for kind in ("text/plain", "image/tiff", "application/x-www-form-urlencoded")
    ],
    Case(
        "compressed",
        "unsupported_media_type",
        "Content-Encoding 'br' is not taken here; send the body uncompressed, or as gzip or deflate.",
        PICTURE,
        PNG | {"Content-Encoding": "br"},
    ),
]

_WHOLE = "input should be a valid integer, …, but got"

ADDRESSES = [
    *_post("invalid_query", {
        "/predict?modle=digits": "/predict takes no query parameter 'modle'; leave it out.",
        "/predict?samples=8": "/predict takes no query parameter 'samples'; leave it out.",
        "/predict?model=a&model=a": "Query parameter 'model' is given twice; give it once.",
        "/uncertainty?seed=1&seed=2": "Query parameter 'seed' is given twice; give it once.",
        "/uncertainty?samples=0": "Query parameter 'samples': input should be greater than or equal to 1, but got '0'.",
        "/uncertainty?samples=513": "Query parameter 'samples': at most 512 are drawn here, but got 513.",
        f"/uncertainty?samples=1{'0' * 99}": "Query parameter 'samples': at most 512 are drawn here, but got 1000…000.",
        "/uncertainty?samples=many": f"Query parameter 'samples': {_WHOLE} 'many'.",
        "/uncertainty?samples=": f"Query parameter 'samples': {_WHOLE} ''.",
        "/uncertainty?seed=-1": "Query parameter 'seed': input should be greater than or equal to 0, but got '-1'.",
        f"/uncertainty?seed={2**63}": f"Query parameter 'seed': input should be less than or equal to {2**63 - 1}, but got '{2**63}'.",
        "/uncertainty?seed=0.5": f"Query parameter 'seed': {_WHOLE} '0.5'.",
        "/uncertainty?samples=AUTO": f"Query parameter 'samples': {_WHOLE} 'AUTO'.",
        "/uncertainty?design=random": "Query parameter 'design': input should be 'orthogonal' or 'independent', but got 'random'.",
        "/uncertainty?samples=auto&design=orthogonal": "Query parameter 'design': samples=auto draws masks in independent pairs; leave it out.",
        "/uncertainty?coverage=1": "Query parameter 'coverage': input should be less than 1, but got '1'.",
        "/uncertainty?coverage=nan": "Query parameter 'coverage': input should be …, but got 'nan'.",
        "/uncertainty?coverage=90%25": "Query parameter 'coverage': input should be a valid number, … but got '90%'.",
        "/uncertainty?max_risk=0": "Query parameter 'max_risk': input should be greater than 0, but got '0'.",
        "/uncertainty?sets=raps": "Query parameter 'sets': input should be 'thr' or 'aps', but got 'raps'.",
        "/uncertainty?method=analytic&samples=9": "Query parameter 'samples': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=analytic&seed=0": "Query parameter 'seed': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=analytic&design=independent": "Query parameter 'design': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=ensemble": "Query parameter 'method': input should be 'mc_dropout' or 'analytic', but got 'ensemble'.",
    }),
    *_get("invalid_query", {
        f"{path}?x=1": f"{path} takes no query parameter 'x'; leave it out."
        for path in ("/models", "/models/digits", "/health/live", "/health/ready")
    }),
    *_post("unknown_model", {
        "/predict?model=cats": "No model 'cats' is loaded; there is digits.",
        "/uncertainty?model=": "No model '' is loaded; there is digits.",
    }),
    *_get("unknown_model", {"/models/cats": "No model 'cats' is loaded; there is digits."}),
    *_post("unknown_version", {
        "/uncertainty?version=2": "Version '2' of digits is not loaded; version 1 is.",
        "/predict?version=01": "Version '01' of digits is not loaded; version 1 is.",
    }),
    *_get("unknown_version", {"/models/digits?version=2": "Version '2' of digits is not loaded; version 1 is."}),
    *_get("not_found", {"/nowhere": "There is nothing at /nowhere; GET /docs lists what there is."}),
    *_post("not_found", {
        "/predict/7": "There is nothing at /predict/7; GET /docs lists what there is.",
        "/predict/": "There is nothing at /predict/; GET /docs lists what there is.",
    }),
    *_get("method_not_allowed", {
        "/predict": "/predict does not take GET; GET /docs lists what it takes.",
        "/uncertainty": "/uncertainty does not take GET; GET /docs lists what it takes.",
    }),
    *_post("method_not_allowed", {"/metrics": "/metrics does not take POST; GET /docs lists what it takes."}),
    *_get("method_not_allowed", {
        "/models/digits": "/models/digits does not take DELETE; GET /docs lists what it takes.",
    }, "DELETE"),
]  # fmt: skip

CASES = [*BODIES, *NUMBERS, *FILES, *FORMS, *MEDIA_TYPES, *ADDRESSES]
