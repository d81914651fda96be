"""TCP: listens, dials, and finds out who is at the other end. `connection.py` has one connection.

TLS is crypto.channel's: asyncio's own reaches half its speed.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crypto.channel import READ_BYTES, Channel
from crypto.identity import NodeId
from node.errors import ConfigError, GrapevineError
from node.transport.addresses import (
    Address,
    PeerAddress,
    is_broker,
    is_loopback,
    leads_elsewhere,
    parse_address,
)
from node.transport.connection import Connection
from node.transport.links import HANDSHAKE_S, OUTBOX_BYTES_MAX, Gate
from node.transport.secured import SecuredTransport

LEARNED_MAX: Final = 2  # addresses of a member's own naming in one dial: each may take handshake_s


@dataclass(frozen=True)
class Limits:
    """What a stranger, or a slow member, can cost at most."""

    handshake_s: float = HANDSHAKE_S
    frame_s: float = 30.0  # a frame begun must have ended by then
    closing_s: float = 5.0  # to take what was sent before a close
    half_open: int = 64  # accepted connections that have not shown who they are
    half_open_per_address: int = 16
    outbox_bytes: int = OUTBOX_BYTES_MAX
    log_s: float = 10.0  # at most one line about refusals in this time


class TcpTransport(SecuredTransport):
    """Links over TCP. listen: "host:port", or None for a node that only dials out."""

    def __init__(
        self,
        me: NodeId,
        *,
        certificate: bytes,
        key_pem: bytes,
        peers: Mapping[NodeId, PeerAddress],
        listen: str | None = None,
        gate: Gate | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        super().__init__(
            me,
            certificate=certificate,
            key_pem=key_pem,
            peers=peers,
            gate=gate,
            handshake_s=self.limits.handshake_s,
            outbox_bytes=self.limits.outbox_bytes,
            log_s=self.limits.log_s,
        )
        self._addresses = {
            peer: tuple(parse_address(a) for a in known.addresses if not is_broker(a))
            for peer, known in self._peers.items()
        }
        self._listen = None if listen is None else parse_address(listen, key="listen")
        self._server: asyncio.Server | None = None
        self._connections: dict[Connection, None] = {}  # in order of their making
        # accepted, and not known yet who it is; with the address, oldest first
        self._half_open: dict[Connection, str] = {}
        # where a member itself says that it is now; who is asked checked that it was the member
        self.learned: Callable[[NodeId], Sequence[str]] = lambda peer: ()
        # asyncio fills it and calls back before any other connection's turn: one for all
        self.receive_buffer = memoryview(bytearray(READ_BYTES))

    async def listen(self) -> None:
        if self._listen is None:
            return
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._accept, self._listen.host, self._listen.port, backlog=128
            )
        except (OSError, ValueError) as error:
            raise ConfigError(_listen_error(self._listen, error)) from None

    @property
    def listening(self) -> Address | None:
        """The address in use (its real port where 0 was asked for); None if not listening."""
        if self._server is None or not self._server.sockets:
            return None
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def ways(self, peer: NodeId) -> tuple[Address, ...]:
        """Where to dial ``peer``: where it says that it is now, then what the roster has.

        A wrong address costs a dial: TLS takes nobody else for it. But a member must not point
        others at services of their own machines, so such an address counts only where the whole
        consortium seems to live on one.
        """
        known = self._addresses.get(peer, ())
        said = [parse_address(text) for text in self.learned(peer) if not is_broker(text)]
        if not any(map(is_loopback, (*known, *([self._listen] if self._listen else ())))):
            said = list(filter(leads_elsewhere, said))
        return tuple(dict.fromkeys((*said[:LEARNED_MAX], *known)))

    async def close(self) -> None:
        self._closing = True
        if self._server is not None:
            self._server.close()
        await self._end_dials()
        for link in list(self.links.values()):
            link.close("this node stops")
        for connection in list(self._connections):
            connection.shut()
        await asyncio.gather(*(one.lost for one in self._connections), return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        self._tell_downs()

    # ── for connections ─────────────────────────────────────────────────────────────────────

    def opened(self, connection: Connection, address: str | None) -> bool:
        """A connection is made; ``address``: of an accepted one. False: this node is closing."""
        if self._closing:
            return False
        if address is not None:
            self._make_room(address)
            self._half_open[connection] = address
        self._connections[connection] = None
        return True

    def _make_room(self, address: str) -> None:
        """At a bound one that is there already goes: a handshake takes a moment, not its deadline.

        Else a few silent connections, opened again and again, would keep every member out. Who has
        said nothing goes first, then the oldest; of the address that has the most, or too many.
        """
        here = Counter(self._half_open.values())
        if here[address] < self.limits.half_open_per_address:
            if here.total() < self.limits.half_open:
                return
            address = max(here, key=here.__getitem__)
        crowd = [one for one, where in self._half_open.items() if where == address]
        leaving = next((one for one in crowd if not one.spoke), crowd[0])
        del self._half_open[leaving]
        leaving.crowded_out()

    def settled(self, connection: Connection) -> None:
        """An accepted connection is no longer half open."""
        self._half_open.pop(connection, None)

    def gone(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    # ── own tasks ───────────────────────────────────────────────────────────────────────────

    def _accept(self) -> Connection:
        return Connection(self, Channel(self._server_context, server_side=True), dialled=False)

    async def _reach(self, peer: NodeId) -> str | None:
        why = "it has no address"
        for address in self.ways(peer):
            try:
                await self._connect(peer, address)
                return None
            except TimeoutError:
                why = f"{address}: no answer within {self.limits.handshake_s:g} s"
            except (OSError, ValueError) as error:  # ValueError: no possible host name
                why = f"{address}: {getattr(error, 'strerror', None) or error}"
            except GrapevineError as error:
                why = f"{address}: {error}"
        return why

    async def _connect(self, peer: NodeId, address: Address) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(self, self._channel_to(peer), dialled=True)
        try:
            async with asyncio.timeout(self.limits.handshake_s):
                await loop.create_connection(lambda: connection, address.host, address.port)
                await connection.outcome
        except BaseException:
            connection.abort()
            raise


def _listen_error(address: Address, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"listen {address}: the port is in use; stop what uses it, or set another in listen"
    found = getattr(error, "strerror", None) or error
    return f"listen {address}: {found}; expected an address of this machine"
