"""Checks on rounds: what is mixed and with which weight, waiting, jumping, partitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Final

from crypto.identity import NodeId
from node.types.events import (
    CoreState,
    Equivocation,
    Jumped,
    Linked,
    Mix,
    Notice,
    PhaseChanged,
    Publishing,
    Rebase,
    RoundDone,
    Source,
    Unlinked,
)
from node.types.roster import Policy, Roster
from scenarios.faults import Partition

if TYPE_CHECKING:
    from scenarios.checkers.watch import Checkers

# Times are floats of seconds; the deadline itself is exact to a microsecond.
_SLACK_S: Final = 1e-3
# Weights are sums of up to a few thousand float64 numbers.
_ROUNDING: Final = 1e-9
JUMP_EVERY: Final = 3  # docs/design.md: at most one jump in three rounds …
STARTS_MIN: Final = 3  # … and a new start from at least three members' models, or from x₀


class Rounds:
    """Per node: where it stands, whom it may mix, how often it jumped."""

    def __init__(
        self, checkers: Checkers, roster: Roster, policy: Policy, *, late_s: float
    ) -> None:
        self._all, self._found = checkers, checkers.findings
        self._roster, self._policy, self._late_s = roster, policy, late_s
        self._stood_until: dict[NodeId, float] = {}
        self._since_jump: dict[NodeId, int] = {}  # rounds mixed
        self._reached = 0  # the furthest round that an honest node has in hand
        self._mixed: dict[NodeId, int] = {}  # the furthest round that each has mixed
        # (mixer, owner): the rounds for which it mixed that neighbour's version of them. All, since
        # who starts again from a backup mixes some of them once more
        self._used: dict[tuple[NodeId, NodeId], set[int]] = {}
        self.accused: dict[NodeId, set[NodeId]] = {}  # by whom, and whom: while it is remembered
        self._linked: dict[NodeId, set[NodeId]] = {}  # links that count
        self._fresh: set[NodeId] = set()  # new in the training, and not yet past its start
        self._cuts: list[_Cut] = []

    def boot(self, node: NodeId, state: CoreState) -> None:
        self._since_jump.pop(node, None)
        self.accused[node] = set(state.quarantined)  # what its disk still knows
        self._linked[node] = set()
        self._fresh.discard(node)
        if state.round == 0:
            self._fresh.add(node)

    def linked(self, node: NodeId) -> Set[NodeId]:
        return self._linked.get(node, frozenset())

    def resumed(self, node: NodeId, at: float) -> None:
        self._stood_until[node] = at

    def notice(self, node: NodeId, notice: Notice, at: float) -> None:
        match notice:
            case RoundDone():
                self._round(node, notice, at)
            case PhaseChanged():
                self._phase(node, notice, at)
            case Publishing():
                self._reached = max(self._reached, notice.round)
            case Jumped():
                self._jumped(node, notice, at)
            case Equivocation():
                self.accused.setdefault(node, set()).add(notice.member)
            case Linked():
                self._linked.setdefault(node, set()).add(notice.member)
            case Unlinked():
                self._linked.setdefault(node, set()).discard(notice.member)

    def _phase(self, node: NodeId, notice: PhaseChanged, at: float) -> None:
        self._all.taken.phase(node, notice.phase)
        self._reached = max(self._reached, notice.round)
        if node not in self._fresh or notice.phase in ("starting", "leaving", "stopped"):
            return
        self._fresh.discard(node)
        linked = self._linked.get(node) or not self._roster.members[node].neighbours
        if not self._found["alone"].held(bool(linked)):
            self._found["alone"].fail(f"{self._all.name(node)} begins with no link", at)

    # ── mixing ──

    def mix(self, node: NodeId, effect: Mix, at: float) -> None:
        members = [source.member for source in effect.sources]
        neighbours = self._roster.members[node].neighbours
        held = self._all.taken.held
        holds = len(set(members)) == len(members) and all(
            s.member in neighbours
            and (node, s.member) in held
            and 0 <= s.age <= self._policy.max_staleness
            for s in effect.sources
        )
        if not self._found["sources"].held(holds):
            self._found["sources"].fail(f"{self._all.name(node)} in round {effect.round}", at)
        total = math.fsum(source.weight for source in effect.sources)
        positive = all(source.weight > 0 for source in effect.sources)
        if not self._found["weights"].held(positive and total < 1 - _ROUNDING):
            said = f"{self._all.name(node)} in round {effect.round}: sum {total!r}"
            self._found["weights"].fail(said, at)
        banned = self.accused.get(node)
        if banned and not self._found["banned"].held(banned.isdisjoint(members)):
            said = f"{self._all.name(node)} mixes whom it accused, in round {effect.round}"
            self._found["banned"].fail(said, at)
        for source in effect.sources:
            self._edge(node, source, effect.round, at)

    def _edge(self, node: NodeId, source: Source, round_: int, at: float) -> None:
        """Both ends of this round's version, or the other end says that it used ours before."""
        other = source.member
        replica = self._all.taken.held.get((node, other))
        if source.age or replica is None or replica.round != round_ or self._all.attacks(other):
            return
        mine = self._all.published.get(node)
        theirs = self._all.taken.took.get((other, node), (0, 0))
        both = mine is not None and theirs >= (mine.incarnation, mine.version)
        if not self._found["edges"].held(
            both or max(self._used.get((other, node), ()), default=0) >= round_
        ):
            said = f"{self._all.name(node)} mixes {self._all.name(other)}, who holds nothing of it"
            self._found["edges"].fail(f"{said}, in round {round_}", at)

    def left_out(self, node: NodeId, by: NodeId, round_: int) -> bool:
        """Whether ``by`` went on from a round without ``node``'s version of it."""
        if self._all.attacks(by):
            return True  # whatever it says of itself harms that edge alone
        return self._mixed.get(by, 0) >= round_ and round_ not in self._used.get((by, node), ())

    def rebase(self, node: NodeId, effect: Rebase, at: float) -> None:
        if not self._found["starts"].held(not 0 < len(effect.members) < STARTS_MIN):
            said = f"{self._all.name(node)} starts again from {len(effect.members)}"
            self._found["starts"].fail(said, at)

    def _round(self, node: NodeId, notice: RoundDone, at: float) -> None:
        self._since_jump[node] = self._since_jump.get(node, JUMP_EVERY) + 1
        self._mixed[node] = max(notice.round, self._mixed.get(node, 0))
        used = {source.member for source in notice.mixed if not source.age}
        for owner in self._roster.members[node].neighbours:
            if owner in used:
                self._used.setdefault((node, owner), set()).add(notice.round)
            elif (node, owner) in self._used:  # it was killed, and mixes the round again without
                self._used[node, owner].discard(notice.round)
        limit = self._policy.deadline_max_s + self._late_s + _SLACK_S
        stood = at - notice.waited_s <= self._stood_until.get(node, -math.inf)
        if not self._found["deadline"].held(stood or notice.waited_s <= limit):
            said = f"waited {notice.waited_s:.3f} s in round {notice.round}"
            self._found["deadline"].fail(f"{self._all.name(node)} {said}", at)
        for cut in self._cuts:
            if cut.healed is not None and at >= cut.healed:
                cut.mixed(self._all.name(node), [self._all.name(s.member) for s in notice.mixed])

    def _jumped(self, node: NodeId, notice: Jumped, at: float) -> None:
        self._all.taken.done(node, notice.to_round)
        name = self._all.name(node)
        since = self._since_jump.get(node)
        if since is not None and not self._found["jumps"].held(since >= JUMP_EVERY):
            self._found["jumps"].fail(f"{name} jumps again after {since} rounds", at)
        self._since_jump[node] = 0
        # one liar cannot move the target; two together may
        beyond = notice.to_round > self._reached and self._all.attackers <= 1
        if not self._found["ahead"].held(not beyond):
            said = f"{name} jumps to {notice.to_round}, nobody is beyond {self._reached}"
            self._found["ahead"].fail(said, at)

    # ── partitions ──

    def cut(self, partition: Partition, at: float, rounds: Mapping[str, int]) -> None:
        """The network splits; ``rounds``: where every living node stands."""
        honest = {n: r for n, r in rounds.items() if not self._all.attacks_by_name(n)}
        self._cuts.append(_Cut(partition, at, honest, self._bridged(partition)))

    def _bridged(self, partition: Partition) -> set[int]:
        """The sides from which an edge between two honest nodes leads to another side."""
        side = {name: n for n, names in enumerate(partition.sides) for name in names}
        found = set()
        for node, member in self._roster.members.items():
            for other in member.neighbours:
                a, b = side.get(member.name), side.get(self._roster.name(other))
                if a is None or b is None or a == b:
                    continue
                if not self._all.attacks(node) and not self._all.attacks(other):
                    found.add(a)
        return found

    def healed(self, at: float, rounds: Mapping[str, int], *, long: bool) -> None:
        cut = self._cuts[-1]
        cut.healed = at
        for side in cut.partition.sides:
            alive = [name for name in side if name in rounds and name in cut.rounds]
            if alive and long:
                gone_on = any(rounds[name] > cut.rounds[name] for name in alive)
                if not self._found["sides"].held(gone_on):
                    said = f"the side of {side[0]} did not mix a round"
                    self._found["sides"].fail(said, at)

    def end(self, at: float) -> None:
        for cut in self._cuts:
            if cut.healed is None or not cut.could_meet:
                continue
            for number, side in enumerate(cut.partition.sides):
                if number not in cut.active or number not in cut.bridged:
                    continue
                if not self._found["meet"].held(number in cut.met):
                    said = f"the side of {side[0]} mixed no model from beyond"
                    self._found["meet"].fail(said, at)


class _Cut:
    """One partition, and which sides met others after it was healed."""

    def __init__(
        self, partition: Partition, at: float, rounds: dict[str, int], bridged: set[int]
    ) -> None:
        self.partition, self.at, self.rounds = partition, at, rounds
        self.bridged = bridged
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
