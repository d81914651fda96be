"""What is measured during a simulation: figures after mixed rounds, and consensus distance.

Measuring waits until several nodes can be measured as one batch, but never until a model changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


class Spread:
    """Running sums for D² = Σ π_i ‖x_i − x̄‖² of one round, around the first model seen.

    The shift keeps the cancellation in Q/W − ‖S/W‖² relative to the spread, not to the norm.
    """

    def __init__(self, centre: NDArray[np.float64]) -> None:
        self.centre = centre
        self.weight = 0.0
        self.square = 0.0
        self.sum = np.zeros_like(centre)
        self.at = 0.0

    def add(self, models: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """models: (n, P); weights: (n,)."""
        away = models - self.centre
        self.weight += float(weights.sum())
        self.square += float(weights @ np.einsum("np,np->n", away, away))
        self.sum += weights @ away

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
    learner: Learner
    weight: float
    round: int
    at: float
    row: int | None  # to be filled in; None where the round is not evaluated


class Measures:
    """Rows and distances of one run. ``honest`` models alone count in the distance."""

    def __init__(self, *, evaluate: bool) -> None:
        self.rows: list[RoundRow] = []
        self._evaluate = evaluate
        self._jobs: dict[int, _Job] = {}  # by node
        self._open: dict[int, Spread] = {}
        self._distances: dict[int, DistanceRow] = {}
        self._closed = 0

    def mixed(
        self, node: int, learner: Learner, row: RoundRow, *, weight: float, evaluate: bool
    ) -> None:
        """A node has mixed a round: measure its model before it changes. weight 0: not honest."""
        if node in self._jobs:
            self.flush()
        place = None
        self.rows.append(row)
        if evaluate and self._evaluate:
            place = len(self.rows) - 1
        self._jobs[node] = _Job(learner, weight, row.round, row.at, place)

    def settle(self, node: int) -> None:
        """The node's model is about to change."""
        if node in self._jobs:
            self.flush()

    def flush(self) -> None:
        """Measure all that is due, as one batch."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        asked = [job for job in jobs if job.row is not None]
        figures = evaluate_batch([job.learner for job in asked])
        for job, found in zip(asked, figures, strict=True):
            assert job.row is not None
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

    def close(self, round_: int) -> None:
        """All nodes are past ``round_``: nothing more is added to it or to earlier ones."""
        if round_ <= self._closed:
            return
        size = next((16 * len(s.sum) for s in self._open.values()), 0)
        if size * len(self._open) > _OPEN_BYTES_MAX:
            self._closed = round_
            for old in [r for r in self._open if r <= round_]:
                self._finish(old)

    def distances(self) -> tuple[DistanceRow, ...]:
        for round_ in list(self._open):
            self._finish(round_)
        return tuple(self._distances[round_] for round_ in sorted(self._distances))

    def _spread(self, round_: int, jobs: Sequence[_Job]) -> None:
        models = _matrix([job.learner for job in jobs])
        spread = self._open.get(round_)
        if spread is None:
            spread = self._open[round_] = Spread(models[0].copy())
        spread.add(models, np.asarray([job.weight for job in jobs], dtype=np.float64))
        spread.at = max(spread.at, *(job.at for job in jobs))

    def _finish(self, round_: int) -> None:
        spread = self._open.pop(round_)
        distance, relative = spread.distance()
        self._distances[round_] = DistanceRow(spread.at, round_, distance, relative)


def by_round(rows: Sequence[DistanceRow]) -> Mapping[int, float]:
    """D by round."""
    return {row.round: row.distance for row in rows}


def _matrix(learners: Sequence[Learner]) -> NDArray[np.float64]:
    """The shared vectors as rows (n, P) of float64."""
    stacked = torch.stack([learner.x.detach().cpu() for learner in learners])
    matrix: NDArray[np.float64] = stacked.numpy().astype(np.float64)
    return matrix
