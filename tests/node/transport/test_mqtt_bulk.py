"""Chunks through a broker: published once for all, repaired once, paced by the slowest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import brokers
import pytest
from links_bench import Bench, play
from payloads import Fetcher, Payload, Server

from node.protocol.frames import chunk_prefix
from node.transport import mqtt_sending
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
