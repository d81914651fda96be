"""The report's pictures as plain plotly.js figures: curves with faults shaded, bytes, graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import quantiles
from typing import Any, Final

from scenarios.record import FaultSpan, RoundRow, Run
from scenarios.report_page import Figure, label

# Okabe & Ito 2008: told apart with every common kind of colour blindness, and in grey print with
# the line styles below.
COLOURS: Final = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#6A3D9A",
    "#444444",
)
DASHES: Final = ("solid", "dot", "dash", "dashdot")
# Beyond this many nodes, single curves cannot be told apart: quantile bands are drawn instead.
CURVES_MAX: Final = 16
FAULT_FILL: Final = {
    "partition": "rgba(213,94,0,.13)",
    "crash": "rgba(179,38,30,.08)",
    "slow": "rgba(230,159,0,.15)",
    "link": "rgba(86,180,233,.16)",
}
_GREY: Final = "rgba(110,120,130,.14)"

Value = Callable[[RoundRow], float | None]


def curves(run: Run, value: Value, *, y: str, percent: bool) -> Figure | None:
    """``value`` over time, one line a node (or bands for many), faults shaded; None if no data."""
    lines: dict[str, list[RoundRow]] = defaultdict(list)
    for row in run.rows:
        measured = value(row)
        if measured is not None and math.isfinite(measured):
            lines[row.node].append(row)
    if not lines:
        return None
    if len(lines) > CURVES_MAX:
        data = _bands([row for rows in lines.values() for row in rows], value)
    else:
        names = [node.name for node in run.nodes if node.name in lines]
        data = [_line(name, lines[name], value, names.index(name)) for name in names]
    layout = _layout(x="seconds since the start", y=y)
    if percent:
        layout["yaxis"]["tickformat"] = ".0%"
    _shade(layout, run.faults, _end(run))
    return {"data": data, "layout": layout}


def distance(run: Run) -> Figure | None:
    """Consensus distance over time, logarithmic; None where it was not measured."""
    rows = [row for row in run.distances if row.distance > 0 and math.isfinite(row.distance)]
    if not rows:
        return None
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) < 40 else "lines",
        "x": [row.at for row in rows],
        "y": [row.distance for row in rows],
        "customdata": [[row.round, row.relative] for row in rows],
        "hovertemplate": "D = %{y:.3g}, %{customdata[1]:.2%} of the model's norm"
        "<br>round %{customdata[0]}, %{x:.2f} s<extra></extra>",
        "line": {"color": COLOURS[0], "width": 2},
        "showlegend": False,
    }
    layout = _layout(x="seconds since the start", y="consensus distance D")
    layout["yaxis"] |= {"type": "log", "exponentformat": "power"}
    _shade(layout, run.faults, _end(run))
    return {"data": [line], "layout": layout}


def traffic(run: Run) -> Figure | None:
    """Bytes sent and received per node."""
    nodes = run.nodes
    if not nodes or len(nodes) > 64 or not any(node.sent_bytes for node in nodes):
        return None
    names = [label(node.name) for node in nodes]
    bars = [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": [count / 1e6 for count in counts],
            "marker": {"color": colour},
            "hovertemplate": "%{x}: %{y:.2f} MB " + name + "<extra></extra>",
        }
        for name, counts, colour in (
            ("sent", [node.sent_bytes for node in nodes], COLOURS[0]),
            ("received", [node.received_bytes for node in nodes], COLOURS[5]),
        )
    ]
    layout = _layout(x=None, y="MB")
    layout |= {"barmode": "group", "bargap": 0.35}
    layout["xaxis"]["type"] = "category"
    return {"data": bars, "layout": layout}


def graph(run: Run, positions: dict[str, tuple[float, float]]) -> Figure | None:
    """The consortium graph; node size follows the samples, nodes that did not finish are hollow."""
    if not positions or len(positions) > 400:
        return None
    ends_x: list[float | None] = []
    ends_y: list[float | None] = []
    for a, b in run.edges:
        ends_x += [positions[a][0], positions[b][0], None]
        ends_y += [positions[a][1], positions[b][1], None]
    by_name = {node.name: node for node in run.nodes}
    names = [name for name in run.graph_nodes if name in positions]
    most = max((node.samples for node in run.nodes), default=1) or 1
    sizes, symbols, hovers = [], [], []
    for name in names:
        node = by_name.get(name)
        share = (node.samples if node else 0) / most
        sizes.append(14 + 26 * math.sqrt(share))
        symbols.append("circle" if node and node.ended == "finished" else "circle-open")
        hovers.append(f"{label(name)}: {node.samples} samples, {label(node.ended)}" if node else "")
    edges = {
        "type": "scatter",
        "mode": "lines",
        "x": ends_x,
        "y": ends_y,
        "line": {"color": "#b8c2cc", "width": 2},
        "hoverinfo": "skip",
    }
    nodes = {
        "type": "scatter",
        "mode": "markers+text" if len(names) <= 64 else "markers",
        "x": [positions[name][0] for name in names],
        "y": [positions[name][1] for name in names],
        "text": [label(name) for name in names],
        "hovertext": hovers,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "textposition": "bottom center",
        "marker": {
            "size": sizes,
            "symbol": symbols,
            "color": COLOURS[0],
            "opacity": 1,
            "line": {"color": COLOURS[0], "width": 2},
        },
    }
    layout = _layout(x=None, y=None) | {"showlegend": False}
    hidden = {"visible": False, "fixedrange": True}
    layout["xaxis"] = hidden | {"range": _padded([positions[n][0] for n in names])}
    layout["yaxis"] = hidden | {"range": _padded([positions[n][1] for n in names])}
    return {"data": [edges, nodes], "layout": layout}


def _line(name: str, rows: Sequence[RoundRow], value: Value, place: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(name),
        "x": [row.at for row in rows],
        "y": [value(row) for row in rows],
        "customdata": [row.round for row in rows],
        "hovertemplate": "%{y:.4g}, round %{customdata}, %{x:.2f} s",
        "line": {
            "color": COLOURS[place % len(COLOURS)],
            "dash": DASHES[place // len(COLOURS) % len(DASHES)],
            "width": 1.8,
        },
    }


def _bands(rows: Iterable[RoundRow], value: Value) -> list[dict[str, Any]]:
    """Median, 10 to 90 % and the extremes over all nodes, per round, at the round's mean time."""
    by_round: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        measured = value(row)
        if measured is not None:
            by_round[row.round].append((row.at, measured))
    at, low, ten, middle, ninety, high = [], [], [], [], [], []
    for _, points in sorted(by_round.items()):
        values = sorted(point[1] for point in points)
        tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        at.append(sum(point[0] for point in points) / len(points))
        low.append(values[0])
        ten.append(tenths[0])
        middle.append(tenths[4])
        ninety.append(tenths[8])
        high.append(values[-1])

    def band(name: str, y: list[float], **more: Any) -> dict[str, Any]:
        return {"type": "scatter", "mode": "lines", "name": name, "x": at, "y": y, **more}

    thin = {"color": COLOURS[0], "width": 1, "dash": "dot"}
    none = {"width": 0}
    return [
        band("best node", high, line=thin),
        band("90 %", ninety, line=none, showlegend=False, hoverinfo="skip"),
        band(
            "10 to 90 %",
            ten,
            line=none,
            fill="tonexty",
            fillcolor="rgba(0,114,178,.18)",
            hoverinfo="skip",
        ),
        band("median", middle, line={"color": COLOURS[0], "width": 2.2}),
        band("worst node", low, line={"color": COLOURS[1], "width": 1.6}),
    ]


def _shade(layout: dict[str, Any], faults: Iterable[FaultSpan], end: float) -> None:
    shapes, notes = [], []
    for span in faults:
        until = end if span.end is None else span.end
        colour = FAULT_FILL.get(span.kind, _GREY)
        shapes.append(
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": span.start,
                "x1": max(until, span.start),
                "y0": 0,
                "y1": 1,
                "fillcolor": colour,
                # an instant, such as a crash, is a line: a rectangle without width shows nothing
                "line": {"color": colour, "width": 1.5},
                "layer": "below",
            }
        )
        notes.append(
            {
                "x": span.start,
                "y": 1,
                "xref": "x",
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left",
                "text": label(_shortened(span.label or span.kind)),
                "showarrow": False,
                "font": {"size": 10, "color": "#5b6875"},
            }
        )
    layout["shapes"] = shapes
    # Labels of many faults only cover each other.
    layout["annotations"] = notes if len(notes) <= 6 else []


def _layout(*, x: str | None, y: str | None) -> dict[str, Any]:
    axis = {
        "gridcolor": "#e8ecf0",
        "zeroline": False,
        "linecolor": "#c4ccd4",
        "automargin": True,
    }
    return {
        "font": {"family": "system-ui, DejaVu Sans, sans-serif", "size": 12, "color": "#1d2733"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 54, "r": 12, "t": 26, "b": 44},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2, "x": 0, "yanchor": "top"},
        "xaxis": axis | ({"title": {"text": x}} if x else {}),
        "yaxis": axis | ({"title": {"text": y}} if y else {}),
    }


def _end(run: Run) -> float:
    return max((row.at for row in run.rows), default=0.0)


def _shortened(words: str) -> str:
    return words if len(words) <= 40 else words[:39] + "…"


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.18 * (high - low) or 1.0
    return [low - pad, high + pad]
