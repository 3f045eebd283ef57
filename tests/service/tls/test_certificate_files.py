"""Tests of the files of a certificate: what is taken, and the sentence for what is refused."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from service.tls.certificate_files import TlsFileError, TlsFiles, load_certificate
from tests.certificates import Authority, PairFiles
from tests.service.serving import check_sentence

DAY = 86_400


@pytest.fixture
def pair(tmp_path: Path) -> PairFiles:
    return Authority().issue(tmp_path)


def expired(folder: Path, _pair: PairFiles) -> TlsFiles:
    late = Authority().issue(folder, days=-1)
    return TlsFiles(late.certificate, late.key)


def mismatched(folder: Path, pair: PairFiles) -> TlsFiles:
    return TlsFiles(pair.certificate, Authority().issue(folder, name="other").key)


def of_another_kind(folder: Path, pair: PairFiles) -> TlsFiles:
    rsa = Authority().issue(folder, name="other", key_type=trustme.KeyType.RSA)
    return TlsFiles(pair.certificate, rsa.key)


def missing(folder: Path, pair: PairFiles) -> TlsFiles:
    return TlsFiles(folder / "none.pem", pair.key)


def a_folder(folder: Path, pair: PairFiles) -> TlsFiles:
    return TlsFiles(pair.certificate, folder)


def swapped(_folder: Path, pair: PairFiles) -> TlsFiles:
    return TlsFiles(pair.key, pair.certificate)


def half_written(_folder: Path, pair: PairFiles) -> TlsFiles:
    content = pair.key.read_bytes()
    pair.key.write_bytes(content[: len(content) // 2])
    return TlsFiles(pair.certificate, pair.key)


def damaged(_folder: Path, pair: PairFiles) -> TlsFiles:
    pair.certificate.write_text(pair.certificate.read_text().replace("M", "N"))
    return TlsFiles(pair.certificate, pair.key)


def damaged_key(_folder: Path, pair: PairFiles) -> TlsFiles:
    pair.key.write_text(pair.key.read_text().replace("M", "N"))
    return TlsFiles(pair.certificate, pair.key)


def protected(_folder: Path, pair: PairFiles) -> TlsFiles:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    pair.key.write_bytes(content)
    return TlsFiles(pair.certificate, pair.key)


def no_authority(folder: Path, pair: PairFiles) -> TlsFiles:
    (folder / "empty.pem").touch()
    return TlsFiles(pair.certificate, pair.key, folder / "empty.pem")


def leaf_as_authority(_folder: Path, pair: PairFiles) -> TlsFiles:
    return TlsFiles(pair.certificate, pair.key, pair.certificate)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (expired, "--tls-certificate: …server.pem has expired; renew the certificate."),
        (mismatched, "--tls-key: …other.key is not the key of …server.pem; name the two that …"),
        (of_another_kind, "--tls-key: …other.key is not the key of …server.pem; name the two …"),
        (missing, "--tls-certificate: …none.pem cannot be read (No such file or directory); …"),
        (a_folder, "--tls-key: … is no file of at most 1 MiB; name a file in PEM."),
        (swapped, "--tls-certificate: …server.key holds no certificate in PEM; name one that …"),
        (half_written, "--tls-key: …server.key holds no private key in PEM; name one that does."),
        (damaged, "--tls-certificate: …server.pem cannot be used (unreadable); name another …"),
        (damaged_key, "--tls-key: …server.key is damaged; name the certificate's private key …"),
        (protected, "--tls-key: …server.key is protected by a password, which a service cannot …"),
        (no_authority, "--tls-client-ca: …empty.pem holds no certificate in PEM; name the …"),
        (leaf_as_authority, "--tls-client-ca: …server.pem holds no certificate of a CA; name …"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_one_sentence(
    files: Callable[[Path, PairFiles], TlsFiles], sentence: str, tmp_path: Path, pair: PairFiles
) -> None:
    with pytest.raises(TlsFileError) as raised:
        load_certificate(files(tmp_path, pair))
    check_sentence(str(raised.value), sentence)


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_good_pair_is_taken_and_its_end_is_known(tmp_path: Path, key_type: trustme.KeyType) -> None:
    authority = Authority()
    pair = authority.issue(tmp_path, days=30, key_type=key_type)
    found = load_certificate(TlsFiles(pair.certificate, pair.key, authority.write(tmp_path)))
    leaf = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    leaf.load_verify_locations(authority.write(tmp_path))
    (root,) = leaf.get_ca_certs()
    assert found.expires == pytest.approx(pair.ends, abs=1)
    assert found.client_ca_expires == ssl.cert_time_to_seconds(str(root["notAfter"]))
    assert found.context.verify_mode is ssl.CERT_REQUIRED


def test_only_sound_protocols_and_ciphers_are_offered(pair: PairFiles) -> None:
    context = load_certificate(TlsFiles(pair.certificate, pair.key)).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode is ssl.CERT_NONE
    ciphers = context.get_ciphers()
    assert {each["protocol"] for each in ciphers} == {"TLSv1.2", "TLSv1.3"}
    for each in ciphers:
        assert each["aead"]
        assert each["protocol"] == "TLSv1.3" or each["name"].startswith("ECDHE-")
