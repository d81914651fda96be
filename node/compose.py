"""From a consortium to a compose file: a service for each member, a network for each edge.

Text in, text out: nothing here starts a container. Three kinds of file: a whole consortium on one
engine, the same as a demonstration that makes its own keys, and one member alone, which is what a
real organisation runs. Where all meet at a broker, that is one more service, and the only one that
anybody shares a network with. Read by docker-compose 1.29 and by Compose 2 alike.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from node.broker import CONFIG
from node.compose_founding import INIT, founding
from node.compose_parts import (
    LOGGING,
    MADE_BY,
    PORT,
    SECRETS,
    SETTINGS,
    STATE,
    BrokerSite,
    Options,
    after,
    common_lines,
    edge_network,
    edge_subnets,
    node_toml,
    quoted,
)
from node.compose_results import RESULTS, telling, until_told
from node.errors import ConfigError
from node.transport.addresses import is_broker, parse_address
from node.types.settings import CharterSettings, MqttSettings
from topology.graph import Graph

BROKER: Final = "broker"
BROKER_IMAGE: Final = "eclipse-mosquitto:2"
BROKER_USER: Final = 1883  # whom its image runs mosquitto as
AUTHORITY: Final = f"{SETTINGS}/ca.pem"  # in a container
_PASSWORD: Final = "mqtt"  # noqa: S105 - under which name a container finds it among its secrets


class Site(Struct, frozen=True):
    """Where one member listens in a compose file. No host: it dials out only."""

    name: str
    hosts: tuple[str, ...]
    port: int | None


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
    sockets = _sockets(addresses)
    if addresses and not sockets:
        raise ConfigError(
            f"{where}: it is reached through a broker alone, {addresses[0]}; --broker puts one "
            "among the services"
        )
    for address in sockets:
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


def _sockets(addresses: Sequence[str]) -> list[str]:
    return [address for address in addresses if not is_broker(address)]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# ── one member ──────────────────────────────────────────────────────────────────────────────────


def alone(
    name: str, member: str, addresses: Sequence[str], options: Options, *, sealed: str
) -> str:
    """The compose file of one organisation: its own node, reached at its card's addresses.

    sealed: the sealed consortium's file name, beside the compose file; as is MEMBER.toml.
    """
    where = f"member '{member}': address"
    ports = sorted({parse_address(one, key=where).port for one in _sockets(addresses)})
    volume = volume_name(name, member)
    asked = ""
    if any(map(is_broker, addresses)):
        asked = f"""\
#
# Its password at the broker, from whoever runs that, is expected in {member}.password beside this.
"""
    head = f"""{MADE_BY}`: {options.command}
#
# The node of '{member}' in '{name}'. Its keys lie in the volume {volume}, where
# `grapevine keygen` made them (docs/compose.md); `docker compose down` leaves that volume alone.
#
#   docker compose up -d       train; kill it at any time: started again, it resumes
#   docker compose logs -f     rounds, who was missing and why; the last line is the result
{asked}"""
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
    secrets = []
    if asked:
        service.append(f"    secrets: [{_PASSWORD}]")
        secrets.append(f"  {_PASSWORD}: {{ file: ./{member}.password }}")
    stored = [f"  {member}: {{ name: {volume}, external: true }}"]
    common = common_lines(options, f"{SETTINGS}/node.toml")
    return _file(head, common, [service], [], stored, secrets=secrets)


def settings_alone(member: str, addresses: Sequence[str], *, sealed: str) -> str:
    """MEMBER.toml: how it listens and where it meets the others follow from its card."""
    port = PORT if _sockets(addresses) else None
    brokers = [address for address in addresses if is_broker(address)]
    mqtt = at_broker(member, brokers[0]) if brokers else None
    return node_toml(sealed, port, mqtt)


def at_broker(member: str, address: str, *, authority: str | None = None) -> MqttSettings:
    """[mqtt] of a member whose password is among its container's secrets."""
    return MqttSettings(
        broker=address,
        user=member,
        password_file=f"{SECRETS}/{_PASSWORD}",
        ca_file=authority,
    )


# ── whole consortia ─────────────────────────────────────────────────────────────────────────────


def whole(
    name: str, graph: Graph, where: Mapping[str, Site], options: Options, *, sealed: str
) -> str:
    """All members on one engine, each with its own keys: in a volume, or in ``options.states``.

    sealed: the sealed consortium's file name, beside the compose file; as is NAME.toml.
    """
    _refuse_broker_taken(graph, options)
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
{_who_is_reached(options)}"""
    broker, reached = options.broker, _reached(graph, options)
    services = [_broker(broker, reached)] if broker else []
    secrets = []
    for member in graph.nodes:
        state = options.states.get(member)
        volumes = [
            f"{state.folder if state else member}:{STATE}",
            f"./{member}.toml:{SETTINGS}/node.toml:ro",
            f"./{sealed}:{SETTINGS}/{sealed}:ro",
        ]
        if broker and broker.authority:
            volumes.append(f"{broker.authority}:{AUTHORITY}:ro")
        service = _service(member, volumes, reached, where.get(member))
        if state:
            service.append(f'    user: "{state.uid}:{state.gid}"')
        if broker:
            service.append(f"    secrets: [{{ source: {member}, target: {_PASSWORD} }}]")
            secrets.append(f"  {member}: {{ file: {broker.passwords[member]} }}")
        services.append(service)
    return _file(
        head,
        [*common_lines(options, f"{SETTINGS}/node.toml"), *after(*_healthy(options))],
        services,
        _networks(reached, options),
        [
            f"  {member}: {{ name: {volume_name(name, member)}, external: true }}"
            for member in graph.nodes
            if member not in options.states
        ],
        secrets=secrets,
    )


def demonstration(name: str, graph: Graph, options: Options, *, charter: str) -> str:
    """All members on one engine, and a service that makes the keys of all.

    charter: the draft's path, relative to the compose file.
    """
    _refuse_taken(graph, INIT)
    _refuse_taken(graph, RESULTS)
    _refuse_broker_taken(graph, options)
    head = f"""{MADE_BY}`: {options.command}
#
# FOR DEMONSTRATION: the service `init` makes the keys of all {len(graph.nodes)} members and signs
# for each of them, so that one command shows a consortium at work. Real members never let anybody
# do that: docs/compose.md shows what each of them runs instead.
#
#   docker compose up          trains, prints what each reached (service `results`), and ends
#   docker compose logs clinic-a        its last line is that member's result
#   docker compose down -v     and the volumes with keys, logs and models are gone
#
{_who_is_reached(options)}{_how_long(options)}""".replace("clinic-a", graph.nodes[0])
    settings = f"{STATE}/node.toml"
    founded = (INIT, "service_completed_successfully")
    broker, reached = options.broker, _reached(graph, options)
    services = [founding(name, graph.nodes, options, charter)]
    if broker:
        services.append(_broker(broker, reached, founded) + until_told(CONFIG))
    services += [_service(m, [f"{m}:{STATE}"], reached, None) for m in graph.nodes]
    services.append(telling(graph.nodes, options))
    volumes = [*([broker.config] if broker else []), *graph.nodes]
    return _file(
        head,
        [*common_lines(options, settings), *after(founded, *_healthy(options))],
        services,
        _networks(reached, options),
        [f"  {volume}: {{}}" for volume in volumes],
    )


def demonstration_broker() -> BrokerSite:
    """The broker of a demonstration: its settings lie in a volume, where `init` puts them."""
    return BrokerSite(host=BROKER, port=8883, config=BROKER, user=f"{BROKER_USER}:{BROKER_USER}")


# ── a broker among the services ─────────────────────────────────────────────────────────────────


def _reached(graph: Graph, options: Options) -> Graph:
    """Who shares a network with whom: neighbours; or each member with the broker alone."""
    if options.broker is None:
        return graph
    return Graph([BROKER, *graph.nodes], [(BROKER, member) for member in graph.nodes])


def _who_is_reached(options: Options) -> str:
    if options.broker is None:
        return """\
# Neighbours share a network that leads nowhere else; who is not a neighbour cannot be reached.
"""
    return """\
# No member can reach another: each shares a network with the broker, which leads nowhere else. They
# meet there, and it can neither read nor forge what they say.
"""


def _how_long(options: Options) -> str:
    if options.broker is None:
        return ""
    return "# It ends when all have finished; a real one stays.\n"


def _refuse_broker_taken(graph: Graph, options: Options) -> None:
    if options.broker is not None:
        _refuse_taken(graph, BROKER)


def _healthy(options: Options) -> list[tuple[str, str]]:
    return [] if options.broker is None else [(BROKER, "service_healthy")]


def _broker(broker: BrokerSite, reached: Graph, *waits: tuple[str, str]) -> list[str]:
    """mosquitto, locked down as nodes are; healthy as soon as it listens.

    Both its image and a Debian have grep, and neither surely a client of MQTT: so the kernel is
    asked. Its table has ports in hexadecimal, and 0A for one on which somebody listens.
    """
    listens = f":{broker.port:04X} [0-9A-F:]* 0A"
    return [
        f"  {BROKER}:                    # mosquitto; nobody has to trust it",
        f"    image: {quoted(BROKER_IMAGE)}",
        f"    user: {quoted(broker.user)}",
        "    read_only: true",
        "    cap_drop: [ALL]",
        '    security_opt: ["no-new-privileges:true"]',
        "    restart: on-failure",
        f"  {LOGGING}",
        *(f"  {line}" for line in after(*waits)),
        "    healthcheck:",
        f"      test: [CMD, grep, -q, {quoted(listens)}, /proc/net/tcp, /proc/net/tcp6]",
        "      interval: 2s",
        "      timeout: 5s",
        "      retries: 30",
        "    volumes:",
        f"      - {broker.config}:{CONFIG}:ro",
        *_networks_of(BROKER, reached, [broker.host]),
    ]


def _refuse_taken(graph: Graph, service: str) -> None:
    if service in graph.nodes:
        raise ConfigError(f"a member is called '{service}', which is another service's name here")


def volume_name(consortium: str, member: str) -> str:
    """How the volume of a member is called on its engine: the same from keygen to the end."""
    return f"{consortium}-{member}"


def _service(name: str, volumes: Iterable[str], graph: Graph, site: Site | None) -> list[str]:
    lines = [f"  {name}:", "    <<: *node", "    volumes:"]
    lines += [f"      - {volume}" for volume in volumes]
    return lines + _networks_of(name, graph, site.hosts if site else ())


def _networks_of(name: str, graph: Graph, hosts: Iterable[str]) -> list[str]:
    """Where a service is, and under which names besides its own."""
    lines = ["    networks:"]
    listed = ", ".join(quoted(host) for host in hosts if host != name)
    for peer in graph.neighbours(name):
        network = edge_network(name, peer)
        lines.append(f"      {network}: " + (f"{{ aliases: [{listed}] }}" if listed else "{}"))
    return lines


def _networks(graph: Graph, options: Options) -> list[str]:
    lines = []
    of = "edges" if options.broker is None else "members"
    subnets = edge_subnets(options.subnets, len(graph.edges), of=of)
    for (a, b), subnet in zip(graph.edges, subnets, strict=True):
        lines += [
            f"  {edge_network(a, b)}:",
            "    internal: true",
            f"    ipam: {{ config: [{{ subnet: {subnet} }}] }}",
        ]
    return lines


def _file(
    head: str,
    common: Iterable[str],
    services: Iterable[Iterable[str]],
    networks: Iterable[str],
    volumes: Iterable[str],
    *,
    secrets: Iterable[str] = (),
) -> str:
    parts = [head.rstrip("\n"), *common, "", "services:"]
    for number, service in enumerate(services):
        parts += [*([""] if number else []), *service]
    sections = {"networks": list(networks), "volumes": list(volumes), "secrets": list(secrets)}
    for title, lines in sections.items():
        if lines:
            parts += ["", f"{title}:", *lines]
    return "\n".join(parts) + "\n"
