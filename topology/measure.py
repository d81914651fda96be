"""How good a consortium graph is: mixing speed, distances, weak points, what it can bear.

numpy, scipy and networkx are imported inside the functions, so that importing this file is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from node.errors import ConfigError
from topology.graph import Graph
from topology.weigh import mixing_matrix, sample_counts, self_weights, weights

if TYPE_CHECKING:
    import networkx

# Above this a dense eigenvalue problem (n³) costs more than a few hundred sparse products.
_DENSE_NODES_MAX = 400
# Twenty-fold: 95 % of the disagreement is gone.
_SHRINK = math.log(20)
# λ₂ below this is rounding; it also keeps ceil() from counting the last bit as a round.
_ROUNDING = 1e-9


class Measures(Struct, frozen=True, kw_only=True):
    """What ``measure`` found out about a connected graph.

    ``lambda2``: the second largest absolute eigenvalue of W; ``spectral_gap``: 1 − lambda2.
    ``rounds_to_consensus``: rounds after which disagreement has shrunk 20-fold; with samples, in
    the norm weighted by them. ``bridges``, ``cut_nodes``: edges and nodes without which the rest
    falls apart. ``tolerates``: the largest f with d_min + 1 > 2 f, beyond which no rule can
    tell a majority in the smallest neighbourhood; single rules may bear less.
    """

    nodes: int
    edges: int
    degree_min: int
    degree_mean: float
    degree_max: int
    diameter: int
    lambda2: float
    spectral_gap: float
    rounds_to_consensus: int
    bridges: tuple[tuple[str, str], ...]
    cut_nodes: tuple[str, ...]
    tolerates: int


def measure(graph: Graph, samples: Mapping[str, int] | None = None) -> Measures:
    """Measure a connected graph, with weights from ``samples`` (None: equal ones).

    Raises ConfigError for a graph that is not connected and as ``weigh.sample_counts`` does.
    """
    if len(graph.components()) > 1:
        raise ConfigError("only a connected topology can be measured")
    degrees = [graph.degree(name) for name in graph.nodes]
    lambda2 = second_eigenvalue(graph, samples)
    bridges, cut_nodes = _weak_points(graph)
    return Measures(
        nodes=len(graph.nodes),
        edges=len(graph.edges),
        degree_min=min(degrees),
        degree_mean=2 * len(graph.edges) / len(graph.nodes),
        degree_max=max(degrees),
        diameter=diameter(graph),
        lambda2=lambda2,
        spectral_gap=1 - lambda2,
        rounds_to_consensus=rounds_to_consensus(lambda2) if len(graph.nodes) > 1 else 0,
        bridges=bridges,
        cut_nodes=cut_nodes,
        tolerates=min(degrees) // 2,
    )


def rounds_to_consensus(lambda2: float) -> int:
    """⌈ln 20 / −ln λ₂⌉, at least 1: each round multiplies the disagreement by at most λ₂.

    Raises ConfigError unless 0 ≤ λ₂ < 1 (1 is a graph that never agrees).
    """
    if not 0 <= lambda2 < 1:
        raise ConfigError(f"λ₂ of a connected topology is from 0 to below 1, found {lambda2}")
    if lambda2 < _ROUNDING:
        return 1
    return max(1, math.ceil(_SHRINK / -math.log(lambda2) - _ROUNDING))


def relaxation(lambda2: float) -> float:
    """ω = 2 / (1 + √(1 − λ₂²)): the best factor of second-order gossip, from 1 to below 2.

    x(k+1) = ω W x(k) + (1 − ω) x(k−1) has the fixed point and the conserved weighted sum of
    x(k+1) = W x(k), and shrinks the disagreement by √(ω − 1) a round instead of λ₂ (Muthukrishnan,
    Ghosh, Schultz 1998, after Golub & Varga 1961). Stable for any weights of symmetric edges.
    """
    return 2 / (1 + math.sqrt(1 - lambda2 * lambda2))


def default_final_mixing(lambda2: float) -> int:
    """How many rounds of mixing without training end a run: rounds to consensus, 5 to 50.

    Raises ConfigError as ``rounds_to_consensus`` does.
    """
    return min(50, max(5, rounds_to_consensus(lambda2)))


def second_eigenvalue(graph: Graph, samples: Mapping[str, int] | None = None) -> float:
    """The second largest |eigenvalue| of W, which bounds the error's decay per round.

    0 for one node; of a connected graph always below 1. Dense up to 400 nodes, Lanczos beyond.
    W is reversible with respect to π, so S = D^½ W D^-½ with D = diag(π) is symmetric, has the
    eigenvalues of W, and √π for the eigenvalue 1 (Levin & Peres 2017, ch. 12).
    """
    if len(graph.nodes) == 1:
        return 0.0
    dense = len(graph.nodes) <= _DENSE_NODES_MAX
    found = (_by_dense if dense else _by_lanczos)(graph, samples)
    # Of a connected graph it is below 1, though rounding may not see that.
    return min(found, math.nextafter(1, 0)) if found > _ROUNDING else 0.0


def _by_dense(graph: Graph, samples: Mapping[str, int] | None) -> float:
    import numpy as np

    root = np.sqrt(np.array(sample_counts(graph, samples), dtype=np.float64))
    symmetric = mixing_matrix(graph, samples) * root[:, None] / root[None, :]
    root /= np.linalg.norm(root)
    # Taking √π out sends the eigenvalue 1 to 0: then the largest |eigenvalue| is the one sought.
    symmetric = (symmetric + symmetric.T) / 2 - np.outer(root, root)
    return float(np.abs(np.linalg.eigvalsh(symmetric)).max())


def _by_lanczos(graph: Graph, samples: Mapping[str, int] | None) -> float:
    import numpy as np
    from scipy import sparse  # type: ignore[import-untyped, unused-ignore]
    from scipy.sparse import linalg  # type: ignore[import-untyped, unused-ignore]

    n = len(graph.nodes)
    counts = sample_counts(graph, samples)
    own = self_weights(graph, samples)
    rows, columns, values = list(range(n)), list(range(n)), list(own)
    for i, j, there, _back in weights(graph, samples):
        entry = there * math.sqrt(counts[i] / counts[j])
        rows += [i, j]
        columns += [j, i]
        values += [entry, entry]
    symmetric = sparse.csc_matrix((values, (rows, columns)), shape=(n, n))
    root = np.sqrt(np.array(counts, dtype=np.float64))
    root /= np.linalg.norm(root)
    deflated = linalg.LinearOperator(
        (n, n), matvec=lambda x: symmetric @ x - root * (root @ x), dtype=np.float64
    )
    start = np.random.default_rng(0).standard_normal(n)  # else ARPACK draws one: not repeatable
    try:
        ends = linalg.eigsh(
            deflated, k=2, which="BE", v0=start, ncv=40, maxiter=50, return_eigenvectors=False
        )
        return float(np.abs(ends).max())
    except linalg.ArpackNoConvergence:
        # Long thin graphs crowd their eigenvalues below 1; there, solving is cheap instead.
        near_one = linalg.eigsh(
            symmetric, k=2, sigma=1 + 1e-9, which="LM", v0=start, return_eigenvectors=False
        )
    upper = float(min(near_one))
    # Gershgorin: no eigenvalue lies below 2 min W_ii − 1, so the lower end seldom matters.
    if upper >= 1 - 2 * min(own):
        return upper
    low = linalg.eigsh(deflated, k=1, which="SA", v0=start, return_eigenvectors=False)
    return max(upper, abs(float(low[0])))


def diameter(graph: Graph) -> int:
    """The largest number of hops between two nodes. Raises ConfigError if not connected.

    Every node's reached set grows by its neighbours' sets, as bits of one integer each: for the
    short diameters one wants, that is a handful of passes over the edges.
    """
    if len(graph.components()) > 1:
        raise ConfigError("a topology that is not connected has no diameter")
    place = {name: index for index, name in enumerate(graph.nodes)}
    adjacent = [[place[peer] for peer in graph.neighbours(name)] for name in graph.nodes]
    reached = [1 << index for index in range(len(adjacent))]
    everybody = (1 << len(adjacent)) - 1
    hops = 0
    while any(bits != everybody for bits in reached):
        following = []
        for index, peers in enumerate(adjacent):
            bits = reached[index]
            for peer in peers if bits != everybody else ():
                bits |= reached[peer]
            following.append(bits)
        reached = following
        hops += 1
    return hops


def as_networkx(graph: Graph) -> networkx.Graph:
    """The same graph for networkx, nodes and edges in our order."""
    import networkx

    copy = networkx.Graph()
    copy.add_nodes_from(graph.nodes)
    copy.add_edges_from(graph.edges)
    return copy


def _weak_points(graph: Graph) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    import networkx

    copy = as_networkx(graph)
    bridges = sorted((min(edge), max(edge)) for edge in networkx.bridges(copy))
    return tuple(bridges), tuple(sorted(set(networkx.articulation_points(copy))))
