"""What received bytes say: frames, signed headers, digests. Every answer depends on them alone.

A core reads through the Reader that it is given, so that a shell with many cores in one process may
hand all of them one that answers a second time from memory: equal bytes, equal answer. A damaged or
forged copy has other bytes, and is read anew.
"""

from __future__ import annotations

from crypto.hashing import leaf_digests, root
from node.protocol.frames import decode, decode_header
from node.types.messages import Chunk, Header, Message, SignedHeader


class Head:
    """A header as signed and as parsed; verified once a HeadBook gave it out. Never changed."""

    __slots__ = ("header", "order", "place", "signed")

    def __init__(self, signed: SignedHeader, header: Header) -> None:
        self.signed, self.header = signed, header
        # newer heads compare greater
        self.order = (header.incarnation, header.version, header.mixed_round)
        # two heads of one place with different models contradict each other
        self.place = (header.version, header.incarnation, header.boot_id)


class Reader:
    """Reads anew every time. Raises MalformedFrame for what is not exactly one of ours."""

    def message(self, frame: bytes | memoryview) -> Message | Chunk:
        """The message in a frame, or a chunk whose data is a view into it."""
        return decode(frame)

    def head(self, signed: SignedHeader) -> Head:
        """A signed header parsed; nothing in it is believed yet."""
        return Head(signed, decode_header(signed.header))

    def leaves(self, payload: bytes | memoryview) -> bytes:
        """The digests of a whole payload's 64 KiB leaves, 32 bytes each."""
        return leaf_digests(payload)

    def root(self, leaves: bytes, length: int) -> bytes:
        """The digest (32 bytes) of a payload of ``length`` bytes, from its leaves' digests."""
        return root(leaves, length)
