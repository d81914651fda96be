"""The wire's vocabulary: every frame as a msgspec struct, with its bounds.

A frame is one version byte and one form byte. Form 0, a message: CRC-32 of the body (4 bytes, big
endian), then the body, one MessagePack array whose first element is the kind. Form 1, a chunk:
root (32 bytes), index (4 bytes, big endian), data; it is kept out of MessagePack so that nobody
copies it. `docs/protocol.md` gives both byte by byte.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

VERSION = 1

KiB = 1024
MiB = 1024 * KiB

LEAF_BYTES = 64 * KiB
CHUNK_BYTES = 512 * KiB  # eight leaves
INLINE_BYTES = 64 * KiB
FRAME_BYTES_MAX = MiB + 64 * KiB
# 32 bytes a leaf: one Offer of at most FRAME_BYTES_MAX can list 2**15 leaves, a payload of 2 GiB
LEAVES_MAX = 2**15
PAYLOAD_BYTES_MAX = LEAVES_MAX * LEAF_BYTES
CREDIT_LINK_BYTES = 8 * MiB
CREDIT_NODE_BYTES = 64 * MiB
HEADS_MAX = 64

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
BootId = Annotated[bytes, Meta(min_length=16, max_length=16)]
IdPrefix = Annotated[bytes, Meta(min_length=8, max_length=8)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U53 = Annotated[int, Meta(ge=0, lt=2**53)]
Why = Annotated[str, Meta(max_length=200)]
HeaderBytes = Annotated[bytes, Meta(max_length=40 * KiB)]

KEYFRAME = 0
DELTA = 1
PRESENCE = 2  # "I am here, in this training", or "I have finished"; no payload


class Header(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a publisher signs, once, the same bytes for every neighbour."""

    consortium: Digest
    epoch: U32
    training: Digest
    sender: Id
    key_version: U32
    incarnation: U53  # ms since 1970, or more
    boot_id: BootId
    round: U32
    kind: Annotated[int, Meta(ge=0, le=2)]
    version: U53
    base: U53 | None
    codec: Annotated[str, Meta(max_length=32)]
    length: Annotated[int, Meta(ge=0, le=PAYLOAD_BYTES_MAX)]
    root: Digest
    model: Digest
    # members (first 8 bytes of their ids) whose edge counted in the sender's last mixed round
    mixed_round: U32
    counted: Annotated[tuple[IdPrefix, ...], Meta(max_length=4096)]


class SignedHeader(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Header bytes exactly as signed, and the detached Ed25519 signature over them."""

    header: HeaderBytes
    signature: Signature


class Hello(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """First frame of a link, both ways: what must agree, and where the sender stands."""

    consortium: Digest
    epoch: U32
    training: Digest
    schema: Digest
    initial: Digest
    code: Digest
    incarnation: U53
    boot_id: BootId
    round: U32
    # the receiver's own latest header as the sender knows it: proves an incarnation used before
    yours: SignedHeader | None


class Offer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A version to be had: signed header, leaf digests, and the payload itself up to 64 KiB."""

    signed: SignedHeader
    leaves: Annotated[bytes, Meta(max_length=32 * LEAVES_MAX)]
    payload: Annotated[bytes, Meta(max_length=INLINE_BYTES)] | None


class Want(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Asks for chunks [first, first + count) of a payload. It is the credit to send them."""

    root: Digest
    first: U32
    count: Annotated[int, Meta(ge=1, le=CREDIT_LINK_BYTES // CHUNK_BYTES)]


class Chunk(Struct, frozen=True):
    """One chunk of a payload, decoded from a form 1 frame; ``data`` is a view into it."""

    root: bytes
    index: int
    data: memoryview


class Have(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """The receiver applied (or refused, and why) a version of the frame's receiver."""

    incarnation: U53
    boot_id: BootId
    version: U53
    ok: bool
    why: Why


class Gone(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """The payload asked for is no longer kept."""

    root: Digest


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Please offer the newest keyframe you hold of this member (yourself included)."""

    member: Id


class Heads(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """Signed heads that the sender knows: how far members are, and what they published."""

    heads: Annotated[tuple[SignedHeader, ...], Meta(max_length=HEADS_MAX)]


class Ping(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """Something to hear on a quiet link. Not answered."""


class Bye(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=9):
    """The sender leaves this link on purpose, and says why."""

    why: Why


class Score(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One candidate's validation metric at one member."""

    round: U32
    value: float
    rows: U32


class Ballot(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member's signed statement for keep = "agreed": how each candidate round scored with it."""

    consortium: Digest
    training: Digest
    sender: Id
    incarnation: U53
    scores: Annotated[tuple[Score, ...], Meta(max_length=16)]


class SignedBallot(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    ballot: Annotated[bytes, Meta(max_length=4 * KiB)]
    signature: Signature


class Ballots(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=10):
    """Ballots that the sender knows; flooded once each."""

    ballots: Annotated[tuple[SignedBallot, ...], Meta(max_length=HEADS_MAX)]


Message = Hello | Offer | Want | Have | Gone | Ask | Heads | Ping | Bye | Ballots
