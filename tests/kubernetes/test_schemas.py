"""Every object is valid by the official schemas of Kubernetes, KServe and Prometheus.

Run with `make manifests-test`. The CRDs are files of these projects; KUBERNETES_CRDS names a folder
that holds them. Rules in CEL (`x-kubernetes-validations`), which only a cluster evaluates, are not
examined.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.rendering import (
    COMPONENTS,
    KUSTOMIZATIONS,
    Manifest,
    render,
    rendered,
    with_component,
)

pytestmark = pytest.mark.manifests

VERSIONS = ("1.31", "1.34", "1.37")
"""Of Kubernetes: from the first in which every field is stable."""
CRD_GROUPS = ("serving.kserve.io", "monitoring.coreos.com")


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_objects_are_valid(folder: str) -> None:
    check(rendered(folder))


@pytest.mark.parametrize("component", COMPONENTS)
def test_objects_with_a_component_are_valid(component: str, tmp_path: Path) -> None:
    check(with_component(component, tmp_path))


def test_misspelled_field_of_kubernetes_is_found(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [service.yaml]")
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}
    wrong["spec"] = {"ports": [{"port": 80, "targetprt": 1}]}
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(wrong))
    from kubernetes_validate import ValidationError

    with pytest.raises(ValidationError, match="targetprt"):
        check(render(tmp_path))


def test_misspelled_field_of_a_custom_resource_is_found() -> None:
    (runtime,) = [each for each in rendered("kserve") if each["kind"] == "ServingRuntime"]
    wrong = runtime | {"spec": runtime["spec"] | {"protocolVersion": ["v2"]}}
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="protocolVersion"):
        check([wrong])


def check(manifests: list[Manifest]) -> None:
    """Raise ValidationError if an object is not valid, or has a field that its kind has not."""
    import jsonschema
    import kubernetes_validate

    assert manifests
    custom = [each for each in manifests if each["apiVersion"].partition("/")[0] in CRD_GROUPS]
    for manifest in manifests:
        for version in () if manifest in custom else VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    for manifest in custom:  # last, since without CRDs the test is skipped here
        schema = crd_schemas().get((manifest["apiVersion"], manifest["kind"]))
        assert schema is not None, f"KUBERNETES_CRDS has no {manifest['kind']}"
        jsonschema.Draft7Validator(schema).validate(manifest)


@cache
def crd_schemas() -> dict[tuple[str, str], Any]:
    """Return the strict schemas of the CRDs in KUBERNETES_CRDS, by apiVersion and kind."""
    folder = os.environ.get("KUBERNETES_CRDS")
    if not folder:
        pytest.skip("no CRDs; make manifests-test CRDS=FOLDER, see docs/kubernetes.md")
    schemas = {}
    for file in Path(folder).rglob("*.yaml"):
        for crd in yaml.load_all(file.read_text(), yaml.CSafeLoader):
            spec = crd["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                schemas[key] = strict(version["schema"]["openAPIV3Schema"])
    return schemas


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema of a CRD as a JSON schema that permits no unknown field."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: each for name, each in schema.items() if name not in ("properties", "default")}
    found = {name: strict(each) for name, each in found.items()}
    if "properties" in schema:
        found["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found
