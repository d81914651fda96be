"""Where a member listens, as written in files: ``tcp://host:port`` or ``host:port``."""

from __future__ import annotations

from typing import NamedTuple

from node.errors import ConfigError


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


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
