"""What a simulation works out once, though every node of it checks for itself.

Each answer is a pure function of the bytes asked about, and is remembered under exactly those
bytes: a copy with one bit flipped is another question, and is answered anew. So a check that many
nodes make of the same bytes costs once, and none is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from torch import Tensor

from crypto.hashing import leaf_digests, root
from crypto.identity import verify
from node.protocol.reading import Head, Reader
from node.types.messages import Chunk, Heads, Message, SignedHeader

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# What is asked about again is asked soon: within the flight of a frame, or the life of a head.
# Twice these are kept at most: a round's frames of 10,000 digits models (10 kB each) fit in.
FRAME_BYTES: Final = 64 << 20
HEADS: Final = 100_000  # some 100 MB


class Recent(Generic[K, V]):
    """The latest answers, up to ``most`` (each weighing as much as is said), and as many before."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self.young: dict[K, V] = {}  # to be asked first, by the caller itself: that is quickest
        self._old: dict[K, V] = {}

    def again(self, key: K, weight: int = 1) -> V | None:
        """The answer where it is older, which makes it young again."""
        found = self._old.get(key)
        return None if found is None else self.keep(key, found, weight)

    def keep(self, key: K, value: V, weight: int = 1) -> V:
        self._held += weight
        if self._held > self._most:
            self._old, self.young, self._held = self.young, {}, weight
        self.young[key] = value
        return value


class Memory(Reader):
    """The reader, the signature verifier and the digests of all nodes of one simulation."""

    def __init__(self) -> None:
        self._messages: Recent[bytes, Message | Chunk] = Recent(FRAME_BYTES)
        self._heads: Recent[bytes, Head] = Recent(HEADS)
        self._verified: Recent[tuple[bytes, str, bytes, bytes], bool] = Recent(HEADS)
        self._leaves: Recent[bytes, bytes] = Recent(FRAME_BYTES)
        self._payloads: Recent[bytes, bytes] = Recent(FRAME_BYTES)
        self._roots: Recent[tuple[bytes, int], bytes] = Recent(HEADS)
        self._vectors: Recent[bytes, Tensor] = Recent(FRAME_BYTES)

    def message(self, frame: bytes | memoryview) -> Message | Chunk:
        assert isinstance(frame, bytes)
        memory = self._messages
        found = memory.young.get(frame) or memory.again(frame, len(frame))
        if found is None:
            found = super().message(frame)
            if isinstance(found, Chunk):
                return found  # half a megabyte for one node alone
            if isinstance(found, Heads):
                # one object for equal heads, or each node would keep copies of its own
                found = Heads(tuple(self._one(signed) for signed in found.heads))
            memory.keep(frame, found, len(frame))
        return found

    def head(self, signed: SignedHeader) -> Head:
        memory = self._heads
        found = memory.young.get(signed.signature) or memory.again(signed.signature)
        if found is not None and found.signed.header == signed.header:
            return found
        return memory.keep(signed.signature, super().head(signed))

    def _one(self, signed: SignedHeader) -> SignedHeader:
        found = self._heads.young.get(signed.signature)
        same = found is not None and found.signed.header == signed.header
        return found.signed if found is not None and same else signed

    def verify(self, public: bytes, purpose: str, message: bytes, signature: bytes) -> bool:
        """crypto.identity.verify."""
        key = (public, purpose, message, signature)
        memory = self._verified
        found = memory.young.get(key)
        if found is None:
            found = memory.again(key)
        return memory.keep(key, verify(*key)) if found is None else found

    def root(self, leaves: bytes, length: int) -> bytes:
        memory = self._roots
        key = (leaves, length)
        found = memory.young.get(key) or memory.again(key)
        return found or memory.keep(key, root(leaves, length))

    def leaves(self, payload: bytes | memoryview) -> bytes:
        if not isinstance(payload, bytes):
            return super().leaves(payload)
        memory = self._leaves
        found = memory.young.get(payload) or memory.again(payload, len(payload))
        return found or memory.keep(payload, leaf_digests(payload), len(payload))

    def whole(self, root: bytes, payload: bytes | bytearray | memoryview) -> bytes:
        """One object for all equal payloads of this root: receivers share it and copy nothing."""
        memory = self._payloads
        found = memory.young.get(root) or memory.again(root, len(payload))
        if found is not None and found == payload:
            return found
        return memory.keep(root, bytes(payload), len(payload))

    def tree_digest(self, payload: bytes | bytearray | memoryview) -> bytes:
        """crypto.hashing.tree_digest."""
        if not isinstance(payload, bytes):
            return root(leaf_digests(payload), memoryview(payload).nbytes)
        return self.root(self.leaves(payload), len(payload))

    def checked(self, check: Callable[[memoryview], Tensor], payload: memoryview) -> Tensor:
        """``check(payload)``, where the same payload passed before its very vector.

        Only for learners that check alike: of one initial model, one codec and one bound.
        """
        whole = payload.obj
        if not isinstance(whole, bytes) or payload.nbytes != len(whole):
            return check(payload)
        memory = self._vectors
        found = memory.young.get(whole)
        if found is None:
            found = memory.again(whole, len(whole))
        return memory.keep(whole, check(payload), len(whole)) if found is None else found
