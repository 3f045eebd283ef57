"""Writing and opening of bundles in `models/<name>/<version>/`. Knows no inference.

A bundle is written to a draft folder beside its final path, flushed and renamed, so a reader sees a
complete bundle or none. Nothing in it is pickled. Opening a bundle reads every file once and checks
its SHA-256.
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
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from model.bundle.architecture_description import AdoptedArchitecture, Architecture, DropoutLayer
from model.bundle.bounded_reading import (
    RejectedFileError,
    open_folder,
    read_chunks_at,
    read_file_at,
)
from model.bundle.example_images import (
    EXAMPLE_FILE,
    MAX_EXAMPLE_BYTES,
    MAX_EXAMPLE_PIXELS,
    MAX_EXAMPLES,
    is_example,
)
from model.errors import BundleError, UnreadableBundleError
from model.images.preprocessing import InputSpec
from model.uncertainty.calibration import CALIBRATION_FILE, Calibration

SCHEMA_VERSION: Literal[3] = 3
MODEL_FILE = "model.onnx"
HEAD_FILE = "head.onnx"
MC_STATISTICS_FILE = "mc_statistics.onnx"
GRAPH_FILES = MODEL_FILE, HEAD_FILE, MC_STATISTICS_FILE
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"
REPORT_FOLDER = "report"
CARD_FILE = f"{REPORT_FOLDER}/card.md"
REPORT_FILE = f"{REPORT_FOLDER}/report.html"

SAMPLED_SUFFIX = "-mc"
"""Suffix of the name under which protocols offer a model with dropout active."""

MAX_MANIFEST_BYTES = 64 * 2**20
"""Size limit of `manifest.json`; two confusion matrices of a thousand classes take 26 MB."""
MAX_FILE_BYTES = 2**31 - 1
"""Size limit of any other file; the graphs are protocol buffers, which cannot be larger."""
MAX_CARD_BYTES = 16 * 2**20
"""Size limit of the model card, which is kept in memory."""
MAX_REPORT_BYTES = 32 * 2**20
"""Size limit of the report that is read for a client; a larger one stays in the bundle, unread."""
MAX_INPUT_VALUES = 2**24
"""Limit on channels x height x width of one image."""

_ROUTE_NAME = "stats"
"""GET /v2/models/stats has the statistics of all models, and not the metadata of one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_DRAFT_PREFIX = ".draft-"
_MAX_ATTEMPTS = 100
"""How often to try the next version number while other processes publish the same model."""
_ERRORS_OF_DAMAGE = FileNotFoundError, NotADirectoryError, RejectedFileError
"""They say that a bundle lacks a file; other errors of a disk may pass."""


def check_name(name: str) -> str:
    """Return `name` if it can name a model, else raise ValueError."""
    if not _NAME.fullmatch(name) or name.endswith(SAMPLED_SUFFIX):
        raise ValueError(
            f"{name!r} cannot name a model; use letters, digits, '.', '_' and '-', start with a "
            f"letter or digit, at most 64, not ending in {SAMPLED_SUFFIX!r}."
        )
    return name


def check_new_name(name: str) -> str:
    """Return `name` if it can name a model that does not exist yet, else raise ValueError."""
    if name == _ROUTE_NAME:
        raise ValueError(
            f"{name!r} cannot name a new model, since GET /v2/models/{name} has the statistics of "
            "all models; choose another name."
        )
    return check_name(name)


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


class Example(BaseModel):
    """One of the validation images that a bundle carries, to be looked at and tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Annotated[str, Field(pattern=EXAMPLE_FILE)]
    label: str = Field(description="name of its true class")


class Manifest(BaseModel):
    """`manifest.json`: the description of a bundle and the digests of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[3] = SCHEMA_VERSION
    name: Annotated[str, AfterValidator(check_name)]
    version: int = Field(ge=1)
    class_names: Annotated[tuple[str, ...], AfterValidator(_check_distinct)] = Field(min_length=2)
    input: InputSpec
    architecture: Architecture | AdoptedArchitecture
    parameters: int = Field(ge=0, description="learnt numbers")
    features: int = Field(ge=1, description="width F of the trunk's output")
    precision: Precision = Field("fp32", description="what the trunk's convolutions compute with")
    dropout_layers: tuple[DropoutLayer, ...] = Field(min_length=1)
    ood_statistics: tuple[str, ...] | None = Field(
        None, description="what typicality is computed from, in their order; null: uncalibrated"
    )
    calibration: Calibration | None = Field(
        None, description="null: uncalibrated, for want of validation images"
    )
    metrics: dict[str, Any] = Field(description="the metrics measured on the exported bundle")
    examples: tuple[Example, ...] = Field(
        (), max_length=MAX_EXAMPLES, description="validation images, from the surest on"
    )
    published: AwareDatetime | None = Field(
        None, description="when it was written, UTC; null: by an earlier version of Dropserve"
    )
    training: dict[str, Any] = Field(description="the configuration of the run")
    data: dict[str, Any] = Field(description="name, digest and sizes of the data set")
    libraries: dict[str, str] = Field(description="versions that trained and exported it")
    files: dict[FileName, Digest] = Field(description="SHA-256 of every file but this one")

    @model_validator(mode="after")
    def _check_examples(self) -> Self:
        if len({example.file for example in self.examples}) != len(self.examples):
            raise ValueError("two examples have the same file")
        for example in self.examples:
            if example.label not in self.class_names:
                raise ValueError(f"{example.file} is of {example.label!r}, which is no class")
        return self


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk: the manifest is valid and all digests match."""

    path: Path
    manifest: Manifest
    card: str
    """The model card as Markdown."""
    examples: tuple[bytes, ...] = ()
    """The WebP file of each of the manifest's examples."""
    _contents: dict[str, bytes] = field(repr=False, compare=False, default_factory=dict)

    def take(self, file: str) -> bytes:
        """Return the content of a file, verified against its digest in the manifest.

        `open_bundle` keeps the files that a predictor needs. Each of them is handed out once and
        released, so that it does not stay in memory. Any other file is read and verified again.

        Raises:
            BundleError: the file cannot be read, or has changed since.
        """
        if file in self._contents:
            return self._contents.pop(file)
        return self._read(file, max_bytes(file))

    def read_report(self) -> bytes:
        """Return the report, an HTML page, verified against its digest in the manifest.

        Raises:
            BundleError: there is none, it is too large, cannot be read, or has changed since.
        """
        if REPORT_FILE not in self.manifest.files:
            raise BundleError(f"{self.path} has no {REPORT_FILE}.")
        return self._read(REPORT_FILE, MAX_REPORT_BYTES)

    def _read(self, file: str, limit: int) -> bytes:
        with _open_bundle_folder(self.path) as descriptor:
            digest = self.manifest.files[file]
            return b"".join(_read_verified(self.path, descriptor, file, digest, limit))


@dataclass
class Draft:
    """A bundle under construction: its writer fills `path` and sets `manifest` without `files`."""

    path: Path
    version: int = 0
    """0 until it is published, since only then is it known which number is free."""
    manifest: dict[str, Any] = field(default_factory=dict)
    write_versioned: Callable[[int], None] = lambda _version: None
    """Writes the files that contain the version number. It is called once the number is known, and
    again if another process has taken that number."""
    verify: Callable[[Path], None] = lambda _folder: None
    """Raises BundleError if the finished draft, in this folder, must not be published."""


def open_bundle(path: Path, served_name: str | None = None) -> Bundle:
    """Open and verify the bundle in `path`.

    `path` itself may be a symbolic link, nothing in it may be one.

    served_name: replaces the name in the manifest, and the bundle need not lie in a folder of that
        name; None: it has to.

    Raises:
        BundleError: the manifest is missing, invalid or of another schema, or a file is missing,
            is not a regular file, or differs from its digest.
    """
    with _open_bundle_folder(path) as descriptor:
        manifest = _read_manifest(path, descriptor)
        _check_location(path, manifest, served_name)
        if served_name is not None:
            manifest = manifest.model_copy(update={"name": served_name})
        calibration = (CALIBRATION_FILE,) if manifest.calibration else ()
        examples = {example.file for example in manifest.examples}
        required = (*GRAPH_FILES, GOLDEN_FILE, CARD_FILE, *calibration, *examples)
        for file in required:
            if file not in manifest.files:
                raise BundleError(f"{path} lists no {file}; export it again.")
        contents = {}
        for file, digest in manifest.files.items():
            limit = MAX_EXAMPLE_BYTES if file in examples else max_bytes(file)
            chunks = _read_verified(path, descriptor, file, digest, limit)
            if file in required:
                contents[file] = b"".join(chunks)
            else:
                for _ in chunks:  # only to verify the digest
                    pass
    try:
        card = contents.pop(CARD_FILE).decode()
    except UnicodeDecodeError:
        raise BundleError(f"{path / CARD_FILE} is not UTF-8; export it again.") from None
    return Bundle(path, manifest, card, _take_examples(path, manifest, contents), contents)


def manifest_version(path: Path) -> int:
    """Return the version in the manifest of the bundle in `path`, unverified; 1 if it has none."""
    try:
        with _open_bundle_folder(path) as descriptor:
            return _read_manifest(path, descriptor).version
    except BundleError:  # `open_bundle` says why
        return 1


def list_models(models: Path) -> list[str]:
    """List the models that have at least one version in the folder `models`, sorted.

    A folder that does not exist has none.

    Raises:
        OSError: the folder cannot be read, or is none, or a link that leads nowhere.
    """
    try:
        entries = list(models.iterdir())
    except FileNotFoundError:
        if models.is_symlink():
            raise
        return []
    return sorted(
        entry.name
        for entry in entries
        if entry.is_dir() and not entry.name.startswith(".") and list_versions(models, entry.name)
    )


def list_versions(models: Path, name: str) -> list[int]:
    """List the versions of one model, highest first, without opening them.

    A link that leads nowhere and a plain file count, too: whoever opens them is told what is wrong.
    """
    try:
        numbers = [
            int(entry.name)
            for entry in (models / name).iterdir()
            if VERSION_NUMBER.fullmatch(entry.name)
        ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # for example lost+found
        return []
    return sorted(numbers, reverse=True)


@contextmanager
def new_version(models: Path, name: str) -> Iterator[Draft]:
    """Yield a draft and publish it as the next version of model `name` when the block ends.

    If the block raises, nothing is left behind. The version number is assigned at the end of the
    block, so of two concurrent writers the one that ends first has the lower number.

    Raises:
        BundleError: the folder cannot be written or the disk is full.
        OSError: the block cannot read or write a file elsewhere.
    """
    folder = models / name
    try:
        temporary = _create_draft_folder(folder)
    except OSError as error:
        raise BundleError(_cannot_write(folder, error)) from error
    try:
        draft = Draft(temporary)
        yield draft
        _publish(draft, folder)
    except OSError as error:
        if names_file_outside(error, folder):
            raise
        raise BundleError(_cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # it is not empty, or another process has removed it
            folder.rmdir()


def require_writable(folder: Path, option: str = "--output") -> None:
    """Raise BundleError if `folder` of `option` cannot be written, before an hour of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_DRAFT_PREFIX):
            pass
    except OSError as error:
        raise BundleError(_cannot_write(folder, error, option)) from error


def names_file_outside(error: OSError, folder: Path) -> bool:
    """Return whether an error names a file that is not in `folder`; a full disk names none."""
    name = error.filename
    return isinstance(name, str) and not Path(name).absolute().is_relative_to(folder.absolute())


@contextmanager
def _open_bundle_folder(path: Path) -> Iterator[int]:
    """Yield the descriptor of the folder of a bundle."""
    try:
        with open_folder(path) as descriptor:
            yield descriptor
    except OSError as error:
        raise _cannot_read(path / MANIFEST_FILE, error) from None


def _read_manifest(path: Path, descriptor: int) -> Manifest:
    file = path / MANIFEST_FILE
    try:
        text = read_file_at(descriptor, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise _cannot_read(file, error) from None
    return parse_manifest(text, str(file))


def parse_manifest(text: bytes, file: str) -> Manifest:
    """Parse the content of a manifest; `file` names it in errors.

    Raises:
        BundleError: it is no manifest, or one of another schema.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise BundleError(
                f"{file} is damaged ({first['msg']}); copy the bundle again."
            ) from None
        if first["loc"] == ("schema_version",) and first["input"] == SCHEMA_VERSION - 1:
            raise BundleError(
                f"{file} was written by an earlier version of Dropserve; write the bundle "
                "once more with python -m training.migrate_bundle models/NAME/VERSION, or export "
                "it again."
            ) from None
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{file} is not a manifest of schema {SCHEMA_VERSION} ({where}: {first['msg']}); "
            "train and export the model again with this version of Dropserve."
        ) from None


def _check_location(path: Path, manifest: Manifest, served_name: str | None) -> None:
    """Raise BundleError if a bundle lies in the folder of another version, or is too large."""
    named_otherwise = str(manifest.version) != path.name
    if served_name is None:
        is_elsewhere = named_otherwise or manifest.name != path.parent.name
    else:  # the folder of a bundle alone has any name that is no version
        is_elsewhere = named_otherwise and VERSION_NUMBER.fullmatch(path.name) is not None
    if is_elsewhere:
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


def _take_examples(path: Path, manifest: Manifest, contents: dict[str, bytes]) -> tuple[bytes, ...]:
    """Take the files of the examples out of `contents`, in the manifest's order."""
    images = tuple(contents.pop(example.file) for example in manifest.examples)
    for example, image in zip(manifest.examples, images, strict=True):
        if not is_example(image):
            raise BundleError(
                f"{path / example.file} is no still WebP image of at most {MAX_EXAMPLE_PIXELS} "
                "pixels a side; export it again."
            )
    return images


def max_bytes(file: str) -> int:
    """Return how large a file of a bundle may be."""
    return MAX_CARD_BYTES if file == CARD_FILE else MAX_FILE_BYTES


def _read_verified(
    path: Path, descriptor: int, file: str, digest: str, limit: int
) -> Iterator[bytes]:
    """Yield the chunks of a file; raise BundleError after the last one if the digest differs."""
    actual = hashlib.sha256()
    try:
        for chunk in read_chunks_at(descriptor, file, limit):
            actual.update(chunk)
            yield chunk
    except OSError as error:
        raise _cannot_read(path / file, error) from None
    if actual.hexdigest() != digest:
        raise BundleError(f"{path / file} differs from its SHA-256; copy the bundle again.")


def _create_draft_folder(folder: Path) -> Path:
    """Create a draft folder in `folder`, which another writer may remove at the same time."""
    for _ in range(_MAX_ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return Path(tempfile.mkdtemp(prefix=_DRAFT_PREFIX, dir=folder))
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _publish(draft: Draft, folder: Path) -> None:
    """Rename the draft to the next free version, even while other processes publish versions."""
    for _ in range(_MAX_ATTEMPTS):
        draft.version = _next_version(folder)
        draft.write_versioned(draft.version)
        _write_manifest(draft)
        draft.verify(draft.path)
        target = folder / str(draft.version)
        try:
            draft.path.rename(target)
        except OSError:
            if not target.exists():  # else another process has taken the number meanwhile
                raise
        else:
            flush_to_disk(folder)
            return
    raise BundleError(f"Others publish versions of {folder} all the time; try again.")


def _next_version(folder: Path) -> int:
    """Return the number after the highest version in the folder."""
    taken = [int(entry.name) for entry in folder.iterdir() if VERSION_NUMBER.fullmatch(entry.name)]
    return max(taken, default=0) + 1


def _write_manifest(draft: Draft) -> None:
    """Write the manifest with the digests of all other files, and flush every file."""
    target = draft.path / MANIFEST_FILE
    target.unlink(missing_ok=True)
    files = sorted(file for file in draft.path.rglob("*") if file.is_file())
    digests = {file.relative_to(draft.path).as_posix(): _sha256(file) for file in files}
    now = datetime.now(UTC).replace(microsecond=0)
    manifest = Manifest(**draft.manifest, version=draft.version, published=now, files=digests)
    text = manifest.model_dump_json(indent=2)
    if len(text) >= MAX_MANIFEST_BYTES:  # thousands of classes
        text = manifest.model_dump_json()
    target.write_text(text + "\n", encoding="utf-8")
    folders = [entry for entry in draft.path.rglob("*") if entry.is_dir()]
    for entry in [*files, target, *folders, draft.path]:
        flush_to_disk(entry)
    draft.path.chmod(0o755)  # mkdtemp made it private; another user may serve it


def flush_to_disk(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_read(file: Path, error: OSError) -> BundleError:
    reason = f"{file} cannot be read ({error.strerror})"
    is_damaged = isinstance(error, _ERRORS_OF_DAMAGE) or error.errno == errno.ELOOP
    if is_damaged:
        return BundleError(f"{reason}; export or copy the bundle again.")
    return UnreadableBundleError(
        f"{reason}; the bundle may be whole: see to its disk and its rights, and try again."
    )


def _cannot_write(folder: Path, error: OSError, option: str = "--output") -> str:
    return (
        f"Cannot write to {folder} ({error.strerror or error}); "
        f"free space or choose another folder with {option}."
    )
