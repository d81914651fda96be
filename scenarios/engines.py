"""The engines by name: one place that knows which there are and how each is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from node.errors import ConfigError
from node.strict import nearest
from scenarios.record import Run
from scenarios.settings import Scenario, load_scenario

ENGINES: Final = ("simulation", "processes", "docker")

Progress = Callable[[float, float], None]


def check_engine(on: str) -> str:
    """Raises ConfigError, with the nearest name, unless there is such an engine."""
    if on not in ENGINES:
        raise ConfigError(f"--on: unknown engine '{on}'{nearest(on, ENGINES)}")
    return on


def check(scenario: Scenario, *, on: str = "simulation") -> None:
    """Raises ConfigError for what the engine would refuse, without starting anything."""
    from scenarios.prepare import prepare

    check_engine(on)
    drawn = scenario.with_chaos()
    if on == "processes":
        from scenarios.processes import refuse

        refuse(drawn)
    elif on == "docker":
        from scenarios.docker import refuse as refuse_on_docker

        refuse_on_docker(drawn)
    prepare(drawn)


def run(
    scenario: Scenario | Path | str,
    *,
    on: str = "simulation",
    seed: int | None = None,
    baselines: bool = False,
    on_progress: Progress | None = None,
) -> Run:
    """Run a scenario (loaded, a file, or a name of the library) and judge what it expects.

    on: "simulation", "processes" or "docker". seed: instead of the file's own. baselines: also
    train each node alone and one model on all rows. on_progress: called with (seconds of the run,
    share done).
    Raises ConfigError for a scenario or an engine that cannot be.
    """
    check_engine(on)
    loaded = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    chosen = loaded.with_seed(seed)
    if on == "simulation":
        from scenarios.simulation import simulate

        return simulate(chosen, on_progress=on_progress, baselines=baselines)
    share = _share_of(chosen, on_progress) if on_progress else None
    if on == "docker":
        from scenarios.docker import run_docker

        return run_docker(chosen, on_progress=share, baselines=baselines)
    from scenarios.processes import run_processes

    return run_processes(chosen, on_progress=share, baselines=baselines)


def _share_of(scenario: Scenario, progress: Progress) -> Callable[[dict[str, Any]], None]:
    """Turns the nodes' events into the share that is done: their mean round over the last one."""
    learning = scenario.settings.learning
    last = learning.rounds + (learning.final_mixing or 0)
    rounds = dict.fromkeys(scenario.graph.nodes, 0)

    def take(event: dict[str, Any]) -> None:
        if event.get("event") == "round" and event.get("node") in rounds:
            rounds[event["node"]] = event["round"]
            share = sum(rounds.values()) / len(rounds) / last
            progress(float(event.get("at", 0.0)), min(1.0, share))

    return take
