"""What a sandbox process does with a body. Imports no web framework and no inference engine."""

import traceback
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from model.errors import DropserveError
from model.images.preprocessing import InputSpec
from service.codecs.compression import unpack
from service.codecs.image_bodies import (
    Ask,
    Images,
    bound_json,
    check_inputs,
    check_raw,
    decode_files,
    of_tensors,
    read_items,
    to_images,
)
from service.codecs.tensors import as_binary, parse, read_inputs
from service.sandbox.messages import Task

Answer = tuple[dict[str, Any], bytes | memoryview]


def perform(task: Task, body: bytes, ask: Ask) -> Answer:
    """Do a task, whatever is in the body: every error is an answer."""
    try:
        return _perform(task, body, ask)
    except DropserveError as error:
        return {"error": type(error).__name__, "sentence": str(error)}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception:
        return {"failure": traceback.format_exc()[-10_000:]}, b""


def _perform(task: Task, body: bytes, ask: Ask) -> Answer:
    spec = InputSpec.model_validate(task.spec)
    if task.kind == "files":
        places = pairwise(accumulate(task.lengths, initial=0))
        files = [body[start:stop] for start, stop in places]
        return _array(decode_files(files, spec, task.limits, ask))
    body = unpack(body, task.encoding, task.limits.body_bytes)
    if task.kind == "infer":
        return _infer(task, body, spec, ask)
    bound_json(body, task.content_type, spec, task.limits, ask)
    items = read_items(body, task.content_type, task.layout, task.limits)
    return _array(to_images(items, spec, task.limits, ask))


def _infer(task: Task, body: bytes, spec: InputSpec, ask: Ask) -> Answer:
    if task.json_length == 0:
        check_raw(len(body), spec)
        return {"json_length": 0}, body
    text = body if task.json_length is None else body[: task.json_length]
    bound_json(text, task.content_type, spec, task.limits, ask)
    request, payload = parse(body, task.json_length)
    check_inputs(request, task.limits)
    images = of_tensors(read_inputs(request, payload), spec)
    data, length = as_binary(request, images)
    return {"json_length": length}, data


def _array(images: Images) -> Answer:
    data = np.ascontiguousarray(images).data.cast("B")
    return {"shape": images.shape, "dtype": images.dtype.str}, data
