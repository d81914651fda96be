"""Where payloads lie while they come in and as replicas; what one leaves behind serves the next.

Lives in the loop. A node of d neighbours comes to hold d replicas and one payload's memory more,
which is what it needs anyway while a payload comes in.
"""

from __future__ import annotations

from typing import Final

from crypto.identity import NodeId
from node.learning.vector import squares
from node.runtime_worker import Worker
from node.storage.spool import Spool
from node.types.events import Apply, DropPayload, StoreChunk
from node.types.messages import MiB

# Below this the allocator's own memory has been touched before.
RECYCLED_BYTES: Final = MiB


class ReplicaMemory:
    """The memory of the replicas of one node, whose payloads have ``length`` bytes.

    A chunk's squares are summed when it is stored, while it is in the cache, for the learner's
    check of the norm: the whole payload need not be read again.
    """

    def __init__(self, spool: Spool, length: int) -> None:
        self._spool = spool
        self._length = length
        self._held: dict[NodeId, memoryview] = {}
        # by (member, root): offset -> bytes, sum of squares
        self._sums: dict[tuple[NodeId, bytes], dict[int, tuple[int, float]]] = {}
        self._preparing = False

    def store(self, effect: StoreChunk) -> None:
        """Keep verified bytes. Raises what ``Spool.store`` raises."""
        member, root, offset = effect.member, effect.root, effect.offset
        place = self._spool.store(member, root, offset, effect.length, effect.data)
        if len(place) % 4 == 0:
            sums = self._sums.setdefault((member, root), {})
            sums[offset] = len(place), squares(place)

    def take(self, effect: Apply) -> tuple[memoryview, float | None]:
        """The payload that is to be applied, and its ``squares`` where all of it was summed."""
        payload = self._spool.take(effect.member, effect.root)
        sums = sorted(self._sums.pop((effect.member, effect.root), {}).items())
        if sum(size for _, (size, _) in sums) != payload.nbytes:
            return payload, None
        return payload, sum(total for _, (_, total) in sums)

    def drop(self, effect: DropPayload) -> None:
        """Forget a payload, whole or in part."""
        self._sums.pop((effect.member, effect.root), None)
        self._spool.drop(effect.member, effect.root)

    def applied(self, member: NodeId, payload: memoryview, *, ok: bool) -> None:
        """``payload`` took the place of this member's replica, or (not ``ok``) there is none now.

        The core mixes nothing while a version is applied, and links copy what they are given: so
        nobody reads the memory of the old one any more.
        """
        self.forgotten(member)
        self._held[member] = payload
        if not ok:
            self.forgotten(member)

    def forgotten(self, member: NodeId) -> None:
        """The learner has let go of this member's replica."""
        memory = self._held.pop(member, None)
        if memory is not None and memory.nbytes >= RECYCLED_BYTES:
            self._spool.recycle(memory)

    def stock(self, worker: Worker) -> None:
        """Have touched memory ready for the next payload, made by ``worker``; never a wait."""
        spool, length = self._spool, self._length
        if length < RECYCLED_BYTES or self._preparing or spool.has_spare(length):
            return
        self._preparing = True

        def done(memory: memoryview | None) -> None:
            self._preparing = False
            if memory is not None and not spool.has_spare(length):
                spool.recycle(memory)

        worker.run(lambda: spool.prepare(length), done)
