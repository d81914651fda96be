"""Versions of others: from an offer through checks, chunks and Apply to a replica and a Have.

A version waits in ``ready`` while it must not be applied: during a mix, and when it would replace
the replica of the round in hand by a later one while that may still count at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crypto.identity import NodeId
from node.errors import Foreign, LocalProtocolError, OutOfBounds, RemoteProtocolError, Replayed
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.heads import HeadBook
from node.protocol.incoming import ChunkDigest, Transfer, Transfers
from node.protocol.links import Links
from node.protocol.peers import Peer, Replica
from node.protocol.reading import Head
from node.types.events import Applied, Apply, DropPayload, Forget, Receipt, Received, StoreChunk
from node.types.messages import LEAF_BYTES, PRESENCE, Ask, Chunk, Have, Offer

CODECS: Final = ("full",)


class BadModel(RemoteProtocolError):
    """Signed and whole, but not a model that may be mixed."""

    reason = "model"


class Reception:
    """Everything between an Offer and a replica."""

    def __init__(self, context: Context, links: Links, heads: HeadBook) -> None:
        self._context = context
        self._links = links
        self._heads = heads
        self.transfers = Transfers(context)
        self.ready: dict[NodeId, Transfer] = {}
        self.applying: dict[NodeId, Transfer] = {}
        self.borrowed: dict[NodeId, Head] = {}  # keyframes of non-neighbours, for a Rebase
        self.asked: dict[NodeId, NodeId] = {}  # member -> the neighbour that was asked for it
        self._unneeded: dict[NodeId, NodeId] = {}  # asked for, then not needed: one answer may come
        self._refused: dict[NodeId, tuple[int, int]] = {}  # versions found to be no models

    # ── from the wire ──

    def offer(self, peer: Peer, frame: bytes | memoryview, offer: Offer) -> Head:
        """Take an Offer; its head. Raises RemoteProtocolError for whatever is wrong with it."""
        head = self._heads.check(offer.signed)
        sender = NodeId(head.header.sender)
        if sender != peer.id and self.asked.get(sender) != peer.id:
            if self._unneeded.get(sender) == peer.id:
                del self._unneeded[sender]
                return head  # its answer to an Ask, but a start was found without it
            raise Foreign(f"offers a model of {self._context.roster.name(sender)}, not asked for")
        self._check_schema(head, offer)
        if not self._is_news(peer, sender, head):
            return head
        ready = self.ready.get(sender)
        if ready is not None and ready.head.header.root == head.header.root:
            # its bytes are here, and whoever gave a second transfer of them up would drop them
            self.transfers.cancel(sender)
            self.ready[sender] = Transfer(head, peer.id, bytes(frame), offer.leaves, missing=[])
            return head
        if offer.payload is None:
            self.transfers.begin(head, peer=peer.id, offer=bytes(frame), leaves=offer.leaves)
            return head
        self._check_inline(head, offer)
        self.transfers.cancel(sender)
        header = head.header
        whole = Transfer(head, peer.id, bytes(frame), offer.leaves, missing=[])
        self._context.emit(StoreChunk(sender, header.root, 0, header.length, offer.payload))
        self._complete(whole)
        return head

    def chunk(self, peer: Peer, chunk: Chunk) -> None:
        done = self.transfers.receive(peer.id, chunk)
        if done is not None:
            self._complete(done)

    def ask(self, peer: Peer, member: NodeId) -> None:
        """Ask ``peer`` for the newest keyframe of a member that is not our neighbour."""
        self.asked[member] = peer.id
        self._links.send(peer, encode(Ask(member)))

    def interrupted(self, peer: NodeId) -> None:
        """The link is gone: whom it was asked for, another neighbour may be asked for."""
        self.transfers.interrupted(peer)
        self.asked = {m: p for m, p in self.asked.items() if p != peer or m in self.borrowed}

    def relay(self, peer: Peer, member: NodeId) -> None:
        """Answer an Ask with the offer as its publisher signed it."""
        other = self._links.peers.get(member)
        if other is not None and other.replica is not None and member != peer.id:
            self._links.send(peer, other.replica.offer)

    def relayed_bytes(self, member: NodeId) -> int:
        """What ``relay`` sends for ``member``."""
        other = self._links.peers.get(member)
        return 0 if other is None or other.replica is None else len(other.replica.offer)

    def kept_length(self, root: bytes) -> int | None:
        """Length in bytes of a replica that this node can serve, if it holds ``root``."""
        for peer in self._links.peers.values():
            if peer.replica is not None and peer.replica.head.header.root == root:
                return peer.replica.head.header.length
        return None

    # ── applying ──

    def pump(self, may_apply: Callable[[Peer | None, Head], bool]) -> None:
        """Apply what is complete and may be applied now."""
        for member in sorted(self.ready):
            transfer = self.ready[member]
            if member in self.applying:
                continue
            if not may_apply(self._links.peers.get(member), transfer.head):
                continue
            del self.ready[member]
            self.applying[member] = transfer
            header = transfer.head.header
            self._context.emit(Apply(member, header.root, header))

    def applied(self, event: Applied) -> Peer | None:
        """The learner's verdict. Returns the neighbour whose replica is new, if it is one."""
        transfer = self.applying.pop(event.member, None)
        if transfer is None:
            raise LocalProtocolError("Applied for a member whose version is not being applied")
        header = transfer.head.header
        peer = self._links.peers.get(event.member)
        if not event.ok:
            self._refused[event.member] = (header.incarnation, header.version)
            self.borrowed.pop(event.member, None)
            if peer is not None:
                peer.replica = None
                peer.bad_round, peer.bad_why = header.round, event.why
                self._answer(peer, transfer.head, ok=False, why=event.why)
            self._context.reject(event.member, BadModel(event.why))
            return None
        if peer is None:
            self.borrowed[event.member] = transfer.head
            return None
        receipt = self._context.persist(Receipt(event.member, transfer.head.signed))
        peer.replica = Replica(transfer.head, transfer.offer, self._context.now, receipt)
        peer.floor = transfer.head
        self._answer(peer, transfer.head, ok=True, after=receipt)
        self._context.note(
            Received(
                event.member,
                header.incarnation,
                header.boot_id,
                header.version,
                header.round,
                header.model,
            )
        )
        return peer

    def forget_borrowed(self) -> None:
        unanswered = {m: p for m, p in self.asked.items() if m not in self.borrowed}
        self._unneeded.update(unanswered)
        for member in sorted(self.borrowed):
            self._context.emit(Forget(member))
        self.borrowed.clear()
        for member in sorted({*self.transfers.by_member, *self.ready} - {*self._links.peers}):
            self.transfers.cancel(member)
            self._drop_ready(member)
        self.asked.clear()
        self.transfers.pump()

    # ── checks ──

    def _check_schema(self, head: Head, offer: Offer) -> None:
        header = head.header
        if header.kind == PRESENCE or header.round < 1 or header.version < 1:
            raise OutOfBounds("an offer without a version")
        if header.codec not in CODECS:
            raise OutOfBounds(f"codec {header.codec!r} is not the training's")
        expected = self._context.pins.payload_bytes
        if header.length != expected:
            raise OutOfBounds(f"payload of {header.length} bytes, the schema has {expected}")
        if header.base is not None or header.model != header.root:
            raise OutOfBounds("a full payload is a keyframe and its own model")
        if len(offer.leaves) != 32 * -(-header.length // LEAF_BYTES):
            raise OutOfBounds("the digest list does not fit the length")
        if self._context.read.root(offer.leaves, header.length) != header.root:
            raise ChunkDigest("the digest list does not have the root the header names")

    def _check_inline(self, head: Head, offer: Offer) -> None:
        payload = offer.payload
        assert payload is not None
        if len(payload) != head.header.length:
            raise OutOfBounds(f"inline payload of {len(payload)} bytes, not {head.header.length}")
        if self._context.read.leaves(payload) != offer.leaves:
            raise ChunkDigest("the inline payload does not have the digest the header names")

    def _is_news(self, peer: Peer, sender: NodeId, head: Head) -> bool:
        """False for what is known already. Raises Replayed for what is older than the floor."""
        header = head.header
        order = (header.incarnation, header.version)
        if self._refused.get(sender) == order:
            raise Replayed("a version that was refused before")
        owner = self._links.peers.get(sender)
        floor = owner.floor if owner else None
        if floor is not None:
            least = (floor.header.incarnation, floor.header.version)
            if order < least:
                raise Replayed(f"version {header.version}, already at {floor.header.version}")
            if order == least and owner is not None and owner.replica is not None:
                self._answer(owner, head, ok=True, after=owner.replica.receipt)
                return False
            if header.incarnation == floor.header.incarnation and order > least:
                self._check_label(head, floor)
        for under_way in (self.transfers.by_member, self.ready, self.applying):
            newer = under_way.get(sender)
            if newer is not None and newer.head.order > head.order:
                raise Replayed(f"version {header.version}, a newer one is on its way")
        known = self.ready.get(sender) or self.applying.get(sender)
        if known is not None and known.head.header.root == header.root:
            return known.head.order < head.order
        held = self.borrowed.get(sender)
        return held is None or held.order < head.order

    def _check_label(self, head: Head, floor: Head) -> None:
        """Within a boot every round is published once, in order: one version a round is applied.

        Else a neighbour could keep the learner and the disk busy with versions that nobody needs.
        """
        label, before = head.header.round, floor.header.round
        if label <= before:
            raise Replayed(f"version {head.header.version} of round {label}, already at {before}")

    def _answer(
        self, peer: Peer, head: Head, *, ok: bool, why: str = "", after: int | None = None
    ) -> None:
        if peer.linked:
            header = head.header
            have = Have(header.incarnation, header.boot_id, header.version, ok, why[:200])
            self._links.send(peer, encode(have), after)

    def _complete(self, transfer: Transfer) -> None:
        member = NodeId(transfer.head.header.sender)
        self._drop_ready(member, unless=transfer.head.header.root)
        self.ready[member] = transfer

    def _drop_ready(self, member: NodeId, *, unless: bytes = b"") -> None:
        old = self.ready.pop(member, None)
        if old is not None and old.head.header.root != unless:
            self._context.emit(DropPayload(member, old.head.header.root))
