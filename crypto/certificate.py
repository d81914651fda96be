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

from crypto.identity import SIGNATURE_BYTES, SigningKey, verify_raw
from node.errors import ConfigError

CERTIFICATE_BYTES_MAX: Final = 1024  # ours have about 400
_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)  # RFC 5280 4.1.2.5


def make_certificate(node: SigningKey) -> bytes:
    """The DER certificate of a node key; deterministic, since Ed25519 signatures are (RFC 8032)."""
    private = Ed25519PrivateKey.from_private_bytes(node.seed)
    return _build(node.public, private).public_bytes(serialization.Encoding.DER)


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
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise ConfigError(
            f"the certificate has {len(der)} bytes, at most {CERTIFICATE_BYTES_MAX} are right"
        )
    try:
        key = x509.load_der_x509_certificate(bytes(der)).public_key()
    except Exception:  # the parser raises many kinds; here all mean the same
        raise ConfigError("the certificate is not X.509 in DER") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("the certificate's key is not Ed25519")
    return key.public_bytes_raw()


def check_certificate(der: bytes, node_public: bytes) -> None:
    """Check that ``der`` is exactly what ``make_certificate`` makes of this node key.

    A foreign common name could stand in the way of another member's certificate, and a CA could
    issue more of them. What others send is compared, not parsed: all but the signature follows
    from the public key. Raises ConfigError.
    """
    anyone = Ed25519PrivateKey.from_private_bytes(bytes(32))
    try:
        template = _build(node_public, anyone)
    except ValueError:
        raise ConfigError("the node key is not an Ed25519 key") from None
    expected = template.public_bytes(serialization.Encoding.DER)
    if der[:-SIGNATURE_BYTES] != expected[:-SIGNATURE_BYTES]:
        raise ConfigError("the certificate is not the one that belongs to the node key")
    if not verify_raw(node_public, template.tbs_certificate_bytes, der[-SIGNATURE_BYTES:]):
        raise ConfigError("the certificate is not signed by its own key")


def _build(public: bytes, signer: Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key_fingerprint(public))])
    digest = hashlib.blake2b(public, digest_size=19, person=b"grapevine/serial")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(Ed25519PublicKey.from_public_bytes(public))
        # 152 bits, the top one set: positive, never zero, under the 20 octets of RFC 5280.
        .serial_number(int.from_bytes(digest.digest(), "big") | 1 << 151)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        # No member may issue certificates for others.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, None)
    )
