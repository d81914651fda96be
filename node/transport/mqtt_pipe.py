"""An ordered stream of bytes over messages that get lost, doubled, reordered, replayed or forged.

Sans-IO: told the time, hands out what to publish. MQTT's QoS 1 promises delivery only while a
session lasts, and allows duplicates; TLS dies of any gap or duplicate. So each message carries an
offset and a cumulative acknowledgement, the sender goes back to the first byte that was not
acknowledged (go-back-N), and a keyed tag tells the other end's messages from everybody else's.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from node.types.messages import KiB, MiB

TAG_BYTES: Final = 16
KEY_BYTES: Final = 32
HEAD_BYTES: Final = 17  # flags, offset, acknowledged
WINDOW_BYTES: Final = MiB  # in flight at once: 100 ms at 80 Mbit/s
SEGMENT_BYTES: Final = 128 * KiB
RTO_FIRST_S: Final = 1.0
RTO_MIN_S: Final = 0.3  # brokers that share a core with their clients answer in 0.1 s at times
RTO_MAX_S: Final = 4.0
ACK_LATER_S: Final = 0.02  # an answer often takes the acknowledgement with it
ACK_NOW_BYTES: Final = WINDOW_BYTES // 8
_GAP: Final = 1  # flag: bytes beyond ``acknowledged`` have come
_PING: Final = 2  # flag: answer at once


def seal(key: bytes, body: bytes) -> bytes:
    """``body`` behind its tag, BLAKE3 keyed with ``key``, 128 bits."""
    return blake3(body, key=key).digest(TAG_BYTES) + body


def open_sealed(key: bytes, message: bytes | memoryview) -> memoryview | None:
    """The body of a message that somebody made who knows ``key``; else None."""
    view = memoryview(message)
    if len(view) < TAG_BYTES:
        return None
    good = blake3(view[TAG_BYTES:], key=key).digest(TAG_BYTES)
    return view[TAG_BYTES:] if good == view[:TAG_BYTES] else None


class Pipe:
    """One end. Offsets count from 0 in each direction, for the life of the link."""

    def __init__(self, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.segment_bytes = segment_bytes
        self._buffer = bytearray()  # from ``_acked`` on
        self._acked = 0  # the other end has everything below
        self._next = 0  # offset that is published next
        self._most = 0  # highest offset ever published, exclusive
        self._received = 0  # everything below came in order
        self._told = 0  # what the other end was last told of it
        self._gap = False
        self._ack_at: float | None = None
        self._resend_at: float | None = None
        self._ping_due = False
        self._rto = RTO_FIRST_S
        self._srtt: float | None = None
        self._timed: tuple[int, float] | None = None  # (offset, when): a round trip being measured
        self._rewound_at = 0.0
        self.resent_bytes = 0

    @property
    def backlog(self) -> int:
        """Bytes that the other end has not acknowledged; they are kept for that long."""
        return len(self._buffer)

    @property
    def received(self) -> int:
        return self._received

    @property
    def answer_s(self) -> float:
        """Seconds after which an answer is overdue, as acknowledgements are."""
        return self._rto

    def send(self, data: bytes) -> None:
        self._buffer += data

    def ping(self) -> None:
        """Have the other end answer, whatever else there is to say."""
        self._ping_due = True

    def next(self, now: float) -> bytes | None:
        """The next message's body to be published now; None where there is nothing to say yet."""
        pending = self._acked + len(self._buffer) - self._next
        room = WINDOW_BYTES - (self._next - self._acked)
        size = min(pending, self.segment_bytes, room)
        due = self._ack_at is not None and self._ack_at <= now
        if size <= 0 and not due and not self._ping_due:
            return None
        flags = (_GAP if self._gap else 0) | (_PING if self._ping_due else 0)
        start = self._next - self._acked
        data = bytes(memoryview(self._buffer)[start : start + max(0, size)])
        head = bytes((flags,)) + self._next.to_bytes(8, "big") + self._received.to_bytes(8, "big")
        if data:
            self._published(len(data), now)
        self._ack_at, self._told, self._ping_due = None, self._received, False
        return head + data

    def receive(self, body: bytes | memoryview, now: float) -> memoryview | None:
        """Take a body; the stream's next bytes where it has them. Garbage is None as well."""
        view = memoryview(body)
        if len(view) < HEAD_BYTES:
            return None
        flags, offset = view[0], int.from_bytes(view[1:9], "big")
        self._acknowledged(int.from_bytes(view[9:17], "big"), gap=bool(flags & _GAP), now=now)
        data = view[HEAD_BYTES:]
        if flags & _PING:
            self._ack_at = now
        if not data:
            return None
        end = offset + len(data)
        if offset > self._received:
            self._gap, self._ack_at = True, now
            return None
        if end <= self._received:
            self._ack_at = now  # a duplicate: our acknowledgement was lost, or is on its way
            return None
        fresh = data[self._received - offset :]
        self._received, self._gap = end, False
        if self._received - self._told >= ACK_NOW_BYTES:
            self._ack_at = now
        elif self._ack_at is None:
            self._ack_at = now + ACK_LATER_S
        return fresh

    def wake(self, now: float) -> None:
        """Go back where an acknowledgement is overdue."""
        if self._resend_at is not None and self._resend_at <= now:
            self._rto = min(2 * self._rto, RTO_MAX_S)
            self.rewind(now)

    def rewind(self, now: float) -> None:
        """Publish again what was not acknowledged: it is late, or the broker was away."""
        self._next, self._timed, self._rewound_at = self._acked, None, now
        self._resend_at = None

    def wake_at(self) -> float | None:
        """When ``wake`` and ``next`` have something to do next."""
        times = [at for at in (self._ack_at, self._resend_at) if at is not None]
        return min(times, default=None)

    def _published(self, size: int, now: float) -> None:
        self.resent_bytes += max(0, min(self._most, self._next + size) - self._next)
        if self._timed is None and self._next >= self._most:
            self._timed = (self._next + size, now)
        self._next += size
        self._most = max(self._most, self._next)
        if self._resend_at is None:
            self._resend_at = now + self._rto

    def _acknowledged(self, acked: int, *, gap: bool, now: float) -> None:
        if acked > self._most:
            return  # of bytes that were never sent
        if acked > self._acked:
            del self._buffer[: acked - self._acked]
            self._acked = acked
            self._next = max(self._next, acked)
            if self._timed is not None and acked >= self._timed[0]:
                self._measure(now - self._timed[1])
                self._timed = None
            self._resend_at = now + self._rto if self._next > acked else None
        current = gap and acked == self._acked  # a late or replayed one speaks of the past
        if current and self._next > acked and now - self._rewound_at > (self._srtt or 0.1):
            self.rewind(now)

    def _measure(self, rtt: float) -> None:
        """RFC 6298's mean without the variance: three times it is far from any usual jitter."""
        self._srtt = rtt if self._srtt is None else 0.875 * self._srtt + 0.125 * rtt
        self._rto = min(max(3 * self._srtt, RTO_MIN_S), RTO_MAX_S)
