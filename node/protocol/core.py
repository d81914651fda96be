"""The node's protocol as a machine that is told the time: events in, effects out, one timer.

No clock, socket, tensor or event loop: a shell carries the effects out (`node/runtime.py` on real
sockets, `scenarios/simulation.py` under virtual time) and feeds back what came of them. Here each
event goes to the part that answers for it: rounds.py, catchup.py, ending.py, links.py, inbox.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from crypto.identity import NodeId
from node.protocol.ballots import Ballots
from node.protocol.catchup import CatchUp
from node.protocol.context import Context, Entropy, Rng, Sign, Verify
from node.protocol.edges import left_out
from node.protocol.ending import Ending
from node.protocol.frames import encode
from node.protocol.heads import HeadBook
from node.protocol.inbox import Inbox
from node.protocol.links import Links
from node.protocol.peers import Peer
from node.protocol.phases import Phase, Step
from node.protocol.presence import PresenceFlood
from node.protocol.publisher import Publisher
from node.protocol.reading import Head, Reader
from node.protocol.reception import Reception
from node.protocol.rounds import Rounds
from node.protocol.standing import Standing
from node.protocol.starting import StartGate
from node.types.events import (
    Applied,
    Checkpoint,
    CoreState,
    DialFailed,
    Effect,
    Encoded,
    Event,
    Finalise,
    Finalised,
    Frame,
    Hangup,
    LinkDown,
    LinkUp,
    Mixed,
    Persisted,
    Rebased,
    Start,
    Stop,
    Trained,
    Wake,
)
from node.types.messages import HEADS_MAX, Heads
from node.types.roster import Pins, Policy, Roster

HEADS_EVERY: Final = 4  # rounds between two floods of heads, on average; new links get them too


class Core:
    """One node. ``handle`` is the only entry; ``next_wake`` the only timer."""

    def __init__(
        self,
        *,
        me: NodeId,
        roster: Roster,
        pins: Pins,
        policy: Policy,
        state: CoreState,
        sign: Sign,
        verify: Verify,
        entropy: Entropy,
        rng: Rng,
        reader: Reader | None = None,
    ) -> None:
        context = self.context = Context(
            me=me,
            roster=roster,
            pins=pins,
            policy=policy,
            sign=sign,
            verify=verify,
            entropy=entropy,
            rng=rng,
            reader=reader or Reader(),
        )
        resumed = state.round > 0
        self.standing = Standing(context, state)
        self.links = Links(context)
        self.heads = HeadBook(context, state.floors)
        self.heads.restore_quarantine(state.quarantined)
        self.publisher = Publisher(context, state)
        self.presence = PresenceFlood(context, self.links)
        self.reception = Reception(context, self.links, self.heads)
        self.start_gate = StartGate(context, self.links, self.heads, resumed=resumed)
        self.rounds = Rounds(
            context,
            standing=self.standing,
            links=self.links,
            heads=self.heads,
            publisher=self.publisher,
            reception=self.reception,
            state=state,
        )
        self.catch_up = CatchUp(
            context,
            standing=self.standing,
            links=self.links,
            heads=self.heads,
            reception=self.reception,
            jumped_at=state.jumped_at,
        )
        self.ending = Ending(
            context,
            standing=self.standing,
            links=self.links,
            heads=self.heads,
            publisher=self.publisher,
        )
        self.inbox = Inbox(self)
        self._resumed = resumed
        self._start_due = False  # the start waits for nothing but what is being applied
        self._restore_peers(state)
        self._handlers = self._table()

    # ── what others may know of it ──

    @property
    def phase(self) -> Phase:
        return self.standing.phase

    @property
    def round(self) -> int:
        """The last round mixed."""
        return self.standing.round

    @property
    def half_edges(self) -> int:
        """Edges, over all rounds, that this end mixed and the other did not."""
        return self.rounds.half_edges

    @property
    def late(self) -> int:
        """Versions mixed in a later round than their own."""
        return self.rounds.late

    @property
    def ballots(self) -> Ballots:
        return self.ending.ballots

    # ── entry, timer, snapshot ──

    def handle(self, event: Event, *, now: float) -> tuple[Effect, ...]:
        """Take one event at ``now`` (seconds, any origin, never backwards).

        Carry the effects out in order, then re-arm one timer at ``next_wake()``. Bad input from a
        peer never raises. Raises LocalProtocolError for an event that the phase does not allow.
        """
        phase, context = self.standing.phase, self.context
        if phase is Phase.STOPPED:
            return ()
        context.now = now
        context.effects = []
        if type(event) is Persisted:
            self.ending.persisted(event)  # nothing but the end waits for the disk
        elif phase is not Phase.LEAVING:
            self._handlers[type(event)](event)
            self._settle()
        return tuple(context.effects)

    def _table(self) -> dict[type, Callable[[Any], None]]:
        """Who answers for which event."""
        return {
            Start: self._on_start,
            LinkUp: self._on_link_up,
            LinkDown: self._on_link_down,
            DialFailed: self._on_dial_failed,
            Frame: self._on_frame,
            Wake: self._on_wake,
            Trained: self.rounds.trained,
            Encoded: self.rounds.encoded,
            Applied: self._on_applied,
            Mixed: self._on_mixed,
            Rebased: self._on_rebased,
            Finalised: self._on_finalised,
            Stop: self.ending.stop,
        }

    def next_wake(self) -> float | None:
        """When Wake must be handed in at the latest."""
        if self.phase in (Phase.LEAVING, Phase.STOPPED):
            return None  # the disk answers by itself
        # a deadline that is past was acted upon: what it still waits for comes as an event
        timer = None if self.standing.expired() else self.standing.timer
        times = [timer, self.links.wake_at(), self.reception.transfers.wake_at()]
        if self.phase is Phase.STARTING:
            times += [self.start_gate.wake_at(), self.presence.wake_at()]
        return min([at for at in times if at is not None], default=None)

    def snapshot(self) -> CoreState:
        """What a later process resumes from."""
        peers = self.links.peers.values()
        return CoreState(
            round=self.standing.round,
            version=self.publisher.version,
            incarnation=self.publisher.incarnation,
            floors={p.id: p.floor.signed for p in peers if p.floor is not None},
            mixed_rounds={p.id: p.mixed_round for p in peers if p.mixed_round},
            quarantined=dict(self.heads.quarantined),
            arrivals=self.rounds.arrivals.seen(),
            missed={
                p.id: (p.missed_count, p.missed_first, p.missed_last, p.missed_why)
                for p in peers
                if p.missed_count
            },
            half_edges=self.half_edges,
            late=self.late,
            jumped_at=self.catch_up.jumped_at,
            mixed_round=self.standing.mixed_round,
            counted=self.standing.counted,
            finished=self.standing.finished,
        )

    def _restore_peers(self, state: CoreState) -> None:
        for peer in self.links.peers.values():
            peer.mixed_round = state.mixed_rounds.get(peer.id, 0)
            if peer.id in state.floors:
                peer.floor = self.heads.newest[peer.id]
            if peer.id in state.missed:
                count, first, last, why = state.missed[peer.id]
                peer.missed_count, peer.missed_first = count, first
                peer.missed_last, peer.missed_why = last, why

    # ── links and frames ──

    def _on_start(self, event: Start) -> None:
        self.standing.expect(Phase.STARTING, event)
        self.publisher.start(event.wall_ms)
        self.links.announce(self.publisher, self.standing)
        self.links.start()
        self.links.wake()
        self.standing.timer = self.start_gate.deadline(event.wall_ms)
        if self._resumed:  # finished or not: a neighbour may need the last version
            self.rounds.republish()

    def _on_link_up(self, event: LinkUp) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is None:
            self.context.emit(Hangup(event.peer, "the topology has no edge between us"))
            return
        if peer.up:
            self.reception.interrupted(peer.id)
        self.links.up(peer)
        self._greet(peer)

    def _greet(self, peer: Peer) -> None:
        head = self.heads.newest.get(peer.id)
        theirs = head.signed if head else None
        self.links.greet(peer, self.publisher, self.standing.current, theirs)

    def _on_link_down(self, event: LinkDown) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and peer.up:
            self.reception.interrupted(peer.id)
            self.links.down(peer, event.why)

    def _on_dial_failed(self, event: DialFailed) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and not peer.up:
            self.links.dial_failed(peer, event.why)

    def _on_frame(self, event: Frame) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and peer.up:
            self.inbox.take(peer, event.data)
            if peer.hello is not None:  # a link that never says Hello is given up as a silent one
                peer.heard_at = self.context.now

    def _on_wake(self, _event: Wake) -> None:
        self.links.wake()
        self.presence.send()
        self.reception.transfers.wake()

    # ── what the inbox asks for ──

    def welcome(self, peer: Peer) -> None:
        """The link counts from here: pass on what we know, offer what we have."""
        heads = self.heads.sample(HEADS_MAX - 1)
        if self.publisher.own_head is not None:
            heads.append(self.publisher.own_head)
        self.links.send(peer, encode(Heads(tuple(heads))), after=self.publisher.durable_after)
        if self.phase is Phase.STARTING and len(self.heads.newest) > len(heads):
            self.presence.introduce(peer.id, self.heads.newest.values())
        self.publisher.offer_to(peer.id)
        for frame in self.ending.ballot_frames():
            self.links.send(peer, frame)
        for record in self.heads.quarantined.values():
            self.links.send(peer, encode(Heads((record.one, record.other))))

    def reincarnated(self) -> None:
        """A later boot of this node was proved: say everything again under the new incarnation."""
        for peer in self.links.peers.values():
            peer.have_version = peer.refused_version = 0
        self.links.announce(self.publisher, self.standing)
        for peer in self.links.linked():
            self._greet(peer)
        payload = self.publisher.payload
        if payload is not None and not self.publisher.encoding:
            self.rounds.publish(payload, self.publisher.round)

    def forward(self, heads: list[Head], source: Peer) -> None:
        """Before the start new heads are passed on: they tell who is present."""
        if self.phase is Phase.STARTING and heads:
            self.presence.pass_on(heads, source=source.id)

    # ── from one round to the next ──

    def _on_applied(self, event: Applied) -> None:
        peer = self.reception.applied(event)
        if peer is not None:
            self.rounds.observe(peer)
            self.rounds.observe_late(peer)

    def _on_mixed(self, event: Mixed) -> None:
        self.rounds.mixed(event)
        policy = self.context.policy
        if self.round % policy.checkpoint_every == 0 or self.round >= policy.last_round:
            self.context.persist(Checkpoint(self.snapshot()))
        if self.context.rng.random() * HEADS_EVERY < 1:
            self._flood()  # nobody can know in which rounds to be honest
        self._go_on()

    def _flood(self) -> None:
        heads = self.heads.sample()
        if heads:
            self.links.broadcast(encode(Heads(tuple(heads))))

    def _go_on(self) -> None:
        """Into the next round, unless the training ends, we stop, or we fell behind."""
        if self.ending.stop_after_round:
            self.ending.leave("asked to stop after the round")
        elif self.standing.finished or self.round >= self.context.policy.last_round:
            self.standing.step(Step.FINISH)
            self.context.emit(Finalise(self.round))
        elif not self.catch_up.fell_behind():
            self.rounds.begin()

    def _on_rebased(self, event: Rebased) -> None:
        self.catch_up.rebased(event)
        self.rounds.begin()

    def _on_finalised(self, event: Finalised) -> None:
        self.standing.expect(Phase.FINAL, event)
        self.standing.finished = True
        self.context.persist(Checkpoint(self.snapshot()))
        self.ending.serve(event)

    # ── what may happen after any event ──

    def _settle(self) -> None:
        """Pass proofs on, and move on as far as the phase allows."""
        standing = self.standing
        while self.heads.untold:
            record = self.heads.untold.pop()
            self.links.broadcast(encode(Heads((record.one, record.other))))
        if standing.phase in (Phase.LEAVING, Phase.STOPPED):
            return
        if self.reception.ready:
            self.reception.pump(self._may_apply)
        if standing.phase is Phase.STARTING and self._may_start():
            standing.timer = None
            self.presence.end()
            self._go_on()
        if standing.phase is Phase.CATCHING_UP and self.catch_up.settled():
            self.rounds.begin()
        if standing.phase is Phase.COLLECTING and self.rounds.collected():
            self.rounds.mix()
        if standing.phase is Phase.FINAL and self.ending.served():
            self.ending.leave("finished")

    def _may_start(self) -> bool:
        if self.rounds.republishing:
            return False
        self._start_due = self.start_gate.open(expired=self.standing.expired())
        # a jump would find the replica of its round about to be replaced
        return self._start_due and not self.reception.applying

    def _may_apply(self, peer: Peer | None, head: Head) -> bool:
        phase, current = self.phase, self.standing.current
        if phase is Phase.MIXING or self.catch_up.rebasing:
            return False
        waiting = (Phase.STARTING, Phase.COLLECTING, Phase.CATCHING_UP)
        over = self.standing.expired() or (phase is Phase.STARTING and self._start_due)
        if over and phase in waiting:
            return False  # a stream of versions must not put the end of waiting off
        if phase in (Phase.STARTING, Phase.TRAINING, Phase.ENCODING, Phase.COLLECTING):
            replica = peer.replica if peer else None
            # never overwrite the replica of the round in hand while it may count at both ends
            in_hand = current + 1 if phase is Phase.STARTING else current
            if peer and replica is not None and replica.head.header.round == in_hand:
                return head.header.round <= in_hand or left_out(peer, in_hand)
        return True
