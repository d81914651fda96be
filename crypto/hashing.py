"""Digests of large buffers: BLAKE3 over 64 KiB leaves, and one root over the list of them.

A receiver checks each chunk against its leaves as it arrives; the root stands in the signed header.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

LEAF: Final = 65536  # bytes
DIGEST_BYTES: Final = 32
_ROOT: Final = b"grapevine/1 root\x00"


def leaf_digests(buffer: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte digests of the 64 KiB leaves of ``buffer``, joined; none for an empty one."""
    view = memoryview(buffer).cast("B")
    return b"".join(
        blake3(view[start : start + LEAF]).digest() for start in range(0, len(view), LEAF)
    )


def root(leaves: bytes, length: int) -> bytes:
    """The root (32 bytes) over joined leaf digests of a buffer of ``length`` bytes."""
    return blake3(_ROOT + length.to_bytes(8, "big") + leaves).digest()


def tree_digest(buffer: bytes | bytearray | memoryview) -> bytes:
    """``root(leaf_digests(buffer), len(buffer))``: the digest of a model."""
    view = memoryview(buffer).cast("B")
    return root(leaf_digests(view), len(view))
