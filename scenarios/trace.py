"""The trace of a run as two digests: what happened to whom when, with and without the contents."""

from __future__ import annotations

import struct
from typing import Final

from blake3 import blake3

from node.types import events

# The codes are part of the hash: new kinds go to the end.
KINDS: Final[dict[type, int]] = {
    kind: code
    for code, kind in enumerate(
        (
            events.Start,
            events.LinkUp,
            events.LinkDown,
            events.DialFailed,
            events.Frame,
            events.Wake,
            events.Trained,
            events.Encoded,
            events.Applied,
            events.Mixed,
            events.Rebased,
            events.Finalised,
            events.Persisted,
            events.Stop,
        )
    )
}
CRASH: Final = 64
RESTART: Final = 65
_ENTRY = struct.Struct(">QIB")  # virtual ns, node, kind
_FLUSH_BYTES: Final = 1 << 16


class Trace:
    """Two running BLAKE3 digests over (virtual ns, node, event kind) and, in one, the contents."""

    def __init__(self) -> None:
        self._full, self._schedule = blake3(), blake3()
        self._contents, self._times = bytearray(), bytearray()

    def add(self, ns: int, node: int, kind: int, digest: bytes = b"") -> None:
        """One event. ``digest``: of the frame or model that came with it, for the trace alone."""
        entry = _ENTRY.pack(ns, node, kind)
        self._times += entry
        self._contents += entry
        self._contents += digest
        if len(self._times) > _FLUSH_BYTES:
            self._flush()

    def finish(self, models: list[bytes]) -> tuple[str, str]:
        """(trace hash, schedule hash) in hex; ``models``: digests of the nodes' final models."""
        for model in models:
            self._contents += model
        self._flush()
        return self._full.hexdigest(), self._schedule.hexdigest()

    def _flush(self) -> None:
        self._full.update(bytes(self._contents))
        self._schedule.update(bytes(self._times))
        self._contents.clear()
        self._times.clear()
