"""Chunks through a broker: published once for all, repaired once, paced by the slowest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import brokers
import pytest
from links_bench import IDS, Bench, play
from payloads import Fetcher, Payload, Server

from node.protocol.frames import chunk_prefix
from node.transport import mqtt_receiving, mqtt_sending
from node.transport.mqtt_bulk import Cipher
from node.transport.mqtt_group import Group
from node.transport.mqtt_sending import QUEUE_BYTES
from node.types.messages import CHUNK_BYTES, CREDIT_LINK_BYTES, MiB


@pytest.fixture(params=["amqtt", "mosquitto"])
def kind(request):
    if request.param == "mosquitto" and brokers.MOSQUITTO is None:
        pytest.skip(brokers.WITHOUT_MOSQUITTO)
    return request.param


async def star(bench: Bench, leaves: int, payload: Payload, **options):
    """Member 0 linked with others, and ready to serve ``payload``; a fetcher at each of them."""
    centre = await bench.member(0, knows=(0, 1, 2, 3), **options)
    server, fetchers = Server(bench.heard[0], payload), []
    for n in range(1, leaves + 1):
        leaf = await bench.member(n, knows=(0, 1, 2, 3))
        centre.dial(leaf.me)
        link = await bench.heard[n].first("link")
        fetchers.append(Fetcher(bench.heard[n], link, payload))
    await bench.heard[0].first("link", leaves)
    for link in list(centre.links.values()):
        server.offer(link)
    for n in range(1, leaves + 1):
        await bench.heard[n].until(lambda n=n: payload.offer in bench.heard[n].of("frame"))
    return centre, fetchers


async def all_complete(bench: Bench, fetchers):
    await bench.heard[0].until(lambda: True)
    for n, one in enumerate(fetchers, 1):
        await bench.heard[n].until(lambda one=one: one.complete)
        one.stop()


@pytest.mark.parametrize("length", [CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 20 * MiB + 77])
def test_a_payload_arrives_whole_over_one_link(kind, length):
    async def scene(bench: Bench):
        payload = Payload(length)
        _, [leaf] = await star(bench, 1, payload)
        leaf.start()
        await all_complete(bench, [leaf])
        assert leaf.data == payload.data and leaf.unasked == []

    play(kind, scene)


def test_three_neighbours_cost_one_upload(kind):
    async def scene(bench: Bench):
        payload = Payload(24 * MiB)
        centre, leaves = await star(bench, 3, payload)
        for leaf in leaves:
            leaf.start()
        await all_complete(bench, leaves)
        assert [leaf.data == payload.data for leaf in leaves] == [True] * 3
        assert all(leaf.unasked == [] for leaf in leaves)
        assert len(payload.data) <= centre.bulk.sending.published_bytes < 1.05 * len(payload.data)

    play(kind, scene)


def test_who_asks_later_is_served_from_what_came_early(kind):
    async def scene(bench: Bench):
        payload = Payload(12 * MiB)
        centre, [first, second] = await star(bench, 2, payload)
        first.start()
        await all_complete(bench, [first])
        second.start()
        await bench.heard[2].until(lambda: second.complete)
        second.stop()
        assert second.data == payload.data and second.asked_again == 0
        assert centre.bulk.sending.published_bytes < 1.05 * len(payload.data)

    play(kind, scene)


def test_a_member_far_behind_neither_stops_the_others_nor_grows_anything(kind):
    async def scene(bench: Bench):
        payload = Payload(48 * MiB)  # three times what a member keeps unasked
        centre, [quick, slow] = await star(bench, 2, payload)
        quick.start()
        await all_complete(bench, [quick])
        early = bench.transports[2].bulk.receiving.early_bytes
        assert 0 < early <= 16 * MiB + 64 * 1024
        groups = centre.bulk.sending._groups[payload.root]
        assert [len(group.members) for group in groups] == [1, 1], "the quick one went on alone"
        assert centre.bulk.sending.published_bytes < 1.05 * len(payload.data)
        slow.start()
        await bench.heard[2].until(lambda: slow.complete)
        slow.stop()
        assert slow.data == payload.data and slow.unasked == []
        # what it had no room for was published again, once
        assert centre.bulk.sending.published_bytes < 1.8 * len(payload.data)

    play(kind, scene)


def rss_mb(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no such process")


@pytest.mark.skipif(brokers.MOSQUITTO is None, reason=brokers.WITHOUT_MOSQUITTO)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="its memory is read from /proc")
def test_who_reads_its_socket_no_more_makes_neither_broker_nor_publisher_grow(tmp_path):
    """Nothing of this is in the member's hands: its process hangs; 160 MiB go past it."""
    broker = brokers.Mosquitto(tmp_path)

    async def scene(bench: Bench):
        bench.url = broker.url
        payload = Payload(160 * MiB)
        centre, [quick, stuck] = await star(bench, 2, payload)
        stuck.start()
        await bench.heard[2].until(lambda: len(stuck.got) > 4)
        hung = bench.transports[2].session._client._client.socket()
        asyncio.get_running_loop().remove_reader(hung.fileno())
        before, most = rss_mb(broker.process.pid), {"broker": 0.0, "queued": 0, "held": 0}
        publish = centre.session.post_bulk

        def watched(*what):
            held = [g.held.values() for gs in centre.bulk.sending._groups.values() for g in gs]
            waiting = sum(len(pending.data) for pendings in held for pending in pendings)
            most["held"] = max(most["held"], waiting)
            most["queued"] = max(most["queued"], centre.session.bulk_bytes)
            most["broker"] = max(most["broker"], rss_mb(broker.process.pid))
            return publish(*what)

        centre.session.post_bulk = watched
        quick.start()
        await bench.heard[1].until(lambda: quick.complete)
        for one in (quick, stuck):
            one.stop()
        assert quick.data == payload.data
        assert most["broker"] - before < 64
        assert most["queued"] <= QUEUE_BYTES + MiB
        assert most["held"] <= 2 * CREDIT_LINK_BYTES

    with broker.up():
        play("mosquitto", scene)


@pytest.mark.parametrize(("chunks", "node"), [(32, 64), (32, 4)], ids=["of one", "of all"])
def test_a_publisher_that_does_not_pace_itself_fills_no_memory_here(monkeypatch, chunks, node):
    """It publishes 48 MiB past what nobody asked for: 16 MiB of a payload are kept, 64 of all."""
    monkeypatch.setattr(Group, "behind", lambda *_: set())
    monkeypatch.setattr(mqtt_receiving, "EARLY_BYTES_MAX", node * MiB)

    async def scene(bench: Bench):
        payload = Payload(48 * MiB)
        _, [quick, slow] = await star(bench, 2, payload)
        quick.start()
        await bench.heard[1].until(lambda: quick.complete)
        quick.stop()
        receiving = bench.transports[2].bulk.receiving
        [incoming] = receiving._by_peer[IDS[0]].values()
        await bench.until(lambda: incoming.expected >= payload.chunks)  # all of it went past
        most = min(chunks * CHUNK_BYTES, node * MiB)
        assert most - CHUNK_BYTES <= receiving.early_bytes <= most + 64 * 1024
        slow.start()
        await bench.heard[2].until(lambda: slow.complete)
        slow.stop()
        assert slow.data == payload.data

    play("amqtt", scene)


def test_the_last_message_of_a_payload_is_missed_though_nothing_follows_it(monkeypatch):
    monkeypatch.setattr(mqtt_receiving, "QUIET_FIRST_S", 0.1)

    async def scene(bench: Bench):
        payload = Payload(2 * MiB)
        centre, [leaf] = await star(bench, 1, payload)
        leaf.patience_s = 1e6  # the core would ask again; here it is the transport's turn
        publish, lost = centre.session.post_bulk, []

        def lossy(topic, message, written):
            if not lost and message[24:28] == (payload.chunks - 1).to_bytes(4, "big"):
                lost.append(message)
                written()
                return True
            return publish(topic, message, written)

        centre.session.post_bulk = lossy
        leaf.start()
        await all_complete(bench, [leaf])
        assert leaf.data == payload.data and len(lost) == 1 and leaf.asked_again == 0

    play("amqtt", scene)


def test_a_piece_that_was_changed_anywhere_or_is_replayed_counts_for_nothing():
    cipher, other = Cipher(bytes(32)), Cipher(bytes([1]) * 32)
    message = cipher.seal(7, 3, 1, 2, b"part of a chunk")
    piece = cipher.check(message)
    assert piece[:4] == (7, 3, 1, 2) and cipher.open(piece) == b"part of a chunk"
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 1
        assert cipher.check(bytes(changed)) is None, at
    assert other.check(message) is None
    assert cipher.check(message[:-1]) is None and cipher.check(b"") is None
    # who knows the tag's key but moves a text to another place still has no text
    assert cipher.open(piece._replace(chunk=4)) is None
    assert cipher.open(piece._replace(part=0)) is None

    async def scene(bench: Bench):
        payload = Payload(3 * MiB)
        centre, [leaf] = await star(bench, 1, payload)
        publish, seen = centre.session.post_bulk, []

        def watched(topic, message, written):
            seen.append(message)
            return publish(topic, message, written)

        centre.session.post_bulk = watched
        leaf.start()
        await bench.heard[1].until(lambda: len(leaf.got) >= 2)
        receiver = bench.transports[1]
        [incoming] = receiver.bulk.receiving._by_peer[IDS[0]].values()
        before, taken = receiver.stats.refused["replayed"], len(leaf.got)
        receiver.bulk.receiving._take(incoming, incoming.note.topic, seen[0])
        assert receiver.stats.refused["replayed"] == before + 1
        assert len(leaf.got) == taken
        await all_complete(bench, [leaf])
        assert leaf.data == payload.data and leaf.unasked == []

    play("amqtt", scene)


def test_an_ask_again_is_a_repair(kind, monkeypatch):
    monkeypatch.setattr(mqtt_sending, "SETTLE_S", 0.0)

    async def scene(bench: Bench):
        payload = Payload(2 * MiB)
        _, [leaf] = await star(bench, 1, payload)
        leaf.start()
        await all_complete(bench, [leaf])
        del leaf.got[2]
        leaf.start()
        await bench.heard[1].until(lambda: leaf.complete)
        leaf.stop()
        assert leaf.data == payload.data

    play(kind, scene)


def test_a_chunk_that_changed_under_its_root_is_never_encrypted(kind, monkeypatch):
    monkeypatch.setattr(mqtt_sending, "SETTLE_S", 0.0)

    async def scene(bench: Bench):
        payload = Payload(4 * MiB)
        centre, [leaf] = await star(bench, 1, payload)
        leaf.start()
        await all_complete(bench, [leaf])
        before = centre.bulk.sending.published_bytes
        [link] = centre.links.values()
        link.send_chunk(chunk_prefix(payload.root, 1), bytes(CHUNK_BYTES))
        await asyncio.sleep(0)
        assert centre.bulk.sending.published_bytes == before

    play(kind, scene)
