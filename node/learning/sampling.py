"""Which rows a round's local steps see: a function of (seed, round), so no state is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from node.types.settings import LearningSettings

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def stream_seed(seed: int, round_: int) -> int:
    """A 63-bit seed for (seed, round): splitmix64's finaliser, so that neighbours are unrelated."""
    z = (seed * _GOLDEN + (round_ + 1) * 0xD1342543DE82EF95) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


def batches(rows: int, settings: LearningSettings, *, seed: int, round_: int) -> tuple[Tensor, ...]:
    """Row numbers (int64) of each local step, in order.

    ``local_steps``: that many batches of min(batch_size, rows), from shuffled passes over the
    rows laid end to end. Else ``local_epochs`` (1 unless said) shuffled passes; the last batch of
    each may be smaller. No rows: no steps.
    """
    if rows == 0:
        return ()
    generator = torch.Generator().manual_seed(stream_seed(seed, round_))
    size = min(settings.batch_size, rows)
    if settings.local_steps is None:
        epochs = settings.local_epochs or 1
        return tuple(
            batch
            for _ in range(epochs)
            for batch in torch.split(torch.randperm(rows, generator=generator), size)
        )
    wanted = settings.local_steps * size
    if wanted == 0:
        return ()
    passes = [torch.randperm(rows, generator=generator) for _ in range(-(-wanted // rows))]
    return torch.split(torch.cat(passes)[:wanted], size)


def padded_width(rows: int, settings: LearningSettings) -> int:
    """The width that batches of this member are padded to in a stacked computation.

    It depends on the member alone, never on the company: results stay bit-equal in any batch.
    """
    if rows >= settings.batch_size:
        return settings.batch_size
    return min(settings.batch_size, 1 << max(0, rows - 1).bit_length())
