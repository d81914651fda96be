"""One link through a broker: rendezvous, TLS over a pipe of messages, then frames in and out.

The handshake travels on the members' rendezvous topics. Inside TLS each end names a random topic
of its own and a key; from then on only messages with that key's tag count, so that whoever else
publishes there has no effect.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from crypto.channel import Channel, Closed
from crypto.identity import NodeId
from node.errors import MalformedFrame, RemoteProtocolError, TransportError
from node.protocol.frames import CHUNK, CHUNK_PREFIX
from node.transport.attempt import Attempt
from node.transport.framing import HEADER_BYTES, Deframer
from node.transport.links import Link, Pace
from node.transport.mqtt_bulk import CHUNKS_MAX
from node.transport.mqtt_pipe import KEY_BYTES, Pipe, open_sealed, seal
from node.types.messages import FRAME_BYTES_MAX, VERSION, KiB

if TYPE_CHECKING:
    from node.transport.mqtt import MqttTransport

TOPIC_BYTES: Final = 16
DIAL_BYTES: Final = 16
# what stands before each frame inside TLS: whose it is
FRAME: Final = 0  # the core's
NOTE: Final = 1  # the transport's own
_PIPE: Final = 1  # note: topic and key of the sender's receiving side
_HIGH_WATER: Final = 512 * KiB
_PIECE: Final = 256 * KiB
# After the broker said that the other end is gone it is asked whether it is, as often; each time it
# has as long as a message there and back may take, half a second at least: who only lost the broker
# is mostly back by the last. Its neighbours wait for it in every round until then.
_ASKS: Final = 3
_ANSWER_MIN_S: Final = 0.5
_ANSWER_MAX_S: Final = 1.5


class MqttLink(Link):
    """A link over one broker."""

    via = "mqtt"

    def __init__(self, owner: MqttTransport, connection: Connection, peer: NodeId) -> None:
        super().__init__(owner, peer, initiator=connection.dialled)
        self._transport = owner
        self.connection = connection

    @property
    def outbox_bytes(self) -> int:
        return self.connection.outbox_bytes + self._transport.bulk.waiting_bytes(self.peer)

    async def drained(self) -> None:
        while not self.closed and self.outbox_bytes >= _HIGH_WATER:
            await self._transport.moved(self)

    def note(self, data: bytes) -> None:
        """Send a note of the transport's own to the other end's transport."""
        self.connection.write(NOTE, b"", data)

    def write(self, prefix: bytes, data: bytes | memoryview) -> None:
        self.connection.write(FRAME, prefix, data)

    def _write(self, prefix: bytes, data: bytes | memoryview) -> None:
        if not prefix and len(data) > CHUNK_PREFIX and data[0] == VERSION and data[1] == CHUNK:
            prefix, data = bytes(data[:CHUNK_PREFIX]), memoryview(data)[CHUNK_PREFIX:]
        if _is_chunk(prefix):
            self._transport.bulk.publish(self, prefix, data)
        elif prefix or not self._transport.bulk.outgoing(self, data):
            self.write(prefix, data)

    def _shut(self) -> None:
        self.connection.shut()


def _is_chunk(prefix: bytes) -> bool:
    """Whether it is a chunk's, and of a payload that an Offer can describe."""
    if len(prefix) != CHUNK_PREFIX or prefix[0] != VERSION or prefix[1] != CHUNK:
        return False
    return int.from_bytes(prefix[-4:], "big") < CHUNKS_MAX


class Connection(Attempt):
    """``peer``: the member that was dialled; None where the other end dialled."""

    _owner: MqttTransport
    link: MqttLink | None

    def __init__(
        self,
        owner: MqttTransport,
        channel: Channel,
        *,
        seat: bytes,
        dial: bytes,
        peer: NodeId | None,
    ) -> None:
        super().__init__(owner, channel, dialled=peer is not None)
        self._loop = asyncio.get_running_loop()
        self.seat = seat  # where the other end says that it is; TLS finds out who it is
        self.dial = dial
        self.pipe = Pipe()
        self._pace = Pace(asyncio.get_running_loop().time())
        self.topic = secrets.token_bytes(TOPIC_BYTES)
        self.key = secrets.token_bytes(KEY_BYTES)
        self._their_topic: str | None = None
        self._their_key = b""
        self.pieces = 0  # of the handshake, that came
        self._subscribed = False
        self._noted = False
        self._deframer = Deframer(FRAME_BYTES_MAX + 1)
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self.closing = False
        self.ended = False
        self.heard_at = self._loop.time()
        self.over: asyncio.Future[None] = self._loop.create_future()

    @property
    def who(self) -> str:
        return self._owner.named(self.seat)

    def _make_link(self, peer: NodeId) -> MqttLink:
        return MqttLink(self._owner, self, peer)

    @property
    def outbox_bytes(self) -> int:
        return self.pipe.backlog

    # ── from the transport ──────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Start the handshake, under its deadline."""
        self._rearm_deadline(self._owner.patience(self), self._late)
        self._flush()

    def subscribed(self) -> None:
        """The broker delivers to our topic from now on."""
        self._subscribed = True
        self._introduce()

    def take_open(self, body: memoryview) -> None:
        """A message on the rendezvous topic: counts until the other end has a topic of ours."""
        if self._their_topic is None and not self.ended:
            self.pieces += 1
            self._count_received(len(body))
            self._take(body)

    def take_sealed(self, message: bytes, retained: bool) -> None:
        """A message on our own topic; whoever has not the key has no effect."""
        body = open_sealed(self.key, message)
        if body is None:
            self._owner.stats.refused["forged"] += 1
        elif not self.ended:
            self._count_received(len(message))
            self._take(body)

    def broker_back(self) -> None:
        self.pipe.rewind(self._loop.time())
        self._flush()

    def suspect(self) -> None:
        """The broker says that the other end is gone; a hint, so ask it."""
        if self._asking is None:
            answer_s = min(max(self.pipe.answer_s, _ANSWER_MIN_S), _ANSWER_MAX_S)
            self._ask(_ASKS, answer_s, self._loop.time())

    def _ask(self, left: int, answer_s: float, since: float) -> None:
        """Ask so often, then judge; what comes before the second question may be no answer."""
        self._asking = None
        session = self._owner.session
        if self.link is None or self.closing or session.since > since or not session.up:
            return  # we were away ourselves: it may have answered nobody
        if left > 0:
            self._asking = self._loop.call_later(answer_s, self._ask, left - 1, answer_s, since)
            self.pipe.ping()
            self._flush()
        elif self.heard_at <= since + answer_s:
            self.link.end("the broker says that it is gone, and it does not answer")
            self.finish()

    # ── the link's side ─────────────────────────────────────────────────────────────────────

    def write(self, whose: int, prefix: bytes, data: bytes | memoryview) -> None:
        size = 1 + len(prefix) + len(data)
        head = size.to_bytes(HEADER_BYTES, "big") + bytes((whose,)) + prefix
        if len(data) <= _PIECE // 32:
            self._channel.write(head + bytes(data))
        else:
            self._channel.write(head)
            view = memoryview(data)
            for start in range(0, len(view), _PIECE):
                self._channel.write(view[start : start + _PIECE])
                self.pipe.send(self._channel.pending())
        self._flush()

    def shut(self) -> None:
        if self.closing or self.ended:
            return
        self.closing = True
        if self._channel.ready:
            self._channel.close()
        self._flush()
        if self.pipe.backlog and not self.ended:
            self._rearm_deadline(self._owner.limits.closing_s, self.finish)
        else:
            self.finish()

    def finish(self) -> None:
        """Nothing more is sent or taken."""
        if self.ended:
            return
        self.ended = True
        self.over.set_result(None)
        for timer in (self._timer, self._deadline, self._asking):
            if timer is not None:
                timer.cancel()
        self._owner.gone(self)
        if not self.outcome.done():
            self._resolve(TransportError("the connection ended"))
        elif not self.outcome.cancelled():
            self.outcome.exception()

    def crowded_out(self) -> None:
        """Others wait for the place of a handshake that does not end."""
        self._owner.refuse("half-open", self.who, "too many handshakes that were not ended")
        self.finish()

    def abort(self) -> None:
        """Give it up, unless it is a link, or one that is being closed."""
        if not self.closing and (self.link is None or self.link.closed):
            self.finish()

    # ── inside ──────────────────────────────────────────────────────────────────────────────

    def _take(self, body: memoryview) -> None:
        now = self._loop.time()
        self.heard_at = now
        if self._pace.wait_s(now):
            return  # as if it were lost: its sender goes back to it, later
        fresh = self.pipe.receive(body, now)
        left = False
        try:
            if fresh is not None and not self.closing:
                self._channel.receive(fresh)
                self._introduce()
                self._read()
        except (RemoteProtocolError, TransportError) as error:
            self._fault(error)
            left = isinstance(error, Closed)
        if self.closing and (left or not self.pipe.backlog):
            self._flush()  # with the last acknowledgement, for which the other end may wait
            self.finish()
        else:
            self._flush()
        self._owner.stir()

    def _introduce(self) -> None:
        """Say, inside TLS, where we receive and by which tag we know the other end.

        Nothing may go before that: the other end takes no frame from who has not said it. So the
        link stands once we have said it and heard it, in whichever order.
        """
        if self._channel.ready and self._subscribed and not self._noted and not self.closing:
            self._noted = True
            self.write(NOTE, bytes((_PIPE,)), self.topic + self.key)
            if self._their_topic is not None:
                self._authenticated(self._owner.identify(self._channel.peer_certificate))

    def _read(self) -> None:
        while not self.closing:
            count = self._channel.read_into(self._deframer.space())
            if count == 0:
                return
            for frame in self._deframer.frames(count):
                self._pace.spend(frame[1:])
                if not self._take_frame(frame[0], frame[1:]):
                    return

    def _take_frame(self, whose: int, frame: memoryview) -> bool:
        """False when that ended the link."""
        if whose == NOTE:
            self._take_note(frame)
        elif self.link is None or whose != FRAME or not frame:
            raise MalformedFrame("not a frame, or one before the pipe's topic")
        else:
            self._owner.handler.on_frame(self.link, frame)
        return not self.closing

    def _take_note(self, note: memoryview) -> None:
        if self.link is not None:
            self._owner.bulk.note(self.link, bytes(note))
            return
        if len(note) != 1 + TOPIC_BYTES + KEY_BYTES or note[0] != _PIPE:
            raise MalformedFrame("a pipe's topic and key were expected")
        if self._their_topic is not None:
            raise MalformedFrame("a second topic for one pipe")
        topic = bytes(note[1 : 1 + TOPIC_BYTES])
        peer = self._owner.identify(self._channel.peer_certificate)
        self._their_key = bytes(note[1 + TOPIC_BYTES :])
        self._their_topic = self._owner.pipe_topic(peer, topic)
        if self._noted:
            self._authenticated(peer)

    def _authenticated(self, peer: NodeId) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._owner.settled(self)
        self._flush()  # sealed: what the other end needs to believe in the link as well
        self._welcome(peer)

    def _late(self) -> None:
        error = TransportError("no answer through the broker")
        if not self.dialled:
            self._owner.refuse("slow", self.who, "no handshake in time")
        self._resolve(error)
        self.finish()

    def _flush(self) -> None:
        """Publish what may be published now, and arm the timer for what is due later."""
        if self.ended:
            return
        if data := self._channel.pending():
            self.pipe.send(data)
        now = self._loop.time()
        self.pipe.segment_bytes = min(self.pipe.segment_bytes, self._owner.segment_bytes)
        self.pipe.wake(now)
        while self._owner.session.up and (body := self.pipe.next(now)) is not None:
            self._publish(body)
        self._arm()

    def _publish(self, body: bytes) -> None:
        owner = self._owner
        if self._their_topic is not None:
            topic, message = self._their_topic, seal(self._their_key, body)
        else:
            topic, message = owner.hello(self, body)
        if not owner.session.post(topic, message):
            return
        self._count_sent(len(message))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.pipe.wake_at()
        if at is not None and self._owner.session.up:
            self._timer = self._loop.call_at(at, self._flush)

    def _rearm_deadline(self, delay: float, action: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(delay, action)
