"""The virtual network: ordered links with latency, jitter, bandwidth, loss; cut, clogged, healed.

It carries bytes and knows nothing of cores. Loss is what it is on a stream: a delay; over a broker,
which nobody asks to send again, a chunk that is lost is gone. Only a cut, a reset, a crash or a
hangup breaks a link. Times are whole nanoseconds of virtual time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from blake3 import blake3

from node.errors import LocalProtocolError
from scenarios.vocabulary import LinkShape

MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
PACKET_BYTES: Final = 1460  # an Ethernet frame's share of a TCP stream
RETRANSMIT_MIN_NS: Final = 200 * MS  # Linux's least retransmission timeout
DIAL_AGAIN_NS: Final = SECOND  # TCP's first SYN is repeated after a second (RFC 6298); then we fail


class Clock:
    """Virtual time, and what is to happen in it: by time, then by order of scheduling."""

    def __init__(self) -> None:
        self.now = 0  # ns
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Do ``action(*arguments)`` at ``ns``. Raises LocalProtocolError for what is past."""
        if ns < self.now:
            raise LocalProtocolError(f"scheduled for {ns} ns, and it is {self.now} ns already")
        self._count += 1
        heapq.heappush(self._heap, (ns, self._count, action, arguments))

    def step(self) -> bool:
        """Do what comes next; False when nothing is left."""
        if not self._heap:
            return False
        self.now, _, action, arguments = heapq.heappop(self._heap)
        action(*arguments)
        return True


class Ends(Protocol):
    """Whom the network tells: nodes by their number."""

    def deliver(self, node: int, peer: int, frame: bytes, digest: bytes) -> None: ...
    def link_up(self, node: int, peer: int) -> None: ...
    def link_down(self, node: int, peer: int, why: str) -> None: ...
    def dial_failed(self, node: int, peer: int, why: str) -> None: ...


class _Edge:
    """The connection between two nodes. ``number`` grows when what is on the wire is lost."""

    __slots__ = ("cut", "number", "pending")

    def __init__(self) -> None:
        self.number = 0
        self.cut = False
        self.pending: int | None = None  # the end that does not know of the link yet


class _Half:
    """One direction of a link: from ``source`` to ``target``."""

    __slots__ = (
        "back",
        "edge",
        "free",
        "held",
        "holds",
        "jitter",
        "last",
        "latency",
        "loss",
        "rate",
        "sent_bytes",
        "shape",
        "source",
        "target",
        "unruly",
        "up",
    )
    back: _Half

    def __init__(self, edge: _Edge, source: int, target: int, shape: LinkShape) -> None:
        self.edge, self.source, self.target = edge, source, target
        self.up = False  # as ``source`` sees it
        self.sent_bytes = 0  # since the run's start
        self.last = 0  # when the newest frame arrives: a stream keeps its order
        self.free = 0  # when the link's own bandwidth is free again
        self.holds = 0  # clogs and one-way partitions that hold what is sent
        # what is held: the edge's number, a frame or (None) a break and why, and whether bulk
        self.held: list[tuple[int, bytes | None, bytes, str, bool]] = []
        self.reshape(shape)

    @property
    def shut(self) -> bool:
        """Whether no new link can be made: a handshake needs both ways."""
        return self.edge.cut or self.holds > 0 or self.back.holds > 0

    def reshape(self, shape: LinkShape) -> None:
        self.shape = shape
        self.latency = round(shape.latency_ms * MS)
        self.jitter = round(shape.jitter_ms * MS)
        self.loss = shape.loss
        self.unruly = bool(shape.duplicate or shape.reorder or shape.corrupt)
        self.rate = _ns_per_byte(shape.bandwidth_mbps)


class Network:
    """All links of a scenario. ``rng``: this network's own stream of chance.

    bandwidth: of each node, in Mbit/s. broker: links lead over one, and may lose what is bulk.
    """

    def __init__(
        self,
        clock: Clock,
        ends: Ends,
        rng: random.Random,
        *,
        nodes: int,
        bandwidth: float | None,
        broker: bool = False,
    ) -> None:
        self._clock, self._ends, self._rng = clock, ends, rng
        self._broker = broker
        self._alive = [False] * nodes
        self._rate = _ns_per_byte(bandwidth)  # of each node's uplink, and of its downlink
        self._up_free = [0] * nodes
        self._down_free = [0] * nodes
        self._halves: list[dict[int, _Half]] = [{} for _ in range(nodes)]
        self.sent_bytes = [0] * nodes
        self.received_bytes = [0] * nodes
        self.lost_bytes = [0] * nodes  # of what each sent: a broker's losses alone

    def add_link(self, a: int, b: int, shape: LinkShape) -> None:
        edge = _Edge()
        there, back = _Half(edge, a, b, shape), _Half(edge, b, a, shape)
        there.back, back.back = back, there
        self._halves[a][b], self._halves[b][a] = there, back

    def shape(self, a: int, b: int) -> LinkShape:
        return self._halves[a][b].shape

    def reshape(self, a: int, b: int, shape: LinkShape) -> None:
        """Change a link; what is on the wire still arrives as it was sent."""
        self._halves[a][b].reshape(shape)
        self._halves[b][a].reshape(shape)

    def link_bytes(self, a: int, b: int) -> int:
        """What ``a`` has sent to ``b`` so far."""
        return self._halves[a][b].sent_bytes

    def linked(self, a: int, b: int) -> bool:
        return self._halves[a][b].up and self._halves[b][a].up

    # ── nodes come and go ──

    def boot(self, node: int) -> None:
        self._alive[node] = True

    def kill(self, node: int, why: str) -> None:
        """The process is gone: its neighbours learn it after the latency, behind what it sent."""
        self._alive[node] = False
        for half in self._halves[node].values():
            half.up = False
            if half.edge.pending == node:
                half.edge.pending = None
            self._say_down(half, why)

    # ── links come and go ──

    def dial(self, node: int, peer: int) -> None:
        """Answered by link_up or dial_failed; nothing where the link came up the other way."""
        half = self._halves[node].get(peer)
        now = self._clock.now
        if half is None:
            self._clock.at(now, self._ends.dial_failed, node, peer, "no such address")
        elif half.shut:
            self._clock.at(now + DIAL_AGAIN_NS, self._dial_again, half)
        else:
            # TCP takes one round trip, TLS 1.3 another
            self._clock.at(now + 4 * half.latency, self._dialled, half)

    def hangup(self, node: int, peer: int, why: str) -> None:
        half = self._halves[node].get(peer)
        if half is not None and half.up:
            half.up = False
            self._say_down(half, why)

    def cut(self, a: int, b: int, why: str = "partitioned") -> None:
        """The link breaks at both ends at once, and what is on the wire is lost."""
        half = self._halves[a][b]
        half.edge.cut = True
        half.edge.pending = None
        for end in (half, half.back):
            if end.up:
                end.up = False
                self._ends.link_down(end.source, end.target, why)

    def reset(self, a: int, b: int) -> None:
        """As a cut that is healed at once: the ends may dial again."""
        shut = self._halves[a][b].edge.cut
        self.cut(a, b, "reset")
        if not shut:
            self.heal(a, b)

    def heal(self, a: int, b: int) -> None:
        self._halves[a][b].edge.cut = False

    def hold(self, a: int, b: int) -> None:
        """From now on what ``a`` sends to ``b`` is held; what is on the wire still arrives."""
        self._halves[a][b].holds += 1

    def release(self, a: int, b: int) -> None:
        """What was held goes on in order, unless a newer link has taken the old one's place."""
        half = self._halves[a][b]
        half.holds -= 1
        if half.holds:
            return
        held, half.held = half.held, []
        for number, frame, digest, why, bulk in held:
            if number != half.edge.number:
                continue
            if frame is None:
                self._say_down(half, why)
            else:
                self._put(half, frame, digest, bulk=bulk)

    def _dial_again(self, half: _Half) -> None:
        if not half.shut:
            self._clock.at(self._clock.now + 4 * half.latency, self._dialled, half)
        elif self._alive[half.source] and not half.up:
            self._ends.dial_failed(half.source, half.target, "no answer")

    def _dialled(self, half: _Half) -> None:
        edge, back = half.edge, half.back
        if not self._alive[half.source] or half.up or edge.pending == half.source:
            return
        if half.shut:
            self._ends.dial_failed(half.source, half.target, "no answer")
            return
        if not self._alive[half.target]:
            self._ends.dial_failed(half.source, half.target, "connection refused")
            return
        edge.number += 1
        if back.up:  # the other end has not noticed yet that the old link is gone
            back.up = False
            self._ends.link_down(back.source, back.target, "replaced by a new link")
        half.up = True
        edge.pending = half.target
        half.last = self._clock.now + half.latency
        self._clock.at(half.last, self._accepted, back, edge.number)
        self._ends.link_up(half.source, half.target)

    def _accepted(self, half: _Half, number: int) -> None:
        edge = half.edge
        if edge.number != number or edge.pending != half.source:
            return
        edge.pending = None
        half.up = True
        half.last = self._clock.now
        self._ends.link_up(half.source, half.target)

    def _say_down(self, half: _Half, why: str) -> None:
        """Tell the other end behind whatever is on the wire already."""
        if half.holds:
            half.held.append((half.edge.number, None, b"", why, False))
            return
        at = max(half.last, self._clock.now + half.latency)
        half.last = at
        self._clock.at(at, self._break_arrives, half.back, half.edge.number, why)

    def _break_arrives(self, half: _Half, number: int, why: str) -> None:
        """Behind the frames that still queue for the downlink."""
        free = self._down_free[half.source]
        if free > self._clock.now:
            self._clock.at(free, self._broken, half, number, why)
        else:
            self._broken(half, number, why)

    def _broken(self, half: _Half, number: int, why: str) -> None:
        if half.up and half.edge.number == number:
            half.up = False
            self._ends.link_down(half.source, half.target, why)

    # ── frames ──

    def send(
        self, node: int, peer: int, frame: bytes, digest: bytes, *, bulk: bool = False
    ) -> None:
        """Send over a link that ``node`` holds up; dropped where it does not.

        bulk: part of a payload, which the receiver asks for again if it does not come.
        """
        half = self._halves[node].get(peer)
        if half is None or not half.up:
            return
        size = len(frame)
        self.sent_bytes[node] += size
        half.sent_bytes += size
        if half.holds:
            half.held.append((half.edge.number, frame, digest, "", bulk))
        else:
            self._put(half, frame, digest, bulk=bulk)

    def _put(self, half: _Half, frame: bytes, digest: bytes, *, bulk: bool) -> None:
        """On the wire: when will the last byte be at the other end?"""
        size, node = len(frame), half.source
        at = self._clock.now
        if self._rate:
            at = max(at, self._up_free[node]) + round(size * self._rate)
            self._up_free[node] = at
        if half.rate:
            at = max(at, half.free) + round(size * half.rate)
            half.free = at
        at += half.latency
        if half.jitter:
            at += round(self._rng.random() * half.jitter)
        if half.loss and bulk and self._broker:
            if self._rng.random() < half.loss:
                self.lost_bytes[node] += size  # it took its share of the uplink
                return
        elif half.loss:
            packets = -(-size // PACKET_BYTES)
            if self._rng.random() >= (1 - half.loss) ** packets:
                at += max(RETRANSMIT_MIN_NS, 4 * half.latency)
        at = max(at, half.last)
        if half.unruly:
            self._misbehave(half, frame, digest, at)
            return
        half.last = at
        arrive = self._arrive if self._rate else self._deliver
        self._clock.at(at, arrive, half, half.edge.number, frame, digest)

    def _misbehave(self, half: _Half, frame: bytes, digest: bytes, at: int) -> None:
        """What a stream would hide: a flipped byte, a frame overtaken, a frame twice."""
        rng, shape = self._rng, half.shape
        if rng.random() < shape.corrupt:
            damaged = bytearray(frame)
            damaged[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            frame = bytes(damaged)
            digest = blake3(frame).digest()
        if rng.random() < shape.reorder:
            overtaken = at + max(half.latency, MS)  # ``last`` stays: later frames pass it
            self._clock.at(overtaken, self._arrive, half, half.edge.number, frame, digest)
        else:
            half.last = at
            self._clock.at(at, self._arrive, half, half.edge.number, frame, digest)
        if rng.random() < shape.duplicate:
            self._clock.at(at, self._arrive, half, half.edge.number, frame, digest)

    def _arrive(self, half: _Half, number: int, frame: bytes, digest: bytes) -> None:
        """The last byte reached the receiver's network, as fast as its downlink takes it."""
        node, now = half.target, self._clock.now
        if self._rate:
            takes = round(len(frame) * self._rate)
            free = self._down_free[node]
            if free > now - takes:
                self._down_free[node] = free + takes
                self._clock.at(free + takes, self._deliver, half, number, frame, digest)
                return
            self._down_free[node] = now
        self._deliver(half, number, frame, digest)

    def _deliver(self, half: _Half, number: int, frame: bytes, digest: bytes) -> None:
        if half.edge.number == number and half.back.up:
            self.received_bytes[half.target] += len(frame)
            self._ends.deliver(half.target, half.source, frame, digest)


def _ns_per_byte(mbps: float | None) -> float:
    return 0.0 if mbps is None else 8000.0 / mbps
