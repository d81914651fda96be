"""Watches a simulation at every step for what must never happen; it trusts no core's own checks.

A checker sees what nodes ask for (effects) and tell (notices), and compares across nodes, which
no node can. Each keeps a count of what it looked at and the first violation it saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from crypto.hashing import tree_digest
from crypto.identity import NodeId
from node.types.events import (
    Apply,
    Equivocation,
    Mix,
    Notice,
    Publishing,
    Received,
    RoundDone,
)
from node.types.roster import Policy, Roster
from scenarios.faults import Partition
from scenarios.record import Check

# Times are floats of seconds; the deadline itself is exact to a microsecond.
_SLACK_S: Final = 1e-3
# Weights are sums of up to a few thousand float64 numbers.
_ROUNDING: Final = 1e-9

Payload = bytes | bytearray | memoryview
Version = tuple[int, bytes, int]  # incarnation, boot_id, version


class Finding:
    """One invariant: how often it was looked at, and the first time it did not hold."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0
        self.broken = 0
        self.first = ""

    def look(self, holds: bool, what: str | Callable[[], str], at: float) -> None:
        """``what`` is wrong where it does not hold: a function where it is looked at often."""
        self.seen += 1
        if not holds:
            self.broken += 1
            said = what if isinstance(what, str) else what()
            self.first = self.first or f"at {at:.6f} s: {said}"

    def check(self) -> Check:
        value = f"{self.seen} looked at" if not self.broken else self.first
        return Check(self.name, not self.broken, value, None)


class Checkers:
    """All invariants of one run. ``attackers``: nodes whose word proves nothing.

    ``digest``: crypto.hashing.tree_digest, or one that remembers its answers by exact bytes.
    """

    def __init__(
        self,
        roster: Roster,
        policy: Policy,
        *,
        digest: Callable[[Payload], bytes] = tree_digest,
        attackers: Iterable[NodeId] = (),
    ) -> None:
        self._roster, self._policy, self._digest = roster, policy, digest
        self._attackers = frozenset(attackers)
        self._published: dict[NodeId, dict[Version, bytes]] = {m: {} for m in roster.members}
        self._newest: dict[NodeId, tuple[int, int]] = {}
        self._received: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}
        self._held: dict[tuple[NodeId, NodeId], bytes] = {}  # (holder, owner) -> model digest
        self.unique = Finding("no version twice with different content")
        self.grow = Finding("versions only grow")
        self.genuine = Finding("only what its owner published is applied")
        self.replayed = Finding("nothing older than before is applied")
        self.sources = Finding("only applied models of neighbours are mixed")
        self.weights = Finding("weights are positive and sum to at most 1")
        self.deadline = Finding("nobody waits longer than the deadline")
        self.accused = Finding("no honest node is accused")
        self.sides = Finding("each side of a partition goes on training")
        self.meet = Finding("after a heal the sides mix with each other")
        self._cuts: list[_Cut] = []
        self._stood_until: dict[NodeId, float] = {}

    # ── what the engine feeds in ──

    def boot(self, node: NodeId) -> None:
        """A new process: its replicas are gone."""
        for holder, owner in [key for key in self._held if key[0] == node]:
            del self._held[holder, owner]

    def restored(self, node: NodeId) -> None:
        """Its disk forgot what it had published: it may count again from where the disk stands.

        Its neighbours must not: what they took stays the floor of what they take.
        """
        self._newest.pop(node, None)

    def resumed(self, node: NodeId, at: float) -> None:
        """Its process stood still until now: a wait that this lengthened is not the node's."""
        self._stood_until[node] = at

    def notice(self, node: NodeId, notice: Notice, at: float) -> None:
        match notice:
            case Publishing():
                self._publishing(node, notice, at)
            case Received():
                self._receiving(node, notice, at)
            case RoundDone():
                self._round(node, notice, at)
            case Equivocation():
                self.accused.look(
                    notice.member in self._attackers,
                    f"{self._name(node)} accuses {self._name(notice.member)}",
                    at,
                )

    def apply(self, node: NodeId, effect: Apply, payload: Payload, at: float) -> None:
        """A payload is about to become a replica: are these the bytes its owner published?"""
        header, owner = effect.header, effect.member
        version = (header.incarnation, header.boot_id, header.version)
        model = self._published.get(owner, {}).get(version)
        digest = self._digest(payload)
        if owner in self._attackers:  # whatever it signed it has published
            model = header.model
        self.genuine.look(
            model is not None and model == header.model == digest,
            lambda: (
                f"{self._name(node)} applies as {self._name(owner)}'s version {header.version} "
                "what that node never published"
            ),
            at,
        )
        self._held[node, owner] = digest

    def mix(self, node: NodeId, effect: Mix, at: float) -> None:
        neighbours = self._roster.members[node].neighbours
        members = [source.member for source in effect.sources]
        self.sources.look(
            len(set(members)) == len(members)
            and all(m in neighbours and (node, m) in self._held for m in members)
            and all(0 <= s.age <= self._policy.max_staleness for s in effect.sources),
            lambda: (
                f"{self._name(node)} mixes {[self._name(m) for m in members]} in round "
                f"{effect.round}"
            ),
            at,
        )
        weights = [source.weight for source in effect.sources]
        self.weights.look(
            all(weight > 0 for weight in weights) and sum(weights) < 1 - _ROUNDING,
            lambda: f"{self._name(node)} mixes with weights {weights} in round {effect.round}",
            at,
        )

    def cut(self, partition: Partition, at: float, rounds: Mapping[str, int]) -> None:
        """A partition begins; ``rounds``: the last round mixed by each node that is alive."""
        self._cuts.append(_Cut(partition, at, dict(rounds)))

    def healed(self, at: float, rounds: Mapping[str, int], *, long: bool) -> None:
        """It is over. ``long``: it lasted long enough for a round under the longest deadline."""
        cut = self._cuts[-1]
        cut.healed = at
        for side in cut.partition.sides:
            alive = [name for name in side if name in rounds and name in cut.rounds]
            if alive and long:
                gone_on = any(rounds[name] > cut.rounds[name] for name in alive)
                self.sides.look(gone_on, f"the side of {side[0]} did not mix a round", at)

    def end(self, at: float) -> None:
        """The run is over: did healed sides meet?"""
        for cut in self._cuts:
            if cut.healed is None or not cut.could_meet:
                continue
            for number, side in enumerate(cut.partition.sides):
                if number in cut.active:
                    self.meet.look(
                        number in cut.met, f"the side of {side[0]} mixed no model from beyond", at
                    )

    def checks(self) -> tuple[Check, ...]:
        found = (
            self.unique,
            self.grow,
            self.genuine,
            self.replayed,
            self.sources,
            self.weights,
            self.deadline,
            self.accused,
        )
        made = [finding.check() for finding in found]
        made += [finding.check() for finding in (self.sides, self.meet) if finding.seen]
        return tuple(made)

    # ── the invariants ──

    def _publishing(self, node: NodeId, notice: Publishing, at: float) -> None:
        key = (notice.incarnation, notice.boot_id, notice.version)
        before = self._published[node].setdefault(key, notice.model)

        def said() -> str:
            return f"{self._name(node)} publishes version {notice.version} of {notice.incarnation}"

        self.unique.look(before == notice.model, said, at)
        order = (notice.incarnation, notice.version)
        self.grow.look(order > self._newest.get(node, (0, 0)), said, at)
        self._newest[node] = max(order, self._newest.get(node, order))

    def _receiving(self, node: NodeId, notice: Received, at: float) -> None:
        order = (notice.incarnation, notice.version)
        before = self._received.get((node, notice.member), (0, 0))
        self.replayed.look(
            order >= before,
            lambda: (
                f"{self._name(node)} applies {self._name(notice.member)}'s {order} after {before}"
            ),
            at,
        )
        self._received[node, notice.member] = order

    def _round(self, node: NodeId, notice: RoundDone, at: float) -> None:
        limit = self._policy.deadline_max_s + _SLACK_S
        stood = at - notice.waited_s <= self._stood_until.get(node, -math.inf)
        self.deadline.look(
            stood or notice.waited_s <= limit,
            lambda: f"{self._name(node)} waited {notice.waited_s:.3f} s in round {notice.round}",
            at,
        )
        for cut in self._cuts:
            if cut.healed is not None and at >= cut.healed:
                cut.mixed(self._name(node), [self._name(s.member) for s in notice.mixed])

    def _name(self, node: NodeId) -> str:
        return self._roster.name(node)


class _Cut:
    """One partition, and which sides met others after it was healed."""

    def __init__(self, partition: Partition, at: float, rounds: dict[str, int]) -> None:
        self.partition, self.at, self.rounds = partition, at, rounds
        self.healed: float | None = None
        self._side = {name: n for n, side in enumerate(partition.sides) for name in side}
        self.active: dict[int, int] = {}  # side -> rounds mixed since the heal
        self.met: set[int] = set()

    @property
    def could_meet(self) -> bool:
        """Whether two sides at least have mixed rounds since the heal."""
        return len(self.active) > 1

    def mixed(self, name: str, sources: Iterable[str]) -> None:
        own = self._side.get(name)
        if own is None:
            return
        self.active[own] = self.active.get(own, 0) + 1
        if any(self._side.get(source, own) != own for source in sources):
            self.met.add(own)
