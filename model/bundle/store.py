"""The exported artefact on disk: `models/<name>/<version>/`. Knows no inference.

A bundle is written to a draft folder beside its place, flushed, and renamed: a reader sees a whole
bundle or none. Nothing in it is pickled. Opening one reads every file once, and checks its SHA-256.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.bundle.architecture import Architecture, DropoutLayer
from model.bundle.files import chunks_in, folder, read_in
from model.errors import BundleError
from model.images.preprocessing import InputSpec
from model.uncertainty.calibration import CALIBRATION_FILE, Calibration

SCHEMA_VERSION: Literal[1] = 1
MODEL_FILE = "model.onnx"
HEAD_FILE = "head.onnx"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"
REPORT_FOLDER = "report"
CARD_FILE = f"{REPORT_FOLDER}/card.md"

SAMPLED_SUFFIX = "-mc"
"""Ends the name under which protocols offer a model with dropout alive."""

MAX_MANIFEST_BYTES = 64 * 2**20
"""Of `manifest.json`; two confusion matrices of a thousand classes take 26 MB of it."""
MAX_FILE_BYTES = 2**31 - 1
"""Of any other file: protocol buffers, which the graphs are, can be no larger."""
MAX_CARD_BYTES = 16 * 2**20
"""Of the model card, which is kept in memory."""
MAX_INPUT_VALUES = 2**24
"""Of one image: channels x height x width."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_DRAFT_PREFIX = ".draft-"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What rename says where the place is a folder with something in it, or a file."""
_MOST_ATTEMPTS = 100
"""At a version's number, while others publish the same model."""


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
    if not path.parts or "\0" in name:
        raise ValueError(f"{name!r} names no file")
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
    card: str
    """The model card, Markdown."""
    _kept: dict[str, bytes] = field(repr=False, compare=False, default_factory=dict)

    def take(self, file: str) -> bytes:
        """Return a file's content, which has the digest that the manifest names.

        What a predictor is made of was kept when the bundle was opened, and is handed out once, so
        that it does not stay in memory; anything else is read, and checked, again.

        Raises:
            BundleError: it cannot be read, or has changed since.
        """
        if file in self._kept:
            return self._kept.pop(file)
        with _opened(self.path) as descriptor:
            chunks = _verified(self.path, descriptor, file, self.manifest.files[file])
            return b"".join(chunks)


@dataclass
class Draft:
    """A bundle being written: fill `path`, and set `manifest` (its `files` are filled in)."""

    path: Path
    version: int = 0
    """0 until it is published: only then is it known which number is free."""
    manifest: dict[str, Any] = field(default_factory=dict)
    describe: Callable[[int], None] = lambda _version: None
    """Writes the files that name the version, once it is known; again where it was taken."""


def open_bundle(path: Path) -> Bundle:
    """Open and verify the bundle in `path`, which may be a symbolic link; nothing in it may be.

    Raises:
        BundleError: no manifest, one that is not valid or of another schema, or a file that is
            missing, is no regular file, or differs from its digest.
    """
    with _opened(path) as descriptor:
        manifest = _read_manifest(path, descriptor)
        _check_place(path, manifest)
        fitted = (CALIBRATION_FILE,) if manifest.calibration else ()
        kept = (MODEL_FILE, HEAD_FILE, GOLDEN_FILE, CARD_FILE, *fitted)
        for needed in kept:
            if needed not in manifest.files:
                raise BundleError(f"{path} lists no {needed}; export it again.")
        contents = {}
        for file, digest in manifest.files.items():
            chunks = _verified(path, descriptor, file, digest)
            if file in kept:
                contents[file] = b"".join(chunks)
            else:
                for _ in chunks:
                    pass
    try:
        card = contents.pop(CARD_FILE).decode()
    except UnicodeDecodeError:
        raise BundleError(f"{path / CARD_FILE} is not UTF-8; export it again.") from None
    return Bundle(path, manifest, card, contents)


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

    Which number that is, is settled when the block has ended: whoever ends first has the lower one.

    Raises:
        BundleError: the folder cannot be written or the disk is full.
    """
    folder = models / name
    try:
        temporary = _draft_folder(folder)
    except OSError as error:
        raise BundleError(_cannot_write(folder, error)) from error
    try:
        draft = Draft(temporary)
        yield draft
        _publish(draft, folder)
    except OSError as error:
        raise BundleError(_cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # it is not empty, or another has removed it
            folder.rmdir()


def require_writable(models: Path) -> None:
    """Raise BundleError now, rather than after an hour's training, if `models` can't be written."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=models, prefix=_DRAFT_PREFIX):
            pass
    except OSError as error:
        raise BundleError(_cannot_write(models, error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Give the descriptor of a bundle's folder."""
    try:
        with folder(path) as descriptor:
            yield descriptor
    except OSError as error:
        raise BundleError(_cannot_read(path / MANIFEST_FILE, error)) from None


def _read_manifest(path: Path, descriptor: int) -> Manifest:
    file = path / MANIFEST_FILE
    try:
        text = read_in(descriptor, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(_cannot_read(file, error)) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{file} is not a manifest of schema {SCHEMA_VERSION} ({where}: {first['msg']}); "
            "export the bundle again with this version of Dropserve."
        ) from None


def _check_place(path: Path, manifest: Manifest) -> None:
    if str(manifest.version) != path.name or manifest.name != path.parent.name:
        raise BundleError(
            f"{path} holds {manifest.name} version {manifest.version}; put it back into "
            f"{manifest.name}/{manifest.version}."
        )
    spec = manifest.input
    if spec.channels * spec.height * spec.width > MAX_INPUT_VALUES:
        raise BundleError(
            f"{path} takes images of more than {MAX_INPUT_VALUES:,} values; train it on smaller "
            "ones."
        )


def _verified(path: Path, descriptor: int, file: str, digest: str) -> Iterator[bytes]:
    """Read a file of a bundle piece by piece; fails after the last where its digest is another."""
    actual = hashlib.sha256()
    limit = MAX_CARD_BYTES if file == CARD_FILE else MAX_FILE_BYTES
    try:
        for chunk in chunks_in(descriptor, file, limit):
            actual.update(chunk)
            yield chunk
    except OSError as error:
        raise BundleError(_cannot_read(path / file, error)) from None
    if actual.hexdigest() != digest:
        raise BundleError(f"{path / file} differs from its SHA-256; copy the bundle again.")


def _draft_folder(place: Path) -> Path:
    """Make a folder for a draft in `place`, which another writer may be about to remove."""
    for _ in range(_MOST_ATTEMPTS):
        place.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=place))
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _publish(draft: Draft, folder: Path) -> None:
    """Rename the draft to the next free version of its model, whoever else publishes one."""
    for _ in range(_MOST_ATTEMPTS):
        draft.version = _free_number(folder)
        draft.describe(draft.version)
        _complete(draft)
        try:
            draft.path.rename(folder / str(draft.version))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            _flush(folder)
            return
    raise BundleError(f"Others publish versions of {folder} all the time; try again.")


def _free_number(folder: Path) -> int:
    """Return the number after the highest that anything in the folder has."""
    taken = [int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
    return max(taken, default=0) + 1


def _complete(draft: Draft) -> None:
    """Write the manifest, last, and flush every file."""
    written = draft.path / MANIFEST_FILE
    written.unlink(missing_ok=True)
    files = sorted(file for file in draft.path.rglob("*") if file.is_file())
    digests = {file.relative_to(draft.path).as_posix(): _sha256(file) for file in files}
    manifest = Manifest(**draft.manifest, version=draft.version, files=digests)
    text = manifest.model_dump_json(indent=2)
    if len(text) >= MAX_MANIFEST_BYTES:  # thousands of classes
        text = manifest.model_dump_json()
    written.write_text(text + "\n", encoding="utf-8")
    folders = [entry for entry in draft.path.rglob("*") if entry.is_dir()]
    for entry in [*files, written, *folders, draft.path]:
        _flush(entry)
    draft.path.chmod(0o755)  # mkdtemp made it private; another user may serve it


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_read(file: Path, error: OSError) -> str:
    return f"{file} cannot be read ({error.strerror}); export or copy the bundle again."


def _cannot_write(folder: Path, error: OSError) -> str:
    return (
        f"Cannot write to {folder} ({error.strerror or error}); "
        "free space or choose another folder with --output."
    )
