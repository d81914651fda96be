"""The report's view of a partition: both sides' accuracy, how far they drifted, when they met."""

from __future__ import annotations

import math
from typing import Any, Final

from scenarios.record import PartitionRun, Run, SideRun
from scenarios.report.figures import (
    COLOURS,
    base_layout,
    end,
    logarithmic,
    shade,
    shortened,
    undisturbed,
)
from scenarios.report.page import Figure, label, text

PARTITIONS_MAX: Final = 3  # drawn; the longest
SIDES_MAX: Final = 6


def shown(run: Run) -> list[tuple[int, PartitionRun]]:
    """(number, partition), in order of time: of many, the longest."""
    last = end(run)
    numbered = list(enumerate(run.partitions, 1))
    numbered.sort(key=lambda one: one[1].start - (one[1].end or last))
    return sorted(numbered[:PARTITIONS_MAX], key=lambda one: one[0])


def figures(run: Run) -> dict[str, Figure]:
    """By name: "sides-1" and "apart-1" for the first partition, and so on."""
    made: dict[str, Figure | None] = {}
    for number, cut in shown(run):
        made[f"sides-{number}"] = _sides(run, cut)
        made[f"apart-{number}"] = _apart(run, cut)
    return {name: figure for name, figure in made.items() if figure is not None}


def words(run: Run, cut: PartitionRun) -> str:
    """The partition in sentences, as HTML."""
    until = "the end of the run" if cut.end is None else f"{cut.end:.1f} s"
    last = end(run) if cut.end is None else cut.end
    said = [
        f"“{cut.label}”: from {cut.start:.1f} s to {until}, {last - cut.start:.1f} s and "
        f"{(cut.end_round or run.rounds) - cut.start_round} rounds; "
        + " against ".join(_side(side, count=True) for side in cut.sides[:SIDES_MAX])
        + "."
    ]
    if cut.apart_peak is not None:
        part = f"The sides' mean models drifted {cut.apart_peak:.3g} apart"
        if cut.apart_peak_ratio is not None:
            part += f", {cut.apart_peak_ratio:.1f}× as far as the same run without faults"
        said.append(part + ".")
    if cut.reconverged_rounds is not None and cut.reconverged_s is not None:
        said.append(
            "Consensus distance was back within 1.5× that of the run without faults "
            f"{cut.reconverged_rounds} rounds ({cut.reconverged_s:.1f} s) after the heal."
        )
    elif cut.end is not None and run.distances_free:
        said.append(
            "Consensus distance never came back within 1.5× that of the run without faults."
        )
    return f"<p>{text(' '.join(said))}</p>"


def _side(side: SideRun, *, count: bool = False) -> str:
    names = side.nodes
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]}" + (f" ({len(names)} nodes)" if count else "")


def _sides(run: Run, cut: PartitionRun) -> Figure | None:
    data: list[dict[str, Any]] = []
    for place, side in enumerate(cut.sides[:SIDES_MAX]):
        if not side.accuracy:
            continue
        at, mean, least = (
            [round(v, 4) for v in column] for column in zip(*side.accuracy, strict=True)
        )
        name, colour = label(shortened(_side(side))), COLOURS[place]
        for what, y, style in (
            ("mean", mean, {"color": colour, "width": 2.2}),
            ("worst node", least, {"color": colour, "width": 1.2, "dash": "dot"}),
        ):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"{name}: {what}",
                    "x": at,
                    "y": y,
                    "line": style,
                    "hovertemplate": "%{y:.1%}, %{x:.2f} s<extra>" + what + "</extra>",
                }
            )
    if not data:
        return None
    layout = base_layout(x=None, y="accuracy of each side")
    layout["yaxis"]["tickformat"] = ".0%"
    shade(layout, run.faults, end(run))
    return {"data": data, "layout": layout}


def _apart(run: Run, cut: PartitionRun) -> Figure | None:
    rows = [one for one in cut.apart if one.distance > 0 and math.isfinite(one.distance)]
    if not rows:
        return None
    at = {one.round: one.at for one in rows}
    free = [(at[r], d) for r, d in cut.apart_free if r in at and d > 0 and math.isfinite(d)]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [one.at for one in rows],
            "y": values,
            "customdata": [one.round for one in rows],
            "line": {"color": colour, "width": 2},
            "hovertemplate": "%{y:.3g}, round %{customdata}, %{x:.2f} s",
        }
        for name, values, colour in (
            ("between the sides' mean models", [one.distance for one in rows], COLOURS[1]),
            ("D, over all nodes", [one.consensus or None for one in rows], COLOURS[0]),
        )
    ]
    if free:
        data.append(undisturbed("between the same nodes, without faults", free))
    layout = base_layout(x=None, y="distance")
    # what final mixing ends at lies decades below, and would leave the partition flat
    training = [one for one in rows if one.round <= run.training_rounds] or rows
    values = [v for one in training for v in (one.distance, one.consensus) if v > 0]
    values += [value for r, value in cut.apart_free if r <= run.training_rounds and value > 0]
    logarithmic(layout, values)
    shade(layout, run.faults, end(run))
    return {"data": data, "layout": layout}
