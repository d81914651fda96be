"""The report's curves as plain plotly.js figures: over time, with faults shaded."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any, Final, Literal

from scenarios.record import FaultSpan, RoundRow, Run
from scenarios.report.page import Figure, label

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
# Beyond this many nodes, single curves cannot be told apart: bands, and the worst, are drawn.
CURVES_MAX: Final = 20
_WORST: Final = 3
_POINTS_MAX: Final = 400  # of one line; a page shows no more
FAULT_FILL: Final = {
    "partition": "rgba(213,94,0,.13)",
    "crash": "rgba(179,38,30,.08)",
    "slow": "rgba(230,159,0,.15)",
    "link": "rgba(86,180,233,.16)",
}
_SHADES_MAX: Final = 200
_LABEL_SHARE: Final = 0.3  # of the time axis, that a fault's label may need
_GREY: Final = "rgba(110,120,130,.14)"

Measured = Literal["accuracy", "auroc", "loss", "own_accuracy"]


def curves(run: Run, figure: Measured, *, y: str) -> Figure | None:
    """A figure over time, one line a node (or bands for many), faults shaded; None if no data."""
    lines: dict[str, list[RoundRow]] = defaultdict(list)
    for row in run.rows:
        measured = getattr(row, figure)
        if measured is not None and math.isfinite(measured):
            lines[row.node].append(row)
    if not lines:
        return None
    if len(lines) > CURVES_MAX:
        data = _bands({n: r for n, r in lines.items() if n not in run.attackers}, figure)
    else:
        names = [node.name for node in run.nodes if node.name in lines]
        data = [_line(name, lines[name], figure, place) for place, name in enumerate(names)]
        for line, name in zip(data, names, strict=True):
            line["name"] += " (malicious)" if name in run.attackers else ""
    layout = base_layout(x=None, y=y)
    if figure != "loss":
        layout["yaxis"]["tickformat"] = ".0%"
    shade(layout, run.faults, end(run))
    return {"data": data, "layout": layout}


def distance(run: Run) -> Figure | None:
    """Consensus distance over time, logarithmic; None where it was not measured."""
    rows = [row for row in run.distances if row.distance > 0 and math.isfinite(row.distance)]
    if not rows:
        return None
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) < 40 else "lines",
        "name": "D",
        "x": [row.at for row in rows],
        "y": [row.distance for row in rows],
        "customdata": [[row.round, row.relative] for row in rows],
        "hovertemplate": "D = %{y:.3g}, %{customdata[1]:.2%} of the model's norm"
        "<br>round %{customdata[0]}, %{x:.2f} s<extra></extra>",
        "line": {"color": COLOURS[0], "width": 2},
        "showlegend": bool(run.distances_free),
    }
    at = {row.round: row.at for row in rows}
    free = [(at[r], d) for r, d in run.distances_free if r in at and d > 0 and math.isfinite(d)]
    data = [line, undisturbed("the same round, without faults", free)] if free else [line]
    layout = base_layout(x=None, y="consensus distance D")
    logarithmic(layout, [row.distance for row in rows])
    shade(layout, run.faults, end(run))
    return {"data": data, "layout": layout}


def logarithmic(layout: dict[str, Any], values: Sequence[float]) -> None:
    """A logarithmic y axis over the ``values``, with as many ticks as can be read."""
    low, high = math.log10(min(values)), math.log10(max(values))
    layout["yaxis"] |= {
        "type": "log",
        "exponentformat": "power",
        "range": [low - 0.1, high + 0.1],
        "dtick": "D2" if high - low < 2.5 else max(1, round((high - low) / 5)),  # D2: 1, 2, 5
    }


def undisturbed(name: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What the same seed showed where nothing went wrong: (seconds, value)."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [at for at, _ in points],
        "y": [value for _, value in points],
        "hovertemplate": "%{y:.3g}<extra>without faults</extra>",
        "line": {"color": COLOURS[7], "width": 1.4, "dash": "dash"},
    }


def _line(name: str, rows: Sequence[RoundRow], figure: Measured, place: int) -> dict[str, Any]:
    rows = rows[:: -(-len(rows) // _POINTS_MAX)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": label(name),
        "x": [row.at for row in rows],
        "y": [getattr(row, figure) for row in rows],
        "customdata": [row.round for row in rows],
        "hovertemplate": "%{y:.4g}, round %{customdata}, %{x:.2f} s",
        "line": {
            "color": COLOURS[place % len(COLOURS)],
            "dash": DASHES[place // len(COLOURS) % len(DASHES)],
            "width": 1.8,
        },
    }


def _bands(lines: Mapping[str, Sequence[RoundRow]], figure: Measured) -> list[dict[str, Any]]:
    """Mean, extremes and 10 to 90 % over all nodes, per round; and the nodes that end worst."""
    by_round: dict[int, list[tuple[float, float]]] = defaultdict(list)
    last: dict[str, float] = {}
    for name, rows in lines.items():
        for row in rows:
            measured = float(getattr(row, figure))
            by_round[row.round].append((row.at, measured))
            last[name] = measured
    at, low, ten, middle, ninety, high = [], [], [], [], [], []
    for _, points in sorted(by_round.items()):
        values = sorted(point[1] for point in points)
        tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        at.append(sum(point[0] for point in points) / len(points))
        low.append(values[0])
        ten.append(tenths[0])
        middle.append(sum(values) / len(values))
        ninety.append(tenths[8])
        high.append(values[-1])

    def band(name: str, y: list[float], **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": at,
            "y": y,
            "line": {"width": 0},
            "hoverinfo": "skip",
            **more,
        }

    bands = [
        band("highest", high, showlegend=False),
        band("least to greatest", low, fill="tonexty", fillcolor="rgba(0,114,178,.10)"),
        band("90 %", ninety, showlegend=False),
        band("10 to 90 %", ten, fill="tonexty", fillcolor="rgba(0,114,178,.22)"),
    ]
    bad = -1.0 if figure == "loss" else 1.0
    names = sorted(last, key=lambda name: (bad * last[name], name))[:_WORST]
    for place, name in enumerate(names):
        line = _line(name, lines[name], figure, place + 1)
        line["line"] |= {"width": 1.2}
        bands.append(line | {"name": f"{label(shortened(name))} (ends among the worst)"})
    mean = {"color": COLOURS[0], "width": 2.4}
    hover = {"hoverinfo": "y+name"}
    return [*bands, band(f"mean of {len(last)} nodes", middle, line=mean, **hover)]


def shade(layout: dict[str, Any], faults: Sequence[FaultSpan], until_s: float) -> None:
    """Mark the time of each fault, until the run's end where nothing ended it."""
    shapes, notes = [], []
    for span in faults[:_SHADES_MAX]:
        until = until_s if span.end is None else span.end
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
                "text": label(shortened(span.label or span.kind)),
                "showarrow": False,
                "font": {"size": 10, "color": "#5b6875"},
            }
        )
    layout["shapes"] = shapes
    # Labels of many faults, or of faults at one time, only cover each other.
    starts = sorted(span.start for span in faults)
    free = all(b - a >= _LABEL_SHARE * until_s for a, b in itertools.pairwise(starts))
    layout["annotations"] = notes if free else []


def base_layout(*, x: str | None, y: str | None) -> dict[str, Any]:
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
        "margin": {"l": 54, "r": 12, "t": 26, "b": 30},
        "hovermode": "closest",
        # under whatever the axis needs, however many rows it takes
        "legend": {"orientation": "h", "yref": "container", "y": 0, "x": 0, "yanchor": "bottom"},
        "xaxis": axis | ({"title": {"text": x}} if x else {"ticksuffix": " s"}),
        "yaxis": axis | ({"title": {"text": y}} if y else {}),
    }


def end(run: Run) -> float:
    return max((row.at for row in run.rows), default=0.0)


def shortened(words: str) -> str:
    return words if len(words) <= 40 else words[:39] + "…"


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.18 * (high - low) or 1.0
    return [low - pad, high + pad]
