"""How to reach a broker, from [mqtt] in NODE.toml; checked before anything is dialled."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from node.errors import ConfigError
from node.transport.addresses import BrokerAddress, parse_broker
from node.types.settings import MqttSettings

PASSWORD_VARIABLE: Final = "GRAPEVINE_MQTT_PASSWORD"  # noqa: S105 - a variable's name
PROXY_VARIABLE: Final = "GRAPEVINE_PROXY_PASSWORD"
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Proxy(NamedTuple):
    """An HTTP proxy that tunnels (CONNECT)."""

    host: str
    port: int
    user: str | None
    password: str | None


class Login(NamedTuple):
    """Everything that it takes to connect."""

    address: BrokerAddress
    user: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None
    client_id: str | None = None
    prefix: str = "gv1"
    version: Literal["auto", "5", "3.1.1"] = "auto"
    packet_bytes_max: int | None = None

    @property
    def websockets(self) -> bool:
        return self.address.scheme == "wss"


def login(settings: MqttSettings, *, base: Path, source: str = "[mqtt]") -> Login:
    """Read what [mqtt] names. ``base``: what its paths are relative to. Raises ConfigError."""
    address = parse_broker(settings.broker, key=f"{source} broker")
    if not _PREFIX.fullmatch(settings.prefix) or len(settings.prefix) > 64:
        raise ConfigError(
            f"{source} prefix '{settings.prefix}': expected up to 64 letters, digits, '_.-' "
            "in parts joined by '/'; '+', '#' and '$' mean something to a broker"
        )
    if settings.client_id is not None and not _CLIENT_ID.fullmatch(settings.client_id):
        raise ConfigError(
            f"{source} client_id '{settings.client_id}': expected 1 to 64 letters, digits, '_.-'"
        )
    if settings.password_file is not None and settings.user is None:
        raise ConfigError(f"{source} password_file: a password needs a user")
    return Login(
        address=address,
        user=settings.user,
        password=_password(settings, base, source),
        tls=None if address.scheme == "mqtt" else _tls(settings, base, source),
        proxy=None if settings.proxy is None else _proxy(settings.proxy, source),
        client_id=settings.client_id,
        prefix=settings.prefix,
        version=settings.version,
        packet_bytes_max=settings.packet_bytes_max,
    )


def _password(settings: MqttSettings, base: Path, source: str) -> str | None:
    if settings.user is None:
        return None
    if settings.password_file is None:
        return os.environ.get(PASSWORD_VARIABLE)
    path = base / settings.password_file
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} password_file {path}: cannot be read: {_why(error)}") from None


def _tls(settings: MqttSettings, base: Path, source: str) -> ssl.SSLContext:
    """The broker's certificate is checked against its host name, as a browser would."""
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        path = base / settings.ca_file
        try:
            context.load_verify_locations(cafile=str(path))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{source} ca_file {path}: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if (settings.certificate_file is None) != (settings.key_file is None):
        missing = "key_file" if settings.key_file is None else "certificate_file"
        raise ConfigError(
            f"{source} {missing}: is missing; certificate_file and key_file go together"
        )
    if settings.certificate_file is not None and settings.key_file is not None:
        path = base / settings.certificate_file
        try:
            context.load_cert_chain(path, base / settings.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{source} certificate_file {path}, key_file {settings.key_file}: {_why(error)}"
            ) from None
    return context


def _proxy(text: str, source: str) -> Proxy:
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.password is not None:
        raise ConfigError(f"{source} proxy: a password has no place in it; set {PROXY_VARIABLE}")
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/"):
        raise ConfigError(f"{source} proxy '{text}': expected such as http://proxy.example:3128")
    return Proxy(parts.hostname, port, parts.username, os.environ.get(PROXY_VARIABLE))


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
