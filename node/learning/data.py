"""The built-in data, and how it becomes every member's Part.

Same (settings, names, seed), same rows, in any process. The common test rows leave before the
split; scaling uses published constants, so that no member's rows tell anything of another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from node.errors import ConfigError
from node.learning.splits import apportion, split, stratified
from node.learning.task import Part, Table
from node.strict import nearest
from node.types.settings import TaskSettings

BUILT_IN: Final = ("breast-cancer", "digits", "quadratic")

# Minimum and maximum of each feature as printed in the data set's own description (Wolberg,
# Street, Mangasarian 1995): public reference values, computed from no member's rows.
# Rows: mean, standard error and worst of the ten features in the description's order.
_BREAST_CANCER_MIN: Final = (
    *(6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05),
    *(0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001),
    *(7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055),
)
_BREAST_CANCER_MAX: Final = (
    *(28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097),
    *(2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03),
    *(36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208),
)

# quadratic: curvatures between these (condition number 4), minima of spread 1
_CURVATURE: Final = (0.5, 2.0)
_QUADRATIC_ROWS: Final = 100  # rows that one member stands for, where the split says nothing


@lru_cache(maxsize=4)
def table(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (n, d) scaled to about [-1, 1] or [0, 1], and labels (n,).

    breast-cancer: 569 × 30, label 1 is malignant. digits: 1,797 × 64, labels 0 to 9.
    """
    from sklearn import datasets

    if name == "breast-cancer":
        raw, labels = datasets.load_breast_cancer(return_X_y=True)
        low, high = np.asarray(_BREAST_CANCER_MIN), np.asarray(_BREAST_CANCER_MAX)
        features = 2 * (raw - low) / (high - low) - 1
        labels = 1 - labels  # scikit-learn says 1 for benign
    else:
        raw, labels = datasets.load_digits(return_X_y=True)
        features = raw / 16
    features = np.ascontiguousarray(features, dtype=np.float32)
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    features.flags.writeable = labels.flags.writeable = False
    return features, labels


def parts(settings: TaskSettings, names: Sequence[str], *, seed: int) -> dict[str, Part]:
    """Every member's rows of the built-in data set ``settings.name``, by name.

    Raises ConfigError for an unknown name, doubled members, or a split that cannot be made.
    """
    if settings.name not in BUILT_IN:
        raise ConfigError(f"unknown task '{settings.name}'{nearest(settings.name, BUILT_IN)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"task.split: found {len(names)} members with doubled or no names")
    # one stream for each purpose: another split leaves the holdout as it was
    streams = np.random.SeedSequence(seed % 2**63).spawn(3)
    holdout, division, own = (np.random.default_rng(stream) for stream in streams)
    if settings.name == "quadratic":
        return _quadratic(settings, names, division)
    features, labels = table(settings.name)
    tested = stratified(labels, settings.holdout, holdout)
    pool = np.setdiff1d(np.arange(len(labels)), tested)
    if len(pool) == 0:
        raise ConfigError(f"task.holdout: found {settings.holdout}, which leaves no rows to train")
    common = _table(features[tested], labels[tested])
    divided = split(settings.split, features[pool], labels[pool], names, division)
    made = {}
    for name, mine in zip(names, divided, strict=True):
        rows = pool[mine]
        trained, validated, held = _own(settings, rows, labels, own)
        if len(trained) == 0:
            raise ConfigError(
                f"task: member '{name}' has {len(rows)} rows and none left to train on; "
                "lower own_holdout or validation"
            )
        made[name] = Part(
            task=settings.name,
            train=_table(features[trained], labels[trained]),
            validation=_table(features[validated], labels[validated]),
            own_test=_table(features[held], labels[held]),
            test=common,
            samples=len(trained),
        )
    return made


def _table(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Table:
    return Table(torch.from_numpy(features.copy()), torch.from_numpy(labels.copy()))


def _own(
    settings: TaskSettings,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """One member's rows as (training, validation, own test).

    A row drawn twice (``resample``) stays on one side: the sides are chosen among distinct rows.
    """
    distinct = np.unique(rows)
    held = distinct[stratified(labels[distinct], settings.own_holdout, rng)]
    rest = np.setdiff1d(distinct, held, assume_unique=True)
    share = settings.validation / max(1e-12, 1 - settings.own_holdout)
    validated = rest[stratified(labels[rest], min(1.0, share), rng)]
    aside = np.concatenate([held, validated])
    return rows[np.isin(rows, aside, invert=True)], validated, held


def _quadratic(
    settings: TaskSettings, names: Sequence[str], rng: np.random.Generator
) -> dict[str, Part]:
    """Member i minimises ½ (x − a_i)ᵀ H_i (x − a_i), H_i diagonal.

    Its only row is [a_i, h_i]. The weighted sum Σ n_i f_i has its minimum, by coordinate, at
    x* = Σ n_i h_i a_i / Σ n_i h_i, and f̄(x) − f̄(x*) = ½ Σ h̄ (x − x*)²: the common test row is
    [x*, h̄], so that the loss on it is the suboptimality.
    """
    members, dimension = len(names), settings.dimension
    minima = rng.standard_normal((members, dimension))
    curvatures = rng.uniform(*_CURVATURE, (members, dimension))
    if settings.split.only:
        raise ConfigError("task.split: key 'only': task 'quadratic' has no classes")
    sizes = settings.split.sizes
    if sizes is not None and len(sizes) != members:
        raise ConfigError(
            f"task.split: key 'sizes': found {len(sizes)} sizes for {members} members"
        )
    shares = np.ones(members) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if settings.split.kind == "hospitals":
        shares = rng.permutation(4.0 ** np.linspace(0, 1, members))
    samples = np.maximum(1, apportion(_QUADRATIC_ROWS * members, shares))
    weights = (samples / samples.sum())[:, None]
    mean_curvature = (weights * curvatures).sum(0)
    optimum = (weights * curvatures * minima).sum(0) / mean_curvature
    test = _row(optimum, mean_curvature)
    none = Table(test.x[:0], test.y[:0])
    return {
        name: Part(
            task="quadratic",
            train=_row(minima[i], curvatures[i]),
            validation=none,
            own_test=none,
            test=test,
            samples=int(samples[i]),
        )
        for i, name in enumerate(names)
    }


def _row(minimum: NDArray[np.float64], curvature: NDArray[np.float64]) -> Table:
    row = np.concatenate([minimum, curvature]).astype(np.float32)[None, :]
    return Table(torch.from_numpy(row), torch.zeros(1))
