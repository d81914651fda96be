"""What mosquitto needs to be one consortium's broker: settings, users, rights, a certificate.

Text in, text out; node/cli/broker.py writes it. None of it is needed to trust the broker, which
can neither read nor forge anything: it protects the broker, and members from strangers' traffic.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Mapping
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from node.errors import ConfigError
from node.transport.addresses import BrokerAddress, is_broker, parse_broker
from node.types.settings import CharterSettings

CONFIG: Final = "/mosquitto/config"  # where its image reads what is put beside the settings
PASSWORD_BYTES: Final = 24  # of chance: nobody guesses it, so its hash need not be slow
_ITERATIONS: Final = 101  # mosquitto's own default
_SALT_BYTES: Final = 12  # the same
# An authority for one certificate, whose key is thrown away: a new one is made together with it.
_VALID: Final = datetime.timedelta(days=5 * 365)
_CONNECTIONS_MIN: Final = 100

_SETTINGS: Final = """\
# mosquitto for one consortium: a dumb pipe between its members.
#
# The broker can neither read nor forge anything (docs/threat-model.md), so these settings protect
# the broker itself, and members from strangers' traffic. Tried with mosquitto 2.0. Beside it:
#   passwords                a user for each member
#   acl                      one block for each member, see deploy/mosquitto.acl
#   broker.pem, broker.key   from your own authority, or a public one
# `grapevine broker CONSORTIUM` writes this file and those, with an authority of its own (ca.pem).

per_listener_settings false

# TLS. Members name the authority with ca_file in [mqtt], or use the system's.
listener 8883
certfile /mosquitto/config/broker.pem
keyfile /mosquitto/config/broker.key
tls_version tlsv1.2
# To ask members for a certificate as well (certificate_file and key_file in [mqtt]):
# cafile /mosquitto/config/ca.pem
# require_certificate true

# Members behind a proxy that lets only HTTPS out: wss://HOST/mqtt on port 443.
# listener 443
# protocol websockets
# certfile /mosquitto/config/broker.pem
# keyfile /mosquitto/config/broker.key

allow_anonymous false
password_file /mosquitto/config/passwords
acl_file /mosquitto/config/acl

# Nothing is worth keeping: links go on by their own offsets, presence is renewed every 30 s.
persistence false

# Small answers must not wait for company (Nagle): without this a round trip costs up to 40 ms more.
set_tcp_nodelay true

# A member's largest packet: a chunk of 512 KiB and its head. Larger ones are nobody's.
max_packet_size 540672

# What waits for a slow member at most. Publishers hold themselves back long before: 16 MiB ahead of
# a member's asks, and 8 MiB asked for.
max_queued_bytes 33554432
max_queued_messages 1000
max_inflight_messages 64

# 40 members, with room for those that reconnect before the broker has noticed.
max_connections 100
max_keepalive 120

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
"""
_RIGHTS: Final = """\
# Rights of each member, by its broker user. SEAT is the member's place at the broker:
#   grapevine consortium show heart.consortium --json       (key "seat" of each member)
# It changes with the roster (the epoch is in it), and then so does this file:
#   grapevine broker heart.consortium                       (writes it, and keeps the passwords)
#
# A member reads what is meant for it and publishes under its own name; where it may write to
# others, it can only knock: without the key that is agreed inside TLS nothing there counts.
"""
_BLOCK: Final = """
user NAME
topic read gv1/in/SEAT/#
topic write gv1/in/+/+
topic write gv1/out/SEAT/+
topic read gv1/out/+/+
topic write gv1/at/SEAT
topic read gv1/at/+
topic write gv1/bye/SEAT
topic read gv1/bye/+
"""


class Certificate(Struct, frozen=True):
    """A broker's certificate and key and the authority to which it leads, all PEM."""

    authority: str
    certificate: str
    key: str


def meeting_place(settings: CharterSettings, *, source: str) -> BrokerAddress:
    """The broker that every member's card names. Raises ConfigError where there is not just one."""
    first: tuple[str, BrokerAddress] | None = None
    for member in settings.member:
        where = f"{source}: member '{member.name}': address"
        found = [parse_broker(text, key=where) for text in member.addresses if is_broker(text)]
        if not found:
            raise ConfigError(
                f"{source}: the card of '{member.name}' names no broker; make it anew: "
                "grapevine id --address mqtts://broker.example --card …"
            )
        if first is None:
            first = member.name, found[0]
        if found != [first[1]]:
            listed = " and ".join(str(one) for one in found)
            raise ConfigError(
                f"{source}: '{first[0]}' meets the others at {first[1]}, '{member.name}' at "
                f"{listed}; these are files for one broker"
            )
    if first is None:
        raise ConfigError(f"{source}: key 'member': nobody is there to meet")
    return first[1]


def settings_of(address: BrokerAddress, *, members: int) -> str:
    """mosquitto.conf: how it listens follows from the address on the cards."""
    text = _SETTINGS.replace("listener 8883", f"listener {address.port}", 1)
    if address.scheme == "wss":
        text = text.replace("\ncertfile", "\nprotocol websockets\ncertfile", 1)
    if address.scheme == "mqtt":
        text = re.sub(r"# TLS\.(?:.*\n)*?\n", f"listener {address.port}\n\n", text, count=1)
    connections = max(_CONNECTIONS_MIN, members * 5 // 2)
    return text.replace(
        "# 40 members, with room for those that reconnect before the broker has noticed.\n"
        "max_connections 100",
        f"# {connections * 2 // 5} members, with room for those that reconnect before the broker "
        f"has noticed.\nmax_connections {connections}",
    )


def rights(seats: Mapping[str, str]) -> str:
    """The access file. ``seats``: by name, in hexadecimal, as `consortium show --json` has them."""
    blocks = (_BLOCK.replace("NAME", name).replace("SEAT", place) for name, place in seats.items())
    return _RIGHTS + "".join(blocks)


def new_password() -> str:
    return secrets.token_urlsafe(PASSWORD_BYTES)


def hashed(user: str, password: str) -> str:
    """A line of mosquitto's password file: PBKDF2 with SHA-512, as mosquitto_passwd makes it."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    told = "$".join(base64.b64encode(part).decode() for part in (salt, digest))
    return f"{user}:$7${_ITERATIONS}${told}\n"


def certified(host: str, *, now: datetime.datetime) -> Certificate:
    """A certificate for ``host`` (a name or an address) by an authority made for it alone."""
    signer, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _named("grapevine broker authority")
    try:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    authority = (
        _builder(issuer, issuer, signer, signer, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(signer, hashes.SHA256())
    )
    certificate = (
        _builder(_named("broker"), issuer, own, signer, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    key = own.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = serialization.Encoding.PEM
    return Certificate(
        authority.public_bytes(pem).decode(), certificate.public_bytes(pem).decode(), key.decode()
    )


def names_host(certificate: str, host: str) -> bool:
    """Whether a certificate (PEM) is for ``host``."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return host in {str(name.value) for name in names}


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    own: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.CertificateBuilder:
    """All but what an authority and a server differ in. An hour's grace for clocks behind."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(identifier, critical=False)
        .add_extension(above, critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
