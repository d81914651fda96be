"""The shell in one process: real cores, learners, disks and threads over a pipe for a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.errors import GrapevineError
from node.runtime import NodeRuntime
from node.runtime_parts import assemble
from node.strict import load_toml
from node.types.settings import LearningSettings, NodeSettings, TaskSettings
from scenarios.founding import Founded, found
from topology.settings import TopologySettings


class Pipe:
    """A network of this process: links come up on dial, frames arrive in order, whole."""

    def __init__(self) -> None:
        self.ends: dict[Any, End] = {}


class End:
    def __init__(self, pipe: Pipe, me: Any) -> None:
        self.pipe, self.me = pipe, me
        self.up: set[Any] = set()
        self.sent_bytes = self.received_bytes = 0

    async def start(self, owner: Any) -> None:
        self.owner = owner
        self.pipe.ends[self.me] = self

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_soon(function, *arguments)

    def dial(self, peer: Any) -> None:
        other = self.pipe.ends.get(peer)
        if other is None:
            self._soon(self.owner.on_dial_failed, peer, "nobody listens")
        elif peer not in self.up:
            self.up.add(peer)
            other.up.add(self.me)
            self._soon(self.owner.on_up, peer)
            self._soon(other.owner.on_up, self.me)

    def hangup(self, peer: Any, why: str) -> None:
        if peer in self.up:
            other = self.pipe.ends[peer]
            self.up.discard(peer)
            other.up.discard(self.me)
            self._soon(self.owner.on_down, peer, why)
            self._soon(other.owner.on_down, self.me, "closed by the other end")

    def send(self, peer: Any, *parts: Any) -> None:
        if peer in self.up:
            frame = b"".join(parts)
            self.sent_bytes += len(frame)
            self._soon(self._arrive, peer, frame)

    def _arrive(self, peer: Any, frame: bytes) -> None:
        other = self.pipe.ends.get(peer)
        if other is not None and self.me in other.up:
            other.received_bytes += len(frame)
            other.owner.on_frame(self.me, memoryview(frame))

    def queued_bytes(self, peer: Any) -> int:
        return 0

    async def close(self) -> None:
        for peer in list(self.up):
            self.hangup(peer, "closing")
        self.pipe.ends.pop(self.me, None)


def make(tmp_path: Path, names: tuple[str, ...] = ("a", "b"), **learning: Any) -> Founded:
    settings = {"rounds": 3, "local_steps": 2, "final_mixing": 2, "linger_s": 5.0, **learning}
    return found(
        tmp_path,
        names,
        name="tiny",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="quadratic", dimension=8),
        learning=LearningSettings(**settings),
    )


def node(site: Founded, name: str, pipe: Pipe, *sinks: Any, **more: Any) -> NodeRuntime:
    seat = site.seats[name]
    settings = load_toml(seat.node_toml, NodeSettings)
    parts = assemble(settings, base=seat.folder, seed=1)
    return NodeRuntime(parts, End(pipe, parts.me.id), tuple(sinks), **more)


async def together(*nodes: NodeRuntime) -> list[Any]:
    try:
        return await asyncio.gather(*(n.run() for n in nodes), return_exceptions=True)
    finally:
        for n in nodes:
            n.parts.close()


def test_two_nodes_train_to_the_end(tmp_path: Path) -> None:
    site, pipe = make(tmp_path), Pipe()
    events: list[dict[str, Any]] = []

    async def go() -> list[Any]:
        return await together(*(node(site, name, pipe, events.append) for name in site.seats))

    results = asyncio.run(go())
    for result in results:
        assert not isinstance(result, BaseException), result
        assert result["ended"] == "finished"
        assert result["rounds"] == 5
        seat = site.seats[result["name"]]
        assert json.loads((seat.state / "result.json").read_text())["digest"] == result["digest"]
        assert (seat.state / "model.safetensors").exists()
    rounds = [e for e in events if e["event"] == "round" and e["node"] == "a"]
    assert [e["round"] for e in rounds] == [1, 2, 3, 4, 5]
    assert all(e["mixed"] == ["b"] for e in rounds)
