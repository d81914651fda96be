"""Pictures of a consortium graph: an SVG for pages and files, a listing for terminals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from html import escape

from topology.graph import Graph
from topology.measure import as_networkx
from topology.weigh import sample_counts

_SIDE = 640.0  # px, of the square that holds the nodes' centres
_MARGIN = 56.0  # px, for the largest node and the label under it
_LETTER = 7.5  # px, a generous width of one letter of a label
_LABELS_MAX = 64  # nodes; beyond, labels overlap and only the tooltips name them
_CIRCLE_MAX = 12
_DISTANCES_MAX = 150  # nodes; Kamada & Kawai looks best, and costs n² per step
_SPRING_MAX = 1500  # nodes; the force-directed layout is quadratic
_FILL = "#2a6f97"
_INK = "#1f2933"


def layout(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each node stands: (x, y) within [-1, 1], y downwards as on a screen.

    A circle in node order for up to 12 nodes, for rings and what contains them, and for graphs too
    large to untangle; else springs. The same graph gives the same picture.
    """
    n = len(graph.nodes)
    if n == 1:
        return {graph.nodes[0]: (0.0, 0.0)}
    if n <= _CIRCLE_MAX or n > _SPRING_MAX or _contains_ring(graph):
        turns = [2 * math.pi * index / n for index in range(n)]
        return {
            name: (math.sin(turn), -math.cos(turn))
            for name, turn in zip(graph.nodes, turns, strict=True)
        }
    import networkx

    copy = as_networkx(graph)
    springs = partial(networkx.spring_layout, seed=0)
    raw = (networkx.kamada_kawai_layout if n <= _DISTANCES_MAX else springs)(copy)
    return _fitted({name: (float(x), float(y)) for name, (x, y) in raw.items()})


def draw_svg(
    graph: Graph,
    *,
    samples: Mapping[str, int] | None = None,
    highlight: Mapping[str, str] | None = None,
) -> str:
    """A self-contained SVG: node area by samples, names as labels, title and description.

    highlight: node name -> CSS colour of its fill. Raises ConfigError as ``weigh.sample_counts``
    does. Styles are attributes, so that several pictures can stand in one page.
    """
    counts = sample_counts(graph, samples)
    n = len(graph.nodes)
    places = layout(graph)
    labelled = n <= _LABELS_MAX
    side_margin = _MARGIN + (max(map(len, graph.nodes)) * _LETTER / 2 if labelled else 0)
    width, height = _SIDE + 2 * side_margin, _SIDE + 2 * _MARGIN
    at = {
        name: (side_margin + _SIDE * (x + 1) / 2, _MARGIN + _SIDE * (y + 1) / 2)
        for name, (x, y) in places.items()
    }
    radius_max = max(2.0, min(22.0, _SIDE / (3.2 * math.sqrt(n))))
    largest = max(counts)
    described = ", ".join(graph.nodes) if labelled else f"{n} nodes"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} '
        f'{height:.0f}" font-family="system-ui, sans-serif" font-size="14">',
        f"<title>Topology: {n} nodes, {len(graph.edges)} edges</title>",
        f"<desc>{escape(described)}. Edges: {escape(_edges_in_words(graph))}.</desc>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="12" fill="#ffffff"/>',
        f'<g stroke="#9fb3c8" stroke-width="{1.8 if n <= 150 else 0.6}" stroke-linecap="round">',
    ]
    for a, b in graph.edges:
        (x1, y1), (x2, y2) = at[a], at[b]
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    parts.append(f'</g><g fill="{_FILL}" stroke="#ffffff" stroke-width="{radius_max / 10:.1f}">')
    for name, count in zip(graph.nodes, counts, strict=True):
        x, y = at[name]
        # Area, not radius, follows the samples; a floor keeps the smallest visible.
        radius = radius_max * max(0.35, math.sqrt(count / largest))
        colour = f' fill="{escape(highlight[name])}"' if highlight and name in highlight else ""
        tip = f"{name}: {graph.degree(name)} neighbours" + (f", {count} samples" if samples else "")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{colour}>'
            f"<title>{escape(tip)}</title></circle>"
        )
    parts.append("</g>")
    if labelled:
        parts.append(
            f'<g fill="{_INK}" stroke="#ffffff" stroke-width="4" paint-order="stroke" '
            'stroke-linejoin="round" text-anchor="middle">'
        )
        for name in graph.nodes:
            x, y = at[name]
            parts.append(f'<text x="{x:.1f}" y="{y + radius_max + 16:.1f}">{escape(name)}</text>')
        parts.append("</g>")
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def draw_text(graph: Graph) -> str:
    """One line per node: its name, its degree and its neighbours, aligned for a terminal."""
    name_width = max(len(name) for name in graph.nodes)
    degree_width = max(len(str(graph.degree(name))) for name in graph.nodes)
    lines = [
        f"{name:<{name_width}}  {graph.degree(name):>{degree_width}}  "
        f"{' '.join(graph.neighbours(name))}".rstrip()
        for name in graph.nodes
    ]
    return "\n".join(lines) + "\n"


def _contains_ring(graph: Graph) -> bool:
    """Whether nodes next to each other in order are neighbours (one gap allowed: a path)."""
    pairs = zip(graph.nodes, graph.nodes[1:] + graph.nodes[:1], strict=True)
    return sum(b not in graph.neighbours(a) for a, b in pairs) <= 1


def _fitted(places: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Moved and scaled, each axis alike, so that the larger extent fills [-1, 1]."""
    xs, ys = zip(*places.values(), strict=True)
    middle = ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2)
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2 or 1.0
    return {
        name: ((x - middle[0]) / half, (y - middle[1]) / half) for name, (x, y) in places.items()
    }


def _edges_in_words(graph: Graph) -> str:
    if len(graph.edges) > 3 * _LABELS_MAX:
        return str(len(graph.edges))
    return ", ".join(f"{a} – {b}" for a, b in graph.edges)
