"""A run's own broker on Docker: what mosquitto is told, and who can be cut off from it.

All nodes are then neighbours of the broker and of nobody else. It asks for no password: its
networks lead nowhere else, and what it carries needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.broker import settings_of
from node.errors import ConfigError
from node.transport.addresses import BrokerAddress
from scenarios.faults import Partition
from scenarios.settings import Scenario
from topology.graph import Graph

BROKER: Final = "broker"  # its name among the nodes' containers, and in their networks
BROKER_IMAGE: Final = "eclipse-mosquitto:2"
ADDRESS: Final = BrokerAddress("mqtt", BROKER, 1883, "")
_ASKING: Final = """\
allow_anonymous false
password_file /mosquitto/config/passwords
acl_file /mosquitto/config/acl
"""


def mosquitto_conf(members: int) -> bytes:
    """The settings of deploy/mosquitto.conf, for whoever is there."""
    asking, _, rest = settings_of(ADDRESS, members=members).partition(_ASKING)
    return f"{asking}allow_anonymous true\n{rest}".encode()


def edges(nodes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The networks of a run: one for each node, whose first end is the one to take out."""
    return tuple((node, BROKER) for node in nodes)


def cut_off(partition: Partition, graph: Graph) -> tuple[str, ...]:
    """Whom a partition leaves no neighbour: the broker is taken from them."""
    return tuple(
        node
        for node in graph.nodes
        if all(partition.cuts(node, peer) for peer in graph.neighbours(node))
    )


def check(scenario: Scenario) -> None:
    """Refuse what one broker cannot be made to do. Raises ConfigError."""
    if BROKER in scenario.graph.nodes:
        raise ConfigError(
            f"{scenario.source}: key 'topology': a node is called '{BROKER}', as the broker is"
        )
    for fault in scenario.faults:
        if not isinstance(fault, Partition) or fault.one_way:
            continue
        alone = cut_off(fault, scenario.graph)
        for a, b in scenario.graph.edges:
            if fault.cuts(a, b) and a not in alone and b not in alone:
                raise ConfigError(
                    f"{scenario.source}: event {fault.label}: over mqtt docker can only cut nodes "
                    f"off from the broker, and so from all others; '{a}' and '{b}' would be apart "
                    "and each with neighbours still; simulation can"
                )
