"""Where a node says at the broker that it is reached, and that its neighbours dial it there."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from node.errors import ConfigError
from node.runtime_links import node_links
from node.runtime_parts import Parts, assemble
from node.strict import load_toml
from node.transport.mixed import MixedTransport
from node.types.settings import LearningSettings, NodeSettings, TaskSettings
from scenarios.founding import Founded, found
from topology.settings import TopologySettings

BROKER = "mqtt://127.0.0.1:1883"
MOVED = ("tcp://gv.new.example:7400",)


@pytest.fixture
def founded(tmp_path: Path) -> Founded:
    """Three members that meet at a broker; n0 alone has a socket on its card."""
    return found(
        tmp_path,
        ("n0", "n1", "n2"),
        name="moving",
        topology=TopologySettings(kind="ring"),
        task=TaskSettings(name="quadratic", dimension=4),
        learning=LearningSettings(rounds=2),
        broker=BROKER,
        direct=("n0",),
    )


def opened(founded: Founded, name: str, **changes: object) -> Parts:
    seat = founded.seats[name]
    settings = structs.replace(load_toml(seat.node_toml, NodeSettings), **changes)
    return assemble(settings, base=seat.node_toml.parent)


def test_it_says_what_its_card_says_unless_its_settings_say_better(founded: Founded) -> None:
    for name, changes, said in (
        ("n0", {}, (f"tcp://127.0.0.1:{founded.seats['n0'].port}",)),
        ("n0", {"advertise": MOVED}, MOVED),
        ("n0", {"advertise": ()}, ()),  # it is reached nowhere any more
        ("n1", {}, ()),
        ("n1", {"advertise": MOVED}, MOVED),
    ):
        parts = opened(founded, name, **changes)
        try:
            links = node_links(parts)
            assert isinstance(links._transport, MixedTransport)
            _, mqtt = (inner.transport for inner in links._transport._inner)
            assert mqtt.presences._addresses == parts.advertise == said  # type: ignore[attr-defined]
        finally:
            parts.close()


def test_a_member_whose_card_has_no_socket_is_dialled_where_its_presence_says(
    founded: Founded,
) -> None:
    other = founded.consortium.roster.members
    n1 = next(member.id for member in other.values() if member.name == "n1")
    parts = opened(founded, "n0")
    try:
        links = node_links(parts)
        assert isinstance(links._transport, MixedTransport)
        reach = links._transport._reach
        tcp, mqtt = (inner.transport for inner in links._transport._inner)
        assert (reach(0, n1), reach(1, n1)) == (False, True)
        mqtt.presences.addresses = lambda member, _: MOVED if member == n1 else ()  # type: ignore[attr-defined]
        assert tcp.ways(n1) == (("gv.new.example", 7400),)  # type: ignore[attr-defined]
        assert reach(0, n1)
    finally:
        parts.close()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"advertise": ("gv.example:7400",)}, "expected such as tcp://"),
        ({"advertise": ("tcp://gv.example",)}, "expected such as tcp://"),
        ({"advertise": ("mqtts://broker.example",)}, "a broker's stands in"),
        ({"advertise": MOVED * 9}, "9 addresses, at most 8"),
        ({"advertise": MOVED, "mqtt": None}, "said at a broker, and no"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(
    founded: Founded, changes: dict[str, object], what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        opened(founded, "n0", **changes)
    assert str(caught.value).startswith("advertise: ") and "\n" not in str(caught.value)
