"""The receiving half of publish-once: reading transfers, keeping early chunks, noticing losses.

A chunk that the core has not asked for yet waits here, in bounded memory, and is handed over when
the core's Want goes out. A gap in the sequence, or silence while something is due, is told to the
publisher, which publishes what was lost again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from crypto.identity import NodeId
from node.protocol.frames import CHUNK_PREFIX, chunk_prefix, decode
from node.transport.mqtt_bulk import DECLINED, END, JOINED, LOST, Cipher, KeyNote, read_key_note
from node.types.messages import CHUNK_BYTES, CREDIT_NODE_BYTES, MiB, Want

if TYPE_CHECKING:
    from node.transport.mqtt import MqttTransport
    from node.transport.mqtt_connection import MqttLink

EARLY_CHUNKS: Final = 16 * MiB // CHUNK_BYTES  # a payload; two of the core's windows
EARLY_BYTES_MAX: Final = CREDIT_NODE_BYTES  # a node, as much as it asks for at most
TRANSFERS_MAX: Final = 2  # a peer: the newest, and one that it replaces
GAP_S: Final = 0.05  # a message that was only overtaken has come by then
QUIET_FIRST_S: Final = 2.0  # below the core's own patience of 5 s
QUIET_MAX_S: Final = 16.0
MISSING_MAX: Final = 4096  # sequences known to be missing; of more, all is asked for
_WANT_HEAD: Final = b"\x94\x02"  # MessagePack: an array of four, kind 2


class _Parts:
    """A chunk of which some parts are here."""

    def __init__(self, root: bytes, index: int, parts: int) -> None:
        self.frame = bytearray(chunk_prefix(root, index))
        self.parts: list[bytes | None] = [None] * parts
        self.left = parts

    def add(self, part: int, data: bytes) -> bool:
        """True when the chunk is whole."""
        if self.parts[part] is None:
            self.parts[part] = data
            self.left -= 1
        return self.left == 0


class _Incoming:
    """One payload from one peer."""

    def __init__(self, link: MqttLink, note: KeyNote) -> None:
        self.link, self.root = link, note.root
        self.early: dict[int, bytes] = {}  # whole chunks that the core has not asked for
        self.parts: dict[int, _Parts] = {}
        self.wanted: set[int] = set()
        self.delivered: set[int] = set()
        self.dropped: set[int] = set()  # came early and found no room
        self.withheld: list[bytes] = []  # Wants, until the broker delivers to us
        self.rekey(note)

    def rekey(self, note: KeyNote) -> None:
        """Another topic and key: the same chunks, other sequence numbers."""
        self.note, self.cipher = note, Cipher(note.key)
        self.joined = False
        self.expected = 0
        self.missing: set[int] = set()
        self.quiet_s = QUIET_FIRST_S
        self.heard_at = 0.0
        self.parts.clear()  # another key may mean parts of another size

    def have(self) -> bytes:
        """Bitmap of the chunks that are here or with the core."""
        bits = bytearray(-(-self.note.chunks // 8))
        for index in (*self.early, *self.delivered):
            if index < self.note.chunks and index not in self.wanted:
                bits[index // 8] |= 1 << index % 8
        return bytes(bits)


class Receiving:
    def __init__(self, owner: MqttTransport) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._by_peer: dict[NodeId, dict[bytes, _Incoming]] = {}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}  # subscriptions under way, by topic
        self._timer: asyncio.TimerHandle | None = None
        self._gap_timer: asyncio.TimerHandle | None = None
        self.early_bytes = 0

    def close(self) -> None:
        for timer in (self._timer, self._gap_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        self._by_peer.clear()

    async def closed(self) -> None:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # ── from links ──────────────────────────────────────────────────────────────────────────

    def keyed(self, link: MqttLink, data: bytes) -> None:
        """A neighbour offers a payload, and names where its chunks will be published."""
        note = read_key_note(data)
        if note is None:
            self._owner.stats.violations["malformed"] += 1
            link.close("a transfer's key is malformed")
            return
        of_peer = self._by_peer.setdefault(link.peer, {})
        incoming = of_peer.get(note.root)
        if incoming is None:
            while len(of_peer) >= TRANSFERS_MAX:
                self._drop(of_peer.pop(next(iter(of_peer))))
            incoming = of_peer[note.root] = _Incoming(link, note)
        else:
            self._unsubscribe(incoming)
            incoming.link = link
            incoming.rekey(note)
        self._subscribe(incoming)

    def wanted(self, link: MqttLink, frame: bytes | memoryview) -> bool:
        """The core's frame leaves; True where it was a Want that has to wait."""
        if bytes(frame[6:8]) != _WANT_HEAD:
            return False
        want = decode(frame)
        assert isinstance(want, Want)
        incoming = self._by_peer.get(link.peer, {}).get(want.root)
        if incoming is None:
            return False
        again = [i for i in range(want.first, want.first + want.count) if i in incoming.dropped]
        for index in range(want.first, want.first + want.count):
            incoming.wanted.add(index)
            incoming.delivered.discard(index)
            if index in incoming.early:
                self._loop.call_soon(self._hand_over, incoming, index)
        incoming.dropped.difference_update(again)
        if not incoming.joined:
            incoming.withheld.append(bytes(frame))
            self._subscribe(incoming)
            return True
        self._ask(incoming, bytes(frame), again)
        incoming.heard_at = self._loop.time()
        self._watch()
        return True

    def down(self, peer: NodeId) -> None:
        for incoming in self._by_peer.pop(peer, {}).values():
            self._drop(incoming)

    def broker_back(self) -> None:
        """What was on its way is lost: have it published again."""
        for incoming in self._all():
            if incoming.joined and incoming.wanted:
                self._tell_lost(incoming, tail=True)

    # ── subscribing ─────────────────────────────────────────────────────────────────────────

    def _subscribe(self, incoming: _Incoming) -> None:
        topic = incoming.note.topic
        if topic not in self._tasks:
            task = self._loop.create_task(self._join(incoming, topic))
            self._tasks[topic] = task
            task.add_done_callback(lambda _: self._tasks.pop(topic, None))

    async def _join(self, incoming: _Incoming, topic: bytes) -> None:
        name = self._owner.transfer_topic(topic, incoming.link.peer)

        def receive(message: bytes, retained: bool) -> None:
            if not retained:
                self._take(incoming, topic, message)

        granted = await self._owner.session.subscribe(name, 0, receive)
        link = incoming.link
        if incoming.note.topic != topic or link.closed:
            return
        incoming.joined = True
        if granted or not self._owner.session.up:
            head = bytes((JOINED,)) + topic + EARLY_CHUNKS.to_bytes(4, "big")
            link.note(head + incoming.have())
        else:
            link.note(bytes((DECLINED,)) + topic)
        withheld, incoming.withheld = incoming.withheld, []
        for frame in withheld:
            self._ask(incoming, frame, [])
        incoming.heard_at = self._loop.time()
        self._watch()

    def _unsubscribe(self, incoming: _Incoming) -> None:
        self._owner.session.unsubscribe(
            self._owner.transfer_topic(incoming.note.topic, incoming.link.peer)
        )

    def _ask(self, incoming: _Incoming, frame: bytes, again: Iterable[int]) -> None:
        incoming.link.write(b"", frame)
        for _ in again:  # the first is served by what was published and found no room here
            incoming.link.write(b"", frame)
            break

    def _drop(self, incoming: _Incoming) -> None:
        self.early_bytes -= sum(map(len, incoming.early.values()))
        incoming.early.clear()
        self._unsubscribe(incoming)

    # ── what is published ───────────────────────────────────────────────────────────────────

    def _take(self, incoming: _Incoming, topic: bytes, message: bytes) -> None:
        if incoming.note.topic != topic or incoming.link.closed:
            return
        piece = incoming.cipher.check(message)
        if piece is None:
            self._owner.stats.refused["forged"] += 1
            return
        self._owner.stats.received[incoming.link.peer] += len(message)
        if piece.sequence >= incoming.expected:
            self._skip(incoming, piece.sequence)
        elif piece.sequence in incoming.missing:
            incoming.missing.discard(piece.sequence)
        else:
            self._owner.stats.refused["replayed"] += 1
            return
        incoming.heard_at, incoming.quiet_s = self._loop.time(), QUIET_FIRST_S
        index = piece.chunk
        if index in incoming.early or (
            index in incoming.delivered and index not in incoming.wanted
        ):
            return
        if not (piece.part < piece.parts and index < incoming.note.chunks):
            return
        if index not in incoming.wanted and not self._room(incoming, index):
            incoming.dropped.add(index)
            return
        plain = incoming.cipher.open(piece)
        if plain is None:
            return
        self._assemble(incoming, index, piece.part, piece.parts, plain)

    def _skip(self, incoming: _Incoming, sequence: int) -> None:
        """Note what was jumped over; tell of it unless it has come a moment later."""
        if sequence - incoming.expected > MISSING_MAX:
            incoming.expected = sequence - MISSING_MAX
        if sequence > incoming.expected:
            incoming.missing.update(range(incoming.expected, sequence))
            if self._gap_timer is None:
                self._gap_timer = self._loop.call_later(GAP_S, self._tell_gaps)
        incoming.expected = sequence + 1

    def _assemble(
        self, incoming: _Incoming, index: int, part: int, parts: int, plain: bytes
    ) -> None:
        if parts == 1:
            whole = chunk_prefix(incoming.root, index) + plain
        else:
            kept = incoming.parts.get(index)
            if kept is None or len(kept.parts) != parts:
                kept = incoming.parts[index] = _Parts(incoming.root, index, parts)
            if not kept.add(part, plain):
                return
            del incoming.parts[index]
            whole = bytes(kept.frame) + b"".join(p for p in kept.parts if p is not None)
        incoming.early[index] = whole
        self.early_bytes += len(whole)
        if index in incoming.wanted:
            self._hand_over(incoming, index)

    def _hand_over(self, incoming: _Incoming, index: int) -> None:
        whole = incoming.early.pop(index, None)
        if whole is None:
            return
        self.early_bytes -= len(whole)
        incoming.wanted.discard(index)
        incoming.delivered.add(index)
        if not incoming.link.closed:
            self._owner.hear(incoming.link, whole)
        if len(incoming.delivered) == incoming.note.chunks and incoming.joined:
            incoming.joined = False  # asked for again all the same, it subscribes again
            self._unsubscribe(incoming)

    def _room(self, incoming: _Incoming, index: int) -> bool:
        if index in incoming.parts:
            return True
        begun = len(incoming.early) + len(incoming.parts)
        return (
            begun < EARLY_CHUNKS + len(incoming.wanted)
            and self.early_bytes + CHUNK_PREFIX + CHUNK_BYTES <= EARLY_BYTES_MAX
        )

    # ── what is lost ────────────────────────────────────────────────────────────────────────

    def _all(self) -> list[_Incoming]:
        return [one for of_peer in self._by_peer.values() for one in of_peer.values()]

    def _tell_gaps(self) -> None:
        self._gap_timer = None
        for incoming in self._all():
            if incoming.missing:
                self._tell_lost(incoming, tail=False)

    def _tell_lost(self, incoming: _Incoming, *, tail: bool) -> None:
        """Name what was jumped over; with ``tail`` also whatever was published since."""
        ranges = _ranges(incoming.missing)
        incoming.missing.clear()
        if tail:
            ranges.append((incoming.expected, END))
        for first, end in ranges:
            span = first.to_bytes(8, "big") + end.to_bytes(8, "big")
            incoming.link.note(bytes((LOST,)) + incoming.note.topic + span)

    def _watch(self) -> None:
        """Arm the timer for the payload that is overdue first."""
        due = [one.heard_at + one.quiet_s for one in self._all() if one.joined and one.wanted]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due:
            self._timer = self._loop.call_at(min(due), self._quiet)

    def _quiet(self) -> None:
        self._timer = None
        now = self._loop.time()
        for incoming in self._all():
            if incoming.joined and incoming.wanted and incoming.heard_at + incoming.quiet_s <= now:
                self._tell_lost(incoming, tail=True)
                incoming.heard_at = now
                incoming.quiet_s = min(2 * incoming.quiet_s, QUIET_MAX_S)
        self._watch()


def _ranges(sequences: set[int]) -> list[tuple[int, int]]:
    """Sorted half-open runs."""
    found: list[tuple[int, int]] = []
    for one in sorted(sequences):
        if found and found[-1][1] == one:
            found[-1] = (found[-1][0], one + 1)
        else:
            found.append((one, one + 1))
    return found
