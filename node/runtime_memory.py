"""Whose replica lies in which memory, so that what a replica leaves behind serves the next payload.

Lives in the loop. A node of d neighbours comes to hold d replicas and one payload's memory more,
which is what it needs anyway while a payload comes in.
"""

from __future__ import annotations

from typing import Final

from crypto.identity import NodeId
from node.runtime_worker import Worker
from node.storage.spool import Spool
from node.types.messages import MiB

# Below this the allocator's own memory has been touched before.
RECYCLED_BYTES: Final = MiB


class ReplicaMemory:
    """The memory of the replicas of one node, whose payloads have ``length`` bytes."""

    def __init__(self, spool: Spool, length: int) -> None:
        self._spool = spool
        self._length = length
        self._held: dict[NodeId, memoryview] = {}
        self._preparing = False

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
