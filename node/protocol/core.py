"""The node's protocol as a machine that is told the time: events in, effects out, one timer.

No clock, socket, tensor or event loop: a shell carries the effects out (`node/runtime.py` on real
sockets, `scenarios/simulation.py` under virtual time) and feeds back what came of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from crypto.identity import NodeId
from node.errors import LocalProtocolError
from node.protocol.ballots import Ballots
from node.protocol.catchup import JUMP_EVERY, KEYFRAMES_MIN, CatchUp
from node.protocol.context import Context, Entropy, Rng, Sign, Verify
from node.protocol.deadline import Arrivals
from node.protocol.edges import Use, counts, use
from node.protocol.frames import encode
from node.protocol.heads import Head, HeadBook
from node.protocol.inbox import Inbox
from node.protocol.links import Links
from node.protocol.peers import Peer
from node.protocol.phases import Phase, Step, after
from node.protocol.publisher import Publisher, counted_ids
from node.protocol.reception import Reception
from node.protocol.starting import StartGate
from node.types.events import (
    Applied,
    Checkpoint,
    Choose,
    CoreState,
    DialFailed,
    Effect,
    Encode,
    Encoded,
    Event,
    Exit,
    Finalise,
    Finalised,
    Frame,
    Hangup,
    Incarnation,
    Jumped,
    LinkDown,
    LinkUp,
    Missing,
    Mix,
    Mixed,
    Payload,
    Persisted,
    PhaseChanged,
    Rebase,
    Rebased,
    RoundDone,
    Source,
    Start,
    Stop,
    Train,
    Trained,
    Wake,
)
from node.types.messages import HEADS_MAX, Bye, Heads, SignedBallot, SignedHeader
from node.types.messages import Ballots as BallotsMessage
from node.types.roster import Pins, Policy, Roster

HEADS_EVERY: Final = 4  # rounds between two floods of heads, on average; new links get them too
COUNTED_MAX: Final = 8  # rounds for which a neighbour's own account of an edge is awaited


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
    ) -> None:
        self.context = Context(
            me=me,
            roster=roster,
            pins=pins,
            policy=policy,
            sign=sign,
            verify=verify,
            entropy=entropy,
            rng=rng,
        )
        self.phase = Phase.STARTING
        self.round = state.round  # the last one mixed
        self.current = state.round  # the one in hand
        self.finished = state.finished
        self.half_edges, self.late = state.half_edges, state.late
        self.links = Links(self.context)
        self.heads = HeadBook(self.context, state.floors)
        self.heads.restore_quarantine(state.quarantined)
        self.publisher = Publisher(self.context, state)
        self.reception = Reception(self.context, self.links, self.heads)
        self.ballots = Ballots(self.context)
        self.catch_up = CatchUp(self.context, self.links, self.heads, self.reception)
        self._resumed = state.round > 0
        self.start_gate = StartGate(self.context, self.links, self.heads, resumed=self._resumed)
        self.arrivals = Arrivals(policy, state.arrivals)
        self.inbox = Inbox(self)
        self._jumped_at = state.jumped_at
        self._republishing = False
        self._stop_after_round = False
        self._timer: float | None = None  # the phase's own deadline
        self._published_at = 0.0
        self._observed: set[NodeId] = set()  # edges of this round whose arrival is noted
        self._publish_times: dict[int, float] = {}
        self._uses: tuple[tuple[Peer, Use], ...] = ()
        self._loss: float | None = None
        self._final_persist = 0
        self._final_why = ""
        self._chosen = False
        self._mixed_round = state.mixed_round
        self._counted = state.counted
        self._rebasing = False
        self._restore_peers(state)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Start: self._on_start,
            LinkUp: self._on_link_up,
            LinkDown: self._on_link_down,
            DialFailed: self._on_dial_failed,
            Frame: self._on_frame,
            Wake: self._on_wake,
            Trained: self._on_trained,
            Encoded: self._on_encoded,
            Applied: self._on_applied,
            Mixed: self._on_mixed,
            Rebased: self._on_rebased,
            Finalised: self._on_finalised,
            Persisted: self._on_persisted,
            Stop: self._on_stop,
        }

    def handle(self, event: Event, *, now: float) -> tuple[Effect, ...]:
        """Take one event at ``now`` (seconds, any origin, never backwards).

        Carry the effects out in order, then re-arm one timer at ``next_wake()``. Bad input from a
        peer never raises. Raises LocalProtocolError for an event that the phase does not allow.
        """
        if self.phase is Phase.STOPPED:
            return ()
        self.context.now = now
        self.context.effects = []
        if self.phase is not Phase.LEAVING or isinstance(event, Persisted):
            self._handlers[type(event)](event)
            self._settle()
        return tuple(self.context.effects)

    def next_wake(self) -> float | None:
        """When Wake must be handed in at the latest."""
        if self.phase in (Phase.LEAVING, Phase.STOPPED):
            return None  # the disk answers by itself
        # a deadline that is past was acted upon: what it still waits for comes as an event
        timer = None if self._expired() else self._timer
        join = self.start_gate.wake_at() if self.phase is Phase.STARTING else None
        times = (timer, join, self.links.wake_at(), self.reception.transfers.wake_at())
        return min((at for at in times if at is not None), default=None)

    def snapshot(self) -> CoreState:
        """What a later process resumes from."""
        peers = self.links.peers.values()
        return CoreState(
            round=self.round,
            version=self.publisher.version,
            incarnation=self.publisher.incarnation,
            floors={p.id: p.floor.signed for p in peers if p.floor is not None},
            mixed_rounds={p.id: p.mixed_round for p in peers if p.mixed_round},
            quarantined=dict(self.heads.quarantined),
            arrivals=self.arrivals.seen(),
            missed={
                p.id: (p.missed_count, p.missed_first, p.missed_last, p.missed_why)
                for p in peers
                if p.missed_count
            },
            half_edges=self.half_edges,
            late=self.late,
            jumped_at=self._jumped_at,
            mixed_round=self._mixed_round,
            counted=self._counted,
            finished=self.finished,
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
        self._expect(Phase.STARTING, event)
        self.publisher.start(event.wall_ms)
        self._announce()
        self.links.start()
        self.links.wake()
        self._timer = self.start_gate.deadline(event.wall_ms)
        if self._resumed and not self.finished:
            # what was published last is offered again, under the new incarnation
            self._republishing = True
            self._encode(self.round, again=True)

    def _on_link_up(self, event: LinkUp) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is None:
            self.context.emit(Hangup(event.peer, "the topology has no edge between us"))
            return
        if peer.up:
            self.reception.interrupted(peer.id)
        peer.link_up(self.context.now)
        self.greet(peer)

    def greet(self, peer: Peer) -> None:
        head = self.heads.newest.get(peer.id)
        self.links.greet(peer, self.publisher, self.current, head.signed if head else None)

    def _on_link_down(self, event: LinkDown) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and peer.up:
            self.reception.interrupted(peer.id)
            self.links.down(peer, event.why)

    def _on_dial_failed(self, event: DialFailed) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and not peer.up:
            peer.down_why = event.why
            peer.retry(self.context.now, self.context.rng.random())

    def _on_frame(self, event: Frame) -> None:
        peer = self.links.peers.get(event.peer)
        if peer is not None and peer.up:
            self.inbox.take(peer, event.data)
            if peer.hello is not None:  # a link that never says Hello is given up as a silent one
                peer.heard_at = self.context.now

    def welcome(self, peer: Peer) -> None:
        """The link counts from here: pass on what we know, offer what we have."""
        heads = self.heads.sample(HEADS_MAX - 1)
        if self.publisher.own_head is not None:
            heads.append(self.publisher.own_head)
        self.links.send(peer, encode(Heads(tuple(heads))), after=self.publisher.durable_after)
        self.publisher.offer_to(peer.id)
        if self.ballots.signed:
            self.links.send(peer, encode(BallotsMessage(self._ballot_list())))
        for record in self.heads.quarantined.values():
            self.links.send(peer, encode(Heads((record.one, record.other))))

    def reincarnated(self) -> None:
        """A later boot of this node was proved: say everything again under the new incarnation."""
        for peer in self.links.peers.values():
            peer.have_version = peer.refused_version = 0
        self._announce()
        for peer in self.links.linked():
            self.greet(peer)
        payload = self.publisher.payload
        if payload is not None and not self.publisher.encoding:
            self._publish(payload, self.publisher.round)

    def account(self, head: Head) -> None:
        """A neighbour's header says with whom it mixed: compare with our own account."""
        peer = self.links.peers.get(NodeId(head.header.sender))
        mixed = head.header.mixed_round
        mine = counted_ids([self.context.me])[0]
        if peer is not None and mine in head.header.counted:
            peer.used_round = max(peer.used_round, mixed)
        if peer is None or not peer.counted_rounds or mixed < peer.counted_rounds[0]:
            return
        if mixed in peer.counted_rounds and mine not in head.header.counted:
            self.half_edges += 1
        peer.counted_rounds = [r for r in peer.counted_rounds if r > mixed]

    def forward(self, heads: list[SignedHeader], source: Peer) -> None:
        """Before the start heads are passed on at once: they tell who is present."""
        if self.phase is Phase.STARTING and heads:
            self.links.broadcast(encode(Heads(tuple(heads))), but=source.id)

    def observe(self, peer: Peer) -> None:
        """Note how long after our own publish this edge became complete."""
        if self.phase is not Phase.COLLECTING or peer.id in self._observed:
            return
        if counts(peer, self.current, self.publisher.version):
            self._observed.add(peer.id)
            self.arrivals.observe(self.context.now - self._published_at)

    def _observe_late(self, peer: Peer) -> None:
        """A version of a round that is mixed already says how long waiting would have taken."""
        assert peer.replica is not None
        label = peer.replica.head.header.round
        if label in self._publish_times and peer.mixed_round < label <= self.round:
            self.arrivals.observe(self.context.now - self._publish_times[label])

    def _on_wake(self, _event: Wake) -> None:
        self.links.wake()
        self.reception.transfers.wake()

    # ── rounds ──

    def _on_trained(self, event: Trained) -> None:
        self._loss = event.loss
        self._step(Step.TRAINED)
        self._encode(self.current)

    def _encode(self, round_: int, *, again: bool = False) -> None:
        self.publisher.encoding = True
        self.context.emit(Encode(round_, self.publisher.version + 1, keyframe=True, again=again))

    def _on_encoded(self, event: Encoded) -> None:
        if self._republishing:
            self._republishing = False
            self._publish(event.payload, self.round)
            return
        self._step(Step.ENCODED)
        self._publish(event.payload, self.current)
        now = self.context.now
        self._published_at, self._publish_times[self.current] = now, now
        self._publish_times.pop(self.current - self.context.policy.max_staleness - 1, None)
        self._observed.clear()
        self._timer = now + self.arrivals.wait_s(
            training=self.current <= self.context.policy.rounds
        )

    def _publish(self, payload: Payload, round_: int) -> None:
        self.publisher.publish(
            payload, round_=round_, mixed_round=self._mixed_round, counted=self._counted
        )
        for peer in self.links.linked():
            peer.sent_at = self.context.now
            self.publisher.offer_to(peer.id)

    def _on_applied(self, event: Applied) -> None:
        peer = self.reception.applied(event)
        if peer is not None:
            self.observe(peer)
            self._observe_late(peer)

    def _collected(self) -> bool:
        """Whether nothing can be waited for any more, or the deadline is past."""
        if self.reception.applying:
            return False
        if self._expired():
            return True
        return all(self._arrived(peer) for peer in self.links.linked())

    def _arrived(self, peer: Peer) -> bool:
        if peer.id in self.heads.quarantined:
            return True
        held, waiting = peer.replica, self.reception.ready.get(peer.id)
        newest = max(
            held.head.header.round if held else 0, waiting.head.header.round if waiting else 0
        )
        newest = max(newest, peer.bad_round)  # refused here: nothing better comes for this round
        if newest > self.current or counts(peer, self.current, self.publisher.version):
            return True
        if newest < self.current:
            return False
        return peer.bad_round == newest or peer.refused_version >= self.publisher.version

    def _mix(self) -> None:
        self._step(Step.COLLECTED)
        context = self.context
        uses: list[tuple[Peer, Use]] = []
        for peer in self.links.peers.values():
            if peer.id in self.heads.quarantined:
                uses.append((peer, Use(None, why="in quarantine: it contradicted itself")))
                continue
            found = use(
                context.self_member,
                context.roster.members[peer.id],
                peer,
                round_=self.current,
                version=self.publisher.version,
                stale_max=context.policy.max_staleness,
            )
            uses.append((peer, found))
        self._uses = tuple(uses)
        self._timer = None
        training = self.current <= context.policy.rounds
        omega = 1.0 if training else context.policy.final_omega
        context.emit(Mix(self.current, self._sources(), training, omega))

    def _sources(self) -> tuple[Source, ...]:
        return tuple(found.source for _, found in self._uses if found.source is not None)

    def _on_mixed(self, event: Mixed) -> None:
        self._expect(Phase.MIXING, event)
        counted = []
        for peer, found in self._uses:
            if found.source is None:
                peer.miss(self.current, found.why)
                continue
            assert peer.replica is not None
            peer.mixed_round = max(peer.mixed_round, peer.replica.head.header.round)
            if found.mutual:
                counted.append(peer.id)
                peer.counted_rounds = [*peer.counted_rounds, self.current][-COUNTED_MAX:]
            else:
                self.late += 1
        self.round, self._mixed_round, self._counted = self.current, self.current, tuple(counted)
        self._note_round(event)
        policy = self.context.policy
        if self.round % policy.checkpoint_every == 0 or self.round >= policy.last_round:
            self.context.persist(Checkpoint(self.snapshot()))
        if self.context.rng.random() * HEADS_EVERY < 1:
            self._flood()  # nobody can know in which rounds to be honest
        self._go_on()

    def _note_round(self, event: Mixed) -> None:
        sources = self._sources()
        self.context.note(
            RoundDone(
                round=self.current,
                mixed=sources,
                missing=tuple(Missing(p.id, u.why) for p, u in self._uses if u.source is None),
                own_weight=1.0 - sum(source.weight for source in sources),
                loss=self._loss,
                waited_s=self.context.now - self._published_at,
                half_edges=self.half_edges,
                late=self.late,
                alone=not any(True for _ in self.links.linked()),
                kept_own=event.kept_own,
            )
        )

    def _flood(self) -> None:
        heads = self.heads.sample()
        if heads:
            self.links.broadcast(encode(Heads(tuple(heads))))

    def _go_on(self) -> None:
        """Into the next round, unless the training ends, we stop, or we fell behind."""
        policy = self.context.policy
        if self._stop_after_round:
            self._leave("asked to stop after the round")
        elif self.round >= policy.last_round:
            self._step(Step.FINISH)
            self.context.emit(Finalise(self.round))
        elif not self._fell_behind():
            self._next_round()

    def _next_round(self) -> None:
        self.current = self.round + 1
        if self.current <= self.context.policy.rounds:
            self._step(Step.TRAIN)
            self.context.emit(Train(self.current))
        else:
            self._loss = None
            self._step(Step.PUBLISH)
            self._encode(self.current)

    # ── falling behind and catching up ──

    def _fell_behind(self) -> bool:
        """Skip rounds that the others have done; True if a new start model is being gathered."""
        starting = self.phase is Phase.STARTING
        gap = self.catch_up.frontier(self.round + 1) - (self.round + 1)
        new = self.round == 0 and gap > 0
        if gap <= 0 or (not starting and self.round - self._jumped_at < JUMP_EVERY):
            return False
        if gap > self.context.policy.max_staleness or new:
            self._step(Step.BEHIND)
            self._timer = self.context.now + self.context.policy.deadline_max_s
            return True
        self._jump(self.round + gap, "own model")
        return False

    def _jump(self, to: int, start: str) -> None:
        self.context.note(Jumped(self.round, to, start))
        self.round = self._jumped_at = self.current = to

    def _enough_keyframes(self) -> bool:
        return len(self.catch_up.keyframes(self.round + 1)) >= KEYFRAMES_MIN

    def _rebase(self) -> None:
        self._timer = None
        gap = self.catch_up.frontier(self.round + 1) - (self.round + 1)
        if self.round and gap <= self.context.policy.max_staleness:
            # those who were ahead are out of reach: no reason to drop the own model
            self.reception.forget_borrowed()
            if gap > 0:
                self._jump(self.round + gap, "own model")
            self._next_round()
            return
        members = self.catch_up.keyframes(self.round + 1)
        enough = len(members) >= KEYFRAMES_MIN
        self.context.emit(
            Rebase(self.catch_up.frontier(self.round + 1) - 1, members if enough else ())
        )
        self._rebasing = True

    def _on_rebased(self, event: Rebased) -> None:
        self._expect(Phase.CATCHING_UP, event)
        self._rebasing = False
        self.reception.forget_borrowed()
        self._jump(event.round, event.start)
        self._next_round()

    # ── end ──

    def _on_finalised(self, event: Finalised) -> None:
        self._expect(Phase.FINAL, event)
        self.finished = True
        self.context.persist(Checkpoint(self.snapshot()))
        self._timer = self.context.now + self.context.policy.linger_s
        self._announce()
        if event.scores:
            self.ballots.cast(event.scores, self.publisher.incarnation)
            self.links.broadcast(encode(BallotsMessage(self._ballot_list())))

    def _ballot_list(self) -> tuple[SignedBallot, ...]:
        known = self.ballots.signed
        return tuple(known[member] for member in sorted(known))[:HEADS_MAX]

    def _announce(self) -> None:
        """Sign where we stand and tell the neighbours."""
        head = self.publisher.presence(
            round_=self.round, mixed_round=self._mixed_round, counted=self._counted
        )
        frame = encode(Heads((head,)))
        for peer in self.links.linked():
            self.links.send(peer, frame, after=self.publisher.durable_after)

    def _served(self) -> bool:
        """In FINAL: nobody can need us any more, or ``linger`` is over."""
        if not self.finished:
            return False
        if self._expired():
            return True
        if self.context.policy.candidates and not self.ballots.complete():
            return False
        return all(self._has_finished(peer.id) for peer in self.links.peers.values())

    def _has_finished(self, member: NodeId) -> bool:
        head = self.heads.newest.get(member)
        return head is not None and head.header.mixed_round >= self.context.policy.last_round

    def _choose(self) -> None:
        if self.context.policy.candidates and not self._chosen:
            self._chosen = True
            self.context.emit(Choose(*self.ballots.choice()))

    def _on_stop(self, event: Stop) -> None:
        if event.after_round and self.phase not in (Phase.STARTING, Phase.FINAL):
            self._stop_after_round = True
        elif self.phase is not Phase.LEAVING:
            self._leave("asked to stop")

    def _leave(self, why: str) -> None:
        if self.phase is Phase.FINAL and self.finished:
            self._choose()
        self._step(Step.STOP)
        self._timer = None
        for peer in self.links.linked():
            self.links.send(peer, encode(Bye(why)))
        # everything asked for before this is durable once this is
        record = Incarnation(self.publisher.incarnation, self.publisher.boot_id)
        self._final_persist = self.context.persist(record)
        self._final_why = why

    def _on_persisted(self, event: Persisted) -> None:
        if self.phase is Phase.LEAVING and event.id >= self._final_persist:
            self._step(Step.SAVED)
            self.context.emit(Exit(self._final_why, self.finished))

    # ── what may happen after any event ──

    def _settle(self) -> None:
        """Pass proofs on, and move on as far as the phase allows."""
        while self.heads.untold:
            record = self.heads.untold.pop()
            self.links.broadcast(encode(Heads((record.one, record.other))))
        if self.phase in (Phase.LEAVING, Phase.STOPPED):
            return
        self.reception.pump(self._may_apply)
        if self.phase is Phase.STARTING and self._may_start():
            self._timer = None
            if self.finished or self.round >= self.context.policy.last_round:
                self._step(Step.FINISH)
                self.context.emit(Finalise(self.round))
            elif not self._fell_behind():
                self._next_round()
        if self.phase is Phase.CATCHING_UP and not self._rebasing:
            self.catch_up.gather(self.round + 1)
            if not self.reception.applying and (self._expired() or self._enough_keyframes()):
                self._rebase()
        if self.phase is Phase.COLLECTING and self._collected():
            self._mix()
        if self.phase is Phase.FINAL and self._served():
            self._leave("finished")

    def _may_start(self) -> bool:
        return not self._republishing and self.start_gate.open(expired=self._expired())

    def _expired(self) -> bool:
        return self._timer is not None and self.context.now >= self._timer

    def _may_apply(self, peer: Peer | None, head: Head) -> bool:
        if self.phase is Phase.MIXING or self._rebasing:
            return False
        if self._expired() and self.phase in (Phase.COLLECTING, Phase.CATCHING_UP):
            return False  # a stream of versions must not put the end of waiting off
        if self.phase in (Phase.STARTING, Phase.TRAINING, Phase.ENCODING, Phase.COLLECTING):
            replica = peer.replica if peer else None
            # never overwrite the replica of the round in hand before it is mixed
            in_hand = self.current + 1 if self.phase is Phase.STARTING else self.current
            if replica is not None and replica.head.header.round == in_hand:
                return head.header.round <= in_hand
        return True

    def _expect(self, phase: Phase, event: Event) -> None:
        if self.phase is not phase:
            raise LocalProtocolError(f"{type(event).__name__} in phase '{self.phase.value}'")

    def _step(self, step: Step) -> None:
        self.phase = after(self.phase, step)
        self.context.note(PhaseChanged(self.phase.value, self.current))
