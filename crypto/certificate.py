"""The node's X.509 certificate: self-signed, Ed25519, the same bytes whenever it is made.

It only carries the node key through TLS. Who is trusted stands in the roster, which pins the
certificate's exact bytes; expiry lives there too, so the validity is as wide as X.509 allows.
The common name is the fingerprint of the key: two pinned certificates with one subject would
break OpenSSL's verification of both.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from crypto.identity import SigningKey, verify_raw
from node.errors import ConfigError

CERTIFICATE_BYTES_MAX: Final = 1024  # ours have about 400
_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5


def make_certificate(node: SigningKey) -> bytes:
    """The DER certificate of a node key; deterministic, since Ed25519 signatures are (RFC 8032)."""
    name = _name(node.public)
    digest = hashlib.blake2b(node.public, digest_size=19, person=b"grapevine/serial")
    private = Ed25519PrivateKey.from_private_bytes(node.seed)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        # 152 bits, the top one set: positive, never zero, under the 20 octets of RFC 5280.
        .serial_number(int.from_bytes(digest.digest(), "big") | 1 << 151)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        # No member may issue certificates for others.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, None)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def private_key_pem(node: SigningKey) -> bytes:
    """The node key in PKCS #8 PEM, as OpenSSL wants it. Secret: keep it in memory."""
    return Ed25519PrivateKey.from_private_bytes(node.seed).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_fingerprint(public: bytes) -> str:
    """64 hexadecimal characters (BLAKE2b-256) that name a node key."""
    return hashlib.blake2b(public, digest_size=32, person=b"grapevine/key").hexdigest()


def fingerprint(der: bytes) -> str:
    """The fingerprint of the key in a certificate. Raises ConfigError if it is none."""
    return key_fingerprint(certificate_public_key(der))


def certificate_public_key(der: bytes) -> bytes:
    """The 32 bytes of the certificate's Ed25519 key. Raises ConfigError if it has none."""
    return _public(_parse(der))


def check_certificate(der: bytes, node_public: bytes) -> None:
    """Check that ``der`` is the certificate of this node key, made as ``make_certificate`` does.

    A foreign common name could stand in the way of another member's certificate, and a CA
    could issue more of them. Raises ConfigError.
    """
    certificate = _parse(der)
    if _public(certificate) != node_public:
        raise ConfigError("the certificate is of another node key")
    name = _name(node_public)
    if certificate.subject != name or certificate.issuer != name:
        raise ConfigError("the certificate's name is not the fingerprint of its key")
    if not verify_raw(node_public, certificate.tbs_certificate_bytes, certificate.signature):
        raise ConfigError("the certificate is not signed by its own key")
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        alone = len(list(certificate.extensions)) == 1 and not basic.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        alone = False
    if not alone:
        raise ConfigError("the certificate has other extensions than 'not a CA'")


def _name(public: bytes) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key_fingerprint(public))])


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise ConfigError(
            f"the certificate has {len(der)} bytes, at most {CERTIFICATE_BYTES_MAX} are right"
        )
    try:
        return x509.load_der_x509_certificate(bytes(der))
    except ValueError:
        raise ConfigError("the certificate is not X.509 in DER") from None


def _public(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except Exception:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("the certificate's key is not Ed25519")
    return key.public_bytes_raw()
