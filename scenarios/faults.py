"""The faults in time that an engine is given; one that it cannot inject it must refuse.

scenarios.events makes them from [[event]] tables, scenarios.chaos from rates and a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from scenarios.vocabulary import LinkFaultSettings
from topology.graph import Graph

NONE: Final = "none"  # the attack that ends one


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
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def label(self) -> str:
        """How people call it: its name, or what and when."""
        return self.name or f"{self.kind} at {self.at.text}"

    @property
    def mends(self) -> bool:
        """Whether things are meant to become good again after it."""
        return isinstance(self, Heal | Restart | Resume | Unclog)


class Partition(_Timed, frozen=True, kw_only=True):
    """Nodes of different sides cannot reach each other until Heal.

    ``one_way``: only what an earlier side sends to a later one is held; the links stay up until
    silence breaks them, and no new one can be made.
    """

    sides: tuple[tuple[str, ...], ...]
    one_way: bool = False

    def cuts(self, a: str, b: str) -> bool:
        """Whether the link between two nodes crosses the cut."""
        of = {name: side for side, names in enumerate(self.sides) for name in names}
        return a in of and b in of and of[a] != of[b]

    def holds(self, source: str, target: str) -> bool:
        """Whether a one-way partition holds what ``source`` sends to ``target``."""
        of = {name: side for side, names in enumerate(self.sides) for name in names}
        return source in of and target in of and of[source] < of[target]


class Heal(_Timed, frozen=True, kw_only=True):
    """The partition is over."""


class Crash(_Timed, frozen=True, kw_only=True):
    """The processes are gone; what was on their disks stays."""

    nodes: tuple[str, ...]


class Restart(_Timed, frozen=True, kw_only=True):
    """Nodes that are down start again, with room on their disks.

    disk: "own" as it was; "backup": as it was half the checkpoints ago; "none": but the key.
    """

    nodes: tuple[str, ...]
    disk: str = "own"


class Pause(_Timed, frozen=True, kw_only=True):
    """The processes stand still, as under SIGSTOP; their links stay up and fill."""

    nodes: tuple[str, ...]


class Resume(_Timed, frozen=True, kw_only=True):
    """Paused processes go on, with all that waited for them."""

    nodes: tuple[str, ...]


class Slow(_Timed, frozen=True, kw_only=True):
    """Local steps of these nodes take ``factor`` times as long from now on."""

    nodes: tuple[str, ...]
    factor: float


class Link(_Timed, frozen=True, kw_only=True):
    """Links change: (a, b) pairs, and what is set in ``change`` replaces what was."""

    pairs: tuple[tuple[str, str], ...]
    change: LinkFaultSettings


class Clog(_Timed, frozen=True, kw_only=True):
    """What is sent over these links is held, both ways; they stay up until silence breaks them."""

    pairs: tuple[tuple[str, str], ...]


class Unclog(_Timed, frozen=True, kw_only=True):
    """What was held goes on, in order, where the link still stands."""

    pairs: tuple[tuple[str, str], ...]


class Reset(_Timed, frozen=True, kw_only=True):
    """These links break once, with what is on the wire; their ends may dial again at once."""

    pairs: tuple[tuple[str, str], ...]


class ClockSkew(_Timed, frozen=True, kw_only=True):
    """Wall clocks are off. A node reads its own when it starts, and never again."""

    nodes: tuple[str, ...]
    offset_s: float


class DiskFull(_Timed, frozen=True, kw_only=True):
    """The next write fails: the node stops with its storage error (exit code 4)."""

    nodes: tuple[str, ...]


class Attack(_Timed, frozen=True, kw_only=True):
    """These members are malicious from now on, in this way; "none" ends it.

    what: a name of scenarios.attacks, or an absolute path and a function, "/…/file.py:function".
    """

    nodes: tuple[str, ...]
    what: str
    scale: float | None = None

    @property
    def ends(self) -> bool:
        return self.what == NONE


Fault = (
    Partition
    | Heal
    | Crash
    | Restart
    | Pause
    | Resume
    | Slow
    | Link
    | Clog
    | Unclog
    | Reset
    | ClockSkew
    | DiskFull
    | Attack
)


def attackers(faults: Iterable[Fault]) -> tuple[str, ...]:
    """Who attacks at any time, sorted: what such a node says and has proves nothing."""
    return tuple(
        sorted({n for f in faults if isinstance(f, Attack) and not f.ends for n in f.nodes})
    )


def concerned(fault: Fault, graph: Graph) -> tuple[str, ...]:
    """Whose rounds ``at = "round N"`` counts: the first of these to have mixed round N.

    What mends concerns everybody: a node that is down or cut off need not come that far.
    """
    match fault:
        case Partition():
            return tuple(name for side in fault.sides for name in side)
        case Crash() | Slow() | Pause() | DiskFull() | ClockSkew() | Attack():
            return fault.nodes
        case Link() | Clog() | Reset():
            return tuple(sorted({name for pair in fault.pairs for name in pair}))
    return graph.nodes
