"""Wraps a node's links and does to them what the scenario says: cuts, delay, bandwidth, loss.

Only the engines hand it to nodes; the release image has no scenarios package and cannot load it.
Frames are delayed on the sender's side. Both ends of a cut link drop it and refuse a new one, so
neither needs the other's help to be apart.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from crypto.identity import NodeId
from node.runtime_links import Links, Owner
from scenarios.vocabulary import LinkShape
from scenarios.weather import Pipe, Uplink, Weather

LOOK_S: Final = 0.02  # how often a node looks for changes: far below any deadline
DIAL_TIMEOUT_S: Final = 1.0  # how long a dial into a partition takes to fail
WHY: Final = "partition"


class _Line:
    """What waits to leave for one peer, in order."""

    def __init__(self, uplink: Uplink) -> None:
        self.pipe = Pipe(uplink)
        self.queue: deque[tuple[float, bytes]] = deque()
        self.bytes = 0
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class FaultyLinks:
    """Links like those it wraps. ``name``: what the scenario calls a node."""

    def __init__(self, inner: Links, weather: Weather, name: Callable[[NodeId], str]) -> None:
        self._inner, self._weather, self._name = inner, weather, name
        plan = weather.plan
        self._rng = random.Random(plan.seed)
        self._uplink = Uplink(plan.uplink_mbps)
        self._lines: dict[NodeId, _Line] = {}  # one for each link that is up
        self._timer: asyncio.TimerHandle | None = None
        self._late: dict[NodeId, asyncio.TimerHandle] = {}  # dials into a partition

    async def start(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._look()
        await self._inner.start(self)

    async def close(self) -> None:
        for timer in (self._timer, *self._late.values()):
            if timer is not None:
                timer.cancel()
        for peer in list(self._lines):
            self._flush(peer)  # a good-bye that still travels is not lost
            self._lines.pop(peer).cancel()
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

    # ── from the node ───────────────────────────────────────────────────────────────────────

    def dial(self, peer: NodeId) -> None:
        if not self._cut(peer):
            self._inner.dial(peer)
            return
        if peer not in self._late:
            self._late[peer] = self._loop.call_later(DIAL_TIMEOUT_S, self._dial_failed, peer)

    def hangup(self, peer: NodeId, why: str) -> None:
        self._flush(peer)
        self._inner.hangup(peer, why)

    def send(self, peer: NodeId, *parts: bytes | memoryview) -> None:
        line = self._lines.get(peer)
        if line is None or self._cut(peer):
            return
        shape = self._weather.shape(self._name(peer))
        if not line.queue and not self._delays(shape):
            self._inner.send(peer, *parts)
            return
        frame = b"".join(parts)  # copied: a view of the model would change under way
        chance = {"jitter": self._rng.random(), "loss": self._rng.random()}
        at = line.pipe.arrival(self._loop.time(), len(frame), shape, chance)
        line.queue.append((at, frame))
        line.bytes += len(frame)
        self._arm(peer, line)

    def queued_bytes(self, peer: NodeId) -> int:
        line = self._lines.get(peer)
        return self._inner.queued_bytes(peer) + (line.bytes if line else 0)

    # ── from the transport ──────────────────────────────────────────────────────────────────

    def on_up(self, peer: NodeId) -> None:
        if self._cut(peer):
            self._inner.hangup(peer, WHY)
            return
        if peer in self._lines:
            self._lines.pop(peer).cancel()
        self._lines[peer] = _Line(self._uplink)
        self._owner.on_up(peer)

    def on_down(self, peer: NodeId, why: str) -> None:
        line = self._lines.pop(peer, None)
        if line is None:
            # it never was up for the node: to it, its dial has failed
            self._owner.on_dial_failed(peer, why)
            return
        line.cancel()
        self._owner.on_down(peer, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self._owner.on_dial_failed(peer, why)

    def on_frame(self, peer: NodeId, frame: memoryview) -> None:
        if peer in self._lines and not self._cut(peer):
            self._owner.on_frame(peer, frame)

    def on_drained(self, peer: NodeId) -> None:
        self._owner.on_drained(peer)

    # ── what the scenario does ──────────────────────────────────────────────────────────────

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look)
        if self._weather.advance(self._loop.time()):
            for peer in list(self._lines):
                if self._cut(peer):
                    self._lines[peer].queue.clear()  # what was on the wire is lost
                    self._lines[peer].bytes = 0
                    self._inner.hangup(peer, WHY)

    def _cut(self, peer: NodeId) -> bool:
        return self._weather.cut(self._name(peer))

    def _delays(self, shape: LinkShape) -> bool:
        plan = self._weather.plan
        limited = shape.bandwidth_mbps is not None or plan.uplink_mbps is not None
        return limited or shape.latency_ms > 0 or shape.jitter_ms > 0 or shape.loss > 0

    def _dial_failed(self, peer: NodeId) -> None:
        self._late.pop(peer, None)
        self._owner.on_dial_failed(peer, WHY)

    def _arm(self, peer: NodeId, line: _Line) -> None:
        if line.timer is None and line.queue:
            line.timer = self._loop.call_at(line.queue[0][0], self._arrive, peer, line)

    def _arrive(self, peer: NodeId, line: _Line) -> None:
        line.timer = None
        now = self._loop.time()
        while line.queue and line.queue[0][0] <= now:
            _, frame = line.queue.popleft()
            line.bytes -= len(frame)
            self._inner.send(peer, frame)
        self._arm(peer, line)
        self._owner.on_drained(peer)

    def _flush(self, peer: NodeId) -> None:
        line = self._lines.get(peer)
        while line is not None and line.queue:
            self._inner.send(peer, line.queue.popleft()[1])
        if line is not None:
            line.bytes = 0
