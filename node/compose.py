"""From a consortium to a compose file: a service for each member, a network for each edge.

Text in, text out: nothing here starts a container. Three kinds of file: a whole consortium on one
engine, the same as a demonstration that makes its own keys, and one member alone, which is what a
real organisation runs. Read by docker-compose 1.29 and by Compose 2 alike.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from node.errors import ConfigError
from node.transport.addresses import parse_address
from node.types.settings import CharterSettings
from topology.graph import Graph

IMAGE: Final = "grapevine-node"
STATE: Final = "/var/lib/grapevine"
SETTINGS: Final = "/etc/grapevine"
PORT: Final = 7400
# Two nodes and the engine's own address need three of the six that a /29 has.
EDGE_PREFIX: Final = 29
# The engine's default pools make some 31 networks in all; a network of eight addresses for each
# edge out of this range leaves room for 8,192.
SUBNETS: Final = "10.203.0.0/16"
MADE_BY: Final = "# Made by `grapevine compose"  # first line of every file that may be replaced
INIT: Final = "init"

Network = ipaddress.IPv4Network


class Site(Struct, frozen=True):
    """Where one member listens in a compose file. No host: it dials out only."""

    name: str
    hosts: tuple[str, ...]
    port: int | None


class State(Struct, frozen=True):
    """A state directory on the engine's host, as the compose file names it, and whose it is."""

    folder: str
    uid: int
    gid: int


class Options(Struct, frozen=True, kw_only=True):
    """What the person who generates a file may choose. ``command``: how they called it."""

    command: str
    image: str = IMAGE
    build: str | None = None  # the folder of a Dockerfile, relative to the compose file
    subnets: Network = ipaddress.IPv4Network(SUBNETS)
    states: Mapping[str, State] = {}  # by member; without: volumes


def edge_subnets(pool: Network, count: int) -> list[Network]:
    """The first ``count`` networks of eight addresses in ``pool``. Raises ConfigError."""
    room = pool.num_addresses >> (32 - EDGE_PREFIX)
    if count > room:
        raise ConfigError(
            f"--subnets {pool}: has room for {room} networks of 8 addresses, and there are {count} "
            f"edges; say a wider range, such as {SUBNETS}"
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


def sites(settings: CharterSettings, *, source: str) -> dict[str, Site]:
    """Where every member is reached within one engine: under the names that its card says.

    Raises ConfigError where a container cannot be found under them.
    """
    made: dict[str, Site] = {}
    taken: dict[str, str] = {}
    for member in settings.member:
        site = _site(member.name, member.addresses, f"{source}: member '{member.name}'")
        for host in site.hosts:
            if host in taken:
                raise ConfigError(
                    f"{source}: members '{taken[host]}' and '{member.name}' are both reached at "
                    f"'{host}'; on one engine each needs a name of its own"
                )
            taken[host] = member.name
        made[member.name] = site
    return made


def _site(name: str, addresses: Sequence[str], where: str) -> Site:
    hosts: list[str] = []
    ports: set[int] = set()
    for address in addresses:
        found = parse_address(address, key=f"{where}: address")
        if found.host == "localhost" or _is_ip(found.host):
            raise ConfigError(
                f"{where}: its address {address} names no host that a container could be called; "
                "on one engine members are reached by name, as in tcp://clinic.example:7400"
            )
        hosts.append(found.host.lower())
        ports.add(found.port)
    if len(ports) > 1:
        listed = " and ".join(str(port) for port in sorted(ports))
        raise ConfigError(f"{where}: its addresses say ports {listed}, and a node listens on one")
    return Site(name, tuple(dict.fromkeys(hosts)), ports.pop() if ports else None)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def node_toml(consortium: str, port: int | None) -> str:
    """NODE.toml of a member in its container. ``consortium``: the sealed file's name there."""
    lines = [f'state = "{STATE}"', f'consortium = "{consortium}"']
    if port is not None:
        lines.append(f'listen = "0.0.0.0:{port}"')
    return "\n".join(lines) + "\n"


# ── one member ──────────────────────────────────────────────────────────────────────────────────


def alone(
    name: str, member: str, addresses: Sequence[str], options: Options, *, sealed: str
) -> str:
    """The compose file of one organisation: its own node, reached at its card's addresses.

    sealed: the sealed consortium's file name, beside the compose file; as is MEMBER.toml.
    """
    where = f"member '{member}': address"
    ports = sorted({parse_address(address, key=where).port for address in addresses})
    volume = volume_name(name, member)
    head = f"""{MADE_BY}`: {options.command}
#
# The node of '{member}' in '{name}'. Its keys lie in the volume {volume}, where
# `grapevine keygen` made them (docs/compose.md); `docker compose down` leaves that volume alone.
#
#   docker compose up -d       train; kill it at any time: started again, it resumes
#   docker compose logs -f     rounds, who was missing and why; the last line is the result
"""
    service = [
        f"  {member}:",
        "    <<: *node",
        "    volumes:",
        f"      - {member}:{STATE}",
        f"      - ./{member}.toml:{SETTINGS}/node.toml:ro",
        f"      - ./{sealed}:{SETTINGS}/{sealed}:ro",
        "      # - /srv/data:/srv/data:ro    what [data] in the settings names",
    ]
    if ports:  # a node listens on one port; its card may say how a gateway maps others to it
        listed = ", ".join(f'"{port}:{PORT}"' for port in ports)
        service.append(f"    ports: [{listed}]")
    stored = [f"  {member}: {{ name: {volume}, external: true }}"]
    return _file(head, _common(options, f"{SETTINGS}/node.toml"), [service], [], stored)


# ── whole consortia ─────────────────────────────────────────────────────────────────────────────


def whole(
    name: str, graph: Graph, where: Mapping[str, Site], options: Options, *, sealed: str
) -> str:
    """All members on one engine, each with its own keys: in a volume, or in ``options.states``.

    sealed: the sealed consortium's file name, beside the compose file; as is NAME.toml.
    """
    first = volume_name(name, graph.nodes[0])
    keys = f"""\
# Each finds its keys in a volume of its own, which must be there already; for keys in a folder
# FOLDER it is made by
#
#   docker volume create {first}
#   docker run --rm --user 0 --entrypoint sh -v FOLDER:/from:ro -v {first}:{STATE} \\
#     {options.image} -c 'cp -a /from/. {STATE} && chown -R 10001:10001 {STATE}'
"""
    if options.states:
        keys = "# Each works in the folder that holds its keys, as the user to whom that belongs.\n"
    head = f"""{MADE_BY}`: {options.command}
#
# All {len(graph.nodes)} members of '{name}' on one engine.
{keys}#
# Neighbours share a network that leads nowhere else; who is not a neighbour cannot be reached.
"""
    services = []
    for member in graph.nodes:
        state = options.states.get(member)
        volumes = [
            f"{state.folder if state else member}:{STATE}",
            f"./{member}.toml:{SETTINGS}/node.toml:ro",
            f"./{sealed}:{SETTINGS}/{sealed}:ro",
        ]
        service = _service(member, volumes, graph, where.get(member))
        services.append([*service, f'    user: "{state.uid}:{state.gid}"'] if state else service)
    return _file(
        head,
        _common(options, f"{SETTINGS}/node.toml"),
        services,
        _edge_networks(graph, options.subnets),
        [
            f"  {member}: {{ name: {volume_name(name, member)}, external: true }}"
            for member in graph.nodes
            if member not in options.states
        ],
    )


def demonstration(name: str, graph: Graph, options: Options, *, charter: str) -> str:
    """All members on one engine, and a service that makes the keys of all.

    charter: the draft's path, relative to the compose file.
    """
    _refuse_taken(graph, INIT)
    head = f"""{MADE_BY}`: {options.command}
#
# FOR DEMONSTRATION: the service `init` makes the keys of all {len(graph.nodes)} members and signs
# for each of them, so that one command shows a consortium at work. Real members never let anybody
# do that: docs/compose.md shows what each of them runs instead.
#
#   docker compose up          trains to the end; the last line of each service is its result
#   docker compose logs clinic-a
#   docker compose down -v     and the volumes with keys, logs and models are gone
#
# Neighbours share a network that leads nowhere else; who is not a neighbour cannot be reached.
""".replace("clinic-a", graph.nodes[0])
    settings = f"{STATE}/node.toml"
    after = ["  depends_on:", f"    {INIT}: {{ condition: service_completed_successfully }}"]
    services = [_founding(name, graph.nodes, options, charter)]
    services += [_service(m, [f"{m}:{STATE}"], graph, None) for m in graph.nodes]
    return _file(
        head,
        [*_common(options, settings), *after],
        services,
        _edge_networks(graph, options.subnets),
        [f"  {member}: {{}}" for member in graph.nodes],
    )


def _refuse_taken(graph: Graph, service: str) -> None:
    if service in graph.nodes:
        raise ConfigError(f"a member is called '{service}', which is another service's name here")


def volume_name(consortium: str, member: str) -> str:
    """How the volume of a member is called on its engine: the same from keygen to the end."""
    return f"{consortium}-{member}"


def _common(options: Options, settings: str) -> list[str]:
    """What all nodes have in common; YAML's merge key spreads it."""
    return [
        "x-node: &node",
        f"  image: {_quoted(options.image)}",
        f"  command: [start, {settings}]",
        "  init: true",
        "  read_only: true",
        "  tmpfs: [/tmp]",
        "  cap_drop: [ALL]",
        '  security_opt: ["no-new-privileges:true"]',
        "  restart: on-failure       # a node that is started again resumes",
        "  stop_grace_period: 60s    # it writes a checkpoint and says good-bye",
        "  logging: { driver: json-file, options: { max-size: 10m, max-file: '3' } }",
    ]


def _service(name: str, volumes: Iterable[str], graph: Graph, site: Site | None) -> list[str]:
    lines = [f"  {name}:", "    <<: *node", "    volumes:"]
    lines += [f"      - {volume}" for volume in volumes]
    lines.append("    networks:")
    aliases = [host for host in site.hosts if host != name] if site else []
    for peer in graph.neighbours(name):
        network = edge_network(name, peer)
        listed = ", ".join(_quoted(alias) for alias in aliases)
        lines.append(f"      {network}: " + (f"{{ aliases: [{listed}] }}" if listed else "{}"))
    return lines


def edge_network(a: str, b: str) -> str:
    """The network of an edge. No member's name has an underscore, so no two edges share one."""
    return f"{min(a, b)}_{max(a, b)}"


def _edge_networks(graph: Graph, pool: Network) -> list[str]:
    lines = []
    for (a, b), subnet in zip(graph.edges, edge_subnets(pool, len(graph.edges)), strict=True):
        lines += [
            f"  {edge_network(a, b)}:",
            "    internal: true",
            f"    ipam: {{ config: [{{ subnet: {subnet} }}] }}",
        ]
    return lines


def _founding(name: str, members: Sequence[str], options: Options, charter: str) -> list[str]:
    """The one-shot service that founds the consortium, by the commands that members use."""
    build = []
    if options.build is not None:
        build = [
            "    build:",
            f"      context: {_quoted(options.build)}",
            "      target: node",
            "      args: { TORCH_INDEX: '${TORCH_INDEX:-}' }",
        ]
    volumes = [f"{charter}:{SETTINGS}/{name}.toml:ro"]
    volumes += [f"{member}:/members/{member}" for member in members]
    script = _SCRIPT.format(
        members=" ".join(members),
        name=name,
        sealed=f"{name}.consortium",
        charter=f"{SETTINGS}/{name}.toml",
        port=PORT,
        settings=node_toml(f"{name}.consortium", PORT),
    )
    return [
        f"  {INIT}:                      # for demonstration: one person with all the keys",
        f"    image: {_quoted(options.image)}",
        *build,
        '    user: "0:0"              # gives each volume to the user that nodes run as',
        "    network_mode: none",
        "    read_only: true",
        "    tmpfs: [/tmp]",
        "    healthcheck: { disable: true }",
        "    volumes:",
        *(f"      - {volume}" for volume in volumes),
        "    entrypoint:",
        "      - python",
        "      - -c",
        "      - |",
        *(f"        {line}".rstrip() for line in script.splitlines()),
    ]


_SCRIPT: Final = """\
import contextlib, io, os, shutil
from pathlib import Path
from node.cli.main import main

def grapevine(*words):
    if code := main([str(word) for word in words]):
        raise SystemExit(code)

members = "{members}".split()
seats = [Path("/members", member) for member in members]
if (seats[-1] / "{sealed}").exists():
    print("init: founded before; the nodes go on from their volumes")
    raise SystemExit
print("init: FOR DEMONSTRATION: makes the keys of all members, signs for each", flush=True)
os.umask(0o077)
os.chdir("/tmp")
shutil.copy("{charter}", "{name}.toml")
with contextlib.redirect_stdout(io.StringIO()):
    for member in members:
        grapevine("keygen", "--name", member, "--state", member)
        address = f"tcp://{{member}}:{port}"
        grapevine("id", "--state", member, "--address", address, "--card", f"{{member}}.card")
    cards = [word for member in members for word in ("--card", f"{{member}}.card")]
    grapevine("consortium", "new", "{name}.toml", *cards)
    for member in members:
        words = ("--state", member, "--out", f"{{member}}.sig")
        grapevine("consortium", "sign", "{name}.toml", *words)
    signed = [f"{{member}}.sig" for member in members]
    grapevine("consortium", "seal", "{name}.toml", *signed, "--out", "{sealed}")
for member, seat in zip(members, seats):
    Path(member, "node.toml").write_text({settings!r})
    shutil.copy("{sealed}", member)
    shutil.copytree(member, seat, dirs_exist_ok=True)
    for path in (seat, *seat.rglob("*")):
        os.chown(path, 10001, 10001)
grapevine("consortium", "verify", "{sealed}")
print("init: done; the members' keys lie in their volumes")"""


def _file(
    head: str,
    common: Iterable[str],
    services: Iterable[Iterable[str]],
    networks: Iterable[str],
    volumes: Iterable[str],
) -> str:
    parts = [head.rstrip("\n"), *common, "", "services:"]
    for number, service in enumerate(services):
        parts += [*([""] if number else []), *service]
    for title, lines in (("networks", list(networks)), ("volumes", list(volumes))):
        if lines:
            parts += ["", f"{title}:", *lines]
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """A scalar that YAML reads as this very text: JSON's strings are YAML's."""
    return json.dumps(text)
