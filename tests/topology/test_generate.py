"""Generators against their known shapes; names, files, chords; refusals; determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from topology.generate import build, load
from topology.measure import diameter
from topology.settings import TopologySettings, library_path


def make(**keys):
    return build(TopologySettings(**keys), source="t")


SHAPES = [
    # settings, edges, {degree: how many nodes}, diameter
    ({"kind": "ring", "nodes": 8}, 8, {2: 8}, 4),
    ({"kind": "ring", "nodes": 3}, 3, {2: 3}, 1),
    ({"kind": "ring", "nodes": 2}, 1, {1: 2}, 1),
    ({"kind": "ring", "nodes": 1}, 0, {0: 1}, 0),
    ({"kind": "complete", "nodes": 7}, 21, {6: 7}, 1),
    ({"kind": "star", "nodes": 6}, 5, {1: 5, 5: 1}, 2),
    ({"kind": "path", "nodes": 5}, 4, {1: 2, 2: 3}, 4),
    ({"kind": "grid", "rows": 3, "columns": 4}, 17, {2: 4, 3: 6, 4: 2}, 5),
    ({"kind": "grid", "rows": 1, "columns": 4}, 3, {1: 2, 2: 2}, 3),
    ({"kind": "torus", "rows": 4, "columns": 5}, 40, {4: 20}, 4),
    ({"kind": "torus", "rows": 3, "columns": 3, "nodes": 9}, 18, {4: 9}, 2),
    ({"kind": "dumbbell", "nodes": 8}, 13, {3: 6, 4: 2}, 3),
    ({"kind": "dumbbell", "nodes": 7, "bridges": 3}, 12, {3: 4, 4: 3}, 2),
    ({"kind": "exponential", "nodes": 16}, 56, {7: 16}, 2),
    ({"kind": "exponential", "nodes": 7}, 21, {6: 7}, 1),
    ({"kind": "hypercube", "nodes": 16}, 32, {4: 16}, 4),
    ({"kind": "regular", "nodes": 20, "degree": 2}, 20, {2: 20}, 10),
    ({"kind": "regular", "nodes": 10, "degree": 9}, 45, {9: 10}, 1),
    ({"kind": "small-world", "nodes": 10, "degree": 4, "probability": 0}, 20, {4: 10}, 3),
    ({"kind": "erdos-renyi", "nodes": 6, "probability": 1}, 15, {5: 6}, 1),
]


@pytest.mark.parametrize(("keys", "edges", "degrees", "across"), SHAPES)
def test_each_family_has_its_known_shape(keys, edges, degrees, across):
    graph = make(**keys)
    assert len(graph.edges) == edges
    assert Counter(graph.degree(name) for name in graph.nodes) == degrees
    assert diameter(graph) == across
    assert graph.nodes == tuple(f"n{i}" for i in range(len(graph.nodes)))


def test_the_exponential_graph_joins_powers_of_two():
    graph = make(kind="exponential", nodes=12)
    assert graph.neighbours("n0") == tuple(
        sorted({f"n{i % 12}" for i in (1, 2, 4, 8, -1, -2, -4, -8)})
    )


def test_the_star_and_the_dumbbell_know_their_centres():
    assert make(kind="star", names=("hub", "x", "y")).degree("hub") == 2
    halves = make(kind="dumbbell", nodes=10, bridges=2)
    crossing = [e for e in halves.edges if (int(e[0][1:]) < 5) != (int(e[1][1:]) < 5)]
    assert crossing == [("n0", "n5"), ("n1", "n6")]


@settings(deadline=None)
@given(st.integers(2, 24), st.integers(2, 23), st.integers(0, 10**6))
def test_random_regular_graphs_are_regular_and_connected(nodes, degree, seed):
    if degree >= nodes or nodes * degree % 2:
        with pytest.raises(ConfigError, match="key 'degree'"):
            make(kind="regular", nodes=nodes, degree=degree, seed=seed)
        return
    graph = make(kind="regular", nodes=nodes, degree=degree, seed=seed)
    assert {graph.degree(name) for name in graph.nodes} == {degree}
    assert len(graph.components()) == 1


def test_a_regular_draw_that_falls_apart_is_drawn_again():
    # Seed 400's first draw is two complete graphs of four: the ensemble is the connected ones.
    assert len(make(kind="regular", nodes=8, degree=3, seed=400).components()) == 1


def test_every_regular_graph_is_about_equally_likely():
    # Of the 70 cubic graphs on six labelled nodes, 10 are bipartite, the rest are prisms.
    drawn = Counter(make(kind="regular", nodes=6, degree=3, seed=s).edges for s in range(1400))
    assert len(drawn) == 70
    bipartite = sum(count for edges, count in drawn.items() if not _has_triangle(set(edges)))
    assert abs(bipartite - 200) < 5 * 13.1  # five standard deviations


def _has_triangle(edges):
    return any(
        (a, c) in edges and (b, c) in edges for a, b in edges for c in ("n2", "n3", "n4", "n5")
    )


def test_ten_thousand_nodes_of_degree_four():
    graph = make(kind="regular", nodes=10_000, degree=4, seed=3)
    assert {graph.degree(name) for name in graph.nodes} == {4}


def test_small_worlds_keep_their_edges_and_rewire_some():
    lattice = make(kind="small-world", nodes=40, degree=6, probability=0.0)
    rewired = make(kind="small-world", nodes=40, degree=6, probability=0.3, seed=2)
    kept = set(lattice.edges) & set(rewired.edges)
    assert len(rewired.edges) == len(lattice.edges) == 120
    assert 60 < len(kept) < 115
    # three edges per node keep one end where it was
    assert min(rewired.degree(name) for name in rewired.nodes) >= 3


def test_erdos_renyi_has_about_the_expected_number_of_edges():
    graph = make(kind="erdos-renyi", nodes=100, probability=0.2, seed=1)
    assert abs(len(graph.edges) - 990) < 5 * 28.2  # five standard deviations


@pytest.mark.parametrize("kind", ["regular", "erdos-renyi", "small-world"])
def test_the_seed_decides_and_minus_one_is_not_one(kind):
    keys = {
        "regular": {"degree": 4},
        "erdos-renyi": {"probability": 0.5},
        "small-world": {"degree": 4, "probability": 0.5},
    }[kind]
    drawn = [make(kind=kind, nodes=30, seed=seed, **keys) for seed in (1, 1, -1, 2)]
    assert drawn[0] == drawn[1]
    assert len({graph.edges for graph in drawn}) == 3


SCRIPT = """
from topology.generate import build
from topology.settings import TopologySettings as S
import hashlib
for s in (S(kind="regular", nodes=200, degree=4, seed=5), S(kind="regular", nodes=9, degree=6),
          S(kind="small-world", nodes=60, degree=4, probability=0.2),
          S(kind="erdos-renyi", nodes=60, probability=0.2), S(kind="exponential", nodes=13)):
    print(hashlib.sha256(repr(build(s, source="t")).encode()).hexdigest())
"""


def test_every_process_draws_the_same_graph_whatever_its_hash_seed():
    printed = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        printed.add(done.stdout)
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("keys", "edges"),
    [
        ({"kind": "regular", "nodes": 8, "degree": 3}, "01 02 04 15 16 23 24 34 37 56 57 67"),
        (
            {"kind": "small-world", "nodes": 8, "degree": 2, "probability": 0.4},
            "02 07 12 26 34 45 56 67",
        ),
        ({"kind": "erdos-renyi", "nodes": 6, "probability": 0.5}, "02 03 14 15 23 25 34 35 45"),
    ],
)
def test_a_drawn_graph_stays_what_it_was(keys, edges):
    # Members compare a digest of the graph: a changed generator would shut out older versions.
    assert " ".join(a[1:] + b[1:] for a, b in make(seed=1, **keys).edges) == edges


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"kind": "hypercube", "nodes": 12}, "power of two, found 12; nearest are 8 and 16"),
        ({"kind": "torus", "rows": 2, "columns": 5}, "key 'rows': a torus needs at least 3"),
        ({"kind": "grid", "rows": 2, "columns": 5, "nodes": 9}, "2 rows of 5 are 10"),
        ({"kind": "dumbbell", "nodes": 6, "bridges": 4}, "key 'bridges': at most 3"),
        ({"kind": "regular", "nodes": 5, "degree": 3}, "nodes × degree even, found 3"),
        ({"kind": "regular", "nodes": 4, "degree": 4}, "degree below 4"),
        ({"kind": "regular", "nodes": 4, "degree": 1}, "never connected"),
        ({"kind": "small-world", "nodes": 9, "degree": 3, "probability": 0.1}, "even degree"),
        ({"kind": "small-world", "nodes": 4, "degree": 4, "probability": 0.1}, "below 4"),
        ({"kind": "erdos-renyi", "nodes": 4, "probability": float("nan")}, "from 0 to 1"),
        ({"kind": "ring", "nodes": 4, "names": ("a", "b", "c")}, "asks for 4 nodes, but 3 are"),
        ({"kind": "ring", "nodes": 4, "edges": (("n0", "n1"),)}, "edge n0–n1 stands twice"),
        ({"kind": "ring", "nodes": 4, "edges": (("n0", "n9"),)}, "'n9'; did you mean 'n3'?"),
        ({"kind": "ring", "names": ("a", "b", "a")}, "node name 'a' stands twice"),
        ({"kind": "grid", "rows": 2, "columns": 2, "names": ("a", "b")}, "key 'rows' asks for 4"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(keys, expected):
    with pytest.raises(ConfigError) as caught:
        make(**keys)
    assert str(caught.value).startswith("t: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_disconnected_graph_is_refused_with_its_components_named():
    with pytest.raises(ConfigError) as caught:
        make(kind="explicit", names=tuple("abcde"), edges=(("a", "b"), ("c", "d")))
    assert "not connected, it has 3 components: {a, b}; {c, d}; {e}; add edges" in str(caught.value)


def test_a_disconnected_draw_is_not_drawn_again_but_names_its_seed():
    with pytest.raises(ConfigError) as caught:
        make(kind="erdos-renyi", nodes=400, probability=0.001, seed=11)
    message = str(caught.value)
    assert "not connected" in message
    assert "with seed 11: name another seed" in message
    assert "nodes in all}" in message  # large components are abbreviated
    assert " more; " in message
    assert len(message) < 400


def test_chords_are_added_to_any_generator():
    ring = make(kind="ring", nodes=6)
    chorded = make(kind="ring", nodes=6, edges=(("n0", "n3"),))
    assert set(chorded.edges) - set(ring.edges) == {("n0", "n3")}
    # and may connect what a draw left apart
    pair = make(kind="erdos-renyi", nodes=2, probability=0, edges=(("n0", "n1"),))
    assert pair.edges == (("n0", "n1"),)


def test_the_members_names_are_taken_in_their_order():
    graph = build(TopologySettings(kind="path"), names=["z", "y", "x"], source="t")
    assert graph.nodes == ("z", "y", "x")
    assert graph.edges == (("x", "y"), ("y", "z"))


def test_own_names_give_the_generator_its_order_but_must_be_the_members():
    own = TopologySettings(kind="path", names=("b", "a", "c"))
    graph = build(own, names=["a", "b", "c"], source="t")
    assert graph.nodes == ("a", "b", "c")
    assert graph.edges == (("a", "b"), ("a", "c"))
    with pytest.raises(ConfigError, match=r"key 'names' leaves out \{d\}"):
        build(own, names=["a", "b", "c", "d"], source="t")


def test_a_file_that_names_a_stranger_is_refused_with_file_name_and_nearest(tmp_path):
    path = tmp_path / "graph.toml"
    members = ["clinic-a", "clinic-b", "clinic-c"]
    for text in (
        'kind = "explicit"\nedges = [["clinic-a", "clinic-b"], ["clinic-b", "clinci-c"]]',
        'kind = "ring"\nnames = ["clinic-a", "clinic-b", "clinci-c"]',
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            build(
                TopologySettings(file="graph.toml"),
                names=members,
                base=tmp_path,
                source="charter.toml",
            )
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "'clinci-c'" in message
        assert "did you mean 'clinic-c'?" in message


def test_a_file_is_found_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ring-8.toml").write_text('kind = "star"\nnodes = 3')
    near = build(TopologySettings(file="sub/ring-8.toml"), base=tmp_path, source="t")
    assert len(near.nodes) == 3
    # a bare name that is not there is the library's
    assert len(build(TopologySettings(file="ring-8.toml"), base=tmp_path, source="t").nodes) == 8
    # what is there goes first
    own = build(TopologySettings(file="ring-8.toml"), base=tmp_path / "sub", source="t")
    assert len(own.nodes) == 3


def test_files_that_cannot_be_used_are_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: no such file"):
        build(TopologySettings(file="nowhere.toml"), base=tmp_path, source="t")
    (tmp_path / "chain.toml").write_text('file = "other.toml"')
    with pytest.raises(ConfigError, match=r"chain.toml: key 'file'.*cannot name another"):
        load(tmp_path / "chain.toml")
    (tmp_path / "typo.toml").write_text('kind = "ring"\nnodez = 3')
    with pytest.raises(ConfigError, match=r"typo.toml: unknown key 'nodez'; did you mean 'nodes'"):
        load(tmp_path / "typo.toml")


@pytest.mark.parametrize(
    ("name", "nodes", "edges"),
    [("hospitals-5", 5, 6), ("ring-8", 8, 8), ("regular-16-4", 16, 32), ("two-regions", 8, 14)],
)
def test_the_library_builds_and_says_what_it_is_for(name, nodes, edges):
    graph = load(library_path(name))
    assert (len(graph.nodes), len(graph.edges)) == (nodes, edges)
    assert library_path(name).read_text().startswith("# ")


def test_every_library_file_is_tested_here():
    assert len(list(library_path("ring-8").parent.iterdir())) == 4
