"""One TCP connection: TLS handshake under a deadline, then frames in and out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from crypto.channel import Channel
from crypto.identity import NodeId
from node.errors import OutOfBounds, RemoteProtocolError, TransportError
from node.transport.attempt import Attempt
from node.transport.framing import HEADER_BYTES, Deframer
from node.transport.links import Link, Pace

if TYPE_CHECKING:
    from node.transport.tcp import TcpTransport

# Enough that the kernel never starves between two turns of the loop; a link holds no more.
_HIGH_WATER: Final = 512 * 1024
_PIECE: Final = 256 * 1024  # encrypted and handed to the kernel at a time


class TcpLink(Link):
    """A link over one TCP connection."""

    via = "tcp"

    def __init__(self, owner: TcpTransport, connection: Connection, peer: NodeId) -> None:
        super().__init__(owner, peer, initiator=connection.dialled)
        self._connection = connection

    @property
    def outbox_bytes(self) -> int:
        return self._connection.outbox_bytes

    async def drained(self) -> None:
        await self._connection.drained()

    def _write(self, prefix: bytes, data: bytes | memoryview) -> None:
        size = len(prefix) + len(data)
        self._connection.write(size.to_bytes(HEADER_BYTES, "big") + prefix, data)

    def _shut(self) -> None:
        self._connection.shut()


class Connection(Attempt, asyncio.BufferedProtocol):
    """One TCP connection, dialled or accepted."""

    _owner: TcpTransport
    link: TcpLink | None

    def __init__(self, owner: TcpTransport, channel: Channel, *, dialled: bool) -> None:
        super().__init__(owner, channel, dialled=dialled)
        loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._half_open = False  # and counted as such
        self.spoke = False  # anything came
        self._deframer = Deframer()
        self._shutting = False
        self._writable: asyncio.Future[None] | None = None  # there while the kernel is full
        self._begun_at: float | None = None  # when the frame in hand began
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pace = Pace(loop.time())
        self.lost: asyncio.Future[None] = loop.create_future()

    @property
    def who(self) -> str:
        return self._address

    def _make_link(self, peer: NodeId) -> TcpLink:
        return TcpLink(self._owner, self, peer)

    # ── asyncio's side ──────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self._address = str(name[0]) if name else "unknown"
        if not self._owner.opened(self, None if self.dialled else self._address):
            self._transport.abort()
            return
        self._half_open = not self.dialled
        handle = transport.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        if not self.dialled:  # a dial has a deadline of its own, which spans the connecting
            self._after("handshake", self._owner.limits.handshake_s, self._handshake_late)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._owner.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._shutting:
            return
        self.spoke = True
        self._count_received(nbytes)
        try:
            self._channel.receive(self._owner.receive_buffer[:nbytes])
            self._flush()
            fresh = self.link is None
            if fresh and self._channel.ready:
                self._authenticated()
            if self.link is not None:
                self._read_frames(self.link, fresh=fresh)
        except (RemoteProtocolError, TransportError) as error:
            self._fault(error)  # other errors are the handler's own: not the peer's doing

    def eof_received(self) -> bool:
        return False  # asyncio closes the transport: half a connection is of no use

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        why = f"connection lost: {exc}" if exc else "the connection ended without a closing record"
        if self.link is not None:
            self.link.end(why)
        elif not self.dialled and not self._shutting and self._half_open:
            self._owner.refuse("gone", self._address, why)
        self._settle()
        self.resume_writing()
        if not self.outcome.done():
            self._resolve(TransportError(why))
        self._owner.gone(self)
        if not self.lost.done():
            self.lost.set_result(None)

    # ── the link's side ─────────────────────────────────────────────────────────────────────

    @property
    def outbox_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    def write(self, head: bytes, data: bytes | memoryview) -> None:
        """Encrypt and hand on; small frames go as one TLS record."""
        if len(data) <= _PIECE // 32:
            self._channel.write(head + bytes(data))
            self._flush()
            return
        self._channel.write(head)
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._channel.write(view[start : start + _PIECE])
            self._flush()

    async def drained(self) -> None:
        while self._writable is not None and not self._shutting:
            await asyncio.shield(self._writable)

    def shut(self) -> None:
        if self._transport is None or self._shutting:
            return
        self._shutting = True
        if self._channel.ready:
            self._channel.close()
        self._flush()
        self.resume_writing()  # nobody need wait for what a closed link still sends
        self._transport.close()
        self._after("closing", self._owner.limits.closing_s, self._transport.abort)

    def crowded_out(self) -> None:
        """Others wait for the place of a handshake that does not end."""
        self._half_open = False
        self._owner.refuse("half-open", self._address, "too many connections without a handshake")
        self.abort()

    def abort(self) -> None:
        """Close at once, unless it became a link."""
        if self.link is None and self._transport is not None:
            self._shutting = True
            self._transport.abort()
        self._unasked()

    # ── inside ──────────────────────────────────────────────────────────────────────────────

    def _authenticated(self) -> None:
        peer = self._owner.identify(self._channel.peer_certificate)
        self._cancel("handshake")
        self._settle()
        self._welcome(peer)

    def _read_frames(self, link: TcpLink, *, fresh: bool) -> None:
        """``fresh``: these bytes ended the handshake, so it is no wonder if no frame is in them."""
        plain = 0
        finished = False
        while not link.closed:
            count = self._channel.read_into(self._deframer.space())
            if count == 0:
                break
            plain += count
            for frame in self._deframer.frames(count):
                finished = True
                self._pace.spend(frame)
                self._owner.handler.on_frame(link, frame)
                if self._shutting:
                    return
            if self._too_fast():
                break
        self._watch(finished=finished, quiet=plain == 0 and not fresh)

    def _too_fast(self) -> bool:
        """Read nothing for a moment where frames come faster than is taken: TCP tells the sender.

        What is here already waits undecrypted, at most what one read brought.
        """
        wait_s = self._pace.wait_s(asyncio.get_running_loop().time())
        if wait_s and self._transport is not None:
            self._transport.pause_reading()
            self._after("pace", wait_s, self._read_on)
        return wait_s > 0

    def _read_on(self) -> None:
        if self._shutting or self.link is None or self._transport is None:
            return
        self._transport.resume_reading()
        try:
            self._read_frames(self.link, fresh=True)
        except (RemoteProtocolError, TransportError) as error:
            self._fault(error)

    def _watch(self, *, finished: bool, quiet: bool) -> None:
        """Arm the deadline of a frame begun. Bytes that yield no text began a TLS record."""
        if finished:
            self._begun_at = None
        if (self._deframer.unfinished or quiet) and self._begun_at is None:
            self._begun_at = asyncio.get_running_loop().time()
            # one timer at a time, looked at when it rings: a stream begins frames all the time
            if "frame" not in self._timers:
                self._after("frame", self._owner.limits.frame_s, self._frame_late)

    def _frame_late(self) -> None:
        self._timers.pop("frame", None)
        if self._begun_at is None or self._shutting:
            return
        left = self._begun_at + self._owner.limits.frame_s - asyncio.get_running_loop().time()
        if left > 0:
            self._after("frame", left, self._frame_late)
            return
        error = OutOfBounds(f"a frame did not end within {self._owner.limits.frame_s:g} s")
        error.reason = "slow"
        self._fault(error)

    def _handshake_late(self) -> None:
        error = RemoteProtocolError(f"no handshake within {self._owner.limits.handshake_s:g} s")
        error.reason = "slow"
        self._fault(error)

    def _settle(self) -> None:
        if self._half_open:
            self._half_open = False
            self._owner.settled(self)

    def _flush(self) -> None:
        data = self._channel.pending()
        if not data or self._transport is None:
            return
        self._transport.write(data)
        self._count_sent(len(data))

    def _after(self, name: str, delay: float, action: Callable[[], object]) -> None:
        self._cancel(name)
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(delay, action)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
