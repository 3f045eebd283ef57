"""Compares two responses, and lists the intended differences with their reasons.

Values are compared only where they must be equal: ids, names, versions, datatypes, shapes, labels
and, within a tolerance, probabilities; elsewhere keys and types. Knows no server and no request.
"""
# ruff: noqa: E501 (a row of a table is easier to read than a paragraph)

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

TOLERANCE = 1e-5  # of a probability: the same graph, in another version of ONNX Runtime

_EQUAL = {"id", "model_name", "model_version", "name", "version", "versions", "datatype", "shape"}


@dataclass(frozen=True)
class Difference:
    """One difference in a case; `where` is "status", a header, or a path of keys and names."""

    case: str
    where: str
    triton: str
    ours: str


@dataclass(frozen=True)
class Explanation:
    """The reason of some differences; all fields but `why` are patterns of `fnmatch`."""

    cases: tuple[str, ...]
    where: str
    triton: str
    ours: str
    why: str

    def matches(self, difference: Difference) -> bool:
        return (
            any(fnmatchcase(difference.case, pattern) for pattern in self.cases)
            and fnmatchcase(difference.where, self.where)
            and fnmatchcase(difference.triton, self.triton)
            and fnmatchcase(difference.ours, self.ours)
        )


def compare_documents(
    case: str, triton: Any, ours: Any, where: str = "body"
) -> Iterator[Difference]:
    """Yield the differences of two JSON documents, in which binary tensors are `data`."""
    key = where.rpartition(".")[2]
    if json_type(triton) != json_type(ours):
        yield Difference(case, where, json_type(triton), json_type(ours))
    elif key == "data":
        if not _is_close(triton, ours):
            yield Difference(case, where, str(triton), str(ours))
    elif key in _EQUAL:
        if triton != ours:
            yield Difference(case, where, str(triton), str(ours))
    elif isinstance(triton, dict):
        yield from _compare_objects(case, triton, ours, where)
    elif _has_names(triton) and _has_names(ours):
        order = [[each["name"] for each in side] for side in (triton, ours)]
        if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
            yield Difference(case, f"{where}.order", str(order[0]), str(order[1]))
        yield from _compare_objects(case, _by_name(triton), _by_name(ours), where)


def json_type(value: Any) -> str:
    """Describe the type of a JSON value."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case dict():
            return "an object"
        case []:
            return "an empty list"
        case [first, *_]:
            return f"a list of {json_type(first).split()[-1]}s"
    raise AssertionError(value)


def _compare_objects(
    case: str, triton: Mapping[str, Any], ours: Mapping[str, Any], where: str
) -> Iterator[Difference]:
    for key in sorted({*triton, *ours}):
        place = f"{where}.{key}"
        if key not in ours:
            yield Difference(case, place, json_type(triton[key]), "absent")
        elif key not in triton:
            yield Difference(case, place, "absent", json_type(ours[key]))
        else:
            yield from compare_documents(case, triton[key], ours[key], place)


def _has_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and "name" in each for each in value
    )


def _by_name(values: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in values}


def _is_close(triton: list[Any], ours: list[Any]) -> bool:
    return len(triton) == len(ours) and all(map(_same_element, triton, ours))


def _same_element(triton: Any, ours: Any) -> bool:
    """Compare two elements of data; a string may be `score:index:class name`."""
    if not isinstance(triton, str):
        return abs(float(triton) - float(ours)) <= TOLERANCE
    score, colon, rest = triton.partition(":")
    our_score, _, our_rest = ours.partition(":")
    if not colon:
        return bool(triton == ours)
    return rest == our_rest and abs(float(score) - float(our_score)) <= TOLERANCE


def _status(triton: str, ours: str, why: str, *cases: str) -> Explanation:
    return Explanation(cases, "status", triton, ours, why)


def _body(where: str, triton: str, ours: str, why: str, *cases: str) -> Explanation:
    return Explanation(cases, where, triton, ours, why)


ERRORS = [
    _status("500", "400", "Triton 2.51 calls JSON that it cannot use its own error; it is the client's.", "*"),
    _status("400", "404", "An unknown model or version is 404 on every route here; Triton has 400 on /ready and /stats.", "unknown *", "no version: *"),
    _status("40[04]", "503", "No model is in service, so the server is not ready, which 503 tells a load balancer.", "unloaded: *"),
    _status("200", "503", "The same; Triton is ready as soon as all requested loads are done.", "unloaded: GET /v2/health/ready"),
    _status("400", "413", "The request is well formed, and too large.", "*: 65 images"),
    _status("501", "415", "The status for a Content-Encoding that is not taken (RFC 9110, 15.5.16).", "encoding: *"),
    _status("500", "404", "There is no such model, which is no failure of the server.", "load: unknown model"),
    _status("500", "501", "A model is loaded as it lies on disk; overrides are not offered.", "load: a config *", "load: a file *"),
    _status("?00", "404", "An extension that our server metadata does not list.", "other extension: *"),
    _status("hung up", "400", "Triton 2.51 ends with SIGFPE when strings are to be classified.", "classification: of label"),
]  # fmt: skip

STRICTER = [
    _status("200", "400", "JSON is UTF-8, without byte order mark, NaN or Infinity (RFC 8259).", "odd JSON: a byte *", "odd JSON: not UTF-8", "data: NaN", "data: Infinity"),
    _status("200", "400", "Where JSON repeats a key, we use its last value and Triton its first; here the last is an empty list.", "odd JSON: inputs twice"),
    _status("200", "400", "A pixel is a finite number in 0..1; outside, the answer would mean nothing.", "data: above 1", "data: below 0", "data: beyond *", "binary: not a number in it"),
    _status("200", "400", "Nesting that contradicts the shape is a mistake; Triton flattens any nesting.", "data: ragged", "data: nested *"),
    _status("200", "400", "An output is given once; Triton passes over the second.", "outputs: twice"),
    _status("200", "400", "`parameters` is an object; Triton passes over what is none.", "outputs: parameters a list", "parameter: of an input, a list"),
    _status("200", "400", "A length is digits alone; Triton reads as far as it can.", "binary: length with *"),
    _status("200", "400", "The body is one whole stream of the encoding it names; Triton guesses, and checks no end.", "encoding: gzip *", "encoding: deflate *"),
    _status("200", "400", "The body is an object or nothing; Triton does not look at it.", "index: a list", "load: a list", "unload: *"),
    _status("200", "404", "A mistyped name is reported; Triton unloads what is not there.", "unload: unknown model"),
    _status("200", "404", "A version has one spelling; Triton reads 01 as 1.", "no version: GET */01"),
]  # fmt: skip

WIDER = [
    _status("400", "200", "Our input takes 0..255 as UINT8 too.", "datatype: UINT8", "binary: of UINT8"),
    _status("400", "200", "Parameters of other servers are passed over, objects as MLServer's headers too; Triton keeps names with triton_ to itself.", "parameter: triton_*", "parameter: unknown *"),
    _status("500", "200", "Scheduling is not by priority or sequence, so their parameters are passed over unread.", "parameter: priority *", "parameter: sequence_*"),
    _status("500", "200", "null is as good as left out, and a number is an id that is echoed as a string.", "outputs: null", "parameter: null", "id: null", "id: a number", "classification: of None", "binary output: null"),
    _status("500", "200", "Parameters that this server does not know are passed over.", "load: unknown parameter"),
    _status("501", "200", "The names of encodings have no case, and x-gzip is gzip (RFC 9110, 8.4.1).", "encoding: GZIP", "encoding: x-gzip"),
    _status("404", "200", "The same path to a client that joins it with a slash, or escapes a letter (RFC 3986, 6.2.2.2).", "server: GET /v2/", "model: GET */d%69gits"),
    _status("405", "200", "Whatever takes GET takes HEAD (RFC 9110, 9.1).", "wrong method: HEAD *"),
]  # fmt: skip

BODIES = [
    _body("body", "nothing", "an object", "KServe's client reads the JSON; Triton's own reads the status alone.", "health: *", "ready: *"),
    _body("body.*", "*", "*", "Each server names itself.", "server: *"),
    _body("body.outputs.label.shape", "*, 1]", "*", "A scalar for each image is [N] here; Triton has no output of the batch dimension alone.", "*"),
    _body("body.outputs.order", "*", "*", "Outputs come in the order in which they are requested; Triton keeps the model's.", "outputs: *"),
    _body("Content-Type", "application/json", "application/octet-stream", "binary_data_output is the default of listed outputs too, as the extension has it; Triton heeds it only where none is listed.", "binary output: by default, *"),
    _body("body.outputs.*.parameters", "absent", "an object", "The same: those outputs are in binary here.", "binary output: by default, *"),
    _body("body.outputs.probabilities.data*", "*", "*", "A number larger than that of the classes gives all of them; Triton keeps its lowest 32 bits, which are 0.", "classification: of 1099511627776"),
    _body("body.id", "*", "*", "An id is echoed as it is; Triton leaves an empty one out, and ends one at a NUL.", "id: empty", "id: with controls"),
    _body("Content-Encoding", "absent", "gzip", "Accept-Encoding: * accepts every encoding, gzip too; names of encodings have no case (RFC 9110, 12.5.3).", "accept: [*]", "accept: GZIP"),
    _body("Content-Encoding", "deflate", "gzip", "Of two that are equally welcome we choose gzip, Triton the first.", "accept: deflate, gzip"),
    _body("body.*", "*", "absent", "Triton writes its whole configuration with every default; ours is what is true of this server.", "config: *"),
    _body("body.*", "absent", "an object", "Ours names the versions in service, and the instances after the model.", "config: *"),
    _body("body*.digits-mc", "absent", "an object", "Each bundle is offered a second time, as an MC dropout model.", "index: *", "unloaded: index", "stats: *"),
    _body("body.digits.reason", "absent", "a string", "An empty reason is written out.", "index: *"),
    _body("body.model_stats.digits.batch_stats", "a list of objects", "an empty list", "Runs are not counted by their size, so the list is empty.", "stats: *"),
]  # fmt: skip

EXPLANATIONS = [*ERRORS, *STRICTER, *WIDER, *BODIES]
