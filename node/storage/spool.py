"""Incoming payloads while their chunks arrive: in memory up to a bound, above it in mapped files.

A whole payload is handed over without a copy and becomes a replica; nothing here outlives the
process, since the files have no name. The memory of a replica that was replaced comes back and
serves the next payload: touching fresh pages costs more than TLS does (up to 3 s/GB on a virtual
machine), and a file's pages have to be touched again whenever the kernel has written them out.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from crypto.identity import NodeId
from node.errors import LocalProtocolError, StorageError
from node.types.messages import CREDIT_NODE_BYTES, PAYLOAD_BYTES_MAX

MEMORY_BYTES: Final = CREDIT_NODE_BYTES  # 64 MiB a node
_TOUCHED_BYTES: Final = 1 << 20  # at a time


class _Filed(mmap.mmap):
    """Backed by an unlinked file."""


class Spool:
    """Payloads by (member, root): two members may publish equal ones."""

    def __init__(self, directory: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._payloads: dict[tuple[NodeId, bytes], bytearray | mmap.mmap] = {}
        self.in_memory_bytes = 0  # of payloads that are not taken yet
        self._spare: bytearray | mmap.mmap | None = None  # for the next payload of its length

    def sweep(self) -> None:
        """On start: remove what a process left that died between making and unlinking a file."""
        try:
            for path in self._directory.iterdir():
                path.unlink()
        except OSError as error:
            raise StorageError(f"{self._directory}: {error.strerror or error}") from None

    def store(
        self, member: NodeId, root: bytes, offset: int, length: int, data: bytes | memoryview
    ) -> memoryview:
        """Copy verified bytes to their place in a payload of ``length`` bytes: a view of it.

        Raises StorageError on a full disk, LocalProtocolError where the bytes do not fit.
        """
        payload = self._payloads.get((member, root))
        if payload is None:
            if not 0 <= length <= PAYLOAD_BYTES_MAX:
                raise LocalProtocolError(f"a payload of {length} bytes was not refused in time")
            payload = self._payloads[member, root] = self._allocate(length)
        if len(payload) != length:
            raise LocalProtocolError(f"one payload, two lengths: {len(payload)} and {length}")
        size = len(data)
        if not 0 <= offset <= offset + size <= length:
            raise LocalProtocolError(f"bytes {offset} to {offset + size} of a payload of {length}")
        place = memoryview(payload)[offset : offset + size]
        place[:] = data
        return place

    def take(self, member: NodeId, root: bytes) -> memoryview:
        """Hand the payload over: a writable view that owns its memory. The spool forgets it.

        Raises LocalProtocolError where there is none.
        """
        return memoryview(self._remove(member, root))

    def drop(self, member: NodeId, root: bytes) -> None:
        """Forget a payload, whole or in part; nothing happens where there is none."""
        if (member, root) in self._payloads:
            self._remove(member, root)

    @staticmethod
    def prepare(length: int) -> memoryview | None:
        """Memory for one payload, to be given to ``recycle``; its pages are touched already.

        Slow (0.3 to 3 s/GB), so for a thread of its own: it shares nothing with any spool. None
        where the machine does not grant as much: the payload will lie in a file.
        """
        try:
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without them: more faults, and as good
                    memory.madvise(mmap.MADV_HUGEPAGE)
            view = memoryview(memory)
            # the kernel touches them, without Python's lock: the loop goes on meanwhile
            with Path("/dev/zero").open("rb", buffering=0) as zeros:
                for at in range(0, length, _TOUCHED_BYTES):
                    zeros.readinto(view[at : at + _TOUCHED_BYTES])
        except OSError:
            return None
        return view

    def recycle(self, payload: memoryview) -> None:
        """Take back what ``take`` or ``prepare`` gave; nobody may look at it any more.

        One is kept, and no file: the kernel would go on writing it out.
        """
        memory = payload.obj
        if isinstance(memory, bytearray | mmap.mmap) and not isinstance(memory, _Filed):
            self._spare = memory

    def has_spare(self, length: int) -> bool:
        """Whether the next payload of ``length`` bytes finds memory that was touched before."""
        return self._spare is not None and len(self._spare) == length

    def close(self) -> None:
        """Forget all."""
        self._payloads.clear()
        self._spare = None
        self.in_memory_bytes = 0

    def __len__(self) -> int:
        return len(self._payloads)

    def _remove(self, member: NodeId, root: bytes) -> bytearray | mmap.mmap:
        payload = self._payloads.pop((member, root), None)
        if payload is None:
            raise LocalProtocolError(f"no payload {root[:8].hex()} in the spool")
        if isinstance(payload, bytearray):
            self.in_memory_bytes -= len(payload)
        return payload

    def _allocate(self, length: int) -> bytearray | mmap.mmap:
        if self._spare is not None and self.has_spare(length):
            spare, self._spare = self._spare, None
            if isinstance(spare, bytearray):
                self.in_memory_bytes += length
            return spare
        if self.in_memory_bytes + length <= self._memory_bytes:
            self.in_memory_bytes += length
            return bytearray(length)
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                # reserve the blocks now: a full disk is an error here, a SIGBUS later
                os.posix_fallocate(file.fileno(), 0, length)
                return _Filed(file.fileno(), length)
        except OSError as error:
            raise StorageError(
                f"{self._directory}: no room for a payload of {length} bytes: "
                f"{error.strerror or error}"
            ) from None
