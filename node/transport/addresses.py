"""Where a member is reached, as written in files: ``tcp://host:port``, or a broker's URL."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from blake3 import blake3

from crypto.identity import NodeId
from node.errors import ConfigError

SEAT_BYTES: Final = 16
BROKER_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "wss": 443}
_HOST: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
)
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_./-]*)?")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class BrokerAddress(NamedTuple):
    """An MQTT broker: over TCP (``mqtt``), TLS (``mqtts``) or TLS and websockets (``wss``)."""

    scheme: str
    host: str
    port: int
    path: str  # wss only

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class PeerAddress(NamedTuple):
    """What it takes to reach a member: its certificate (DER) and addresses, the best one first."""

    certificate: bytes
    addresses: tuple[str, ...] = ()


def parse_address(text: str, *, key: str = "address") -> Address:
    """Read an address; IPv6 in brackets. Raises ConfigError naming ``key``."""
    scheme, found, rest = text.partition("://")
    if found and scheme != "tcp":
        raise ConfigError(f"{key} '{text}': scheme '{scheme}' is not known, expected 'tcp'")
    host, _, port = (rest if found else text).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not bare or (":" in bare and not bracketed) or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"{key} '{text}': expected host:port, as in clinic.example:7400")
    if int(port) > 65535:
        raise ConfigError(f"{key} '{text}': a port is at most 65535, found {port}")
    return Address(bare, int(port))


def is_loopback(address: Address) -> bool:
    """Whether it names this very machine, as far as the text alone can say."""
    ip = _ip(address)
    return ip.is_loopback if ip else address.host.lower().rstrip(".") == "localhost"


def leads_elsewhere(address: Address) -> bool:
    """Whether it can name a machine elsewhere: not this one, nor whoever is on the same wire."""
    ip = _ip(address)
    if ip is None:
        return not is_loopback(address)
    return not (ip.is_loopback or ip.is_unspecified or ip.is_link_local or ip.is_multicast)


def _ip(address: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def seat(consortium: bytes, member: NodeId, epoch: int) -> bytes:
    """Where a member is found at any broker: its topics have this in them, in hexadecimal.

    It tells nobody who it is who does not know the consortium.
    """
    data = consortium + member + epoch.to_bytes(4, "big")
    return blake3(data, derive_key_context="grapevine/1 mqtt seat").digest(SEAT_BYTES)


def is_broker(text: str) -> bool:
    """Whether an address names a broker, rather than a socket of the member's own."""
    scheme, found, _ = text.partition("://")
    return bool(found) and scheme in BROKER_PORTS


def parse_broker(text: str, *, key: str = "broker") -> BrokerAddress:
    """Read a broker's URL, such as ``mqtts://broker.example``. Raises ConfigError naming ``key``.

    A user or password has no place in it: what stands in a URL ends up in logs.
    """
    scheme, found, rest = text.partition("://")
    if not found or scheme not in BROKER_PORTS:
        shown = text if "@" not in text else f"{scheme}://…"
        raise ConfigError(f"{key} '{shown}': expected mqtt://, mqtts:// or wss://, then a host")
    if "@" in rest:
        raise ConfigError(
            f"{key} '{scheme}://…@…': a user or password has no place in an address; "
            "set user and password_file"
        )
    place, slash, path = rest.partition("/")
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = place.partition(":")
    if not _HOST.fullmatch(host) or not _PATH.fullmatch(slash + path):
        raise ConfigError(f"{key} '{text}': expected such as {scheme}://broker.example")
    if slash and scheme != "wss":
        raise ConfigError(f"{key} '{text}': only wss:// has a path")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"{key} '{text}': a port is 1 to 65535, found '{port}'")
    where = (slash + path or "/mqtt") if scheme == "wss" else ""
    return BrokerAddress(scheme, host, int(port) if port else BROKER_PORTS[scheme], where)
