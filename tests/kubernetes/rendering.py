"""Renders the kustomizations of deploy/kubernetes with kubectl or kustomize."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = ("base", "training", "kserve", "overlays/production")
COMPONENTS = sorted(each.name for each in (KUBERNETES / "components").iterdir())
RENDERERS = (("kubectl", "kustomize"), ("kustomize", "build"))
Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> list[Manifest]:
    """Return the objects of a kustomization below deploy/kubernetes."""
    return render(KUBERNETES / folder)


def with_component(name: str, folder: Path, above: Path = KUBERNETES) -> list[Manifest]:
    """Return the objects of `base` with one component, by a kustomization written to `folder`.

    above: deploy/kubernetes, or a copy of it.
    """
    above = Path(os.path.relpath(above.resolve(), folder.resolve()))
    content = {"resources": [f"{above}/base"], "components": [f"{above}/components/{name}"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return render(folder)


def render(folder: Path) -> list[Manifest]:
    """Return the objects of the kustomization in a folder; skip the test without a renderer."""
    renderer = next((each for each in RENDERERS if shutil.which(each[0])), None)
    if renderer is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    done = subprocess.run([*renderer, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def everything() -> list[Manifest]:
    """Return the objects of every kustomization."""
    return [each for folder in KUSTOMIZATIONS for each in rendered(folder)]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def the(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only object of a kind."""
    (found,) = of_kind(manifests, kind)
    return found


def pod_spec(manifest: Manifest) -> Manifest:
    """Return the specification of the Pods that an object makes."""
    spec: Manifest = manifest["spec"]
    return spec if manifest["kind"] == "ServingRuntime" else spec["template"]["spec"]


def container(manifest: Manifest) -> Manifest:
    """Return the only container of the Pods that an object makes."""
    (only,) = pod_spec(manifest)["containers"]
    found: Manifest = only
    return found


def options(manifest: Manifest, **replaced: str) -> dict[str, str | bool]:
    """Return the arguments of an object's container by the names of the settings."""
    found: dict[str, str | bool] = {}
    for argument in container(manifest)["args"]:
        flag, equals, value = argument.removeprefix("--").partition("=")
        for placeholder, text in replaced.items():
            value = value.replace(f"{{{{.{placeholder}}}}}", text)
        found[flag.replace("-", "_")] = value if equals else True
    return found
