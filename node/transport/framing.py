"""Frames on a byte stream: a 4-byte big-endian length, then the frame. No I/O here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from node.errors import MalformedFrame, OutOfBounds
from node.types.messages import FRAME_BYTES_MAX

HEADER_BYTES: Final = 4
_SMALLEST: Final = 32 * 1024  # holds two TLS records; grows once a larger frame is announced


class Deframer:
    """Cuts a stream into frames in one reused buffer: fill ``space``, then take ``frames``."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._max = frame_bytes_max
        self._view = memoryview(bytearray(_SMALLEST))
        self._start = 0
        self._end = 0

    @property
    def unfinished(self) -> bool:
        """Whether a frame was begun and has not ended."""
        return self._end > self._start

    @property
    def capacity(self) -> int:
        return len(self._view)

    def space(self) -> memoryview:
        """Where the next bytes of the stream go; never empty."""
        return self._view[self._end :]

    def frames(self, added: int) -> Iterator[memoryview]:
        """The frames that are whole now that ``added`` bytes were put into ``space``.

        Each view is valid until the next step. Take them all. Raises OutOfBounds or MalformedFrame
        for a length that is not allowed, before a byte is allocated for it.
        """
        self._end += added
        wanted = HEADER_BYTES
        while self._end - self._start >= HEADER_BYTES:
            body = self._start + HEADER_BYTES
            length = int.from_bytes(self._view[self._start : body], "big")
            if length > self._max:
                raise OutOfBounds(f"declares a frame of {length} bytes, at most {self._max}")
            if length == 0:
                raise MalformedFrame("declares an empty frame")
            if self._end < body + length:
                wanted = HEADER_BYTES + length
                break
            self._start = body + length
            yield self._view[body : body + length]
        self._make_room(wanted)

    def _make_room(self, wanted: int) -> None:
        left = self._end - self._start
        if left == 0:
            self._start = self._end = 0
        if wanted <= len(self._view) - self._start:
            return
        target = self._view if wanted <= len(self._view) else memoryview(bytearray(wanted))
        target[:left] = self._view[self._start : self._end]
        self._view, self._start, self._end = target, 0, left
