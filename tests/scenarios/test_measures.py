"""A node's own distance from the round's mean, the sides' means, and the bounds on memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scenarios import measures
from scenarios.measures import Measures
from scenarios.record import RoundRow

NAMES = ("a", "b", "c", "d")
SIDES = (("a", "b"), ("c", "d"))
WEIGHTS = (1.0, 3.0, 2.0, 2.0)


class Still:
    """A learner as far as measuring without evaluation goes: a vector."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = torch.from_numpy(x.astype(np.float32))


def models(round_: int) -> np.ndarray:
    return np.random.default_rng(round_).normal(5.0, 1.0, (4, 6)).astype(np.float32)


def mix(measured: Measures, round_: int, nodes: Any) -> None:
    for node in nodes:
        row = RoundRow(node=NAMES[node], round=round_, at=round_ + node / 10)
        learner: Any = Still(models(round_)[node])
        measured.mixed(node, learner, row, weight=WEIGHTS[node], evaluate=False)
    measured.flush()


def test_every_node_has_its_distance_from_the_mean_of_its_round() -> None:
    measured = Measures(NAMES, evaluate=False, partitions=[SIDES])
    for round_ in (1, 2):
        mix(measured, round_, (0, 2, 1))
        assert all(row.distance is None for row in measured.rows if row.round == round_)
        mix(measured, round_, (3,))  # now the round is whole
        x, w = models(round_).astype(float), np.array(WEIGHTS)
        mean = w @ x / w.sum()
        for row in measured.rows:
            if row.round == round_:
                away = np.linalg.norm(x[NAMES.index(row.node)] - mean)
                assert row.distance == pytest.approx(away, rel=1e-6)
    x, w = models(2).astype(float), np.array(WEIGHTS)
    left, right = (w[i] @ x[i] / w[i].sum() for i in ([0, 1], [2, 3]))
    distances = measured.distances()
    assert measured.apart()[SIDES][2] == pytest.approx(np.linalg.norm(left - right), rel=1e-6)
    squares = sum(
        w * (row.distance or 0) ** 2
        for w, row in zip((1.0, 2.0, 3.0, 2.0), measured.rows[4:], strict=True)
    )
    assert distances[-1].distance == pytest.approx((squares / 8) ** 0.5, rel=1e-6)


def test_a_round_is_whole_without_those_that_attack() -> None:
    measured = Measures(NAMES, evaluate=False, attackers=1)
    mix(measured, 1, (0, 1, 2))
    assert all(row.distance is not None for row in measured.rows)


def test_a_round_that_one_side_alone_has_mixed_has_no_distance_between_sides() -> None:
    measured = Measures(NAMES, evaluate=False, partitions=[SIDES])
    mix(measured, 1, (0, 1))
    measured.distances()
    assert measured.apart() == {SIDES: {}}
    assert all(row.distance is not None for row in measured.rows)  # settled at the end


def test_models_of_rounds_that_are_not_whole_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_KEPT_BYTES_MAX", 200)  # 8 models of 6 floats
    measured = Measures(NAMES, evaluate=False)
    for round_ in range(1, 9):
        mix(measured, round_, (0, 1, 2))
        assert measured._kept_bytes <= 200
    distances = measured.distances()
    assert [row.round for row in distances] == list(range(1, 9))  # D needs no models
    known = {row.round for row in measured.rows if row.distance is not None}
    assert known == {7, 8}  # what was let go with a node in four missing is not made up
    assert measured._kept_bytes == 0


def test_sums_of_open_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_OPEN_BYTES_MAX", 300)  # three rounds of 2 x 6 floats
    measured = Measures(NAMES, evaluate=False)
    for round_ in range(1, 9):
        mix(measured, round_, (0, 1, 2, 3))
        assert len(measured._open) <= 3
    mix(measured, 1, (0,))  # far behind: not counted, and no error
    assert [row.round for row in measured.distances()] == list(range(1, 9))
