"""Links within one process, for tests: the same interface, frames still travel as encoded bytes."""

from __future__ import annotations

import asyncio
from collections import deque

from crypto.identity import NodeId
from node.transport.links import OUTBOX_BYTES_MAX, Gate, Link, Transport


class MemoryNetwork:
    """Where the transports of one process find each other."""

    def __init__(self) -> None:
        self.listening: dict[NodeId, MemoryTransport] = {}
        self._held: set[tuple[NodeId, NodeId]] = set()

    def cut(self, one: NodeId, other: NodeId, why: str = "cut") -> None:
        """Break the link of a pair: frames in flight are lost."""
        transport = self.listening.get(one)
        link = transport.links.get(other) if transport else None
        if isinstance(link, MemoryLink):
            link.snap(why)

    def hold(self, sender: NodeId, receiver: NodeId) -> None:
        """Deliver nothing from ``sender`` to ``receiver`` until ``release``."""
        self._held.add((sender, receiver))

    def release(self, sender: NodeId, receiver: NodeId) -> None:
        self._held.discard((sender, receiver))
        transport = self.listening.get(sender)
        link = transport.links.get(receiver) if transport else None
        if isinstance(link, MemoryLink):
            link.deliver()

    def held(self, sender: NodeId, receiver: NodeId) -> bool:
        return (sender, receiver) in self._held


class MemoryLink(Link):
    """One end; ``other`` is the far one."""

    via = "memory"

    def __init__(self, owner: MemoryTransport, peer: NodeId, *, initiator: bool) -> None:
        super().__init__(owner, peer, initiator=initiator)
        self._network = owner.network
        self._loop = asyncio.get_running_loop()
        self.other: MemoryLink | None = None
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._scheduled = False
        self._ending = False
        self._empty: asyncio.Future[None] | None = None

    @property
    def outbox_bytes(self) -> int:
        return self._queued_bytes

    async def drained(self) -> None:
        while self._queue and not self.closed:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)

    def snap(self, why: str) -> None:
        """Both ends lose the link at once."""
        for end in (self, self.other):
            if end is not None:
                end._clear()
                end.end(why)

    def deliver(self) -> None:
        """Hand the next frame over, one a turn of the loop, as a socket would."""
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver_one)
        elif self._ending and not self._queue and self.other is not None:
            self._loop.call_soon(self.other.end, "closed by the other end")

    def _write(self, prefix: bytes, data: bytes | memoryview) -> None:
        frame = b"".join((prefix, data))
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._owner.stats.sent[self.peer] += len(frame)
        self.deliver()

    def _shut(self) -> None:
        self._ending = True
        self.deliver()
        self._wake()

    def _deliver_one(self) -> None:
        self._scheduled = False
        if not self._queue or self._network.held(self._owner.me, self.peer):
            return
        frame = self._queue.popleft()
        self._queued_bytes -= len(frame)
        if not self._queue:
            self._wake()
        if self.other is not None and not self.other.closed:
            self.other.take(frame)
        self.deliver()

    def take(self, frame: bytes) -> None:
        self._owner.stats.received[self.peer] += len(frame)
        self._owner.handler.on_frame(self, memoryview(frame))

    def _clear(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        self._wake()

    def _wake(self) -> None:
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        self._empty = None


class MemoryTransport(Transport):
    """One node's transport in a MemoryNetwork."""

    def __init__(
        self,
        me: NodeId,
        network: MemoryNetwork,
        *,
        gate: Gate | None = None,
        outbox_bytes_max: int = OUTBOX_BYTES_MAX,
    ) -> None:
        super().__init__(me, gate=gate, outbox_bytes_max=outbox_bytes_max)
        self.network = network
        self._dialling: dict[NodeId, asyncio.Handle] = {}
        self._closed = False

    async def listen(self) -> None:
        self.network.listening[self.me] = self

    def dial(self, peer: NodeId) -> None:
        if self._closed or peer in self.links or peer in self._dialling:
            return
        loop = asyncio.get_running_loop()
        self._dialling[peer] = loop.call_soon(self._connect, peer)

    async def close(self) -> None:
        self._closed = True
        for handle in self._dialling.values():
            handle.cancel()
        self._dialling.clear()
        for link in list(self.links.values()):
            link.close("this node stops")
        self.network.listening.pop(self.me, None)
        self._tell_downs()

    def _connect(self, peer: NodeId) -> None:
        del self._dialling[peer]
        far = self.network.listening.get(peer)
        if far is None or not self.gate(peer) or not far.gate(self.me):
            if peer not in self.links:
                self.handler.on_dial_failed(peer, "unreachable")
            return
        near_end = MemoryLink(self, peer, initiator=True)
        far_end = MemoryLink(far, self.me, initiator=False)
        near_end.other, far_end.other = far_end, near_end
        if not far.admit(far_end):
            near_end.closed = True
            return
        if not self.admit(near_end):
            far_end.end("a duplicate of another link")
