"""The sending half of publish-once: which chunk is published when, and for whom it counts.

An ask of one member is served by any publication since that member's last ask: so the first ask of
a second neighbour is served by what the first one's ask published, and an ask again is a repair
that serves all. Publications run ahead of a member's asks by what it said it can keep; who stays
behind for longer gets a topic of its own, and the others go on on a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from crypto.identity import NodeId
from node.protocol.frames import decode, decode_header, encode
from node.transport.mqtt_bulk import (
    DECLINED,
    JOINED,
    LOST,
    OVERHEAD_BYTES,
    TOPIC_BYTES,
    key_note,
)
from node.transport.mqtt_group import HOLD_S, LOG_MAX, Group, Member, Pending
from node.types.messages import CHUNK_BYTES, MiB, Offer, Want

if TYPE_CHECKING:
    from node.transport.mqtt import MqttTransport
    from node.transport.mqtt_connection import MqttLink

_log = logging.getLogger("grapevine.mqtt")

JOIN_S: Final = 1.0  # to subscribe, before others are served without one
SETTLE_S: Final = 0.3  # what was published so lately may still come: an ask again is no repair
QUEUE_BYTES: Final = 2 * MiB  # on their way into the kernel: more would only wait there
ROOTS_MAX: Final = 8  # payloads that are kept track of: the own one, and relayed ones
REPAIRS_MAX: Final = 8  # asked of the shell at once: its bound on what a peer may want is 32
_OFFER_HEAD: Final = b"\x94\x01"  # MessagePack: an array of four, kind 1


class Sending:
    def __init__(self, owner: MqttTransport) -> None:
        self._owner = owner
        self._groups: dict[bytes, list[Group]] = {}  # by root; the last one takes newcomers
        self._queued: Counter[NodeId] = Counter()  # bytes handed to the session, by who asked
        self._timer: asyncio.TimerHandle | None = None
        self._last_offer: tuple[object, bytes, int] | None = None
        self.published_bytes = 0
        self.repaired_bytes = 0

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._groups.clear()

    # ── what leaves ─────────────────────────────────────────────────────────────────────────

    def offered(self, link: MqttLink, frame: bytes | memoryview) -> None:
        """An Offer without its payload is on its way: the key goes before it."""
        if bytes(frame[6:8]) != _OFFER_HEAD:
            return
        if self._last_offer is None or self._last_offer[0] is not _identity(frame):
            offer = decode(frame)
            assert isinstance(offer, Offer)
            if offer.payload is not None:
                return
            header = decode_header(offer.signed.header)
            self._last_offer = (_identity(frame), header.root, header.length)
        _, root, length = self._last_offer
        self._member(link, root, max(1, -(-length // CHUNK_BYTES)))

    def publish(self, link: MqttLink, prefix: bytes, data: bytes | memoryview) -> None:
        """The core sends a chunk to one peer: publish it, unless that peer has it on its way."""
        root, index = bytes(prefix[2:34]), int.from_bytes(prefix[34:38], "big")
        group, member = self._member(link, root, index + 1)
        if member.direct:
            link.write(prefix, data)
            return
        parts: set[int] | None = None
        repair = False
        now = asyncio.get_running_loop().time()
        if index in group.lost:
            parts = group.lost.pop(index)
            member.asked.add(index)
            repair = True
        else:
            count, mark = group.counts[index], member.marks.get(index, 0)
            if index not in member.asked:
                member.asked.add(index)
                member.early -= count > mark
            member.marks[index] = count
            if count > mark or now < group.published_at.get(index, 0.0) + SETTLE_S:
                self._pump(group)  # whoever waited for this member to catch up
                return
        if index in group.held:
            pending = group.held[index]
            pending.peers.add(link.peer)
            if parts is None or pending.parts is None:
                pending.parts = None
            else:
                pending.parts |= parts
        else:
            group.held[index] = Pending(bytes(data), {link.peer}, parts, repair)
        self._pump(group)
        self._ask_on(group)

    def waiting_bytes(self, peer: NodeId) -> int:
        held = sum(
            len(pending.data)
            for groups in self._groups.values()
            for group in groups
            for pending in group.held.values()
            if peer in pending.peers
        )
        return held + self._queued[peer]

    def pump(self) -> None:
        self._timer = None
        for groups in list(self._groups.values()):
            for group in list(groups):
                self._pump(group)

    # ── what members say ────────────────────────────────────────────────────────────────────

    def note(self, link: MqttLink, kind: bytes, data: bytes) -> None:
        topic, rest = data[:TOPIC_BYTES], data[TOPIC_BYTES:]
        found = [
            group
            for groups in self._groups.values()
            for group in groups
            if group.topic == topic and link.peer in group.members
        ]
        if not found:
            return  # of a payload that is gone
        group, member = found[0], found[0].members[link.peer]
        if kind == bytes((JOINED,)) and len(rest) >= 4:
            self._joined(group, link, int.from_bytes(rest[:4], "big"), rest[4:])
        elif kind == bytes((DECLINED,)):
            member.direct = True
            self._give_direct(group, link)
        elif kind == bytes((LOST,)) and len(rest) == 16:
            self._lost(
                group, link, int.from_bytes(rest[:8], "big"), int.from_bytes(rest[8:], "big")
            )
        self._pump(group)

    def down(self, peer: NodeId) -> None:
        for groups in self._groups.values():
            for group in groups:
                group.members.pop(peer, None)
                for index, pending in list(group.held.items()):
                    pending.peers.discard(peer)
                    if not pending.peers:
                        del group.held[index]
                self._pump(group)

    def _joined(self, group: Group, link: MqttLink, allowance: int, have: bytes) -> None:
        """It reads from now on: of all before, it has what its bitmap says."""
        member = group.members[link.peer]
        member.joined, member.direct, member.allowance = True, False, allowance
        member.early = 0
        for index, count in group.counts.items():
            at_hand = index // 8 < len(have) and have[index // 8] >> index % 8 & 1
            if not at_hand:
                member.marks[index] = count
                if index in member.asked and index not in group.held:
                    self._repair(group, link.peer, index, None)
            elif index not in member.asked and count > member.marks.get(index, 0):
                member.early += 1
        self._ask_on(group)

    def _give_direct(self, group: Group, link: MqttLink) -> None:
        for index, pending in list(group.held.items()):
            if link.peer in pending.peers:
                prefix = bytes((1, 1)) + group.root + index.to_bytes(4, "big")
                link.write(prefix, pending.data)
                pending.peers.discard(link.peer)
                if not pending.peers:
                    del group.held[index]

    def _lost(self, group: Group, link: MqttLink, first: int, end: int) -> None:
        """Publish what did not arrive again, once, whoever else misses it too."""
        for sequence in range(max(first, group.sequence - LOG_MAX), min(end, group.sequence)):
            place = group.log.get(sequence)
            if place is not None and group.newest[place] == sequence:
                self._repair(group, link.peer, *place)
        self._ask_on(group)

    def _repair(self, group: Group, peer: NodeId, index: int, part: int | None) -> None:
        pending = group.held.get(index)
        parts = range(group.parts) if part is None else (part,)
        if pending is not None and (pending.parts is None or pending.parts.issuperset(parts)):
            pending.peers.add(peer)
            return
        if index in group.lost:
            group.lost[index].update(parts)
            return
        group.lost[index] = set(parts)
        group.to_ask.append((peer, index))

    def _ask_on(self, group: Group) -> None:
        """Have the shell look the bytes up again, as if the member had asked once more."""
        while group.to_ask and len(group.lost) - len(group.to_ask) < REPAIRS_MAX:
            peer, index = group.to_ask.popleft()
            link = self._owner.links.get(peer)
            if link is None:
                group.lost.pop(index, None)
                continue
            self._owner.hear(link, encode(Want(group.root, index, 1)))

    # ── groups ──────────────────────────────────────────────────────────────────────────────

    def _member(self, link: MqttLink, root: bytes, chunks: int) -> tuple[Group, Member]:
        """Where ``link``'s peer reads this payload; it gets the key where it has none yet."""
        groups = self._groups.get(root)
        if groups is None:
            while len(self._groups) >= ROOTS_MAX:
                del self._groups[next(iter(self._groups))]
            groups = self._groups[root] = [self._make(root, chunks)]
        for group in groups:
            if link.peer in group.members:
                return group, group.members[link.peer]
        group = groups[-1]
        if group.part_bytes > self._part_bytes():
            group = self._make(root, chunks)  # the broker takes less than it did: another key
            groups.append(group)
        member = group.members[link.peer] = Member()
        self._hand_key(group, link)
        return group, member

    def _make(self, root: bytes, chunks: int) -> Group:
        now = asyncio.get_running_loop().time()
        return Group(root, chunks, self._part_bytes(), now)

    def _part_bytes(self) -> int:
        return min(CHUNK_BYTES, self._owner.session.packet_bytes - OVERHEAD_BYTES)

    def _hand_key(self, group: Group, link: MqttLink) -> None:
        cipher = group.cipher
        link.note(key_note(group.root, group.topic, cipher.key, group.part_bytes, group.chunks))

    def _split(self, group: Group, slow: set[NodeId]) -> None:
        """The others go on on a fresh topic: nobody's line makes them wait, or the broker grow."""
        fresh = self._make(group.root, group.chunks)
        fresh.counts = Counter(group.counts)
        for peer in [peer for peer in group.members if peer not in slow]:
            member = fresh.members[peer] = group.members.pop(peer)
            member.joined = False
            link = self._owner.links.get(peer)
            if link is not None:
                self._hand_key(fresh, link)  # type: ignore[arg-type]
        for index, pending in list(group.held.items()):
            others = pending.peers - slow
            if others:
                fresh.held[index] = Pending(pending.data, others, None)
                pending.peers &= slow
            if not pending.peers:
                del group.held[index]
        group.blocked_since = None
        self._groups[group.root].append(fresh)
        self._pump(fresh)

    def _pump(self, group: Group) -> None:
        """Publish what may be published now."""
        now = asyncio.get_running_loop().time()
        session = self._owner.session
        while group.held and session.up and session.bulk_bytes < QUEUE_BYTES:
            index, pending = next(iter(group.held.items()))
            waits = any(not (m.joined or m.direct) for m in group.members.values())
            if waits and (
                now < group.made_at + JOIN_S
                or not any(
                    group.members[peer].joined for peer in pending.peers if peer in group.members
                )
            ):
                self._later(max(0.05, group.made_at + JOIN_S - now))
                return
            slow = group.behind(index)
            if slow and group.held_long(now):
                if len(slow) < len(group.members):
                    self._split(group, slow)
                    continue
            elif slow:
                self._later(HOLD_S)
                return
            group.blocked_since = None
            del group.held[index]
            self._publish(group, index, pending)

    def _publish(self, group: Group, index: int, pending: Pending) -> None:
        digest = blake3(pending.data).digest()
        if group.digests.setdefault(index, digest) != digest:
            _log.error("a chunk changed under its root: not published")  # a nonce is used once
            return
        parts = -(-len(pending.data) // group.part_bytes)
        chosen = range(parts) if pending.parts is None else sorted(pending.parts)
        first_time = group.counts[index] == 0
        group.published_at[index] = asyncio.get_running_loop().time()
        group.counts[index] += 1
        for peer, member in group.members.items():
            if peer in pending.peers and not pending.repair:
                member.marks[index] = group.counts[index]
            elif member.joined and index not in member.asked and first_time and not pending.repair:
                member.early += 1
        topic = self._owner.transfer_topic(group.topic)
        view = memoryview(pending.data)
        payer = min(pending.peers)
        for part in chosen:
            if part >= parts:
                continue
            start = part * group.part_bytes
            plain = view[start : start + group.part_bytes]
            message = group.cipher.seal(group.sequence, index, part, parts, plain)
            group.record(index, part)
            self._queued[payer] += len(message)
            self.published_bytes += len(message)
            if not first_time:
                self.repaired_bytes += len(message)
            self._owner.stats.sent[payer] += len(message)
            self._owner.session.post_bulk(topic, message, self._written(payer, len(message)))

    def _written(self, peer: NodeId, size: int) -> Callable[[], None]:
        def written() -> None:
            self._queued[peer] -= size
            self._owner.stir()
            self._later(0)

        return written

    def _later(self, delay: float) -> None:
        """Pump again; one timer for all, the soonest wins."""
        loop = asyncio.get_running_loop()
        at = loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self.pump)


def _identity(frame: bytes | memoryview) -> object:
    return frame.obj if isinstance(frame, memoryview) else frame
