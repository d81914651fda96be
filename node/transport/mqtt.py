"""Links through an MQTT broker that nobody has to trust: rendezvous, who is who, and bounds.

`mqtt_session.py` has the broker's connection, `mqtt_connection.py` one link, `mqtt_pipe.py` the
stream below its TLS, `mqtt_bulk.py` the chunks that are published once for all neighbours.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from crypto.certificate import certificate_public_key
from crypto.channel import Channel
from crypto.identity import NodeId, short_id
from node.errors import GrapevineError, RemoteProtocolError
from node.transport.addresses import SEAT_BYTES, PeerAddress, is_broker, seat
from node.transport.links import HANDSHAKE_S, OUTBOX_BYTES_MAX, Gate, Link
from node.transport.mqtt_bulk import Bulk
from node.transport.mqtt_connection import DIAL_BYTES, Connection, MqttLink
from node.transport.mqtt_login import Login
from node.transport.mqtt_pipe import HEAD_BYTES, SEGMENT_BYTES, TAG_BYTES
from node.transport.mqtt_presence import AGAIN_S, Presences
from node.transport.mqtt_session import Session
from node.transport.secured import SecuredTransport

HELLO_VERSION: Final = 1
ABSENT_S: Final = 2.0  # to answer a dial, for who is not known to be at the broker
_HELLO_BYTES: Final = 2 + DIAL_BYTES + SEAT_BYTES
_TO_ACCEPTOR, _TO_DIALLER = 0, 1


@dataclass(frozen=True)
class Limits:
    """What a stranger, a broker or a slow member can cost at most."""

    handshake_s: float = HANDSHAKE_S
    closing_s: float = 5.0
    away_s: float = 10.0  # links wait this long for the broker to come back
    half_open: int = 64  # dials of others that have not shown who they are
    half_open_per_seat: int = 4
    outbox_bytes: int = OUTBOX_BYTES_MAX
    log_s: float = 10.0


class MqttTransport(SecuredTransport):
    """Links over one broker.

    sign: with the node's key, for a purpose. advertise: where else this node can be reached, for
    its presence.
    """

    def __init__(
        self,
        me: NodeId,
        login: Login,
        *,
        consortium: bytes,
        epoch: int,
        certificate: bytes,
        key_pem: bytes,
        sign: Callable[[str, bytes], bytes],
        peers: Mapping[NodeId, PeerAddress],
        advertise: tuple[str, ...] = (),
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
        self._login = login
        self._seats = {peer: seat(consortium, peer, epoch) for peer in (me, *self._peers)}
        self._by_seat = {place: peer for peer, place in self._seats.items()}
        self._connections: dict[tuple[bytes, bool], Connection] = {}  # by dial, and who dialled
        self._half_open: dict[bytes, None] = {}  # dials of others
        self._joining: dict[bytes, asyncio.Task[None]] = {}
        self._stirred: dict[Link, asyncio.Future[None]] = {}
        self._away: asyncio.TimerHandle | None = None
        self.presences = Presences(
            me,
            consortium=consortium,
            epoch=epoch,
            keys={p: certificate_public_key(known.certificate) for p, known in self._peers.items()},
            sign=sign,
            addresses=advertise,
        )
        self._renewal: asyncio.TimerHandle | None = None

    # ── what every transport does ───────────────────────────────────────────────────────────

    async def listen(self) -> None:
        """Meet the broker, now or whenever it is there."""
        mine = self._seats[self.me].hex()
        self.session = Session(
            self._login,
            will=self._topic("bye", mine),
            probe=self._topic("in", mine, "probe"),
            changed=self._broker_changed,
        )
        self.bulk = Bulk(self)
        await self.session.subscribe(self._topic("in", mine, "hello"), 1, self._hello)
        for peer in self._peers:
            place = self._seats[peer].hex()
            await self.session.subscribe(self._topic("bye", place), 0, self._watch(peer))
            await self.session.subscribe(self._topic("at", place), 1, self._present(peer))
        self.session.start()

    async def close(self) -> None:
        self._closing = True
        for task in self._joining.values():
            task.cancel()
        await asyncio.gather(*self._joining.values(), return_exceptions=True)
        await self._end_dials()
        for link in list(self.links.values()):
            link.close("this node stops")
        if self.session.up:
            for connection in list(self._connections.values()):
                connection.abort()  # unless it is a link
            ends = [one.over for one in self._connections.values()]
            await asyncio.gather(*ends)  # what was sent goes out, if the other end takes it in time
        for connection in list(self._connections.values()):
            connection.finish()
        for timer in (self._away, self._renewal):
            if timer is not None:
                timer.cancel()
        self.session.post(self._topic("at", self._seats[self.me].hex()), b"", retain=True)
        self.bulk.close()
        await self.bulk.receiving.closed()
        await self.session.close()
        self._tell_downs()

    def retire(self, link: Link, why: str) -> None:
        super().retire(link, why)
        if isinstance(link, MqttLink):
            self.bulk.down(link)
        self.stir()

    def learned(self, peer: NodeId) -> tuple[str, ...]:
        """Where ``peer`` says, signed and not long ago, that it can be reached besides here."""
        return self.presences.addresses(peer, _wall_ms())

    # ── for connections ─────────────────────────────────────────────────────────────────────

    @property
    def segment_bytes(self) -> int:
        """What fits of a stream into one message, whichever topic it takes."""
        room = self.session.packet_bytes - max(TAG_BYTES, _HELLO_BYTES) - HEAD_BYTES
        return min(SEGMENT_BYTES, room)

    def hello(self, connection: Connection, body: bytes) -> tuple[str, bytes]:
        """Topic and message of a piece of a handshake."""
        way = _TO_ACCEPTOR if connection.dialled else _TO_DIALLER
        head = bytes((HELLO_VERSION, way)) + connection.dial + self._seats[self.me]
        return self._topic("in", connection.seat.hex(), "hello"), head + body

    def pipe_topic(self, peer: NodeId, topic: bytes) -> str:
        return self._topic("in", self._seats[peer].hex(), topic.hex())

    def transfer_topic(self, topic: bytes, peer: NodeId | None = None) -> str:
        """Where ``peer`` publishes a payload once; None: this node."""
        return self._topic("out", self._seats[peer or self.me].hex(), topic.hex())

    def hear(self, link: Link, frame: bytes) -> None:
        """Hand a frame to the core as if it had just come over ``link``."""
        self.handler.on_frame(link, memoryview(frame))

    def settled(self, connection: Connection) -> None:
        """A dial of another end has shown who it is, or is given up."""
        if not connection.dialled:
            self._half_open.pop(connection.dial, None)

    def gone(self, connection: Connection) -> None:
        self.settled(connection)
        self._connections.pop((connection.dial, connection.dialled), None)
        if (joining := self._joining.get(connection.topic)) is not None:
            joining.cancel()  # else a slow broker's answer would keep each one that was given up
        self.session.unsubscribe(self.pipe_topic(self.me, connection.topic))
        self.stir()

    def named(self, place: bytes) -> str:
        """Who says that it is at this seat."""
        known = self._by_seat.get(place)
        return f"{'somebody' if known is None else short_id(known)} through the broker"

    # ── waiting for room ────────────────────────────────────────────────────────────────────

    async def moved(self, link: Link) -> None:
        """Return when something left, or the link closed."""
        waiter = self._stirred.get(link)
        if waiter is None:
            waiter = self._stirred[link] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiter)

    def stir(self) -> None:
        stirred, self._stirred = self._stirred, {}
        for waiter in stirred.values():
            if not waiter.done():
                waiter.set_result(None)

    # ── own tasks ───────────────────────────────────────────────────────────────────────────

    def _topic(self, *parts: str) -> str:
        return "/".join((self._login.prefix, *parts))

    def _watch(self, peer: NodeId) -> Callable[[bytes, bool], None]:
        """Takes the last will of ``peer``: a hint, and anybody may forge it."""

        def heard(_: bytes, retained: bool) -> None:
            link = self.links.get(peer)
            if not retained and isinstance(link, MqttLink):
                link.connection.suspect()

        return heard

    def _present(self, peer: NodeId) -> Callable[[bytes, bool], None]:
        """Takes what the broker has of ``peer``'s presence; what is not its own is counted."""

        def heard(message: bytes, _: bool) -> None:
            if not message:
                self.presences.gone(peer)
                return
            try:
                self.presences.take(peer, message, _wall_ms())
            except RemoteProtocolError as error:
                self.stats.refused[f"presence-{error.reason}"] += 1

        return heard

    def _renew(self) -> None:
        """Say that we are here, and again before that is out of date."""
        place = self._topic("at", self._seats[self.me].hex())
        self.session.post(place, self.presences.own(_wall_ms()), retain=True)
        self._renewal = asyncio.get_running_loop().call_later(AGAIN_S, self._renew)

    def patience(self, connection: Connection) -> float:
        """Seconds that a handshake may take; less where nobody says that there is anybody."""
        peer = self._by_seat.get(connection.seat)
        if connection.dialled and peer and not self.presences.here(peer, _wall_ms()):
            return min(ABSENT_S, self.limits.handshake_s)
        return self.limits.handshake_s

    def _hello(self, message: bytes, retained: bool) -> None:
        """A piece of a handshake, from anybody."""
        if retained or len(message) < _HELLO_BYTES or message[0] != HELLO_VERSION:
            self.stats.refused["handshake"] += 1
            return
        dial, place = message[2 : 2 + DIAL_BYTES], message[2 + DIAL_BYTES : _HELLO_BYTES]
        body = memoryview(message)[_HELLO_BYTES:]
        dialled = message[1] == _TO_DIALLER
        connection = self._connections.get((dial, dialled))
        if connection is not None:
            if connection.seat == place:
                connection.take_open(body)
            return
        if dialled or self._closing:
            return  # of a dial that was given up, or replayed
        if self._by_seat.get(place, self.me) == self.me:
            self.stats.refused["stranger"] += 1
            return
        if len(body) < HEAD_BYTES or any(body[1:9]):
            return  # not the beginning of one
        self._make_room(place)
        channel = Channel(self._server_context, server_side=True)
        self._half_open[dial] = None
        self._open(channel, place=place, dial=dial, peer=None).take_open(body)

    def _make_room(self, place: bytes) -> None:
        """At a bound one that is there already goes: a handshake takes a moment, not its deadline.

        Else a few beginnings in another's name would keep that member out for as long. Who sent no
        more than the beginning goes first, then the oldest; of the seat that has too many, or most.
        """
        open_ones = [self._connections[dial, False] for dial in self._half_open]
        here = Counter(one.seat for one in open_ones)
        if here[place] < self.limits.half_open_per_seat:
            if here.total() < self.limits.half_open:
                return
            place = max(here, key=here.__getitem__)
        crowd = [one for one in open_ones if one.seat == place]
        next((one for one in crowd if one.pieces < 2), crowd[0]).crowded_out()

    def _open(
        self, channel: Channel, *, place: bytes, dial: bytes, peer: NodeId | None
    ) -> Connection:
        connection = Connection(self, channel, seat=place, dial=dial, peer=peer)
        self._connections[dial, connection.dialled] = connection
        task = asyncio.get_running_loop().create_task(self._join(connection))
        self._joining[connection.topic] = task
        task.add_done_callback(lambda _: self._joining.pop(connection.topic, None))
        connection.begin()
        return connection

    async def _join(self, connection: Connection) -> None:
        topic = self.pipe_topic(self.me, connection.topic)
        if await self.session.subscribe(topic, 1, connection.take_sealed):
            connection.subscribed()
        if connection.ended:
            self.session.unsubscribe(topic)

    async def _reach(self, peer: NodeId) -> str | None:
        if not any(map(is_broker, self._peers[peer].addresses)):
            return "it has no address"
        if not self.session.up:
            return "the broker is away"
        dial = secrets.token_bytes(DIAL_BYTES)
        channel = self._channel_to(peer)
        connection = self._open(channel, place=self._seats[peer], dial=dial, peer=peer)
        try:
            await connection.outcome
            return None
        except GrapevineError as error:
            connection.abort()
            return f"{self.session}: {error}" if self.session.up else str(error)
        except BaseException:
            connection.abort()
            raise

    def _broker_changed(self, up: bool, why: str) -> None:
        loop = asyncio.get_running_loop()
        if up:
            if self._away is not None:
                self._away.cancel()
                self._away = None
            self._renew()
            for connection in list(self._connections.values()):
                if self.session.reads(self.pipe_topic(self.me, connection.topic)):
                    connection.subscribed()
                connection.broker_back()
            self.bulk.broker_back()
        elif self._away is None and not self._closing:
            self._away = loop.call_later(self.limits.away_s, self._give_up)
        if not up and self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        self.stir()
        if not self._closing:
            self.on_broker(up, f"{self.session}: {why}" if why else str(self.session))

    def _give_up(self) -> None:
        """The broker stays away: say of every link that it is down."""
        self._away = None
        for connection in list(self._connections.values()):
            if connection.link is not None:
                connection.link.end("the broker is away")
            connection.finish()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
