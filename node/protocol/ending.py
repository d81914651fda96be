"""The end: after the last round serve and vote, then leave once all that matters is durable."""

from __future__ import annotations

from collections.abc import Iterator

from crypto.identity import NodeId
from node.protocol.ballots import Ballots
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.heads import HeadBook
from node.protocol.links import Links
from node.protocol.phases import Phase, Step
from node.protocol.publisher import Publisher
from node.protocol.standing import Standing
from node.types.events import Choose, Exit, Finalised, Incarnation, Persisted, Stop
from node.types.messages import HEADS_MAX
from node.types.messages import Ballots as BallotsMessage


class Ending:
    """From the finished model, or a Stop, to Exit."""

    def __init__(
        self,
        context: Context,
        *,
        standing: Standing,
        links: Links,
        heads: HeadBook,
        publisher: Publisher,
    ) -> None:
        self._context = context
        self._standing = standing
        self._links = links
        self._heads = heads
        self._publisher = publisher
        self.ballots = Ballots(context)
        self.stop_after_round = False
        self._chosen = False
        self._last_persist = 0
        self._why = ""

    def serve(self, event: Finalised) -> None:
        """The model is made: tell the neighbours, vote, and serve for ``linger_s``."""
        self._standing.timer = self._context.now + self._context.policy.linger_s
        self._links.announce(self._publisher, self._standing)
        if event.scores:
            self.ballots.cast(event.scores, self._publisher.incarnation)
            for frame in self.ballot_frames():
                self._links.broadcast(frame)

    def ballot_frames(self) -> Iterator[bytes]:
        """The ballots known here, all of them, in as many messages as they need."""
        known = [ballot for _, ballot in sorted(self.ballots.signed.items())]
        for start in range(0, len(known), HEADS_MAX):
            yield encode(BallotsMessage(tuple(known[start : start + HEADS_MAX])))

    def served(self) -> bool:
        """In FINAL: nobody can need us any more, or ``linger`` is over."""
        if not self._standing.finished:
            return False
        if self._standing.expired():
            return True
        if self._context.policy.candidates and not self.ballots.complete():
            return False
        return all(self._has_finished(peer) for peer in self._links.peers)

    def _has_finished(self, member: NodeId) -> bool:
        head = self._heads.newest.get(member)
        return head is not None and head.header.mixed_round >= self._context.policy.last_round

    def stop(self, event: Stop) -> None:
        """Asked from outside: now, or when the round in hand is mixed."""
        phase = self._standing.phase
        if event.after_round and phase not in (Phase.STARTING, Phase.FINAL):
            self.stop_after_round = True
        elif phase is not Phase.LEAVING:
            self.leave("asked to stop")

    def leave(self, why: str) -> None:
        """Say good-bye; Exit follows once everything asked for so far is durable."""
        standing = self._standing
        if standing.phase is Phase.FINAL and standing.finished:
            self._choose()
        standing.step(Step.STOP)
        standing.timer = None
        self._links.bye(why)
        # everything asked for before this is durable once this is
        record = Incarnation(self._publisher.incarnation, self._publisher.boot_id)
        self._last_persist = self._context.persist(record)
        self._why = why

    def _choose(self) -> None:
        if self._context.policy.candidates and not self._chosen:
            self._chosen = True
            self._context.emit(Choose(*self.ballots.choice()))

    def persisted(self, event: Persisted) -> None:
        if self._standing.phase is Phase.LEAVING and event.id >= self._last_persist:
            self._standing.step(Step.SAVED)
            self._context.emit(Exit(self._why, self._standing.finished))
