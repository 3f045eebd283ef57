"""What is read at a source: lists, limits, conditional reads, and errors as sentences."""

from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from service.check.findings import Level
from service.check.models_source_check import check_models_source
from service.models_source import remote_bundles
from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import RemoteBundles, SourceError
from service.run_server import StartError, require_usable_source
from service.settings import ServiceSettings
from service.source_url import SCHEMES, parse_source
from tests.service.models_source.file_server import serving_files
from tests.service.serving import check_sentence

PLACE = "memory://bundles"


@pytest.fixture
def store() -> MemoryStore:
    """A store with two models, and with much that is none."""
    store = MemoryStore()
    for path in (
        *("digits/1/manifest.json", "digits/12/manifest.json", "letters/3/manifest.json"),
        *("digits/latest/manifest.json", "digits/01/manifest.json", "digits/readme.md"),
        *(".hidden/1/manifest.json", "a b/1/manifest.json", "digits-mc/1/manifest.json", "file"),
    ):
        store.put(path, b"{}")
    return store


def test_only_folders_that_can_be_versions_are_listed(store: MemoryStore) -> None:
    source = RemoteBundles(store, PLACE)
    assert source.list_versions(()) == {"digits": [12, 1], "letters": [3]}
    assert source.list_versions({"letters", "absent"}) == {"letters": [3]}


def test_index_names_the_versions(store: MemoryStore) -> None:
    store.put("index.json", b'{"models": {"digits": [1, 12, 1], "empty": []}}')
    assert RemoteBundles(store, PLACE, has_index=True).list_versions(()) == {"digits": [12, 1]}


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"<html>",
        b'{"models": {"digits": [0]}}',
        b'{"models": {"digits": [1000000000000000000]}}',
        b'{"models": {"digits": [true]}}',
        b'{"models": {"digits": ["1"]}}',
        b'{"models": {"digits": [1.0]}}',
        b'{"models": {"..": [1]}}',
        b'{"models": {}, "more": 1}',
        b"[" * 100_000,
    ],
)
def test_index_that_is_none_is_refused_with_an_example(store: MemoryStore, index: bytes) -> None:
    store.put("index.json", index)
    with pytest.raises(SourceError) as caught:
        RemoteBundles(store, PLACE, has_index=True).list_versions(())
    sentence = f'{PLACE}/index.json is no index (…); write {{"models": {{"NAME": [1, 2]}}}}.'
    check_sentence(str(caught.value), sentence)


def test_file_is_read_again_only_when_it_has_changed(store: MemoryStore) -> None:
    source = RemoteBundles(store, PLACE)
    first = source.read("file", 10)
    assert first is not None
    assert source.read("file", 10, first.e_tag) is None
    store.put("file", b"other")
    second = source.read("file", 10, first.e_tag)
    assert second is not None
    assert second.content == b"other"


def test_file_is_read_up_to_its_limit(store: MemoryStore) -> None:
    source = RemoteBundles(store, PLACE)
    store.put("file", b"12345")
    assert b"".join(source.read_chunks("file", 5)) == b"12345"
    with pytest.raises(SourceError) as caught:
        list(source.read_chunks("file", 4))
    assert str(caught.value) == f"{PLACE}/file is larger than the 4 bytes that it may have."


@pytest.mark.parametrize(
    "read",
    [
        lambda source: source.read("file", 10**6),
        lambda source: list(source.read_chunks("file", 10**6)),
    ],
)
def test_file_that_arrives_too_slowly_is_given_up(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, read: Callable[[RemoteBundles], object]
) -> None:
    seconds = iter(range(0, 10_000, 61))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    store.put("file", bytes(610_000))
    read(RemoteBundles(store, PLACE))
    store.put("file", bytes(609_999))
    with pytest.raises(SourceError) as caught:
        read(RemoteBundles(store, PLACE))
    sentence = f"{PLACE}/file arrives more slowly than 10,000 bytes a second; see to the network."
    assert str(caught.value) == sentence


@pytest.mark.parametrize("path", ["absent", "../file", "a//b"])
def test_path_without_a_file_is_one_sentence(store: MemoryStore, path: str) -> None:
    with pytest.raises(SourceError) as caught:
        RemoteBundles(store, PLACE).read(path, 10)
    check_sentence(str(caught.value), f"{PLACE}/{path}: it …")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_can_be_used_without_asking_the_network(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    url = parse_source(f"{scheme}://place/models")
    assert RemoteBundles.at(url).place == f"{scheme}://place/models"


def test_source_that_the_environment_does_not_complete_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(SourceError) as caught:
        RemoteBundles.at(parse_source("az://container/models"))
    check_sentence(str(caught.value), "az://container/models: it cannot be used (…).")
    assert "\n" not in str(caught.value)


def test_start_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_bundles, "find_spec", lambda _name: None)
    settings = ServiceSettings(models_source="s3://bucket/models")
    with pytest.raises(StartError) as caught:
        require_usable_source(settings)
    sentence = (
        "--models-source: it needs the package obstore; run pip install '.[source]' in "
        "the project's folder."
    )
    assert (str(caught.value), caught.value.exit_status) == (sentence, 2)
    (finding,) = check_models_source(settings)
    assert (finding.level, finding.sentence) == (Level.ERROR, sentence)
    require_usable_source(ServiceSettings())


def test_name_for_one_model_does_not_go_with_a_source() -> None:
    settings = ServiceSettings(models_source="s3://bucket", served_model_name="digits")
    sentence = "--served-model-name: it is for a folder of one model, …; leave one of them out."
    with pytest.raises(StartError) as caught:
        require_usable_source(settings)
    check_sentence(str(caught.value), sentence)
    (finding,) = check_models_source(settings)
    check_sentence(finding.sentence, sentence)


def test_start_with_the_cache_of_another_source_is_refused(tmp_path: Path) -> None:
    settings = ServiceSettings(models_source="s3://production", models_cache=tmp_path)
    with BundleCache(tmp_path, "s3://staging").locked():
        pass
    with pytest.raises(StartError) as caught:
        require_usable_source(settings)
    sentence = f"--models-cache: {tmp_path} is the cache of s3://staging; name another folder …"
    check_sentence(str(caught.value), sentence)
    require_usable_source(settings.model_copy(update={"models_source": "s3://staging"}))


@pytest.mark.parametrize("read", ["read", "read_chunks"])
def test_answer_that_a_file_is_unchanged_is_an_error_where_nobody_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", lambda self: self.send_error(304))
    with serving_files(tmp_path) as server:
        source = RemoteBundles.at(parse_source(server.url))
        with pytest.raises(SourceError, match=r"file: it cannot be read \(.*304 Not Modified"):
            list(getattr(source, read)("file", 10))


def test_error_about_a_name_of_megabytes_is_short(store: MemoryStore) -> None:
    store.put("index.json", b'{"models": {"%s": [1]}}' % (b"a" * 2**20))
    with pytest.raises(SourceError) as caught:
        RemoteBundles(store, PLACE, has_index=True).list_versions(())
    sentence = str(caught.value)
    assert len(sentence) < 1000
    check_sentence(sentence, f'{PLACE}/index.json is no index (…write {{"models": {{"NAME": …}}}}.')
