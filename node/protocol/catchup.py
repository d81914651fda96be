"""How far the others are, without believing any one of them, and what to start again from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crypto.identity import NodeId
from node.protocol.context import Context
from node.protocol.heads import HeadBook
from node.protocol.links import Links
from node.protocol.phases import Phase, Step
from node.protocol.reception import Reception
from node.protocol.standing import Standing
from node.types.events import Jumped, Rebase, Rebased

KEYFRAMES_MIN: Final = 3  # a median of three bears one liar
JUMP_EVERY: Final = 3  # at most one jump in as many rounds
FURTHER_MIN: Final = 2


def frontier(own: int, neighbours: Sequence[int], further: Sequence[int], *, last: int) -> int:
    """The round that the consortium is working on, as far as one liar cannot move it.

    own: the label this node would work on next; neighbours: newest labels of all linked
    neighbours; further: labels that other members signed; last: the training's end.
    The lower median over self and neighbours; at degree 2 and less a label that two further
    members attest, where there are two.
    """
    labels = sorted([own, *neighbours])
    target = labels[(len(labels) - 1) // 2]
    if len(neighbours) <= FURTHER_MIN and len(further) >= FURTHER_MIN:
        target = sorted(further)[-FURTHER_MIN]
    return max(own, min(target, last))


class CatchUp:
    """Keyframes of at least three members, gathered from neighbours and through them."""

    def __init__(
        self,
        context: Context,
        *,
        standing: Standing,
        links: Links,
        heads: HeadBook,
        reception: Reception,
        jumped_at: int,
    ) -> None:
        self._context = context
        self._standing = standing
        self._links = links
        self._heads = heads
        self._reception = reception
        self.jumped_at = jumped_at  # the round of the last jump
        self.rebasing = False  # the learner is making a new start model

    def fell_behind(self) -> bool:
        """Skip rounds that the others have done; True if a new start model is being gathered."""
        standing, policy = self._standing, self._context.policy
        starting = standing.phase is Phase.STARTING
        gap = self._gap()
        new = standing.round == 0 and gap > 0
        if gap <= 0 or (not starting and standing.round - self.jumped_at < JUMP_EVERY):
            return False
        if gap > policy.max_staleness or new:
            standing.step(Step.BEHIND)
            standing.timer = self._context.now + policy.deadline_max_s
            return True
        self._jump(standing.round + gap, "own model")
        return False

    def settled(self) -> bool:
        """While catching up: gather, and start again from what there is.

        True where the own model is kept after all, so that the next round may begin at once.
        """
        if self.rebasing:
            return False
        self.gather(self._standing.round + 1)
        if self._reception.applying:
            return False
        if not self._standing.expired() and not self._enough():
            return False
        return not self._rebase()

    def _rebase(self) -> bool:
        """Ask for a new start model; False where there is no reason to drop the own one."""
        standing = self._standing
        standing.timer = None
        gap = self._gap()
        if standing.round and gap <= self._context.policy.max_staleness:
            # those who were ahead are out of reach
            self._reception.forget_borrowed()
            if gap > 0:
                self._jump(standing.round + gap, "own model")
            return False
        own = standing.round + 1
        members = self.keyframes(own) if self._enough() else ()
        self._context.emit(Rebase(self.frontier(own) - 1, members))
        self.rebasing = True
        return True

    def rebased(self, event: Rebased) -> None:
        """The new start model is made: go on from the round before the others'."""
        self._standing.expect(Phase.CATCHING_UP, event)
        self.rebasing = False
        self._reception.forget_borrowed()
        self._jump(event.round, event.start)

    def _jump(self, to: int, start: str) -> None:
        standing = self._standing
        self._context.note(Jumped(standing.round, to, start))
        standing.round = standing.current = self.jumped_at = to

    def _gap(self) -> int:
        own = self._standing.round + 1
        return self.frontier(own) - own

    def _enough(self) -> bool:
        return len(self.keyframes(self._standing.round + 1)) >= KEYFRAMES_MIN

    def frontier(self, own: int) -> int:
        """See the function: with what this node has been shown so far."""
        neighbours = [
            max(self._heads.round_of(peer.id), peer.hello.round if peer.hello else 0)
            for peer in self._links.linked()
            if peer.id not in self._heads.quarantined
        ]
        # few neighbours: others are asked as well; with more, a walk over all members says nothing
        known = self._heads.newest if len(neighbours) <= FURTHER_MIN else {}
        further = [
            head.header.round
            for member, head in known.items()
            if member not in self._links.peers and member not in self._heads.quarantined
        ]
        return frontier(own, neighbours, further, last=self._context.policy.last_round)

    def gather(self, own: int) -> None:
        """Ask neighbours for keyframes of members further away."""
        fresh = self.frontier(own) - self._context.policy.max_staleness
        for member in sorted(self._heads.newest):
            if member in self._links.peers or member in self._reception.asked:
                continue
            if self._heads.round_of(member) < fresh:
                continue
            for peer in self._links.linked():
                if member in self._context.roster.members[peer.id].neighbours:
                    self._reception.ask(peer, member)
                    break

    def keyframes(self, own: int) -> tuple[NodeId, ...]:
        """Members whose public model is held here and no staler than the policy allows."""
        fresh = self.frontier(own) - self._context.policy.max_staleness
        held = {p.id: p.replica.head for p in self._links.peers.values() if p.replica is not None}
        held.update(self._reception.borrowed)
        return tuple(
            member
            for member in sorted(held)
            if held[member].header.round >= fresh and member not in self._heads.quarantined
        )
