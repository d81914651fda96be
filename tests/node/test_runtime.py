"""The shell in one process: real cores, learners, disks and threads over a pipe for a network."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.errors import ConfigError, GrapevineError, StorageError
from node.runtime import LINK_FULL_BYTES, WANTED_MAX, NodeRuntime
from node.runtime_parts import assemble
from node.status.ask import ask
from node.storage import checkpoints
from node.storage.directory import StateDirectory
from node.storage.journal import Journal
from node.strict import load_toml
from node.types.events import Reserved, SendChunk
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
        self.refused: dict[str, int] = {}
        self.broken_off: dict[str, int] = {}

    async def start(self, owner: Any) -> None:
        self.owner = owner
        self.pipe.ends[self.me] = self

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_soon(function, *arguments)

    def via(self, peer: Any) -> str:
        return "memory"

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


def on_round(number: int, then: Callable[[], object]) -> Callable[[dict[str, Any]], None]:
    """A sink that acts when a round is told of."""
    return lambda e: then() if e["event"] == "round" and e["round"] == number else None


async def to_the_end(site: Founded, *sinks: Any) -> dict[str, Any]:
    pipe = Pipe()
    results = await together(*(node(site, name, pipe, *sinks) for name in site.seats))
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return {result["name"]: result for result in results}


def test_a_model_too_large_for_an_offer_goes_in_chunks(tmp_path: Path) -> None:
    site = found(
        tmp_path,
        ("a", "b"),
        name="large",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="quadratic", dimension=300_000),
        learning=LearningSettings(rounds=1, local_steps=1, final_mixing=1, linger_s=5.0),
    )
    events: list[dict[str, Any]] = []
    results = asyncio.run(to_the_end(site, events.append))
    assert all(r["rounds"] == 2 and not r["rejections"] for r in results.values())
    assert all(e["mixed"] for e in events if e["event"] == "round")


def test_who_asks_for_more_than_its_credit_while_it_does_not_read_loses_the_link(
    tmp_path: Path,
) -> None:
    """Wants are queued by the shell, and no longer than twice the credit of a link."""
    site = found(
        tmp_path,
        ("a", "b"),
        name="large",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="quadratic", dimension=5_000_000),  # 39 chunks
        learning=LearningSettings(rounds=1, local_steps=1, final_mixing=1),
    )
    hangups: list[str] = []

    class Full(End):
        def queued_bytes(self, peer: Any) -> int:
            return 2 * LINK_FULL_BYTES

        def hangup(self, peer: Any, why: str) -> None:
            hangups.append(why)
            super().hangup(peer, why)

    async def go() -> None:
        seat, pipe = site.seats["a"], Pipe()
        parts = assemble(load_toml(seat.node_toml, NodeSettings), base=seat.folder, seed=1)
        (peer,) = parts.me.neighbours
        end = Full(pipe, parts.me.id)
        end.owner = Nobody()
        one = NodeRuntime(parts, end, ())
        end.up.add(peer)
        pipe.ends[peer] = End(pipe, peer)
        pipe.ends[peer].owner = Nobody()
        try:
            for index in range(WANTED_MAX):
                one._send_chunk(SendChunk(peer, bytes(32), index))
            assert hangups == []
            one._send_chunk(SendChunk(peer, bytes(32), WANTED_MAX))
            assert hangups == ["it asks for more than its credit"]
            assert len(one._wanted[peer]) == WANTED_MAX
        finally:
            one.parts.close()

    asyncio.run(go())


class Nobody:
    """A neighbour's shell that does nothing."""

    def on_down(self, peer: Any, why: str) -> None: ...


def test_stopped_and_started_again_it_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", rounds=6, wait="all")
    whole = asyncio.run(to_the_end(plain))
    site = make(tmp_path / "cut", rounds=6, wait="all")

    async def first() -> list[Any]:
        pipe = Pipe()
        nodes: dict[str, NodeRuntime] = {}

        def stop_in_round_3(event: dict[str, Any]) -> None:
            if event["event"] == "phase" and (event["phase"], event["round"]) == ("training", 3):
                nodes[event["node"]].stop(after_round=True)

        nodes.update({name: node(site, name, pipe, stop_in_round_3) for name in site.seats})
        return await together(*nodes.values())

    for result in asyncio.run(first()):
        assert (result["ended"], result["rounds"]) == ("stopped", 3)
    again = asyncio.run(to_the_end(site))
    assert {name: r["resumed"] for name, r in again.items()} == {"a": 1, "b": 1}
    assert {name: r["digest"] for name, r in again.items()} == {
        name: r["digest"] for name, r in whole.items()
    }


def test_one_leaves_and_the_other_goes_on_and_says_so(tmp_path: Path) -> None:
    site = make(tmp_path, rounds=6, deadline_min_s=0.05, deadline_max_s=0.2, linger_s=0.2)

    async def go() -> list[Any]:
        pipe = Pipe()
        nodes: list[NodeRuntime] = []
        nodes.append(node(site, "a", pipe))
        nodes.append(node(site, "b", pipe, on_round(2, lambda: nodes[1].stop())))
        return await together(*nodes)

    a, b = asyncio.run(go())
    assert (a["ended"], a["rounds"], b["ended"]) == ("finished", 8, "stopped")
    (missed,) = a["missed"]
    assert missed["peer"] == "b"
    assert missed["last"] == 8
    assert "asked to stop" in missed["why"]


def test_the_control_socket_answers_and_stops(tmp_path: Path) -> None:
    site, pipe = make(tmp_path, rounds=1000), Pipe()

    async def go() -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        nodes = [node(site, name, pipe) for name in site.seats]
        below: Any = nodes[0]._links
        below.broken_off, below.refused = {"bounds": 1}, {"stranger": 2}
        begun = asyncio.Event()
        nodes[0]._sinks = (on_round(2, begun.set),)
        running = asyncio.ensure_future(together(*nodes))
        await begun.wait()
        state = site.seats["a"].state
        status = await asyncio.to_thread(ask, state, {"do": "status"})
        with pytest.raises(ConfigError, match="unknown request"):
            await asyncio.to_thread(ask, state, {"do": "dance"})
        stopped = await asyncio.to_thread(ask, state, {"do": "stop", "after_round": False})
        nodes[1].stop()
        return status, stopped, await running

    status, stopped, results = asyncio.run(go())
    assert (status["name"], status["rounds"], status["linked"]) == ("a", 1002, ["b"])
    assert status["round"] >= 2
    assert stopped["name"] == "a"
    assert [r["ended"] for r in results] == ["stopped", "stopped"]
    # what was refused below the frames is told as well
    assert status["refused_connections"] == {"stranger": 2}
    assert status["rejections"] == {"bounds": 1} == results[0]["rejections"]


def test_a_disk_that_fails_stops_the_node(tmp_path: Path, monkeypatch: Any) -> None:
    site = make(tmp_path, rounds=50, deadline_max_s=0.5, linger_s=0.1)
    real = checkpoints.save

    def full(folder: Path, number: int, *rest: Any) -> Path:
        if "/a/" in str(folder) and number == 3:
            raise StorageError("no space left on device")
        return real(folder, number, *rest)

    monkeypatch.setattr(checkpoints, "save", full)

    async def go() -> list[Any]:
        pipe = Pipe()
        nodes = [node(site, name, pipe) for name in site.seats]
        nodes[0]._sinks = (lambda e: e["event"] == "failed" and nodes[1].stop(),)
        return await together(*nodes)

    a, b = asyncio.run(go())
    assert isinstance(a, StorageError)
    assert "no space left" in str(a)
    assert b["ended"] == "stopped"
    # what was durable before is what it would resume from
    loaded = checkpoints.load_latest(site.seats["a"].state / "checkpoints")
    assert loaded is not None
    assert loaded.round == 2


def test_nothing_is_offered_before_it_is_durable_and_rounds_wait_for_the_disk(
    tmp_path: Path, monkeypatch: Any
) -> None:
    site = make(tmp_path, rounds=60, deadline_min_s=0.01, deadline_max_s=0.02)
    monkeypatch.setattr("node.runtime.BEHIND_MAX", 4)
    free = threading.Event()
    real = Journal.write

    def write(journal: Journal, records: Any) -> None:
        if any(isinstance(record, Reserved) for _, record in records):
            free.wait()  # the disk stands still from the first version on
        real(journal, records)

    monkeypatch.setattr(Journal, "write", write)

    events: list[dict[str, Any]] = []

    async def go() -> tuple[int, int, list[Any]]:
        pipe = Pipe()
        nodes = [node(site, name, pipe, events.append) for name in site.seats]
        running = asyncio.ensure_future(together(*nodes))
        # one step adds a few records at most: published, a checkpoint, receipts
        while not all(n._parked for n in nodes) and all(  # noqa: ASYNC110
            n._submitted < 40 for n in nodes
        ):
            await asyncio.sleep(0)
        most = max(n._submitted for n in nodes)
        told = len(events)
        free.set()
        return most, told, await running

    most, told, results = asyncio.run(go())
    kinds = {event["event"] for event in events[:told]}
    assert "publishing" in kinds
    assert "received" not in kinds
    assert most < 40
    assert [r["ended"] for r in results] == ["finished", "finished"]


def test_a_model_that_becomes_infinite_stops_the_node_with_a_reason(tmp_path: Path) -> None:
    site = make(tmp_path, rounds=400, local_steps=50, learning_rate=1e6)
    with pytest.raises(ConfigError, match="not finite"):
        asyncio.run(to_the_end(site))


def test_members_may_agree_on_an_earlier_model(tmp_path: Path) -> None:
    site = found(
        tmp_path,
        ("a", "b"),
        name="agreed",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="breast-cancer", validation=0.3),
        learning=LearningSettings(rounds=4, final_mixing=1, keep="agreed", linger_s=5.0),
    )
    events: list[dict[str, Any]] = []
    results = asyncio.run(to_the_end(site, events.append))
    chosen = {e["node"]: e for e in events if e["event"] == "chosen"}
    assert {e["voters"] for e in chosen.values()} == {2}
    assert len({e["round"] for e in chosen.values()}) == 1
    assert all(e["held"] for e in chosen.values())
    assert all(r["accuracy"] > 0.5 and r["intervals"]["auroc"] for r in results.values())


def refusal(site: Founded, name: str = "a", **changes: Any) -> str:
    seat = site.seats[name]
    settings = msgspec.structs.replace(load_toml(seat.node_toml, NodeSettings), **changes)
    with pytest.raises(GrapevineError) as refused:
        assemble(settings, base=seat.folder)
    # nothing stays open: the directory can be taken again
    with StateDirectory(seat.state):
        pass
    return str(refused.value)


def test_what_does_not_fit_together_is_refused_before_a_socket_is_opened(tmp_path: Path) -> None:
    site = make(tmp_path / "one")
    other = make(tmp_path / "two")
    sealed = str(other.consortium.path)
    assert "is not a member" in refusal(site, consortium=sealed)
    assert "no such file" in refusal(site, consortium="absent")
    assert "no such file" in refusal(site, data={"part": "absent.safetensors"})
    assert "unknown key 'prat'; did you mean 'part'?" in refusal(site, data={"prat": "x"})
    part = str(site.seats["b"].part)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(part).read_bytes()[:200])
    assert "cut" in refusal(site, data={"part": str(cut)})


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    site = make(tmp_path)
    record = site.seats["a"].state / "run.json"
    record.write_text('{"training":"00","starts":1}')
    assert "another training" in refusal(site)
    record.write_text("{")
    assert "damaged" in refusal(site)


def test_initial_parameters_that_differ_are_refused_with_both_digests(
    tmp_path: Path, monkeypatch: Any
) -> None:
    site = make(tmp_path)
    monkeypatch.setattr("node.learning.learner.initial_digest", lambda _: b"\x07" * 32)
    why = refusal(site)
    assert "initial parameters differ" in why
    assert "0707070707070707" in why


def test_two_nodes_on_one_state_directory(tmp_path: Path) -> None:
    site = make(tmp_path)
    seat = site.seats["a"]
    settings = load_toml(seat.node_toml, NodeSettings)
    parts = assemble(settings, base=seat.folder)
    try:
        with pytest.raises(StorageError, match="in use by process"):
            assemble(settings, base=seat.folder)
    finally:
        parts.close()


def test_the_private_seed_is_kept_and_damage_is_seen(tmp_path: Path) -> None:
    site = make(tmp_path)
    seat = site.seats["a"]
    settings = load_toml(seat.node_toml, NodeSettings)
    seeds = []
    for _ in range(2):
        parts = assemble(settings, base=seat.folder)
        seeds.append(parts.learner.seed)
        parts.close()
    assert seeds[0] == seeds[1]
    file = seat.state / "seed.entropy"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = load_toml(site.seats["b"].node_toml, NodeSettings)
    parts = assemble(other, base=site.seats["b"].folder)
    assert parts.learner.seed != seeds[0]
    parts.close()
    file.write_bytes(b"short")
    assert "damaged" in refusal(site)


def test_a_member_without_a_part_file_takes_its_share_of_the_split(tmp_path: Path) -> None:
    site = make(tmp_path)
    seat = site.seats["b"]
    settings = msgspec.structs.replace(load_toml(seat.node_toml, NodeSettings), data={})
    parts = assemble(settings, base=seat.folder)
    try:
        assert parts.learner.samples == parts.me.samples
        ours = parts.learner.task.train
        assert ours is not None
        assert ours[0][0].equal(site.parts["b"].train[0][0])
        assert not parts.warnings
    finally:
        parts.close()
