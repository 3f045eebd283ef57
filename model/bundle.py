"""The exported artefact on disk: `models/<name>/<version>/`. Knows no inference.

A bundle is written to a draft folder beside its place, flushed, and renamed: a reader sees a whole
bundle or none. Nothing in it is pickled. Opening one checks every file's SHA-256.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.architecture import Architecture, DropoutLayer
from model.calibration import CALIBRATION_FILE, Calibration
from model.errors import BundleError
from model.preprocessing import InputSpec

SCHEMA_VERSION: Literal[1] = 1
MODEL_FILE = "model.onnx"
HEAD_FILE = "head.onnx"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"
REPORT_FOLDER = "report"
CARD_FILE = f"{REPORT_FOLDER}/card.md"

SAMPLED_SUFFIX = "-mc"
"""Ends the name under which protocols offer a model with dropout alive."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_DRAFT_PREFIX = ".draft-"
_CHUNK_BYTES = 1 << 20


def check_name(name: str) -> str:
    """Return `name` if it can name a model, else raise ValueError."""
    if not _NAME.fullmatch(name) or name.endswith(SAMPLED_SUFFIX):
        raise ValueError(
            f"{name!r} cannot name a model; use letters, digits, '.', '_' and '-', start with a "
            f"letter or digit, at most 64, not ending in {SAMPLED_SUFFIX!r}."
        )
    return name


def _check_file(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} points outside the bundle")
    return name


def _check_distinct(class_names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(class_names)) != len(class_names):
        raise ValueError("two classes have the same name")
    return class_names


FileName = Annotated[str, AfterValidator(_check_file)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Precision = Literal["fp32", "int8"]


class Manifest(BaseModel):
    """`manifest.json`: all that is true of a bundle, beside its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, AfterValidator(check_name)]
    version: int = Field(ge=1)
    class_names: Annotated[tuple[str, ...], AfterValidator(_check_distinct)] = Field(min_length=2)
    input: InputSpec
    architecture: Architecture
    parameters: int = Field(ge=0, description="learnt numbers")
    features: int = Field(ge=1, description="width F of the trunk's output")
    precision: Precision = Field("fp32", description="what the trunk's convolutions compute with")
    dropout_layers: tuple[DropoutLayer, ...] = Field(min_length=1)
    calibration: Calibration | None = Field(
        None, description="null: uncalibrated, for want of validation images"
    )
    metrics: dict[str, Any] = Field(description="the figures measured on the exported bundle")
    training: dict[str, Any] = Field(description="the configuration of the run")
    data: dict[str, Any] = Field(description="name, digest and sizes of the data set")
    libraries: dict[str, str] = Field(description="versions that trained and exported it")
    files: dict[FileName, Digest] = Field(description="SHA-256 of every file but this one")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest is valid and whose files have the digests it names."""

    path: Path
    manifest: Manifest

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.path / CARD_FILE).read_text(encoding="utf-8")


@dataclass
class Draft:
    """A bundle being written: fill `path`, and set `manifest` (its `files` are filled in)."""

    path: Path
    version: int
    manifest: dict[str, Any] = field(default_factory=dict)


def open_bundle(path: Path) -> Bundle:
    """Open and verify the bundle in `path`.

    Raises:
        BundleError: no manifest, one that is not valid or of another schema, or a file that is
            missing or differs from its digest.
    """
    manifest = _read_manifest(path)
    if str(manifest.version) != path.name or manifest.name != path.parent.name:
        raise BundleError(
            f"{path} holds {manifest.name} version {manifest.version}; put it back into "
            f"{manifest.name}/{manifest.version}."
        )
    fitted = (CALIBRATION_FILE,) if manifest.calibration else ()
    for needed in (MODEL_FILE, HEAD_FILE, GOLDEN_FILE, CARD_FILE, *fitted):
        if needed not in manifest.files:
            raise BundleError(f"{path} lists no {needed}; export it again.")
    for file, digest in manifest.files.items():
        try:
            actual = _sha256(path / file)
        except OSError as error:
            raise BundleError(
                f"{path / file} cannot be read ({error.strerror}); copy the bundle again."
            ) from None
        if actual != digest:
            raise BundleError(f"{path / file} differs from its SHA-256; copy the bundle again.")
    return Bundle(path, manifest)


def names(models: Path) -> list[str]:
    """List the models that have at least one version in the folder `models`, sorted."""
    if not models.is_dir():
        return []
    return sorted(
        entry.name
        for entry in models.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and versions(models, entry.name)
    )


def versions(models: Path, name: str) -> list[int]:
    """List the versions of one model, highest first, without opening them."""
    try:
        numbers = [
            int(entry.name)
            for entry in (models / name).iterdir()
            if entry.is_dir() and _VERSION.fullmatch(entry.name)
        ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # such as lost+found
        return []
    return sorted(numbers, reverse=True)


@contextmanager
def new_version(models: Path, name: str) -> Iterator[Draft]:
    """Write the next version of model `name`; nothing is left behind when the block raises.

    Raises:
        BundleError: the folder cannot be written or the disk is full.
    """
    folder = models / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=folder))
    except OSError as error:
        raise BundleError(_cannot_write(folder, error)) from error
    try:
        draft = Draft(temporary, version=max(versions(models, name), default=0) + 1)
        yield draft
        _publish(draft, folder / str(draft.version))
    except OSError as error:
        raise BundleError(_cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def require_writable(models: Path) -> None:
    """Raise BundleError now, rather than after an hour's training, if `models` can't be written."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=models, prefix=_DRAFT_PREFIX):
            pass
    except OSError as error:
        raise BundleError(_cannot_write(models, error)) from error


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_FILE
    try:
        text = file.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{file} cannot be read ({error.strerror}); export or copy the bundle again."
        ) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{file} is not a manifest of schema {SCHEMA_VERSION} ({where}: {first['msg']}); "
            "export the bundle again with this version of Dropserve."
        ) from None


def _publish(draft: Draft, place: Path) -> None:
    """Flush every file, write the manifest last, and rename the folder into place."""
    files = sorted(file for file in draft.path.rglob("*") if file.is_file())
    digests = {file.relative_to(draft.path).as_posix(): _sha256(file) for file in files}
    manifest = Manifest(**draft.manifest, version=draft.version, files=digests)
    written = draft.path / MANIFEST_FILE
    written.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    folders = [entry for entry in draft.path.rglob("*") if entry.is_dir()]
    for entry in [*files, written, *folders, draft.path]:
        _flush(entry)
    draft.path.chmod(0o755)  # mkdtemp made it private; another user may serve it
    draft.path.rename(place)
    _flush(place.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _cannot_write(folder: Path, error: OSError) -> str:
    return (
        f"Cannot write to {folder} ({error.strerror or error}); "
        "free space or choose another folder with --output."
    )
