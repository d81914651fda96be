"""From [[event]] tables to faults in time, and the refusal of what cannot be meant.

An engine takes the compiled faults and nothing else; one it cannot inject it must refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

from node.errors import ConfigError
from node.strict import nearest
from scenarios.vocabulary import FAULTS, EventSettings, LinkFaultSettings, Names
from topology.graph import Graph

_SECONDS = re.compile(r"(?P<value>-?\d+(?:\.\d+)?)\s*(?P<unit>ms|s|min)")
_ROUND = re.compile(r"round\s+(?P<value>-?\d+)")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}


class When(Struct, frozen=True):
    """Seconds from the engine's start, or the round that the first node concerned has mixed."""

    seconds: float | None = None
    round: int | None = None

    @property
    def text(self) -> str:
        return f"round {self.round}" if self.seconds is None else f"{self.seconds:g}s"


class _Timed(Struct, frozen=True, kw_only=True):
    at: When
    name: str = ""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    @property
    def label(self) -> str:
        """How people call it: its name, or what and when."""
        return self.name or f"{self.kind} at {self.at.text}"

    @property
    def mends(self) -> bool:
        """Whether things are meant to become good again after it."""
        return isinstance(self, Heal | Restart)


class Partition(_Timed, frozen=True, kw_only=True):
    """Nodes of different sides cannot reach each other, in either direction, until Heal."""

    sides: tuple[tuple[str, ...], ...]

    def cuts(self, a: str, b: str) -> bool:
        """Whether the link between two nodes crosses the cut."""
        of = {name: side for side, names in enumerate(self.sides) for name in names}
        return a in of and b in of and of[a] != of[b]


class Heal(_Timed, frozen=True, kw_only=True):
    """The partition is over."""


class Crash(_Timed, frozen=True, kw_only=True):
    """The processes are gone; what was on their disks stays."""

    nodes: tuple[str, ...]


class Restart(_Timed, frozen=True, kw_only=True):
    """Crashed nodes start again on their disks."""

    nodes: tuple[str, ...]


class Slow(_Timed, frozen=True, kw_only=True):
    """Local steps of these nodes take ``factor`` times as long from now on."""

    nodes: tuple[str, ...]
    factor: float


class Link(_Timed, frozen=True, kw_only=True):
    """Links change: (a, b) pairs, and what is set in ``change`` replaces what was."""

    pairs: tuple[tuple[str, str], ...]
    change: LinkFaultSettings


Fault = Partition | Heal | Crash | Restart | Slow | Link


def compile_events(
    events: Sequence[EventSettings], graph: Graph, *, source: str
) -> tuple[Fault, ...]:
    """The faults in the order in which they happen.

    Raises ConfigError naming the event and what would be right.
    """
    faults = [
        _compile(event, graph, f"{source}: event {_called(event, number)}")
        for number, event in enumerate(events, 1)
    ]
    ordered = _in_order(faults, source)
    _check_sequence(ordered, source)
    names = [fault.name for fault in ordered if fault.name]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: two events are called '{name}'")
    return tuple(ordered)


def concerned(fault: Fault, graph: Graph) -> tuple[str, ...]:
    """Whose rounds ``at = "round N"`` counts: the first of these to have mixed round N.

    A restart and a heal concern everybody: a node that is down or cut off need not come that far.
    """
    match fault:
        case Partition():
            return tuple(name for side in fault.sides for name in side)
        case Crash() | Slow():
            return fault.nodes
        case Link():
            return tuple(sorted({name for pair in fault.pairs for name in pair}))
    return graph.nodes


def parse_when(text: str, where: str) -> When:
    """``"3s"``, ``"250ms"``, ``"2min"`` or ``"round 10"``. Raises ConfigError."""
    text = text.strip()
    if found := _ROUND.fullmatch(text):
        value = int(found["value"])
        if value < 1:
            raise ConfigError(f"{where}: key 'at': '{text}', but rounds count from 1")
        return When(round=value)
    if found := _SECONDS.fullmatch(text):
        seconds = float(found["value"]) * _UNITS[found["unit"]]
        if seconds < 0:
            raise ConfigError(f"{where}: key 'at': '{text}' is before the start")
        return When(seconds=seconds)
    raise ConfigError(
        f'{where}: key \'at\': found \'{text}\', expected "3s", "250ms" or "round 10"'
    )


def _called(event: EventSettings, number: int) -> str:
    return f"'{event.name}'" if event.name else str(number)


def _compile(event: EventSettings, graph: Graph, where: str) -> Fault:
    given = [key for key in FAULTS if getattr(event, key) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        raise ConfigError(f"{where}: needs exactly one of {', '.join(FAULTS)}; {found}")
    at, name = parse_when(event.at, where), event.name or ""
    if event.partition is not None:
        sides = _sides(event.partition, graph, where)
        return Partition(at=at, name=name, sides=sides)
    if event.heal is not None:
        if not event.heal:
            raise ConfigError(f"{where}: key 'heal': found false, expected true")
        return Heal(at=at, name=name)
    if event.crash is not None:
        return Crash(at=at, name=name, nodes=_nodes(event.crash, graph, where, "crash"))
    if event.restart is not None:
        return Restart(at=at, name=name, nodes=_nodes(event.restart, graph, where, "restart"))
    if event.slow is not None:
        nodes = _nodes(event.slow.nodes, graph, where, "slow.nodes")
        return Slow(at=at, name=name, nodes=nodes, factor=event.slow.factor)
    assert event.link is not None
    return Link(at=at, name=name, pairs=_pairs(event.link, graph, where), change=event.link)


def _nodes(names: Names, graph: Graph, where: str, key: str) -> tuple[str, ...]:
    listed = (names,) if isinstance(names, str) else names
    if not listed:
        raise ConfigError(f"{where}: key '{key}': names no node")
    for name in listed:
        if name not in graph.nodes:
            raise ConfigError(f"{where}: key '{key}': no node '{name}'{nearest(name, graph.nodes)}")
        if listed.count(name) > 1:
            raise ConfigError(f"{where}: key '{key}': '{name}' stands twice")
    return listed


def _sides(
    sides: tuple[tuple[str, ...], ...], graph: Graph, where: str
) -> tuple[tuple[str, ...], ...]:
    if len(sides) < 2:
        raise ConfigError(f"{where}: key 'partition': needs at least two sides")
    seen: dict[str, int] = {}
    for number, side in enumerate(sides, 1):
        for name in _nodes(side, graph, where, f"partition side {number}"):
            if name in seen:
                raise ConfigError(
                    f"{where}: key 'partition': sides overlap: '{name}' is in {seen[name]} and "
                    f"{number}"
                )
            seen[name] = number
    if not any(
        seen.get(a, 0) != seen.get(b, 0) and a in seen and b in seen for a, b in graph.edges
    ):
        raise ConfigError(f"{where}: key 'partition': no edge of the topology crosses the cut")
    return sides


def _pairs(link: LinkFaultSettings, graph: Graph, where: str) -> tuple[tuple[str, str], ...]:
    values = (link.latency_ms, link.jitter_ms, link.bandwidth_mbps, link.loss)
    if all(value is None for value in values):
        raise ConfigError(
            f"{where}: key 'link': changes nothing; give latency_ms, jitter_ms, bandwidth_mbps "
            "or loss"
        )
    if link.a is None and link.b is None:
        return graph.edges
    if link.a is None or link.b is None:
        raise ConfigError(f"{where}: key 'link': needs both a and b, or neither for every link")
    _nodes((link.a,), graph, where, "link.a")
    _nodes((link.b,), graph, where, "link.b")
    if link.b not in graph.neighbours(link.a):
        raise ConfigError(f"{where}: key 'link': the topology has no edge {link.a}–{link.b}")
    return ((link.a, link.b) if link.a < link.b else (link.b, link.a),)


def _in_order(faults: Iterable[Fault], source: str) -> list[Fault]:
    """By time, where all are in seconds or all in rounds; a mixture must be written in order."""
    listed = list(faults)
    if all(fault.at.seconds is not None for fault in listed):
        return sorted(listed, key=lambda fault: fault.at.seconds or 0.0)
    if all(fault.at.round is not None for fault in listed):
        return sorted(listed, key=lambda fault: fault.at.round or 0)
    for key in ("seconds", "round"):
        times = [getattr(f.at, key) for f in listed if getattr(f.at, key) is not None]
        if times != sorted(times):
            raise ConfigError(
                f"{source}: events in seconds and in rounds are mixed; write them in the order "
                "in which they happen"
            )
    return listed


def _check_sequence(faults: Sequence[Fault], source: str) -> None:
    """Nothing heals that is not cut, nothing starts again that is not down."""
    cut: Partition | None = None
    down: set[str] = set()
    for fault in faults:
        where = f"{source}: event {fault.label}"
        match fault:
            case Partition():
                if cut is not None:
                    raise ConfigError(f"{where}: '{cut.label}' still lasts; heal it first")
                cut = fault
            case Heal():
                if cut is None:
                    raise ConfigError(f"{where}: heal without a partition before it")
                cut = None
            case Crash():
                for name in fault.nodes:
                    if name in down:
                        raise ConfigError(f"{where}: '{name}' is down already")
                    down.add(name)
            case Restart():
                for name in fault.nodes:
                    if name not in down:
                        raise ConfigError(f"{where}: restart of '{name}', which is not down")
                    down.discard(name)
