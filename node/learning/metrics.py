"""Accuracy, AUROC and loss, each with a 95 % interval. Pure functions of outputs and labels."""

from __future__ import annotations

import math
from typing import Final

import torch
from msgspec import Struct
from torch import Tensor

Interval = tuple[float, float]

Z95: Final = 1.959963984540054  # two-sided 95 % of the normal distribution


class Metrics(Struct, frozen=True, kw_only=True):
    """One model's figures: on the common test rows, and (own_…) on the member's own held-out rows.

    None where a figure is not defined: no rows, one class only, or a task without classes.
    """

    accuracy: float | None = None
    auroc: float | None = None
    loss: float | None = None
    own_accuracy: float | None = None
    own_auroc: float | None = None
    own_loss: float | None = None
    rows: int = 0
    own_rows: int = 0
    correct: int = 0
    own_correct: int = 0


def correct(output: Tensor, labels: Tensor) -> int:
    """How many rows are classified rightly. output: (n, classes), or (n,) or (n, 1) logits."""
    return int(correct_rows(output, labels).sum())


def correct_rows(output: Tensor, labels: Tensor) -> Tensor:
    """Which rows are classified rightly, (n,) bool. output as in ``correct``."""
    if output.ndim == 2 and output.shape[1] > 1:
        return output.argmax(1) == labels
    return (output.reshape(-1) > 0) == (labels.reshape(-1) > 0.5)


def by_class(output: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of each class's rows that are classified rightly, by the class's number."""
    right = correct_rows(output, labels)
    plain = labels.reshape(-1).long()
    counts = torch.bincount(plain)
    rights = torch.bincount(plain, weights=right.double(), minlength=len(counts))
    return {
        str(label): hits / rows
        for label, (hits, rows) in enumerate(zip(rights.tolist(), counts.tolist(), strict=True))
        if rows
    }


def scores(output: Tensor) -> Tensor | None:
    """One score a row that grows with the odds of class 1; None beyond two classes."""
    if output.ndim == 1 or output.shape[1] == 1:
        return output.reshape(-1)
    return output[:, 1] - output[:, 0] if output.shape[1] == 2 else None


def auroc(values: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count one half.

    values, labels (0 or 1): (n,). None where a class is missing.
    """
    positive = labels.reshape(-1) > 0.5
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = _midranks(values.double())
    total = float(ranks[positive].sum())
    return (total - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def wilson(successes: int, rows: int) -> Interval:
    """The 95 % score interval of a share (Wilson 1927); rows must be at least 1."""
    share, z2 = successes / rows, Z95**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def auroc_interval(values: Tensor, labels: Tensor) -> Interval | None:
    """The 95 % interval of the AUROC: DeLong's variance (DeLong et al. 1988), on the logit scale.

    Where the variance vanishes (all pairs in order), DeLong would claim certainty; there the
    bound is Wilson's for the rarer class's count. None where a class is missing.
    """
    area = auroc(values, labels)
    if area is None:
        return None
    positive = labels.reshape(-1) > 0.5
    first, second = values[positive].double(), values[~positive].double()
    m, n = len(first), len(second)
    both = _midranks(torch.cat([first, second]))
    by_positive = (both[:m] - _midranks(first)) / n
    by_negative = 1 - (both[m:] - _midranks(second)) / m
    spread = 0.0
    if m > 1:
        spread += float(by_positive.var()) / m
    if n > 1:
        spread += float(by_negative.var()) / n
    if spread <= 0 or not 0 < area < 1:
        rare = min(m, n)
        low, high = wilson(round(area * rare), rare)
        return min(low, area), max(high, area)
    centre = math.log(area / (1 - area))
    half = Z95 * math.sqrt(spread) / (area * (1 - area))
    return _logistic(centre - half), _logistic(centre + half)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _midranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties share their mean rank. values: (n,) float64."""
    _, inverse, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    midranks: Tensor = last - (counts.double() - 1) / 2
    return midranks[inverse]
