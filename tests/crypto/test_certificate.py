"""Certificates: the same bytes each time, named for their key, unable to issue others."""

from __future__ import annotations

import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from crypto.certificate import (
    certificate_public_key,
    check_certificate,
    fingerprint,
    key_fingerprint,
    make_certificate,
    private_key_pem,
)
from crypto.identity import SigningKey
from node.errors import ConfigError

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))


def private(key: SigningKey) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.seed)


def builder(
    name: str, public: SigningKey = KEY, *, issuer: str | None = None
) -> x509.CertificateBuilder:
    def common(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(common(name))
        .issuer_name(common(issuer or name))
        .public_key(private(public).public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
    )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def test_one_key_has_one_certificate() -> None:
    made = make_certificate(KEY)
    assert made == make_certificate(SigningKey.from_seed(KEY.seed))
    assert made != make_certificate(OTHER)
    assert certificate_public_key(made) == KEY.public
    assert fingerprint(made) == key_fingerprint(KEY.public)
    check_certificate(made, KEY.public)


def test_it_carries_name_and_validity_as_the_design_says() -> None:
    certificate = x509.load_der_x509_certificate(make_certificate(KEY))
    (common,) = certificate.subject
    assert common.value == key_fingerprint(KEY.public)
    assert certificate.issuer == certificate.subject
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999
    assert 0 < certificate.serial_number < 2**159


def test_the_key_goes_to_openssl_as_it_is() -> None:
    key = serialization.load_pem_private_key(private_key_pem(KEY), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.public_key().public_bytes_raw() == KEY.public


def test_every_flipped_bit_is_found() -> None:
    made = make_certificate(KEY)
    for at in range(len(made)):
        for bit in range(8):
            bad = bytearray(made)
            bad[at] ^= 1 << bit
            with pytest.raises(ConfigError):
                check_certificate(bytes(bad), KEY.public)


NAME = key_fingerprint(KEY.public)
BASIC = x509.BasicConstraints(ca=False, path_length=None)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (make_certificate(OTHER), "not the one that belongs"),
        (
            der(
                builder(key_fingerprint(OTHER.public))
                .add_extension(BASIC, critical=True)
                .sign(private(KEY), None)
            ),
            "not the one that belongs",
        ),
        (
            der(
                builder(NAME, issuer=key_fingerprint(OTHER.public))
                .add_extension(BASIC, critical=True)
                .sign(private(OTHER), None)
            ),
            "not the one that belongs",
        ),
        (
            der(builder(NAME).add_extension(BASIC, critical=True).sign(private(OTHER), None)),
            "not the one that belongs",
        ),
        (
            der(
                builder(NAME)
                .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
                .sign(private(KEY), None)
            ),
            "not the one that belongs",
        ),
        (der(builder(NAME).sign(private(KEY), None)), "not the one that belongs"),
        (make_certificate(KEY)[:-64] + bytes(64), "not signed by its own key"),
        (make_certificate(KEY)[:-1], "not the one that belongs"),
        (make_certificate(KEY) + b"\x00", "not the one that belongs"),
        (b"", "not the one that belongs"),
    ],
)
def test_a_certificate_made_otherwise_is_refused(made: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_certificate(made, KEY.public)


def test_the_bytes_for_a_known_key_never_change() -> None:
    """Rosters pin them: another encoding by another library version would cut a node off."""
    digest = hashlib.sha256(make_certificate(KEY)).hexdigest()
    assert digest == "3bd532f6803133f1bffe33f13bd68476af11d47e96ba1ec0bb4ba309b5e2fd74"


@pytest.mark.parametrize("made", [b"", b"x", bytes(300), make_certificate(KEY)[:-1]])
def test_what_is_no_certificate_has_no_key(made: bytes) -> None:
    with pytest.raises(ConfigError, match=r"not X\.509"):
        certificate_public_key(made)


def test_a_huge_certificate_is_not_parsed() -> None:
    with pytest.raises(ConfigError, match="5000 bytes"):
        certificate_public_key(bytes(5000))


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_what_is_no_key_has_no_certificate(public: bytes) -> None:
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        check_certificate(make_certificate(KEY), public)


def test_another_kind_of_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(ConfigError, match="not Ed25519"):
        fingerprint(der(certificate))
