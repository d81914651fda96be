"""How a public model becomes a payload and back. One codec for now, in a table by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np
from torch import Tensor

from crypto.hashing import leaf_digests, root
from node.errors import MalformedFrame
from node.learning.vector import as_bytes, from_buffer
from node.types.events import Payload
from node.types.messages import INLINE_BYTES

_BLOCK: Final = 1 << 17  # floats: 512 KiB, whole leaves of the digest list and half a cache
# Below it a second thread costs more than it brings. With both cores idle 256 MB take .036 s in
# place of .043 s, for .059 s of CPU: the two wait for each other at Python's lock.
_SHARED_BYTES: Final = 8 << 20


class Codec(Protocol):
    """Turns the public model into a payload, and a payload into a replica."""

    name: str

    def encode(
        self, public: Tensor, *, keyframe: bool, source: Tensor | None = None
    ) -> Payload: ...
    def decode(self, payload: memoryview, *, size: int, base: Tensor | None) -> Tensor: ...


class Full:
    """The whole public model as little-endian float32: always a keyframe, 4 bytes a parameter.

    The payload is the model's own bytes, so its root is the model's digest.
    """

    name = "full"

    def encode(self, public: Tensor, *, keyframe: bool, source: Tensor | None = None) -> Payload:
        """Digests of ``public`` (P,), and its bytes where they fit into an Offer.

        ``source`` (P,), on any device: copied into ``public`` on the way. Every block is copied,
        checked and hashed while it is in the cache: memory is read once, not three times. A large
        model's blocks are shared with a second thread, which ends before this returns. Raises
        OverflowError where a value is not finite; ``public`` is then half written.
        """
        view = as_bytes(public)
        pieces = [b""] * -(-public.numel() // _BLOCK)
        numbers = iter(range(len(pieces)))  # whoever is free takes the next block
        if view.nbytes < _SHARED_BYTES:
            _encode_blocks(public, source, numbers, pieces)
        else:
            with ThreadPoolExecutor(1, thread_name_prefix="grapevine-encode") as second:
                other = second.submit(_encode_blocks, public, source, numbers, pieces)
                _encode_blocks(public, source, numbers, pieces)
                other.result()
        leaves = b"".join(pieces)
        digest = root(leaves, view.nbytes)
        return Payload(
            root=digest,
            model=digest,
            leaves=leaves,
            length=view.nbytes,
            codec=self.name,
            keyframe=True,
            inline=bytes(view) if view.nbytes <= INLINE_BYTES else None,
        )

    def decode(self, payload: memoryview, *, size: int, base: Tensor | None) -> Tensor:
        """The vector (size,) over the payload's own memory, unseen. Raises MalformedFrame."""
        if payload.nbytes != 4 * size:
            raise MalformedFrame(f"payload has {payload.nbytes} bytes, the model {4 * size}")
        return from_buffer(payload)


CODECS: Final[dict[str, Codec]] = {"full": Full()}


def _encode_blocks(
    public: Tensor, source: Tensor | None, numbers: Iterator[int], pieces: list[bytes]
) -> None:
    """Copy, check and hash blocks: the digests of the leaves of block i become ``pieces[i]``.

    In numpy: a tensor's slices hold Python's lock for longer, and the other thread waits for it.
    """
    view, into = as_bytes(public), public.numpy()
    values = source.numpy() if source is not None and source.device.type == "cpu" else None
    with np.errstate(over="ignore", invalid="ignore"):
        for number in numbers:
            at = number * _BLOCK
            block = into[at : at + _BLOCK]
            if values is not None:
                np.copyto(block, values[at : at + _BLOCK])
            elif source is not None:
                public[at : at + _BLOCK].copy_(source[at : at + _BLOCK])
            # a finite sum of squares has finite terms only; too large a sum decides nothing
            if not (math.isfinite(float(np.dot(block, block))) or np.isfinite(block).all()):
                raise OverflowError(f"a value from {at} on is not finite")
            pieces[number] = leaf_digests(view[4 * at : 4 * (at + _BLOCK)])


def finite(vector: Tensor) -> bool:
    """Whether every value is a finite number; block by block, stopping at the first that is not."""
    values = vector.numpy()
    step = 1 << 18  # the mask of a block stays in the cache
    return all(
        bool(np.isfinite(values[at : at + step]).all()) for at in range(0, len(values), step)
    )
