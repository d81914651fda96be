"""The consortium graph over time: nodes coloured by their model's distance, links by their use.

What the slider needs is bounded whatever the run's size: at most ``_NODES_MAX`` nodes and
``_EDGES_MAX`` links at ``_INSTANTS_MAX`` instants, some 0.5 MB. What was left out is said.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from scenarios.record import FaultSpan, RoundRow, Run
from scenarios.report.figures import COLOURS, base_layout, shortened
from scenarios.report.page import Figure, label, text
from topology.draw import layout
from topology.graph import Graph

_NODES_MAX: Final = 400  # beyond it a picture of the graph is a grey ball, and its layout slow
_BALL: Final = 250  # nodes shown of more
_EDGES_MAX: Final = 2000
_INSTANTS_MAX: Final = 100  # more cannot be told apart on a slider
_NAMED_MAX: Final = 40  # nodes; beyond, labels overlap: only the farthest are named
_HOVERED_MAX: Final = 800  # links that say what went over them
# Colours span at most this many decades: final mixing ends far below what training shows.
_DECADES: Final = 2.5

# How a link was used in the last round of its two ends, by the letter that stands for it.
BOTH, ONE, NONE, CUT, DOWN, YET = "b", "o", "n", "c", "d", "y"
_LINKS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    (BOTH, "mixed by both ends", {"color": "#9aa7b4", "width": 1.8}),
    (ONE, "by one end only", {"color": COLOURS[4], "width": 2, "dash": "dash"}),
    (NONE, "not mixed in that round", {"color": COLOURS[3], "width": 1.6, "dash": "dot"}),
    (CUT, "cut or held", {"color": COLOURS[1], "width": 2, "dash": "dot"}),
    (DOWN, "an end is down", {"color": "#c9d1d9", "width": 1, "dash": "dot"}),
)
_SCALE: Final = (
    (0.0, "#0d3b8c"),
    (0.25, "#6a51a3"),
    (0.5, "#c2428f"),
    (0.75, "#f0803c"),
    (1.0, "#f6d13b"),
)


class Timeline(Struct, frozen=True, kw_only=True):
    """The figure, the slider's bar with the faults on it, and what to say about thinning."""

    figure: Figure
    frames: int
    first: int  # the instant that is shown at first
    strip: str  # HTML
    remarks: tuple[str, ...]


class _Shown(Struct, frozen=True):
    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]


def timeline(run: Run) -> Timeline:
    """The graph of ``run`` at up to ``_INSTANTS_MAX`` instants."""
    shown = _choose(run)
    times, remarks = _instants(run)
    of_node = _rows_by_node(run, shown.nodes)
    looked = [_look(run, shown, of_node, at) for at in times]
    low, high = _range(run)
    places = _places(shown, run.faults)
    first = _first(run, times)
    figure = _figure(run, shown, places, (low, high))
    figure["timeline"] = {
        "label": [_label(one, at) for one, at in zip(looked, times, strict=True)],
        "distance": [one.distances for one in looked],
        "links": [one.links for one in looked],
        "state": [one.states for one in looked],
        "kinds": [kind for kind, _, _ in _LINKS],
        "edges": [[shown.nodes.index(a), shown.nodes.index(b)] for a, b in shown.edges],
        "x": [round(places[name][0], 4) for name in shown.nodes],
        "y": [round(places[name][1], 4) for name in shown.nodes],
        "names": [label(name) for name in shown.nodes],
        "named": _NAMED_MAX,
        "range": [low, high],
        "first": first,
    }
    return Timeline(
        figure=figure,
        frames=len(times),
        first=first,
        strip=_strip(run.faults, times),
        remarks=(*shown.remarks, *remarks),
    )


# ── what is shown ───────────────────────────────────────────────────────────────────────────────


def _choose(run: Run) -> _Shown:
    """All nodes and links, or those around the node whose model was farthest from the mean."""
    nodes, edges = run.graph_nodes, run.edges
    remarks: list[str] = []
    if len(nodes) > _NODES_MAX:
        worst = _farthest(run)
        near = set(_around(worst, edges, _BALL))
        nodes = tuple(name for name in nodes if name in near)
        edges = tuple((a, b) for a, b in edges if a in near and b in near)
        remarks.append(
            f"{len(nodes)} of {len(run.graph_nodes)} nodes are drawn: those nearest in the graph "
            f"to {worst}, whose model was farthest from the mean."
        )
    if len(edges) > _EDGES_MAX:
        every = math.ceil(len(edges) / _EDGES_MAX)
        remarks.append(f"Of {len(edges)} links every {every}th is drawn.")
        edges = edges[::every]
    return _Shown(nodes, edges, tuple(remarks))


def _farthest(run: Run) -> str:
    known = [(row.distance, row.node) for row in run.rows if row.distance is not None]
    return max(known)[1] if known else run.graph_nodes[0]


def _around(start: str, edges: Iterable[tuple[str, str]], count: int) -> list[str]:
    """The ``count`` nodes nearest to ``start``, by links."""
    beside: dict[str, list[str]] = defaultdict(list)
    for a, b in edges:
        beside[a].append(b)
        beside[b].append(a)
    found, queue = {start: None}, deque([start])
    while queue and len(found) < count:
        for peer in beside[queue.popleft()]:
            if peer not in found and len(found) < count:
                found[peer] = None
                queue.append(peer)
    return list(found)


def _instants(run: Run) -> tuple[list[float], tuple[str, ...]]:
    """When the last node mixed each round, and as faults begin and end; thinned where too many."""
    last: dict[int, float] = {}
    for row in run.rows:
        last[row.round] = max(last.get(row.round, 0.0), row.at)
    rounds = sorted(set(last.values()))
    if not rounds:
        return [0.0], ()
    marks = {at for span in run.faults for at in (span.start, span.end) if at is not None}
    marks = {at for at in marks if at <= rounds[-1]}
    if len(marks) > _INSTANTS_MAX // 3:
        marks = set()
    room = _INSTANTS_MAX - len(marks)
    if len(rounds) <= room:
        return sorted({*rounds, *marks}), ()
    step = (len(rounds) - 1) / (room - 1)
    kept = {rounds[round(step * place)] for place in range(room)}
    return sorted({*kept, *marks}), (f"The slider stops at {len(kept)} of {len(rounds)} rounds.",)


def _first(run: Run, times: Sequence[float]) -> int:
    """The end of the longest partition, when it has done the most; else the end."""
    end = times[-1]
    cuts = [(min(s.end or end, end) - s.start, s) for s in run.faults if s.kind == "partition"]
    if not cuts:
        return len(times) - 1
    longest = max(cuts, key=lambda cut: cut[0])[1]
    before = bisect.bisect_left(times, longest.end) - 1 if longest.end else len(times) - 1
    return max(0, before)


# ── one instant ─────────────────────────────────────────────────────────────────────────────────


class _Instant(Struct, frozen=True):
    distances: list[float | None]
    states: str  # a letter a node
    links: str  # a letter a link
    rounds: tuple[int, int]


def _rows_by_node(run: Run, nodes: Sequence[str]) -> dict[str, tuple[list[float], list[RoundRow]]]:
    found: dict[str, list[RoundRow]] = {name: [] for name in nodes}
    for row in run.rows:
        if row.node in found:
            found[row.node].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row.at)
    return {name: ([row.at for row in rows], rows) for name, rows in found.items()}


def _look(
    run: Run, shown: _Shown, of_node: Mapping[str, tuple[list[float], list[RoundRow]]], at: float
) -> _Instant:
    latest: dict[str, RoundRow] = {}
    for name in shown.nodes:
        times, rows = of_node[name]
        place = bisect.bisect_right(times, at)
        if place:
            latest[name] = rows[place - 1]
    open_ = [s for s in run.faults if s.start <= at and (s.end is None or at < s.end)]
    down = {name for s in open_ if s.kind in ("crash", "disk_full") for name in s.nodes}
    apart = [_Cut(span) for span in open_ if span.kind in ("partition", "clog")]
    rounds = [row.round for row in latest.values()]
    return _Instant(
        distances=[_short(latest[n].distance) if n in latest else None for n in shown.nodes],
        states="".join(
            "d" if name in down else "a" if name in run.attackers else "." for name in shown.nodes
        ),
        links="".join(_link(a, b, latest, down, apart) for a, b in shown.edges),
        rounds=(min(rounds, default=0), max(rounds, default=0)),
    )


class _Cut:
    """Which links an open partition or clog keeps from carrying anything."""

    def __init__(self, span: FaultSpan) -> None:
        self._side = {name: side for side, names in enumerate(span.sides) for name in names}
        self._pairs = {frozenset(pair) for pair in span.pairs}

    def __call__(self, a: str, b: str) -> bool:
        if frozenset((a, b)) in self._pairs:
            return True
        side = self._side
        return a in side and b in side and side[a] != side[b]


def _link(
    a: str, b: str, latest: Mapping[str, RoundRow], down: set[str], apart: Sequence[_Cut]
) -> str:
    if a in down or b in down:
        return DOWN
    if any(cut(a, b) for cut in apart):
        return CUT
    if a not in latest and b not in latest:
        return YET
    used = sum(y in latest[x].mixed for x, y in ((a, b), (b, a)) if x in latest)
    return (NONE, ONE, BOTH)[used]


def _short(value: float | None) -> float | None:
    """Three digits are enough for a colour, and keep the page small."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")


def _label(instant: _Instant, at: float) -> str:
    low, high = instant.rounds
    rounds = f"round {high}" if low == high else f"rounds {low} to {high}"
    cut, down = instant.links.count(CUT), instant.states.count("d")
    words = [f"{at:.1f} s", rounds if high else "before the first round"]
    words += [f"{cut} of {len(instant.links)} links cut"] if cut else []
    words += [f"{down} nodes down" if down > 1 else "1 node down"] if down else []
    known = [d for d in instant.distances if d is not None]
    if known:
        words.append(f"farthest model {max(known):.2g} from the mean")
    return ", ".join(words)


# ── the picture ─────────────────────────────────────────────────────────────────────────────────


def _range(run: Run) -> tuple[float, float]:
    """Of the colours, as logarithms: from the closest to the farthest model while training."""
    found = [
        row.distance
        for row in run.rows
        if row.distance is not None
        and row.distance > 0
        and math.isfinite(row.distance)
        and row.round <= run.training_rounds
    ]
    if not found:
        return -1.0, 0.0
    high = math.log10(max(found))
    low = max(math.log10(min(found)), high - _DECADES)
    return (low, high) if high - low > 0.01 else (high - 1.0, high)


def _places(shown: _Shown, faults: Sequence[FaultSpan]) -> dict[str, tuple[float, float]]:
    """As topology.draw lays it out; a tangle that is partitioned is drawn with its sides apart."""
    places = dict(layout(Graph(shown.nodes, shown.edges)))
    cuts = [span for span in faults if span.kind == "partition" and 2 <= len(span.sides) <= 4]
    radii = [math.hypot(x, y) for x, y in places.values()]
    if not cuts or max(radii) - min(radii) < 0.05:  # a circle shows its sides as it is
        return places
    longest = max(cuts, key=lambda span: (span.end or math.inf) - span.start)
    of = {name: side for side, names in enumerate(longest.sides) for name in names}
    count = len(longest.sides)
    moved = {}
    for name, (x, y) in places.items():
        middle = 2.4 * (of.get(name, (count - 1) / 2) - (count - 1) / 2)
        moved[name] = middle + x, y
    return moved


def _figure(
    run: Run,
    shown: _Shown,
    places: Mapping[str, tuple[float, float]],
    colours: tuple[float, float],
) -> dict[str, Any]:
    thin = 1.0 if len(shown.edges) <= 64 else 0.6 if len(shown.edges) <= 500 else 0.35
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [],
            "y": [],
            "line": style | {"width": round(thin * style["width"], 2)},
            "hoverinfo": "skip",
            "showlegend": True,
        }
        for _, name, style in _LINKS
    ]
    layout_ = base_layout(x=None, y=None)
    hidden = {"visible": False, "fixedrange": True}
    xs, ys = zip(*places.values(), strict=True)
    layout_["xaxis"] = hidden | {"range": _padded(xs)}
    layout_["yaxis"] = hidden | {"range": _padded(ys)[::-1]}  # layouts count downwards
    layout_["margin"] = {"l": 8, "r": 8, "t": 8, "b": 8}
    return {
        "data": [*lines, _hovers(run, shown, places), _nodes(run, shown, places, colours)],
        "layout": layout_,
    }


def _nodes(
    run: Run,
    shown: _Shown,
    places: Mapping[str, tuple[float, float]],
    colours: tuple[float, float],
) -> dict[str, Any]:
    by_name = {node.name: node for node in run.nodes}
    most = max((node.samples for node in run.nodes), default=1) or 1
    count = len(shown.nodes)
    small, large = (13, 18) if count <= _NAMED_MAX else (8, 5) if count <= 120 else (5, 4)
    sizes, hovers = [], []
    for name in shown.nodes:
        node = by_name.get(name)
        samples = node.samples if node else 0
        sizes.append(round(small + large * math.sqrt(samples / most), 1))
        ended = f", {shortened(node.ended)} after round {node.rounds}" if node else ""
        hovers.append(f"{label(name)}: {samples:,} samples{label(ended)}")
    low, high = colours
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [places[name][0] for name in shown.nodes],
        "y": [places[name][1] for name in shown.nodes],
        "text": [""] * count,
        "customdata": [""] * count,
        "hovertext": hovers,
        "hovertemplate": "%{hovertext}<br>%{customdata}<extra></extra>",
        "textposition": "bottom center",
        "textfont": {"size": 11},
        "showlegend": False,
        "cliponaxis": False,
        "marker": {
            "size": sizes,
            "color": [None] * count,
            "opacity": 1,
            "cmin": low,
            "cmax": high,
            "colorscale": [list(step) for step in _SCALE],
            "line": {"color": "#1d2733", "width": 1 if count <= 120 else 0.5},
            "showscale": True,
            "colorbar": {
                "title": {"text": "distance from the mean", "side": "right"},
                "tickvals": ticks,
                "ticktext": [f"{10**tick:.2g}" for tick in ticks],
                "thickness": 12,
                "len": 0.9,
                "outlinewidth": 0,
            },
        },
    }


def _hovers(run: Run, shown: _Shown, places: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Unseen points in the middle of the links that say what went over them."""
    found: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [],
        "y": [],
        "hovertext": [],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {"size": 14, "opacity": 0},
        "showlegend": False,
    }
    sent = {(link.a, link.b): link for link in run.links}
    for a, b in shown.edges if len(shown.edges) <= _HOVERED_MAX else ():
        link = sent.get((a, b))
        if link is None:
            continue
        found["x"].append(round((places[a][0] + places[b][0]) / 2, 4))
        found["y"].append(round((places[a][1] + places[b][1]) / 2, 4))
        words = [
            f"{label(x)} → {label(y)}: {count / 1e6:.2f} MB"
            for x, y, count in ((a, b, link.a_to_b_bytes), (b, a, link.b_to_a_bytes))
            if count is not None
        ]
        found["hovertext"].append("<br>".join(words))
    return found


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.12 * (high - low) + 0.06
    return [low - room, high + room]


def _strip(faults: Sequence[FaultSpan], times: Sequence[float]) -> str:
    """The faults as marks over the slider, which counts instants and not seconds."""
    last = max(1, len(times) - 1)
    marks = []
    for span in faults:
        start = min(bisect.bisect_left(times, span.start), last)
        end = last if span.end is None else min(bisect.bisect_left(times, span.end), last)
        left, width = 100 * start / last, max(0.4, 100 * (end - start) / last)
        kind = span.kind if span.kind in ("partition", "crash", "slow", "link") else "other"
        marks.append(
            f'<span class="{kind}" style="left:{left:.2f}%;width:{width:.2f}%" '
            f'title="{text(span.label or span.kind)}"></span>'
        )
    return "".join(marks[:200])
