"""The check of certificates, with those of an authority of the tests."""

from pathlib import Path
from typing import Any

from service.check.certificate_check import check_certificate
from service.check.listening_check import check_listening
from service.settings import ServiceSettings
from tests.certificates import Authority, PairFiles
from tests.service.check.test_checks import ERROR, FINE, WARNING, check_found


def with_pair(pair: PairFiles, **options: Any) -> ServiceSettings:
    return ServiceSettings(tls_certificate=pair.certificate, tls_key=pair.key, **options)


def test_service_without_a_certificate_has_no_finding() -> None:
    assert list(check_certificate(ServiceSettings())) == []


def test_good_certificate_and_client_ca_are_fine_until_they_end(tmp_path: Path) -> None:
    authority = Authority()
    settings = with_pair(authority.issue(tmp_path), tls_client_ca=authority.write(tmp_path))
    until = (FINE, f"{tmp_path}/server.pem is good until …Z.")
    check_found(check_certificate(settings), until, (FINE, f"{tmp_path}/ca.pem is good until …Z."))


def test_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    settings = with_pair(Authority().issue(tmp_path, days=2.9))
    sentence = f"{tmp_path}/server.pem ends at …Z, in 3 days; renew it."
    check_found(check_certificate(settings), (WARNING, sentence))


def test_private_key_that_everybody_can_read_is_a_warning(tmp_path: Path) -> None:
    pair = Authority().issue(tmp_path)
    pair.key.chmod(0o644)
    sentence = f"{pair.key} can be read by every user of this machine, …; chmod 600 {pair.key}."
    found = check_certificate(with_pair(pair))
    check_found(found, (WARNING, sentence), (FINE, "… is good until …Z."))


def test_unusable_certificate_is_an_error_in_the_words_of_the_start(tmp_path: Path) -> None:
    settings = with_pair(Authority().issue(tmp_path, days=-1))
    sentence = f"--tls-certificate: {tmp_path}/server.pem has expired; renew the certificate."
    check_found(check_certificate(settings), (ERROR, sentence))


def test_keys_without_tls_are_a_warning_where_others_reach_the_port(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"host": "0.0.0.0", "port": 0, "api_keys_file": tmp_path / "keys.json"}
    listened = (FINE, "a free one can be listened on.")
    sentence = "keys can be read on their way by others, …; give --tls-certificate and --tls-key, …"
    check_found(check_listening(ServiceSettings(**keys)), (WARNING, sentence), listened)
    pair = Authority().issue(tmp_path)
    check_found(check_listening(with_pair(pair, **keys)), listened)
