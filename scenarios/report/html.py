"""The report: one HTML page that shows what a run did; it needs no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.errors import StorageError
from scenarios.record import Run
from scenarios.report import figures, graph, links, partitions, tables
from scenarios.report.page import Figure, page, text

_CURVES: Final = ("accuracy", "auroc", "loss", "own", "distance")


def write_report(run: Run, path: Path) -> None:
    """Write the page of ``run`` to ``path``. Raises StorageError where the disk refuses."""
    try:
        path.write_text(html_report(run), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def html_report(run: Run) -> str:
    """The page as one string."""
    over_time = graph.timeline(run)
    used = links.uses(run)
    drawn = _figures(run, used) | {"graph": over_time.figure}
    said, good = tables.verdict(run)
    sections = [
        f"<h1>{text(run.scenario)}</h1>",
        f"<p class=soft>{len(run.nodes)} nodes, no server; a report of grapevine</p>",
        f'<p class="verdict{"" if good else " bad"}">{text(said)}</p>',
        *(f"<p>{text(note)}</p>" for note in run.notes),
        tables.facts(run),
        "<h2>The consortium over time</h2>",
        _player(run, over_time),
        *_partitions(run, drawn),
        "<h2>Node by node</h2>",
        tables.nodes(run),
        _explain(run),
        _drawing("Learning and consensus", _CURVES, drawn),
        _drawing("Links", ["mixing", "bytes"], drawn, height=links.height(run)),
        "<h2>Who was mixed with whom</h2>",
        links.peers(run),
        "<h2>Who was missing, and since when</h2>",
        tables.absences(run),
        tables.oddities(run),
    ]
    checked = tables.checks(run)
    if checked:
        sections += ["<h2>What had to hold</h2>", checked]
    sections.append(_footer(run))
    return page(title=f"{run.scenario}: grapevine", body="\n".join(sections), figures=drawn)


def _figures(run: Run, used: links.Uses) -> dict[str, Figure]:
    made = {
        "accuracy": figures.curves(run, "accuracy", y="accuracy, common test rows"),
        "auroc": figures.curves(run, "auroc", y="AUROC, common test rows"),
        "loss": figures.curves(run, "loss", y="loss"),
        "own": figures.curves(run, "own_accuracy", y="accuracy, own rows"),
        "distance": figures.distance(run),
        "mixing": links.mixing(run, used),
        "bytes": links.traffic(run),
        **partitions.figures(run),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _player(run: Run, over_time: graph.Timeline) -> str:
    """The graph, the slider under it, and what was thinned out."""
    malicious = " Diamonds: malicious nodes." if run.attackers else ""
    remarks = "".join(f"<p class=soft><small>{text(r)}</small></p>" for r in over_time.remarks)
    return (
        '<output id="graph-now" for="graph-time"></output>'
        '<div id="graph" class="figure graph"></div>'
        '<div class="player"><button id="graph-play" type="button">Play</button>'
        f'<div class="strip">{over_time.strip}</div>'
        f'<input id="graph-time" type="range" min="0" max="{over_time.frames - 1}" '
        f'value="{over_time.first}" aria-label="Time"></div>'
        "<p class=soft><small>Colour: how far a node's model is from the mean of its round, on a "
        "logarithmic scale; hollow where it is not known. Over the slider: the faults. "
        f"Arrow keys move it.{malicious}</small></p>{remarks}"
    )


def _partitions(run: Run, drawn: dict[str, Figure]) -> list[str]:
    made = []
    for number, cut in partitions.shown(run):
        title = "The partition" if len(run.partitions) == 1 else f"Partition {number}"
        made += [f"<h2>{title}</h2>", partitions.words(run, cut)]
        made.append(_drawing("", [f"sides-{number}", f"apart-{number}"], drawn))
    hidden = len(run.partitions) - partitions.PARTITIONS_MAX
    if hidden > 0:
        made.append(f"<p class=soft>{hidden} shorter partitions are in the JSON.</p>")
    return made


def _drawing(
    title: str, names: Sequence[str], drawn: dict[str, Figure], *, height: int | None = None
) -> str:
    names = [name for name in names if name in drawn]
    if not names:
        return ""
    style = "" if height is None else f' style="height:{height}px"'
    boxes = "".join(f'<div id="{name}" class="figure"{style}></div>' for name in names)
    shape = "pair" if len(names) > 1 else ""
    head = f"<h2>{text(title)}</h2>" if title else ""
    return f'{head}<div class="{shape}">{boxes}</div>'


def _explain(run: Run) -> str:
    words = []
    if run.baselines:
        words.append(
            "“Together” is the node's own model at the end, “alone” what the same node reaches on "
            "its rows with the same steps and no neighbours."
        )
    words.append(
        "The common test rows were taken out before the rows were split; own rows are each "
        "node's held-out part."
    )
    if any(node.intervals for node in run.nodes):
        words.append("Small print: 95 % intervals.")
    if run.faults:
        words.append("Shaded: faults.")
    return f"<p class=soft><small>{' '.join(words)}</small></p>"


def _footer(run: Run) -> str:
    bits = []
    if run.setup_s:
        bits.append(f"set-up {run.setup_s:.1f} s")
    if run.baselines_s is not None:
        bits.append(f"baselines {run.baselines_s:.1f} s")
    bits += [
        f"{name} {text(value)}"
        for name, value in (("trace", run.trace_hash), ("schedule", run.schedule_hash))
        if value
    ]
    models = [node.model for node in run.nodes if node.model]
    if models:
        bits.append(f"models: {text(', '.join(models[:8]))}")
    bits.append(
        "D = √Σ πᵢ‖xᵢ − x̄‖², πᵢ by samples, over the shared vectors of the nodes that take part"
    )
    return f"<footer>{'<br>'.join(bits)}</footer>"
