"""Graph: normal form, refusals, neighbours, components."""

from __future__ import annotations

import dataclasses

import pytest

from node.errors import ConfigError
from topology.graph import Graph


def test_edges_have_a_normal_form_and_nodes_keep_their_order():
    graph = Graph(["c", "a", "b"], [("c", "b"), ("b", "a")])
    assert graph.nodes == ("c", "a", "b")
    assert graph.edges == (("a", "b"), ("b", "c"))
    assert graph.neighbours("b") == ("a", "c")
    assert (graph.degree("a"), graph.degree("b")) == (1, 2)
    assert graph == Graph(("c", "a", "b"), (("a", "b"), ("b", "c")))
    assert hash(graph) == hash(Graph(("c", "a", "b"), (("a", "b"), ("b", "c"))))


def test_a_graph_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Graph("ab", [("a", "b")]).nodes = ()


@pytest.mark.parametrize(
    ("nodes", "edges", "expected"),
    [
        ("ab", [("a", "a")], "edge a–a joins a node with itself"),
        ("ab", [("a", "b"), ("b", "a")], "edge b–a stands twice"),
        (["clinic-a", "clinic-b"], [("clinic-a", "clinci-b")], "did you mean 'clinic-b'?"),
        (["x", "y"], [("x", "quite-else")], "'quite-else'; valid are x, y"),
        ("aa", [], "node name 'a' stands twice"),
        (["a", ""], [], "empty"),
        ([], [], "at least one node"),
    ],
)
def test_what_is_not_a_simple_graph_is_refused(nodes, edges, expected):
    with pytest.raises(ConfigError) as caught:
        Graph(nodes, edges)
    assert expected in str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no node 'nord'.*did you mean 'north'"):
        Graph(["north", "south"], [("north", "south")]).neighbours("nord")


def test_components_come_largest_first_in_node_order():
    graph = Graph("abcdef", [("e", "f"), ("d", "f"), ("c", "b")])
    assert graph.components() == (("d", "e", "f"), ("b", "c"), ("a",))
