"""Invalid requests, each with the error code and the message of its response.

They are sent to the shared application of `conftest.py`, whose limits the messages name.
"""
# ruff: noqa: E501 (a row of a table is easier to read than a paragraph)

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from model.images.file_formats import FORMAT_NAMES
from service.api.open_inference import LENGTH_HEADER
from tests.pictures import bomb, encode, form, instances, numbers
from tests.service.serving import JSON, PNG

GREY = np.zeros((8, 8), np.uint8)
PICTURE = encode(np.arange(64, dtype=np.uint8).reshape(8, 8))


@dataclass(frozen=True)
class Case:
    """A request, and the error of its response; `what` names the request."""

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
    """Build cases that send a good image to bad URLs; urls: URL -> message."""
    return [Case(url, code, sentence, PICTURE, PNG, url=url) for url, sentence in urls.items()]


def _get(code: str, urls: Mapping[str, str], method: str = "GET") -> list[Case]:
    return [
        Case(f"{method} {url}", code, sentence, method=method, url=url)
        for url, sentence in urls.items()
    ]


def _with_pixel(value: str) -> str:
    """Build a JSON body with one grey image whose last pixel is `value`."""
    rows = ["[0, 0, 0, 0, 0, 0, 0, 0]"] * 7 + [f"[0, 0, 0, 0, 0, 0, 0, {value}]"]
    return f'{{"instances": [[{", ".join(rows)}]]}}'


def _chunked(size: int) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function that makes a chunked body, without a Content-Length, for each request."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(0, size, 1000):
            yield bytes(1000)

    return chunks


_PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'


def _part(more: bytes, content: bytes) -> bytes:
    """Return a file of a form; more: what follows the field's name."""
    return _PART % (b"file", more, content)


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
    *_json("invalid_base64", "A 'b64' field is a data URL without base64; send 'data:image/png;base64,...' or the base64 alone.", {
        "a data URL of text": '{"instances": [{"b64": "data:image/png,AAAA"}]}',
        "a data URL of nothing": '{"instances": [{"b64": "data:"}]}',
    }),
]  # fmt: skip

_TAKES = "but this model takes [8][8] numbers (height 8, width 8, grey)."
_RAGGED = (
    "The image's rows differ in length or depth; send [8][8] numbers (height 8, width 8, grey)."
)
_OUTSIDE = "outside 0..1; divide 8-bit values by 255 before sending them."
_JUST_OUTSIDE = "just outside 0..1; clip the values to 0..1 before sending them."

NUMBERS = [
    *_json("image_shape", f"The image is 9 x 8, {_TAKES}", {"too high": instances([[[0] * 8] * 9])}),
    *_json("image_shape", f"The image is 8 x 7, {_TAKES}", {"too narrow": instances([[[0] * 7] * 8])}),
    *_json("image_shape", f"The image is 8 x 8 x 3, {_TAKES}", {"colour": instances([[[[0] * 3] * 8] * 8])}),
    *_json("image_shape", f"The image is 64, {_TAKES}", {"flat": instances([[0] * 64])}),
    *_json("image_shape", f"The image is empty, {_TAKES}", {"no rows": instances([[]])}),
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
    *_json("pixel_value", f"A pixel is -0.5, {_OUTSIDE}", {"below 0": _with_pixel("-0.5")}),
    *_json("pixel_value", f"A pixel is -1e-300, {_JUST_OUTSIDE}", {"just below 0": _with_pixel("-1e-300")}),
    *_json("pixel_value", f"A pixel is 1.00000012, {_JUST_OUTSIDE}", {"just above 1": _with_pixel("1.00000012")}),
    *_json("pixel_value", f"A pixel is 1.18059162e+21, {_OUTSIDE}", {"huge": _with_pixel(str(2**70))}),
    *_json("pixel_value", f"Image 1, counted from 0: A pixel is 2, {_OUTSIDE}", {
        "one bad image of two": instances([numbers(GREY), (GREY + 2).tolist()]),
    }),
    *_json("image_shape", f"Image 1, counted from 0: The image is empty, {_TAKES}", {
        "an empty image behind a file": instances([PICTURE, []]),
    }),
    *_json("invalid_base64", f"Image 1, counted from 0: {_NOT_BASE64}", {
        "one text of two that is not base64": '{"instances": [{"b64": ""}, {"b64": "*"}]}',
    }),
    *_json("pixel_value", "A pixel is not a number; send numbers from 0 to 1.", {
        "a boolean": _with_pixel("true"),
        "a string": _with_pixel('"0.5"'),
        "a null": _with_pixel("null"),
        "an object": _with_pixel("{}"),
    }),
]  # fmt: skip

_NOT_AN_IMAGE = f"The file is not an image that can be read; send a {FORMAT_NAMES} file."
_EMPTY_FILE = f"The file is empty; send a {FORMAT_NAMES} file."
_DAMAGED = f"The image is truncated or corrupt (…); send a whole {FORMAT_NAMES} file."
_TOO_MANY_BYTES = "The body is larger than 100,000 bytes; send fewer or smaller images."
_TOO_MANY_IMAGES = "One request takes at most 8 images; send several."

FILES = [
    *_png("image_unreadable", _NOT_AN_IMAGE, {
        "text": b"hello",
        "an ICO file": encode(GREY, "ICO"),
        "a header alone": PICTURE[:33],
    }),
    *_json("image_unreadable", _EMPTY_FILE, {"empty base64": '{"instances": [{"b64": ""}]}'}),
    *_files("image_unreadable", _EMPTY_FILE, {"an empty file": form(b"")}),
    *_json("image_unreadable", f"Image 1, counted from 0: {_NOT_AN_IMAGE}", {
        "a bad file behind numbers": instances([numbers(GREY), b"hello"]),
    }),
    *_files("image_unreadable", f"Image 1 ('b.png'), counted from 0: {_NOT_AN_IMAGE}", {
        "one bad file of two": [("file", ("a.png", PICTURE)), ("file", ("b.png", b"hello"))],
    }),
    *_files("image_unreadable", f"Image 0 ('{'n' * 100}'), counted from 0: {_DAMAGED}", {
        "a damaged file of a long name": [("file", ("n" * 200, PICTURE[:45])), ("file", ("b", PICTURE))],
    }),
    *_form("image_unreadable", f"Image 0 ('a\\x1b'), counted from 0: {_NOT_AN_IMAGE}", {
        "a bad file of an unprintable name": 2 * _part(b'; filename="a\x1b"', b"hello") + b"--x--\r\n",
    }, "multipart/form-data; boundary=x"),
    *_form("image_unreadable", f"Image 1, counted from 0: {_NOT_AN_IMAGE}", {
        "a bad file without a name": _part(b'; filename="a"', PICTURE) + _part(b'; filename=""', b"hello") + b"--x--\r\n",
    }, "multipart/form-data; boundary=x"),
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
    *_png("image_too_large", "The image declares 200000 x 200000 pixels, …", {
        "a bomb beyond what Pillow opens": bomb(200_000, 200_000),
    }),
    *_json("image_too_large", "Image 1, counted from 0: The image declares 10000 x 10000 pixels, …", {
        "a bomb in JSON": instances([PICTURE, bomb(10_000, 10_000)]),
    }),
    *_files("image_too_large", "Image 1 (…), counted from 0: The image declares 10000 x 10000 pixels, …", {
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
_FILE_PART = _part(b'; filename="a"', PICTURE)
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
    "image/webp, image/gif, image/bmp, image/tiff, image/avif, image/heic, image/heif."
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
        for kind in ("text/plain", "image/x-icon", "application/x-www-form-urlencoded")
    ],
    Case(
        "compressed, but not so",
        "invalid_compression",
        "The body is not one whole gzip stream; compress it again, or send it as it is without Content-Encoding.",
        PICTURE,
        PNG | {"Content-Encoding": "gzip"},
    ),
    Case(
        "compressed in another way",
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
        "/uncertainty?samples=513": "Parameter 'samples': at most 512 are drawn here, but got 513.",
        f"/uncertainty?samples=1{'0' * 99}": "Parameter 'samples': at most 512 are drawn here, but got 1000…000.",
        "/uncertainty?samples=many": f"Query parameter 'samples': {_WHOLE} 'many'.",
        "/uncertainty?samples=": f"Query parameter 'samples': {_WHOLE} ''.",
        "/uncertainty?seed=-1": "Query parameter 'seed': input should be greater than or equal to 0, but got '-1'.",
        f"/uncertainty?seed={2**63}": f"Query parameter 'seed': input should be less than or equal to {2**63 - 1}, but got '{2**63}'.",
        "/uncertainty?seed=0.5": f"Query parameter 'seed': {_WHOLE} '0.5'.",
        "/uncertainty?samples=AUTO": f"Query parameter 'samples': {_WHOLE} 'AUTO'.",
        "/uncertainty?design=random": "Query parameter 'design': input should be 'orthogonal' or 'independent', but got 'random'.",
        "/uncertainty?samples=auto&design=orthogonal": "Parameter 'design': samples=auto draws masks in independent pairs; leave it out.",
        "/uncertainty?coverage=1": "Query parameter 'coverage': input should be less than 1, but got '1'.",
        "/uncertainty?coverage=nan": "Query parameter 'coverage': input should be …, but got 'nan'.",
        "/uncertainty?coverage=90%25": "Query parameter 'coverage': input should be a valid number, … but got '90%'.",
        "/uncertainty?max_risk=0": "Query parameter 'max_risk': input should be greater than 0, but got '0'.",
        "/uncertainty?max_false_alarm=1": "Query parameter 'max_false_alarm': input should be less than 1, but got '1'.",
        "/uncertainty?max_false_alarm=nan": "Query parameter 'max_false_alarm': input should be …, but got 'nan'.",
        "/uncertainty?sets=raps": "Query parameter 'sets': input should be 'thr', 'class-conditional' or 'aps', but got 'raps'.",
        "/uncertainty?method=analytic&samples=9": "Parameter 'samples': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=analytic&seed=0": "Parameter 'seed': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=analytic&design=independent": "Parameter 'design': method=analytic draws no samples; leave it out.",
        "/uncertainty?method=analytic&per_sample=true": "Parameter 'per_sample': method=analytic draws no samples; leave it out.",
        "/uncertainty?per_sample=each": "Query parameter 'per_sample': input should be a valid boolean…, but got 'each'.",
        "/occlusion?grid=0": "Query parameter 'grid': input should be greater than or equal to 1, but got '0'.",
        "/occlusion?grid=17": "Query parameter 'grid': input should be less than or equal to 16, but got '17'.",
        "/occlusion?grid=9": "Parameter 'grid': the model sees 8 pixels along the longer side, so at most 8 can be used, but got 9.",
        "/occlusion?patch=9": "Parameter 'patch': the model sees 8 pixels along the longer side, so at most 8 can be used, but got 9.",
        "/occlusion?label=10": "Parameter 'label': the model has no class '10'; GET /models lists its classes.",
        "/occlusion?samples=8": "/occlusion takes no query parameter 'samples'; leave it out.",
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
    *_get("unknown_example", {f"/models/digits/examples/{number}": f"digits version 1 has no example '{number}'; GET /models/digits/examples lists them." for number in ("99", "x", "-1")}),
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

_VALUES = [0.5] * 64
_INPUT = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": _VALUES}
_SHAPE = "…, but this model takes [N, 1, 8, 8]; N is 1 or more."
_PROTOCOL = "The request is not one of the Open Inference Protocol: "


def _tensors(code: str, sentence: str, requests: Mapping[str, Any]) -> list[Case]:
    """Build requests to /v2 from JSON, or from (JSON, binary data, error of the length header)."""
    cases = []
    for what, given in requests.items():
        content, binary, more = given if isinstance(given, tuple) else (given, None, 0)
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        headers = {} if binary is None else {LENGTH_HEADER: str(len(body) + more)}
        body += binary or b""
        cases.append(Case(what, code, sentence, body, headers, url="/v2/models/digits/infer"))
    return cases


def _with(**changes: Any) -> Any:
    return {"inputs": [_INPUT | changes]}


def _binary(size: Any, datatype: str = "FP32", **changes: Any) -> Any:
    given = {"name": "images", "shape": [1, 1, 8, 8], "datatype": datatype} | changes
    return {"inputs": [given | {"parameters": {"binary_data_size": size}}]}


TENSORS = [
    *_tensors("invalid_json", "The body's JSON cannot be read (…); …", {
        "no OIP body": b"",
        "OIP NaN": b'{"inputs": [NaN]}',
        "OIP nested": b"[" * 10_000,
        "a header length in the middle": (_binary(256), bytes(256), -1),
    }),
    *_tensors("invalid_request", _PROTOCOL + "…", {
        "a list of OIP": [],
        "no inputs": {},
        "empty inputs": {"inputs": []},
        "an input without a shape": {"inputs": [{"name": "images", "datatype": "FP32"}]},
        "a negative dimension": _with(shape=[-1, 1, 8, 8]),
        "an overflowing dimension": _with(shape=[2**31, 1, 8, 8]),
        "an endless shape": _with(shape=[1] * 17),
        "another datatype": _with(datatype="FP64"),
        "outputs that are no list": {"inputs": [_INPUT], "outputs": "label"},
    }),
    *_tensors("invalid_request", f"{LENGTH_HEADER} is …; send the length of the JSON alone.", {
        "a header length beyond the body": (_binary(256), b"", 1),
    }),
    *_tensors("invalid_tensor", "Input 'images' is given twice; give it once.", {"an input twice": {"inputs": [_INPUT, _INPUT]}}),
    *_tensors("invalid_tensor", "Output 'label' is given twice; give it once.", {"an output twice": {"inputs": [_INPUT], "outputs": [{"name": "label"}] * 2}}),
    *_tensors("invalid_tensor", "There is no output 'logits'; there is probabilities, label.", {"another output": {"inputs": [_INPUT], "outputs": [{"name": "logits"}]}}),
    *_tensors("unsupported", "Output 'label': shared memory is not offered; take it from the answer.", {"shared memory": {"inputs": [_INPUT], "outputs": [{"name": "label", "parameters": {"shared_memory_region": "x"}}]}}),
    *_tensors("invalid_tensor", "Output 'label' holds no scores of classes to be put in order.", {"labels classified": {"inputs": [_INPUT], "outputs": [{"name": "label", "parameters": {"classification": 1}}]}}),
    *_tensors("invalid_tensor", "Output 'probabilities': 'classification' is a number of classes, 1 or more.", {
        f"classification {count!r}": {"inputs": [_INPUT], "outputs": [{"name": "probabilities", "parameters": {"classification": count}}]}
        for count in (-1, True, "3", 1.5)
    }),
    *_tensors("invalid_tensor", "The one input is 'images', but the request has …", {
        "another input": _with(name="image"),
        "one input more": {"inputs": [_INPUT, _INPUT | {"name": "mask"}]},
    }),
    *_tensors("invalid_tensor", "Input 'images' has 63 values, but its shape [1, 1, 8, 8] takes 64.", {"too few values": _with(data=_VALUES[:63])}),
    *_tensors("invalid_tensor", "Input 'images' has 64 values, but its shape [1, 2147483647, 8, 8] takes 137438953408.", {"a huge shape": _with(shape=[1, 2**31 - 1, 8, 8])}),
    *_tensors("invalid_tensor", "Input 'images' has no values in its shape [0, 2147483647, 2147483647, 2147483647].", {"a shape beyond counting": _with(shape=[0, *[2**31 - 1] * 3], data=[])}),
    *_tensors("invalid_tensor", "Input 'images' is not nested as its shape [2, 1, 8, 8] is.", {
        "images last": _with(shape=[2, 1, 8, 8], data=np.full((8, 8, 2), 0.5).tolist()),
        "other rows": _with(shape=[2, 1, 8, 8], data=np.full((2, 4, 16), 0.5).tolist()),
        "rows for images": _with(shape=[2, 1, 8, 8], data=np.full((4, 32), 0.5).tolist()),
    }),
    *_tensors("invalid_tensor", "Input 'images' has more values than its shape [1] takes.", {"too many elements": (_binary(8, "BYTES", shape=[1]), bytes(8), 0)}),
    *_tensors("invalid_request", _PROTOCOL + "inputs: list should have at most 16 items …", {"thousands of inputs": {"inputs": [{}] * 5000}}),
    *_tensors("invalid_request", _PROTOCOL + "outputs: list should have at most 16 items …", {"thousands of outputs": {"inputs": [_INPUT], "outputs": [{}] * 5000}}),
    *_tensors("invalid_request", _PROTOCOL + "parameters: at most 64 parameters are taken.", {"thousands of parameters": {"inputs": [_INPUT], "parameters": {str(number): [] for number in range(5000)}}}),
    *_tensors("invalid_tensor", "Input 'images' has no list 'data'; …", {"no data": _with(data=None), "data that is no list": _with(data=1)}),
    *_tensors("invalid_tensor", "Input 'images' has an element that is no FP32 number.", {
        "text for a number": _with(data=["0"] * 64),
        "null for a number": _with(data=[None] * 64),
        "true for a number": _with(data=[True] * 64),
    }),
    *_tensors("invalid_tensor", "Input 'images' has an element that is no UINT8 number.", {"fractions": _with(datatype="UINT8")}),
    *_tensors("invalid_tensor", "Input 'images' has a number out of UINT8's range.", {"256": _with(datatype="UINT8", data=[256] * 64), "-1": _with(datatype="UINT8", data=[-1] * 64)}),
    *_tensors("invalid_tensor", "Input 'images' has rows of different lengths.", {"numbers between rows": _with(shape=[2, 1, 8, 8], data=[[0.5] * 64, 0.5]), "ragged rows": _with(data=[[[[0.5] * 8] * 7 + [[0.5] * 7]]])}),
    *_tensors("invalid_tensor", "Input 'images' has an element that is no string; send each image in base64.", {"numbers for files": _with(datatype="BYTES", shape=[1], data=[1])}),
    *_tensors("invalid_tensor", "Encoded images are of shape [N] or [N, 1], but 'images' has …", {"files in a square": _with(datatype="BYTES", shape=[1, 2], data=["AAAA", "AAAA"]), "no files": _with(datatype="BYTES", shape=[0], data=[]), "a file without a batch": _with(datatype="BYTES", shape=[], data=["AAAA"]), "a binary file without a batch": (_binary(5, "BYTES", shape=[]), b"\x01\0\0\0x", 0), "a file in a cube": _with(datatype="BYTES", shape=[1, 1, 1], data=["AAAA"])}),
    *_tensors("invalid_base64", "An element of 'images' is not base64; encode it (RFC 4648).", {"a file as it is": _with(datatype="BYTES", shape=[1], data=["é"])}),
    *_tensors("image_unreadable", "The file is not an image that can be read; …", {"base64 of no image": _with(datatype="BYTES", shape=[1], data=["AAAA"])}),
    *_tensors("image_unreadable", "Image 0, counted from 0: The file is not an image that can be read; …", {"base64 of two that are no images": _with(datatype="BYTES", shape=[2], data=["AAAA", "AAAA"])}),
    *_tensors("invalid_base64", "Image 1, counted from 0: An element of 'images' is not base64; encode it (RFC 4648).", {"one element of two that is not base64": _with(datatype="BYTES", shape=[2], data=["AAAA", "é"])}),
    *_tensors("image_shape", _SHAPE, {
        "no batch": _with(shape=[1, 8, 8]),
        "channels last": _with(shape=[1, 8, 8, 1]),
        "a single value": _with(shape=[], data=[0.5]),
        "flat": _with(shape=[1, 64]),
        "an empty OIP batch": _with(shape=[0, 1, 8, 8], data=[]),
        "UINT8 without a batch": _with(datatype="UINT8", shape=[8, 8], data=[1] * 64),
    }),
    *_tensors("pixel_value", "A pixel is 1.5, outside 0..1; …", {"a bright pixel": _with(data=[1.5] * 64)}),
    *_tensors("pixel_value", "Image 1, counted from 0: A pixel is 1.5, outside 0..1; …", {"a bright pixel in the second of three": _with(shape=[3, 1, 8, 8], data=_VALUES + [1.5] * 64 + [9] * 64)}),
    *_tensors("pixel_value", "A pixel is NaN or infinite; …", {
        "NaN in binary": (_binary(256), np.full(64, np.nan, np.float32).tobytes(), 0),
        "infinity in binary": (_binary(256), np.full(64, np.inf, np.float32).tobytes(), 0),
    }),
    *_tensors("too_many_images", "One request takes at most 8 images; send several.", {"a large OIP batch": _with(shape=[9, 1, 8, 8], data=_VALUES * 9)}),
    *_tensors("invalid_tensor", "Input 'images' has both 'data' and 'binary_data_size'; send one of them.", {"data twice": (_with(parameters={"binary_data_size": 256}), bytes(256), 0)}),
    *_tensors("invalid_tensor", "Input 'images' has a 'binary_data_size' that is not a number of bytes.", {
        f"binary_data_size {size!r}": (_binary(size), bytes(256), 0) for size in (-1, True, "256", 256.0)
    }),
    *_tensors("invalid_tensor", "Input 'images' lacks 4 of its 256 binary bytes.", {"binary cut": (_binary(256), bytes(252), 0)}),
    *_tensors("invalid_tensor", "1 bytes follow the last binary tensor; …", {"a byte left over": (_binary(256), bytes(257), 0)}),
    *_tensors("invalid_tensor", "Input 'images' has 255 bytes, not a whole number of FP32 values.", {"an odd size": (_binary(255), bytes(255), 0)}),
    *_tensors("invalid_tensor", "Input 'images' ends within an element's length.", {"a length cut": (_binary(3, "BYTES", shape=[1]), bytes(3), 0)}),
    *_tensors("invalid_tensor", "Input 'images' ends within an element.", {"an element cut": (_binary(5, "BYTES", shape=[1]), b"\x02\0\0\0x", 0)}),
    *_tensors("invalid_query", "Parameter 'timeout' is a number of microseconds, 0 or more.", {
        f"timeout {timeout!r}": {"inputs": [_INPUT], "parameters": {"timeout": timeout}} for timeout in (-1, True, "1")
    }),
    *[
        Case(f"a header length of {text!r}", "invalid_request", f"{LENGTH_HEADER} is {text!r}; send the length of the JSON in bytes.", b"{}", {LENGTH_HEADER: text}, url="/v2/models/digits/infer")
        for text in ("-1", "x", "", "1.0", "9" * 30)
    ],
    Case("a raw request of another size", "invalid_tensor", "A raw request is one FP32 image of 256 bytes, but this body has 10; …", bytes(10), {LENGTH_HEADER: "0"}, url="/v2/models/digits/infer"),
    Case("a sampling that is none", "invalid_query", "Parameter 'samples': input should be greater than or equal to 1, but got 0.", orjson.dumps({"inputs": [_INPUT], "parameters": {"samples": 0}}), url="/v2/models/digits-mc/infer"),
    Case("a false-alarm rate of 0", "invalid_query", "Parameter 'max_false_alarm': input should be greater than 0, but got 0.", orjson.dumps({"inputs": [_INPUT], "parameters": {"max_false_alarm": 0}}), url="/v2/models/digits-mc/infer"),
    Case("a risk that is no number", "invalid_query", "Parameter 'max_risk': input should be a valid number, … but got \"low\".", orjson.dumps({"inputs": [_INPUT], "parameters": {"max_risk": "low"}}), url="/v2/models/digits-mc/infer"),
    Case("a seed that is a list", "invalid_query", "Parameter 'seed': input should be a valid integer, but got [null].", orjson.dumps({"inputs": [_INPUT], "parameters": {"seed": [None]}}), url="/v2/models/digits-mc/infer"),
    Case("true samples", "invalid_query", "Parameter 'samples': true is no value for it.", orjson.dumps({"inputs": [_INPUT], "parameters": {"samples": True}}), url="/v2/models/digits-mc/infer"),
    Case("more samples than allowed", "invalid_query", "Parameter 'samples': at most 512 are drawn here, but got 513.", orjson.dumps({"inputs": [_INPUT], "parameters": {"samples": 513}}), url="/v2/models/digits-mc/infer"),
    *_get("unknown_model", {f"/v2/models/digits-mc-mc{path}": "No model 'digits-mc-mc' is loaded; there is digits." for path in ("", "/ready")}),
    *_get("unknown_model", {f"/v2/models/cats{path}": "No model 'cats' is loaded; there is digits." for path in ("", "/ready", "/config", "/stats", "/versions/1")}),
    *_get("unknown_version", {f"/v2/models/digits/versions/{version}{path}": f"Version '{version}' of digits is not loaded; version 1 is." for version in ("2", "one", "canary") for path in ("", "/ready", "/config", "/stats")}),
    *_get("not_found", {path: f"There is nothing at {path}; GET /docs lists what there is." for path in ("/v2/nowhere", "/v2/models", "/v2/models/digits/nowhere", "/v1/nowhere")}),
    *_get("method_not_allowed", {path: f"{path} does not take DELETE; GET /docs lists what it takes." for path in ("/v2", "/v2/models/digits", "/v2/models/digits/infer", "/v1/models/digits:predict")}, "DELETE"),
    *[
        Case(f"TensorFlow Serving: {what}", code, sentence, body, url="/v1/models/digits:predict")
        for what, code, sentence, body in (
            ("columns", "invalid_request", 'The body is not of the form {"instances": [IMAGE, ...]}, …', b'{"inputs": []}'),
            ("a list", "invalid_request", 'The body is not of the form {"instances": [IMAGE, ...]}, …', b"[]"),
            ("another signature", "invalid_request", "The one signature here is 'serving_default'; leave it out.", b'{"instances": [], "signature_name": "x"}'),
            ("no list", "invalid_request", "'instances' is not a list; …", b'{"instances": 1}'),
            ("nothing", "empty_body", "'instances' is empty; send at least one image.", b'{"instances": []}'),
            ("no JSON", "invalid_json", "The body is not JSON that can be read (…); …", b"x"),
        )
    ],
    *_post("unknown_model", {"/v1/models/cats:predict": "No model 'cats' is loaded; there is digits."}),
    *_get("unknown_model", {"/v1/models/cats": "No model 'cats' is loaded; there is digits."}),
]  # fmt: skip

_PAGE = {"Origin": "http://localhost:8000"}
_LOAD = "/v2/repository/models/digits/load"

CONTROL = [
    Case("a web page", "control_disabled", "Models cannot be changed from a web page; use a client.", b"", _PAGE, url=_LOAD),
    Case("a web page promotes", "control_disabled", "Models cannot be changed from a web page; use a client.", b"", _PAGE, url="/models/digits/promote"),
    Case("other settings", "unsupported", "Parameter 'config' is not offered: …", b'{"parameters": {"config": "{}"}}', url=_LOAD),
    Case("other files", "unsupported", "Parameter 'file:1/model.onnx' is not offered: …", b'{"parameters": {"file:1/model.onnx": ""}}', url=_LOAD),
    *_post("release_impossible", {
        "/models/digits/promote": "There is no canary to promote; start one first.",
        "/models/digits/unshadow": "There is no shadow version to end; start one first.",
        "/models/digits/rollback": "There is no earlier version to roll back to; copy one back first.",
    }),
    *_post("unknown_version", {
        "/models/digits/pin?version=9": "There is no version 9 of digits in …; there is 1.",
        "/models/digits/shadow?version=9": "There is no version 9 of digits in …; there is 1.",
        "/models/digits/canary?version=9": "There is no version 9 of digits in …; there is 1.",
    }),
    *_get("unknown_model", dict.fromkeys(("/models/cats/promote", "/v2/repository/models/cats/load", "/v2/repository/models/cats-mc/load"), "There is no model 'cats' to be loaded; there is digits."), "POST"),
    *_get("unknown_model", {"/v2/repository/models/cats-mc/unload": "There is no model 'cats-mc' to be loaded; there is digits."}, "POST"),
    *_get("release_impossible", dict.fromkeys(("/v2/repository/models/digits-mc/unload", "/models/digits-mc/default", "/models/digits-mc/promote", "/models/digits-mc/pin?version=1"), "digits-mc is digits with dropout active, and serves as it does; name digits."), "POST"),
    *_post("invalid_query", {
        "/models/digits/canary": "Query parameter 'version': field required, but got …",
        "/models/digits/pin?version=0": "Query parameter 'version': input should be greater than or equal to 1, but got '0'.",
        "/models/digits/canary?version=1&share=2": "Query parameter 'share': input should be less than or equal to 1, but got '2'.",
    }),
]  # fmt: skip

CASES = [*BODIES, *NUMBERS, *FILES, *FORMS, *MEDIA_TYPES, *ADDRESSES, *CONTROL, *TENSORS]
