"""The tasks of a sandbox process. Imports no web framework and no ONNX Runtime, to stay small."""

import traceback
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from model.errors import DropserveError
from model.images.preprocessing import InputSpec
from service.codecs.body_to_images import (
    Images,
    Items,
    ReserveMemory,
    check_input_shapes,
    check_json_size,
    check_raw_length,
    images_from_tensors,
    read_items,
    to_images,
    upright_size,
)
from service.codecs.compression import decompress
from service.codecs.infer_requests import parse_request, read_inputs, write_binary_request
from service.sandbox.child_process_messages import Task

TaskResult = tuple[dict[str, Any], bytes | memoryview]


def run_task(task: Task, body: bytes, reserve: ReserveMemory) -> TaskResult:
    """Run a task and return its JSON content and bytes; every exception becomes a result, too."""
    try:
        return _run_task(task, body, reserve)
    except DropserveError as error:
        return {"error": type(error).__name__, "sentence": str(error)}, b""
    except MemoryError:
        return {"memory": True}, b""
    except Exception:
        return {"failure": traceback.format_exc()[-10_000:]}, b""


def _run_task(task: Task, body: bytes, reserve: ReserveMemory) -> TaskResult:
    spec = InputSpec.model_validate(task.spec)
    if task.kind == "files":
        bounds = pairwise(accumulate(task.lengths, initial=0))
        files = [body[start:stop] for start, stop in bounds]
        return _array_result(to_images(Items(files), spec, task.limits, reserve))
    body = decompress(body, task.encoding, task.limits.body_bytes)
    if task.kind == "infer":
        return _rewrite_infer_request(task, body, spec, reserve)
    check_json_size(body, task.content_type, spec, task.limits, reserve)
    items = read_items(body, task.content_type, task.layout, task.limits)
    content, data = _array_result(to_images(items, spec, task.limits, reserve))
    if task.kind == "image":
        content["size"] = upright_size(items.images[0], task.limits)
    return content, data


def _rewrite_infer_request(
    task: Task, body: bytes, spec: InputSpec, reserve: ReserveMemory
) -> TaskResult:
    if task.json_length == 0:
        check_raw_length(len(body), spec)
        return {"json_length": 0}, body
    text = body if task.json_length is None else body[: task.json_length]
    check_json_size(text, task.content_type, spec, task.limits, reserve)
    request, payload = parse_request(body, task.json_length)
    check_input_shapes(request, task.limits)
    images = images_from_tensors(read_inputs(request, payload), spec)
    data, length = write_binary_request(request, images)
    return {"json_length": length}, data


def _array_result(images: Images) -> TaskResult:
    data = np.ascontiguousarray(images).data.cast("B")
    return {"shape": images.shape, "dtype": images.dtype.str}, data
