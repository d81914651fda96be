"""Pictures: well-formed, complete, repeatable, and safe against names that look like markup."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from node.errors import ConfigError
from topology.draw import draw_svg, draw_text, layout
from topology.generate import build, load
from topology.graph import Graph
from topology.settings import TopologySettings, library_path

SVG = "{http://www.w3.org/2000/svg}"


def make(**keys):
    return build(TopologySettings(**keys), source="t")


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "ring", "nodes": 1},
        {"kind": "path", "nodes": 2},
        {"kind": "ring", "nodes": 40},
        {"kind": "grid", "rows": 4, "columns": 5},
        {"kind": "star", "nodes": 20},
        {"kind": "regular", "nodes": 160, "degree": 4},
        {"kind": "regular", "nodes": 2000, "degree": 4},
    ],
)
def test_a_layout_fits_the_square_and_keeps_nodes_apart(keys):
    graph = make(**keys)
    places = layout(graph)
    assert set(places) == set(graph.nodes)
    assert all(abs(v) <= 1 + 1e-9 for place in places.values() for v in place)
    assert len(set(places.values())) == len(graph.nodes)
    assert layout(graph) == places


def test_rings_are_circles_whatever_their_size():
    places = layout(make(kind="ring", nodes=100))
    assert all(math.hypot(*place) == pytest.approx(1) for place in places.values())
    assert places["n0"] == pytest.approx((0, -1))  # the first stands at the top


def test_the_svg_shows_every_node_and_edge_and_describes_itself():
    graph = load(library_path("hospitals-5"))
    samples = {name: 100 * (index + 1) for index, name in enumerate(graph.nodes)}
    root = ElementTree.fromstring(
        draw_svg(graph, samples=samples, highlight={"clinic-b": "#c1121f"})
    )
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == "Topology: 5 nodes, 6 edges"
    assert "clinic-a – clinic-c" in root[1].text
    assert [t.text for t in root.iter(f"{SVG}text")] == list(graph.nodes)
    assert len(list(root.iter(f"{SVG}line"))) == 6
    circles = list(root.iter(f"{SVG}circle"))
    radii = [float(circle.get("r")) for circle in circles]
    assert radii == sorted(radii)
    assert radii[0] < radii[-1]
    assert [c.get("fill") for c in circles] == [None, "#c1121f", None, None, None]
    assert circles[0][0].text == "clinic-a: 3 neighbours, 100 samples"


def test_names_and_colours_cannot_become_markup():
    name = '<script>"&'
    graph = Graph([name, "b"], [(name, "b")])
    svg = draw_svg(graph, highlight={"b": '"/><script>'})
    root = ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert [t.text for t in root.iter(f"{SVG}text")] == [name, "b"]


def test_large_graphs_drop_their_labels():
    root = ElementTree.fromstring(draw_svg(make(kind="regular", nodes=160, degree=4)))
    assert len(list(root.iter(f"{SVG}circle"))) == 160
    assert not list(root.iter(f"{SVG}text"))


def test_samples_must_cover_the_graph():
    with pytest.raises(ConfigError, match="no sample count for node 'b'"):
        draw_svg(Graph("ab", [("a", "b")]), samples={"a": 1})


def test_the_listing_for_terminals_is_aligned():
    text = draw_text(make(kind="star", names=("hub", "a", "b")))
    assert text == "hub  2  a b\na    1  hub\nb    1  hub\n"
    assert draw_text(Graph("a", [])) == "a  0\n"
