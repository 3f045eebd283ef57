"""Copies of the test bundle under another name or version, or with changed files."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import orjson

from model.bundle.store import MANIFEST_FILE


def copy_bundle(source: Path, models: Path, name: str = "digits", version: int = 1) -> Path:
    """Copy the bundle in `source` to models/name/version; return that folder."""
    copy = models / name / str(version)
    shutil.copytree(source, copy)
    edit_manifest(copy, name=name, version=version)
    return copy


def edit_manifest(bundle: Path, **changes: Any) -> None:
    """Replace fields of a bundle's manifest."""
    file = bundle / MANIFEST_FILE
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | changes))


def update_digest(bundle: Path, file: str) -> None:
    """Update the digest of a changed file in the manifest."""
    digests = orjson.loads((bundle / MANIFEST_FILE).read_bytes())["files"]
    digests[file] = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
    edit_manifest(bundle, files=digests)
