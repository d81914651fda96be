"""Wraps a node's links and does to them what the scenario says, frame by frame.

Only the engines hand it to nodes; the release image has no scenarios package and cannot load it.
Frames are delayed, damaged and doubled on the sender's side. What a clog or a one-way partition
holds is held at the receiver, together with the news that a link broke: so it outlives whoever sent
it, as it would on its way through a network. Both ends refuse new links, so neither needs the
other's help to be apart.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from crypto.identity import NodeId
from node.protocol.frames import CHUNK
from node.runtime_links import Links, Owner
from node.types.messages import MiB
from scenarios.pipes import Downlink, Pipe, Uplink, delays
from scenarios.weather import Weather

LOOK_S: Final = 0.02  # how often a node looks for changes: far below any deadline
DIAL_TIMEOUT_S: Final = 1.0  # how long a dial that nobody answers takes to fail
HANDSHAKE_TRIPS: Final = 4  # one way: TCP takes one round trip, TLS 1.3 another
# A node sends at most its credit (8 MiB) of chunks and some small frames into a clog; whoever
# sends more than this loses the link.
HELD_BYTES_MAX: Final = 32 * MiB
WHY: Final = "partition"

_Arrival = bytes | str  # a frame, or why the link broke


class _Line:
    """One link that is up for the node: what is on its way, out and in."""

    def __init__(self, uplink: Uplink) -> None:
        self.pipe = Pipe(uplink)
        self.queue: list[tuple[float, int, bytes]] = []  # out: a heap by (when, order)
        self.bytes = 0
        self.sent = 0
        self.timer: asyncio.TimerHandle | None = None
        self.held: deque[_Arrival] = deque()  # in
        self.held_bytes = 0
        self.holding = False
        self.wanted = False  # what ``holding`` will be when the change is one latency old
        self.gate: asyncio.TimerHandle | None = None
        self.gone = False  # the connection is no more; the node has yet to learn it
        self.leaving = False  # the node itself, or a cut, ended it

    def put(self, at: float, frame: bytes) -> None:
        heapq.heappush(self.queue, (at, self.sent, frame))
        self.sent += 1
        self.bytes += len(frame)

    def pop(self) -> bytes:
        frame = heapq.heappop(self.queue)[2]
        self.bytes -= len(frame)
        return frame

    def drop_out(self) -> None:
        """What is on its way out is lost."""
        self.queue.clear()
        self.bytes = 0
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def drop(self) -> None:
        """The same, and nothing is let in any more."""
        self.drop_out()
        if self.gate is not None:
            self.gate.cancel()
            self.gate = None


class FaultyLinks:
    """Links like those it wraps. ``name``: what the scenario calls a node."""

    def __init__(self, inner: Links, weather: Weather, name: Callable[[NodeId], str]) -> None:
        self._inner, self._weather, self._name = inner, weather, name
        plan = weather.plan
        self._rng = random.Random(plan.seed)
        self._uplink, self._downlink = Uplink(plan.bandwidth_mbps), Downlink(plan.bandwidth_mbps)
        self._lines: dict[NodeId, _Line] = {}  # one for each link that the node believes is up
        self._landing: deque[tuple[float, NodeId, _Line, _Arrival]] = deque()  # for the downlink
        self._landing_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._dials: dict[NodeId, asyncio.TimerHandle] = {}  # under way, or into a partition
        self._resets: dict[str, int] = {}  # of the links to a neighbour, as carried out

    async def start(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._weather.listen(self._changed)
        self._look()
        await self._inner.start(self)

    async def close(self) -> None:
        for timer in (self._look_timer, self._landing_timer, *self._dials.values()):
            if timer is not None:
                timer.cancel()
        for peer, line in list(self._lines.items()):
            self._flush(peer, line)  # a good-bye that still travels is not lost
            line.drop()
        self._lines.clear()
        await self._inner.close()

    @property
    def sent_bytes(self) -> int:
        return self._inner.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._inner.received_bytes

    @property
    def refused(self) -> Mapping[str, int]:
        return self._inner.refused

    @property
    def broken_off(self) -> Mapping[str, int]:
        return self._inner.broken_off

    def via(self, peer: NodeId) -> str:
        return self._inner.via(peer)

    # ── from the node ───────────────────────────────────────────────────────────────────────

    def dial(self, peer: NodeId) -> None:
        if peer in self._dials:
            return
        if self._shut(peer):
            wait, then = DIAL_TIMEOUT_S, self._dial_again
        else:
            wait = HANDSHAKE_TRIPS * self._latency_s(peer)
            then = self._dial_now
        if wait > 0:
            self._dials[peer] = self._loop.call_later(wait, then, peer)
        else:
            self._inner.dial(peer)

    def hangup(self, peer: NodeId, why: str) -> None:
        line = self._lines.get(peer)
        if line is not None and line.gone:
            # there is nothing left to close: the node is told from the loop, as by a transport
            self._loop.call_soon(self._told, peer, line, why)
            return
        if line is not None:
            self._flush(peer, line)
            line.leaving = True
        self._inner.hangup(peer, why)

    def send(self, peer: NodeId, *parts: bytes | memoryview) -> None:
        line = self._lines.get(peer)
        if line is None or line.gone or line.leaving or self._cut(peer):
            return
        shape = self._weather.shape(self._name(peer))
        limited = self._weather.plan.bandwidth_mbps is not None
        if not line.queue and not limited and not delays(shape):
            self._inner.send(peer, *parts)
            return
        frame = b"".join(parts)  # copied: a view of the model would change under way
        bulk = self._weather.plan.broker and frame[1:2] == bytes((CHUNK,))
        now = self._loop.time()
        for at, arriving in line.pipe.put(now, frame, shape, self._rng, bulk=bulk):
            line.put(at, arriving)
        self._arm(peer, line)

    def queued_bytes(self, peer: NodeId) -> int:
        line = self._lines.get(peer)
        return self._inner.queued_bytes(peer) + (line.bytes if line else 0)

    # ── from the transport ──────────────────────────────────────────────────────────────────

    def on_up(self, peer: NodeId) -> None:
        if self._shut(peer):
            self._inner.hangup(peer, WHY)
            return
        if timer := self._dials.pop(peer, None):
            timer.cancel()
        if old := self._lines.get(peer):
            self._told(peer, old, "replaced by a new link")
        self._lines[peer] = _Line(self._uplink)
        self._owner.on_up(peer)

    def on_down(self, peer: NodeId, why: str) -> None:
        line = self._lines.get(peer)
        if line is None:
            # it never was up for the node: to it, its dial has failed
            self._owner.on_dial_failed(peer, why)
        elif line.gone:
            pass  # a newer one that was refused; the node still believes in the old one
        elif line.leaving or self._cut(peer):
            self._told(peer, line, why)
        else:
            line.gone = True
            line.drop_out()
            self._take(peer, line, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self._owner.on_dial_failed(peer, why)

    def on_frame(self, peer: NodeId, frame: memoryview) -> None:
        line = self._lines.get(peer)
        if line is None or line.gone or line.leaving or self._cut(peer):
            return
        if line.holding or self._landing or self._weather.plan.bandwidth_mbps is not None:
            self._take(peer, line, bytes(frame))
        else:
            self._owner.on_frame(peer, frame)

    def on_broker(self, up: bool, why: str) -> None:
        self._owner.on_broker(up, why)

    def on_drained(self, peer: NodeId) -> None:
        self._owner.on_drained(peer)

    # ── what the scenario does ──────────────────────────────────────────────────────────────

    def _look(self) -> None:
        self._look_timer = self._loop.call_later(LOOK_S, self._look)
        self._weather.advance(self._loop.time())

    def _changed(self) -> None:
        for peer, line in list(self._lines.items()):
            name = self._name(peer)
            reset = self._weather.resets[name] > self._resets.get(name, 0)
            if reset or self._cut(peer):
                line.drop()  # what was on the wire is lost
                self._end(peer, line, "reset" if reset else WHY)
                continue
            held = self._weather.held(name)
            if held != line.wanted:
                # what was on the wire arrives: the change comes one latency later at this end
                line.wanted = held
                if line.gate is not None:
                    line.gate.cancel()
                line.gate = self._loop.call_later(self._latency_s(peer), self._gate, peer, line)

        self._resets = dict(self._weather.resets)

    def _gate(self, peer: NodeId, line: _Line) -> None:
        line.gate = None
        line.holding = line.wanted
        while line.held and not line.holding and self._lines.get(peer) is line:
            arrival = line.held.popleft()
            line.held_bytes -= len(arrival)
            self._land(peer, line, arrival)

    def _end(self, peer: NodeId, line: _Line, why: str) -> None:
        if line.gone:
            self._told(peer, line, why)
        else:
            line.leaving = True
            self._inner.hangup(peer, why)

    def _cut(self, peer: NodeId) -> bool:
        return self._weather.cut(self._name(peer))

    def _shut(self, peer: NodeId) -> bool:
        return self._weather.shut(self._name(peer))

    def _latency_s(self, peer: NodeId) -> float:
        return self._weather.shape(self._name(peer)).latency_ms / 1000

    # ── dialling ────────────────────────────────────────────────────────────────────────────

    def _dial_now(self, peer: NodeId) -> None:
        if self._shut(peer):
            self._dial_failed(peer)
            return
        del self._dials[peer]
        if peer not in self._lines:  # else it came up the other way
            self._inner.dial(peer)

    def _dial_again(self, peer: NodeId) -> None:
        """As TCP's first SYN is repeated after a second; then the dial fails."""
        if self._shut(peer):
            self._dial_failed(peer)
        else:
            wait = HANDSHAKE_TRIPS * self._latency_s(peer)
            self._dials[peer] = self._loop.call_later(wait, self._dial_now, peer)

    def _dial_failed(self, peer: NodeId) -> None:
        del self._dials[peer]
        if peer not in self._lines:
            self._owner.on_dial_failed(peer, WHY)

    # ── on the way out ──────────────────────────────────────────────────────────────────────

    def _arm(self, peer: NodeId, line: _Line) -> None:
        if not line.queue:
            return
        at = line.queue[0][0]
        if line.timer is not None:
            if line.timer.when() <= at:
                return
            line.timer.cancel()
        line.timer = self._loop.call_at(at, self._arrive, peer, line)

    def _arrive(self, peer: NodeId, line: _Line) -> None:
        line.timer = None
        now = self._loop.time()
        while line.queue and line.queue[0][0] <= now:
            self._inner.send(peer, line.pop())
        self._arm(peer, line)
        self._owner.on_drained(peer)

    def _flush(self, peer: NodeId, line: _Line) -> None:
        while line.queue:
            self._inner.send(peer, line.pop())

    # ── on the way in ───────────────────────────────────────────────────────────────────────

    def _take(self, peer: NodeId, line: _Line, arrival: _Arrival) -> None:
        """Something reached this end: it is held, or goes on to the node's downlink."""
        if not line.holding:
            self._land(peer, line, arrival)
            return
        line.held.append(arrival)
        line.held_bytes += len(arrival)
        if line.held_bytes > HELD_BYTES_MAX:
            self._end(peer, line, "more was sent than a clogged link holds")

    def _land(self, peer: NodeId, line: _Line, arrival: _Arrival) -> None:
        now = self._loop.time()
        if isinstance(arrival, bytes):
            at = self._downlink.pass_through(now, len(arrival))
        else:  # behind the frames that still queue
            at = self._landing[-1][0] if self._landing else now
        if at <= now and not self._landing:
            self._deliver(peer, line, arrival)
            return
        self._landing.append((at, peer, line, arrival))
        if self._landing_timer is None:
            self._landing_timer = self._loop.call_at(at, self._landed)

    def _landed(self) -> None:
        self._landing_timer = None
        now = self._loop.time()
        while self._landing and self._landing[0][0] <= now:
            _, peer, line, arrival = self._landing.popleft()
            self._deliver(peer, line, arrival)
        if self._landing and self._landing_timer is None:
            self._landing_timer = self._loop.call_at(self._landing[0][0], self._landed)

    def _deliver(self, peer: NodeId, line: _Line, arrival: _Arrival) -> None:
        if self._lines.get(peer) is not line:
            return
        if isinstance(arrival, str):
            self._told(peer, line, arrival)
        elif not line.leaving and not self._cut(peer):
            self._owner.on_frame(peer, memoryview(arrival))

    def _told(self, peer: NodeId, line: _Line, why: str) -> None:
        """The link is no more for the node, once."""
        if self._lines.get(peer) is line:
            line.drop()
            del self._lines[peer]
            self._owner.on_down(peer, why)
