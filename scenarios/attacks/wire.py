"""Attacks by what leaves the wire: headers, payloads, numbers and amounts that should not be.

Each rewrites the frames of a node that is honest otherwise. ``scale`` None stands for the number
beside each.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from msgspec import structs

from crypto.hashing import leaf_digests, root, tree_digest
from crypto.identity import NodeId, SigningKey
from crypto.purposes import HEADER, STATEMENT
from node.errors import RemoteProtocolError
from node.protocol.frames import chunk_prefix, decode, decode_header, encode, encode_header
from node.protocol.publisher import counted_ids
from node.types.messages import (
    HEADS_MAX,
    LEAF_BYTES,
    PRESENCE,
    Chunk,
    Have,
    Header,
    Heads,
    Hello,
    Message,
    Offer,
    SignedHeader,
    Want,
)
from scenarios.attacks.attacker import Attacker, Insider, Make, Taken

RECORDED_MAX: Final = 64  # frames that a replay has to choose from, of each kind


class WireAttacker(Attacker):
    """Rewrites its own offers, one method for each; other messages pass."""

    def said(self, peer: NodeId, message: Message, frame: bytes) -> tuple[bytes, ...]:
        if isinstance(message, Offer) and self._own(message.signed):
            return self.offered(peer, message, frame)
        return (frame,)

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        """What leaves for ``peer`` in the place of an offer of the own model."""
        return (frame,)

    def signed(self, header: Header, **changes: Any) -> SignedHeader:
        """``header`` with ``changes``, properly signed by this member."""
        raw = encode_header(structs.replace(header, **changes))
        return SignedHeader(raw, self.insider.sign(HEADER, raw))

    def _own(self, signed: SignedHeader) -> bool:
        return decode_header(signed.header).sender == self.insider.me


def _told(offer: Offer, signed: SignedHeader) -> bytes:
    return encode(structs.replace(offer, signed=signed))


class _Payload(WireAttacker, ABC):
    """Offers another payload, properly signed: the own one with its first 64 KiB altered.

    A payload that goes out in chunks is offered under the lie's root; what is asked for under that
    root the own node is asked for under its own, and the first chunk is altered on its way.
    """

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        super().__init__(insider, scale)
        # by peer: the lie's root, the true one, the altered leaf
        self._lies: dict[NodeId, tuple[bytes, bytes, bytes]] = {}

    @abstractmethod
    def altered(self, peer: NodeId, leaf: bytes) -> bytes:
        """The first leaf as ``peer`` is told it; as long as it was."""

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        leaf = offer.payload or self.insider.chunk(header.root, 0, LEAF_BYTES)
        if leaf is None:
            return (frame,)
        lie = self.altered(peer, bytes(leaf[:LEAF_BYTES]))
        leaves = leaf_digests(lie) + offer.leaves[32:]
        false = root(leaves, header.length)
        self._lies[peer] = (false, header.root, lie)
        payload = None if offer.payload is None else lie
        return (encode(Offer(self.signed(header, root=false, model=false), leaves, payload)),)

    def chunk(self, peer: NodeId, frame: bytes) -> bytes:
        chunk = decode(frame)
        lie = self._lies.get(peer)
        if not isinstance(chunk, Chunk) or lie is None or lie[1] != chunk.root:
            return frame
        data = bytes(chunk.data)
        if chunk.index == 0:
            data = lie[2] + data[len(lie[2]) :]
        return chunk_prefix(lie[0], chunk.index) + data

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        lie, message = self._lies.get(peer), _read(frame)
        if isinstance(message, Want) and lie is not None and message.root == lie[0]:
            return Taken(encode(structs.replace(message, root=lie[1])))
        return Taken(frame)


def _read(frame: bytes) -> Message | Chunk | None:
    """What came, or nothing where it is damaged."""
    try:
        return decode(frame)
    except RemoteProtocolError:
        return None


def _first(leaf: bytes, value: float) -> bytes:
    """The leaf with another first value."""
    return struct.pack("<f", value) + leaf[4:]


class Equivocation(_Payload):
    """Another model for each neighbour under one version: its first value is off by scale (1)."""

    def altered(self, peer: NodeId, leaf: bytes) -> bytes:
        (value,) = struct.unpack_from("<f", leaf)
        return _first(leaf, value + self.insider.neighbours.index(peer) * (self.scale or 1.0))


class NotANumber(_Payload):
    """The first value is NaN."""

    def altered(self, peer: NodeId, leaf: bytes) -> bytes:
        return _first(leaf, float("nan"))


class Infinite(_Payload):
    """The first value is infinite."""

    def altered(self, peer: NodeId, leaf: bytes) -> bytes:
        return _first(leaf, float("inf"))


class WrongShape(WireAttacker):
    """One value more than the schema has, properly signed."""

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        more = bytes(4)
        if offer.payload is None:  # nobody will fetch it: the end of its last leaf may be anything
            leaves, payload = offer.leaves[:-32] + leaf_digests(more), None
        else:
            payload = offer.payload + more
            leaves = leaf_digests(payload)
        length = header.length + len(more)
        false = root(leaves, length)
        signed = self.signed(header, length=length, root=false, model=false)
        return (encode(Offer(signed, leaves, payload)),)


class WrongDigest(WireAttacker):
    """Bytes that the digests do not name, digests that the root does not, or a root and a model.

    One of the three each time, by chance.
    """

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        super().__init__(insider, scale)
        self._garbles: dict[NodeId, bytes] = {}  # by peer: the root whose chunks are damaged

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        self._garbles.pop(peer, None)
        match self.rng.randrange(3):
            case 0 if offer.payload is None:
                self._garbles[peer] = header.root
                return (frame,)
            case 0:
                return (encode(structs.replace(offer, payload=_flipped(offer.payload or b""))),)
            case 1:
                other = offer.payload and _flipped(offer.payload)
                leaves = leaf_digests(other) if other else _flipped(offer.leaves)
                return (encode(Offer(offer.signed, leaves, other)),)
        return (_told(offer, self.signed(header, model=tree_digest(b"another model"))),)

    def chunk(self, peer: NodeId, frame: bytes) -> bytes:
        chunk = decode(frame)
        if isinstance(chunk, Chunk) and self._garbles.get(peer) == chunk.root:
            return chunk_prefix(chunk.root, chunk.index) + _flipped(bytes(chunk.data))
        return frame


def _flipped(data: bytes) -> bytes:
    """With one bit of its first byte the other way round."""
    return bytes((data[0] ^ 1,)) + data[1:]


class Forged(WireAttacker):
    """Its own offers under a key that is not its own, and heads that others never signed.

    Those contradict what their member published: who believed them would accuse the innocent.
    """

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        super().__init__(insider, scale)
        self._key = SigningKey.from_seed(self.rng.randbytes(32))
        self._known: dict[NodeId, Header] = {}

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        heads = [
            self._forge(structs.replace(header, model=self.rng.randbytes(32)))
            for member, header in sorted(self._known.items())
            if member != peer
        ]
        own = self._forge(decode_header(offer.signed.header))
        return (_told(offer, own), encode(Heads(tuple(heads[:HEADS_MAX]))))

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        message = _read(frame)
        if isinstance(message, Offer):
            header = decode_header(message.signed.header)
            if header.sender == peer:
                self._known[peer] = header
        return Taken(frame)

    def _forge(self, header: Header) -> SignedHeader:
        raw = encode_header(header)
        return SignedHeader(raw, self._key.sign(HEADER, raw))


class Foreign(WireAttacker):
    """Its own offers under a valid signature that was made for something else.

    Another epoch, consortium, training, key version, or purpose: one each time, by chance.
    """

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        other = self.rng.randbytes(32)
        choices: tuple[dict[str, Any], ...] = (
            {"epoch": header.epoch + 1},
            {"consortium": other},
            {"training": other},
            {"key_version": header.key_version + 1},
        )
        place = self.rng.randrange(len(choices) + 1)
        if place < len(choices):
            return (_told(offer, self.signed(header, **choices[place])),)
        raw = offer.signed.header
        return (_told(offer, SignedHeader(raw, self.insider.sign(STATEMENT, raw))),)


class StaleVersion(WireAttacker):
    """The version goes back: its newest model under a number it has used, scale lower (3)."""

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        version = max(1, header.version - int(self.scale or 3))
        return (_told(offer, self.signed(header, version=version)),)


class OldBoot(WireAttacker):
    """Two boots at once: its offers under its incarnation and another boot id, or the one before.

    Every other offer, so that neighbours know the newer boot.
    """

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        if header.version % 2:
            return (frame,)
        back = self.rng.randrange(2)
        other = self.signed(
            header, incarnation=header.incarnation - back, boot_id=self.rng.randbytes(16)
        )
        return (_told(offer, other),)


class Jump(WireAttacker):
    """Everything it signs is labelled with the training's last round, at times beyond it."""

    def said(self, peer: NodeId, message: Message, frame: bytes) -> tuple[bytes, ...]:
        last = self.insider.last_round
        match message:
            case Hello():
                return (encode(structs.replace(message, round=last)),)
            case Heads():
                heads = tuple(self._ahead(s, last) if self._own(s) else s for s in message.heads)
                return (encode(Heads(heads)),)
        return super().said(peer, message, frame)

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        label = self.insider.last_round + (1000 if self.rng.random() < 0.25 else 0)
        return (_told(offer, self._ahead(offer.signed, label)),)

    def _ahead(self, signed: SignedHeader, label: int) -> SignedHeader:
        return self.signed(decode_header(signed.header), round=label)


class InflatedHeads(WireAttacker):
    """With each offer heads of versions that do not exist: finished, counted by everybody."""

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        last = self.insider.last_round
        heads = tuple(
            self.signed(
                header,
                kind=PRESENCE,
                version=header.version + ahead,
                round=last,
                mixed_round=last,
                counted=counted_ids(self.insider.neighbours),
            )
            for ahead in range(1, int(self.scale or 4) + 1)
        )
        return (frame, encode(Heads(heads[:HEADS_MAX])))


class LyingHave(WireAttacker):
    """Acknowledges every version offered to it at once, and never looks at one."""

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        message = _read(frame)
        if not isinstance(message, Offer):
            return Taken(frame)
        header = decode_header(message.signed.header)
        if header.sender != peer:
            return Taken(frame)
        have = Have(header.incarnation, header.boot_id, header.version, True, "")
        return Taken(None, (encode(have),))


class Replay(WireAttacker):
    """With each offer, in any order, its own old ones, earlier boots' too, and what others sent."""

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        super().__init__(insider, scale)
        self._mine: deque[bytes] = deque(maxlen=RECORDED_MAX)
        self._heard: deque[bytes] = deque(maxlen=RECORDED_MAX)

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        frames = [frame]
        if self._mine:
            frames += [self._mine[0], self.rng.choice(self._mine)]
        if self._heard:
            frames += [self._heard[0], self.rng.choice(self._heard)]
        if not self._mine or self._mine[-1] != frame:
            self._mine.append(frame)
        self.rng.shuffle(frames)  # who has lost its floor must not be told the newest first
        return tuple(frames)

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        if isinstance(_read(frame), Offer | Heads | Have):
            self._heard.append(frame)
        return Taken(frame)


class Flood(WireAttacker):
    """One neighbour gets scale frames more with each offer (700): it again, and garbage between."""

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        if peer != self.insider.neighbours[0]:
            return (frame,)
        garbage = frame[:2] + self.rng.randbytes(32)
        return tuple(
            garbage if number % 8 == 7 else frame for number in range(1 + int(self.scale or 700))
        )


class OverCredit(WireAttacker):
    """Asks for scale times (100) what it needs not, and sends chunks that nobody asked for."""

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        super().__init__(insider, scale)
        self._offered: dict[NodeId, bytes] = {}  # by peer: root of its newest payload

    def offered(self, peer: NodeId, offer: Offer, frame: bytes) -> tuple[bytes, ...]:
        header = decode_header(offer.signed.header)
        frames = [frame]
        if peer in self._offered:
            frames += [encode(Want(self._offered[peer], 0, 1))] * int(self.scale or 100)
        data = offer.payload or self.insider.chunk(header.root, 0, LEAF_BYTES) or bytes(LEAF_BYTES)
        frames.append(chunk_prefix(header.root, 0) + bytes(data))
        return tuple(frames)

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        message = _read(frame)
        if isinstance(message, Offer):
            self._offered[peer] = decode_header(message.signed.header).root
        return Taken(frame)


WIRE: Final[Mapping[str, Make]] = {
    "flood": Flood,
    "replay": Replay,
    "equivocation": Equivocation,
    "forged": Forged,
    "foreign": Foreign,
    "wrong-shape": WrongShape,
    "wrong-digest": WrongDigest,
    "nan": NotANumber,
    "inf": Infinite,
    "over-credit": OverCredit,
    "stale-version": StaleVersion,
    "old-boot": OldBoot,
    "lying-have": LyingHave,
    "jump": Jump,
    "inflated-heads": InflatedHeads,
}
