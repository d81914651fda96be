"""TCP alone: who may not link, what a stranger may cost, and what the operator got wrong."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

import pytest
from links_bench import CERTIFICATES, IDS, KEYS, Bench, RawPeer, play

from crypto.certificate import private_key_pem
from node.errors import ConfigError
from node.transport.addresses import Address, PeerAddress
from node.transport.links import CHUNK_COSTS, FRAMES_BURST, FRAMES_PER_S, Pace
from node.transport.tcp import Limits, TcpTransport


def test_a_stranger_is_refused_and_costs_nobody_a_link():
    async def scene(bench: Bench):
        _, b, at_a, _ = await bench.pair()
        stranger = await bench.member(3, knows=(0, 1))
        stranger.dial(b.me)
        assert "certificate" in await bench.heard[3].first("failed")
        await bench.until(lambda: b.stats.refused["stranger"] == 1)
        at_a.send(b"still here")
        assert await bench.heard[1].first("frame") == b"still here"
        assert list(b.links) == [IDS[0]] and bench.heard[3].of("link") == []

    play("tcp", scene)


def test_a_member_that_is_not_the_one_dialled_is_refused():
    async def scene(bench: Bench):
        a, b, c = [await bench.member(n) for n in range(3)]
        a._addresses[b.me] = (c.listening,)  # a wrong entry, or an impostor
        a.dial(b.me)
        assert "not the one that was dialled" in await bench.heard[0].first("failed")
        assert not a.links and not b.links and sum(a.stats.refused.values()) == 1
        assert not c.links and bench.heard[2].of("frame") == []

    play("tcp", scene)


def test_a_dial_goes_on_to_the_next_address():
    async def scene(bench: Bench):
        a, b, c = [await bench.member(n) for n in range(3)]
        a._addresses[b.me] = (c.listening, b.listening)
        a.dial(b.me)
        await bench.heard[0].first("link")
        assert bench.heard[0].of("failed") == []

    play("tcp", scene)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 4096, b"\x16\x03\x01" + b"\xff" * 300],
)
def test_garbage_is_counted_and_closed(garbage):
    async def scene(bench: Bench):
        b = await bench.member(1)
        reader, writer = await asyncio.open_connection(b.listening.host, b.listening.port)
        writer.write(garbage)
        await _ended(reader, writer)
        assert sum(b.stats.refused.values()) == 1 and set(b.stats.refused) <= {
            "handshake",
            "version",
        }
        assert bench.heard[1].events == []

    play("tcp", scene)


def test_four_gigabytes_declared_close_the_link_before_a_byte_is_allocated():
    async def scene(bench: Bench):
        b = await bench.member(1)
        raw = await RawPeer(0, b).connect()
        link = await bench.heard[1].first("link")
        before = link._connection._deframer.capacity
        raw.writer.write(raw.encrypted(b"\xff\xff\xff\xff" + bytes(100)))
        assert "declares a frame of 4294967295 bytes" in await bench.heard[1].first("down")
        assert b.stats.violations == {"bounds": 1}
        assert link._connection._deframer.capacity == before
        await raw.ended()

    play("tcp", scene)


def test_a_changed_record_ends_the_link():
    async def scene(bench: Bench):
        b = await bench.member(1)
        raw = await RawPeer(0, b).connect()
        record = bytearray(raw.encrypted(b"\0\0\0\1x"))
        record[-1] ^= 1
        raw.writer.write(bytes(record))
        assert "does not hold together" in await bench.heard[1].first("down")
        assert bench.heard[1].of("frame") == []
        await raw.ended()

    play("tcp", scene)


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_that_does_not_end_is_closed(sent):
    async def scene(bench: Bench):
        b = await bench.member(1, limits=Limits(handshake_s=0.05))
        reader, writer = await asyncio.open_connection(b.listening.host, b.listening.port)
        writer.write(sent)
        await _ended(reader, writer)
        assert b.stats.refused == {"slow": 1} and len(b._half_open) == 0

    play("tcp", scene)


@pytest.mark.parametrize(
    "begun", ["part of a length", "part of a frame", "part of a record", "a byte at a time"]
)
def test_a_frame_that_does_not_end_is_closed(begun):
    async def scene(bench: Bench):
        b = await bench.member(1, limits=Limits(frame_s=0.05))
        raw = await RawPeer(0, b).connect()
        await bench.heard[1].first("link")
        if begun == "part of a record":
            raw.writer.write(raw.encrypted(b"\0\0\0\5hello")[:9])
        elif begun == "a byte at a time":
            raw.writer.write(raw.encrypted(b"\0\0\1\0"))
            while not bench.heard[1].of("down"):  # each arrival must not put the end off
                raw.writer.write(raw.encrypted(b"x"))
                await asyncio.sleep(0.01)
        else:
            whole = b"\0\0\0\5hello"
            raw.writer.write(raw.encrypted(whole[:2] if "length" in begun else whole[:6]))
        assert "did not end within" in await bench.heard[1].first("down")
        assert b.stats.violations == {"slow": 1}
        await raw.ended()

    play("tcp", scene)


def test_frames_beyond_the_pace_wait_at_the_sender_and_none_is_lost():
    async def scene(bench: Bench):
        *_, at_a, at_b = await bench.pair()
        pauses = 0
        pace = at_b._connection._pace
        wait_s = pace.wait_s

        def counted(now: float) -> float:
            nonlocal pauses
            waits = wait_s(now)
            pauses += waits > 0
            return waits

        pace.wait_s = counted
        many = int(FRAMES_BURST) * 3
        for number in range(many):
            at_a.send(number.to_bytes(4, "big"))
        await bench.until(lambda: len(bench.heard[1].of("frame")) == many)
        assert [int.from_bytes(f, "big") for f in bench.heard[1].of("frame")] == list(range(many))
        assert pauses
        at_b.send(b"the other way")
        assert await bench.heard[0].first("frame") == b"the other way"

    play("tcp", scene)


def test_pace_counts_chunks_alike_and_messages_by_their_size():
    pace = Pace(0.0)
    for _ in range(int(FRAMES_BURST / CHUNK_COSTS)):
        pace.spend(memoryview(bytes((1, 1)) + bytes(100)))
    assert pace.wait_s(0.0) == 0.0
    pace.spend(memoryview(bytes((1, 0)) + bytes(64 * 1024 - 3)))
    assert pace.wait_s(0.0) == pytest.approx(16 / FRAMES_PER_S)
    assert pace.wait_s(16 / FRAMES_PER_S) == 0.0
    assert pace.wait_s(1e9) == 0.0
    pace.spend(memoryview(b"x"))
    assert pace.wait_s(1e9) == 0.0


def test_a_quiet_link_has_begun_no_frame():
    async def scene(bench: Bench):
        *_, at_a, at_b = await bench.pair()
        assert at_a._connection._begun_at is None and at_b._connection._begun_at is None
        at_a.send(b"x" * 300_000)
        await bench.heard[1].first("frame")
        assert at_b._connection._begun_at is None

    play("tcp", scene)


def test_a_thousand_half_open_connections_keep_no_member_out():
    async def scene(bench: Bench):
        _fit_files(2200)
        b = await bench.member(1)
        address = b.listening
        flood = []
        for start in range(0, 1000, 50):
            opened = (
                asyncio.open_connection(address.host, address.port, local_addr=("127.0.0.2", 0))
                for _ in range(start, start + 50)
            )
            flood += await asyncio.gather(*opened)
        await bench.until(lambda: b.stats.refused["half-open"] == 1000 - 16)
        assert len(b._half_open) == 16
        a = await bench.member(0)  # from 127.0.0.1
        a.dial(b.me)
        await bench.heard[0].first("link")
        for _, writer in flood:
            writer.close()
        await bench.until(lambda: len(b._half_open) == 0)
        assert b.stats.refused == {"half-open": 984, "gone": 16}

    play("tcp", scene)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_silent_connections_from_a_members_own_address_keep_it_out_for_no_time(said):
    async def scene(bench: Bench):
        b = await bench.member(1)
        flood = []
        for _ in range(b.limits.half_open_per_address):
            reader, writer = await asyncio.open_connection(b.listening.host, b.listening.port)
            writer.write(said)
            flood.append((reader, writer))
        await bench.until(lambda: sum(one.spoke for one in b._half_open) == len(flood) * bool(said))
        a = await bench.member(0)
        a.dial(b.me)
        await bench.heard[0].first("link")
        assert b.stats.refused == {"half-open": 1}
        reader, writer = flood[0]  # the oldest made room
        await _ended(reader, writer)
        for _, writer in flood:
            writer.close()
        await bench.until(lambda: len(b._half_open) == 0)

    play("tcp", scene)


def test_who_has_said_nothing_makes_room_before_who_has():
    async def scene(bench: Bench):
        b = await bench.member(1, limits=Limits(half_open_per_address=2))
        where = b.listening.host, b.listening.port
        spoke = await asyncio.open_connection(*where)
        spoke[1].write(b"\x16\x03\x01\x02\x00\x01")
        silent = await asyncio.open_connection(*where)
        await bench.until(lambda: [one.spoke for one in b._half_open] == [True, False])
        third = await asyncio.open_connection(*where)
        await _ended(*silent)
        assert len(b._half_open) == 2
        for _, writer in (spoke, third):
            writer.close()
        await bench.until(lambda: len(b._half_open) == 0)

    play("tcp", scene)


def test_half_open_connections_are_bounded_in_all():
    async def scene(bench: Bench):
        b = await bench.member(1, limits=Limits(half_open=4, half_open_per_address=2))
        flood = []
        for n in range(12):
            source = (f"127.0.0.{2 + n % 6}", 0)
            where = b.listening
            flood.append(await asyncio.open_connection(where.host, where.port, local_addr=source))
        await bench.until(lambda: b.stats.refused["half-open"] == 8)
        assert len(b._half_open) == 4
        for _, writer in flood:
            writer.close()
        await bench.until(lambda: len(b._half_open) == 0)

    play("tcp", scene)


def test_refusals_are_one_line_in_a_while(caplog):
    async def scene(bench: Bench):
        b = await bench.member(1)
        for _ in range(30):
            reader, writer = await asyncio.open_connection(b.listening.host, b.listening.port)
            writer.write(b"nonsense" * 10)
            await _ended(reader, writer)
        assert sum(b.stats.refused.values()) == 30

    play("tcp", scene)
    assert len([r for r in caplog.records if r.name == "grapevine.transport"]) == 1


@contextlib.asynccontextmanager
async def silent(dialler, peer):
    """An address of ``peer`` that accepts and says nothing; yields the writers so far."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: writers.append(writer), "127.0.0.1")
    dialler._addresses[peer] = (Address(*server.sockets[0].getsockname()),)
    yield writers
    server.close()
    for writer in writers:
        writer.close()
    await server.wait_closed()


def test_a_dial_that_is_not_answered_ends():
    async def scene(bench: Bench):
        a = await bench.member(0, limits=Limits(handshake_s=0.05))
        async with silent(a, IDS[1]) as accepted:
            a.dial(IDS[1])
            assert "no answer within 0.05 s" in await bench.heard[0].first("failed")
            await bench.until(lambda: accepted)

    play("tcp", scene)


def test_a_dial_under_way_ends_with_its_transport():
    async def scene(bench: Bench):
        a = await bench.member(0)
        async with silent(a, IDS[1]) as accepted:
            a.dial(IDS[1])
            await bench.until(lambda: accepted)
            await a.close()
            assert bench.heard[0].events == [] and not a._dials and not a._connections

    play("tcp", scene)


def test_a_port_in_use_is_one_line_that_says_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use; stop"):
            asyncio.run(_listening(f"127.0.0.1:{port}"))


@pytest.mark.parametrize("where", ["192.0.2.1:7400", "no..host:7400"])
def test_an_address_that_is_not_ours_is_one_line(where):
    with pytest.raises(
        ConfigError, match=f"listen {re.escape(where)}: .*expected an address of this"
    ):
        asyncio.run(_listening(where))


async def _listening(where: str) -> None:
    peers = {IDS[1]: PeerAddress(CERTIFICATES[1])}
    transport = TcpTransport(
        IDS[0],
        certificate=CERTIFICATES[0],
        key_pem=private_key_pem(KEYS[0]),
        peers=peers,
        listen=where,
    )
    await transport.listen()


async def _ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass
    writer.close()


def _fit_files(wanted: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"needs {wanted} open files, this machine allows {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
