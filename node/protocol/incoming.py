"""Payloads on their way in: chunks asked for within the credit, each verified as it passes.

At most one transfer per sender; large ones one at a time, so that spooled bytes stay within 64 MiB
or one payload while links are quick, and in turns where they are slow. A chunk's bytes pass through
here once and are not kept.

A stream loses no chunk, a broker may. Links keep their order, so a chunk is lost once others that
were asked for after it are here, and is asked for again (TCP's fast retransmit, RFC 5681). Where
nothing comes after it, a timer asks for the one that should come last: it answers for all before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from crypto.identity import NodeId
from node.errors import OutOfBounds, RemoteProtocolError
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.reading import Head
from node.types.events import DropPayload, Send, StoreChunk
from node.types.messages import (
    CHUNK_BYTES,
    CREDIT_LINK_BYTES,
    CREDIT_NODE_BYTES,
    LEAF_BYTES,
    Chunk,
    MiB,
    Want,
)

LEAVES_PER_CHUNK: Final = CHUNK_BYTES // LEAF_BYTES
LINK_CHUNKS: Final = CREDIT_LINK_BYTES // CHUNK_BYTES  # 16
NODE_CHUNKS: Final = CREDIT_NODE_BYTES // CHUNK_BYTES  # 128
WANT_CHUNKS: Final = 8  # asked for at a time: the pipe stays full while the window slides
RESERVED_CHUNKS: Final = 4  # that each other link may always ask for
LARGE_BYTES: Final = 8 * MiB
SLICE_S: Final = 2.0  # a large transfer that takes longer lets the next one go first
OVERTAKEN: Final = 3  # chunks asked for later that came: as many as TCP takes for a loss
STALL_S: Final = 5.0  # without a chunk, on a link whose pace is not known: ask again
STALL_MIN_S: Final = 0.5  # on the quickest link: over Linux's 200 ms until a packet is sent again
PACES: Final = 4  # so many times the longest wait that the link has shown is no longer its pace
GIVE_UP_S: Final = 30.0  # without one new chunk: twice the silence after which a link is given up
SPARES_MAX: Final = 2 * NODE_CHUNKS  # second copies that may come since we asked twice, 20 KB


@dataclass
class Transfer:
    """One payload being fetched from ``peer``."""

    head: Head
    peer: NodeId
    offer: bytes
    leaves: bytes
    missing: list[int]  # chunks to be asked for, in reverse order
    waiting: dict[int, int] = field(default_factory=dict)  # asked for, not here yet: as the n-th
    asked: int = 0
    active: bool = False
    turn_at: float = 0.0  # when it last became active, or was put behind the others
    behind_at: float | None = None  # when it was put behind the others, while it is
    broken: bool = False  # its link is gone: it goes on when it is offered again
    progress_at: float = 0.0  # the last new chunk
    quiet_at: float = 0.0  # the last new chunk, or the last time one was asked for
    stalls: int = 0  # asked again without a new chunk since

    @property
    def complete(self) -> bool:
        return not self.missing and not self.waiting

    @property
    def large(self) -> bool:
        return self.head.header.length > LARGE_BYTES


class Transfers:
    """All incoming payloads of this node, by the member that published them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.by_member: dict[NodeId, Transfer] = {}
        # the longest wait for a chunk that each link has shown, slowly forgotten
        self._pace: dict[NodeId, float] = {}
        self._spares: dict[tuple[NodeId, bytes, int], int] = {}  # copies that may still come

    def begin(self, head: Head, *, peer: NodeId, offer: bytes, leaves: bytes) -> None:
        """Fetch the payload of ``head``; an unfinished older one of the sender is given up."""
        member = NodeId(head.header.sender)
        old = self.by_member.get(member)
        if old is not None and old.head.header.root == head.header.root:
            # offered again: stored chunks stay; what was in flight on a lost link is asked anew
            if old.broken or old.peer != peer:
                old.active = old.broken = False
                self._requeue(old)
            old.head, old.peer, old.offer = head, peer, offer
        else:
            self.cancel(member)
            chunks = -(-head.header.length // CHUNK_BYTES)
            new = Transfer(head, peer, offer, leaves, missing=list(range(chunks - 1, -1, -1)))
            # behind those that wait: who publishes and publishes would else always be the next
            waited = old is not None and not old.active
            new.turn_at = old.turn_at if old and waited else self._context.now
            self.by_member[member] = new
        self.pump()

    def cancel(self, member: NodeId) -> None:
        old = self.by_member.pop(member, None)
        if old is not None:
            self._context.emit(DropPayload(member, old.head.header.root))

    def interrupted(self, peer: NodeId) -> None:
        """The link is gone: chunks in flight are lost, stored ones stay for a new offer."""
        for transfer in self.by_member.values():
            if transfer.peer == peer:
                transfer.active, transfer.broken = False, True
                self._requeue(transfer)
        self._pace.pop(peer, None)
        self._spares = {key: n for key, n in self._spares.items() if key[0] != peer}
        self.pump()

    def gone(self, peer: NodeId, root: bytes) -> None:
        for member, transfer in list(self.by_member.items()):
            if transfer.peer == peer and transfer.head.header.root == root:
                self.cancel(member)
        self.pump()

    def receive(self, peer: NodeId, chunk: Chunk) -> Transfer | None:
        """Verify and pass on one chunk; the transfer if it is complete now.

        Raises OutOfBounds for a chunk that was not asked for, RemoteProtocolError for wrong bytes.
        """
        transfer = self._find(peer, chunk)
        if transfer is None and self._is_spare(peer, chunk):
            return None  # it was late, not lost: we asked twice
        if transfer is None:
            raise Unasked(f"chunk {chunk.index} was not asked for")
        header = transfer.head.header
        offset = chunk.index * CHUNK_BYTES
        if len(chunk.data) != min(CHUNK_BYTES, header.length - offset):
            raise OutOfBounds(f"chunk {chunk.index} has {len(chunk.data)} bytes")
        if not verify_leaves(chunk.data, transfer.leaves, chunk.index * LEAVES_PER_CHUNK):
            raise ChunkDigest(f"chunk {chunk.index} does not have the digest the header names")
        self._arrived(transfer, chunk.index)
        member = NodeId(header.sender)
        self._context.emit(StoreChunk(member, header.root, offset, header.length, chunk.data))
        if transfer.complete:
            del self.by_member[member]
        self.pump()
        return transfer if transfer.complete else None

    def _arrived(self, transfer: Transfer, index: int) -> None:
        """Note the link's pace; what should have come before this chunk is asked for again."""
        now, place = self._context.now, transfer.waiting.pop(index)
        took = now - transfer.quiet_at
        self._pace[transfer.peer] = max(took, 0.9 * self._pace.get(transfer.peer, 0.0))
        transfer.progress_at = transfer.quiet_at = now
        transfer.stalls = 0
        lost = [k for k, n in transfer.waiting.items() if n + OVERTAKEN <= place]
        for k in lost:
            del transfer.waiting[k]
            self._may_come_twice(transfer, k)
        if lost:
            transfer.missing = sorted((*transfer.missing, *lost), reverse=True)

    def _may_come_twice(self, transfer: Transfer, index: int) -> None:
        key = (transfer.peer, transfer.head.header.root, index)
        self._spares[key] = self._spares.get(key, 0) + 1
        if len(self._spares) > SPARES_MAX:
            del self._spares[next(iter(self._spares))]

    def _is_spare(self, peer: NodeId, chunk: Chunk) -> bool:
        key = (peer, chunk.root, chunk.index)
        left = self._spares.pop(key, 0)
        if left > 1:
            self._spares[key] = left - 1
        return left > 0

    def pump(self) -> None:
        """Start what may start: small transfers at once, large ones one after another.

        Those under way ask for more where credit has become free.
        """
        if not self.by_member:
            return
        self._take_turns()
        for member in sorted(self.by_member):
            transfer = self.by_member[member]
            if not (transfer.active or transfer.broken or transfer.large):
                self._activate(transfer)
            if transfer.active:
                self._ask(transfer)

    def wake_at(self) -> float | None:
        if not self.by_member:
            return None
        active = [self._due(t) for t in self.by_member.values() if t.active]
        holder, others = self._large()
        if holder is not None and others:
            active.append(holder.turn_at + SLICE_S)
        return min(active, default=None)

    def _large(self) -> tuple[Transfer | None, list[Transfer]]:
        """The large transfer whose turn it is, and those that wait for theirs, longest first."""
        large = [t for _, t in sorted(self.by_member.items()) if t.large and not t.broken]
        others = sorted((t for t in large if not t.active), key=lambda t: t.turn_at)
        return next((t for t in large if t.active), None), others

    def _take_turns(self) -> None:
        """One large transfer at a time; a slow one does not keep the others from theirs."""
        holder, others = self._large()
        if not others:
            return
        if holder is not None:
            if self._context.now < holder.turn_at + SLICE_S:
                return
            # what is in flight may still come; nothing more is asked for
            holder.active = False
            holder.turn_at = holder.behind_at = self._context.now
        self._activate(others[0])

    def _activate(self, transfer: Transfer) -> None:
        transfer.active, transfer.turn_at = True, self._context.now
        if not transfer.waiting:
            transfer.quiet_at = self._context.now  # else it may be silent since before its turn
        if not transfer.stalls:
            transfer.progress_at = self._context.now
        elif transfer.behind_at is not None:  # others had their turns: that was not its silence
            transfer.progress_at += self._context.now - max(
                transfer.behind_at, transfer.progress_at
            )
        transfer.behind_at = None

    def _due(self, transfer: Transfer) -> float:
        """When its silence is longer than the link's pace explains; each time twice as long."""
        pace = self._pace.get(transfer.peer)
        after = STALL_S
        if pace is not None:
            after = min(STALL_S, max(STALL_MIN_S, PACES * pace) * 2**transfer.stalls)
        return min(transfer.quiet_at + after, transfer.progress_at + GIVE_UP_S)

    def wake(self) -> None:
        """Ask again for what did not come; give up a transfer that makes no progress."""
        now = self._context.now
        for member, transfer in list(self.by_member.items()):
            if not transfer.active or now < self._due(transfer):
                continue
            if not transfer.waiting:
                # others have the credit: nothing was asked for that could come
                transfer.progress_at = transfer.quiet_at = now
            elif now >= transfer.progress_at + GIVE_UP_S:
                self._context.reject(transfer.peer, OutOfBounds("its transfer made no progress"))
                self.cancel(member)
            else:
                self._probe(transfer)
        self.pump()

    def _probe(self, transfer: Transfer) -> None:
        """Ask once more for the chunk that should come last; once it is here, so is the truth.

        One chunk only: behind a link that stands still, whatever is asked for comes twice.
        """
        transfer.stalls += 1
        last = max(transfer.waiting, key=transfer.waiting.__getitem__)
        transfer.asked += OVERTAKEN  # so that it overtakes all the others
        transfer.waiting[last] = transfer.asked
        transfer.quiet_at = self._context.now
        self._may_come_twice(transfer, last)
        want = Want(transfer.head.header.root, last, 1)
        self._context.emit(Send(transfer.peer, encode(want)))

    def _find(self, peer: NodeId, chunk: Chunk) -> Transfer | None:
        """The transfer that waits for ``chunk``: several members may have one root."""
        for transfer in self.by_member.values():
            same = transfer.head.header.root == chunk.root and transfer.peer == peer
            if same and chunk.index in transfer.waiting:
                return transfer
        return None

    def _requeue(self, transfer: Transfer) -> None:
        transfer.missing = sorted({*transfer.missing, *transfer.waiting}, reverse=True)
        transfer.waiting.clear()

    def _ask(self, transfer: Transfer) -> None:
        """Send Wants up to the credit of link and node, in runs of consecutive chunks."""
        by_link = Counter[NodeId]()
        for each in self.by_member.values():
            by_link[each.peer] += len(each.waiting)
        link_waiting = by_link.pop(transfer.peer)
        neighbours = self._context.self_member.neighbours
        reserve = min(RESERVED_CHUNKS, NODE_CHUNKS // len(neighbours))  # 0 where there are too many
        # what other links may still ask for stays free: silent ones cannot hold all the credit
        others = sum(max(reserve, by_link[peer]) for peer in neighbours if peer != transfer.peer)
        window = min(LINK_CHUNKS, NODE_CHUNKS - others)
        # half a window at a time; in a narrow one what is reserved, which is always to be had
        most = WANT_CHUNKS if window >= 2 * WANT_CHUNKS else max(1, reserve)
        while transfer.missing:
            run = min(most, len(transfer.missing))
            if window - link_waiting < run:
                return
            first = transfer.missing.pop()
            count = 1
            while count < run and transfer.missing[-1] == first + count:
                transfer.missing.pop()
                count += 1
            for index in range(first, first + count):
                transfer.asked += 1
                transfer.waiting[index] = transfer.asked
            transfer.quiet_at = self._context.now
            link_waiting += count
            want = Want(transfer.head.header.root, first, count)
            self._context.emit(Send(transfer.peer, encode(want)))


class Unasked(OutOfBounds):
    """A chunk that came of itself, or far too late."""


class ChunkDigest(RemoteProtocolError):
    reason = "digest"


def verify_leaves(data: bytes | memoryview, leaves: bytes, first: int) -> bool:
    """Whether each 64 KiB leaf of ``data`` has its digest; ``first``: index of its first leaf."""
    view = memoryview(data)
    starts = range(0, len(view), LEAF_BYTES)
    digests = [blake3(view[start : start + LEAF_BYTES]).digest() for start in starts]
    return b"".join(digests) == leaves[32 * first : 32 * (first + len(digests))]
