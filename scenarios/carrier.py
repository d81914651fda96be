"""Carries out what a core asks for, under virtual time: the effects of one simulation, by kind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from crypto.identity import NodeId
from node.learning.batch import mix_batch, train_batch
from node.protocol.frames import chunk_prefix, encode, is_chunk
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, INLINE_BYTES, Gone
from scenarios.virtual_node import LearnerState, VirtualNode

if TYPE_CHECKING:
    from scenarios.simulation import Simulation


class Carrier:
    """Does what the effects say, or schedules it. ``handlers``: one for each kind of effect."""

    def __init__(self, run: Simulation, *, keeps_disks: bool) -> None:
        self._run = run
        self._persist_ns = round(run.scenario.settings.compute.persist_ms * 1e6)
        self._chunks = run.pins.payload_bytes > INLINE_BYTES
        # only a node that may start again needs what a checkpoint would hold
        self._keeps_disks = keeps_disks
        self._trains: dict[int, int] = {}  # node -> round: issued, not run
        self._trained: dict[int, ev.Trained] = {}  # run, not due
        self._mixes: dict[int, ev.Mix] = {}
        self._mixed: dict[int, ev.Mixed] = {}
        self._last_frame: tuple[bytes, bytes] = (b"", b"")  # and its digest
        self.handlers: dict[type, Callable[[VirtualNode, Any], None]] = {
            ev.Send: self._send,
            ev.SendChunk: self._send_chunk,
            ev.StoreChunk: self._store_chunk,
            ev.DropPayload: self._drop_payload,
            ev.Dial: self._dial,
            ev.Hangup: self._hang_up,
            ev.Train: self._train,
            ev.Encode: self._encode,
            ev.Apply: self._apply,
            ev.Mix: self._mix,
            ev.Rebase: self._rebase,
            ev.Forget: self._forget,
            ev.Finalise: self._finalise,
            ev.Choose: self._choose,
            ev.Persist: self._persist,
            ev.Note: self._note,
            ev.Exit: self._exit,
        }

    def forget(self, node: VirtualNode) -> None:
        """The process is gone, and with it all work in hand."""
        for issued in (self._trains, self._trained, self._mixes, self._mixed):
            issued.pop(node.index, None)

    # ── frames and links ──

    def _send(self, node: VirtualNode, effect: ev.Send) -> None:
        waiting = node.withheld.get(effect.peer)
        if waiting:
            waiting.append(effect)
        elif effect.after is not None and effect.after > node.durable:
            node.withheld[effect.peer] = deque((effect,))
        else:
            self._transmit(node, effect.peer, effect.frame)

    def _transmit(self, node: VirtualNode, peer: NodeId, frame: bytes) -> None:
        if node.attacker is None:
            self.put(node, peer, frame)
            return
        for lie in node.attacker.send(peer, frame):
            self.put(node, peer, lie)

    def put(self, node: VirtualNode, peer: NodeId, frame: bytes) -> None:
        """On the wire as it is."""
        if node.attacker is None:
            if self._persist_ns:
                self._run.checkers.sends(node.me, node.disk.state, peer, frame, self._run.now)
            if self._chunks:
                self._run.checkers.asks(node.core, peer, frame, self._run.now)
        # an offer goes to all neighbours as one object: hash it once
        if frame is not self._last_frame[0]:
            self._last_frame = (frame, blake3(frame).digest())
        to, digest = self._run.by_id[peer].index, self._last_frame[1]
        self._run.network.send(node.index, to, frame, digest, bulk=is_chunk(frame))

    def _release(self, node: VirtualNode) -> None:
        for peer in list(node.withheld):
            waiting = node.withheld[peer]
            while waiting and (waiting[0].after is None or waiting[0].after <= node.durable):
                self._transmit(node, peer, waiting.popleft().frame)
            if not waiting:
                del node.withheld[peer]

    def _send_chunk(self, node: VirtualNode, effect: ev.SendChunk) -> None:
        data = node.learner.chunk(effect.root, effect.index * CHUNK_BYTES, CHUNK_BYTES)
        if data is None:
            frame = encode(Gone(effect.root))
        else:
            frame = b"".join((chunk_prefix(effect.root, effect.index), data))
        self._send(node, ev.Send(effect.peer, frame))

    def _dial(self, node: VirtualNode, effect: ev.Dial) -> None:
        self._run.network.dial(node.index, self._run.by_id[effect.peer].index)

    def _hang_up(self, node: VirtualNode, effect: ev.Hangup) -> None:
        node.withheld.pop(effect.peer, None)
        self._run.network.hangup(node.index, self._run.by_id[effect.peer].index, effect.why)

    # ── spool and learner ──

    def _store_chunk(self, node: VirtualNode, effect: ev.StoreChunk) -> None:
        node.store(effect)

    def _drop_payload(self, node: VirtualNode, effect: ev.DropPayload) -> None:
        node.spool.pop((effect.member, effect.root), None)

    def _train(self, node: VirtualNode, effect: ev.Train) -> None:
        self._trains[node.index] = effect.round
        takes = round(node.steps * node.step_ms * 1e6 * node.slow)
        self._run.clock.at(self._run.clock.now + takes, self._train_due, node, node.boots)

    def _train_due(self, node: VirtualNode, boots: int) -> None:
        """Every training issued and not run yet depends on nothing to come: run all at once."""
        if node.boots != boots or not node.alive:
            return
        if node.index in self._trains:
            self._run.measures.flush()
            jobs = list(self._trains.items())
            self._trains.clear()
            found = train_batch(
                [(self._run.nodes[index].learner, round_) for index, round_ in jobs]
            )
            self._trained.update((index, one) for (index, _), one in zip(jobs, found, strict=True))
        self._run.feed(node, self._trained.pop(node.index))

    def _encode(self, node: VirtualNode, effect: ev.Encode) -> None:
        encoded = node.encode(effect)
        self._run.answer(node, encoded, encoded.payload.root)

    def _apply(self, node: VirtualNode, effect: ev.Apply) -> None:
        payload, checkers = node.take(effect), self._run.checkers
        checkers.apply(node.me, effect, payload, self._run.now)
        applied = node.apply(effect, payload)
        checkers.applied(node.me, effect, payload, self._run.now, ok=applied.ok)
        self._run.answer(node, applied, effect.root)

    def _mix(self, node: VirtualNode, effect: ev.Mix) -> None:
        self._run.checkers.mix(node.me, effect, self._run.now)
        self._mixes[node.index] = effect
        self._run.clock.at(self._run.clock.now, self._mix_due, node, node.boots)

    def _mix_due(self, node: VirtualNode, boots: int) -> None:
        if node.boots != boots or not node.alive:
            return
        if node.index in self._mixes:
            jobs = list(self._mixes.items())
            self._mixes.clear()
            for index, _ in jobs:
                self._run.measures.settle(index)
            found = mix_batch([(self._run.nodes[index].learner, effect) for index, effect in jobs])
            self._mixed.update((index, one) for (index, _), one in zip(jobs, found, strict=True))
        mixed = self._mixed.pop(node.index)
        if mixed.round in self._run.founded.policy.candidates:
            node.learner.keep_candidate(mixed.round)
        self._run.feed(node, mixed)

    def _rebase(self, node: VirtualNode, effect: ev.Rebase) -> None:
        self._run.measures.settle(node.index)
        self._run.checkers.rebase(node.me, effect, self._run.now)
        self._run.answer(node, node.learner.rebase(effect))

    def _forget(self, node: VirtualNode, effect: ev.Forget) -> None:
        node.learner.replicas.pop(effect.member, None)

    def _finalise(self, node: VirtualNode, effect: ev.Finalise) -> None:
        self._run.measures.settle(node.index)
        self._run.answer(node, node.learner.finalise(effect))

    def _choose(self, node: VirtualNode, effect: ev.Choose) -> None:
        node.learner.choose(effect)

    # ── disk, notices, the end ──

    def _persist(self, node: VirtualNode, effect: ev.Persist) -> None:
        self._run.checkers.record(node.me, effect.record, self._run.now)
        if node.disk.full:
            self._run.kill(node, ended="failed: disk full (exit code 4)")
            return
        state = None
        if self._keeps_disks and isinstance(effect.record, ev.Checkpoint):
            state = node.learner.state()
        if self._persist_ns == 0:
            if self._keeps_disks:
                node.disk.write(effect.record, state)
            node.durable = effect.id
            if node.withheld:
                self._release(node)
        else:
            at = self._run.clock.now + self._persist_ns
            self._run.clock.at(at, self._committed, node, node.boots, effect, state)

    def _committed(
        self, node: VirtualNode, boots: int, effect: ev.Persist, state: LearnerState | None
    ) -> None:
        if node.boots != boots or not node.alive:
            return
        node.disk.write(effect.record, state)
        node.durable = effect.id
        self._release(node)
        self._run.feed(node, ev.Persisted(effect.id))

    def _note(self, node: VirtualNode, effect: ev.Note) -> None:
        notice, at = effect.note, self._run.now
        self._run.checkers.notice(node.me, notice, at)
        if isinstance(notice, ev.RoundDone):
            self._run.round_done(node, notice, at)
        elif isinstance(notice, ev.Jumped):
            node.jumped += 1

    def _exit(self, node: VirtualNode, effect: ev.Exit) -> None:
        self._run.kill(node, ended="finished" if effect.finished else "stopped", why="closed")
