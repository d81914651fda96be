"""What a scenario does to one real node: its links' shape, cuts, slowness, disk and clock.

The engine writes changes to a file as they happen; every node of the run reads the same file.
Nothing here touches a socket or a disk: faulty applies it to links, child to steps and disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from scenarios.faults import (
    Attack,
    Clog,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Reset,
    Restart,
    Slow,
    Unclog,
    When,
)
from scenarios.vocabulary import LinkFaultSettings, LinkShape

CALM: Final = LinkShape(latency_ms=0.0, jitter_ms=0.0, loss=0.0)
_WHOLE: Final = Partition(at=When(seconds=0.0), sides=())  # no side: nothing is cut

Pairs = tuple[tuple[str, str], ...]


class Attacking(Struct, frozen=True, forbid_unknown_fields=True):
    """As the Attack of scenarios.faults. ``seed``: of the attacker's own chance."""

    what: str
    scale: float | None
    seed: int


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the changes file. ``at``: time.monotonic(), one clock for the whole machine."""

    at: float
    sides: tuple[tuple[str, ...], ...] | None = None  # () heals
    one_way: bool = False
    clog: Pairs = ()
    unclog: Pairs = ()
    reset: Pairs = ()
    slow: dict[str, float] = {}
    links: tuple[tuple[str, str, LinkFaultSettings], ...] = ()
    disk_full: dict[str, bool] = {}
    attack: dict[str, Attacking | None] = {}  # None ends it


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node's conditions at its start, and where changes will be told."""

    me: str
    seed: int
    step_ms: float
    shapes: dict[str, LinkShape]  # by neighbour
    bandwidth_mbps: float | None  # of the node's uplink, and of its downlink
    changes: str  # path
    skew_s: float = 0.0  # what the wall clock is off by, as the node reads it when it starts
    backups: str | None = None  # folder: keep the disk as it was at each checkpoint
    broker: bool = False  # links lead over one: a chunk that is lost is gone


def change_of(fault: Fault, at: float, *, seed: int = 0) -> Change | None:
    """How a fault that happens at ``at`` is told to nodes; None where it is done to processes.

    ``seed``: for an attack, of all its nodes together.
    """
    match fault:
        case Partition():
            return Change(at=at, sides=fault.sides, one_way=fault.one_way)
        case Heal():
            return Change(at=at, sides=())
        case Slow():
            return Change(at=at, slow=dict.fromkeys(fault.nodes, fault.factor))
        case Link():
            return Change(at=at, links=tuple((a, b, fault.change) for a, b in fault.pairs))
        case Clog():
            return Change(at=at, clog=fault.pairs)
        case Unclog():
            return Change(at=at, unclog=fault.pairs)
        case Reset():
            return Change(at=at, reset=fault.pairs)
        case DiskFull():
            return Change(at=at, disk_full=dict.fromkeys(fault.nodes, True))
        case Restart():  # with room on the disks
            return Change(at=at, disk_full=dict.fromkeys(fault.nodes, False))
        case Attack():
            attack = (
                None if fault.ends else Attacking(fault.what, fault.scale, seed + number)
                for number in range(len(fault.nodes))
            )
            return Change(at=at, attack=dict(zip(fault.nodes, attack, strict=True)))
        case _:  # done to processes, or refused before anything started
            return None


def write_change(path: Path, change: Change) -> None:
    """Append one line; a reader never takes half of it for the whole."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(change) + b"\n")


def read_plan(path: Path) -> Plan:
    return msgspec.json.decode(path.read_bytes(), type=Plan)


class Weather:
    """The present conditions of the node ``plan.me``, as told so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.factor = 1.0
        self.disk_full = False
        self.shapes: dict[str, LinkShape] = dict(plan.shapes)
        self._partition = _WHOLE
        self._clogged: set[frozenset[str]] = set()
        self.attack: Attacking | None = None
        self.attacks = 0  # how often that was told
        self.resets: Counter[str] = Counter()  # of links to neighbours, so far
        self._changes = Path(plan.changes)
        self._offset = 0
        self._rest = b""
        self._due: list[Change] = []
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called whenever anything has changed."""
        self._listeners.append(listener)

    def advance(self, now: float) -> bool:
        """Take in what was told and is due at ``now`` (monotonic); True if anything changed."""
        self._read()
        due = [change for change in self._due if change.at <= now]
        self._due = [change for change in self._due if change.at > now]
        for change in sorted(due, key=lambda change: change.at):
            self._apply(change)
        if due:
            for listener in self._listeners:
                listener()
        return bool(due)

    def cut(self, peer: str) -> bool:
        """Whether ``peer`` is on the other side of a partition."""
        return not self._partition.one_way and self._partition.cuts(self.plan.me, peer)

    def held(self, peer: str) -> bool:
        """Whether what ``peer`` sends to this node is held on its way."""
        return self._holds(peer, self.plan.me)

    def shut(self, peer: str) -> bool:
        """Whether no new link to ``peer`` can be made: a handshake needs both ways."""
        return self.cut(peer) or self.held(peer) or self._holds(self.plan.me, peer)

    def shape(self, peer: str) -> LinkShape:
        return self.shapes.get(peer, CALM)

    def training_s(self, steps: int) -> float:
        """How long ``steps`` local steps take here at least."""
        return steps * self.plan.step_ms / 1000 * self.factor

    def _holds(self, source: str, target: str) -> bool:
        if frozenset((source, target)) in self._clogged:
            return True
        return self._partition.one_way and self._partition.holds(source, target)

    def _apply(self, change: Change) -> None:
        if change.sides is not None:
            at = When(seconds=change.at)
            self._partition = Partition(at=at, sides=change.sides, one_way=change.one_way)
        self._clogged |= {frozenset(pair) for pair in change.clog}
        self._clogged -= {frozenset(pair) for pair in change.unclog}
        me = self.plan.me
        for a, b in change.reset:
            self.resets.update({b} if a == me else {a} if b == me else ())
        self.factor = change.slow.get(me, self.factor)
        self.disk_full = change.disk_full.get(me, self.disk_full)
        if me in change.attack:
            self.attack = change.attack[me]
            self.attacks += 1
        for a, b, by in change.links:
            for one, other in ((a, b), (b, a)):
                if one == me:
                    self.shapes[other] = self.shape(other).changed(by)

    def _read(self) -> None:
        try:
            if self._changes.stat().st_size == self._offset:
                return
            with self._changes.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._due += [msgspec.json.decode(line, type=Change) for line in lines]
