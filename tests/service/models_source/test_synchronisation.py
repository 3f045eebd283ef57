"""Polls of a source in memory: what is fetched, what is refused, what stays."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from model.bundle.store import open_bundle
from service.models_source import version_fetch
from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import SourceError
from service.models_source.version_fetch import StoppedError
from service.models_source.wanted_bundles import Wanted
from tests.bundles import copy_bundle, edit_manifest
from tests.service.models_source.published import PLACE, Fetching, Published
from tests.service.serving import check_sentence


@pytest.fixture
def published(bundle_folder: Path, tmp_path: Path) -> Published:
    """A source with versions 1, 2 and 3 of a model."""
    bundles = {
        version: copy_bundle(bundle_folder, tmp_path / "elsewhere", "digits", version)
        for version in range(1, 6)
    }
    source = Published(bundles)
    for version in (1, 2, 3):
        source.put(bundles[version], f"digits/{version}")
    return source


@pytest.fixture
def fetching(published: Published, tmp_path: Path) -> Fetching:
    return Fetching(published, tmp_path / "cache")


def manifest_of_version_3(tmp_path: Path, **changes: Any) -> bytes:
    bundle = tmp_path / "elsewhere" / "digits" / "3"
    edit_manifest(bundle, **changes)
    return (bundle / "manifest.json").read_bytes()


def test_newest_versions_are_fetched_as_whole_bundles(fetching: Fetching) -> None:
    poll = fetching.poll()
    assert poll.fetched == 2
    assert poll.problem is None
    assert fetching.versions() == {"digits": [3, 2]}
    for version in (2, 3):
        open_bundle(fetching.cache.folder / "digits" / str(version))  # verifies every digest


def test_version_that_a_rollout_names_is_fetched_whatever_its_age(fetching: Fetching) -> None:
    fetching.poll(Wanted(newest=1, named={"digits": [1, 9]}))
    assert fetching.versions() == {"digits": [3, 1]}


def test_pinned_version_is_the_only_one_that_is_fetched(fetching: Fetching) -> None:
    fetching.poll(Wanted(newest=2, pins={"digits": 1}))
    assert fetching.versions() == {"digits": [1]}


def test_pinned_version_that_is_not_published_is_a_problem(fetching: Fetching) -> None:
    for name in ("digits", "letters"):
        poll = fetching.poll(Wanted(newest=2, pins={name: 7}))
        assert poll.problem == f"{PLACE}/{name}/7/manifest.json: it is not there."


def test_second_poll_fetches_only_what_is_new(published: Published, fetching: Fetching) -> None:
    fetching.poll()
    assert fetching.poll().fetched == 0
    published.put(published.bundles[4], "digits/4")
    assert fetching.poll().fetched == 1
    assert fetching.versions() == {"digits": [4, 3, 2]}


def test_processes_that_want_the_same_ask_the_source_once(
    published: Published, fetching: Fetching, tmp_path: Path
) -> None:
    first = fetching.poll()
    published.remove("digits")
    other = Fetching(published, tmp_path / "cache").poll(fresh_seconds=60)
    assert (other.succeeded_at, other.fetched) == (first.succeeded_at, 0)
    assert Fetching(published, tmp_path / "cache").poll(Wanted(newest=1), 60).fetched == 0


def test_process_that_finds_another_one_fetching_does_nothing(
    fetching: Fetching, tmp_path: Path
) -> None:
    with BundleCache(tmp_path / "cache", PLACE).locked() as is_held:
        assert is_held
        assert fetching.poll().is_busy
    assert fetching.poll().fetched == 2


def test_version_that_is_not_whole_is_fetched_once_it_is(
    published: Published, fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = published.store.get("digits/3/head.onnx").bytes()
    published.store.delete("digits/3/head.onnx")
    assert fetching.poll().problem == f"{PLACE}/digits/3/head.onnx: it is not there."
    assert fetching.versions() == {"digits": [2]}
    published.store.put("digits/3/head.onnx", head)
    monkeypatch.setattr("time.monotonic", lambda: float("inf"))  # the back-off is over
    assert fetching.poll().problem is None
    assert fetching.versions() == {"digits": [3, 2]}


def test_damaged_version_is_not_downloaded_again_at_once(
    published: Published, fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    published.store.put("digits/3/golden.npz", b"damaged")
    sentence = f"{PLACE}/digits/3/golden.npz differs from its SHA-256 in …; copy …"
    check_sentence(fetching.poll().problem or "", sentence)
    assert fetching.versions() == {"digits": [2]}
    monkeypatch.setattr(version_fetch.VersionFetch, "fetch", lambda *_: pytest.fail("fetched"))
    check_sentence(fetching.poll().problem or "", sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"files": {"../../stolen": "0" * 64}}, "…points outside the bundle…; …"),
        ({"files": {"/etc/passwd": "0" * 64}}, "…points outside the bundle…; …"),
        ({"version": 8}, f"{PLACE}/digits/3 holds digits version 8; publish it as digits/8."),
        ({"name": "letters"}, f"{PLACE}/digits/3 holds letters version 3; publish it as …"),
        (
            {"files": {f"{each}.txt": "0" * 64 for each in range(10_001)}},
            f"{PLACE}/digits/3 has more than 10,000 files; publish fewer.",
        ),
        ({"schema_version": 99}, f"{PLACE}/digits/3/manifest.json is not a manifest …; …"),
    ],
)
def test_manifest_that_cannot_be_used_is_refused(
    published: Published,
    fetching: Fetching,
    tmp_path: Path,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    published.store.put("digits/3/manifest.json", manifest_of_version_3(tmp_path, **changes))
    check_sentence(fetching.poll().problem or "", sentence)
    assert fetching.versions() == {"digits": [2]}
    assert not (tmp_path / "stolen").exists()


def test_manifest_with_a_name_that_the_disk_does_not_take_is_refused(
    published: Published, fetching: Fetching, tmp_path: Path
) -> None:
    manifest = manifest_of_version_3(tmp_path, files={"a" * 300: "0" * 64})
    published.store.put("digits/3/manifest.json", manifest)
    check_sentence(
        fetching.poll().problem or "",
        f"{PLACE}/digits/3: its manifest names a file by a longer name than the cache's disk …",
    )


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx/x"])
def test_manifest_that_names_a_file_twice_is_refused(
    published: Published, fetching: Fetching, tmp_path: Path, name: str
) -> None:
    bundle = open_bundle(tmp_path / "elsewhere" / "digits" / "3")
    files = bundle.manifest.files | {name: "0" * 64}
    published.store.put(f"digits/3/{name}", b"{}")
    published.store.put("digits/3/manifest.json", manifest_of_version_3(tmp_path, files=files))
    assert fetching.poll().problem is not None
    assert fetching.versions() == {"digits": [2]}


def test_version_of_more_bytes_than_allowed_is_refused(
    published: Published, tmp_path: Path
) -> None:
    fetching = Fetching(published, tmp_path / "cache", max_bytes=20_000)
    check_sentence(fetching.poll().problem or "", "…is larger than the … bytes that it may have.")
    assert fetching.versions() == {}


def test_replaced_version_is_not_followed(
    published: Published, fetching: Fetching, tmp_path: Path
) -> None:
    fetching.poll()
    before = fetching.cache.manifest("digits", 3)
    published.store.put("digits/3/manifest.json", manifest_of_version_3(tmp_path, parameters=1))
    check_sentence(
        fetching.poll().problem or "",
        f"{PLACE}/digits/3 was replaced (…), and the fetched one serves on; publish …",
    )
    assert fetching.cache.manifest("digits", 3) == before


def test_withdrawn_version_is_removed_unless_it_is_named(
    published: Published, fetching: Fetching
) -> None:
    fetching.poll()
    published.remove("digits/3")
    fetching.poll(Wanted(newest=2, named={"digits": [3]}))
    assert fetching.versions() == {"digits": [3, 2, 1]}
    fetching.poll()
    assert fetching.versions() == {"digits": [2, 1]}


def test_nothing_is_removed_while_it_is_not_known_what_is_named(
    published: Published, fetching: Fetching
) -> None:
    fetching.poll(Wanted(newest=2, named={"digits": [1]}))
    published.remove("digits/1")
    fetching.poll(Wanted(newest=1, may_remove=False))
    assert fetching.versions() == {"digits": [3, 2, 1]}


@pytest.mark.parametrize("missing", ["golden.npz", "manifest.json", None])
def test_withdrawn_version_stays_until_another_one_is_whole_and_can_be_loaded(
    published: Published, fetching: Fetching, missing: str | None
) -> None:
    published.remove("digits/2")
    published.remove("digits/3")
    fetching.poll()
    published.remove("digits/1")
    published.put(published.bundles[2], "digits/2")
    if missing is not None:
        published.store.delete(f"digits/2/{missing}")
    failed = frozenset({("digits", 2)} if missing is None else ())
    for _ in range(2):
        fetching.poll(Wanted(newest=2, failed=failed))
        assert 1 in fetching.versions()["digits"]


def test_old_versions_are_removed_except_those_that_serve_or_are_named(
    published: Published, fetching: Fetching
) -> None:
    wanted = Wanted(newest=2, named={"digits": [1]}, kept=frozenset({("digits", 2)}))
    for version in (3, 4, 5):
        published.put(published.bundles[version], f"digits/{version}")
        fetching.poll(wanted)
    fetching.poll(wanted)
    assert fetching.versions() == {"digits": [5, 4, 2, 1]}
    fetching.poll()
    assert fetching.versions() == {"digits": [5, 4]}


def test_old_version_stays_while_a_newer_one_cannot_be_fetched(
    published: Published, fetching: Fetching
) -> None:
    fetching.poll()
    published.put(published.bundles[4], "digits/4")
    published.store.delete("digits/4/head.onnx")
    for _ in range(2):
        fetching.poll()
        assert fetching.versions() == {"digits": [3, 2]}


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(newest=1, pins={"digits": 1}),
        Wanted(newest=1, named={"digits": [1]}),
        Wanted(newest=1, may_remove=False),
    ],
)
def test_version_that_another_process_names_stays_until_that_one_ends(
    published: Published, fetching: Fetching, tmp_path: Path, wanted: Wanted
) -> None:
    fetching.poll(Wanted(newest=1, named={"digits": [1]}))
    other = Fetching(published, tmp_path / "cache")
    other.poll(wanted)
    published.remove("digits/1")
    fetching.poll()
    assert fetching.versions() == {"digits": [3, 2, 1]}
    other.close()
    fetching.poll()
    assert fetching.versions() == {"digits": [3, 2]}


def test_processes_that_want_more_or_fewer_versions_keep_those_of_each_other(
    published: Published, fetching: Fetching, tmp_path: Path
) -> None:
    other = Fetching(published, tmp_path / "cache")
    for _ in range(2):
        fetching.poll(Wanted(newest=3))
        assert other.poll(Wanted(newest=1)).fetched == 0
        assert fetching.versions() == {"digits": [3, 2, 1]}


def test_model_that_is_gone_altogether_stays_and_the_poll_has_failed(
    published: Published, fetching: Fetching
) -> None:
    fetching.poll()
    published.remove("digits")
    poll = fetching.poll()
    assert poll.succeeded_at is None
    check_sentence(poll.problem or "", f"{PLACE}/digits has no version any more, and what …")
    assert fetching.versions() == {"digits": [3, 2]}
    assert fetching.poll(Wanted(newest=2, pins={"letters": None})).problem is None


@pytest.mark.parametrize("damage", ["{", None])
def test_version_whose_fetched_manifest_is_damaged_is_fetched_again(
    published: Published, fetching: Fetching, damage: str | None
) -> None:
    fetching.poll()
    manifest = fetching.cache.folder / "digits" / "3" / "manifest.json"
    manifest.unlink()
    if damage is not None:
        manifest.write_text(damage)
    published.store.delete("digits/3/head.onnx")
    assert fetching.poll().problem == f"{PLACE}/digits/3/head.onnx: it is not there."
    assert (manifest.parent / "head.onnx").exists()
    published.put(published.bundles[3], "digits/3")
    assert Fetching(published, fetching.cache.folder).poll().problem is None
    open_bundle(manifest.parent)
    assert fetching.versions() == {"digits": [3, 2]}


def test_every_model_has_a_version_before_one_has_two_and_failed_ones_are_last(
    published: Published, fetching: Fetching, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[str] = []

    def fail(_self: object, name: str, version: int, _manifest: bytes) -> None:
        tried.append(f"{name} {version}")
        raise SourceError("It fails.")

    monkeypatch.setattr(version_fetch.VersionFetch, "fetch", fail)
    monkeypatch.setattr("time.monotonic", lambda: float("inf"))  # the back-off is over at once
    published.put(copy_bundle(published.bundles[1], tmp_path, "letters", 1), "letters/1")
    fetching.poll(Wanted(newest=2, named={"digits": [1]}))
    assert tried == ["digits 1", "letters 1", "digits 3", "digits 2"]
    tried.clear()
    published.put(copy_bundle(published.bundles[1], tmp_path, "letters", 2), "letters/2")
    fetching.poll()
    assert tried == ["letters 2", "digits 3", "digits 2", "letters 1"]


def test_version_is_tried_again_after_as_long_as_the_last_try_took(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []
    clock = [0.0]

    def fail(*_: object) -> None:
        tries.append(clock[0])
        clock[0] += 500
        raise SourceError("It arrives slowly.")

    monkeypatch.setattr(version_fetch.VersionFetch, "fetch", fail)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    for clock[0] in (0.0, 900.0, 1001.0):
        fetching.poll(Wanted(newest=1))
    assert tries == [0.0, 1001.0]


def test_full_disk_leaves_nothing_behind(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fetching.poll(Wanted(newest=1, pins={"absent": None}))  # makes the cache
    monkeypatch.setattr("os.fsync", fail)
    check_sentence(
        fetching.poll().problem or "",
        "The cache cannot be used (No space left on device); free space, or name …",
    )
    assert fetching.versions() == {}


def test_version_that_does_not_arrive_in_time_is_given_up(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_fetch, "MOST_SECONDS", -1.0)
    check_sentence(
        fetching.poll().problem or "", f"{PLACE}/digits/3 did not arrive within …; see to …"
    )
    assert fetching.versions() == {}


def test_fetch_ends_when_the_service_stops(fetching: Fetching) -> None:
    fetching.is_stopping = True
    with pytest.raises(StoppedError):
        fetching.poll()
    assert fetching.versions() == {}


def test_draft_of_a_process_that_was_killed_is_removed(fetching: Fetching) -> None:
    draft = fetching.cache.folder / ".drafts" / "digits-3"
    draft.mkdir(parents=True)
    (draft / "model.onnx").write_bytes(b"half")
    assert fetching.poll().problem is None
    assert fetching.versions() == {"digits": [3, 2]}


def test_link_in_the_place_of_the_lock_is_not_followed(fetching: Fetching, tmp_path: Path) -> None:
    fetching.cache.folder.mkdir()
    (fetching.cache.folder / ".lock").symlink_to(tmp_path / "elsewhere.lock")
    with pytest.raises(OSError, match="symbolic links"):
        fetching.poll()
    assert not (tmp_path / "elsewhere.lock").exists()


def test_cache_of_another_source_is_refused(fetching: Fetching, tmp_path: Path) -> None:
    fetching.poll()
    with (
        pytest.raises(SourceError, match=f"is the cache of {PLACE}; name another folder"),
        BundleCache(tmp_path / "cache", "s3://other").locked(),
    ):
        pass


def test_folder_of_bundles_that_were_not_fetched_is_refused(
    published: Published, bundle_folder: Path, tmp_path: Path
) -> None:
    copy_bundle(bundle_folder, tmp_path / "models")
    with pytest.raises(SourceError, match="holds bundles that were not fetched"):
        Fetching(published, tmp_path / "models").poll()
    assert open_bundle(tmp_path / "models" / "digits" / "1")


def test_marks_of_polls_are_removed_after_a_day(fetching: Fetching) -> None:
    fetching.poll(Wanted(newest=1))
    (old,) = fetching.cache.folder.glob(".polled-*")
    os.utime(old, (0, 0))
    fetching.poll()
    assert len(list(fetching.cache.folder.glob(".polled-*"))) == 1
    assert not old.exists()
