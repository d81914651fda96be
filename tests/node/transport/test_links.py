"""What every transport must do alike."""

from __future__ import annotations

import asyncio

import brokers
import pytest
from links_bench import IDS, Bench, play

from node.errors import LocalProtocolError
from node.transport import mqtt
from node.transport.memory import MemoryLink
from node.transport.tcp import Limits
from node.types.messages import CHUNK_BYTES, FRAME_BYTES_MAX

KiB = 1024


@pytest.fixture(params=["memory", "tcp", "amqtt", "mosquitto"])
def kind(request):
    if request.param == "mosquitto" and brokers.MOSQUITTO is None:
        pytest.skip(brokers.WITHOUT_MOSQUITTO)
    return request.param


def test_a_link_comes_up_once_at_both_ends(kind):
    async def scene(bench: Bench):
        a, b, at_a, at_b = await bench.pair()
        assert (at_a.peer, at_a.initiator) == (b.me, True)
        assert (at_b.peer, at_b.initiator) == (a.me, False)
        a.dial(b.me)  # stands already: nothing happens
        at_a.send(b"x")
        await bench.heard[1].first("frame")
        assert a.links == {b.me: at_a} and b.links == {a.me: at_b}
        assert len(bench.heard[0].of("link")) == len(bench.heard[1].of("link")) == 1

    play(kind, scene)


def test_frames_of_all_sizes_arrive_whole_and_in_order(kind):
    sizes = [1, 2, 8191, 8192, 8193, 65536, CHUNK_BYTES, FRAME_BYTES_MAX, 3]
    frames = [bytes([n]) * size for n, size in enumerate(sizes)]

    async def scene(bench: Bench):
        *_, at_a, at_b = await bench.pair()
        for frame in frames:
            at_a.send(frame)
            at_b.send(memoryview(frame))
            await at_a.drained()
            await at_b.drained()
        for heard in (bench.heard[0], bench.heard[1]):
            await heard.first("frame", len(frames))
            assert heard.of("frame") == frames

    play(kind, scene)


def test_a_chunk_is_its_prefix_and_data_and_free_on_return(kind):
    async def scene(bench: Bench):
        *_, at_a, _ = await bench.pair()
        data = bytearray(b"y" * CHUNK_BYTES)
        for _ in range(8):
            at_a.send_chunk(b"prefix", memoryview(data))
        data[:] = bytes(CHUNK_BYTES)  # the model changes right after
        await bench.heard[1].first("frame", 8)
        assert set(bench.heard[1].of("frame")) == {b"prefix" + b"y" * CHUNK_BYTES}

    play(kind, scene)


@pytest.mark.parametrize("frame", [b"", bytes(FRAME_BYTES_MAX + 1)])
def test_a_frame_that_no_peer_would_take_is_our_bug(kind, frame):
    async def scene(bench: Bench):
        *_, at_a, _ = await bench.pair()
        with pytest.raises(LocalProtocolError):
            at_a.send(frame)

    play(kind, scene)


def test_close_delivers_what_was_sent_and_tells_both_ends_once(kind):
    async def scene(bench: Bench):
        a, b, at_a, _ = await bench.pair()
        at_a.send_chunk(b"", bytes(CHUNK_BYTES))
        at_a.send(b"bye")
        at_a.close("leaving")
        assert bench.heard[0].of("down") == []  # never from within the call
        at_a.close("again")
        at_a.send(b"dropped")
        assert await bench.heard[0].first("down") == "leaving"
        assert await bench.heard[1].first("down") == "closed by the other end"
        assert bench.heard[1].of("frame")[1:] == [b"bye"]
        assert not a.links and not b.links
        await at_a.drained()
        a.dial(b.me)  # and it can be had again
        await bench.heard[1].first("link", 2)
        assert len(bench.heard[0].of("down")) == len(bench.heard[1].of("down")) == 1

    play(kind, scene)


def test_a_handler_may_close_in_the_middle_of_frames(kind):
    async def scene(bench: Bench):
        _, _, at_a, _ = await bench.pair()
        bench.heard[1].on = lambda link, frame: link.close("enough")
        for _ in range(5):
            at_a.send(b"x" * 100)
        await bench.heard[0].first("down")
        await bench.heard[1].first("down")
        assert bench.heard[1].of("frame") == [b"x" * 100]

    play(kind, scene)


def test_closing_a_transport_ends_its_links(kind):
    async def scene(bench: Bench):
        a, _, _, _ = await bench.pair()
        await a.close()
        assert bench.heard[0].of("down") == ["this node stops"]
        await bench.heard[1].first("down")

    play(kind, scene)


@pytest.mark.parametrize("turn", range(4))
def test_two_that_dial_at_once_keep_the_link_of_the_lower_id(kind, turn):
    async def scene(bench: Bench):
        low, high = await bench.member(0), await bench.member(1)
        for transport in (low, high) if turn % 2 else (high, low):
            transport.dial(high.me if transport is low else low.me)

        def settled():
            mine, theirs = low.links.get(high.me), high.links.get(low.me)
            return mine and theirs and mine.initiator and not theirs.initiator

        await bench.heard[0].until(lambda: high.me in low.links)
        await bench.heard[1].until(settled)
        await bench.heard[0].until(settled)
        low.links[high.me].send(b"down the same pipe")
        high.links[low.me].send(b"and up")
        await bench.heard[0].until(lambda: b"and up" in bench.heard[0].of("frame"))
        await bench.heard[1].until(lambda: b"down the same pipe" in bench.heard[1].of("frame"))
        for heard in (bench.heard[0], bench.heard[1]):
            ups, downs = len(heard.of("link")), len(heard.of("down"))
            assert ups == downs + 1 <= 2, "one replacement at most, never a flapping"
            assert heard.of("failed") == [] or ups == 1

    play(kind, scene)


def test_a_peer_that_lost_its_end_gets_a_new_link_once_a_race_is_out_of_question(kind):
    async def scene(bench: Bench):
        a, b, at_a, at_b = await bench.pair()
        at_b.end("lost")  # the pipe stands, but this end has forgotten it
        at_a.up_at -= 60
        await bench.heard[1].first("down")
        b.dial(a.me)
        fresh = await bench.heard[0].first("link", 2)
        assert bench.heard[0].of("down") == ["replaced by a newer link to the same member"]
        assert a.links[b.me] is fresh and not fresh.initiator

    play(kind, scene)


@pytest.mark.parametrize(
    ("me", "old", "new", "age", "replaced"),
    [  # me; whether this end dialled the old and the new link; seconds since the old one
        (0, True, False, 1, False),  # the lower id's dial stays
        (0, False, True, 1, True),
        (1, True, False, 1, True),
        (1, False, True, 1, False),
        (0, True, False, 11, True),  # no race any more: the other end had lost it
        (1, False, True, 11, True),
        (0, False, False, 1, True),  # who dials twice has lost the first
        (1, True, True, 1, True),
    ],
)
def test_which_of_two_links_stays(me, old, new, age, replaced):
    async def scene(bench: Bench):
        transport = await bench.member(me)
        peer = IDS[1 - me]
        first, second = (MemoryLink(transport, peer, initiator=side) for side in (old, new))
        assert transport.admit(first)
        first.up_at -= age
        assert transport.admit(second) is replaced
        assert transport.links[peer] is (second if replaced else first)
        kinds = [event[0] for event in bench.heard[me].events]
        assert kinds == (["link", "down", "link"] if replaced else ["link"])

    play("memory", scene)


def test_the_outbox_is_bounded_and_a_peer_that_does_not_read_loses_the_link(kind):
    async def scene(bench: Bench):
        a, _, at_a, at_b = await bench.pair()
        bench.stall(at_b)
        most = 0
        for _ in range(200):  # 100 MiB: more than any kernel buffers
            at_a.send_chunk(b"p", bytes(CHUNK_BYTES))
            most = max(most, at_a.outbox_bytes)
            if at_a.closed:
                break
        assert "does not read" in await bench.heard[0].first("down")
        assert CHUNK_BYTES < most <= a.outbox_bytes_max + 64 * KiB  # TLS adds 22 bytes a record
        assert a.stats.violations == {"outbox": 1}

    play(kind, scene)


def test_drained_waits_while_the_peer_does_not_read(kind):
    async def scene(bench: Bench):
        *_, at_a, at_b = await bench.pair()
        bench.stall(at_b)
        while at_a.outbox_bytes < 4 * CHUNK_BYTES:
            at_a.send_chunk(b"p", bytes(CHUNK_BYTES))
        waiting = asyncio.ensure_future(at_a.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        bench.go_on(at_b)
        await waiting
        assert at_a.outbox_bytes < CHUNK_BYTES

    play(kind, scene)


def test_drained_ends_when_the_link_does(kind):
    async def scene(bench: Bench):
        patient = {"tcp": {"limits": Limits(closing_s=30)}}.get(kind, {})
        *_, at_a, at_b = await bench.pair(**patient)
        bench.stall(at_b)
        while at_a.outbox_bytes < 4 * CHUNK_BYTES:
            at_a.send_chunk(b"p", bytes(CHUNK_BYTES))
        waiting = asyncio.ensure_future(at_a.drained())
        await asyncio.sleep(0)
        at_a.close("enough")
        await waiting
        bench.go_on(at_b)

    play(kind, scene)


def test_a_closed_gate_lets_nobody_through_either_way(kind):
    async def scene(bench: Bench):
        shut = {0}
        a = await bench.member(0, gate=lambda peer: 0 not in shut)
        b = await bench.member(1)
        a.dial(b.me)
        assert await bench.heard[0].first("failed") == "unreachable"
        b.dial(a.me)
        await bench.heard[1].until(lambda: bench.heard[1].of("failed") or bench.heard[1].of("down"))
        assert not a.links and bench.heard[0].of("link") == []
        shut.clear()
        a.dial(b.me)
        await bench.heard[0].first("link")

    play(kind, scene)


def test_a_dial_to_nobody_fails_and_may_be_tried_again_from_within(kind, monkeypatch):
    monkeypatch.setattr(mqtt, "ABSENT_S", 0.2)  # nobody is there to answer however long it waits

    async def scene(bench: Bench):
        a = await bench.member(0)
        recorder, first = bench.heard[0], bench.heard[0].on_dial_failed

        def again(peer, why):
            first(peer, why)
            if len(recorder.of("failed")) < 3:
                a.dial(peer)

        recorder.on_dial_failed = again
        a.dial(IDS[1])
        await recorder.first("failed", 3)
        a.dial(b"s" * 32)
        await recorder.first("failed", 4)

    play(kind, scene)


def test_bytes_are_counted_by_peer(kind):
    async def scene(bench: Bench):
        a, b, at_a, _ = await bench.pair()
        at_a.send_chunk(b"p", bytes(CHUNK_BYTES))
        await bench.heard[1].first("frame")
        assert a.stats.sent[b.me] > CHUNK_BYTES and b.stats.received[a.me] > CHUNK_BYTES
        assert a.stats.received[b.me] < CHUNK_BYTES

    play(kind, scene)
