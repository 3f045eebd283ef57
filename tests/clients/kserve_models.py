"""Checks objects against the models of KServe's SDK: `python FILE < OBJECTS`, a list in JSON.

Prints a list in JSON of what is wrong: fields that a model has not, values of other types, and
fields that are missing.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import kserve.models
import kubernetes.client.models

KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": (int, float),
    "object": object,
}


def problems(value: Any, kind: str, path: str) -> Iterator[str]:
    """Yield what is wrong with a value that should be of a kind, as the SDK writes kinds."""
    several = re.fullmatch(r"(list|dict)[\[(](?:str, )?(.+)[\])]", kind, re.IGNORECASE)
    if several is not None and several[1].lower() == "list":
        for index, each in enumerate(value):
            yield from problems(each, several[2], f"{path}[{index}]")
    elif several is not None:
        for key in value:
            yield from problems(value[key], several[2], f"{path}.{key}")
    elif kind in TYPES:
        if not isinstance(value, TYPES[kind]):
            yield f"{path} is no {kind}"
    else:
        yield from _fields(value, kind, path)


def _fields(value: dict[str, Any], kind: str, path: str) -> Iterator[str]:
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind)
    attributes = {key: name for name, key in model.attribute_map.items()}
    known = {key: each for key, each in value.items() if key in attributes}
    yield from (f"{path}.{key} is unknown" for key in value.keys() - known.keys())
    for key, each in known.items():
        yield from problems(each, model.openapi_types[attributes[key]], f"{path}.{key}")
    try:
        model(**{attributes[key]: each for key, each in known.items()})
    except ValueError as error:
        yield f"{path}: {error}"


def main() -> None:
    """Check the objects on standard input."""
    found = [
        each
        for manifest in json.load(sys.stdin)
        for each in problems(manifest, KINDS[manifest["kind"]], manifest["metadata"]["name"])
    ]
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
