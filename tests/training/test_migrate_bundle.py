"""`python -m training.migrate_bundle` on a bundle with graphs as schema 2 had them."""

import shutil
from pathlib import Path

import onnx
import orjson
import pytest
from onnx.utils import Extractor

from model.bundle.store import (
    CARD_FILE,
    GOLDEN_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    MC_STATISTICS_FILE,
    MODEL_FILE,
    open_bundle,
)
from model.dropout.sampling_methods import AdaptiveSamples, FixedSamples
from model.errors import BundleError
from model.images.preprocessing import to_float
from model.inference.predictor import OOD_SCORES
from model.inference.predictor_loading import load_predictor
from model.uncertainty.uncertainty_measures import Uncertainty
from tests.bundles import copy_bundle, edit_manifest, update_digest
from tests.service.serving import check_sentence
from training.data.dataset import Split
from training.migrate_bundle import main, migrate


@pytest.fixture
def old(bundle_folder: Path, tmp_path: Path) -> Path:
    """Return a bundle of schema 2."""
    bundle = copy_bundle(bundle_folder, tmp_path)
    parts = {
        MODEL_FILE: (["images"], ["logits", "features", OOD_SCORES]),
        HEAD_FILE: (["features", "mask_0"], ["logits"]),
    }
    for file, (inputs, outputs) in parts.items():
        model = Extractor(onnx.load(bundle / file)).extract_model(inputs, outputs)
        onnx.save(model, bundle / file)
        update_digest(bundle, file)
    (bundle / MC_STATISTICS_FILE).unlink()
    files = orjson.loads((bundle / MANIFEST_FILE).read_bytes())["files"]
    del files[MC_STATISTICS_FILE]
    edit_manifest(bundle, schema_version=2, files=files)
    return bundle


def assert_same_bytes(one: Uncertainty, other: Uncertainty) -> None:
    for name in set(Uncertainty.__slots__) - {"sample_probabilities"}:
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


def test_migrated_bundle_gives_the_same_answers_as_the_exported_one(
    old: Path, bundle_folder: Path, held_out: Split
) -> None:
    migrated = migrate(old)
    assert migrated == old.parent / "2"
    images = to_float(held_out.images[:20])
    one, other = (load_predictor(open_bundle(path)) for path in (bundle_folder, migrated))
    for sampling in (FixedSamples(0, 64), AdaptiveSamples(0, 256)):
        expected, found = (
            each.uncertainty(each.predict(images), sampling) for each in (one, other)
        )
        assert_same_bytes(expected, found)


def test_migrated_bundle_says_its_own_version(old: Path) -> None:
    assert open_bundle(migrate(old)).card.startswith("# digits, version 2\n")
    assert (old / CARD_FILE).read_text().startswith("# digits, version 1\n")


def test_migration_refuses_in_one_sentence_what_it_cannot_read(
    old: Path, bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / HEAD_FILE).write_bytes(b"damaged")
    for folder, sentence in {
        old: "head.onnx differs from its SHA-256; copy the bundle again.",
        bundle_folder: "is no bundle of schema 2; name models/NAME/VERSION.",
        tmp_path: "is no bundle of schema 2; name models/NAME/VERSION.",
    }.items():
        assert main([str(folder)]) == 2
        printed = capsys.readouterr().err
        assert sentence in printed
        assert printed.count("\n") == 1
    assert [each.name for each in old.parent.iterdir()] == ["1"]
    with pytest.raises(BundleError, match=r"python -m training\.migrate"):
        open_bundle(old)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        (HEAD_FILE, b"no graph", "The graphs of {old} are not those of a bundle of schema 2; …"),
        (HEAD_FILE, b"", "The graphs of {old} are not those of a bundle of schema 2; …"),
        (HEAD_FILE, None, "{old} lists no head.onnx; export it again."),
        (GOLDEN_FILE, None, "{old} lists no golden.npz; export it again."),
        (CARD_FILE, b"\xff", "{old}/report/card.md is not UTF-8; export it again."),
    ],
)
def test_bundle_that_could_not_be_served_is_not_published(
    old: Path, file: str, content: bytes | None, sentence: str
) -> None:
    if content is None:
        files = orjson.loads((old / MANIFEST_FILE).read_bytes())["files"]
        del files[file]
        edit_manifest(old, files=files)
    else:
        (old / file).write_bytes(content)
        update_digest(old, file)
    with pytest.raises(BundleError) as caught:
        migrate(old)
    check_sentence(str(caught.value), sentence.format(old=old))
    assert [each.name for each in old.parent.iterdir()] == ["1"]


def test_bundle_outside_its_place_is_refused(old: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="alone holds digits/1; put it into a folder of that"):
        migrate(shutil.copytree(old, tmp_path / "elsewhere" / "alone"))
    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["alone"]


def test_bundle_behind_a_link_is_migrated_beside_the_link(old: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored" / "by-digest"
    stored.parent.mkdir()
    old.rename(stored)
    old.symlink_to(stored)
    assert migrate(old) == old.parent / "2"
    assert [each.name for each in stored.parent.iterdir()] == ["by-digest"]


def test_manifest_that_is_nested_too_deeply_is_no_bundle(old: Path) -> None:
    (old / MANIFEST_FILE).write_bytes(b"[" * 200_000)
    with pytest.raises(BundleError, match="is no bundle of schema 2"):
        migrate(old)
