"""Mixing rules: pure functions of models, block by block, that refuse what they cannot bear.

Models are 1-D float32 vectors on the CPU, given in sorted node order; n counts the own model.
Extra memory is a few blocks, whatever the size of the models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.errors import ConfigError, LocalProtocolError, TooFewPeers
from node.types.settings import Rule

Models = Tensor | Sequence[Tensor]

# Rules under which coordinates do not know of each other: several nodes' models may be laid end to
# end, and the result is, bit for bit, the nodes' own results end to end.
COORDINATE_WISE: Final[tuple[Rule, ...]] = ("mean", "trimmed-mean", "median")

# A block of every model together: half of a common second-level cache.
_BLOCK_BYTES: Final = 1 << 20


def mix(
    rule: Rule,
    own: Tensor,
    replicas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    f: int,
    out: Tensor | None = None,
) -> Tensor:
    """The named rule on the own model and its replicas, each (d,). Raises as the rule itself."""
    match rule:
        case "mean":
            return mean(own, replicas, weights, out)
        case "trimmed-mean":
            return trimmed_mean([own, *replicas], f, out)
        case "median":
            return median([own, *replicas], f, out)
        case "clip":
            return clip(own, replicas, weights, f, out)


def mean(
    own: Tensor, replicas: Sequence[Tensor], weights: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """The gossip mean: own·(1 − Σ w_j) + Σ w_j x_j.

    own and each replica: (d,). weights: one per replica, none negative, sum at most 1. Returns
    (d,), in ``out`` where given (which may be ``own``).
    """
    left = _self_weight(replicas, weights)
    out = torch.empty_like(own) if out is None else out
    step = _BLOCK_BYTES // 4
    for at in range(0, own.numel(), step):
        block = slice(at, at + step)
        into = out[block]
        torch.mul(own[block], left, out=into)
        for replica, weight in zip(replicas, weights, strict=True):
            into.add_(replica[block], alpha=weight)
    return out


def trimmed_mean(models: Models, f: int, out: Tensor | None = None) -> Tensor:
    """Coordinate-wise f-trimmed mean (Yin et al. 2018): drop the f largest and f smallest.

    models: (n, d) or n vectors (d,). Returns (d,). Raises TooFewPeers unless n > 2f.
    """
    n = len(models)
    _refuse_few("trimmed-mean", n, f)
    return _middle(models, f, n - f, out)


def median(models: Models, f: int = 0, out: Tensor | None = None) -> Tensor:
    """Coordinate-wise median; for even n the mean of the two middle ones.

    models: (n, d) or n vectors (d,). Returns (d,). Raises TooFewPeers unless n > 2f.
    """
    n = len(models)
    _refuse_few("median", n, f)
    return _middle(models, (n - 1) // 2, n // 2 + 1, out)


def clip(
    own: Tensor,
    replicas: Sequence[Tensor],
    weights: Sequence[float],
    f: int,
    out: Tensor | None = None,
) -> Tensor:
    """Self-centred clipping with the threshold "cs-plus" (Gaucher et al. 2025).

    out = own + Σ w_j z_j min(1, τ/‖z_j‖), z_j = x_j − own, where τ is the largest distance such
    that the replicas at least so far away weigh 2·b_w together; b_w is the weight of the f
    heaviest replicas, the worst that f attackers can hold. Where all of them weigh less than
    2·b_w, τ is the smallest distance: stricter still. With at most f liars among the replicas τ
    is at most an honest distance, so each liar moves the result by at most w_j·τ.

    Distances and sums are float64: coordinates of 10³⁰ neither overflow nor become NaN.
    Raises TooFewPeers unless n = 1 + len(replicas) > 2f.
    """
    _refuse_few("clip", len(replicas) + 1, f)
    _self_weight(replicas, weights)
    distances = [distance(replica, own) for replica in replicas]
    threshold = _threshold(distances, weights, f)
    scales = [
        weight * (1.0 if away <= threshold else threshold / away)
        for weight, away in zip(weights, distances, strict=True)
    ]
    out = torch.empty_like(own) if out is None else out
    into, sources = out.numpy(), [replica.numpy() for replica in replicas]
    for block in _blocks(own.numel(), 8, 3):
        centre = own.numpy()[block].astype(np.float64)
        total = centre.copy()
        for source, scale in zip(sources, scales, strict=True):
            total += scale * (source[block] - centre)
        into[block] = total
    return out


def distance(one: Tensor, other: Tensor | None = None) -> float:
    """‖one − other‖ (‖one‖ where there is no other), summed in float64."""
    total = 0.0
    values = one.numpy()
    origin = None if other is None else other.numpy()
    for block in _blocks(len(values), 8, 2):
        if origin is None:
            piece = values[block].astype(np.float64)
        else:
            piece = np.subtract(values[block], origin[block], dtype=np.float64)
        total += float(np.dot(piece, piece))
    return float(total**0.5)


def rule_needs(rule: Rule, f: int) -> int:
    """The least number of models, the own one included, with which ``rule`` bears f attackers."""
    return 1 if rule == "mean" else 2 * f + 1


def check_rule(rule: Rule, f: int, neighbourhoods: Mapping[str, int]) -> None:
    """Refuse a rule that some node cannot carry out even when everybody is there.

    ``neighbourhoods``: per node's name the number of models there, its own included. Raises
    ConfigError naming the node whose neighbourhood is too small, or the f that makes no sense.
    """
    if rule == "mean" and f:
        raise ConfigError(
            f"learning.f: found {f}, but rule 'mean' bears no attacker; "
            "use 'trimmed-mean', 'median' or 'clip'"
        )
    if rule in ("trimmed-mean", "clip") and not f:
        raise ConfigError(f"learning.f: found 0; rule '{rule}' needs the f it must bear, 1 or more")
    needed = rule_needs(rule, f)
    for name, models in sorted(neighbourhoods.items()):
        if models < needed:
            raise ConfigError(
                f"learning.rule: '{rule}' with f = {f} needs {needed} models, but {name} and its "
                f"neighbours have {models}; give {name} {needed - models} more or lower f"
            )


def _refuse_few(rule: str, n: int, f: int) -> None:
    if f < 0:
        raise LocalProtocolError(f"{rule}: f = {f}")
    if n <= 2 * f or n == 0:
        raise TooFewPeers(f"{rule} with f = {f} needs {2 * f + 1} models, found {n}")


def _self_weight(replicas: Sequence[Tensor], weights: Sequence[float]) -> float:
    left = 1.0 - sum(weights)
    if len(weights) != len(replicas) or left < -1e-9 or any(not w >= 0 for w in weights):
        raise LocalProtocolError(f"{len(replicas)} replicas with weights {list(weights)}")
    return max(0.0, left)


def _threshold(distances: Sequence[float], weights: Sequence[float], f: int) -> float:
    if f == 0 or not distances:
        return float("inf")
    heaviest = sorted(weights, reverse=True)
    # a hair less than 2·b_w: equal weights must not miss their sum by rounding
    budget = 2 * sum(heaviest[:f]) * (1 - 1e-9)
    mass = 0.0
    ranked = sorted(zip(distances, weights, strict=True), reverse=True)
    for away, weight in ranked:
        mass += weight
        if mass >= budget:
            return away
    return ranked[-1][0]


def _blocks(size: int, itemsize: int, rows: int) -> Iterator[slice]:
    step = max(1024, _BLOCK_BYTES // (itemsize * rows))
    return (slice(at, min(at + step, size)) for at in range(0, size, step))


def _middle(models: Models, low: int, high: int, out: Tensor | None) -> Tensor:
    """The mean of the sorted rows [low, high), kept within them against rounding."""
    n, size = len(models), models[0].numel()
    out = torch.empty(size, dtype=torch.float32) if out is None else out
    sources = [model.numpy() for model in models]
    share = np.float32(1 / (high - low))
    for block in _blocks(size, 4, n + 1):
        rows = [source[block] for source in sources]
        ranked = _sorted_rows(rows, low, high)
        into = out[block].numpy()
        # shares are summed, not values: no sum of finite values overflows
        total = ranked[0] * share
        for row in ranked[1:]:
            total += row * share
        np.clip(total, ranked[0], ranked[-1], out=into)
    return out


def _sorted_rows(
    rows: Sequence[NDArray[np.float32]], low: int, high: int
) -> list[NDArray[np.float32]]:
    """Rows low to high−1 of the column-wise sort, by a network of whole-row exchanges."""
    stack = np.stack(rows)
    spare = np.empty_like(stack[0])
    for one, other in _network(len(rows), low, high):
        np.minimum(stack[one], stack[other], out=spare)
        np.maximum(stack[one], stack[other], out=stack[other])
        stack[one] = spare
    return [stack[index] for index in range(low, high)]


@lru_cache(maxsize=256)
def _network(n: int, low: int, high: int) -> tuple[tuple[int, int], ...]:
    """Batcher's odd-even merge sort for n rows (Batcher 1968), without exchanges nobody reads.

    An exchange counts only where one of its rows can still reach rows [low, high).
    """
    exchanges: list[tuple[int, int]] = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                exchanges += [
                    (i, i + k)
                    for i in range(j, j + min(k, n - j - k))
                    if i // (2 * p) == (i + k) // (2 * p)
                ]
            k //= 2
        p *= 2
    needed = set(range(low, high))
    kept = []
    for one, other in reversed(exchanges):
        if one in needed or other in needed:
            needed |= {one, other}
            kept.append((one, other))
    return tuple(reversed(kept))
