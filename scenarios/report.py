"""The report: one HTML page that shows what a run did; it needs no network and no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from node.errors import StorageError
from scenarios import report_figures as figures
from scenarios import report_tables as tables
from scenarios.record import Run
from scenarios.report_page import Figure, page, text

POSITIONS_MAX: Final = 400  # beyond it a picture of the graph is a grey ball


def write_report(run: Run, path: Path) -> None:
    """Write the page of ``run`` to ``path``. Raises StorageError where the disk refuses."""
    try:
        path.write_text(html_report(run), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def html_report(run: Run) -> str:
    """The page as one string."""
    drawn = _figures(run)
    said, good = tables.verdict(run)
    sections = [
        f"<h1>{text(run.scenario)}</h1>",
        f"<p class=soft>{len(run.nodes)} nodes, no server; a report of grapevine</p>",
        f'<p class="verdict{"" if good else " bad"}">{text(said)}</p>',
        *(f"<p>{text(note)}</p>" for note in run.notes),
        tables.facts(run),
        "<h2>Node by node</h2>",
        tables.nodes(run),
        _explain(run),
        _drawing(
            "Learning", [n for n in ("accuracy", "auroc", "loss", "own") if n in drawn], drawn
        ),
        _drawing(
            "Consensus, and what it cost", [n for n in ("distance", "bytes") if n in drawn], drawn
        ),
        "<h2>Who was missing, and since when</h2>",
        tables.absences(run),
        tables.oddities(run),
    ]
    if "graph" in drawn:
        sections.append('<h2>The graph</h2><div id="graph" class="figure tall"></div>')
    checked = tables.checks(run)
    if checked:
        sections += ["<h2>What had to hold</h2>", checked]
    sections.append(_footer(run))
    return page(title=f"{run.scenario}: grapevine", body="\n".join(sections), figures=drawn)


def _figures(run: Run) -> dict[str, Figure]:
    made = {
        "accuracy": figures.curves(
            run, lambda row: row.accuracy, y="accuracy, common test rows", percent=True
        ),
        "auroc": figures.curves(
            run, lambda row: row.auroc, y="AUROC, common test rows", percent=True
        ),
        "loss": figures.curves(run, lambda row: row.loss, y="loss", percent=False),
        "own": figures.curves(
            run, lambda row: row.own_accuracy, y="accuracy, each node's own rows", percent=True
        ),
        "distance": figures.distance(run),
        "bytes": figures.traffic(run),
        "graph": figures.graph(run, _positions(run)),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def _positions(run: Run) -> dict[str, tuple[float, float]]:
    if len(run.graph_nodes) > POSITIONS_MAX:
        return {}
    from topology.draw import layout
    from topology.graph import Graph

    return dict(layout(Graph(run.graph_nodes, run.edges)))


def _drawing(title: str, names: list[str], drawn: dict[str, Figure]) -> str:
    if not names:
        return ""
    boxes = "".join(f'<div id="{name}" class="figure"></div>' for name in names)
    shape = "pair" if len(names) > 1 else ""
    return f'<h2>{text(title)}</h2><div class="{shape}">{boxes}</div>'


def _explain(run: Run) -> str:
    words = [
        "“Together” is the node's own model at the end, “alone” what the same node reaches on its "
        "rows with the same steps and no neighbours.",
        "The common test rows were taken out before the rows were split; own rows are each "
        "node's held-out part.",
    ]
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
