"""From [[event]] tables to faults in time, and the refusal of what cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from node.errors import ConfigError
from scenarios.attacks.attacker import check_attack
from scenarios.faults import (
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Resume,
    Slow,
    Unclog,
    When,
    attackers,
)
from scenarios.groups import edges_between, nodes_named
from scenarios.vocabulary import FAULTS, EventSettings, LinkFaultSettings
from topology.graph import Graph

# keys that say more about one kind of fault
_BELONGS: Final = {
    "one_way": "a partition",
    "disk": "a restart",
    "nodes": "an attack",
    "scale": "an attack",
}
_SECONDS = re.compile(r"(?P<value>-?\d+(?:\.\d+)?)\s*(?P<unit>ms|s|min)")
_ROUND = re.compile(r"round\s+(?P<value>-?\d+)")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0}


def compile_events(
    events: Sequence[EventSettings], graph: Graph, *, source: str, base: Path | None = None
) -> tuple[Fault, ...]:
    """The faults in the order in which they happen. ``base``: what files are relative to.

    Raises ConfigError naming the event and what would be right.
    """
    faults = [
        _compile(event, graph, f"{source}: event {_called(event, number)}", base)
        for number, event in enumerate(events, 1)
    ]
    ordered = _in_order(faults, source)
    check_sequence(ordered, source)
    if graph.nodes and not set(graph.nodes) - set(attackers(ordered)):
        raise ConfigError(f"{source}: every node attacks: nobody is left to hold out against them")
    names = [fault.name for fault in ordered if fault.name]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: two events are called '{name}'")
    return tuple(ordered)


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


def _compile(event: EventSettings, graph: Graph, where: str, base: Path | None) -> Fault:
    given = [key for key in FAULTS if getattr(event, key) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        raise ConfigError(f"{where}: needs exactly one of {', '.join(FAULTS)}; {found}")
    for key, needs in _BELONGS.items():
        if getattr(event, key) is not None and given != [needs.split()[-1]]:
            raise ConfigError(f"{where}: key '{key}' belongs to {needs}")
    at, name = parse_when(event.at, where), event.name or ""
    if given == ["attack"]:
        return _make_attack(event, graph, where, at, name, base=base)
    make = _MAKERS[given[0]]
    return make(event, graph, where, at, name)


def _make_attack(
    e: EventSettings, graph: Graph, where: str, at: When, name: str, *, base: Path | None
) -> Attack:
    assert e.attack is not None
    if e.nodes is None:
        raise ConfigError(f"{where}: key 'nodes': missing; say who attacks")
    what = check_attack(e.attack, where, base)
    nodes = nodes_named(e.nodes, graph, where, "nodes")
    attack = Attack(at=at, name=name, nodes=nodes, what=what, scale=e.scale)
    if attack.ends and e.scale is not None:
        raise ConfigError(f"{where}: key 'scale': nothing is scaled where an attack ends")
    return attack


_Maker = Callable[[EventSettings, Graph, str, When, str], Fault]


def _make_partition(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    sides = _sides(e.partition or (), graph, where)
    return Partition(at=at, name=name, sides=sides, one_way=bool(e.one_way))


def _make_heal(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    if not e.heal:
        raise ConfigError(f"{where}: key 'heal': found false, expected true")
    return Heal(at=at, name=name)


def _make_restart(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    nodes = nodes_named(e.restart or (), graph, where, "restart")
    return Restart(at=at, name=name, nodes=nodes, disk=e.disk or "own")


def _make_slow(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    assert e.slow is not None
    nodes = nodes_named(e.slow.nodes, graph, where, "slow.nodes")
    return Slow(at=at, name=name, nodes=nodes, factor=e.slow.factor)


def _make_skew(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    assert e.clock_skew is not None
    nodes = nodes_named(e.clock_skew.nodes, graph, where, "clock_skew.nodes")
    return ClockSkew(at=at, name=name, nodes=nodes, offset_s=e.clock_skew.offset_s)


def _make_link(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
    assert e.link is not None
    return Link(at=at, name=name, pairs=_pairs(e.link, graph, where), change=e.link)


def _of_nodes(kind: type[Crash | Pause | Resume | DiskFull], key: str) -> _Maker:
    def make(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
        return kind(at=at, name=name, nodes=nodes_named(getattr(e, key), graph, where, key))

    return make


def _of_links(kind: type[Clog | Unclog | Reset], key: str) -> _Maker:
    def make(e: EventSettings, graph: Graph, where: str, at: When, name: str) -> Fault:
        ends = getattr(e, key)
        return kind(at=at, name=name, pairs=edges_between(ends.a, ends.b, graph, where, key))

    return make


_MAKERS: Final[dict[str, _Maker]] = {
    "partition": _make_partition,
    "heal": _make_heal,
    "crash": _of_nodes(Crash, "crash"),
    "restart": _make_restart,
    "pause": _of_nodes(Pause, "pause"),
    "resume": _of_nodes(Resume, "resume"),
    "slow": _make_slow,
    "link": _make_link,
    "clog": _of_links(Clog, "clog"),
    "unclog": _of_links(Unclog, "unclog"),
    "reset": _of_links(Reset, "reset"),
    "clock_skew": _make_skew,
    "disk_full": _of_nodes(DiskFull, "disk_full"),
}


def _sides(
    sides: tuple[tuple[str, ...], ...], graph: Graph, where: str
) -> tuple[tuple[str, ...], ...]:
    if len(sides) < 2:
        raise ConfigError(f"{where}: key 'partition': needs at least two sides")
    seen: dict[str, int] = {}
    groups = []
    for number, side in enumerate(sides, 1):
        groups.append(nodes_named(side, graph, where, f"partition side {number}"))
        for name in groups[-1]:
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
    return tuple(groups)


def _pairs(link: LinkFaultSettings, graph: Graph, where: str) -> tuple[tuple[str, str], ...]:
    changes = [key for key in link.__struct_fields__ if key not in ("a", "b")]
    if all(getattr(link, key) is None for key in changes):
        raise ConfigError(
            f"{where}: key 'link': changes nothing; give {', '.join(changes[:-1])} or {changes[-1]}"
        )
    return edges_between(link.a, link.b, graph, where, "link")


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


def check_sequence(faults: Sequence[Fault], source: str) -> None:
    """Nothing heals that is not cut, starts that is not down, goes on that did not pause.

    Raises ConfigError for the first that does.
    """
    state = _State()
    for fault in faults:
        what = state.refuse(fault)
        if what:
            raise ConfigError(f"{source}: event {fault.label}: {what}")
    if state.paused:
        name = min(state.paused)
        raise ConfigError(f"{source}: '{name}' is paused and never resumed: the run could not end")


class _State:
    """What lasts, as the events so far have left it."""

    def __init__(self) -> None:
        self.cut: Partition | None = None
        self.down: set[str] = set()
        self.paused: set[str] = set()
        self.clogged: set[tuple[str, str]] = set()
        self.attacks: dict[str, str] = {}  # who attacks, and how

    def refuse(self, fault: Fault) -> str:
        """Take the next event in; what is wrong with it, or nothing."""
        match fault:
            case Partition():
                if self.cut is not None:
                    return f"'{self.cut.label}' still lasts; heal it first"
                self.cut = fault
            case Heal():
                if self.cut is None:
                    return "heal without a partition before it"
                self.cut = None
            case Crash() | DiskFull() | Restart():
                return self._processes(fault)
            case Pause() | Resume():
                return self._standing(fault)
            case Clog() | Unclog():
                return self._links(fault)
            case Attack():
                return self._attacks(fault)
        return ""

    def _processes(self, fault: Crash | DiskFull | Restart) -> str:
        back = isinstance(fault, Restart)
        for name in fault.nodes:
            if back and name not in self.down:
                return f"restart of '{name}', which is not down"
            if not back and name in self.down:
                return f"'{name}' is down already"
            if name in self.paused:
                return f"'{name}' is paused; resume it first"
        self.down = self.down - set(fault.nodes) if back else self.down | set(fault.nodes)
        return ""

    def _standing(self, fault: Pause | Resume) -> str:
        again = isinstance(fault, Resume)
        for name in fault.nodes:
            if again and name not in self.paused:
                return f"resume of '{name}', which is not paused"
            if not again and name in self.paused:
                return f"'{name}' is paused already"
            if not again and name in self.down:
                return f"'{name}' is down"
        self.paused = self.paused - set(fault.nodes) if again else self.paused | set(fault.nodes)
        return ""

    def _links(self, fault: Clog | Unclog) -> str:
        again = isinstance(fault, Unclog)
        for a, b in fault.pairs:
            if again and (a, b) not in self.clogged:
                return f"unclog of {a}–{b}, which is not clogged"
            if not again and (a, b) in self.clogged:
                return f"{a}–{b} is clogged already"
        some = set(fault.pairs)
        self.clogged = self.clogged - some if again else self.clogged | some
        return ""

    def _attacks(self, fault: Attack) -> str:
        for name in fault.nodes:
            now = self.attacks.get(name)
            if fault.ends and now is None and fault.at.seconds == 0:
                continue  # nobody attacks from the start: what a sweep over attacks compares with
            if fault.ends and now is None:
                return f"attack = 'none', but '{name}' does not attack"
            if not fault.ends and now == fault.what:
                return f"'{name}' attacks by '{now}' already"
            if fault.ends:
                del self.attacks[name]
            else:
                self.attacks[name] = fault.what
        return ""
