"""`grapevine topology`: what a consortium graph is worth, before anybody depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.keys import write_text
from node.cli.output import JsonOption, columns, emit
from node.errors import ConfigError

if TYPE_CHECKING:
    from topology.graph import Graph
    from topology.measure import Measures

_SHOWN = 8  # bridges or cut nodes that a line of text names


def topology(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A topology file, or a name from the library.")
    ],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a picture here: .svg or .html.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a consortium graph, or draw it.

    How fast it mixes, where it is weak, how many liars a neighbourhood can bear.

    Example: grapevine topology hospitals-5 --plot graph.svg

    Rounds to consensus: after so many rounds of mixing alone, a 20th of the differences remains.
    """
    from topology.generate import load
    from topology.measure import measure
    from topology.settings import library_path

    path = Path(file)
    if not path.exists() and path.name == file:
        path = library_path(file)
    graph = load(path)
    measured = measure(graph)
    if plot is not None:
        _plot(graph, plot)
    emit(_described(graph, measured, plot), as_json, _shown(graph, measured, plot))


def _plot(graph: Graph, path: Path) -> None:
    from topology.draw import draw_svg

    svg = draw_svg(graph)
    if path.suffix == ".html":
        svg = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Topology</title>'
            f'<body style="margin:2rem;max-width:60rem">{svg}</body></html>\n'
        )
    elif path.suffix != ".svg":
        raise ConfigError(f"--plot: found '{path.name}', expected a name ending in .svg or .html")
    write_text(path, svg)


def _described(graph: Graph, measured: Measures, plot: Path | None) -> dict[str, Any]:
    return {
        "nodes": list(graph.nodes),
        "edges": [list(edge) for edge in graph.edges],
        "degree": {"min": measured.degree_min, "mean": measured.degree_mean}
        | {"max": measured.degree_max},
        "diameter": measured.diameter,
        "lambda2": measured.lambda2,
        "spectral_gap": measured.spectral_gap,
        "rounds_to_consensus": measured.rounds_to_consensus,
        "bridges": [list(edge) for edge in measured.bridges],
        "cut_nodes": list(measured.cut_nodes),
        "tolerates": measured.tolerates,
        "plot": str(plot) if plot else None,
    }


def _shown(graph: Graph, measured: Measures, plot: Path | None) -> str:
    degrees = f"{measured.degree_min} to {measured.degree_max}, mean {measured.degree_mean:.2f}"
    rows = [
        ("nodes", str(measured.nodes)),
        ("edges", str(measured.edges)),
        ("degree", degrees),
        ("diameter", str(measured.diameter)),
        ("spectral gap", f"{measured.spectral_gap:.4f}"),
        ("rounds to consensus", str(measured.rounds_to_consensus)),
        ("bears liars a neighbourhood", f"f = {measured.tolerates}"),
        ("single points of failure", _weak(measured)),
    ]
    if plot is not None:
        rows.append(("picture", str(plot)))
    text = columns(rows)
    if len(graph.nodes) <= 64:
        from topology.draw import draw_text

        text += "\n\n" + draw_text(graph).rstrip()
    return text


def _weak(measured: Measures) -> str:
    found = [f"edge {a}–{b}" for a, b in measured.bridges]
    found += [f"node {name}" for name in measured.cut_nodes]
    if len(found) > _SHOWN:
        found = [*found[:_SHOWN], f"… {len(found)} in all"]
    return ", ".join(found) or "none"
