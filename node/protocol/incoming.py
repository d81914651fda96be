"""Payloads on their way in: chunks asked for within the credit, each verified as it passes.

At most one transfer per sender; large ones one at a time, so that spooled bytes stay within 64 MiB
or one payload while links are quick, and in turns where they are slow. A chunk's bytes pass through
here once and are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from crypto.identity import NodeId
from node.errors import OutOfBounds, RemoteProtocolError
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.heads import Head
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
WANT_CHUNKS: Final = 4  # asked for at a time: the pipe stays full while the window slides
LARGE_BYTES: Final = 8 * MiB
SLICE_S: Final = 2.0  # a large transfer that takes longer lets the next one go first
STALL_S: Final = 5.0
STALLS_MAX: Final = 6  # without one new chunk: give the transfer up


@dataclass
class Transfer:
    """One payload being fetched from ``peer``."""

    head: Head
    peer: NodeId
    offer: bytes
    leaves: bytes
    missing: list[int]  # chunks not asked for yet, in reverse order
    waiting: set[int] = field(default_factory=set)  # asked for, not here yet
    active: bool = False
    turn_at: float = 0.0  # when it last became active, or was put behind the others
    broken: bool = False  # its link is gone: it goes on when it is offered again
    progress_at: float = 0.0
    stalls: int = 0

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
            self.by_member[member] = Transfer(
                head, peer, offer, leaves, missing=list(range(chunks - 1, -1, -1))
            )
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
        if transfer is None:
            raise OutOfBounds(f"chunk {chunk.index} was not asked for")
        header = transfer.head.header
        offset = chunk.index * CHUNK_BYTES
        if len(chunk.data) != min(CHUNK_BYTES, header.length - offset):
            raise OutOfBounds(f"chunk {chunk.index} has {len(chunk.data)} bytes")
        if not verify_leaves(chunk.data, transfer.leaves, chunk.index * LEAVES_PER_CHUNK):
            raise ChunkDigest(f"chunk {chunk.index} does not have the digest the header names")
        transfer.waiting.discard(chunk.index)
        transfer.progress_at, transfer.stalls = self._context.now, 0
        member = NodeId(header.sender)
        self._context.emit(StoreChunk(member, header.root, offset, header.length, chunk.data))
        if transfer.complete:
            del self.by_member[member]
        self.pump()
        return transfer if transfer.complete else None

    def pump(self) -> None:
        """Start what may start: small transfers at once, large ones one after another.

        Those under way ask for more where credit has become free.
        """
        self._take_turns()
        for member in sorted(self.by_member):
            transfer = self.by_member[member]
            if not (transfer.active or transfer.broken or transfer.large):
                self._activate(transfer)
            if transfer.active:
                self._ask(transfer)

    def wake_at(self) -> float | None:
        active = [t.progress_at + STALL_S for t in self.by_member.values() if t.active]
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
            holder.active, holder.turn_at = False, self._context.now
        self._activate(others[0])

    def _activate(self, transfer: Transfer) -> None:
        transfer.active = True
        transfer.progress_at = transfer.turn_at = self._context.now

    def wake(self) -> None:
        """Ask again for what did not come; give up a transfer that makes no progress."""
        for member, transfer in list(self.by_member.items()):
            if not transfer.active or self._context.now < transfer.progress_at + STALL_S:
                continue
            transfer.progress_at = self._context.now
            if not transfer.waiting:
                continue  # others have the credit: nothing was asked for that could come
            transfer.stalls += 1
            if transfer.stalls >= STALLS_MAX:
                self._context.reject(transfer.peer, OutOfBounds("its transfer made no progress"))
                self.cancel(member)
                continue
            self._requeue(transfer)
        self.pump()

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
        every = self.by_member.values()
        node_waiting = sum(len(t.waiting) for t in every)
        link_waiting = sum(len(t.waiting) for t in every if t.peer == transfer.peer)
        while transfer.missing:
            room = min(LINK_CHUNKS - link_waiting, NODE_CHUNKS - node_waiting)
            run = min(WANT_CHUNKS, len(transfer.missing))
            if room < run:
                return
            first = transfer.missing.pop()
            count = 1
            while count < run and transfer.missing[-1] == first + count:
                transfer.missing.pop()
                count += 1
            transfer.waiting.update(range(first, first + count))
            node_waiting += count
            link_waiting += count
            want = Want(transfer.head.header.root, first, count)
            self._context.emit(Send(transfer.peer, encode(want)))


class ChunkDigest(RemoteProtocolError):
    reason = "digest"


def verify_leaves(data: bytes | memoryview, leaves: bytes, first: int) -> bool:
    """Whether each 64 KiB leaf of ``data`` has its digest; ``first``: index of its first leaf."""
    view = memoryview(data)
    for number, start in enumerate(range(0, len(view), LEAF_BYTES), first):
        digest = blake3(view[start : start + LEAF_BYTES]).digest()
        if digest != leaves[32 * number : 32 * number + 32]:
            return False
    return True
