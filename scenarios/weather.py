"""What a scenario does to one real node: its links' shape, cuts and slowness, from a common start.

The engine writes changes to a file as they become known (an event "at round 10" is known when
round 10 is mixed); every node of the run reads the same file. Nothing here touches a socket:
faulty applies it to links, child to local steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from scenarios.faults import Fault, Heal, Link, Partition, Slow
from scenarios.vocabulary import LinkFaultSettings, LinkShape

PACKET_BYTES: Final = 1460
RETRANSMIT_MIN_S: Final = 0.2  # Linux's least retransmission timeout
CALM: Final = LinkShape(latency_ms=0.0, jitter_ms=0.0, loss=0.0)


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the changes file. ``at``: seconds since the engine's start."""

    at: float
    sides: tuple[tuple[str, ...], ...] | None = None  # () heals
    slow: dict[str, float] = {}
    links: tuple[tuple[str, str, LinkFaultSettings], ...] = ()


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node's conditions at the start, and where changes will be told."""

    me: str
    start: float  # time.monotonic() at the engine's start: one clock for the whole machine
    seed: int
    step_ms: float
    shapes: dict[str, LinkShape]  # by neighbour
    uplink_mbps: float | None
    changes: str  # path


def change_of(fault: Fault, at: float) -> Change | None:
    """How a fault that happens at ``at`` is told to nodes; None where it is done to processes."""
    match fault:
        case Partition():
            return Change(at=at, sides=fault.sides)
        case Heal():
            return Change(at=at, sides=())
        case Slow():
            return Change(at=at, slow=dict.fromkeys(fault.nodes, fault.factor))
        case Link():
            return Change(at=at, links=tuple((a, b, fault.change) for a, b in fault.pairs))
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
        self.shapes: dict[str, LinkShape] = dict(plan.shapes)
        self._sides: tuple[tuple[str, ...], ...] = ()
        self._changes = Path(plan.changes)
        self._offset = 0
        self._rest = b""
        self._due: list[Change] = []

    def advance(self, now: float) -> bool:
        """Take in what was told and is due at ``now`` (monotonic); True if anything changed."""
        self._read()
        since = now - self.plan.start
        due = [change for change in self._due if change.at <= since]
        self._due = [change for change in self._due if change.at > since]
        for change in sorted(due, key=lambda change: change.at):
            self._apply(change)
        return bool(due)

    def cut(self, peer: str) -> bool:
        """Whether ``peer`` is on the other side of a partition."""
        of = {name: number for number, names in enumerate(self._sides) for name in names}
        me = self.plan.me
        return me in of and peer in of and of[me] != of[peer]

    def shape(self, peer: str) -> LinkShape:
        return self.shapes.get(peer, CALM)

    def training_s(self, steps: int) -> float:
        """How long ``steps`` local steps take here at least."""
        return steps * self.plan.step_ms / 1000 * self.factor

    def _apply(self, change: Change) -> None:
        if change.sides is not None:
            self._sides = change.sides
        self.factor = change.slow.get(self.plan.me, self.factor)
        for a, b, by in change.links:
            for one, other in ((a, b), (b, a)):
                if one == self.plan.me:
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


class Pipe:
    """When what is sent on one link arrives: latency, jitter, bandwidth, loss as a delay; in order.

    Pure: times in and out are monotonic seconds. ``uplink`` is shared by all links of a node.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._free = 0.0
        self._last = 0.0

    def arrival(
        self, now: float, length: int, shape: LinkShape, chance: Mapping[str, float]
    ) -> float:
        """The instant at which ``length`` bytes handed over at ``now`` may leave for the peer.

        chance: "jitter" and "loss", each drawn uniformly from [0, 1).
        """
        out = self._uplink.pass_through(now, length)
        if shape.bandwidth_mbps is not None:
            out = self._free = max(out, self._free) + length * 8e-6 / shape.bandwidth_mbps
        delay = (shape.latency_ms + shape.jitter_ms * chance["jitter"]) / 1000
        if shape.loss > 0:
            packets = max(1, -(-length // PACKET_BYTES))
            if chance["loss"] < 1 - (1 - shape.loss) ** packets:
                delay += max(RETRANSMIT_MIN_S, 4 * shape.latency_ms / 1000)  # 2 RTT
        self._last = max(self._last, out + delay)  # a stream keeps its order
        return self._last


class Uplink:
    """A node's own bandwidth, shared by its links."""

    def __init__(self, mbps: float | None) -> None:
        self._mbps = mbps
        self._free = 0.0

    def pass_through(self, now: float, length: int) -> float:
        if self._mbps is None:
            return now
        self._free = max(now, self._free) + length * 8e-6 / self._mbps
        return self._free
