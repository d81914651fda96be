"""How each safeguard is taken out of a node that was just built: one function, one safeguard.

Each changes methods of this one core or learner; nothing else in the process notices. What a
safeguard protects and which checker must notice stands in safeguards.py. Here: what is taken from
others; what rounds and crashes rest on is in switches_rounds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from msgspec import structs

from crypto.hashing import leaf_digests
from crypto.hashing import root as root_of
from crypto.identity import NodeId
from crypto.purposes import PURPOSES
from node.learning.vector import from_buffer
from node.protocol.frames import decode_header, encode
from node.protocol.incoming import LEAVES_PER_CHUNK, Transfer
from node.types.events import Send
from node.types.messages import CHUNK_BYTES, CREDIT_LINK_BYTES, Chunk, Header, Offer, Want

if TYPE_CHECKING:
    from torch import Tensor

    from scenarios.virtual_node import VirtualNode


# ── headers ──


def signature(node: VirtualNode) -> None:
    node.core.context.verify = lambda *_: True


def purpose(node: VirtualNode) -> None:
    verify = node.core.context.verify

    def any_purpose(public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
        return any(verify(public, each, message, signature) for each in sorted(PURPOSES))

    node.core.context.verify = any_purpose


def blind_to(field: str) -> Callable[[VirtualNode], None]:
    """``field`` of a header is not compared with where this node is."""

    def off(node: VirtualNode) -> None:
        heads, context = node.core.heads, node.core.context
        check: Callable[..., Any] = heads._check_place

        def check_place(header: Header, *, own: bool = False) -> Any:
            ours = {
                "consortium": context.roster.consortium,
                "epoch": context.roster.epoch,
                "training": context.pins.training,
                "key_version": context.roster.members[NodeId(header.sender)].key_version,
            }
            return check(structs.replace(header, **{field: ours[field]}), own=own)

        patch(heads, "_check_place", check_place)

    return off


def bounds(node: VirtualNode) -> None:
    patch(node.core.heads, "_check_bounds", nothing)


def older_boot(node: VirtualNode) -> None:
    patch(node.core.heads, "_check_boot", nothing)


def contradiction(node: VirtualNode) -> None:
    patch(node.core.heads, "_check_contradiction", nothing)


def quarantine(node: VirtualNode) -> None:
    """A contradiction is told, and changes nothing."""
    node.core.heads.quarantined = _Forgetful()


class _Forgetful(dict):  # type: ignore[type-arg]
    """A quarantine that keeps nobody."""

    def __setitem__(self, member: object, record: object) -> None:
        pass


# ── replay ──


def floors_lost(node: VirtualNode) -> None:
    """What the disk says of others is not read."""
    heads = node.core.heads
    heads.newest.clear()
    heads._recent.clear()
    heads._verified.clear()
    for peer in node.core.links.peers.values():
        peer.floor = None


def floor(node: VirtualNode) -> None:
    reception, peers = node.core.reception, node.core.links.peers
    is_news: Callable[..., bool] = reception._is_news

    def without_floor(peer: Any, sender: Any, head: Any) -> bool:
        owner = peers.get(sender)
        if owner is None:
            return is_news(peer, sender, head)
        floor, owner.floor = owner.floor, None
        try:
            return is_news(peer, sender, head)
        finally:
            owner.floor = floor

    patch(reception, "_is_news", without_floor)


def unasked(node: VirtualNode) -> None:
    """An offer of anybody's model is taken from anybody."""
    reception = node.core.reception
    take: Callable[..., Any] = reception.offer

    def offer(peer: Any, frame: Any, offer: Offer) -> Any:
        sender = NodeId(decode_header(offer.signed.header).sender)
        asked = sender in reception.asked
        reception.asked.setdefault(sender, peer.id)
        try:
            return take(peer, frame, offer)
        finally:
            if not asked:
                reception.asked.pop(sender, None)

    patch(reception, "offer", offer)


# ── payloads ──


def payload_digest(node: VirtualNode) -> None:
    """Neither chunks nor inline payloads are compared with the digest list."""
    reception = node.core.reception
    inline: Callable[..., None] = reception._check_inline

    def check_inline(head: Any, offer: Offer) -> None:
        assert offer.payload is not None
        inline(head, structs.replace(offer, leaves=leaf_digests(offer.payload)))

    patch(reception, "_check_inline", check_inline)


def chunk_digest(node: VirtualNode) -> None:
    """A chunk's own digests take the place of those that were promised."""
    transfers = node.core.reception.transfers
    receive: Callable[..., Transfer | None] = transfers.receive

    def believing(peer: Any, chunk: Chunk) -> Transfer | None:
        transfer = transfers._find(peer, chunk)
        if transfer is None:
            return receive(peer, chunk)
        promised, own = transfer.leaves, leaf_digests(chunk.data)
        at = 32 * chunk.index * LEAVES_PER_CHUNK
        transfer.leaves = promised[:at] + own + promised[at + len(own) :]
        return receive(peer, chunk)

    patch(transfers, "receive", believing)


def schema(**lies: Callable[[Header, Offer], Any]) -> Callable[[VirtualNode], None]:
    """The schema check sees a header whose fields are what ``lies`` make of them."""

    def off(node: VirtualNode) -> None:
        reception = node.core.reception
        check: Callable[..., None] = reception._check_schema

        def check_schema(head: Any, offer: Offer) -> None:
            header = head.header
            changes = {field: lie(header, offer) for field, lie in lies.items()}
            seen = type(head)(head.signed, structs.replace(header, **changes))
            check(seen, offer)

        patch(reception, "_check_schema", check_schema)
        patch(node.learner, "_check_header", nothing)

    return off


def model_digest(node: VirtualNode) -> None:
    """The header's model may be another than its payload."""
    schema(model=lambda header, offer: header.root)(node)


def digest_list(node: VirtualNode) -> None:
    """The digest list is not compared with the root."""
    schema(
        root=lambda header, offer: root_of(offer.leaves, header.length),
        model=lambda header, offer: root_of(offer.leaves, header.length),
    )(node)


def shape(node: VirtualNode) -> None:
    """A payload of any length is taken; its first values are the model."""
    expected = node.core.context.pins.payload_bytes
    reception = node.core.reception
    check: Callable[..., None] = reception._check_schema

    def check_schema(head: Any, offer: Offer) -> None:
        pins = node.core.context.pins
        node.core.context.pins = structs.replace(pins, payload_bytes=head.header.length)
        try:
            check(head, offer)
        finally:
            node.core.context.pins = pins

    patch(reception, "_check_schema", check_schema)

    def read(honest: Callable[[memoryview], Tensor], payload: memoryview) -> Tensor:
        return honest(memoryview(bytes(payload).ljust(expected, b"\0"))[:expected])

    _read(node, read)


def finite(node: VirtualNode) -> None:
    """Values that are not numbers pass, and so does a distance that is none."""

    def read(honest: Callable[[memoryview], Tensor], payload: memoryview) -> Tensor:
        vector = from_buffer(payload)
        return honest(payload) if bool(torch.isfinite(vector).all()) else vector

    _read(node, read)


def norm(node: VirtualNode) -> None:
    node.learner._reach = 0.0
    _read(node, lambda read, payload: read(payload))


def _read(
    node: VirtualNode, read: Callable[[Callable[[memoryview], Tensor], memoryview], Tensor]
) -> None:
    """``read(honest, payload)`` judges payloads in the place of the learner's own method."""
    learner = node.learner
    honest, apply = learner.read, learner.apply

    def judged(effect: Any, payload: Any, _read: Any = None) -> Any:
        return apply(effect, payload, lambda view: read(honest, view))

    patch(learner, "apply", judged)


# ── links ──


def rate(node: VirtualNode) -> None:
    for peer in node.core.links.peers.values():
        patch(peer, "pay", lambda now, cost=1.0: True)


def credit(node: VirtualNode) -> None:
    """All chunks of a payload are asked for at once."""
    transfers, context = node.core.reception.transfers, node.core.context
    most = CREDIT_LINK_BYTES // CHUNK_BYTES

    def ask(transfer: Transfer) -> None:
        while transfer.missing:
            first = transfer.missing.pop()
            count = 1
            while count < most and transfer.missing and transfer.missing[-1] == first + count:
                transfer.missing.pop()
                count += 1
            for index in range(first, first + count):
                transfer.asked += 1
                transfer.waiting[index] = transfer.asked
            transfer.quiet_at = context.now
            context.emit(Send(transfer.peer, encode(Want(transfer.head.header.root, first, count))))

    patch(transfers, "_ask", ask)


def start(node: VirtualNode) -> None:
    patch(node.core.start_gate, "open", lambda **_: True)


# ── how ──


def patch(owner: Any, name: str, by: Any) -> None:
    """Put ``by`` in the place of a method, in this one object."""
    assert hasattr(owner, name), f"{type(owner).__name__} has no {name}"
    setattr(owner, name, by)


def nothing(*_arguments: Any, **_named: Any) -> None:
    """A check that finds nothing."""
