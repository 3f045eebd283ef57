"""Tests of how the certificate follows its files."""

import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.observability.metrics_recorder import Metrics
from service.tls.certificate_files import TlsFiles
from service.tls.server_certificate import ServerCertificate
from tests.certificates import Authority, PairFiles
from tests.service.resource_limits import no_descriptors

EXPIRY = "dropserve_tls_certificate_expiry_timestamp_seconds"


def follow(pair: PairFiles, metrics: Metrics | None = None) -> ServerCertificate:
    return ServerCertificate(TlsFiles(pair.certificate, pair.key), metrics or Metrics())


def refresh_twice(certificate: ServerCertificate) -> list[str]:
    """Look at the files until they count as unchanged; return the events of the log."""
    with capture_logs() as log:
        certificate.refresh()
        certificate.refresh()
    return [line["event"] for line in log]


def test_changed_pair_is_taken_for_new_connections_and_its_end_is_on_the_metrics(
    tmp_path: Path,
) -> None:
    authority, metrics = Authority(), Metrics()
    pair = authority.issue(tmp_path, days=2)
    certificate = follow(pair, metrics)
    first = certificate.context
    assert refresh_twice(certificate) == []
    assert certificate.context is first
    newer = authority.issue(tmp_path, days=60)
    assert refresh_twice(certificate) == ["certificate read"]
    assert certificate.context is not first
    ends = metrics.registry.get_sample_value(EXPIRY, {"certificate": "server"})
    assert ends == pytest.approx(newer.ends, abs=1)
    assert f'{EXPIRY}{{certificate="server"}}' in metrics.render().decode()


def test_pair_that_is_being_replaced_is_not_read_before_it_is_whole(tmp_path: Path) -> None:
    """Certificate and key are two files, so that for a moment they do not match."""
    authority = Authority()
    certificate = follow(authority.issue(tmp_path))
    first = certificate.context
    (tmp_path / "new").mkdir()
    newer = authority.issue(tmp_path / "new")
    with capture_logs() as log:
        newer.certificate.rename(tmp_path / "server.pem")
        certificate.refresh()
        newer.key.rename(tmp_path / "server.key")
        certificate.refresh()
        assert (log, certificate.context) == ([], first)
        certificate.refresh()
    assert [line["event"] for line in log] == ["certificate read"]
    assert certificate.context is not first


@pytest.mark.parametrize("damage", ["half", "mismatch", "removed", "expired"])
def test_pair_that_cannot_be_used_keeps_the_one_before_and_is_logged_once(
    tmp_path: Path, damage: str
) -> None:
    authority = Authority()
    pair = authority.issue(tmp_path)
    certificate = follow(pair)
    first = certificate.context
    match damage:
        case "half":
            pair.key.write_bytes(pair.key.read_bytes()[:100])
        case "mismatch":
            pair.key.write_bytes(authority.issue(tmp_path, name="other").key.read_bytes())
        case "removed":
            pair.certificate.unlink()
        case _:
            authority.issue(tmp_path, days=-1)
    with capture_logs() as log:
        for _ in range(4):
            certificate.refresh()
    assert [(line["event"], line["log_level"], line["kept_one"]) for line in log] == [
        ("certificate not read", "error", True)
    ]
    assert certificate.context is first
    authority.issue(tmp_path)
    assert refresh_twice(certificate) == ["certificate read"]


def test_pair_that_could_not_be_opened_for_a_moment_is_read_at_the_next_look(
    tmp_path: Path,
) -> None:
    authority = Authority()
    certificate = follow(authority.issue(tmp_path))
    first = certificate.context
    authority.issue(tmp_path)
    with no_descriptors():
        assert refresh_twice(certificate) == ["certificate not read"]
    assert certificate.context is first
    assert refresh_twice(certificate) == ["certificate read"]
    assert certificate.context is not first


def test_worker_that_finds_no_usable_pair_has_one_once_there_is_one(tmp_path: Path) -> None:
    pair = PairFiles(tmp_path / "server.pem", tmp_path / "server.key", 0)
    certificate = follow(pair)
    assert certificate.context is None
    Authority().issue(tmp_path)
    assert refresh_twice(certificate) == ["certificate read"]
    assert isinstance(certificate.context, ssl.SSLContext)


def test_key_of_session_tickets_is_replaced_once_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = follow(Authority().issue(tmp_path))
    first = certificate.context
    certificate.refresh()
    assert certificate.context is first
    monkeypatch.setattr(certificate, "_loaded_at", certificate._loaded_at - 86_401)
    certificate.refresh()
    assert certificate.context not in (None, first)
