"""Watches a simulation at every step for what must never happen; it trusts no core's own checks.

Checkers see what nodes ask for (effects) and tell (notices), and compare across nodes, which no
node can. They watch honest nodes: what an attacker does is its own affair, what it brings others
to do is what they look for. The invariants are in findings.py; what is taken in is judged in
taken.py, rounds in rounds.py, disks and links in shell.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

from crypto.identity import NodeId
from node.types.events import (
    Apply,
    CoreState,
    Equivocation,
    Mix,
    Notice,
    Publishing,
    Rebase,
    Receipt,
    Received,
    Record,
    RoundDone,
)
from node.types.roster import Pins, Policy, Roster
from scenarios.checkers.findings import findings
from scenarios.checkers.rounds import Rounds
from scenarios.checkers.shell import Disks, Lines
from scenarios.checkers.taken import Ball, Taken
from scenarios.faults import Partition
from scenarios.memory import Memory
from scenarios.record import Check

if TYPE_CHECKING:
    from node.protocol.core import Core

Payload = bytes | bytearray | memoryview


class Checkers:
    """All invariants of one run. ``attackers``: nodes whose word proves nothing.

    pins: where payloads and frames are looked at. memory: reads and verifies, each bytes once.
    ball: the norm bound, if there is one. findings: by the keys of ``findings.INVARIANTS``.
    late_s: how much later than it is due a node may wake, on a machine that has other work.
    """

    def __init__(
        self,
        roster: Roster,
        policy: Policy,
        pins: Pins | None = None,
        *,
        memory: Memory | None = None,
        attackers: Iterable[NodeId] = (),
        ball: Ball | None = None,
        late_s: float = 0.0,
    ) -> None:
        self._roster = roster
        self._attackers = frozenset(attackers)
        self.findings = findings()
        self.published: dict[NodeId, Publishing] = {}  # the newest of each node
        memory = memory or Memory()
        self._taken = Taken(self, roster, policy, pins, memory=memory, ball=ball)
        self._rounds = Rounds(self, roster, policy, late_s=late_s)
        self._disks = Disks(self, memory)
        self._lines = Lines(self, roster, pins, memory)

    # ── what the engine feeds in ──

    def boot(self, node: NodeId, state: CoreState) -> None:
        """A new process on a disk with ``state``: its replicas are gone."""
        self._taken.boot(node, state)
        self._rounds.boot(node, state)
        self._lines.boot(node, state)

    def restored(self, node: NodeId) -> None:
        """Its disk forgot what it had published and taken: it may begin where the disk stands.

        Its neighbours must not: what they took stays the floor of what they take.
        """
        self._taken.restored(node)

    def resumed(self, node: NodeId, at: float) -> None:
        """Its process stood still until now: a wait that this lengthened is not the node's."""
        self._rounds.resumed(node, at)

    def notice(self, node: NodeId, notice: Notice, at: float) -> None:
        if node in self._attackers:
            return
        match notice:
            case Publishing():
                self._taken.publishing(node, notice, at)
                self.published[node] = notice
            case Received():
                self._taken.receiving(node, notice, at)
            case RoundDone():
                self._taken.done(node, notice.round)
            case Equivocation():
                accused = self.findings["accused"]
                if not accused.held(notice.member in self._attackers):
                    accused.fail(f"{self.name(node)} accuses {self.name(notice.member)}", at)
        self._rounds.notice(node, notice, at)

    def record(self, node: NodeId, record: Record, at: float) -> None:
        """``node`` asks for ``record`` to be made durable."""
        if isinstance(record, Receipt) and node not in self._attackers:
            self._taken.receipt(node, record, at)

    def apply(self, node: NodeId, effect: Apply, payload: Payload, at: float) -> None:
        """A payload is about to be judged as a model, and to become a replica if it is one."""
        if node not in self._attackers:
            self._taken.apply(node, effect, payload, at)

    def applied(
        self, node: NodeId, effect: Apply, payload: Payload, at: float, *, ok: bool
    ) -> None:
        """It was judged: it is ``effect.member``'s replica now, or that member has none."""
        if node not in self._attackers:
            self._taken.applied(node, effect, payload, at, ok=ok)

    def mix(self, node: NodeId, effect: Mix, at: float) -> None:
        if node not in self._attackers:
            self._rounds.mix(node, effect, at)

    def rebase(self, node: NodeId, effect: Rebase, at: float) -> None:
        if node not in self._attackers:
            self._rounds.rebase(node, effect, at)

    def sends(self, me: NodeId, disk: CoreState, peer: NodeId, frame: bytes, at: float) -> None:
        """A frame leaves an honest node, while its disk holds ``disk``."""
        self._disks.sent(me, disk, peer, frame, at)

    def asks(self, core: Core, peer: NodeId, frame: bytes, at: float) -> None:
        """A frame left an honest node, which may be a Want."""
        self._lines.sent(core, peer, frame, at)

    def watch(self, core: Core) -> None:
        """Look at every frame that an honest node takes: where somebody attacks."""
        if core.context.me not in self._attackers:
            self._lines.watch(core)

    # ── partitions, as the engine makes and heals them ──

    def cut(self, partition: Partition, at: float, rounds: Mapping[str, int]) -> None:
        self._rounds.cut(partition, at, rounds)

    def healed(self, at: float, rounds: Mapping[str, int], *, long: bool) -> None:
        """It is over. ``long``: it lasted long enough for a round under the longest deadline."""
        self._rounds.healed(at, rounds, long=long)

    def end(self, at: float, finished: Iterable[NodeId] = ()) -> None:
        """The run is over: did healed sides meet, was everybody heard?"""
        self._rounds.end(at)
        self._taken.end(at, [node for node in finished if node not in self._attackers])

    def checks(self) -> tuple[Check, ...]:
        found = self.findings.values()
        return tuple(finding.check() for finding in found if finding.always or finding.seen)

    # ── what its parts ask ──

    def name(self, node: NodeId) -> str:
        return self._roster.name(node)

    def attacks(self, node: NodeId) -> bool:
        return node in self._attackers

    def attacks_by_name(self, name: str) -> bool:
        return any(self._roster.name(node) == name for node in self._attackers)

    def in_company(self, node: NodeId) -> bool:
        """Whether a link of it to an honest neighbour stands."""
        return any(peer not in self._attackers for peer in self._rounds.linked(node))

    def left_out(self, node: NodeId, by: NodeId, round_: int) -> bool:
        """Whether a neighbour went on from a round without ``node``'s version of it."""
        return self._rounds.left_out(node, by, round_)

    def accused(self, by: NodeId) -> Set[NodeId]:
        """Whom a node has accused, as far as its notices and its disk know."""
        return self._rounds.accused.get(by, set())

    @property
    def attackers(self) -> int:
        return len(self._attackers)

    @property
    def taken(self) -> Taken:
        return self._taken


def blind(checkers: Checkers, keys: Iterable[str]) -> None:
    """Findings that look away, for tests: what they would have seen passes."""
    for key in keys:
        checkers.findings[key].on = False
