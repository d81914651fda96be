"""`grapevine table`: a sweep's results as mean ± 95 % over seeds, for people and for papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node.cli.output import columns as two_columns

if TYPE_CHECKING:
    from scenarios.table import Table


def table(
    results: Annotated[Path, typer.Argument(help="The folder that a sweep wrote: its --out.")],
    *,
    rows: Annotated[
        str | None, typer.Option(help="Varied keys, comma-separated; else all that vary.")
    ] = None,
    columns: Annotated[str, typer.Option(help="Varied keys that stand side by side.")] = "",
    value: Annotated[str, typer.Option(help="A column of runs.csv.")] = "accuracy_mean",
    latex: Annotated[bool, typer.Option("--latex", help="A tabular for a paper.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write the curves over rounds there: .pdf or .svg.")
    ] = None,
    curve: Annotated[str, typer.Option(help="A column of rounds.csv.")] = "accuracy",
) -> None:
    """Show a sweep's results: mean ± 95 % over seeds (Student's t).

    Example: grapevine table results --rows learning.rule --columns learning.f --value accuracy_min
    """
    from scenarios import table as tables

    read = tables.read_results(results)
    aside = _keys(columns)
    down = [key for key in read.varied if key not in aside] if rows is None else _keys(rows)
    made = tables.tabulate(read, rows=down, columns=aside, value=value)
    if plot is not None:
        tables.plot(read, plot, rows=[*down, *aside], curve=curve)
    if latex:
        typer.echo(tables.latex(made))
    else:
        _show(made)


def _keys(written: str) -> list[str]:
    return [key.strip() for key in written.split(",") if key.strip()]


def _show(made: Table) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    from scenarios.table import text

    console = Console()
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for key in made.rows:
        grid.add_column(escape(key))
    for values in made.column_values:
        grid.add_column(escape(", ".join(values) or made.value), justify="right", no_wrap=True)
    for row in made.row_values:
        cells = [text(made.cells.get((row, column))) for column in made.column_values]
        grid.add_row(*map(escape, row), *cells)
    console.print(grid)
    seeds = sorted({found.n for found in made.cells.values()})
    counted = "no value" if not seeds else f"{seeds[0]} seeds"
    if len(seeds) > 1:
        counted = f"{seeds[0]} to {seeds[-1]} seeds"
    notes = [("value", f"{made.value}, mean ± 95 % over {counted} (Student's t)")]
    if made.failed:
        notes.append(("note", f"{made.failed} of {made.runs} runs failed a check; they are in it"))
    console.print(escape(two_columns(notes)))
