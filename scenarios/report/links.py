"""The report's view of links: who was mixed with whom in which round, and bytes both ways."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scenarios.record import LinkRun, Run
from scenarios.report.figures import COLOURS, base_layout, end, shade, shortened
from scenarios.report.page import Figure, label, text

LINKS_MAX: Final = 48  # beyond it rows of a picture cannot be told apart: sums are drawn instead
_ROUNDS_MAX: Final = 150  # columns
_PEERS_ROWS_MAX: Final = 40
_PEERS_MAX: Final = 24  # of one node in a row
# Of a link in a round: neither end mixed it, only one did, both did.
_USE_COLOURS: Final = ("#c0392b", COLOURS[4], "#b9d3ea")
_USES: Final = ("not mixed", "one end", "both ends")

Uses = Mapping[tuple[str, str], Mapping[int, int]]  # by link and round: ends that mixed it


def height(run: Run) -> int:
    """In pixels, of the pictures that have a row a link."""
    return 120 + 13 * len(run.edges) if len(run.edges) <= LINKS_MAX else 340


def uses(run: Run) -> Uses:
    """How many ends of each link mixed the other's model, by round; where one was there at all."""
    here: dict[int, set[str]] = defaultdict(set)
    mixed: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for row in run.rows:
        here[row.round].add(row.node)
        mixed[row.round].update((row.node, peer) for peer in row.mixed)
    return {
        (a, b): {
            round_: ((a, b) in mixed[round_]) + ((b, a) in mixed[round_])
            for round_ in sorted(here)
            if a in here[round_] or b in here[round_]
        }
        for a, b in run.edges
    }


def mixing(run: Run, used: Uses) -> Figure | None:
    """Who was mixed with whom: a row a link, a column a round; of many links, their shares."""
    rounds = sorted({round_ for of in used.values() for round_ in of})
    if not rounds:
        return None
    if len(run.edges) > LINKS_MAX:
        return _shares(run, used, rounds)
    step = -(-len(rounds) // _ROUNDS_MAX)
    shown = rounds[::step]
    thirds = enumerate(_USE_COLOURS)
    scale = [[(place + side) / 3, colour] for place, colour in thirds for side in (0, 1)]
    heat = {
        "type": "heatmap",
        "x": shown,
        "y": [_name(edge) for edge in used],
        "z": [[of.get(round_) for round_ in shown] for of in used.values()],
        "zmin": -0.5,
        "zmax": 2.5,
        "colorscale": scale,
        "xgap": 0.5,
        "ygap": 1,
        "hovertemplate": "%{y}, round %{x}: mixed by %{z} of 2 ends<extra></extra>",
        "colorbar": {
            "tickvals": [0, 1, 2],
            "ticktext": list(_USES),
            "thickness": 12,
            "outlinewidth": 0,
            "len": 0.6,
            "lenmode": "fraction",
        },
    }
    layout = base_layout(x="round" if step == 1 else f"round (every {step}th)", y=None)
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "dtick": 1, "showgrid": False}
    layout["yaxis"]["tickfont"] = {"size": 10}
    layout["margin"] |= {"t": 30}
    layout["title"] = _title("Which links were mixed, round by round")
    return {"data": [heat], "layout": layout}


def _shares(run: Run, used: Uses, rounds: Sequence[int]) -> Figure:
    at: dict[int, float] = {}
    for row in run.rows:
        at[row.round] = max(at.get(row.round, 0.0), row.at)
    counts = {round_: Counter(of.get(round_, 0) for of in used.values()) for round_ in rounds}
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _USES[use],
            "stackgroup": "links",
            "x": [at[round_] for round_ in rounds],
            "y": [counts[round_][use] / len(used) for round_ in rounds],
            "line": {"width": 0, "color": _USE_COLOURS[use], "shape": "hv"},
            "fillcolor": _USE_COLOURS[use],
            "hovertemplate": "%{y:.1%} of the links<extra>" + _USES[use] + "</extra>",
        }
        for use in (2, 1, 0)
    ]
    layout = base_layout(x=None, y=f"share of {len(used)} links")
    layout["yaxis"] |= {"tickformat": ".0%", "range": [0, 1]}
    layout["title"] = _title("How many links were mixed")
    layout["margin"] |= {"t": 44}
    shade(layout, run.faults, end(run))
    layout["shapes"] = [shape | {"layer": "above"} for shape in layout["shapes"]]
    return {"data": lines, "layout": layout}


def traffic(run: Run) -> Figure | None:
    """Bytes by link, both ways: a pair of bars a link; of many, all links by their rank."""
    links = [link for link in run.links if link.a_to_b_bytes is not None or link.b_to_a_bytes]
    if not links:
        return None
    return _bars(links) if len(run.edges) <= LINKS_MAX else _ranks(links)


def _bars(links: Sequence[LinkRun]) -> Figure:
    names = [_name((link.a, link.b)) for link in links]
    ways = (
        ("first to second", [link.a_to_b_bytes for link in links], COLOURS[0]),
        ("second to first", [link.b_to_a_bytes for link in links], COLOURS[5]),
    )
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": names,
            "x": [None if count is None else count / 1e6 for count in counts],
            "marker": {"color": colour},
            "hovertemplate": "%{y}: %{x:.3f} MB " + name + "<extra></extra>",
        }
        for name, counts, colour in ways
    ]
    layout = base_layout(x="MB sent over the link", y=None)
    layout |= {"barmode": "group", "bargap": 0.25, "bargroupgap": 0}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "dtick": 1, "showgrid": False}
    layout["yaxis"]["tickfont"] = {"size": 10}
    layout["margin"] |= {"t": 30}
    layout["title"] = _title("Bytes by link, in each direction")
    layout["legend"] = {"orientation": "h", "y": 1, "x": 1, "xanchor": "right", "yanchor": "bottom"}
    return {"data": bars, "layout": layout}


def _ranks(links: Sequence[LinkRun]) -> Figure:
    ways = [
        (f"{label(shortened(a))} → {label(shortened(b))}", count)
        for link in links
        for a, b, count in (
            (link.a, link.b, link.a_to_b_bytes),
            (link.b, link.a, link.b_to_a_bytes),
        )
        if count is not None
    ]
    ways.sort(key=lambda way: -way[1])
    count = len(ways)
    places = sorted({round(place * (count - 1) / 399) for place in range(400)})
    line = {
        "type": "scatter",
        "mode": "lines",
        "fill": "tozeroy",
        "fillcolor": "rgba(0,114,178,.18)",
        "x": [place + 1 for place in places],
        "y": [ways[place][1] / 1e6 for place in places],
        "hovertext": [ways[place][0] for place in places],
        "hovertemplate": "%{hovertext}: %{y:.3f} MB<extra></extra>",
        "line": {"color": COLOURS[0], "width": 2, "shape": "hv"},
        "showlegend": False,
    }
    layout = base_layout(x=f"{count} directions of {len(links)} links, the busiest first", y="MB")
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["title"] = _title("Bytes by link, in each direction")
    layout["margin"] |= {"t": 44}
    layout["annotations"] = [
        {
            "x": x,
            "y": y / 1e6,
            "text": f"{words}: {y / 1e6:.2f} MB",
            "showarrow": True,
            "arrowcolor": "#5b6875",
            "ax": ax,
            "ay": ay,
            "font": {"size": 11, "color": "#5b6875"},
            "xanchor": anchor,
        }
        for x, (words, y), ax, ay, anchor in (
            (1, ways[0], 18, -16, "left"),
            (count, ways[-1], -12, 28, "right"),
        )
    ]
    return {"data": [line], "layout": layout}


def peers(run: Run) -> str:
    """A row a node: in how many of its rounds it mixed each neighbour; "" where nobody mixed."""
    rounds: Counter[str] = Counter()
    mixed: Counter[tuple[str, str]] = Counter()
    for row in run.rows:
        rounds[row.node] += 1
        mixed.update((row.node, peer) for peer in row.mixed)
    if not rounds:
        return ""
    beside: dict[str, list[str]] = {name: [] for name in run.graph_nodes}
    for a, b in run.edges:
        beside[a].append(b)
        beside[b].append(a)

    def lost(name: str) -> int:
        return sum(rounds[name] - mixed[name, peer] for peer in beside[name])

    shown, more = list(run.graph_nodes), ""
    if len(shown) > _PEERS_ROWS_MAX:
        shown = sorted(shown, key=lambda name: -lost(name))[: _PEERS_ROWS_MAX // 2]
        whole = sum(lost(name) == 0 for name in run.graph_nodes)
        more = (
            f"<p class=soft>The {len(shown)} of {len(run.graph_nodes)} nodes that missed most; "
            f"{whole} mixed every neighbour in every round.</p>"
        )
    rows = []
    for name in shown:
        cells = []
        for peer in beside[name][:_PEERS_MAX]:
            count = mixed[name, peer]
            less = " class=less" if count < rounds[name] else ""
            cells.append(f"<span{less}>{text(shortened(peer))} {count}</span>")
        if len(beside[name]) > _PEERS_MAX:
            cells.append(f"<span>and {len(beside[name]) - _PEERS_MAX} more</span>")
        rows.append(
            f"<tr><td class=l>{text(name)}</td><td>{rounds[name]}</td>"
            f'<td class="l wrap peers">{"".join(cells)}</td></tr>'
        )
    head = (
        "<tr><th class=l>node</th><th>rounds</th>"
        "<th class=l>in how many of them it mixed each neighbour</th></tr>"
    )
    body = "\n".join(rows)
    return (
        f"<div class=scroll><table><thead>{head}</thead><tbody>{body}</tbody></table></div>{more}"
    )


def _name(edge: tuple[str, str]) -> str:
    return f"{label(shortened(edge[0]))} – {label(shortened(edge[1]))}"


def _title(words: str) -> dict[str, Any]:
    return {
        "text": words,
        "font": {"size": 13},
        "x": 0,
        "xref": "paper",
        "y": 0.995,
        "yanchor": "top",
    }
