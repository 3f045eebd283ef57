"""Requests of the Open Inference Protocol, good and malformed, for any server with our digits.

The model is `digits`: input `images` FP32 [-1, 1, 8, 8], outputs `probabilities` FP32 [-1, 10] and
`label` BYTES [-1], at most 64 images a request. A name before the colon is the group of a case.
The order matters: the last group unloads the model and loads it again. Knows no server.
"""
# ruff: noqa: E501 (a row of a table is easier to read than a paragraph)

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MODEL = "/v2/models/digits"
INFER = f"{MODEL}/infer"
REPOSITORY = "/v2/repository"
LENGTH_HEADER = "Inference-Header-Content-Length"

PIXELS = np.random.default_rng(0).random((65, 1, 8, 8), np.float32)


@dataclass(frozen=True)
class Case:
    """One request, sent to both servers."""

    name: str
    path: str = INFER
    method: str = "POST"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False
    """Sent without a Content-Length."""


def _path_cases(group: str, paths: Iterable[str], method: str = "GET") -> list[Case]:
    return [Case(f"{group}: {method} {path}", path, method) for path in paths]


def _body_cases(group: str, texts: Mapping[str, str | bytes], path: str = INFER) -> list[Case]:
    """Return a case for each body."""
    return [
        Case(f"{group}: {what}", path, body=text if isinstance(text, bytes) else text.encode())
        for what, text in texts.items()
    ]


def _json_cases(group: str, contents: Mapping[str, Any], path: str = INFER) -> list[Case]:
    """Return a case for each content, written as JSON."""
    texts = {what: json.dumps(content) for what, content in contents.items()}
    return _body_cases(group, texts, path)


def _request(*inputs: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or [_images()]), **more}


def _images(count: int = 1, **changes: Any) -> dict[str, Any]:
    """Return an input tensor of the first images; a change to None leaves the key out."""
    tensor = {
        "name": "images",
        "shape": [count, 1, 8, 8],
        "datatype": "FP32",
        "data": PIXELS[:count].ravel().tolist(),
        **changes,
    }
    return {key: value for key, value in tensor.items() if value is not None}


def _binary_input(size: Any = None, count: int = 1, **changes: Any) -> dict[str, Any]:
    """Return an input whose values follow the JSON as bytes."""
    parameters = {"binary_data_size": 256 * count if size is None else size}
    return _images(count, data=None, parameters=parameters, **changes)


def _binary(
    name: str,
    content: Any = None,
    tail: bytes = PIXELS[:1].tobytes(),
    length: object = None,
    accept: str | None = None,
) -> Case:
    """Return a case of JSON followed by bytes; length: replaces the right length in the header."""
    text = json.dumps(_request(_binary_input()) if content is None else content).encode()
    header_length = str(len(text) if length is None else length)
    headers = {LENGTH_HEADER: header_length} | ({"Accept-Encoding": accept} if accept else {})
    return Case(f"binary: {name}", body=text + tail, headers=headers)


def _probabilities_output(**parameters: Any) -> dict[str, Any]:
    return {"name": "probabilities", "parameters": parameters}


def _with_pixel(text: str) -> str:
    """Return the JSON of a request whose last pixel is `text`."""
    values = ", ".join(["0.5"] * 63 + [text])
    return f'{{"inputs": [{{"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [{values}]}}]}}'


def _encoded(
    name: str, encoding: str, body: bytes, headers: Mapping[str, str] | None = None
) -> Case:
    return Case(
        f"encoding: {name}", body=body, headers={"Content-Encoding": encoding, **(headers or {})}
    )


_GOOD = json.dumps(_request()).encode()
_ONE = PIXELS[:1].tobytes()
_RAW = {LENGTH_HEADER: "0"}
_NO_MODEL = "/v2/models/nothing"

SERVER = [
    *_path_cases("server", ["/v2", "/v2/", "/v2?x=1"]),
    *_path_cases("health", ["/v2/health/live", "/v2/health/ready", "/v2/health/ready?x=1"]),
    *_path_cases("model", [MODEL, f"{MODEL}/versions/1", "/v2/models/d%69gits"]),
    *_path_cases("ready", [f"{MODEL}/ready", f"{MODEL}/versions/1/ready"]),
    *_path_cases("config", [f"{MODEL}/config", f"{MODEL}/versions/1/config"]),
]

_OF_MODEL = ("", "/ready", "/config", "/stats")

UNKNOWN = [
    *_path_cases("unknown model", [
        *(f"{_NO_MODEL}{each}" for each in _OF_MODEL),
        *(f"{_NO_MODEL}/versions/1{each}" for each in _OF_MODEL),
        "/v2/models/Digits",
        "/v2/models/digits%00",
    ]),
    *_path_cases("unknown version", [f"{MODEL}/versions/9{each}" for each in _OF_MODEL]),
    *_path_cases("no version", [f"{MODEL}/versions/{each}" for each in ("x", "01", "-1", "1.0", "99999999999999999999", "x/ready", "x/config", "x/stats")]),
    *_body_cases("unknown model", {"infer": _GOOD}, f"{_NO_MODEL}/infer"),
    *_body_cases("unknown version", {"infer": _GOOD}, f"{MODEL}/versions/9/infer"),
    *_body_cases("no version", {"infer": _GOOD}, f"{MODEL}/versions/x/infer"),
    *_body_cases("good", {"a version": _GOOD}, f"{MODEL}/versions/1/infer"),
    *_path_cases("unknown path", [
        "/v3", "/v2/nothing", "/v2/models", "/v2/models/", f"{MODEL}/", f"{MODEL}/nothing",
        f"{MODEL}/versions", f"{MODEL}/versions/", "/v2/health", "/v2/health/started", f"{MODEL}/ready/",
    ]),
    *_body_cases("unknown path", {"infer and a slash": _GOOD}, f"{INFER}/"),
    *_body_cases("unknown path", {"infer without a model": _GOOD}, "/v2/models//infer"),
    *_path_cases("other extension", [
        "/v2/logging", "/v2/trace/setting", "/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status",
    ]),
    *_json_cases("other extension", {"generate": {"text_input": "x"}}, f"{MODEL}/generate"),
    *_path_cases("wrong method", ["/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready", f"{MODEL}/config", f"{MODEL}/stats"], "POST"),
    *_path_cases("wrong method", [INFER, f"{REPOSITORY}/index", f"{REPOSITORY}/models/digits/load", f"{REPOSITORY}/models/digits/unload"]),
    *_path_cases("wrong method", [MODEL, INFER], "DELETE"),
    *_path_cases("wrong method", [INFER], "PUT"),
    *_path_cases("wrong method", ["/v2", "/v2/health/ready"], "HEAD"),
    *_path_cases("wrong method", [INFER], "OPTIONS"),
]  # fmt: skip

GOOD = [
    *_json_cases("good", {
        "flat": _request(),
        "nested": _request(_images(data=PIXELS[:1].tolist())),
        "nested to the rows": _request(_images(data=PIXELS[0, 0].tolist())),
        "of nested rows, two images": _request(_images(2, data=PIXELS[:2].reshape(2, 64).tolist())),
        "zeros and ones as integers": _request(_images(data=[0, 1] * 32)),
        **{f"{count} images": _request(_images(count)) for count in (2, 7, 32, 63, 64)},
        "unknown keys": _request(_images(colour="grey"), more={"a": [1]}),
    }),
    *_body_cases("good", {
        "white space around": b" \r\n\t" + _GOOD + b" \n",
        "numbers with exponents": _with_pixel("5e-1"),
        "minus zero": _with_pixel("-0.0"),
        "a denormal": _with_pixel("1e-40"),
    }),
    *(
        Case(f"good: as {content_type}", body=_GOOD, headers={"Content-Type": content_type})
        for content_type in ("application/json", "application/octet-stream", "text/plain", "nonsense")
    ),
    Case("good: a query", f"{INFER}?x=1", body=_GOOD),
    Case("good: chunked", body=_GOOD, chunked=True),
    Case("good: Expect", body=_GOOD, headers={"Expect": "100-continue"}),
    *_body_cases("odd JSON", {
        "a byte order mark": b"\xef\xbb\xbf" + _GOOD,
        "a comma too many": _GOOD[:-1] + b",}",
        "a comment": _GOOD[:-1] + b"/* none */}",
        "text behind": _GOOD + b"x",
        "another object behind": _GOOD + _GOOD,
        "inputs twice": _GOOD[:-1] + b', "inputs": []}',
        "not UTF-8": _GOOD[:-1] + b', "id": "\xff"}',
        "half a surrogate pair": _GOOD[:-1] + b', "id": "\\ud800"}',
    }),
]  # fmt: skip

_BOTH = [{"name": "probabilities"}, {"name": "label"}]

OUTPUTS = [
    *_json_cases("outputs", {
        "both": _request(outputs=_BOTH),
        "the other way round": _request(outputs=_BOTH[::-1]),
        "label alone": _request(outputs=_BOTH[1:]),
        "probabilities alone": _request(outputs=_BOTH[:1]),
        "none": _request(outputs=[]),
        "null": _request(outputs=None),
        "unknown": _request(outputs=[{"name": "nothing"}]),
        "known and unknown": _request(outputs=[*_BOTH, {"name": "nothing"}]),
        "twice": _request(outputs=[_BOTH[0], _BOTH[0]]),
        "a string": _request(outputs="label"),
        "an object": _request(outputs={"name": "label"}),
        "of strings": _request(outputs=["label"]),
        "of null": _request(outputs=[None]),
        "without a name": _request(outputs=[{}]),
        "a name of a number": _request(outputs=[{"name": 1}]),
        "parameters null": _request(outputs=[{"name": "label", "parameters": None}]),
        "parameters a list": _request(outputs=[{"name": "label", "parameters": []}]),
        "unknown parameter": _request(outputs=[_probabilities_output(colour="grey")]),
        "unknown key": _request(outputs=[{"name": "label", "colour": "grey"}]),
    }),
    *_json_cases("classification", {
        **{f"of {count!r}": _request(_images(2), outputs=[_probabilities_output(classification=count)]) for count in (1, 3, 10, 1000, 0, -1, 1.5, "3", True, None, 2**40, 2**70)},
        "of 3, and label": _request(outputs=[_probabilities_output(classification=3), _BOTH[1]]),
        "in binary": _request(outputs=[_probabilities_output(classification=3, binary_data=True)]),
        "of label": _request(outputs=[{"name": "label", "parameters": {"classification": 1}}]),
        "of 64 images": _request(_images(64), outputs=[_probabilities_output(classification=2)]),
    }),
    *_json_cases("binary output", {
        "one of two": _request(outputs=[_probabilities_output(binary_data=True), _BOTH[1]]),
        "the other": _request(_images(3), outputs=[_BOTH[0], {"name": "label", "parameters": {"binary_data": True}}]),
        "false": _request(outputs=[_probabilities_output(binary_data=False)]),
        "by default": _request(parameters={"binary_data_output": True}),
        "by default, false": _request(parameters={"binary_data_output": False}),
        "by default, with outputs": _request(_images(2), outputs=_BOTH, parameters={"binary_data_output": True}),
        "by default, one not": _request(outputs=[_probabilities_output(binary_data=False), _BOTH[1]], parameters={"binary_data_output": True}),
        "by default not, one": _request(outputs=[_probabilities_output(binary_data=True), _BOTH[1]], parameters={"binary_data_output": False}),
        "a string": _request(outputs=[_probabilities_output(binary_data="true")]),
        "a number": _request(outputs=[_probabilities_output(binary_data=1)]),
        "null": _request(outputs=[_probabilities_output(binary_data=None)]),
        "by default, a number": _request(parameters={"binary_data_output": 1}),
        "by default, a string": _request(parameters={"binary_data_output": "true"}),
        "64 images": _request(_images(64), parameters={"binary_data_output": True}),
    }),
]  # fmt: skip

IDS = _json_cases("id", {
    what: _request(id=value)
    for what, value in {
        "a string": "one",
        "empty": "",
        "a number": 7,
        "a fraction": 1.5,
        "null": None,
        "true": True,
        "a list": [],
        "not ASCII": "ünf",
        "with controls": "a\nb\0",
        "long": "x" * 5000,
    }.items()
})  # fmt: skip

PARAMETERS = _json_cases("parameter", {
    **{
        f"{name} of {value!r}": _request(parameters={name: value})
        for name, values in {
            "timeout": (60_000_000, 0, -1, "60", 1.5, True, 2**70),
            "priority": (1, 0, -1, "1", 99),
            "unknown": (1, "x", True, 1.5, None, [1], {"a": 1}),
            "sequence_id": (0, 7, "x"),
            "sequence_start": (True, 1),
            "triton_enable_empty_final_response": (True,),
        }.items()
        for value in values
    },
    "none": _request(parameters={}),
    "null": _request(parameters=None),
    "a list": _request(parameters=[]),
    "a string": _request(parameters="x"),
    "of an input": _request(_images(parameters={"colour": "grey"})),
    "of an input, null": _request({**_images(), "parameters": None}),
    "of an input, a list": _request(_images(parameters=[])),
})  # fmt: skip

_NESTED = "[" * 90 + "]" * 90
_DEEP = "[" * 3000 + "]" * 3000


def _shaped(*shape: Any) -> dict[str, Any]:
    return _request(_images(shape=list(shape)))


SHAPES = _json_cases("shape", {
    "too few dimensions": _shaped(8, 8),
    "flat": _shaped(1, 64),
    "too many dimensions": _shaped(1, 1, 1, 8, 8),
    "no dimension": _shaped(),
    "another order": _shaped(1, 8, 8, 1),
    "too large": _shaped(1, 1, 9, 8),
    "another image of its own values": _request(_images(shape=[1, 1, 4, 4], data=[0.5] * 16)),
    "no image": _request(_images(shape=[0, 1, 8, 8], data=[])),
    "no row": _request(_images(shape=[1, 1, 0, 8], data=[])),
    "minus 1": _shaped(-1, 1, 8, 8),
    "two minuses": _shaped(1, 1, -8, -8),
    "65 images": _request(_images(65)),
    "overflowing": _shaped(2**62, 1, 8, 8),
    "overflowing to the size": _shaped(2**32, 2**32, 8, 8),
    "beyond 64 bits": _shaped(2**64, 1, 8, 8),
    "a fraction": _shaped(1.5, 1, 8, 8),
    "a whole float": _shaped(1.0, 1, 8, 8),
    "of strings": _shaped("1", "1", "8", "8"),
    "of null": _shaped(None, 1, 8, 8),
    "of booleans": _shaped(True, True, 8, 8),
    "nested": _shaped([1, 1, 8, 8]),
    "null": _request({**_images(), "shape": None}),
    "missing": _request(_images(shape=None)),
    "a number": _request(_images(shape=64)),
    "a string": _request(_images(shape="1,1,8,8")),
    "of 100 dimensions": _shaped(*[1] * 98, 8, 8),
})  # fmt: skip

DATA = [
    *_json_cases("data", {
        "too few": _request(_images(data=[0.5] * 63)),
        "too many": _request(_images(data=[0.5] * 65)),
        "none": _request(_images(data=[])),
        "one image of two": _request(_images(2, data=[0.5] * 64)),
        "of strings": _request(_images(data=["0.5"] * 64)),
        "of null": _request(_images(data=[None] * 64)),
        "of booleans": _request(_images(data=[True] * 64)),
        "of objects": _request(_images(data=[{}] * 64)),
        "one string": _request(_images(data=[0.5] * 63 + ["0.5"])),
        "one null": _request(_images(data=[0.5] * 63 + [None])),
        "missing": _request(_images(data=None)),
        "null": _request({**_images(), "data": None}),
        "a string": _request(_images(data="0.5")),
        "a number": _request(_images(data=0.5)),
        "an object": _request(_images(data={"b64": ""})),
        "ragged": _request(_images(data=[[0.5] * 63, [0.5]])),
        "nested otherwise": _request(_images(data=PIXELS[0].reshape(16, 4).tolist())),
        "nested one deeper": _request(_images(data=[PIXELS[:1].tolist()])),
        "nested and flat": _request(_images(data=[*PIXELS[0, 0, :7].tolist(), *PIXELS[0, 0, 7].tolist()])),
        "above 1": _request(_images(data=[255.0] * 64)),
        "below 0": _request(_images(data=[-0.5] * 64)),
    }),
    *_body_cases("data", {
        "NaN": _with_pixel("NaN"),
        "Infinity": _with_pixel("Infinity"),
        "beyond FP64": _with_pixel("1e999"),
        "beyond FP32": _with_pixel("1e39"),
        "beyond 64 bits": _with_pixel(str(2**70)),
        "hexadecimal": _with_pixel("0x1"),
        "a leading zero": _with_pixel("00.5"),
        "a bare point": _with_pixel(".5"),
        "nested 90 deep": _with_pixel(_NESTED),
        "nested 3,000 deep": _with_pixel(_DEEP),
    }),
]  # fmt: skip

INPUTS = [
    *_json_cases("datatype", {
        datatype: _request(_images(datatype=datatype))
        for datatype in ("FP64", "FP16", "INT32", "BOOL", "fp32", "", "FLOAT", "images")
    }),
    *_json_cases("datatype", {
        "UINT8": _request(_images(datatype="UINT8", data=[128] * 64)),
        "BYTES": _request(_images(shape=[1], datatype="BYTES", data=["aGk="])),
        "missing": _request(_images(datatype=None)),
        "a number": _request(_images(datatype=32)),
        "null": _request({**_images(), "datatype": None}),
    }),
    *_json_cases("inputs", {
        "empty": {"inputs": []},
        "missing": {},
        "null": {"inputs": None},
        "an object": {"inputs": _images()},
        "a string": {"inputs": "images"},
        "of null": {"inputs": [None]},
        "of lists": {"inputs": [[]]},
        "of strings": {"inputs": ["images"]},
        "empty object": {"inputs": [{}]},
        "twice": _request(_images(), _images()),
        "one more": _request(_images(), _images(name="more")),
        "another name": _request(_images(name="picture")),
        "name missing": _request(_images(name=None)),
        "name a number": _request(_images(name=1)),
        "name empty": _request(_images(name="")),
        "instances": {"instances": PIXELS[:1].tolist()},
    }),
    *_body_cases("body", {
        "empty": b"",
        "white space": b"  ",
        "not JSON": b"images",
        "cut": _GOOD[:-10],
        "an array": b"[]",
        "a string": b'"images"',
        "a number": b"1",
        "null": b"null",
        "true": b"true",
        "bytes": _ONE,
        "zeros": bytes(100),
        "nested 10,000 deep": b"[" * 10_000,
    }),
]  # fmt: skip

_TWO = PIXELS[:2].tobytes()
_BYTES = b"\x02\0\0\0hi"

_GOOD_BINARY = _binary("")

BINARY = [
    _binary("good"),
    _binary("two images", _request(_binary_input(count=2)), _TWO),
    _binary("64 images", _request(_binary_input(count=64)), PIXELS[:64].tobytes()),
    _binary("65 images", _request(_binary_input(count=65)), PIXELS.tobytes()),
    _binary("in and out", _request(_binary_input(), id="x", parameters={"binary_data_output": True})),
    _binary("not a number in it", tail=np.full(64, np.nan, np.float32).tobytes()),
    _binary("length too long", length=10_000),
    _binary("length of all", length=len(json.dumps(_request(_binary_input()))) + 256),
    _binary("length too short", length=20),
    _binary("length negative", length=-1),
    _binary("length not a number", length="many"),
    _binary("length a fraction", length=1.5),
    _binary("length with a sign", length=f"+{len(json.dumps(_request(_binary_input())))}"),
    _binary("length with text behind", length=f"{len(json.dumps(_request(_binary_input())))}x"),
    _binary("length overflowing", length=2**70),
    _binary("length empty", length=""),
    Case("binary: length missing", body=json.dumps(_request(_binary_input())).encode() + _ONE),
    Case("binary: length of a body without binary", body=_GOOD, headers={LENGTH_HEADER: str(len(_GOOD))}),
    _binary("size too small", _request(_binary_input(252))),
    _binary("size too large", _request(_binary_input(260))),
    _binary("size too small, body fits", _request(_binary_input(252)), _ONE[:252]),
    _binary("size too large, body fits", _request(_binary_input(260)), _ONE + bytes(4)),
    _binary("size far too large", _request(_binary_input(2**40))),
    _binary("size overflowing", _request(_binary_input(2**70))),
    _binary("size negative", _request(_binary_input(-256))),
    _binary("size zero", _request(_binary_input(0)), b""),
    _binary("size zero, bytes there", _request(_binary_input(0))),
    _binary("size a string", _request(_binary_input("256"))),
    _binary("size a fraction", _request(_binary_input(256.0))),
    _binary("size true", _request(_binary_input(True))),
    _binary("size null", _request(_images(data=None, parameters={"binary_data_size": None}))),
    _binary("size missing", _request(_images(data=None))),
    _binary("bytes missing", tail=b""),
    _binary("bytes cut", tail=_ONE[:-1]),
    _binary("bytes left over", tail=_ONE + b"x"),
    _binary("bytes left over, data in JSON", _request(), b"xyz"),
    _binary("data and size", _request({**_images(), **_binary_input()})),
    _binary("data and size, no bytes", _request({**_images(), **_binary_input()}), b""),
    _binary("not the shape's size", _request(_binary_input(count=1, shape=[2, 1, 8, 8]))),
    _binary("two inputs", _request(_binary_input(), _binary_input(name="more")), _TWO),
    _binary("input twice", _request(_binary_input(), _binary_input()), _TWO),
    _binary("of strings", _request(_binary_input(6, shape=[1], datatype="BYTES")), _BYTES),
    _binary("of UINT8", _request(_binary_input(64, datatype="UINT8")), bytes(64)),
    _binary("empty JSON", {}, b""),
    Case("binary: chunked", body=_GOOD_BINARY.body, headers=_GOOD_BINARY.headers, chunked=True),
    Case("raw: one image", body=_ONE, headers=_RAW),
    Case("raw: two images", body=_TWO, headers=_RAW),
    Case("raw: a byte too few", body=_ONE[:-1], headers=_RAW),
    Case("raw: a byte too many", body=_ONE + b"x", headers=_RAW),
    Case("raw: nothing", headers=_RAW),
    Case("raw: as JSON", body=_GOOD, headers=_RAW),
]  # fmt: skip

ENCODINGS = [
    _encoded("gzip", "gzip", gzip.compress(_GOOD, mtime=0)),
    _encoded("deflate", "deflate", zlib.compress(_GOOD)),
    _encoded("deflate without its frame", "deflate", zlib.compress(_GOOD, wbits=-zlib.MAX_WBITS)),
    _encoded("gzip as deflate", "deflate", gzip.compress(_GOOD, mtime=0)),
    _encoded("deflate as gzip", "gzip", zlib.compress(_GOOD)),
    _encoded("identity", "identity", _GOOD),
    _encoded("GZIP", "GZIP", gzip.compress(_GOOD, mtime=0)),
    _encoded("x-gzip", "x-gzip", gzip.compress(_GOOD, mtime=0)),
    _encoded("unknown", "br", _GOOD),
    _encoded("empty name", "", _GOOD),
    _encoded("twice", "gzip, gzip", gzip.compress(gzip.compress(_GOOD, mtime=0), mtime=0)),
    _encoded("gzip of two members", "gzip", gzip.compress(_GOOD[:100], mtime=0) + gzip.compress(_GOOD[100:], mtime=0)),
    _encoded("gzip and more", "gzip", gzip.compress(_GOOD, mtime=0) + b"xyz"),
    _encoded("gzip cut", "gzip", gzip.compress(_GOOD, mtime=0)[:-30]),
    _encoded("gzip cut in its end", "gzip", gzip.compress(_GOOD, mtime=0)[:-4]),
    _encoded("deflate cut", "deflate", zlib.compress(_GOOD)[:-30]),
    _encoded("gzip garbage", "gzip", b"garbage"),
    _encoded("deflate garbage", "deflate", b"garbage"),
    _encoded("gzip empty", "gzip", b""),
    _encoded("gzip of nothing", "gzip", gzip.compress(b"", mtime=0)),
    _encoded("gzip of binary", "gzip", gzip.compress(_GOOD_BINARY.body, mtime=0), _GOOD_BINARY.headers),
    _encoded("deflate of binary", "deflate", zlib.compress(_GOOD_BINARY.body), _GOOD_BINARY.headers),
    *(
        Case(f"accept: {accepted or 'nothing'}", body=_GOOD, headers={"Accept-Encoding": accepted})
        for accepted in ("gzip", "deflate", "gzip, deflate", "deflate, gzip", "br", "*", "identity", "gzip;q=0", "deflate;q=0.5, gzip;q=0.2", "GZIP", "")
    ),
    _binary("and accept gzip", _request(_binary_input(), parameters={"binary_data_output": True}), accept="gzip"),
    _binary("and accept deflate", _request(_binary_input(), parameters={"binary_data_output": True}), accept="deflate"),
    Case("accept: gzip, of metadata", MODEL, "GET", headers={"Accept-Encoding": "gzip"}),
    Case("accept: gzip, of an error", body=b"[]", headers={"Accept-Encoding": "gzip"}),
]  # fmt: skip

_LOAD, _UNLOAD = (f"{REPOSITORY}/models/digits/{action}" for action in ("load", "unload"))

STATISTICS = _path_cases(
    "stats", [f"{MODEL}/stats", f"{MODEL}/versions/1/stats", "/v2/models/stats"]
)

REPOSITORIES = [
    *_body_cases("index", {
        "no body": b"",
        "an empty object": b"{}",
        "ready": b'{"ready": true}',
        "not only ready": b'{"ready": false}',
        "ready a number": b'{"ready": 1}',
        "ready null": b'{"ready": null}',
        "unknown keys": b'{"colour": "grey"}',
        "a list": b"[]",
        "not JSON": b"ready",
    }, f"{REPOSITORY}/index"),
    *_body_cases("load", {"unknown model": b""}, f"{REPOSITORY}/models/nothing/load"),
    *_body_cases("unload", {"unknown model": b""}, f"{REPOSITORY}/models/nothing/unload"),
    *_body_cases("load", {
        "not JSON": b"digits",
        "a list": b"[]",
        "parameters a list": b'{"parameters": []}',
        "a config that is none": b'{"parameters": {"config": "x"}}',
        "a config that is a number": b'{"parameters": {"config": 1}}',
        "a file without a config": b'{"parameters": {"file:1/model.py": "aGk="}}',
        "unknown parameter": b'{"parameters": {"colour": "grey"}}',
    }, _LOAD),
    *_body_cases("unload", {
        "not JSON": b"digits",
        "a list": b"[]",
    }, _UNLOAD),
    *_body_cases("load", {"what is loaded": b"", "what is loaded, with an object": b"{}"}, _LOAD),
    *_body_cases("unload", {"what is loaded": b"{}"}, _UNLOAD),
    *_path_cases("unloaded", ["/v2/health/ready", MODEL, f"{MODEL}/ready", f"{MODEL}/config", f"{MODEL}/stats"]),
    *_body_cases("unloaded", {"infer": _GOOD}),
    *_body_cases("unloaded", {"index": b""}, f"{REPOSITORY}/index"),
    *_body_cases("unloaded", {"index of ready": b'{"ready": true}'}, f"{REPOSITORY}/index"),
    *_body_cases("unload", {"what is unloaded": b"{}", "with dependents": b'{"parameters": {"unload_dependents": true}}'}, _UNLOAD),
    *_body_cases("load", {"what is unloaded": b"{}"}, _LOAD),
    *_body_cases("good", {"after loading": _GOOD}),
]  # fmt: skip

CASES = [
    *SERVER,
    *UNKNOWN,
    *GOOD,
    *OUTPUTS,
    *IDS,
    *PARAMETERS,
    *SHAPES,
    *DATA,
    *INPUTS,
    *BINARY,
    *ENCODINGS,
    *STATISTICS,
    *REPOSITORIES,
]
