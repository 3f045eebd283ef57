"""Each check without a bundle: settings, keys, sockets, folders and resources."""

import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model.container_resources import available_processors
from service.check.access_check import check_access
from service.check.findings import Finding, Level
from service.check.label_studio_check import check_label_studio
from service.check.listening_check import check_descriptors, check_listening
from service.check.resource_check import check_memory, check_processors, check_provider
from service.check.rights_and_disk_room_check import check_folders
from service.check.settings_check import check_settings
from service.keys import key_file_changes
from service.keys.key_file import read_key_file
from service.keys.key_file_changes import add_key
from service.settings import ServiceSettings
from tests.service.serving import check_sentence

ERROR, WARNING, FINE = Level.ERROR, Level.WARNING, Level.FINE
MIB = 2**20


def check_found(findings: Iterable[Finding], *expected: tuple[Level, str]) -> None:
    """Fail unless there are exactly these findings; `…` in a sentence stands for any text."""
    found = list(findings)
    assert [each.level for each in found] == [level for level, _ in expected], found
    for each, (_, sentence) in zip(found, expected, strict=True):
        check_sentence(each.sentence, sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"traffic_log_images": True}, "--traffic-log-images stores nothing …; give …"),
        ({"control": "nobody", "control_port": 1}, "--control-port has no effect …; leave …"),
        (
            {"control": "nobody", "control_socket": Path("c")},
            "--control-socket has no effect with --control nobody; leave one of them out.",
        ),
        ({"models": "a,b@2", "default_model": "c"}, "--default-model: 'c' is not among …; name …"),
        ({"max_request_pixels": 1000}, "--max-image-pixels: …25000000 pixels is refused …1000; …"),
        ({"max_buffered_bytes": 1000}, "--max-body-bytes: …10485760 bytes is refused …1000; …"),
    ],
)
def test_setting_without_its_effect_is_warned_of(options: dict[str, Any], sentence: str) -> None:
    check_found(check_settings(ServiceSettings(**options)), (WARNING, sentence))


def test_default_settings_are_at_odds_with_nothing() -> None:
    settings = ServiceSettings()
    found = [*check_settings(settings), *check_folders(settings), *check_access(settings)]
    assert found == []


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    add_key(file, "alice", frozenset({"predict", "read"}), None)
    return file


def with_keys(file: Path, **options: Any) -> ServiceSettings:
    return ServiceSettings(api_keys_file=file, **options)


def test_good_keys_are_counted(keys: Path) -> None:
    check_found(check_access(with_keys(keys)), (FINE, "1 key is good."))


def test_unusable_keys_are_an_error_in_the_words_of_the_start(keys: Path) -> None:
    no_auth = "--api-keys-file: --no-auth is given too; give one of them."
    check_found(check_access(with_keys(keys, auth=False)), (ERROR, no_auth))
    keys.chmod(0o666)
    changeable = "--api-keys-file: … may be changed by other users, …; chmod 600 …"
    check_found(check_access(with_keys(keys)), (ERROR, changeable))
    missing = "--api-keys-file: … cannot be read (No such file or directory); make it with …"
    check_found(check_access(with_keys(keys.with_name("none"))), (ERROR, missing))
    keys.chmod(0o600)
    keys.write_text("{}")
    wrong = "--api-keys-file: … is no file of keys (…); restore it, …"
    check_found(check_access(with_keys(keys)), (ERROR, wrong))


def test_keys_that_everybody_can_read_are_warned_of(keys: Path) -> None:
    keys.chmod(0o644)
    sentence = "… can be read by every user of this machine; …chmod 600 …"
    check_found(check_access(with_keys(keys)), (WARNING, sentence), (FINE, "1 key is good."))


def test_keys_that_are_of_no_use_are_warned_of(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public_control = with_keys(keys, control="anyone")
    no_control = "--control anyone has no effect, as no key in … has the scope control; add one, …"
    check_found(check_access(public_control), (WARNING, no_control), (FINE, "1 key is good."))
    content = read_key_file(keys)
    past = datetime.now(UTC) - timedelta(days=1)
    expired = content.keys[0].model_copy(update={"expires": past})
    keys.write_text(content.model_copy(update={"keys": (expired,)}).model_dump_json())
    none_good = "… has no key that is good, so every client is refused; make one …"
    check_found(check_access(with_keys(keys)), (WARNING, none_good))
    monkeypatch.setattr(key_file_changes, "_new_id", lambda: "0" * 8)
    add_key(keys, "prometheus", frozenset({"metrics"}), None)
    check_found(
        check_access(with_keys(keys)),
        (WARNING, "alice has expired; revoke …"),
        (WARNING, "no key in … has the scope predict, so no client may send images; add one."),
        (FINE, "1 key is good."),
    )


def test_public_control_without_keys_is_warned_of() -> None:
    sentence = "--control anyone lets whoever reaches the port change what serves; give …"
    check_found(check_access(ServiceSettings(control="anyone")), (WARNING, sentence))


def test_free_port_is_fine_and_free_afterwards() -> None:
    check_found(check_listening(ServiceSettings(port=0)), (FINE, "a free one can be listened on."))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(2):
        sentence = f"http://127.0.0.1:{port} can be listened on."
        check_found(check_listening(ServiceSettings(port=port)), (FINE, sentence))


def test_port_that_others_reach_without_keys_is_warned_of() -> None:
    hint = "whoever reaches this port may send requests; give --api-keys-file, or --no-auth …"
    listened = "a free one can be listened on."
    open_port = ServiceSettings(host="0.0.0.0", port=0)
    check_found(check_listening(open_port), (WARNING, hint), (FINE, listened))
    meant = ServiceSettings(host="0.0.0.0", port=0, auth=False)
    check_found(check_listening(meant), (FINE, listened))


def test_taken_port_is_an_error_unless_a_service_has_it(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as control:
        port = taken.getsockname()[1]
        settings = ServiceSettings(port=port, control_socket=path)
        sentence = f"Cannot listen on 127.0.0.1 port {port} (Address already in use); choose …"
        check_found(check_listening(settings), (ERROR, sentence))
        control.bind(str(path))
        control.listen()
        running = f"a running Dropserve has 127.0.0.1 port {port}; after it has ended, these …"
        check_found(check_listening(settings), (FINE, running))


def test_control_listener_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServiceSettings(port=0, control_port=taken.getsockname()[1])
        in_use = "Cannot listen for control (Address already in use); choose another place with …"
        check_found(check_listening(settings), (ERROR, in_use), (FINE, "a free one …"))
    nowhere = ServiceSettings(port=0, control_socket=tmp_path / "none" / "control.sock")
    missing = "Cannot listen for control (No such file or directory); choose another place with …"
    check_found(check_listening(nowhere), (ERROR, missing), (FINE, "a free one …"))
    settings = ServiceSettings(port=0, control_socket=tmp_path / "control.sock")
    check_found(check_listening(settings), (FINE, "a free one …"))
    assert list(tmp_path.iterdir()) == []


def test_more_connections_than_open_files_are_warned_of() -> None:
    assert list(check_descriptors(ServiceSettings(max_connections=10))) == []
    many = ServiceSettings(max_connections=10**9)
    sentence = "the limit (ulimit -n) allows … connections a worker; raise it, or lower …"
    check_found(check_descriptors(many), (WARNING, sentence))


def test_folders_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for option, flag in (("control_folder", "--control-folder"), ("traffic_log", "--traffic-log")):
        settings = ServiceSettings.model_validate({option: file / "below"})
        check_found(check_folders(settings), (ERROR, f"{flag}: {file} is no folder; name …"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_this_user_may_not_write_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    settings = ServiceSettings(control_folder=tmp_path / "state")
    sentence = f"--control-folder: {tmp_path} cannot be written, so …state cannot be made; give …"
    check_found(check_folders(settings), (ERROR, sentence))


def forbid(monkeypatch: pytest.MonkeyPatch, forbidden: Path) -> None:
    """Let this user have no right to a file, even if it is root."""
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != forbidden)


def test_relative_folder_that_exists_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    forbid(monkeypatch, tmp_path / "logs")
    sentence = f"--traffic-log: {tmp_path}/logs cannot be written; give this user access to it, …"
    settings = ServiceSettings(traffic_log=Path("logs"))
    check_found(check_folders(settings), (ERROR, sentence))


def test_version_that_cannot_be_read_is_known_to_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "pets" / "1"
    version.mkdir(parents=True)
    forbid(monkeypatch, version)
    assert list(check_folders(ServiceSettings(models_folder=tmp_path))) == []


def test_model_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    (pets / "1").mkdir(parents=True)
    settings = ServiceSettings(models_folder=tmp_path)
    assert list(check_folders(settings)) == []
    pets.rename(tmp_path / ".pets")
    pets.symlink_to(tmp_path / "none")
    sentence = f"{pets} cannot be read, so the service does not know of it; give this user …"
    check_found(check_folders(settings), (WARNING, sentence))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everywhere")
def test_model_that_this_user_may_not_read_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir(mode=0o300)
    sentence = f"{tmp_path}/pets cannot be read, so the service does not know of it; give …"
    check_found(check_folders(ServiceSettings(models_folder=tmp_path)), (WARNING, sentence))


def test_damaged_rollouts_are_an_error_in_the_words_of_readiness(tmp_path: Path) -> None:
    (tmp_path / "releases.json").write_text("{")
    found = check_folders(ServiceSettings(control_folder=tmp_path))
    check_found(found, (ERROR, f"{tmp_path}: releases.json cannot be read (…); mend or remove it."))


def test_traffic_log_needs_room_on_its_disk(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    small = ServiceSettings(traffic_log=folder, traffic_log_max_bytes=2**25)
    check_found(check_folders(small), (FINE, f"{folder} can be written, and … MiB are free there."))
    large = ServiceSettings(traffic_log=folder, traffic_log_max_bytes=2**60)
    sentence = "the disk of … has … MiB for it, less than --traffic-log-max-bytes, …; free …"
    check_found(check_folders(large), (WARNING, sentence))
    assert not folder.exists()


def test_feedback_needs_room_on_its_disk(tmp_path: Path) -> None:
    file = tmp_path / "below" / "feedback.db"
    small = ServiceSettings(feedback=file, feedback_max_bytes=2**25)
    check_found(check_folders(small), (FINE, f"{file} can be written, and … MiB are free there."))
    large = ServiceSettings(feedback=file, feedback_max_bytes=2**60)
    sentence = "the disk of … has … MiB for it, less than --feedback-max-bytes, …; free …"
    check_found(check_folders(large), (WARNING, sentence))
    (tmp_path / "below").touch()
    check_found(check_folders(small), (ERROR, "--feedback: … is no folder; name another one."))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a host's name\n", "--feedback: … is damaged, or no feedback file (…); move it away …"),
        (None, "--feedback: … cannot be opened (Is a directory); give this user access to it …"),
    ],
)
def test_file_that_is_none_of_feedback_is_an_error_in_the_words_of_the_service(
    content: bytes | None, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "feedback.db"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    check_found(check_folders(ServiceSettings(feedback=file)), (ERROR, sentence))
    assert list(tmp_path.iterdir()) == [file]


def test_more_threads_than_processors_are_warned_of() -> None:
    processors = available_processors()
    assert list(check_processors(ServiceSettings(workers=processors))) == []
    many = ServiceSettings(workers=processors, threads=2)
    sentence = f"--workers {processors} with --threads 2 each would share …; lower them until …"
    check_found(check_processors(many), (WARNING, sentence))


@pytest.mark.parametrize(
    ("workers", "available", "level", "sentence"),
    [
        (2, 4000, FINE, "2 workers take about 200 MiB with these versions, of 4,000 MiB, on …"),
        (1, 300, WARNING, "1 worker takes about 100 MiB …, which leaves no room for …256 MiB …"),
        (4, 399, ERROR, "4 workers take about 400 MiB …, and there are 399 MiB, so the system …"),
    ],
)
def test_workers_have_to_fit_into_memory(
    workers: int, available: int, level: Level, sentence: str
) -> None:
    found = check_memory(ServiceSettings(workers=workers), 100 * MIB, available * MIB)
    check_found(found, (level, sentence))


def test_control_port_that_is_the_public_one_is_an_error_as_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = ServiceSettings(port=port, control_port=port)
    in_use = "Cannot listen for control (Address already in use); choose another place with …"
    check_found(check_listening(settings), (ERROR, in_use), (FINE, "… can be listened on."))


def test_rollouts_file_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.json"
    settings = ServiceSettings(models_folder=tmp_path, rollouts=file)
    missing = f"{file}: rollouts.json (--rollouts) cannot be followed (No such file or directory)."
    check_found(check_folders(settings), (ERROR, missing))
    file.write_text('{"models": {"digits": {"version": 1}}}')
    valid = f"{file} is valid; commands that would change it are refused."
    check_found(check_folders(settings), (FINE, valid))


def test_label_studio_needs_a_token_that_nobody_else_reads(tmp_path: Path) -> None:
    token = tmp_path / "token"
    near, far = "http://localhost:8080", "http://studio.example.org"

    def found(url: str | None, file: Path | None = token) -> Iterable[Finding]:
        return check_label_studio(ServiceSettings(label_studio=url, label_studio_token_file=file))

    check_found(found(None, None))
    check_found(found(near), (ERROR, "--label-studio-token-file: … cannot be read (…); name …"))
    token.write_text("two words")
    check_found(found(near), (ERROR, "--label-studio-token-file: … holds no token; write …"))
    token.write_text("0123\n")
    check_found(found(near), (FINE, f"images of tasks are fetched from {near}, with a token."))
    check_found(found(far), (WARNING, f"the token is sent to {far} readable …; use https://, or …"))
    check_found(found(far, None), (WARNING, "… no token is sent; give one with --label-…"))


def test_provider_that_onnx_runtime_lacks_is_an_error() -> None:
    assert list(check_provider(ServiceSettings())) == []
    found = check_provider(ServiceSettings(provider="cuda"))
    check_found(found, (ERROR, "--provider cuda: …, then pip install 'onnxruntime-gpu[…"))
