"""The metrics of a real bundle against the types of `training.evaluation.metrics_schema`."""

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from model.bundle.store import open_bundle
from training.evaluation.metrics_schema import BundleMetrics, SplitMetrics


def require_type(value: Any, expected: Any, path: str) -> None:
    """Require that a JSON value has a type; the keys of a TypedDict must be exactly its own."""
    origin, arguments = get_origin(expected), get_args(expected)
    if is_typeddict(expected):
        assert expected.__required_keys__ <= value.keys(), path
        assert value.keys() <= expected.__annotations__.keys(), path
        for name, hint in get_type_hints(expected).items():
            if name in value:
                require_type(value[name], hint, f"{path}.{name}")
    elif origin is list:
        for index, item in enumerate(value):
            require_type(item, arguments[0], f"{path}[{index}]")
    elif origin is dict:
        for name, item in value.items():
            require_type(name, arguments[0], f"{path} key")
            require_type(item, arguments[1], f"{path}.{name}")
    elif origin in (UnionType, Union):
        if value is None:
            assert NoneType in arguments, path
        else:
            (inner,) = (each for each in arguments if each is not NoneType)
            require_type(value, inner, path)
    else:
        assert type(value) is expected, f"{path}: {value!r}"


def test_metrics_of_a_real_bundle_have_the_declared_types(bundle_folder: Path) -> None:
    require_type(open_bundle(bundle_folder).manifest.metrics, BundleMetrics, "metrics")


@pytest.mark.parametrize("change", [{"further": 1.0}, {"nll": "0.5"}, {"images": 1.5}])
def test_require_type_refuses_other_keys_and_types(
    bundle_folder: Path, change: dict[str, object]
) -> None:
    metrics = open_bundle(bundle_folder).manifest.metrics["validation"]
    require_type(metrics, SplitMetrics, "validation")
    with pytest.raises(AssertionError, match="validation"):
        require_type(metrics | change, SplitMetrics, "validation")
