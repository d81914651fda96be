"""A node process of the engines: `grapevine start`, plus what the scenario does to it.

    python -m scenarios.child NODE.toml [--seed N] [--plan FILE]

Events go to stdout as JSON lines. --seed fixes the node's own randomness; --plan names the file
with its links' shape, its pace, and where changes will be told (see weather).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.errors import GrapevineError

if TYPE_CHECKING:
    from node.runtime import NodeRuntime
    from node.runtime_links import Links
    from node.runtime_parts import Parts
    from node.status.progress import Sink
    from scenarios.weather import Weather

PRELOADED: Final = (
    "node.runtime",
    "scenarios.attacks.models",
    "scenarios.attacks.wire",
    "scenarios.disks",
    "scenarios.faulty",
    "scenarios.attacks.malicious",
    "scenarios.witness",
)


def preload() -> None:
    """Import what every node needs, before the first fork."""
    from node.learning.tasks import bare_task
    from node.types.settings import TaskSettings

    for name in PRELOADED:
        importlib.import_module(name)
    # torch itself imports half a second's worth (sympy) when the first model is made
    bare_task(TaskSettings(name="digits"), seed=0)


def main(argv: Sequence[str]) -> int:
    """Run the node to its end; the exit code is that of `grapevine start`."""
    parser = argparse.ArgumentParser(prog="python -m scenarios.child", description=__doc__)
    parser.add_argument("node", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--plan", type=Path)
    options = parser.parse_args(list(argv))
    try:
        _run(options.node, options.seed, options.plan)
    except GrapevineError as error:
        print(f"grapevine: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


def _run(node: Path, seed: int | None, plan: Path | None) -> None:
    """As node.runtime.run_node, with the scenario between the node and the world."""
    import torch

    from node.runtime import NodeRuntime
    from node.runtime_links import node_links
    from node.runtime_parts import assemble
    from node.status.progress import JsonLines, LogFile
    from node.strict import load_toml
    from node.types.settings import NodeSettings
    from scenarios.weather import Weather, read_plan
    from scenarios.witness import Traffic, bear_witness

    settings = load_toml(node, NodeSettings)
    torch.set_num_threads(settings.threads)
    parts = assemble(settings, base=node.parent, seed=seed)
    log = LogFile(parts.directory.path / "log.jsonl")
    try:
        inner = node_links(parts)
        traffic = Traffic(inner, parts.consortium.roster.name, node.parent)
        bear_witness(parts, node.parent)
        # what this process says comes first: its log may be on a disk that is full
        sinks = (_stamped(JsonLines(sys.stdout)), traffic, log)
        if plan is None:
            runtime = NodeRuntime(parts, inner, sinks)
        else:
            runtime = _exposed(parts, inner, sinks, Weather(read_plan(plan)))
        try:
            asyncio.run(runtime.run(handle_signals=True))
        finally:
            traffic.write()
    finally:
        log.close()
        parts.close()


def _exposed(parts: Parts, inner: Links, sinks: tuple[Sink, ...], weather: Weather) -> NodeRuntime:
    """The node with all that the scenario does to it: links, pace, clock, disk; or what it does."""
    from node.runtime import NodeRuntime
    from node.runtime_parts import wall_ms
    from scenarios.attacks.malicious import MaliciousLinks
    from scenarios.disks import FullDisk
    from scenarios.faulty import FaultyLinks

    plan = weather.plan
    if plan.backups is not None:
        _keep_backups(parts, Path(plan.backups))
    disk = FullDisk(parts.directory)
    network = FaultyLinks(inner, weather, parts.consortium.roster.name)
    links = MaliciousLinks(network, parts, weather)
    runtime = NodeRuntime(
        parts,
        links,
        sinks,
        pad=weather.training_s,
        wall=lambda: max(0, wall_ms() + round(plan.skew_s * 1000)),
    )

    def changed() -> None:
        try:
            disk.set(weather.disk_full)
            links.look()
        except GrapevineError as error:  # what cannot be injected ends the run, it is not skipped
            runtime.fail(error)

    weather.listen(changed)
    return runtime


def _keep_backups(parts: Parts, backups: Path) -> None:
    """Keep the disk as it is after every checkpoint, on the thread that writes both it and the
    journal: no commit comes between.
    """
    from node.storage import checkpoints
    from scenarios.disks import keep_backup

    save = checkpoints.save

    def save_and_keep(*arguments: Any) -> Path:
        saved = save(*arguments)
        keep_backup(parts.directory, backups)
        return saved

    checkpoints.save = save_and_keep  # type: ignore[assignment]


def _stamped(sink: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Adds when an event was told, by the clock that all processes of a machine share."""
    return lambda event: sink({**event, "clock": time.monotonic()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
