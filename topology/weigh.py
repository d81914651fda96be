"""Mixing weights: sample-weighted Metropolis–Hastings, as pure functions.

W_ij = min{ 1/(d_i+1), (n_j/n_i)/(d_j+1) } for neighbours, W_ii the rest. The chain is reversible
with respect to π_i ∝ n_i, so repeated mixing leads to Σ n_i x_i / Σ n_i without re-weighting any
loss, and a node needs to know only (d_j, n_j) of its neighbours. Sources: Hastings 1970
(acceptance rule); Xiao & Boyd 2004 (local-degree weights for averaging). With equal n it is the
usual 1/(1 + max(d_i, d_j)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from node.errors import ConfigError
from topology.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def neighbour_weight(n_i: int, d_i: int, n_j: int, d_j: int) -> float:
    """The weight W_ij that node i gives its neighbour j; n: samples (≥ 1), d: degrees (≥ 1).

    At most 1/(d_i+1), whatever j claims; so i keeps at least 1/(d_i+1) for itself.
    Raises ConfigError for fewer than one sample or one neighbour.
    """
    if n_i < 1 or n_j < 1:
        raise ConfigError(f"samples must be at least 1 to weigh neighbours, found {min(n_i, n_j)}")
    if d_i < 1 or d_j < 1:
        raise ConfigError(f"a neighbour has a degree of at least 1, found {min(d_i, d_j)}")
    return min(1 / (d_i + 1), n_j / (n_i * (d_j + 1)))


def sample_counts(graph: Graph, samples: Mapping[str, int] | None) -> tuple[int, ...]:
    """Samples in node order; None means equal ones.

    Raises ConfigError for a node without a count and for counts below 1.
    """
    if samples is None:
        return (1,) * len(graph.nodes)
    for name in graph.nodes:
        if name not in samples:
            raise ConfigError(f"no sample count for node '{name}'")
        if samples[name] < 1:
            raise ConfigError(f"node '{name}' has {samples[name]} samples; at least 1 is needed")
    return tuple(samples[name] for name in graph.nodes)


def weights(
    graph: Graph, samples: Mapping[str, int] | None
) -> Iterator[tuple[int, int, float, float]]:
    """For each edge, as node indices: (i, j, W_ij, W_ji)."""
    counts = sample_counts(graph, samples)
    place = {name: index for index, name in enumerate(graph.nodes)}
    degrees = [graph.degree(name) for name in graph.nodes]
    for a, b in graph.edges:
        i, j = place[a], place[b]
        there = neighbour_weight(counts[i], degrees[i], counts[j], degrees[j])
        back = neighbour_weight(counts[j], degrees[j], counts[i], degrees[i])
        yield i, j, there, back


def self_weights(graph: Graph, samples: Mapping[str, int] | None) -> list[float]:
    """W_ii in node order: one minus what the neighbours get; at least 1/(d_i+1)."""
    given: list[list[float]] = [[] for _ in graph.nodes]
    for i, j, there, back in weights(graph, samples):
        given[i].append(there)
        given[j].append(back)
    return [1 - math.fsum(row) for row in given]


def mixing_matrix(graph: Graph, samples: Mapping[str, int] | None = None) -> NDArray[np.float64]:
    """W of shape (n, n), float64, rows and columns in node order; rows sum to one.

    π_i ∝ samples satisfies πW = π; the diagonal is positive. Dense: meant for up to a few
    thousand nodes. Raises ConfigError as ``sample_counts`` does.
    """
    import numpy as np

    matrix = np.diag(np.array(self_weights(graph, samples), dtype=np.float64))
    for i, j, there, back in weights(graph, samples):
        matrix[i, j], matrix[j, i] = there, back
    return matrix
