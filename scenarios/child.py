"""A node process of the engines: `grapevine start`, plus what the scenario does to it.

    python -m scenarios.child NODE.toml [--seed N] [--plan FILE]

Events go to stdout as JSON lines. --seed fixes the node's own randomness; --plan names the file
with its links' shape, its pace, and where changes will be told (see weather).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crypto.identity import NodeId
from node.errors import GrapevineError

if TYPE_CHECKING:
    from node.runtime_links import TransportLinks

# Vectors of every round are written down for the consensus distance: up to here they cost less
# than the checkpoint that is written anyway.
VECTOR_BYTES_MAX: Final = 1 << 20
VECTORS: Final = "vectors.f32"
TRAFFIC: Final = "traffic.jsonl"  # bytes by neighbour after each round, and at the end


def preload() -> None:
    """Import what every node needs, before the first fork."""
    from node.learning.tasks import bare_task
    from node.types.settings import TaskSettings

    for name in ("node.runtime", "scenarios.faulty"):
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
    """As node.runtime.run_node, with the scenario between node and links."""
    import torch

    from node.runtime import NodeRuntime
    from node.runtime_links import Links, tcp_links
    from node.runtime_parts import assemble
    from node.status.progress import JsonLines, LogFile
    from node.strict import load_toml
    from node.types.settings import NodeSettings
    from scenarios.faulty import FaultyLinks
    from scenarios.weather import Weather, read_plan

    settings = load_toml(node, NodeSettings)
    torch.set_num_threads(settings.threads)
    parts = assemble(settings, base=node.parent, seed=seed)
    log = LogFile(parts.directory.path / "log.jsonl")
    try:
        inner = tcp_links(parts)
        links: Links = inner
        pad = None
        if plan is not None:
            weather = Weather(read_plan(plan))
            links = FaultyLinks(links, weather, parts.consortium.roster.name)
            pad = weather.training_s
        _write_vectors(parts.learner, node.parent / VECTORS)
        traffic = _Traffic(inner, parts.consortium.roster.name, node.parent / TRAFFIC)
        runtime = NodeRuntime(parts, links, (log, JsonLines(sys.stdout), traffic), pad=pad)
        try:
            asyncio.run(runtime.run(handle_signals=True))
        finally:
            traffic.write()
    finally:
        log.close()
        parts.close()


class _Traffic:
    """Appends what went over each link since the process began: one object a round, and a last."""

    def __init__(self, links: TransportLinks, name: Callable[[NodeId], str], path: Path) -> None:
        self._links, self._name, self._path = links, name, path

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "round":
            self.write()

    def write(self) -> None:
        found = {self._name(peer): list(both) for peer, both in self._links.bytes_by_peer().items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"pid": os.getpid(), "links": found}) + "\n")


def _write_vectors(learner: Any, path: Path) -> None:
    """Append the shared vector after every mixed round: round, length as u32, then floats."""
    if learner.payload_bytes > VECTOR_BYTES_MAX:
        return
    mix = learner.mix

    def mix_and_write(effect: Any) -> Any:
        mixed = mix(effect)
        vector = learner.x.detach().cpu().numpy().astype("<f4").tobytes()
        with path.open("ab") as file:
            file.write(struct.pack("<II", effect.round, len(vector) // 4) + vector)
        return mixed

    learner.mix = mix_and_write


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
