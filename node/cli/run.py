"""`grapevine run`: a scenario on one engine, its results as a table or JSON, its verdict as a code.

Thin: the engines are scenarios.simulation and scenarios.processes, the page is scenarios.report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.cli import explore, sweep
from node.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from scenarios.record import NodeRun, Run

_NODES_SHOWN: Final = 40  # of more, the worst ones

_MISSED_SHOWN: Final = 4  # of one node's neighbours: what fits into 80 columns

Progress = Callable[[float, float], None]


def _list(wanted: bool) -> None:
    """Print what a scenario file may name, and leave."""
    if wanted:
        from scenarios.glossary import lines

        for line in lines():
            typer.echo(line)
        raise typer.Exit


def run(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or a name of the library.")],
    *,
    on: Annotated[
        str, typer.Option("--on", help="simulation, processes or docker.")
    ] = "simulation",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's own.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result there; - for stdout.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write one page with curves there.")] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also train each node alone, and one model on all rows.")
    ] = True,
    seeds: Annotated[
        str | None, typer.Option(help="Many seeds: a number, from --seed or 0 on, or 0..9.")
    ] = None,
    jobs: Annotated[
        str | None, typer.Option(help="Runs at a time, else one a core; ray: over a cluster.")
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Cut a failing run down to the fewest faults.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A sweep's folder: what is there is not run again.")
    ] = None,
    names: Annotated[
        bool,
        typer.Option(
            "--list",
            callback=_list,
            is_eager=True,
            help="Name the library's scenarios, the faults and the attacks.",
        ),
    ] = False,
) -> None:
    """Run a scenario file and check what it expects; or many seeds of it, or a sweep.

    The library's scenarios, the faults and the attacks: grapevine run --list. All keys of a file:
    docs/scenario-file.md.

    Example: grapevine run wan-partition --report partition.html

    Example: grapevine run wan-partition --seeds 500 --jobs 8 --shrink

    Example: grapevine run sweep.toml --jobs 8 --out results
    """
    from scenarios import engines
    from scenarios.settings import load_scenario

    engines.check_engine(on)
    for path in (json_file, report):
        _check_writable(path)
    if sweep.is_sweep_file(scenario):
        sweep.check_alone(
            seed=seed, seeds=seeds, json_file=json_file, report=report, shrink=shrink or None
        )
        if not sweep.run(Path(scenario), out, on=on, jobs=explore.check_jobs(jobs, on)):
            raise typer.Exit(1)
        return
    if out is not None:
        raise ConfigError(f"--out: is a sweep's folder, and {scenario} is no sweep")
    _check_together(on=on, seeds=seeds, jobs=jobs, shrink=shrink, report=report)
    loaded = load_scenario(scenario)
    if seeds is not None:
        count = explore.check_jobs(jobs, on)
        held = explore.explore_seeds(
            scenario,
            loaded,
            seeds=seeds,
            first=seed or 0,
            on=on,
            jobs=count,
            json_file=json_file,
            shrink=shrink,
        )
        if not held:
            raise typer.Exit(1)
        return
    loaded = loaded.with_seed(seed)
    if shrink:
        explore.shrink_seed(scenario, loaded, loaded.seed)
        raise typer.Exit(1)
    with _progress(loaded.name, quiet=str(json_file) == "-") as on_progress:
        found = engines.run(loaded, on=on, baselines=baselines, on_progress=on_progress)
    _write(found, json_file, report)
    if str(json_file) != "-":
        show(found)
    if not found.ok:
        raise typer.Exit(1)


def _check_together(
    *, on: str, seeds: str | None, jobs: str | None, shrink: bool, report: Path | None
) -> None:
    """Raises ConfigError for options that mean nothing beside each other."""
    if seeds is None and jobs is not None:
        raise ConfigError("--jobs: there is one run; give --seeds as well")
    if seeds is not None and report is not None:
        raise ConfigError("--report: shows one run; give --seed instead of --seeds")
    if shrink and on != "simulation":
        raise ConfigError(f"--shrink: needs runs that can be repeated; not --on {on}")


def _check_writable(path: Path | None) -> None:
    """Find out before an hour of work, not after it."""
    if path is None or str(path) == "-":
        return
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a file to write")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist")


def _write(run: Run, json_file: Path | None, report: Path | None) -> None:
    if json_file is not None:
        from scenarios.record import result

        text = json.dumps(result(run), ensure_ascii=False, indent=2, allow_nan=False)
        if str(json_file) == "-":
            typer.echo(text)
        else:
            try:
                json_file.write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise StorageError(f"{json_file}: cannot be written: {error.strerror}") from None
    if report is not None:
        from scenarios.report.html import write_report

        write_report(run, report)


@contextmanager
def _progress(name: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on stderr where somebody looks at it, else nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda _at, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[at]:.1f} s of the run"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=1.0, at=0.0)
        yield lambda at, share: bar.update(task, completed=share, at=at)


def show(run: Run) -> None:
    """The results as tables on stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    virtual = "" if run.virtual_s is None else f", {run.virtual_s:.1f} s virtual"
    console.print(
        f"[bold]{escape(run.scenario)}[/] on {run.engine}, seed {run.seed}: {len(run.nodes)} "
        f"nodes, {run.rounds} rounds in {run.wall_s:.2f} s{virtual}"
    )
    alone = {a.node: a for a in run.baselines.local_only} if run.baselines else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("node")
    for column in ("rows", "round", "accuracy", "alone", "own rows", "loss", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ended", min_width=8)
    nodes = list(run.nodes)
    if len(nodes) > _NODES_SHOWN:
        nodes.sort(key=lambda node: (node.ended == "finished", node.accuracy or 0.0, node.name))
        nodes = nodes[:_NODES_SHOWN]
    for node in nodes:
        lonely = alone[node.name].accuracy if node.name in alone else None
        table.add_row(
            escape(node.name),
            str(node.samples),
            str(node.rounds),
            *(_figure(value) for value in (node.accuracy, lonely, node.own_accuracy, node.loss)),
            f"{node.sent_bytes / 1e6:.2f}",
            escape(node.ended),
        )
    console.print(table)
    if len(run.nodes) > len(nodes):
        console.print(f"… and {len(run.nodes) - len(nodes)} more; the worst are shown")
    for node in nodes:
        if node.missed:
            console.print(escape(_missed(node)))
    for line in _summary(run):
        console.print(escape(line))
    for check in run.checks:
        mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]"
        limit = "" if check.limit is None else f" (limit {_figure(check.limit)})"
        console.print(f"{mark} {escape(check.name)}: {escape(_figure(check.value))}{limit}")


def _missed(node: NodeRun) -> str:
    """Whom a node could not mix, the longest first, in one line of a terminal."""
    longest = sorted(node.missed, key=lambda missed: (-missed.rounds, missed.peer))
    said = [f"{m.peer} in {m.rounds} ({m.first}–{m.last})" for m in longest[:_MISSED_SHOWN]]
    if len(longest) > _MISSED_SHOWN:
        said.append(f"{len(longest) - _MISSED_SHOWN} more")
    return f"{node.name} missed {', '.join(said)}"


def _summary(run: Run) -> Iterator[str]:
    if run.consensus_distance is not None:
        relative = 100 * (run.consensus_relative or 0.0)
        yield f"consensus distance {run.consensus_distance:.4g}, {relative:.2g} % of the norm"
    if run.baselines and run.baselines.pooled and run.baselines.pooled.accuracy is not None:
        yield f"one model on all rows: accuracy {run.baselines.pooled.accuracy:.4f}"
    if run.absent:
        yield f"not there to the end: {', '.join(run.absent)}"
    yield from run.notes
    if run.trace_hash:
        yield f"trace {run.trace_hash[:16]}, schedule {(run.schedule_hash or '')[:16]}"


def _figure(value: float | int | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
