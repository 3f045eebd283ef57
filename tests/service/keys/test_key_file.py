"""Tests of the file of keys and of the command that changes it."""

import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from service.keys.key_command import main
from service.keys.key_file import TOKEN_LENGTH, KeyFileError, digest_of, read_key_file, token_id
from service.keys.key_file_changes import add_key, revoke_key
from tests.conftest import ROOT

TOKEN = re.compile(r"ds-[0-9a-f]{8}-[A-Za-z0-9_-]{43}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, name: str, days: float | None = None) -> str:
    return add_key(file, name, frozenset({"predict"}), days)


def test_file_holds_the_keyed_hash_of_a_key_and_not_the_key(file: Path) -> None:
    token = add(file, "me")
    content = read_key_file(file)
    (key,) = content.keys
    assert TOKEN.fullmatch(token)
    assert len(token) == TOKEN_LENGTH
    assert token_id(token) == key.id
    assert token[-43:] not in file.read_text()
    assert digest_of(token, bytes.fromhex(content.secret)).hex() == key.digest
    assert digest_of(token, bytes(32)).hex() != key.digest


def test_same_key_has_another_hash_in_another_file(tmp_path: Path) -> None:
    secrets = set()
    for name in ("a.json", "b.json"):
        add(tmp_path / name, "me")
        secrets.add(read_key_file(tmp_path / name).secret)
    assert len(secrets) == 2


def test_file_is_private_and_replaced_as_a_whole(file: Path) -> None:
    previous_umask = os.umask(0)
    try:
        add(file, "one")
    finally:
        os.umask(previous_umask)
    before = file.stat()
    with file.open() as opened:
        add(file, "two")
        assert len(opened.read().split('"name"')) == 2, "a reader sees the whole old file"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_ino != before.st_ino
    assert sorted(each.name for each in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(file)
    add(file, "one")
    add(link, "two")
    assert link.is_symlink()
    assert [key.name for key in read_key_file(file).keys] == ["one", "two"]


def test_keys_that_are_added_at_once_are_all_kept(file: Path) -> None:
    names = [f"user-{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda name: add(file, name), names))
    keys = read_key_file(file).keys
    assert sorted(key.name for key in keys) == sorted(names)
    assert {key.id for key in keys} == set(map(token_id, tokens))


def test_key_expires_after_its_days(file: Path) -> None:
    add(file, "me", days=1.5)
    (key,) = read_key_file(file).keys
    assert key.expires == key.created + timedelta(days=1.5)
    assert not key.has_expired(key.expires - timedelta(seconds=1))
    assert key.has_expired(key.expires)


def test_revoked_key_is_gone_and_its_name_is_free(file: Path) -> None:
    add(file, "one")
    add(file, "two")
    with pytest.raises(KeyFileError, match="There is a key 'one' already; revoke it, or choose"):
        add(file, "one")
    revoke_key(file, "one")
    with pytest.raises(KeyFileError, match="There is no key 'one'; there is two\\."):
        revoke_key(file, "one")
    add(file, "one")
    assert [key.name for key in read_key_file(file).keys] == ["two", "one"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no file of keys (the file: invalid json: "),
        (b"{}", "is no file of keys (secret: field required); restore it, or move it away and "),
        (b'{"secret": "0"}', "is no file of keys (secret: "),
        (b'{"format": 2, "secret": "%s"}' % (b"0" * 64), "is no file of keys (format: "),
        (b"\xff" * 9, "is no file of keys ("),
        (b" " * 2**20 + b"{}", "has more than 1 MiB; name a file of keys."),
    ],
)
def test_damaged_file_is_refused_with_a_sentence(file: Path, content: bytes, reason: str) -> None:
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match=re.escape(f"{file} {reason}")):
        read_key_file(file)


def test_file_that_others_may_change_is_refused(file: Path) -> None:
    add(file, "me")
    file.chmod(0o620)
    with pytest.raises(KeyFileError, match="may be changed by other users, who could add a key"):
        read_key_file(file)
    file.chmod(0o444)
    assert len(read_key_file(file).keys) == 1


def test_fifo_and_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(KeyFileError, match="is no regular file"):
            read_key_file(tmp_path / name)


def test_command_shows_a_key_once_on_standard_output(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["add", str(file), "--name", "me", "--scopes", "metrics, control"]) == 0
    token, note = capsys.readouterr()
    assert TOKEN.fullmatch(token.strip())
    assert note == "The key, which is shown this once; the file holds its hash:\n"
    assert main(["add", str(file), "--name", "you", "--expires-days", "0.00001"]) == 0
    capsys.readouterr()
    assert main(["list", str(file)]) == 0
    listed, note = capsys.readouterr()
    heading, mine, yours = listed.splitlines()
    assert heading.split() == ["NAME", "ID", "SCOPES", "CREATED", "EXPIRES"]
    assert mine.split()[:3] == ["me", token_id(token), "metrics,control"]
    assert mine.endswith("Z  never")
    assert yours.split()[2] == "predict,read"
    assert token.strip()[-43:] not in listed + note
    assert main(["revoke", str(file), "--name", "me"]) == 0
    assert capsys.readouterr().out == (
        "me: revoked; a service that reads this file refuses it within two seconds, one that has a "
        "copy (systemd's LoadCredential, a Secret) once that is renewed\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["add"], 2, "--name: for add and revoke, and needed there.\n"),
        (["list", "--name", "x"], 2, "--name: for add and revoke, and needed there.\n"),
        (["add", "--name", "a b"], 2, "--name: 'a b' is no name of a key; write 1 to 64 letters, "),
        (["add", "--name", "x", "--scopes", "read,write"], 2, "--scopes: 'write' is no scope; "),
        (["add", "--name", "x", "--scopes", ","], 2, "--scopes: a key needs a scope; there is "),
        (["add", "--name", "x", "--expires-days", "0"], 2, "--expires-days: input should be "),
        (["revoke", "--name", "x"], 1, "{file} cannot be read (No such file or directory); make "),
    ],
)
def test_command_refuses_with_one_sentence(
    file: Path,
    arguments: list[str],
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    action, *options = arguments
    try:
        found = main([action, str(file), *options])
    except SystemExit as exit_:
        found = int(str(exit_.code))
    out, err = capsys.readouterr()
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert err.startswith(sentence.format(file=file))
    assert not file.exists()


def test_command_loads_no_inference_engine(file: Path) -> None:
    code = (
        "import sys; from service.keys.key_command import main; main(sys.argv[1:]); "
        "print({'onnxruntime', 'fastapi', 'uvicorn', 'PIL'} & set(sys.modules))"
    )
    add(file, "me")
    command = [sys.executable, "-c", code, "list", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
