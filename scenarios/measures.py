"""What is measured during a simulation: figures after mixed rounds, and consensus distance.

Measuring waits until several nodes can be measured as one batch, but never until a model changes.
A node's own distance from a round's mean is known only when the whole round is: until then its
model is kept, in float32 and within ``_KEPT_BYTES_MAX``; sums alone give D and the sides' means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from msgspec import Struct, structs
from numpy.typing import NDArray

from node.learning.batch import evaluate_batch
from node.learning.learner import Learner
from scenarios.record import DistanceRow, RoundRow

_AT_ONCE: Final = 256  # models stacked in float64: 5 MB of digits models
_OPEN_BYTES_MAX: Final = 1 << 28  # sums of rounds that are still open
# Models of rounds that are not whole yet: 27 rounds of 1,000 digits models, 2 of 10,000.
_KEPT_BYTES_MAX: Final = 1 << 28

Sides = tuple[tuple[str, ...], ...]  # of one partition, as the scenario names the nodes


class Groups:
    """The sides of all partitions of a run, as rows of a 0/1 matrix over its nodes."""

    def __init__(self, partitions: Iterable[Sides], nodes: Sequence[str]) -> None:
        self.partitions = tuple(dict.fromkeys(partitions))  # the same cut again is the same groups
        self.nodes = tuple(nodes)
        sides = [frozenset(side) for sides in self.partitions for side in sides]
        self.member = np.array(
            [[name in side for name in nodes] for side in sides], dtype=np.float64
        ).reshape(len(sides), len(nodes))

    def apart(self, spread: Spread) -> dict[Sides, float]:
        """By partition: the greatest distance between two sides' mean models.

        Nothing for a partition of which only one side has mixed the round.
        """
        found: dict[Sides, float] = {}
        end = 0
        for sides in self.partitions:
            begin, end = end, end + len(sides)
            weights = spread.side_weights[begin:end]
            sums = spread.side_sums[begin:end][weights > 0]
            means = sums / weights[weights > 0][:, None]
            pairs = itertools.combinations(means, 2)
            gaps = [float(np.linalg.norm(a - b)) for a, b in pairs]
            if gaps:
                found[sides] = max(gaps)
        return found


class Spread:
    """Running sums for D² = Σ π_i ‖x_i − x̄‖² of one round, around the first model seen.

    The shift keeps the cancellation in Q/W − ‖S/W‖² relative to the spread, not to the norm.
    ``sides``: of how many groups of nodes the mean is asked for as well.
    """

    def __init__(self, centre: NDArray[np.float64], *, sides: int = 0) -> None:
        self.centre = centre
        self.weight = 0.0
        self.square = 0.0
        self.sum = np.zeros_like(centre)
        self.side_weights = np.zeros(sides)
        self.side_sums = np.zeros((sides, len(centre)))
        self.at = 0.0

    def add(
        self,
        models: NDArray[np.float64],
        weights: NDArray[np.float64],
        member: NDArray[np.float64] | None = None,
    ) -> None:
        """models: (n, P); weights: (n,); member: (sides, n), 1 where a model is of the side."""
        away = models - self.centre
        self.weight += float(weights.sum())
        self.square += float(weights @ np.einsum("np,np->n", away, away))
        self.sum += weights @ away
        if member is not None and len(member):
            shares = member * weights
            self.side_weights += shares.sum(axis=1)
            self.side_sums += shares @ away

    @property
    def mean(self) -> NDArray[np.float64]:
        """x̄: (P,)."""
        return self.centre + self.sum / self.weight

    @property
    def bytes(self) -> int:
        return self.centre.nbytes + self.sum.nbytes + self.side_sums.nbytes

    def distance(self) -> tuple[float, float]:
        """(D, D/‖x̄‖)."""
        shift = self.sum / self.weight
        square = max(0.0, self.square / self.weight - float(shift @ shift))
        norm = float(np.linalg.norm(self.centre + shift))
        distance = math.sqrt(square)
        return distance, distance / norm if norm > 0 else 0.0


def consensus(learners: Sequence[Learner], samples: Sequence[int]) -> tuple[float, float] | None:
    """(D, D/‖x̄‖) over the learners' shared vectors, π by samples; None for nobody."""
    if not learners:
        return None
    spread = Spread(_matrix(learners[:1])[0])
    for start in range(0, len(learners), _AT_ONCE):
        some = learners[start : start + _AT_ONCE]
        weights = np.asarray(samples[start : start + _AT_ONCE], dtype=np.float64)
        spread.add(_matrix(some), weights)
    return spread.distance()


class _Job(Struct, eq=False):
    node: int
    learner: Learner
    weight: float
    round: int
    at: float
    row: int
    evaluate: bool


class _Kept(Struct, eq=False):
    """Models of one round, until its mean is known."""

    nodes: set[int]
    blocks: list[tuple[list[int], NDArray[np.float32]]]  # (places of the rows, models (n, P))
    bytes: int = 0


class Measures:
    """Rows and distances of one run of ``nodes``. Models of weight 0 are in no distance.

    ``partitions``: between whose sides' mean models the distance is asked for. ``attackers``: how
    many nodes will be of weight 0, so that a round is whole without them.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        evaluate: bool,
        partitions: Iterable[Sides] = (),
        attackers: int = 0,
    ) -> None:
        self.rows: list[RoundRow] = []
        self.groups = Groups(partitions, nodes)
        self._count = len(nodes) - attackers
        self._evaluate = evaluate
        self._jobs: dict[int, _Job] = {}  # by node
        self._open: dict[int, Spread] = {}
        self._kept: dict[int, _Kept | None] = {}  # None: settled
        self._kept_bytes = 0
        self._distances: dict[int, DistanceRow] = {}
        self._apart: dict[int, dict[Sides, float]] = {}
        self._closed = 0

    def mixed(
        self, node: int, learner: Learner, row: RoundRow, *, weight: float, evaluate: bool
    ) -> None:
        """A node has mixed a round: measure its model before it changes. weight 0: not honest."""
        if node in self._jobs:
            self.flush()
        self.rows.append(row)
        place = len(self.rows) - 1
        evaluate = evaluate and self._evaluate
        self._jobs[node] = _Job(node, learner, weight, row.round, row.at, place, evaluate)

    def settle(self, node: int) -> None:
        """The node's model is about to change."""
        if node in self._jobs:
            self.flush()

    def flush(self) -> None:
        """Measure all that is due, as one batch."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        asked = [job for job in jobs if job.evaluate]
        figures = evaluate_batch([job.learner for job in asked])
        for job, found in zip(asked, figures, strict=True):
            self.rows[job.row] = structs.replace(
                self.rows[job.row],
                accuracy=found.accuracy,
                own_accuracy=found.own_accuracy,
                auroc=found.auroc,
                loss=found.loss,
            )
        by_round: dict[int, list[_Job]] = {}
        for job in jobs:
            if job.weight > 0 and job.round > self._closed:
                by_round.setdefault(job.round, []).append(job)
        for round_, some in by_round.items():
            for start in range(0, len(some), _AT_ONCE):
                self._spread(round_, some[start : start + _AT_ONCE])

        self._bound()

    def distances(self) -> tuple[DistanceRow, ...]:
        """D by round. Ends the measuring: rounds that not every node mixed are settled, too."""
        for round_ in list(self._open):
            self._settle_round(round_)
            self._finish(round_)
        return tuple(self._distances[round_] for round_ in sorted(self._distances))

    def apart(self) -> dict[Sides, dict[int, float]]:
        """By partition and round, how far the sides' mean models are from each other.

        To be asked after ``distances``.
        """
        return {
            sides: {r: found[sides] for r, found in sorted(self._apart.items()) if sides in found}
            for sides in self.groups.partitions
        }

    def _spread(self, round_: int, jobs: Sequence[_Job]) -> None:
        single = _vectors([job.learner for job in jobs])
        models = single.astype(np.float64)
        nodes = [job.node for job in jobs]
        spread = self._open.get(round_)
        if spread is None:
            spread = Spread(models[0].copy(), sides=len(self.groups.member))
            self._open[round_] = spread
            self._kept[round_] = _Kept(set(), [])
        weights = np.asarray([job.weight for job in jobs], dtype=np.float64)
        spread.add(models, weights, self.groups.member[:, nodes])
        spread.at = max(spread.at, *(job.at for job in jobs))
        kept = self._kept[round_]
        if kept is None:  # a node that was started again mixes a round that was whole before
            return
        kept.nodes.update(nodes)
        kept.blocks.append(([job.row for job in jobs], single))
        kept.bytes += single.nbytes
        self._kept_bytes += single.nbytes
        if len(kept.nodes) == self._count:
            self._settle_round(round_)

    def _settle_round(self, round_: int, *, known: bool = True) -> None:
        """Each node's distance from the mean of all that mixed the round; its models are let go.

        ``known`` False: the mean is not, and the distances stay None.
        """
        kept, self._kept[round_] = self._kept[round_], None
        if kept is None:
            return
        self._kept_bytes -= kept.bytes
        mean = self._open[round_].mean
        for places, models in kept.blocks if known else ():
            away = models - mean  # float64: what is left after mixing is small beside the norm
            for place, found in zip(
                places, np.sqrt(np.einsum("np,np->n", away, away)), strict=True
            ):
                self.rows[place] = structs.replace(self.rows[place], distance=float(found))

    def _bound(self) -> None:
        """Keep within the bounds on memory, at the cost of the oldest rounds.

        Where nine nodes in ten have mixed a round, its mean is taken as it is; where fewer have
        (one side of a partition is ahead), their distances stay unknown. A round whose sums are
        let go takes no model of a node that lags behind.
        """
        waiting = [round_ for round_, kept in self._kept.items() if kept is not None]
        for round_ in sorted(waiting):
            kept = self._kept[round_]
            if self._kept_bytes <= _KEPT_BYTES_MAX or kept is None:
                break
            self._settle_round(round_, known=10 * len(kept.nodes) >= 9 * self._count)
        size = next((s.bytes for s in self._open.values()), 0)
        for round_ in sorted(self._open):
            if size * len(self._open) <= _OPEN_BYTES_MAX:
                break
            self._closed = max(self._closed, round_)
            self._settle_round(round_)
            self._finish(round_)

    def _finish(self, round_: int) -> None:
        spread = self._open.pop(round_)
        del self._kept[round_]
        distance, relative = spread.distance()
        self._distances[round_] = DistanceRow(spread.at, round_, distance, relative)
        self._apart[round_] = self.groups.apart(spread)


def by_round(rows: Sequence[DistanceRow]) -> Mapping[int, float]:
    """D by round."""
    return {row.round: row.distance for row in rows}


def _vectors(learners: Sequence[Learner]) -> NDArray[np.float32]:
    """The shared vectors as rows (n, P), a copy."""
    stacked = torch.stack([learner.x.detach().cpu() for learner in learners])
    rows: NDArray[np.float32] = stacked.numpy()
    return rows


def _matrix(learners: Sequence[Learner]) -> NDArray[np.float64]:
    """The shared vectors as rows (n, P) of float64."""
    return _vectors(learners).astype(np.float64)
