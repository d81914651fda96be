"""The digest of a payload: BLAKE3 over a flat list of the digests of its 64 KiB leaves.

The list lets a receiver check every chunk on arrival and in any order; the root binds the list
and the total length. One thread here; who has a large model to hash shares its pieces among two.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

LEAF: Final = 65536  # bytes; the wire's LEAF_BYTES

# BLAKE3's key derivation mode separates a root from the digest of a leaf with the same bytes.
_ROOT_CONTEXT: Final = "grapevine/1 payload root"


def leaf_digests(buffer: bytes | bytearray | memoryview) -> bytes:
    """The BLAKE3 digests (32 bytes each) of the 64 KiB leaves of ``buffer``, concatenated.

    The last leaf may be shorter; no bytes have no leaves. ``buffer``: any C-contiguous buffer.
    """
    view = memoryview(buffer)
    if not view.nbytes:
        return b""
    view = view.cast("B")
    return b"".join(
        [blake3(view[start : start + LEAF]).digest() for start in range(0, len(view), LEAF)]
    )


def root(leaves: bytes | memoryview, length: int) -> bytes:
    """The payload's root (32 bytes), from its leaves' digests and its ``length`` in bytes."""
    hasher = blake3(length.to_bytes(8, "little"), derive_key_context=_ROOT_CONTEXT)
    return hasher.update(leaves).digest()


def tree_digest(buffer: bytes | bytearray | memoryview) -> bytes:
    """The root of a whole buffer: ``root(leaf_digests(buffer), length)``."""
    return root(leaf_digests(buffer), memoryview(buffer).nbytes)
