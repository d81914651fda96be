"""Measures against closed forms, and the sparse solver against the dense one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from topology import measure as measures
from topology.generate import build
from topology.graph import Graph
from topology.measure import (
    default_final_mixing,
    diameter,
    measure,
    rounds_to_consensus,
    second_eigenvalue,
)
from topology.settings import TopologySettings


def make(**keys):
    return build(TopologySettings(**keys), source="t")


@pytest.mark.parametrize("n", [3, 8, 50, 400, 401, 1500])
def test_the_ring_has_its_known_eigenvalue(n):
    expected = 1 / 3 + 2 / 3 * math.cos(2 * math.pi / n)
    assert second_eigenvalue(make(kind="ring", nodes=n)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n", [2, 5, 30, 450])
def test_the_complete_graph_agrees_in_one_round(n):
    found = measure(make(kind="complete", nodes=n))
    assert found.lambda2 == 0
    assert (found.spectral_gap, found.rounds_to_consensus, found.diameter) == (1, 1, 1)


@pytest.mark.parametrize(("n", "d"), [(8, 3), (16, 4), (512, 9)])
def test_the_hypercube_has_its_known_eigenvalue(n, d):
    assert second_eigenvalue(make(kind="hypercube", nodes=n)) == pytest.approx(1 - 2 / (d + 1))


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "star", "nodes": 30},
        {"kind": "grid", "rows": 4, "columns": 20},
        {"kind": "regular", "nodes": 60, "degree": 4},
        {"kind": "path", "nodes": 300},
        {"kind": "complete", "nodes": 60},
        {"kind": "dumbbell", "nodes": 60},
    ],
)
def test_the_sparse_solver_agrees_with_the_dense_one(keys, monkeypatch):
    graph = make(**keys)
    samples = {name: 10 + 37 * index % 500 for index, name in enumerate(graph.nodes)}
    for counts in (None, samples):
        dense = second_eigenvalue(graph, counts)
        with monkeypatch.context() as patch:
            patch.setattr(measures, "_DENSE_NODES_MAX", 2)
            assert second_eigenvalue(graph, counts) == pytest.approx(dense, abs=1e-8)


def test_a_large_graph_is_measured_the_same_way_each_time():
    graph = make(kind="regular", nodes=1000, degree=4)
    first = measure(graph)
    assert first == measure(graph)
    assert 0.85 < first.lambda2 < 0.95
    assert first.tolerates == 2


def test_the_measures_of_a_small_dumbbell():
    found = measure(make(kind="dumbbell", nodes=8))
    assert (found.nodes, found.edges, found.diameter) == (8, 13, 3)
    assert (found.degree_min, found.degree_mean, found.degree_max) == (3, 13 / 4, 4)
    assert found.bridges == (("n0", "n4"),)
    assert found.cut_nodes == ("n0", "n4")
    assert found.tolerates == 1


def test_a_ring_has_no_weak_point_and_a_star_only_has_them():
    assert measure(make(kind="ring", nodes=9)).bridges == ()
    star = measure(make(kind="star", nodes=5))
    assert len(star.bridges) == 4
    assert star.cut_nodes == ("n0",)
    assert star.tolerates == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 7))
def test_the_smallest_neighbourhood_decides_what_is_tolerated(extra, degree):
    nodes = degree + 2 * extra - 1 if degree % 2 else degree + extra  # nodes × degree is even
    found = measure(make(kind="regular", nodes=nodes, degree=degree))
    assert degree + 1 > 2 * found.tolerates
    assert not degree + 1 > 2 * (found.tolerates + 1)


def test_rounds_are_what_shrinks_disagreement_twenty_fold():
    for lambda2 in (0.1, 0.5, 0.9, 0.999):
        rounds = rounds_to_consensus(lambda2)
        assert lambda2**rounds <= 1 / 20 < lambda2 ** (rounds - 1)
    for rounds in range(1, 80):  # at the boundary, whatever the last bit says
        assert rounds_to_consensus(20 ** (-1 / rounds)) == rounds


def test_final_mixing_stays_between_five_and_fifty():
    assert default_final_mixing(0.0) == 5
    assert default_final_mixing(0.1) == 5
    assert default_final_mixing(0.8047378541243653) == 14
    assert default_final_mixing(0.99999) == 50


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, math.inf])
def test_an_eigenvalue_that_cannot_be_is_refused(value):
    with pytest.raises(ConfigError, match="λ₂"):
        default_final_mixing(value)


def test_one_node_and_disconnected_nodes():
    alone = measure(Graph("a", []))
    assert (alone.diameter, alone.lambda2, alone.rounds_to_consensus) == (0, 0, 0)
    apart = Graph("ab", [])
    with pytest.raises(ConfigError, match="only a connected topology"):
        measure(apart)
    with pytest.raises(ConfigError, match="no diameter"):
        diameter(apart)


def test_very_unequal_samples_keep_the_eigenvalue_below_one():
    names = "abcdefghi"
    graph = Graph(names, list(itertools.pairwise(names)))
    samples = {name: 1 if index % 2 else 10**16 for index, name in enumerate(names)}
    assert 0 < measure(graph, samples).lambda2 < 1
