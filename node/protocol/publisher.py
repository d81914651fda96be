"""What this node says of itself: incarnation and boot, signed headers, offers, served chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from crypto.identity import NodeId
from crypto.purposes import HEADER
from node.errors import OutOfBounds
from node.protocol.context import Context
from node.protocol.frames import encode, encode_header
from node.protocol.peers import Peer
from node.types.events import (
    CoreState,
    Incarnation,
    Payload,
    Publishing,
    Reincarnated,
    Reserved,
    Send,
    SendChunk,
)
from node.types.messages import (
    CHUNK_BYTES,
    DELTA,
    KEYFRAME,
    PRESENCE,
    Gone,
    Header,
    Offer,
    SignedHeader,
    Want,
)

DAY_MS: Final = 24 * 3600 * 1000
BOOT_ID_BYTES: Final = 16
# How often a neighbour may have all of a payload between two versions of ours: processes restart
# and links lose chunks, but nobody needs our whole uplink
SERVED_MAX: Final = 8


def counted_ids(members: Iterable[NodeId]) -> tuple[bytes, ...]:
    """How a header names members: the first 8 bytes of their ids, sorted."""
    return tuple(sorted(member[:8] for member in members))


class Publisher:
    """Versions of the own public model, each signed once and offered to all neighbours alike."""

    def __init__(self, context: Context, state: CoreState) -> None:
        self._context = context
        self.incarnation = state.incarnation
        self.boot_id = b""
        self.version = state.version
        self.durable_after = 0  # the Persist that makes the incarnation safe to use
        self.payload: Payload | None = None
        self.signed: SignedHeader | None = None
        self.round = 0  # label of the payload
        self.encoding = False  # the shell is overwriting the public model
        self.own_head: SignedHeader | None = None  # newest signed by us, presence included
        self._offer: bytes | None = None
        self._reserved = state.version  # the highest number that is, or will be, on the disk
        self._reserved_after = 0  # the Persist that puts it there
        self._offer_after = 0
        self._wall_ms = 0
        self._wall_at = 0.0

    def start(self, wall_ms: int) -> None:
        """Begin a new incarnation; persisted before anything is said under it."""
        self._wall_ms, self._wall_at = wall_ms, self._context.now
        self._begin(max(wall_ms, self.incarnation + 1))

    def outdated_by(self, header: Header) -> bool:
        """Whether a header signed by our own key proves a boot that is not before this one."""
        if header.incarnation == self.incarnation:
            return header.boot_id != self.boot_id
        return header.incarnation > self.incarnation

    def reincarnate(self, header: Header) -> None:
        """Move past ``header``: a restored backup or a lost disk never repeats itself.

        Raises OutOfBounds if the proof lies more than a day ahead of the clock.
        """
        wall = self._wall_ms + int((self._context.now - self._wall_at) * 1000)
        if header.incarnation >= wall + DAY_MS:
            raise OutOfBounds("proof of an incarnation more than a day ahead of this clock")
        self.version = max(self.version, header.version)
        self._begin(header.incarnation + 1)
        self._context.note(
            Reincarnated(self.incarnation, "a peer proved a later boot of this node")
        )

    def _begin(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.boot_id = self._context.entropy(BOOT_ID_BYTES)
        self.durable_after = self._context.persist(Incarnation(incarnation, self.boot_id))
        self._reserved = self.version  # under the new incarnation, which an offer then waits for
        self._offer = None

    def reserve(self) -> None:
        """Put the next version's number on the disk, so that no later boot uses it again.

        Asked for as soon as a round begins: the disk works while the model is trained and encoded,
        and the offer need not wait for it.
        """
        if self._reserved <= self.version:
            self._reserved = self.version + 1
            record = Reserved(self.incarnation, self.boot_id, self._reserved)
            self._reserved_after = self._context.persist(record)

    def publish(
        self, payload: Payload, *, round_: int, mixed_round: int, counted: Iterable[NodeId]
    ) -> None:
        """Sign ``payload`` as the next version; its number is recorded before it can be offered."""
        self.reserve()
        self.version += 1
        self.payload, self.round, self.encoding = payload, round_, False
        self.signed = self._sign(
            kind=KEYFRAME if payload.keyframe else DELTA,
            round_=round_,
            base=None if payload.keyframe else self.version - 1,
            payload=payload,
            mixed_round=mixed_round,
            counted=counted,
        )
        self._offer_after = self._reserved_after
        self._offer = encode(Offer(self.signed, payload.leaves, payload.inline))
        self._context.note(
            Publishing(self.incarnation, self.boot_id, self.version, round_, payload.model)
        )

    def presence(self, *, round_: int, mixed_round: int, counted: Iterable[NodeId]) -> SignedHeader:
        """A head without a payload: "I am here", and after the last round "I have finished"."""
        return self._sign(
            kind=PRESENCE,
            round_=round_,
            base=None,
            payload=self.payload,
            mixed_round=mixed_round,
            counted=counted,
        )

    def offer_to(self, peer: NodeId) -> None:
        """Offer the newest version, once it is on record."""
        if self._offer is not None and not self.encoding:
            self._context.emit(Send(peer, self._offer, after=self._offer_after))

    def serve(self, peer: Peer, want: Want, length: int) -> None:
        """Send the chunks of a kept payload of ``length`` bytes. Raises OutOfBounds."""
        chunks = -(-length // CHUNK_BYTES)
        if want.first + want.count > chunks:
            raise OutOfBounds(f"wants chunk {want.first + want.count - 1} of {chunks}")
        if peer.served_version != self.version:
            peer.served_version = self.version
            peer.served.clear()
        peer.served[want.root] += want.count
        if peer.served[want.root] > SERVED_MAX * chunks:
            raise OutOfBounds(f"wants one payload more than {SERVED_MAX} times over")
        for index in range(want.first, want.first + want.count):
            self._context.emit(SendChunk(peer.id, want.root, index))

    @property
    def offer_bytes(self) -> int:
        """What ``offer_to`` sends, as long as there is something to offer."""
        return 0 if self._offer is None else len(self._offer)

    def gone(self, peer: NodeId, root: bytes) -> None:
        self._context.emit(Send(peer, encode(Gone(root))))

    def serves(self, root: bytes) -> bool:
        return self.payload is not None and self.payload.root == root and not self.encoding

    def _sign(
        self,
        *,
        kind: int,
        round_: int,
        base: int | None,
        payload: Payload | None,
        mixed_round: int,
        counted: Iterable[NodeId],
    ) -> SignedHeader:
        context = self._context
        initial = context.pins.initial
        carries = payload if kind != PRESENCE else None
        header = Header(
            consortium=context.roster.consortium,
            epoch=context.roster.epoch,
            training=context.pins.training,
            sender=context.me,
            key_version=context.self_member.key_version,
            incarnation=self.incarnation,
            boot_id=self.boot_id,
            round=round_,
            kind=kind,
            version=self.version,
            base=base,
            codec=carries.codec if carries else "",
            length=carries.length if carries else 0,
            root=carries.root if carries else bytes(32),
            model=payload.model if payload else initial,
            mixed_round=mixed_round,
            counted=counted_ids(counted),
        )
        raw = encode_header(header)
        self.own_head = SignedHeader(raw, context.sign(HEADER, raw))
        return self.own_head
