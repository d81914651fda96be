"""`grapevine run sweep.toml --out FOLDER`: progress, and what a sweep left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from node.cli.explore import Progress
from node.errors import ConfigError

if TYPE_CHECKING:
    from scenarios.workers import Jobs


def is_sweep_file(typed: str) -> bool:
    """Whether the argument is a file that holds a sweep."""
    from scenarios.sweep import is_sweep

    path = Path(typed)
    return path.is_file() and is_sweep(path)


def check_alone(**options: Any) -> None:
    """Raises ConfigError for options that are a single scenario's."""
    for name, value in options.items():
        if value is not None:
            option = {"json_file": "json"}.get(name, name)
            raise ConfigError(
                f"--{option}: is for a scenario; a sweep's seeds stand in its file and its "
                "results in --out"
            )


def run(path: Path, out: Path | None, *, on: str, jobs: Jobs) -> bool:
    """Run a sweep; whether every run held."""
    from scenarios.sweep import load_sweep, run_sweep

    if out is None:
        raise ConfigError(f"{path}: is a sweep; say where its results go: --out FOLDER")
    sweep = load_sweep(path)
    progress = Progress(len(sweep.combinations) * len(sweep.seeds), "runs")
    done = run_sweep(sweep, out, on=on, jobs=jobs, on_run=lambda held: progress.done(ok=held))
    progress.close()
    for why in done.broken:
        typer.echo(f"no result: {why}")
    typer.echo(
        f"{sweep.scenario}: {len(sweep.combinations)} combinations × {len(sweep.seeds)} seeds, "
        f"{done.skipped} were there before; {done.failed} of {done.runs} failed a check"
    )
    typer.echo(f"{out}: runs.csv, rounds.csv, manifest.json")
    if sweep.keys:
        typer.echo(f"  look: grapevine table {out} --rows {sweep.keys[0]} --value accuracy_mean")
    return not done.failed and not done.broken
