"""Tests of the service's settings: flags, environment variables, file, and error messages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.cli_and_env_settings import load, load_or_exit
from service.settings import ServiceSettings
from tests.service.serving import check_sentence

FIELDS = ServiceSettings.model_fields

CHANGED: dict[str, Any] = {
    "host": "::1",
    "port": 1,
    "root_path": "/below/this",
    "trusted_proxies": "10.0.0.0/8, ::1",
    "allowed_hosts": "example.org, *.example.net",
    "cors_origins": "https://example.org, http://localhost:3000",
    "client_requests_per_second": 2.5,
    "client_images_per_second": 20.0,
    "client_burst_seconds": 3.0,
    "workers": 2,
    "threads": 3,
    "provider": "cuda",
    "models_folder": Path("else where"),
    "models_source": "s3://bucket/models",
    "models_cache": Path("fetched here"),
    "models_source_seconds": 5.0,
    "models_source_versions": 3,
    "models_source_max_bytes": 2**30,
    "models": "digits@3, letters",
    "served_model_name": "digits",
    "watch_seconds": 0.5,
    "load_timeout_seconds": 7.5,
    "control": "anyone",
    "control_socket": Path("a socket"),
    "control_port": 22,
    "control_folder": Path("kept here"),
    "rollouts": Path("wanted.json"),
    "drift_level": 0.05,
    "traffic_log": Path("said and done"),
    "traffic_log_images": True,
    "traffic_log_max_bytes": 2**26,
    "traffic_log_segment_bytes": 2**21,
    "traffic_log_segment_seconds": 1.5,
    "feedback": Path("true labels.db"),
    "feedback_max_bytes": 2**24,
    "feedback_max_answers": 10,
    "feedback_alarm_rate": 0.05,
    "label_studio": "https://studio.example.org/ls",
    "label_studio_token_file": Path("its token"),
    "default_model": "digits",
    "default_samples": 7,
    "api_keys_file": Path("/k"),
    "auth": False,
    "tls_certificate": Path("the certificate"),
    "tls_key": Path("its key"),
    "tls_client_ca": Path("of clients"),
    "default_seed": 2**63 - 1,
    "uncertainty": False,
    "max_samples": 9,
    "max_images": 10,
    "max_body_bytes": 11,
    "max_image_pixels": 12,
    "max_request_pixels": 13,
    "max_concurrent_requests": 14,
    "max_connections": 23,
    "max_buffered_bytes": 24,
    "max_batch_rows": 15,
    "max_queue_rows": 16,
    "head_timeout_seconds": 0.25,
    "write_timeout_seconds": 0.26,
    "body_timeout_seconds": 0.17,
    "decode_timeout_seconds": 0.27,
    "decode_processes": 28,
    "fast_path": False,
    "inference_timeout_seconds": 0.18,
    "keep_alive_seconds": 19,
    "drain_delay": 2.5,
    "grace_seconds": 21,
    "log_level": "debug",
    "log_format": "json",
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings' variables, after the test also those that `to_environment` sets."""
    for name in FIELDS:
        monkeypatch.setenv(f"DROPSERVE_{name.upper()}", "")
        monkeypatch.delenv(f"DROPSERVE_{name.upper()}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_changed_covers_every_setting_with_a_value_that_is_not_the_default() -> None:
    assert set(CHANGED) == set(FIELDS) - {"config"}
    defaults = ServiceSettings().model_dump()
    assert all(defaults[name] != value for name, value in CHANGED.items())


NEEDED = {
    "max_samples": ["--default-samples", "1"],
    "tls_certificate": ["--tls-key", "k"],
    "label_studio_token_file": ["--label-studio", "https://studio.example.org"],
    "tls_key": ["--tls-certificate", "c"],
    "models_cache": ["--models-source", "s3://bucket/models"],
    "tls_client_ca": ["--tls-certificate", "c", "--tls-key", "k"],
}
"""What a setting cannot be without."""


@pytest.mark.parametrize("name", CHANGED)
def test_every_setting_can_be_set_by_flag_and_environment_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = CHANGED[name]
    switches = {True: [flag(name)], False: [f"--no-{flag(name)[2:]}"]}
    options = switches[value] if isinstance(value, bool) else [flag(name), str(value)]
    base = NEEDED.get(name, [])
    assert getattr(load(ServiceSettings, base + options), name) == value
    monkeypatch.setenv(f"DROPSERVE_{name.upper()}", str(value))
    assert getattr(load(ServiceSettings, base), name) == value


def test_every_setting_can_be_set_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    values = {name: str(each) if isinstance(each, Path) else each for name, each in CHANGED.items()}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()))
    settings = load(ServiceSettings, ["--config", str(file)])
    assert settings.model_dump(exclude={"config"}) == CHANGED


def test_flag_overrides_environment_and_environment_overrides_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.toml"
    file.write_text("port = 1\nworkers = 1\nthreads = 2\n")
    monkeypatch.setenv("DROPSERVE_CONFIG", str(file))
    monkeypatch.setenv("DROPSERVE_PORT", "3")
    monkeypatch.setenv("DROPSERVE_WORKERS", "3")
    settings = load(ServiceSettings, ["--port", "4"])
    assert (settings.port, settings.workers, settings.threads) == (4, 3, 2)


@pytest.mark.parametrize("changed", [{}, CHANGED], ids=["defaults", "all changed"])
def test_workers_read_their_parents_settings_from_the_environment(
    changed: dict[str, Any],
) -> None:
    settings = ServiceSettings(**changed)
    settings.to_environment()
    assert ServiceSettings() == settings


def test_worker_does_not_need_its_parents_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text("port = 1\n")
    load(ServiceSettings, ["--config", str(file), "--threads", "2"]).to_environment()
    file.unlink()
    settings = ServiceSettings()
    assert (settings.port, settings.threads, settings.config) == (1, 2, None)


INVALID_OPTIONS = {
    ("--prot", "1"): "unrecognized arguments: --prot 1; --help lists the options.",
    ("serve",): "unrecognized arguments: serve; --help lists the options.",
    ("--port",): "argument --port: expected one argument; --help lists the options.",
    ("--port", "70000"): "--port: input should be less than or equal to 65535, but got '70000'.",
    ("--port", "-1"): "--port: input should be greater than or equal to 0, but got '-1'.",
    ("--port", "http"): "--port: input should be a valid integer, …, but got 'http'.",
    ("--host", ""): "--host: it names no address; write one, or 0.0.0.0 for all.",
    ("--host", "[]"): "--host: it names no address; write one, or 0.0.0.0 for all.",
    ("--workers", "0"): "--workers: input should be greater than or equal to 1, but got '0'.",
    ("--default-samples", "0"): "--default-samples: input should be greater than or equal to 1, …",
    ("--default-samples", "2000"): "--default-samples: 2000 is more than --max-samples, 1024; …",
    ("--max-samples", "65537"): "--max-samples: input should be less than or equal to 65536, …",
    ("--default-seed", "-1"): "--default-seed: input should be greater than or equal to 0, …",
    ("--body-timeout-seconds", "0"): "--body-timeout-seconds: input should be greater than 0, …",
    ("--body-timeout-seconds", "nan"): "--body-timeout-seconds: input should be a finite number, …",
    (
        "--decode-timeout-seconds",
        "inf",
    ): "--decode-timeout-seconds: input should be a finite number, …",
    ("--label-studio-token-file", "t"): (
        "--label-studio-token-file: it is sent to a Label Studio; give --label-studio, too."
    ),
    ("--label-studio", "studio"): (
        "--label-studio: it is no http:// or https:// address; write one such as "
        "https://label-studio.example.org."
    ),
    ("--tls-key", "k"): "--tls-key: it needs its certificate; give --tls-certificate, too.",
    ("--tls-certificate", "c"): "--tls-certificate: it needs its private key; give --tls-key, too.",
    ("--tls-client-ca", "c"): "--tls-client-ca: clients show certificates in TLS alone; give …",
    ("--root-path", "x"): "--root-path: 'x' is no path prefix; write /NAME or /NAME/NAME, …",
    ("--root-path", "/v2/mine"): "--root-path: the service has routes of its own below /v2, …",
    ("--trusted-proxies", "::1,me"): "--trusted-proxies: 'me' is neither an address nor a …",
    ("--log-format", "xml"): "--log-format: input should be 'console' or 'json', but got 'xml'.",
    (
        "--log-level",
        "loud",
    ): "--log-level: input should be 'debug', 'info', 'warning' or 'error', …",
    ("--config", "/no/file"): "--config: cannot read /no/file: No such file or directory.",
}


@pytest.mark.parametrize("arguments", INVALID_OPTIONS, ids=" ".join)
def test_invalid_option_exits_with_one_sentence_and_status_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        load_or_exit(ServiceSettings, list(arguments))
    written = capsys.readouterr()
    assert exited.value.code == 2
    assert written.out == ""
    assert written.err.count("\n") == 1
    check_sentence(written.err.rstrip("\n"), INVALID_OPTIONS[arguments])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = = 1", "--config: … is not valid TOML: …."),
        ("prot = 1", "--prot is not an option; --help lists them."),
        ("port = 'x'", "--port: input should be a valid integer, …, but got 'x'."),
    ],
)
def test_invalid_settings_file_exits_with_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    file = tmp_path / "service.toml"
    file.write_text(text)
    with pytest.raises(SystemExit) as exited:
        load_or_exit(ServiceSettings, ["--config", str(file)])
    assert exited.value.code == 2
    check_sentence(capsys.readouterr().err.rstrip("\n"), sentence)


def test_help_shows_description_default_and_variable_of_every_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exited:
        load(ServiceSettings, ["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert exited.value.code == 0
    for name, field in FIELDS.items():
        assert field.description, name
        expected = f"{field.description} (default: {field.default}) [env: DROPSERVE_{name.upper()}]"
        assert flag(name) in text
        assert expected in text


def test_setting_names_end_with_their_units() -> None:
    for name, field in FIELDS.items():
        description = field.description or ""
        for unit in ("seconds", "bytes", "pixels"):
            if f", {unit}" in description:
                assert name.endswith(unit)
