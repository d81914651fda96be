"""The docker engine: every node a container of its own, every edge of the graph a network.

The same fleet, log and verdict as on processes; only where nodes run is another matter. Partition
is `docker network disconnect`, crash `docker kill`, pause `docker pause`. Whatever happens, nothing
that a run made on the engine outlives it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from node.compose_parts import PORT
from node.errors import ConfigError
from scenarios.docker_berths import POOL, Berths, room
from scenarios.docker_broker import ADDRESS, BROKER_IMAGE
from scenarios.docker_broker import check as check_broker
from scenarios.docker_broker import edges as broker_edges
from scenarios.docker_command import check_engine, check_image
from scenarios.expectations import check_baselines
from scenarios.faults import Attack
from scenarios.processes import charter_name, clear, start_of
from scenarios.processes import refuse as refuse_as_processes
from scenarios.settings import Scenario
from topology.settings import TopologySettings

if TYPE_CHECKING:
    from scenarios.record import Run

IMAGE: Final = "grapevine-scenario"
IMAGE_VARIABLE: Final = "GRAPEVINE_SCENARIO_IMAGE"
STARTING_NODE_S: Final = 1.0  # copying its plan into a volume, opening its state

Progress = Callable[[dict[str, Any]], None]


def run_docker(
    scenario: Scenario,
    *,
    directory: Path | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
    baselines: bool = True,
    timeout_s: float | None = None,
    image: str | None = None,
) -> Run:
    """Run ``scenario`` in containers and hand back what happened.

    As scenarios.processes.run_processes. image: one with scenarios in it; else what the variable
    GRAPEVINE_SCENARIO_IMAGE says, or grapevine-scenario. Raises ConfigError for what cannot be
    run, and where no engine or no image is there; GrapevineError where the engine refuses.
    """
    scenario = scenario.with_seed(seed).with_chaos()
    check_baselines(scenario, baselines=baselines)
    refuse(scenario)
    chosen = image or os.environ.get(IMAGE_VARIABLE) or IMAGE
    check_engine(chosen)
    if _at_broker(scenario):
        check_image(BROKER_IMAGE, f"docker pull {BROKER_IMAGE}")
    with contextlib.ExitStack() as stack:
        if directory is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grapevine-")))
        else:
            clear(directory)
            folder = directory
        run = _run(
            scenario,
            folder,
            chosen,
            on_progress=on_progress,
            baselines=baselines,
            timeout_s=timeout_s,
        )
    if directory is None:
        nodes = tuple(structs.replace(node, model=None) for node in run.nodes)
        run = structs.replace(run, nodes=nodes)
    return run


def refuse(scenario: Scenario) -> None:
    """A fault that this engine cannot inject is refused, never skipped."""
    refuse_as_processes(scenario, engine="docker")
    for fault in scenario.faults:
        if isinstance(fault, Attack) and ":" in fault.what:
            raise ConfigError(
                f"{scenario.source}: event {fault.label}: docker cannot inject an attack from a "
                "file, which no image has; processes can"
            )
    if _at_broker(scenario):
        check_broker(scenario)
    edges, of = len(_edges(scenario)), "nodes" if _at_broker(scenario) else "edges"
    if edges > room():
        raise ConfigError(
            f"{scenario.source}: key 'topology': {edges} {of}, and docker makes a network for "
            f"each: {POOL} has room for {room()}; processes need none"
        )


def _at_broker(scenario: Scenario) -> bool:
    return scenario.settings.network.transport == "mqtt"


def _edges(scenario: Scenario) -> tuple[tuple[str, str], ...]:
    """Who shares a network with whom."""
    return broker_edges(scenario.graph.nodes) if _at_broker(scenario) else scenario.graph.edges


def _run(
    scenario: Scenario,
    directory: Path,
    image: str,
    *,
    on_progress: Progress | None,
    baselines: bool,
    timeout_s: float | None,
) -> Run:
    from scenarios.docker_ground import Containers
    from scenarios.founding import found
    from scenarios.prepare import prepare
    from scenarios.processes_fleet import Fleet
    from scenarios.processes_result import collect, judged

    began = time.monotonic()
    prepared = prepare(scenario)
    graph = scenario.graph
    founded = found(
        directory,
        graph.nodes,
        name=charter_name(scenario),
        topology=TopologySettings(kind="explicit", edges=graph.edges),
        task=scenario.settings.task,
        learning=prepared.learning,
        start=start_of(scenario, STARTING_NODE_S),
        parts=prepared.parts,
        address=f"tcp://NAME:{PORT}",
        broker=str(ADDRESS) if _at_broker(scenario) else None,
    )
    berths = Berths(image, _edges(scenario))
    with _terminable(), contextlib.closing(berths):
        containers = Containers(berths, founded, scenario.faults, at_broker=_at_broker(scenario))
        containers.hold()
        fleet = Fleet(scenario, prepared, founded, containers, on_progress)
        fleet.run(timeout_s)
        containers.fetch()
    run = collect(prepared, founded, fleet, setup_s=fleet.start - began, engine="docker")
    return judged(run, prepared, fleet.outages, baselines=baselines)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: with everything taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
