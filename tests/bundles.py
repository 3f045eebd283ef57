"""Copies of the real bundle: under another name or version, or changed on purpose."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import orjson

from model.bundle.store import MANIFEST_FILE


def copy_bundle(source: Path, models: Path, name: str = "digits", version: int = 1) -> Path:
    """Copy the bundle in `source` to models/name/version, and return that folder."""
    place = models / name / str(version)
    shutil.copytree(source, place)
    edit_manifest(place, name=name, version=version)
    return place


def edit_manifest(bundle: Path, **changes: Any) -> None:
    file = bundle / MANIFEST_FILE
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | changes))


def sign(bundle: Path, file: str) -> None:
    """Make the manifest agree with a file that was changed."""
    digests = orjson.loads((bundle / MANIFEST_FILE).read_bytes())["files"]
    digests[file] = hashlib.sha256((bundle / file).read_bytes()).hexdigest()
    edit_manifest(bundle, files=digests)
