"""How a public model becomes a payload and back. One codec for now, in a table by name."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from torch import Tensor

from crypto.hashing import leaf_digests, root
from node.errors import MalformedFrame
from node.learning.vector import as_bytes, from_buffer
from node.types.events import Payload
from node.types.messages import INLINE_BYTES

_BLOCK: Final = 1 << 17  # floats: 512 KiB, whole leaves of the digest list and half a cache


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
        checked and hashed while it is in the cache: memory is read once, not three times. Raises
        OverflowError where a value is not finite; ``public`` is then half written.
        """
        view, pieces = as_bytes(public), []
        for at in range(0, public.numel(), _BLOCK):
            block = public[at : at + _BLOCK]
            if source is not None:
                block.copy_(source[at : at + _BLOCK])
            if not finite(block):
                raise OverflowError(f"a value from {at} on is not finite")
            pieces.append(leaf_digests(view[4 * at : 4 * (at + _BLOCK)]))
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
        """The vector (size,) over the payload's own memory. Raises MalformedFrame."""
        if payload.nbytes != 4 * size:
            raise MalformedFrame(f"payload has {payload.nbytes} bytes, the model {4 * size}")
        vector = from_buffer(payload)
        if not finite(vector):
            raise MalformedFrame("payload holds values that are not finite numbers")
        return vector


CODECS: Final[dict[str, Codec]] = {"full": Full()}


def finite(vector: Tensor) -> bool:
    """Whether every value is a finite number; block by block, stopping at the first that is not."""
    values = vector.numpy()
    step = 1 << 18  # the mask of a block stays in the cache
    return all(
        bool(np.isfinite(values[at : at + step]).all()) for at in range(0, len(values), step)
    )
