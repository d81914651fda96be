"""Figures and intervals against scikit-learn, the literature, and brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from node.learning import metrics


@given(
    rows=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60),
)
def test_auroc_is_scikit_learns_ties_included(rows):
    values = torch.tensor([float(value) for value, _ in rows])
    labels = torch.tensor([int(label) for _, label in rows])
    found = metrics.auroc(values, labels)
    if len(set(labels.tolist())) < 2:
        assert found is None
        assert metrics.auroc_interval(values, labels) is None
        return
    assert found == pytest.approx(roc_auc_score(labels.numpy(), values.numpy()))
    low, high = metrics.auroc_interval(values, labels)
    assert 0 <= low <= found <= high <= 1
    assert low < high


def test_wilson_is_the_textbooks():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for successes, rows, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert metrics.wilson(successes, rows) == pytest.approx((low, high), abs=5e-5)


@given(seed=st.integers(0, 1000))
def test_delong_s_variance_is_that_of_all_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(40, generator=generator) < 0.4).long()
    values = (torch.randn(40, generator=generator) + labels).double()
    assume(2 < labels.sum() < 38)
    positive, negative = values[labels == 1], values[labels == 0]
    pairs = (positive[:, None] > negative[None, :]).double()
    assume(0 < pairs.mean() < 1)
    variance = pairs.mean(1).var() / len(positive) + pairs.mean(0).var() / len(negative)
    area = float(pairs.mean())
    low, high = metrics.auroc_interval(values, labels)
    logit = torch.logit(torch.tensor([low, high], dtype=torch.float64))
    half = float(logit[1] - logit[0]) / 2
    expected = 1.959964 * float(variance) ** 0.5 / (area * (1 - area))
    assert half == pytest.approx(expected, rel=1e-5)


def test_perfect_separation_is_not_certainty():
    low, high = metrics.auroc_interval(torch.arange(10.0), (torch.arange(10) >= 6).long())
    assert high == 1
    assert 0.4 < low < 0.9


def test_outputs_of_two_columns_of_one_and_of_many():
    labels = torch.tensor([0, 1, 1])
    two = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert metrics.correct(two, labels) == 2
    assert metrics.scores(two).tolist() == [-1, 1, -2]
    one = torch.tensor([[-1.0], [2.0], [0.5]])
    assert metrics.correct(one, labels) == 3
    assert metrics.scores(one).tolist() == [-1, 2, 0.5]
    assert metrics.scores(torch.zeros(3, 10)) is None
