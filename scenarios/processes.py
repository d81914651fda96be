"""The processes engine: every node a process of its own, over TCP on loopback, in real time.

It founds the consortium, starts the nodes, lets the scenario's faults happen, and always ends: with
every process reaped, and with a verdict where a node did not. Light to import: the nursery, which
imports torch for all nodes, is started before this process imports it for itself.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from node.errors import ConfigError, StorageError
from node.types.settings import StartSettings
from scenarios.disks import can_be_full
from scenarios.expectations import check_baselines
from scenarios.faults import (
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Resume,
    Slow,
    Unclog,
)
from scenarios.nursery import Nursery
from scenarios.settings import Scenario
from topology.settings import TopologySettings

if TYPE_CHECKING:
    from scenarios.record import Run

STARTING_S: Final = 1.0  # keys, charter and the first node, on a machine that is not busy
STARTING_NODE_S: Final = 0.2  # each node; five start within a second on two cores
MARK: Final = "run.json"  # tells a folder made by this engine from anybody else's

Progress = Callable[[dict[str, Any]], None]

_CAN: Final = (
    Partition,
    Heal,
    Crash,
    Restart,
    Pause,
    Resume,
    Slow,
    Link,
    Clog,
    Unclog,
    Reset,
    ClockSkew,
    DiskFull,
    Attack,
)


def run_processes(
    scenario: Scenario,
    *,
    directory: Path | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
    baselines: bool = True,
    timeout_s: float | None = None,
    nursery: Nursery | None = None,
    broker: str | None = None,
    direct: Sequence[str] = (),
) -> Run:
    """Run ``scenario`` with real processes and hand back what happened.

    directory: where keys, states, logs and models are written; it must be new, empty, or an
    earlier run's (which is then replaced). Without it a temporary one is used and removed.
    on_progress: gets every event of every node. timeout_s: for all of it; else the engine gives
    up when no node has shown a sign of life for longer than any wait can last. nursery: one that
    stays open for several runs, which spares each the imports. broker: nodes meet through the
    broker with this URL, and only those in ``direct`` also listen on sockets of their own; without
    it, a scenario with ``network.transport = "mqtt"`` gets an embedded one for the run.
    Raises ConfigError for what cannot be run, GrapevineError when processes cannot be started.
    """
    scenario = scenario.with_seed(seed).with_chaos()
    check_baselines(scenario, baselines=baselines)
    refuse(scenario)
    with contextlib.ExitStack() as stack:
        if directory is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grapevine-")))
        else:
            clear(directory)
            folder = directory
        began = time.monotonic()
        if broker is None and scenario.settings.network.transport == "mqtt":
            broker = stack.enter_context(_embedded_broker())
        if nursery is None:
            nursery = stack.enter_context(Nursery(folder / "nursery.log"))
        run = _run(
            scenario,
            folder,
            nursery,
            on_progress=on_progress,
            baselines=baselines,
            timeout_s=timeout_s,
            began=began,
            broker=broker,
            direct=direct,
        )
    if directory is None:
        nodes = tuple(structs.replace(node, model=None) for node in run.nodes)
        run = structs.replace(run, nodes=nodes)
    return run


def _embedded_broker() -> AbstractContextManager[str]:
    from scenarios.broker import broker
    from scenarios.ports import free_ports

    return broker(free_ports(1)[0])


def clear(directory: Path) -> None:
    """Make ``directory`` an empty one of this engine.

    Raises ConfigError where it holds anything that this engine did not make, StorageError where
    it cannot be written or a node still runs in it.
    """
    from node.storage.directory import StateDirectory

    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: is a file, expected a folder")
    try:
        if directory.is_dir() and any(directory.iterdir()):
            if not (directory / MARK).is_file():
                raise ConfigError(f"{directory}: is not empty, and not of an earlier run")
            for state in sorted(directory.glob("*/state")):
                StateDirectory(state).open().close()
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MARK).write_text("{}\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{directory}: cannot be written: {error.strerror}") from None


def _run(
    scenario: Scenario,
    directory: Path,
    nursery: Nursery,
    *,
    on_progress: Progress | None,
    baselines: bool,
    timeout_s: float | None,
    began: float,
    broker: str | None,
    direct: Sequence[str],
) -> Run:
    from scenarios.founding import found
    from scenarios.prepare import prepare
    from scenarios.processes_fleet import Fleet
    from scenarios.processes_ground import Forks
    from scenarios.processes_result import collect, judged

    prepared = prepare(scenario)
    nursery.wait_ready()
    founded = found(
        directory,
        scenario.graph.nodes,
        name=charter_name(scenario),
        topology=TopologySettings(kind="explicit", edges=scenario.graph.edges),
        task=scenario.settings.task,
        learning=prepared.learning,
        start=start_of(scenario, STARTING_NODE_S),
        parts=prepared.parts,
        broker=broker,
        direct=direct,
    )
    fleet = Fleet(scenario, prepared, founded, Forks(nursery, founded), on_progress)
    fleet.run(timeout_s)
    setup_s = fleet.start - began
    run = collect(prepared, founded, fleet, setup_s=setup_s)
    return judged(run, prepared, fleet.outages, baselines=baselines)


def refuse(scenario: Scenario, *, engine: str = "processes") -> None:
    """A fault that this engine, or one built on it, cannot inject is refused, never skipped."""
    for fault in scenario.faults:
        where = f"{scenario.source}: event {fault.label}"
        if what := _beyond(fault):
            raise ConfigError(f"{where}: {engine} cannot inject {what}; simulation can")
        if isinstance(fault, Slow) and any(scenario.step_ms[name] == 0 for name in fault.nodes):
            raise ConfigError(
                f"{where}: on {engine} a slow node pads its steps to factor × compute.step_ms, "
                "and that is 0"
            )


def _beyond(fault: Fault) -> str:
    """The name of what this engine cannot do in ``fault``; empty where it can do all of it."""
    if isinstance(fault, DiskFull) and not can_be_full():
        return "'disk_full' on this system, which has no /dev/full and /proc"
    return "" if isinstance(fault, _CAN) else f"'{fault.kind}'"


def charter_name(scenario: Scenario) -> str:
    kept = (c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in scenario.name.lower())
    return "".join(kept).strip("-") or "scenario"


def start_of(scenario: Scenario, starting_node_s: float) -> StartSettings:
    """``after_s`` counts from when all nodes are up; a charter names the hour before that.

    Should starting them take longer than is allowed for here, the hour comes sooner after it.
    """
    start = scenario.settings.start
    if start.after_s is None:
        return start
    allowed_s = STARTING_S + starting_node_s * len(scenario.graph.nodes)
    at = datetime.now(UTC) + timedelta(seconds=start.after_s + allowed_s)
    return structs.replace(start, after_s=None, at_latest=at)
