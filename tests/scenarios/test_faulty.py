from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crypto.identity import NodeId
from node.protocol.frames import chunk_prefix, encode
from node.types.messages import Ping
from scenarios import faulty
from scenarios.faults import Clog, Heal, Link, Partition, Reset, Unclog, When
from scenarios.faulty import DIAL_TIMEOUT_S, LOOK_S, FaultyLinks
from scenarios.vocabulary import LinkFaultSettings, LinkShape
from scenarios.weather import CALM, Plan, Weather, change_of, write_change

B, C = NodeId(b"b" * 32), NodeId(b"c" * 32)
NOW = When(seconds=0.0)


class Jumping(selectors.DefaultSelector):
    """Instead of waiting, time jumps to the next timer: nothing here depends on the machine."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.now += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class Inner:
    """The wrapped transport: writes down what it is asked to do."""

    sent_bytes = 7
    received_bytes = 9
    refused: ClassVar = {"stranger": 2}
    broken_off: ClassVar = {"bounds": 1}

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.owner: Any = None
        self.full = 0

    async def start(self, owner: Any) -> None:
        self.owner = owner

    async def close(self) -> None:
        self.did.append(("close",))

    def dial(self, peer: NodeId) -> None:
        self.did.append(("dial", peer))

    def hangup(self, peer: NodeId, why: str) -> None:
        self.did.append(("hangup", peer, why))
        self.owner.on_down(peer, why)

    def send(self, peer: NodeId, *parts: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.did.append(("send", round(loop.time(), 6), peer, b"".join(parts)))

    def queued_bytes(self, peer: NodeId) -> int:
        return self.full


class Node:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *what: self.heard.append((name, *what))


class Bench:
    def __init__(
        self, changes: Path, shape: LinkShape, uplink: float | None = None, *, broker: bool = False
    ) -> None:
        self.changes = changes
        plan = Plan(
            me="a",
            seed=1,
            step_ms=0,
            shapes={"b": shape, "c": CALM},
            bandwidth_mbps=uplink,
            changes=str(changes),
            broker=broker,
        )
        self.inner, self.node = Inner(), Node()
        names = {B: "b", C: "c"}
        self.transport = FaultyLinks(self.inner, Weather(plan), lambda n: names[n])

    def tell(self, fault: Any, at: float) -> None:
        change = change_of(fault, at)
        assert change is not None
        write_change(self.changes, change)

    def of(self, what: str) -> list[tuple[Any, ...]]:
        return [did for did in self.inner.did if did[0] == what]


@pytest.fixture
def play() -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    loop = JumpingLoop()
    yield loop.run_until_complete
    loop.close()


CUT = Partition(at=NOW, sides=(("a", "c"), ("b",)))
CLOG = Clog(at=NOW, pairs=(("a", "b"),))
UNCLOG = Unclog(at=NOW, pairs=(("a", "b"),))


def test_a_calm_link_passes_frames_on_at_once(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.transport.send(B, b"one", memoryview(b"two"))
        assert bench.of("send") == [("send", 0.0, B, b"onetwo")]
        bench.transport.on_frame(B, memoryview(b"three"))
        await bench.transport.close()

    play(act())
    assert bench.node.heard == [("on_up", B), ("on_frame", B, memoryview(b"three"))]
    assert (bench.transport.sent_bytes, bench.transport.received_bytes) == (7, 9)
    assert (bench.transport.refused, bench.transport.broken_off) == ({"stranger": 2}, {"bounds": 1})


def test_frames_are_delayed_in_order_and_copied(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", LinkShape(latency_ms=100, jitter_ms=0, loss=0))

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        model = bytearray(b"old")
        bench.transport.send(B, b"1", memoryview(model))
        model[:] = b"new"
        bench.transport.send(B, b"2")
        assert bench.of("send") == []
        assert bench.transport.queued_bytes(B) == 5
        await asyncio.sleep(0.2)
        assert bench.of("send") == [("send", 0.1, B, b"1old"), ("send", 0.1, B, b"2")]
        assert bench.transport.queued_bytes(B) == 0
        assert ("on_drained", B) in bench.node.heard
        await bench.transport.close()

    play(act())


@pytest.mark.parametrize("broker", [True, False])
def test_over_a_broker_chunks_alone_are_lost(tmp_path: Path, play: Any, broker: bool) -> None:
    bench = Bench(
        tmp_path / "changes", LinkShape(latency_ms=10, jitter_ms=0, loss=0.5), broker=broker
    )
    chunk, other = chunk_prefix(bytes(32), 0), encode(Ping())

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        for _ in range(100):
            bench.transport.send(B, chunk, b"data")
            bench.transport.send(B, other)
        await asyncio.sleep(60)
        sent = [did[3] for did in bench.of("send")]
        assert sent.count(other) == 100
        assert (30 < sent.count(chunk + b"data") < 70) if broker else len(sent) == 200
        await bench.transport.close()

    play(act())


def test_bandwidth_is_shared_by_all_links(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM, uplink=8.0)  # 1 MB/s

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.transport.on_up(C)
        bench.transport.send(B, bytes(500_000))
        bench.transport.send(C, bytes(500_000))
        await asyncio.sleep(2)
        assert [(did[1], did[2]) for did in bench.of("send")] == [(0.5, B), (1.0, C)]
        await bench.transport.close()

    play(act())


def test_a_partition_drops_the_links_across_it_and_refuses_new_ones(
    tmp_path: Path, play: Any
) -> None:
    bench = Bench(tmp_path / "changes", LinkShape(latency_ms=100, jitter_ms=0, loss=0))

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        transport.on_up(B)
        transport.on_up(C)
        bench.tell(CUT, 1.0)
        await asyncio.sleep(0.95)
        transport.send(B, b"on the wire when it is cut")
        await asyncio.sleep(0.05 + LOOK_S)
        assert bench.of("hangup") == [("hangup", B, "partition")]
        assert bench.of("send") == []
        assert node.heard[-1] == ("on_down", B, "partition")
        # out: the dial takes its time to fail and never reaches the network
        transport.dial(B)
        transport.dial(B)
        assert not any(heard[0] == "on_dial_failed" for heard in node.heard)
        await asyncio.sleep(DIAL_TIMEOUT_S + 0.01)
        failed = [heard for heard in node.heard if heard[0] == "on_dial_failed"]
        assert failed == [("on_dial_failed", B, "partition")]
        assert bench.of("dial") == []
        # in: a link that the other end made is dropped, and the node never hears of it as up
        before = len(node.heard)
        transport.on_up(B)
        transport.on_frame(B, memoryview(b"from beyond"))
        transport.send(B, b"to beyond")
        assert [heard[0] for heard in node.heard[before:]] == ["on_dial_failed"]
        assert bench.of("send") == []
        # the own side is as it was
        transport.send(C, b"here")
        assert bench.of("send")[-1][2:] == (C, b"here")
        bench.tell(Heal(at=NOW), 4.0)
        await asyncio.sleep(4)
        transport.dial(B)
        await asyncio.sleep(0.39)
        assert bench.of("dial") == []  # TCP and TLS take two round trips
        await asyncio.sleep(0.02)
        assert bench.of("dial") == [("dial", B)]
        transport.on_up(B)
        assert node.heard[-1] == ("on_up", B)
        await transport.close()

    play(act())


def test_a_link_fault_takes_effect_on_the_next_frame(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM)
    by = LinkFaultSettings(latency_ms=500)

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.tell(Link(at=NOW, pairs=(("a", "b"),), change=by), 0.0)
        await asyncio.sleep(1)
        bench.transport.send(B, b"late")
        await asyncio.sleep(1)
        assert bench.of("send")[0][1] == pytest.approx(1.5)
        await bench.transport.close()

    play(act())


def test_a_goodbye_still_leaves_before_the_hangup(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", LinkShape(latency_ms=100, jitter_ms=0, loss=0))

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.transport.on_up(C)
        bench.transport.send(B, b"bye")
        bench.transport.hangup(B, "leaving")
        bench.transport.send(C, b"bye too")
        await bench.transport.close()
        await asyncio.sleep(1)  # no timer of a closed transport goes off

    play(act())
    assert [did[0] for did in bench.inner.did] == ["send", "hangup", "send", "close"]


def test_a_clog_holds_what_comes_and_lets_it_go_in_order(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", LinkShape(latency_ms=100, jitter_ms=0, loss=0))

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        transport.on_up(B)
        transport.on_up(C)
        bench.tell(CLOG, 1.0)
        await asyncio.sleep(1.05 + LOOK_S)
        transport.on_frame(B, memoryview(b"on the wire"))  # it left before the clog
        await asyncio.sleep(1)
        data = bytearray(b"1")
        transport.on_frame(B, memoryview(data))
        data[:] = b"x"  # the view was good for the call only
        transport.on_frame(B, memoryview(b"2"))
        transport.on_frame(C, memoryview(b"elsewhere"))
        assert [heard[2] for heard in node.heard if heard[0] == "on_frame"] == [
            memoryview(b"on the wire"),
            memoryview(b"elsewhere"),
        ]
        assert bench.of("hangup") == []  # the link stays up
        bench.tell(UNCLOG, 4.0)
        await asyncio.sleep(2.1 + LOOK_S)
        transport.on_frame(B, memoryview(b"3"))
        assert [bytes(heard[2]) for heard in node.heard if heard[0] == "on_frame"][2:] == [
            b"1",
            b"2",
            b"3",
        ]
        await transport.close()

    play(act())


def test_news_of_a_break_waits_behind_what_is_held(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        transport.on_up(B)
        bench.tell(CLOG, 0.0)
        await asyncio.sleep(2 * LOOK_S)
        transport.on_frame(B, memoryview(b"last words"))
        transport.on_down(B, "reset")  # the other process was killed
        transport.send(B, b"into the dark")
        transport.on_up(B)  # the other end does not know yet that no link can be made
        transport.on_down(B, "partition")
        assert [heard[0] for heard in node.heard] == ["on_up"]
        assert bench.of("send") == []
        transport.dial(C)  # not clogged
        transport.dial(B)
        await asyncio.sleep(DIAL_TIMEOUT_S + 0.01)
        assert bench.of("dial") == [("dial", C)]
        bench.tell(UNCLOG, 2.0)
        await asyncio.sleep(2)
        assert node.heard[1:] == [
            ("on_frame", B, memoryview(b"last words")),
            ("on_down", B, "reset"),
        ]
        await transport.close()

    play(act())


def test_a_node_that_gives_up_a_broken_link_hears_at_once_that_it_is_down(
    tmp_path: Path, play: Any
) -> None:
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        transport.on_up(B)
        bench.tell(CLOG, 0.0)
        await asyncio.sleep(2 * LOOK_S)
        transport.on_down(B, "reset")
        transport.hangup(B, "silent for 15 s")
        assert node.heard == [("on_up", B)]  # never from within its own call
        await asyncio.sleep(0)
        assert node.heard[1:] == [("on_down", B, "silent for 15 s")]
        bench.tell(UNCLOG, 1.0)
        await asyncio.sleep(2)
        assert len(node.heard) == 2
        await transport.close()

    play(act())


def test_a_link_whose_node_hung_up_holds_nothing_back(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.tell(CLOG, 0.0)
        await asyncio.sleep(2 * LOOK_S)
        bench.transport.on_frame(B, memoryview(b"held"))
        bench.transport.hangup(B, "silent")
        assert bench.node.heard == [("on_up", B), ("on_down", B, "silent")]
        bench.tell(UNCLOG, 1.0)
        await asyncio.sleep(2)
        assert len(bench.node.heard) == 2
        await bench.transport.close()

    play(act())


def test_a_clog_does_not_hold_without_bound(
    tmp_path: Path, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulty, "HELD_BYTES_MAX", 1000)
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        bench.tell(CLOG, 0.0)
        await asyncio.sleep(2 * LOOK_S)
        for _ in range(3):
            bench.transport.on_frame(B, memoryview(bytes(400)))
        assert [what[0] for what in bench.node.heard] == ["on_up", "on_down"]
        await bench.transport.close()

    play(act())


def test_a_reset_breaks_a_link_once(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM)

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        transport.on_up(B)
        transport.on_up(C)
        bench.tell(Reset(at=NOW, pairs=(("b", "a"),)), 1.0)
        await asyncio.sleep(1 + 2 * LOOK_S)
        assert bench.of("hangup") == [("hangup", B, "reset")]
        transport.dial(B)
        assert bench.of("dial") == [("dial", B)]
        transport.on_up(B)
        bench.tell(Link(at=NOW, pairs=(("a", "c"),), change=LinkFaultSettings(loss=0.1)), 2.0)
        await asyncio.sleep(2)
        assert len(bench.of("hangup")) == 1
        await transport.close()

    play(act())


def test_a_newer_link_takes_the_place_of_one_that_is_still_believed_in(
    tmp_path: Path, play: Any
) -> None:
    bench = Bench(tmp_path / "changes", CALM, uplink=0.008)  # 1 kB/s

    async def act() -> None:
        transport, node = bench.transport, bench.node
        await transport.start(node)
        await asyncio.sleep(2)
        transport.on_up(B)
        transport.on_frame(B, memoryview(bytes(1000)))
        transport.on_frame(B, memoryview(bytes(1000)))  # queues for the downlink
        transport.on_down(B, "reset")  # so this does, too
        transport.on_up(B)
        assert [what[0] for what in node.heard] == ["on_up", "on_frame", "on_down", "on_up"]
        await asyncio.sleep(5)
        assert len(node.heard) == 4  # what belonged to the old link is lost with it
        await transport.close()

    play(act())


def test_the_downlink_is_shared_by_all_links(tmp_path: Path, play: Any) -> None:
    bench = Bench(tmp_path / "changes", CALM, uplink=8.0)  # 1 MB/s

    async def act() -> None:
        transport = bench.transport
        await transport.start(bench.node)
        await asyncio.sleep(1)
        transport.on_up(B)
        transport.on_up(C)
        for peer in (B, C, B):
            transport.on_frame(peer, memoryview(bytes(500_000)))
        transport.on_down(C, "closed")
        for count in (1, 2, 4):
            came = [what[0] for what in bench.node.heard[2:]]
            assert came == ["on_frame", "on_frame", "on_frame", "on_down"][:count]
            await asyncio.sleep(0.501)
        await transport.close()

    play(act())


def test_frames_are_doubled_damaged_and_overtaken(tmp_path: Path, play: Any) -> None:
    bench = Bench(
        tmp_path / "changes",
        LinkShape(latency_ms=10, jitter_ms=0, loss=0, duplicate=0.3, reorder=0.3, corrupt=0.3),
    )
    frames = [bytes([number]) * 8 for number in range(100)]

    async def act() -> None:
        await bench.transport.start(bench.node)
        bench.transport.on_up(B)
        for frame in frames:
            bench.transport.send(B, frame)
            await asyncio.sleep(0.002)
        await asyncio.sleep(1)
        await bench.transport.close()

    play(act())
    came = [did[3] for did in bench.of("send")]
    assert len(came) > 110
    whole = [frame for frame in came if frame in frames]
    assert len(whole) < len(came) - 10
    assert whole != sorted(whole)
