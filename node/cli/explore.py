"""`grapevine run --seeds`, `--shrink` and sweeps: progress, summary, and how to see it again.

Thin: the work is in scenarios.explore, scenarios.shrink and scenarios.sweep.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from node.cli.keys import write_text
from node.errors import ConfigError

if TYPE_CHECKING:
    from scenarios.explore import Outcome
    from scenarios.settings import Scenario
    from scenarios.shrink import Shrunk
    from scenarios.workers import Jobs

_FAILURES_SHOWN: Final = 5  # the others are named by their seeds
_JOBS_MAX: Final = 1024


def check_jobs(jobs: str | None, on: str) -> Jobs:
    """How many processes: what was asked for, else one a core (real nodes take all of them).

    Raises ConfigError for what is neither a number in its bounds nor "ray".
    """
    if jobs is None:
        return 1 if on != "simulation" else (os.cpu_count() or 1)
    if jobs == "ray":
        from scenarios import cluster

        if on != "simulation":
            raise ConfigError(f"--jobs ray: spreads simulations; not --on {on}")
        cluster.check()
        return "ray"
    if not (jobs.isascii() and jobs.isdigit() and 1 <= int(jobs[:9]) <= _JOBS_MAX):
        raise ConfigError(f"--jobs: found '{jobs}', expected 1 to {_JOBS_MAX} processes, or 'ray'")
    return int(jobs)


def explore_seeds(
    typed: str,
    scenario: Scenario,
    *,
    seeds: str,
    first: int,
    on: str,
    jobs: Jobs,
    json_file: Path | None,
    shrink: bool,
) -> bool:
    """Run the seeds and say how they ended; whether all held. ``typed``: the scenario argument."""
    from scenarios.explore import explore, parse_seeds

    chosen = parse_seeds(seeds, where="--seeds", first=first)
    progress = Progress(len(chosen), "seeds")
    begun = time.perf_counter()
    outcomes = explore(
        scenario, chosen, on=on, jobs=jobs, on_outcome=lambda found: progress.done(ok=found.ok)
    )
    progress.close()
    wall_s = time.perf_counter() - begun
    failures = [outcome for outcome in outcomes if not outcome.ok]
    made = {
        "scenario": scenario.name,
        "engine": on,
        "seeds": len(outcomes),
        "failed": len(failures),
        "wall_s": wall_s,
        "failures": [_described(typed, outcome, on) for outcome in failures],
    }
    text = json.dumps(made, ensure_ascii=False, indent=2)
    if str(json_file) == "-":
        typer.echo(text)
        return not failures
    if json_file is not None:
        write_text(json_file, text + "\n")
    for outcome in failures[:_FAILURES_SHOWN]:
        _show(typed, outcome, on)
    if len(failures) > _FAILURES_SHOWN:
        rest = ", ".join(str(outcome.seed) for outcome in failures[_FAILURES_SHOWN:][:50])
        typer.echo(f"{len(failures) - _FAILURES_SHOWN} more failed: seeds {rest}")
    low, high = chosen[0], chosen[-1]
    where = "over Ray" if jobs == "ray" else f"with {jobs} processes"
    typer.echo(
        f"{scenario.name} on {on}, seeds {low}..{high}: {len(outcomes) - len(failures)} of "
        f"{len(outcomes)} held, {len(failures)} failed; {wall_s:.1f} s {where}, "
        f"{wall_s / len(outcomes):.3f} s a seed"
    )
    if failures and shrink:
        shrink_seed(typed, scenario, failures[0].seed)
    return not failures


def shrink_seed(typed: str, scenario: Scenario, seed: int) -> None:
    """Cut one failing seed's faults down, write the file, say the command."""
    from scenarios.settings import library_names
    from scenarios.shrink import Shrinker, write_shrunk

    source = Path(scenario.source)
    tty = sys.stderr.isatty()

    def on_try(left: int, tried: int) -> None:
        if tty:
            typer.echo(f"\rshrinking: {tried} tried, {left} faults in hand ", err=True, nl=False)

    shrinker = Shrinker(
        source.read_text(encoding="utf-8"), scenario, seed, base=source.parent, on_try=on_try
    )
    found = shrinker.shrink()
    if tty:
        typer.echo("", err=True)
    # beside the file, for a topology file is found from there; the library is not ours to fill
    of_library = typed.removesuffix(".toml") in library_names() and not Path(typed).exists()
    folder = Path() if of_library else source.parent
    path = folder / f"{source.stem}.seed{seed}.shrunk.toml"
    write_shrunk(path, found)
    _show_shrunk(path, found)


def _show_shrunk(path: Path, found: Shrunk) -> None:
    typer.echo(f"shrunk from {found.before} faults to {found.after} ({found.tried} runs): {path}")
    typer.echo(f"  still fails: {found.outcome.why}")
    typer.echo(f"  replay: {_replay(str(path), found.outcome.seed, 'simulation')}")


def _show(typed: str, outcome: Outcome, on: str) -> None:
    typer.echo(f"seed {outcome.seed} FAILED: {outcome.why}")
    if outcome.last:
        typer.echo("  the last events before it:")
    for line in outcome.last:
        typer.echo(f"    {line}")
    typer.echo(f"  replay: {_replay(typed, outcome.seed, on)}")


def _described(typed: str, outcome: Outcome, on: str) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "checks": [check.name for check in outcome.failed],
        "why": outcome.why,
        "last_events": list(outcome.last),
        "replay": _replay(typed, outcome.seed, on),
    }


def _replay(typed: str, seed: int, on: str) -> str:
    engine = "" if on == "simulation" else f" --on {on}"
    return f"grapevine run {shlex.quote(typed)} --seed {seed}{engine}"


class Progress:
    """How far many runs are, on stderr: one line that is overwritten, or ten lines in a log.

    No thread of its own: the workers are forked while it shows.
    """

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._done, self._failed = 0, 0
        self._begun = time.perf_counter()
        self._tty = sys.stderr.isatty()

    def done(self, *, ok: bool) -> None:
        self._done += 1
        self._failed += not ok
        tenths = self._done * 10 // self._total != (self._done - 1) * 10 // self._total
        if not self._tty and not (tenths and self._total >= 10):
            return
        took = time.perf_counter() - self._begun
        line = f"{self._done} of {self._total} {self._what}, {self._failed} failed, {took:.0f} s"
        typer.echo(f"\r{line} " if self._tty else line, err=True, nl=not self._tty)

    def close(self) -> None:
        if self._tty and self._done:
            typer.echo("", err=True)
