"""How one data set becomes the members' rows: pure functions from labels to row numbers.

Everything is numpy, seeded by the caller, and independent of process, hash seed and threads.
Sources: Dirichlet label skew as in Hsu et al. 2019; the case-mix split by iterative proportional
fitting (Deming & Stephan 1940).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError
from node.strict import nearest
from node.types.settings import SplitSettings

Index = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST_ROWS = 4  # one each for training, validation and own test, and one to spare

# hospitals: the largest is four times the smallest (rounding keeps it above three), and the odds
# of a class differ by up to e^1.6, about 5, between a referral centre and a local clinic.
_SIZE_RATIO = 4.0
_TILT = 0.8


def apportion(total: int, shares: Floats) -> Index:
    """``total`` in whole numbers in proportion to ``shares`` (largest remainder, ties in order)."""
    if total == 0 or len(shares) == 0:
        return np.zeros(len(shares), dtype=np.int64)
    exact = shares / shares.sum() * total
    counts: Index = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def stratified(labels: NDArray[np.int64], share: float, rng: np.random.Generator) -> Index:
    """Sorted row numbers of a ``share`` of the rows, class shares kept as well as counts allow."""
    wanted = round(len(labels) * share)
    classes, counts = np.unique(labels, return_counts=True)
    taken = apportion(wanted, counts.astype(np.float64)) if wanted else np.zeros_like(counts)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen]))


def split(
    settings: SplitSettings,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
    rng: np.random.Generator,
) -> list[Index]:
    """Row numbers of each member, in the order of ``names``.

    features: (rows, columns); labels: (rows,). Every kind but ``resample`` gives each row to
    exactly one member; rows of a class in ``only`` go to its members in any case. Raises
    ConfigError where the kind's own key is missing or wrong, or where there are too few rows for
    every member to train on.
    """
    _check(settings, features, names)
    if not settings.only:
        return _split(settings, features, labels, names, rng)
    held = _held(settings.only, labels, names, rng)
    left = np.setdiff1d(np.arange(len(labels)), np.concatenate(held))
    rest = _split(settings, features[left], labels[left], names, rng)
    return [
        np.sort(np.concatenate([mine, left[some]])) for mine, some in zip(held, rest, strict=True)
    ]


def _split(
    settings: SplitSettings,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    names: Sequence[str],
    rng: np.random.Generator,
) -> list[Index]:
    members, rows = len(names), len(labels)
    if settings.kind == "resample":
        assert settings.per_node is not None
        return [np.sort(rng.integers(0, rows, settings.per_node)) for _ in names]
    if rows < LEAST_ROWS * members:
        raise ConfigError(
            f"task.split: {rows} rows cannot give each of {members} members {LEAST_ROWS}; "
            f"member '{names[rows // LEAST_ROWS]}' would have too few"
        )
    match settings.kind:
        case "iid":
            parts = np.array_split(rng.permutation(rows), members)
        case "size":
            assert settings.sizes is not None
            parts = _cut(rng.permutation(rows), np.asarray(settings.sizes, dtype=np.float64))
        case "column":
            parts = np.array_split(np.argsort(features[:, settings.column], kind="stable"), members)
        case "dirichlet":
            parts = _dirichlet(labels, members, settings.alpha or 0.5, rng)
        case "hospitals":
            parts = _hospitals(labels, members, rng)
    return [np.sort(part) for part in _repair([np.asarray(p, dtype=np.int64) for p in parts])]


def _check(settings: SplitSettings, features: NDArray[np.float32], names: Sequence[str]) -> None:
    kind = settings.kind
    needs = {"size": "sizes", "column": "column", "resample": "per_node"}
    for other, key in [*needs.items(), ("dirichlet", "alpha")]:
        given = getattr(settings, key) is not None
        if given and kind != other:
            raise ConfigError(f"task.split: key '{key}' belongs to kind '{other}', not '{kind}'")
        if not given and kind == other and kind in needs:
            raise ConfigError(f"task.split: kind '{kind}' needs key '{key}'")
    if settings.sizes is not None and len(settings.sizes) != len(names):
        raise ConfigError(
            f"task.split: key 'sizes': found {len(settings.sizes)} sizes for {len(names)} members"
        )
    if settings.column is not None and settings.column >= features.shape[1]:
        raise ConfigError(
            f"task.split: key 'column': found {settings.column}, the data has columns 0 to "
            f"{features.shape[1] - 1}"
        )


def _held(
    only: Mapping[str, Sequence[str]],
    labels: NDArray[np.int64],
    names: Sequence[str],
    rng: np.random.Generator,
) -> list[Index]:
    """The rows of classes that some members alone have, in equal parts, by member."""
    pieces: list[list[Index]] = [[np.empty(0, dtype=np.int64)] for _ in names]
    place = {name: number for number, name in enumerate(names)}
    there = [str(label) for label in np.unique(labels)]
    for label, holders in only.items():
        if label not in there:
            raise ConfigError(
                f"task.split: key 'only': no class '{label}'; valid are {', '.join(there)}"
            )
        if not holders or len(set(holders)) < len(holders):
            raise ConfigError(f"task.split: key 'only.{label}': names nobody, or a member twice")
        for name in holders:
            if name not in place:
                raise ConfigError(
                    f"task.split: key 'only.{label}': no member '{name}'{nearest(name, names)}"
                )
        rows = rng.permutation(np.flatnonzero(labels == int(label)))
        for name, part in zip(holders, np.array_split(rows, len(holders)), strict=True):
            pieces[place[name]].append(part)
    return [np.concatenate(piece) for piece in pieces]


def _cut(order: Index, shares: Floats) -> list[Index]:
    return np.split(order, np.cumsum(apportion(len(order), shares))[:-1])


def _dirichlet(
    labels: NDArray[np.int64], members: int, alpha: float, rng: np.random.Generator
) -> list[Index]:
    """Each class is cut in shares drawn from Dir(alpha)."""
    pieces: list[list[Index]] = [[] for _ in range(members)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(members, alpha))
        # a tiny alpha can underflow to zeros everywhere: then one member gets the class
        if not (np.isfinite(shares).all() and shares.sum() > 0):
            shares = np.eye(members)[int(rng.integers(members))]
        for mine, piece in zip(pieces, _cut(rows, shares), strict=True):
            mine.append(piece)
    return [np.concatenate(piece) for piece in pieces]


def _hospitals(labels: NDArray[np.int64], members: int, rng: np.random.Generator) -> list[Index]:
    """Uneven sizes and case mixes: table of member × class counts fitted to both margins."""
    classes, counts = np.unique(labels, return_counts=True)
    sizes = rng.permutation(_SIZE_RATIO ** np.linspace(0, 1, members))
    tilts = np.stack([rng.permutation(np.linspace(-_TILT, _TILT, members)) for _ in classes], 1)
    table = np.exp(tilts)
    for _ in range(200):  # converges geometrically; 200 is far past float64's precision
        table *= (sizes / sizes.sum() * counts.sum() / table.sum(1))[:, None]
        table *= (counts / table.sum(0))[None, :]
    pieces: list[list[Index]] = [[] for _ in range(members)]
    for column, label in enumerate(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for mine, piece in zip(pieces, _cut(rows, table[:, column]), strict=True):
            mine.append(piece)
    return [np.concatenate(piece) for piece in pieces]


def _repair(parts: list[Index]) -> list[Index]:
    """Rows move from the largest part, its last ones first, until nobody has under LEAST_ROWS."""
    for poor in range(len(parts)):
        while len(parts[poor]) < LEAST_ROWS:
            rich = max(range(len(parts)), key=lambda i: (len(parts[i]), -i))
            parts[poor] = np.append(parts[poor], parts[rich][-1])
            parts[rich] = parts[rich][:-1]
    return parts
