"""A broker operator's certificate authority for a test, with server and client certificates."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def make(folder: Path, *, expired: bool = False) -> None:
    """ca.pem, server.pem, server.key, client.pem and client.key in ``folder``; for 127.0.0.1."""
    authority = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("authority", authority, "authority", authority, ca=True)
    _write(folder / "ca.pem", ca)
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        until = NOW - DAY if expired and name == "server" else NOW + DAY
        certificate = _certificate(name, key, "authority", authority, until=until)
        _write(folder / f"{name}.pem", certificate)
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _certificate(name, key, issuer, signer, *, ca=False, until=NOW + DAY):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * DAY)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    return builder.sign(signer, hashes.SHA256())


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
