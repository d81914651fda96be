"""The weights' theorem: rows sum to one, πW = π, and mixing ends at the weighted average."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from topology.generate import build
from topology.graph import Graph
from topology.measure import second_eigenvalue
from topology.settings import TopologySettings
from topology.weigh import mixing_matrix, neighbour_weight


@st.composite
def connected_graphs(draw):
    """A random tree plus random edges; or bipartite ones, pairs and cubes, where mixing is hard."""
    kind = draw(st.sampled_from(["random", "pair", "hypercube", "bipartite", "star", "ring"]))
    if kind in ("pair", "hypercube", "star", "ring"):
        nodes = {"pair": 2, "hypercube": 8, "star": 6, "ring": 6}[kind]
        family = "path" if kind == "pair" else kind
        return build(TopologySettings(kind=family, nodes=nodes), source="t")
    n = draw(st.integers(2, 10))
    names = [f"n{i}" for i in range(n)]
    if kind == "bipartite":
        left = draw(st.integers(1, n - 1))
        return Graph(names, [(a, b) for a in names[:left] for b in names[left:]])
    edges = {(draw(st.integers(0, i - 1)), i) for i in range(1, n)}
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] < p[1])
    edges |= draw(st.sets(pairs, max_size=n))
    return Graph(names, [(names[a], names[b]) for a, b in sorted(edges)])


@st.composite
def consortia(draw, samples_max=10_000_000):
    graph = draw(connected_graphs())
    return graph, {name: draw(st.integers(1, samples_max)) for name in graph.nodes}


@settings(deadline=None)
@given(consortia())
def test_rows_sum_to_one_and_the_samples_are_stationary(consortium):
    graph, samples = consortium
    matrix = mixing_matrix(graph, samples)
    shares = np.array([samples[name] for name in graph.nodes], dtype=float)
    shares /= shares.sum()
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-12
    assert np.abs(shares @ matrix - shares).max() < 1e-12
    assert (matrix >= 0).all()
    for index, name in enumerate(graph.nodes):
        assert matrix[index, index] >= 1 / (graph.degree(name) + 1) - 1e-12
        linked = {graph.nodes[j] for j in np.flatnonzero(matrix[index]) if j != index}
        assert linked == set(graph.neighbours(name))


@settings(deadline=None)
@given(consortia(samples_max=1000), st.integers(0, 2**32 - 1))
def test_mixing_ends_at_the_sample_weighted_average(consortium, seed):
    graph, samples = consortium
    matrix = mixing_matrix(graph, samples)
    counts = np.array([samples[name] for name in graph.nodes], dtype=float)
    models = np.random.default_rng(seed).normal(size=(len(graph.nodes), 3))
    average = counts @ models / counts.sum()
    for _ in range(40):  # squared 40 times: 10¹² rounds, more than any such graph needs
        matrix = matrix @ matrix
        matrix /= matrix.sum(axis=1, keepdims=True)  # else rounding doubles with each squaring
    assert np.abs(matrix @ models - average).max() < 1e-9


@settings(deadline=None)
@given(consortia())
def test_the_decay_per_round_is_the_second_eigenvalue(consortium):
    graph, samples = consortium
    matrix = mixing_matrix(graph, samples)
    counts = np.array([samples[name] for name in graph.nodes], dtype=float)
    values = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert second_eigenvalue(graph, samples) < 1
    # W itself is far from normal when samples are skewed: its own solver is the less exact one
    assert second_eigenvalue(graph, samples) == pytest.approx(values[-2], abs=1e-5)
    error = np.linspace(-1, 1, len(counts))
    error -= counts @ error / counts.sum()
    after = matrix @ error
    bound = second_eigenvalue(graph, samples) * np.sqrt(counts @ error**2)
    assert np.sqrt(counts @ after**2) <= bound * (1 + 1e-9) + 1e-9 * np.sqrt(counts.sum())


def test_equal_samples_give_the_plain_metropolis_weights():
    assert neighbour_weight(5, 2, 5, 4) == 1 / 5
    assert neighbour_weight(5, 4, 5, 2) == 1 / 5
    matrix = mixing_matrix(build(TopologySettings(kind="star", nodes=4), source="t"))
    assert matrix[0] == pytest.approx([1 / 4] * 4)
    assert matrix[1] == pytest.approx([1 / 4, 3 / 4, 0, 0])


def test_a_pair_gives_the_smaller_member_half():
    assert neighbour_weight(100, 1, 300, 1) == 1 / 2
    assert neighbour_weight(300, 1, 100, 1) == pytest.approx(1 / 6)


@settings(deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 1000), st.integers(1, 10**18), st.integers(1, 1000))
def test_an_inflated_count_gains_no_more_than_its_seat(n_i, d_i, n_j, d_j):
    assert 0 < neighbour_weight(n_i, d_i, n_j, d_j) <= 1 / (d_i + 1)


def test_counts_below_one_are_refused():
    for n_i, n_j in ((0, 1), (1, 0), (1, -5)):
        with pytest.raises(ConfigError, match="at least 1"):
            neighbour_weight(n_i, 1, n_j, 1)
    with pytest.raises(ConfigError, match="degree"):
        neighbour_weight(1, 1, 1, 0)
    graph = Graph("ab", [("a", "b")])
    with pytest.raises(ConfigError, match="node 'b' has 0 samples"):
        mixing_matrix(graph, {"a": 3, "b": 0})
    with pytest.raises(ConfigError, match="no sample count for node 'b'"):
        mixing_matrix(graph, {"a": 3})
