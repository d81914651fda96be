"""One round: train, publish, collect the neighbours' versions, mix; and its account of edges.

The rule of when an edge counts is in edges.py; how long a round waits, in deadline.py.
"""

from __future__ import annotations

from typing import Final

from crypto.identity import NodeId
from node.protocol.context import Context
from node.protocol.deadline import Arrivals
from node.protocol.edges import Use, counts, left_out, use
from node.protocol.heads import HeadBook
from node.protocol.links import Links
from node.protocol.peers import Peer
from node.protocol.phases import Phase, Step
from node.protocol.publisher import Publisher, counted_ids
from node.protocol.reading import Head
from node.protocol.reception import Reception
from node.protocol.standing import Standing
from node.types.events import (
    CoreState,
    Encode,
    Encoded,
    Missing,
    Mix,
    Mixed,
    Payload,
    RoundDone,
    Source,
    Train,
    Trained,
)

COUNTED_MAX: Final = 8  # rounds for which a neighbour's own account of an edge is awaited


class Rounds:
    """The way of one round, from its first local step to its mix."""

    def __init__(
        self,
        context: Context,
        *,
        standing: Standing,
        links: Links,
        heads: HeadBook,
        publisher: Publisher,
        reception: Reception,
        state: CoreState,
    ) -> None:
        self._context = context
        self._standing = standing
        self._links = links
        self._heads = heads
        self._publisher = publisher
        self._reception = reception
        self.arrivals = Arrivals(context.policy, state.arrivals)
        self.half_edges, self.late = state.half_edges, state.late
        self.republishing = False
        self._my_mark = counted_ids([context.me])[0]  # how headers name this node
        self._published_at = 0.0
        self._publish_times: dict[int, float] = {}
        self._observed: set[NodeId] = set()  # edges of this round whose arrival is noted
        self._uses: tuple[tuple[Peer, Use], ...] = ()
        self._loss: float | None = None

    # ── training and publishing ──

    def begin(self) -> None:
        """The next round: local steps, or in the final mixing none."""
        standing = self._standing
        standing.current = standing.round + 1
        self._publisher.reserve()
        if standing.current <= self._context.policy.rounds:
            standing.step(Step.TRAIN)
            self._context.emit(Train(standing.current))
        else:
            self._loss = None
            standing.step(Step.PUBLISH)
            self._encode(standing.current)

    def republish(self) -> None:
        """After a resume: offer again what was published last, under the new incarnation."""
        self.republishing = True
        self._encode(self._standing.round, again=True)

    def trained(self, event: Trained) -> None:
        self._loss = event.loss
        self._standing.step(Step.TRAINED)
        self._encode(self._standing.current)

    def encoded(self, event: Encoded) -> None:
        """Offer the new version; from here on the round waits for the neighbours' own."""
        standing = self._standing
        if self.republishing:
            self.republishing = False
            self.publish(event.payload, standing.round)
            return
        standing.step(Step.ENCODED)
        self.publish(event.payload, standing.current)
        now = self._context.now
        self._published_at, self._publish_times[standing.current] = now, now
        self._publish_times.pop(standing.current - self._context.policy.max_staleness - 1, None)
        self._observed.clear()
        training = standing.current <= self._context.policy.rounds
        standing.timer = now + self.arrivals.wait_s(training=training, ahead=self._far_ahead())

    def publish(self, payload: Payload, round_: int) -> None:
        """Sign ``payload`` as the version of ``round_`` and offer it to every linked neighbour."""
        standing = self._standing
        self._publisher.publish(
            payload, round_=round_, mixed_round=standing.mixed_round, counted=standing.counted
        )
        for peer in self._links.linked():
            peer.sent_at = self._context.now
            self._publisher.offer_to(peer.id)

    def _encode(self, round_: int, *, again: bool = False) -> None:
        self._publisher.reserve()
        self._publisher.encoding = True
        self._context.emit(Encode(round_, self._publisher.version + 1, keyframe=True, again=again))

    def _far_ahead(self) -> bool:
        """Whether most linked neighbours are so far behind that nothing of theirs may be mixed.

        A node that was alone waited for nobody. Without this it could stay ahead of slower ones to
        the end and mix nothing; most, so that one liar who says "behind" holds nobody up.
        """
        rounds = sorted(
            self._heads.round_of(peer.id)
            for peer in self._links.linked()
            if peer.id not in self._heads.quarantined
        )
        least = self._standing.current - self._context.policy.max_staleness
        return bool(rounds) and rounds[len(rounds) // 2] < least

    # ── collecting ──

    def observe(self, peer: Peer) -> None:
        """Note how long after our own publish this edge became complete."""
        if self._standing.phase is not Phase.COLLECTING or peer.id in self._observed:
            return
        if counts(peer, self._standing.current, self._publisher.version):
            self._observed.add(peer.id)
            self.arrivals.observe(self._context.now - self._published_at)

    def observe_late(self, peer: Peer) -> None:
        """A version of a round that is mixed already says how long waiting would have taken.

        Once a round: one neighbour that publishes and publishes must not fill the memory of
        arrivals, and with it decide how long every round waits.
        """
        assert peer.replica is not None
        label = peer.replica.head.header.round
        known = max(peer.mixed_round, peer.timed_round)
        if label in self._publish_times and known < label <= self._standing.round:
            peer.timed_round = label
            self.arrivals.observe(self._context.now - self._publish_times[label])

    def collected(self) -> bool:
        """Whether nothing can be waited for any more, or the deadline is past."""
        if self._reception.applying:
            return False
        if self._standing.expired():
            return True
        for peer in self._links.peers.values():  # asked after every frame: no generators here
            if peer.linked and not self._arrived(peer):
                return False
        return True

    def _arrived(self, peer: Peer) -> bool:
        current, version = self._standing.current, self._publisher.version
        if counts(peer, current, version) or peer.id in self._heads.quarantined:
            return True
        held, waiting = peer.replica, self._reception.ready.get(peer.id)
        newest = peer.bad_round  # refused here: nothing better comes for this round
        if held is not None:
            newest = max(newest, held.head.header.round)
        if waiting is not None:
            newest = max(newest, waiting.head.header.round)
        if newest != current:
            return newest > current
        if left_out(peer, current):
            return True
        return peer.bad_round == newest or peer.refused_version >= version

    # ── mixing ──

    def mix(self) -> None:
        """Hand what counts to the learner."""
        context, standing = self._context, self._standing
        standing.step(Step.COLLECTED)
        self._uses = tuple((peer, self._use(peer)) for peer in self._links.peers.values())
        standing.timer = None
        training = standing.current <= context.policy.rounds
        omega = 1.0 if training else context.policy.final_omega
        context.emit(Mix(standing.current, self._sources(), training, omega))

    def _use(self, peer: Peer) -> Use:
        if peer.id in self._heads.quarantined:
            return Use(None, why="in quarantine: it contradicted itself")
        context = self._context
        return use(
            context.self_member,
            context.roster.members[peer.id],
            peer,
            round_=self._standing.current,
            version=self._publisher.version,
            stale_max=context.policy.max_staleness,
        )

    def _sources(self) -> tuple[Source, ...]:
        return tuple(found.source for _, found in self._uses if found.source is not None)

    def mixed(self, event: Mixed) -> None:
        """Write down whose versions were mixed, and whose were missing."""
        standing = self._standing
        standing.expect(Phase.MIXING, event)
        counted = []
        for peer, found in self._uses:
            if found.source is None:
                peer.miss(standing.current, found.why)
                continue
            assert peer.replica is not None
            peer.mixed_round = max(peer.mixed_round, peer.replica.head.header.round)
            if found.mutual:
                counted.append(peer.id)
                peer.counted_rounds = [*peer.counted_rounds, standing.current][-COUNTED_MAX:]
            else:
                self.late += 1
        standing.round = standing.mixed_round = standing.current
        standing.counted = tuple(counted)
        self._note_round(event)

    def _note_round(self, event: Mixed) -> None:
        sources = self._sources()
        self._context.note(
            RoundDone(
                round=self._standing.round,
                mixed=sources,
                missing=tuple(Missing(p.id, u.why) for p, u in self._uses if u.source is None),
                own_weight=1.0 - sum(source.weight for source in sources),
                loss=self._loss,
                waited_s=self._context.now - self._published_at,
                half_edges=self.half_edges,
                late=self.late,
                alone=not any(True for _ in self._links.linked()),
                kept_own=event.kept_own,
            )
        )

    def account(self, head: Head) -> None:
        """A neighbour's header says with whom it mixed: compare with our own account."""
        peer = self._links.peers.get(NodeId(head.header.sender))
        if peer is None:
            return
        mixed, used = head.header.mixed_round, self._my_mark in head.header.counted
        if head.header.incarnation > peer.used_boot:
            peer.used_boot = head.header.incarnation
            peer.used_round, peer.left_out = 0, range(0)
        if used:
            peer.used_round = max(peer.used_round, mixed)
        elif mixed >= peer.left_out.stop:
            first = peer.left_out.start if mixed == peer.left_out.stop else mixed
            peer.left_out = range(first, mixed + 1)
        if not peer.counted_rounds or mixed < peer.counted_rounds[0]:
            return
        if mixed in peer.counted_rounds and not used:
            self.half_edges += 1
        peer.counted_rounds = [r for r in peer.counted_rounds if r > mixed]
