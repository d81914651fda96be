"""The initial shared vector x₀: what models are measured against, and where one starts again.

A large x₀ is needed seldom, so it lies in an unlinked file and is read block by block: it then
costs no memory beside the model, the public model and the replicas.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from node.errors import StorageError
from node.learning.rules import distance
from node.learning.vector import as_bytes, squares

_SPOOL_ABOVE_BYTES: Final = 16 << 20
_BLOCK: Final = 1 << 18  # floats: 1 MiB at a time


class Anchor:
    """A copy of ``vector`` (P,) float32 on the CPU, in memory, or in ``spool`` where it is large.

    Raises StorageError where the spool cannot be written.
    """

    def __init__(self, vector: Tensor, spool: Path | None = None) -> None:
        self._size = vector.numel()
        self._vector: Tensor | None = None
        self.norm = distance(vector)
        if spool is None or 4 * self._size <= _SPOOL_ABOVE_BYTES:
            self._vector = vector.detach().clone()
            return
        try:
            self._file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - kept open
            self._file.write(as_bytes(vector))
            self._file.flush()
            # closed with the anchor, by reference count or at the process's end
            weakref.finalize(self, self._file.close)
        except OSError as error:
            raise StorageError(f"{spool}: cannot hold the initial model: {error}") from None

    def distance(self, vector: Tensor) -> float:
        """‖vector − x₀‖ in float64."""
        if self._vector is not None:
            return distance(vector, self._vector)
        squares = (distance(vector[at], block) ** 2 for at, block in self._blocks())
        return float(sum(squares) ** 0.5)

    def within(self, vector: Tensor, reach: float, rough: float | None = None) -> bool:
        """Whether ‖vector − x₀‖ ≤ reach. False for values that are not finite.

        ``rough``: ``squares(vector)`` where it is known. Where ‖vector‖ + ‖x₀‖ tells already, x₀
        is not read; as that sum may be off by a hundredth, it decides only where a hundredth more
        would not matter, and where it is infinite it decides nothing.
        """
        rough = squares(vector) if rough is None else rough
        if 1.01 * rough**0.5 + self.norm <= reach:
            return True
        return self.distance(vector) <= reach

    def copy_to(self, vector: Tensor) -> None:
        """Write x₀ into ``vector``."""
        if self._vector is not None:
            vector.copy_(self._vector)
            return
        for at, block in self._blocks():
            vector[at].copy_(block)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for at in range(0, self._size, _BLOCK):
            end = min(at + _BLOCK, self._size)
            block = np.empty(end - at, dtype=np.float32)
            if os.preadv(self._file.fileno(), [block.data], 4 * at) != block.nbytes:
                raise StorageError("the spooled initial model was cut short")
            yield slice(at, end), torch.from_numpy(block)
