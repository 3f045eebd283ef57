import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.bundle import store
from model.bundle.store import (
    CARD_FILE,
    GOLDEN_FILE,
    GRAPH_FILES,
    MANIFEST_FILE,
    MODEL_FILE,
    REPORT_FILE,
    Draft,
    check_name,
    check_new_name,
    list_models,
    list_versions,
    new_version,
    open_bundle,
    require_writable,
)
from model.errors import BundleError

WEBP = bytes.fromhex("524946461e000000574542505650384c110000002f0000000007d0842634a1ff8188e87f0000")
FILES = (*GRAPH_FILES, GOLDEN_FILE, CARD_FILE)


def manifest() -> dict[str, Any]:
    spec = {"channels": 1, "height": 8, "width": 8, "resize": "pad"}
    return {
        "name": "toy",
        "class_names": ["a", "b"],
        "input": spec,
        "architecture": {"classes": 2, "input": spec},
        "parameters": 3,
        "features": 4,
        "dropout_layers": [{"p": 0.5, "width": 4}],
        "metrics": {},
        "training": {},
        "data": {},
        "libraries": {},
    }


def fill(draft: Draft) -> None:
    for file in FILES:
        (draft.path / file).parent.mkdir(exist_ok=True)
        (draft.path / file).write_text(f"content of {file}")
    draft.manifest = manifest()


def write(models: Path) -> Path:
    with new_version(models, "toy") as draft:
        fill(draft)
    return models / "toy" / str(draft.version)


def test_open_bundle_returns_what_was_written(tmp_path: Path) -> None:
    bundle = open_bundle(write(tmp_path))
    assert bundle.manifest.version == 1
    assert bundle.manifest.class_names == ("a", "b")
    assert set(bundle.manifest.files) == set(FILES)
    assert bundle.card == f"content of {CARD_FILE}"


def test_versions_count_up_and_are_listed_highest_first(tmp_path: Path) -> None:
    for _ in range(11):
        write(tmp_path)
    (tmp_path / "toy" / "notes").mkdir()
    (tmp_path / "toy" / "0").mkdir()
    (tmp_path / "empty").mkdir()
    assert list_versions(tmp_path, "toy") == list(range(11, 0, -1))
    assert list_models(tmp_path) == ["toy"]
    assert list_models(tmp_path / "missing") == []
    assert list_versions(tmp_path, "missing") == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_new_version_leaves_nothing_if_interrupted(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        with new_version(tmp_path, "toy") as draft:
            fill(draft)
            raise error

    with pytest.raises(error):
        interrupted()
    assert not list(tmp_path.iterdir())
    write(tmp_path)
    with pytest.raises(error):
        interrupted()
    assert [entry.name for entry in (tmp_path / "toy").iterdir()] == ["1"]


def test_list_functions_ignore_drafts(tmp_path: Path) -> None:
    with new_version(tmp_path, "toy") as draft:
        fill(draft)
        assert list_versions(tmp_path, "toy") == []
        assert list_models(tmp_path) == []
    assert list_versions(tmp_path, "toy") == [1]


def test_published_bundle_is_readable_by_other_users(tmp_path: Path) -> None:
    assert stat.S_IMODE(write(tmp_path).stat().st_mode) == 0o755


def test_new_version_reports_a_full_disk_and_leaves_nothing(tmp_path: Path) -> None:
    def full() -> None:
        with new_version(tmp_path, "toy") as draft:
            fill(draft)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BundleError, match=r"Cannot write to .* \(No space left on device\); free"):
        full()
    assert not list(tmp_path.iterdir())


def test_new_version_leaves_an_error_of_a_file_elsewhere_as_it_is(tmp_path: Path) -> None:
    def read_elsewhere() -> None:
        with new_version(tmp_path / "models", "toy"):
            (tmp_path / "weights.onnx").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"weights\.onnx"):
        read_elsewhere()
    with (
        pytest.raises(BundleError, match=r"Cannot write to .*toy \(No such file"),
        new_version(tmp_path / "models", "toy") as draft,
    ):
        (draft.path / "missing" / "file").write_bytes(b"")


def test_require_writable_and_new_version_refuse_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for attempt in (require_writable, lambda path: new_version(path, "toy").__enter__()):
        with pytest.raises(BundleError, match="Cannot write to"):
            attempt(tmp_path / "file")
    with pytest.raises(BundleError, match="choose another folder with --runs"):
        require_writable(tmp_path / "file", "--runs")
    require_writable(tmp_path / "made" / "as" / "needed")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_open_bundle_refuses_damage_to_any_file(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    path = write(tmp_path)
    damage(path / file)
    with pytest.raises(BundleError, match=r"(differs from its SHA-256|cannot be read).*again"):
        open_bundle(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 4}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"class_names": ["one"]}, "class_names"),
        ({"class_names": ["one", "one"]}, "two classes have the same name"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "points outside the bundle"),
        ({"files": {"/etc/passwd": "0" * 64}}, "points outside the bundle"),
        ({"files": {}}, "lists no model.onnx"),
        ({"name": "other"}, "put it back into other/1"),
        ({"version": 7}, "put it back into toy/7"),
    ],
)
def test_open_bundle_refuses_a_wrong_manifest(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path)
    file = path / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"is damaged \(.*EOF while parsing.*\); copy the bundle again\."),
        ("{", r"is damaged \(.*EOF while parsing.*\); copy the bundle again\."),
        ("\x00\xff", r"is damaged \(.*\); copy the bundle again\."),
        ("[]", r"is not a manifest of schema 3 \(.*\); train and export the model again .*\."),
    ],
)
def test_open_bundle_refuses_a_manifest_that_is_half_copied_or_none(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = write(tmp_path)
    (path / MANIFEST_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=sentence):
        open_bundle(path)


def test_open_bundle_asks_to_train_a_bundle_of_an_older_schema_again(tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1}))
    with pytest.raises(BundleError, match=r"schema_version.*; train and export the model again"):
        open_bundle(path)


def test_open_bundle_tells_how_to_migrate_a_bundle_of_the_last_schema(tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / MANIFEST_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 2}))
    with pytest.raises(BundleError, match=r"once more with python -m training\.migrate"):
        open_bundle(path)


def test_open_bundle_refuses_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["digits", "a", "fashion-mnist_2.0", "9"])
def test_check_name_accepts_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "a b", "é", "x" * 65, "digits-mc", ".."])
def test_check_name_refuses_invalid_names(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a model"):
        check_name(name)


def test_new_model_is_not_named_as_a_route() -> None:
    with pytest.raises(ValueError, match="'stats' cannot name a new model, since GET /v2/models/"):
        check_new_name("stats")
    assert check_new_name("stats-1") == "stats-1"
    with pytest.raises(ValueError, match="cannot name a model"):
        check_new_name("a/b")


def write_with_example(models: Path, image: bytes, **entry: str) -> Path:
    with new_version(models, "toy") as draft:
        fill(draft)
        (draft.path / "examples").mkdir()
        (draft.path / "examples" / "0.webp").write_bytes(image)
        draft.manifest["examples"] = [{"file": "examples/0.webp", "label": "b"} | entry]
    return models / "toy" / str(draft.version)


def test_bundle_hands_out_its_example_images(tmp_path: Path) -> None:
    bundle = open_bundle(write_with_example(tmp_path, WEBP))
    assert bundle.examples == (WEBP,)
    assert bundle.manifest.examples[0].label == "b"


def test_bundle_of_before_there_were_examples_has_none(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert json.loads((path / MANIFEST_FILE).read_bytes())["examples"] == []
    edit(path, lambda manifest: manifest.pop("examples"))
    assert open_bundle(path).examples == ()


@pytest.mark.parametrize("image", [b"<html>", WEBP[:20], WEBP + bytes(2**16)])
def test_example_that_is_no_small_image_is_refused(tmp_path: Path, image: bytes) -> None:
    path = write_with_example(tmp_path, image)
    with pytest.raises(BundleError, match=r"examples/0\.webp .* again\."):
        open_bundle(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"file": "../0.webp"},
        {"file": "examples/../../0.webp"},
        {"file": "/etc/passwd"},
        {"file": MODEL_FILE},
        {"file": "examples/0.webp\n"},
        {"label": "c"},
    ],
)
def test_example_elsewhere_or_of_no_class_is_refused(tmp_path: Path, entry: dict[str, str]) -> None:
    path = write_with_example(tmp_path, WEBP)
    edit(path, lambda manifest: manifest["examples"][0].update(entry))
    with pytest.raises(BundleError, match="is not a manifest of schema 3"):
        open_bundle(path)


def test_example_without_a_digest_or_twice_is_refused(tmp_path: Path) -> None:
    path = write_with_example(tmp_path, WEBP)
    edit(path, lambda manifest: manifest["examples"].append(manifest["examples"][0]))
    with pytest.raises(BundleError, match="two examples have the same file"):
        open_bundle(path)
    edit(path, lambda manifest: manifest["examples"][1].update(file="examples/1.webp"))
    with pytest.raises(BundleError, match=r"lists no examples/1\.webp"):
        open_bundle(path)


def test_report_is_read_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write(tmp_path))
    with pytest.raises(BundleError, match=f"has no {REPORT_FILE}"):
        bundle.read_report()
    with new_version(tmp_path, "toy") as draft:
        fill(draft)
        (draft.path / REPORT_FILE).write_bytes(b"<h1>Report</h1>")
    bundle = open_bundle(tmp_path / "toy" / "2")
    assert bundle.read_report() == b"<h1>Report</h1>"
    monkeypatch.setattr(store, "MAX_REPORT_BYTES", 8)
    with pytest.raises(BundleError, match="larger than 8 bytes"):
        bundle.read_report()


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / MANIFEST_FILE
    manifest = json.loads(file.read_bytes())
    change(manifest)
    file.write_text(json.dumps(manifest))
