"""Cores back to back: frames as bytes through a queue, a learner of plain float vectors.

No sockets, no clock, no torch: what a test sees here is the protocol alone.
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import msgspec

from crypto.hashing import leaf_digests, root
from crypto.identity import NodeId, SigningKey, node_id, verify
from node.protocol.core import Core
from node.protocol.frames import chunk_prefix, encode
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, INLINE_BYTES, Gone, Score
from node.types.roster import Member, Pins, Policy, Roster

LATENCY_S = 0.01
TRAIN_S = 0.1


def keys(number: int) -> SigningKey:
    return SigningKey.from_seed(number.to_bytes(32, "big"))


def make_roster(
    edges: Iterable[tuple[int, int]], count: int, samples: Mapping[int, int] | None = None
) -> tuple[Roster, list[NodeId], dict[NodeId, SigningKey]]:
    """A roster of members n0 … with one key each (member and node key alike)."""
    secrets = [keys(i + 1) for i in range(count)]
    ids = [node_id(key.public) for key in secrets]
    neighbours: dict[int, set[int]] = {i: set() for i in range(count)}
    for a, b in edges:
        neighbours[a].add(b)
        neighbours[b].add(a)
    members = {
        ids[i]: Member(
            id=ids[i],
            name=f"n{i}",
            node_key=secrets[i].public,
            samples=(samples or {}).get(i, 100),
            neighbours=tuple(sorted(ids[j] for j in neighbours[i])),
        )
        for i in range(count)
    }
    roster = Roster(consortium=b"c" * 32, epoch=0, members={k: members[k] for k in sorted(members)})
    return roster, ids, dict(zip(ids, secrets, strict=True))


@dataclass
class Disk:
    """What survives a kill: records in order, and the learner's state of the last checkpoint."""

    state: ev.CoreState = field(default_factory=ev.CoreState)
    learner: tuple[float, ...] | None = None
    public: tuple[float, ...] | None = None

    def write(self, record: ev.Record, model: tuple[float, ...], public: tuple[float, ...]) -> None:
        replace = msgspec.structs.replace
        if isinstance(record, ev.Incarnation):
            self.state = replace(self.state, incarnation=record.incarnation)
        elif isinstance(record, ev.Reserved):
            self.state = replace(self.state, version=record.version)
        elif isinstance(record, ev.Receipt):
            floors = {**self.state.floors, record.member: record.signed}
            self.state = replace(self.state, floors=floors)
        elif isinstance(record, ev.Quarantine):
            kept = {**self.state.quarantined, record.member: record}
            self.state = replace(self.state, quarantined=kept)
        else:
            self.state = record.state
            self.learner, self.public = model, public


class FakeNode:
    """A core and a learner of ``size`` float32 numbers; ``gain`` is added by each training."""

    def __init__(self, net: Network, me: NodeId, start: tuple[float, ...]) -> None:
        self.net, self.me = net, me
        self.disk = Disk()
        self.initial = start
        self.alive = False
        self.effects_done = 0
        self.kill_at: int | None = None
        self.notes: list[ev.Notice] = []
        self.forge: Callable[[ev.Payload], ev.Payload] | None = None
        self.chosen: ev.Choose | None = None
        self.clock_ms = 0  # how far this machine's wall clock is off
        self.boots = 0
        self.boot()

    def boot(self) -> None:
        net = self.net
        self.boots += 1
        self.model = self.disk.learner or self.initial
        self.public = self.disk.public or self.model
        self.replicas: dict[NodeId, tuple[float, ...]] = {}
        self.spool: dict[bytes, bytearray] = {}
        self.own_root = b""
        self.payload = b""
        self.replica_bytes: dict[bytes, bytes] = {}
        self.exit: ev.Exit | None = None
        self.durable = 0  # the highest id that is Persisted
        self.withheld: dict[NodeId, list[ev.Send | ev.SendChunk]] = {}
        rng = random.Random(f"{net.seed}-{self.me.hex()}-{self.boots}")
        self.core = Core(
            me=self.me,
            roster=net.roster,
            pins=net.pins,
            policy=net.policy,
            state=self.disk.state,
            sign=net.secrets[self.me].sign,
            verify=verify,
            entropy=rng.randbytes,
            rng=rng,
        )

    def rounds(self) -> list[ev.RoundDone]:
        return [n for n in self.notes if isinstance(n, ev.RoundDone)]


class Network:
    """Nodes, links and a heap of things to come."""

    def __init__(
        self,
        edges: Iterable[tuple[int, int]],
        count: int,
        *,
        policy: Policy,
        models: list[tuple[float, ...]] | None = None,
        samples: Mapping[int, int] | None = None,
        seed: int = 0,
        gain: float = 0.0,
    ) -> None:
        self.seed, self.gain, self.policy = seed, gain, policy
        self.train: Callable[[NodeId, int, tuple[float, ...]], tuple[float, ...]] = (
            lambda _me, _round, model: tuple(x + self.gain for x in model)
        )
        self.persist_s = self.apply_s = 0.0
        self.score: Callable[[NodeId, int], float] = lambda _me, round_: float(round_)
        self.roster, self.ids, self.secrets = make_roster(edges, count, samples)
        models = models or [(float(i),) for i in range(count)]
        size = 4 * len(models[0])
        self.pins = Pins(
            training=b"t" * 32,
            schema=b"s" * 32,
            initial=b"i" * 32,
            code=b"k" * 32,
            payload_bytes=size,
        )
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.cut: set[frozenset[NodeId]] = set()
        self.latency: dict[tuple[NodeId, NodeId], float] = {}
        self.slow: dict[NodeId, float] = {}
        self.tamper: Callable[[NodeId, NodeId, bytes], bytes | None] | None = None
        self.on_effect: Callable[[FakeNode, ev.Effect], None] | None = None
        self.nodes = {me: FakeNode(self, me, models[i]) for i, me in enumerate(self.ids)}

    def node(self, index: int) -> FakeNode:
        return self.nodes[self.ids[index]]

    def at(self, delay: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, action))

    def start(self, which: Iterable[int] | None = None) -> None:
        for index in which if which is not None else range(len(self.ids)):
            self.boot(self.ids[index])

    def boot(self, me: NodeId) -> None:
        node = self.nodes[me]
        if node.boots > 1 or node.alive or node.exit:
            node.boot()
        node.boots += 1
        node.alive = True
        self.feed(node, ev.Start(1_000_000 + int(self.now * 1000) + node.clock_ms))

    def kill(self, me: NodeId) -> None:
        node = self.nodes[me]
        node.alive = False
        for other in self.nodes.values():
            if other.alive and other.me in self.roster.members[me].neighbours:
                self._later(other, ev.LinkDown(me, "connection reset"), node)

    def partition(self, sides: tuple[Iterable[int], Iterable[int]]) -> None:
        for a in sides[0]:
            for b in sides[1]:
                one, two = self.ids[a], self.ids[b]
                self.cut.add(frozenset((one, two)))
                for x, y in ((one, two), (two, one)):
                    if self.nodes[x].alive and y in self.roster.members[x].neighbours:
                        self.feed(self.nodes[x], ev.LinkDown(y, "partitioned"))

    def heal(self) -> None:
        self.cut.clear()

    def run(self, until: float = 1e9, steps: int = 2_000_000) -> None:
        while self._heap and steps:
            if self._heap[0][0] > until:
                break
            self.now, _, action = heapq.heappop(self._heap)
            action()
            steps -= 1
        assert steps, "the network never came to rest"

    # ── carrying effects out ──

    def feed(self, node: FakeNode, event: ev.Event) -> None:
        if not node.alive:
            return
        boots = node.boots
        for effect in node.core.handle(event, now=self.now):
            if node.kill_at is not None and node.effects_done >= node.kill_at:
                node.kill_at = None
                self.kill(node.me)
                return
            node.effects_done += 1
            if self.on_effect:
                self.on_effect(node, effect)
            self._carry_out(node, effect)
        wake = node.core.next_wake()
        if wake is not None and node.alive:
            self.at(max(0.0, wake - self.now), lambda: self._wake(node, boots, wake))

    def _wake(self, node: FakeNode, boots: int, due: float) -> None:
        if node.boots == boots and node.core.next_wake() == due:
            self.feed(node, ev.Wake())

    def _later(self, node: FakeNode, event: ev.Event, source: FakeNode | None = None) -> None:
        boots = node.boots
        delay = 0.0
        if source is not None:
            delay = self.latency.get((source.me, node.me), LATENCY_S)
        self.at(delay, lambda: node.boots == boots and self.feed(node, event))

    def _carry_out(self, node: FakeNode, effect: ev.Effect) -> None:
        handler = getattr(self, f"_do_{type(effect).__name__.lower()}", None)
        assert handler is not None, effect
        handler(node, effect)

    def connected(self, a: NodeId, b: NodeId) -> bool:
        return self.nodes[a].alive and self.nodes[b].alive and frozenset((a, b)) not in self.cut

    def _deliver(self, source: FakeNode, peer: NodeId, frame: bytes) -> None:
        target = self.nodes[peer]
        boots = (source.boots, target.boots)
        if self.tamper:
            changed = self.tamper(source.me, peer, frame)
            if changed is None:
                return
            frame = changed

        def arrive() -> None:
            # who exits on purpose flushes first, as a socket does; a crash loses what is in flight
            left = source.exit is not None and frozenset((source.me, peer)) not in self.cut
            up = left or self.connected(source.me, peer)
            if (source.boots, target.boots) == boots and up:
                self.feed(target, ev.Frame(source.me, frame))

        self.at(self.latency.get((source.me, peer), LATENCY_S), arrive)

    def _do_send(self, node: FakeNode, effect: ev.Send | ev.SendChunk) -> None:
        """Frames of a peer keep their order behind one that waits for the disk."""
        queue = node.withheld.setdefault(effect.peer, [])
        queue.append(effect)
        if len(queue) == 1:
            self._flush(node, effect.peer)

    _do_sendchunk = _do_send

    def _flush(self, node: FakeNode, peer: NodeId) -> None:
        queue = node.withheld[peer]
        while queue:
            effect = queue[0]
            if isinstance(effect, ev.SendChunk):
                self._send_chunk(node, effect)
            elif effect.after is not None and effect.after > node.durable:
                return
            else:
                self._deliver(node, peer, effect.frame)
            queue.pop(0)

    def _send_chunk(self, node: FakeNode, effect: ev.SendChunk) -> None:
        data = node.payload if effect.root == node.own_root else None
        data = data if data is not None else node.replica_bytes.get(effect.root)
        if data is None:
            self._deliver(node, effect.peer, encode(Gone(effect.root)))
            return
        piece = data[effect.index * CHUNK_BYTES : (effect.index + 1) * CHUNK_BYTES]
        self._deliver(node, effect.peer, chunk_prefix(effect.root, effect.index) + piece)

    def _do_storechunk(self, node: FakeNode, effect: ev.StoreChunk) -> None:
        buffer = node.spool.setdefault(effect.member + effect.root, bytearray(effect.length))
        buffer[effect.offset : effect.offset + len(effect.data)] = effect.data

    def _do_droppayload(self, node: FakeNode, effect: ev.DropPayload) -> None:
        node.spool.pop(effect.member + effect.root, None)

    def _do_dial(self, node: FakeNode, effect: ev.Dial) -> None:
        other = self.nodes[effect.peer]
        boots = (node.boots, other.boots)

        def answer() -> None:
            if node.boots != boots[0]:
                return
            if not self.connected(node.me, effect.peer) or other.boots != boots[1]:
                self.feed(node, ev.DialFailed(effect.peer, "connection refused"))
                return
            self.feed(node, ev.LinkUp(effect.peer))
            self.feed(other, ev.LinkUp(node.me))

        self.at(LATENCY_S, answer)

    def _do_hangup(self, node: FakeNode, effect: ev.Hangup) -> None:
        self._later(self.nodes[effect.peer], ev.LinkDown(node.me, effect.why), node)

    def _do_train(self, node: FakeNode, effect: ev.Train) -> None:
        boots = node.boots

        def done() -> None:
            if node.boots == boots and node.alive:
                node.model = self.train(node.me, effect.round, node.model)
                self.feed(node, ev.Trained(effect.round, 0.5, 1))

        self.at(TRAIN_S * self.slow.get(node.me, 1.0), done)

    def _do_encode(self, node: FakeNode, effect: ev.Encode) -> None:
        if not effect.again:
            node.public = node.model
        raw = struct.pack(f"<{len(node.public)}f", *node.public)
        leaves = leaf_digests(raw)
        digest = root(leaves, len(raw))
        inline = raw if len(raw) <= INLINE_BYTES else None
        node.own_root, node.payload = digest, raw
        payload = ev.Payload(digest, digest, leaves, len(raw), "full", True, inline)
        if node.forge:
            payload = node.forge(payload)
        self._soon(node, ev.Encoded(effect.version, payload))

    def _do_apply(self, node: FakeNode, effect: ev.Apply) -> None:
        raw = bytes(node.spool.pop(effect.member + effect.root))
        values = struct.unpack(f"<{len(raw) // 4}f", raw)
        ok = all(abs(value) < 1e20 for value in values)
        if ok:
            node.replicas[effect.member] = values
            node.replica_bytes[effect.root] = raw
        why = "" if ok else "not finite"
        self._soon(node, ev.Applied(effect.member, effect.root, ok, why), self.apply_s)

    def _do_mix(self, node: FakeNode, effect: ev.Mix) -> None:
        own = 1.0 - sum(s.weight for s in effect.sources)
        node.model = tuple(
            own * x + sum(s.weight * node.replicas[s.member][k] for s in effect.sources)
            for k, x in enumerate(node.public)
        )
        self._soon(node, ev.Mixed(effect.round))

    def _do_rebase(self, node: FakeNode, effect: ev.Rebase) -> None:
        node.model = (
            tuple(map(median, zip(*(node.replicas[m] for m in effect.members), strict=True)))
            if effect.members
            else node.initial
        )
        start = f"median of {len(effect.members)}" if effect.members else "x0"
        self._soon(node, ev.Rebased(effect.round, start))

    def _do_forget(self, node: FakeNode, effect: ev.Forget) -> None:
        node.replicas.pop(effect.member, None)

    def _do_finalise(self, node: FakeNode, effect: ev.Finalise) -> None:
        scores = tuple(Score(r, self.score(node.me, r), 10) for r in self.policy.candidates)
        self._soon(node, ev.Finalised(scores))

    def _do_choose(self, node: FakeNode, effect: ev.Choose) -> None:
        node.chosen = effect

    def _do_persist(self, node: FakeNode, effect: ev.Persist) -> None:
        model, public, boots = node.model, node.public, node.boots

        def durable() -> None:
            if node.boots == boots and node.alive:
                node.disk.write(effect.record, model, public)
                node.durable = effect.id
                for peer in sorted(node.withheld):
                    self._flush(node, peer)
                self.feed(node, ev.Persisted(effect.id))

        self.at(self.persist_s, durable)

    def _do_note(self, node: FakeNode, effect: ev.Note) -> None:
        node.notes.append(effect.note)

    def _do_exit(self, node: FakeNode, effect: ev.Exit) -> None:
        node.exit = effect
        self.kill(node.me)

    def _soon(self, node: FakeNode, event: ev.Event, delay: float = 0.0) -> None:
        boots = node.boots
        self.at(delay, lambda: node.boots == boots and self.feed(node, event))


def policy(rounds: int = 5, final_mixing: int = 0, **changes: Any) -> Policy:
    return Policy(**{"rounds": rounds, "final_mixing": final_mixing, "linger_s": 5.0, **changes})


def ring(count: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % count) for i in range(count)]


def complete(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i)]
