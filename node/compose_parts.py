"""What all compose files are made of: names, places, options, and the lines that services share."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from node.errors import ConfigError
from node.types.settings import MqttSettings

IMAGE: Final = "grapevine-node"
STATE: Final = "/var/lib/grapevine"
SETTINGS: Final = "/etc/grapevine"
SECRETS: Final = "/run/secrets"
PORT: Final = 7400
# Two nodes and the engine's own address need three of the six that a /29 has.
EDGE_PREFIX: Final = 29
# The engine's default pools make some 31 networks in all; a network of eight addresses for each
# edge out of this range leaves room for 8,192.
SUBNETS: Final = "10.203.0.0/16"
LOGGING: Final = "  logging: { driver: json-file, options: { max-size: 10m, max-file: '3' } }"
MADE_BY: Final = "# Made by `grapevine compose"  # first line of every file that may be replaced

Network = ipaddress.IPv4Network


class State(Struct, frozen=True):
    """A state directory on the engine's host, as the compose file names it, and whose it is."""

    folder: str
    uid: int
    gid: int


class BrokerSite(Struct, frozen=True, kw_only=True):
    """A broker among the services. ``config``: the volume or folder of its settings and users."""

    host: str  # as on the cards
    port: int
    config: str
    user: str  # whom its process runs as: who owns ``config``
    authority: str | None = None  # ca.pem as the compose file names it; None: no TLS
    passwords: Mapping[str, str] = {}  # by member: the file, as the compose file names it


class Options(Struct, frozen=True, kw_only=True):
    """What the person who generates a file may choose. ``command``: how they called it."""

    command: str
    image: str = IMAGE
    build: str | None = None  # the folder of a Dockerfile, relative to the compose file
    subnets: Network = ipaddress.IPv4Network(SUBNETS)
    states: Mapping[str, State] = {}  # by member; without: volumes
    broker: BrokerSite | None = None  # where all meet; without: sockets of their own


def edge_subnets(pool: Network, count: int, *, of: str = "edges") -> list[Network]:
    """The first ``count`` networks of eight addresses in ``pool``. Raises ConfigError."""
    room = pool.num_addresses >> (32 - EDGE_PREFIX)
    if count > room:
        raise ConfigError(
            f"--subnets {pool}: has room for {room} networks of 8 addresses, and there are {count} "
            f"{of}; say a wider range, such as {SUBNETS}"
        )
    made = pool.subnets(new_prefix=EDGE_PREFIX) if pool.prefixlen < EDGE_PREFIX else iter([pool])
    return [next(made) for _ in range(count)]


def read_pool(text: str) -> Network:
    """A range of private addresses, as ``--subnets`` takes it. Raises ConfigError."""
    try:
        pool = ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"--subnets {text}: {error}; expected such as {SUBNETS}") from None
    if not isinstance(pool, ipaddress.IPv4Network) or not pool.is_private:
        raise ConfigError(
            f"--subnets {text}: expected private IPv4 addresses, such as {SUBNETS}: the engine's "
            "host would no longer reach the true owners of these"
        )
    return pool


def common_lines(options: Options, settings: str) -> list[str]:
    """What all nodes have in common; YAML's merge key spreads it."""
    return [
        "x-node: &node",
        f"  image: {quoted(options.image)}",
        f"  command: [start, {settings}]",
        "  init: true",
        "  read_only: true",
        "  tmpfs: [/tmp]",
        "  cap_drop: [ALL]",
        '  security_opt: ["no-new-privileges:true"]',
        "  restart: on-failure       # a node that is started again resumes",
        "  stop_grace_period: 60s    # it writes a checkpoint and says good-bye",
        LOGGING,
    ]


def after(*services: tuple[str, str]) -> list[str]:
    """What a service starts after: (service, condition)."""
    if not services:
        return []
    waits = [f"    {name}: {{ condition: {condition} }}" for name, condition in services]
    return ["  depends_on:", *waits]


def node_toml(consortium: str, port: int | None, mqtt: MqttSettings | None = None) -> str:
    """NODE.toml of a member in its container. ``consortium``: the sealed file's name there."""
    lines = [f'state = "{STATE}"', f'consortium = "{consortium}"']
    if port is not None:
        lines.append(f'listen = "0.0.0.0:{port}"')
    if mqtt is not None:
        lines += ["", "[mqtt]", f"broker = {quoted(mqtt.broker)}"]
        for key in ("user", "password_file", "ca_file"):
            if value := getattr(mqtt, key):
                lines.append(f"{key} = {quoted(value)}")
    return "\n".join(lines) + "\n"


def edge_network(a: str, b: str) -> str:
    """The network of an edge. No member's name has an underscore, so no two edges share one."""
    return f"{min(a, b)}_{max(a, b)}"


def quoted(text: str) -> str:
    """A scalar that YAML reads as this very text: JSON's strings are YAML's."""
    return json.dumps(text)
