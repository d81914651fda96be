"""A broker that tampers can delay, and nothing else; and it learns nothing but sizes and times."""

from __future__ import annotations

import asyncio

import brokers
import pytest
from hostile import PUBLISH, Hostile, length
from links_bench import IDS, KEYS, Bench, play
from payloads import Fetcher, Payload, Server

from node.transport.links import FRAMES_BURST
from node.transport.mqtt_session import Session
from node.types.messages import MiB

ALONE = ["drop", "delay", "duplicate", "reorder", "replay", "readdress", "corrupt"]
UPSTREAM = "mosquitto" if brokers.MOSQUITTO else "amqtt"


def behind(scene, *behaviours, rate=0.1):
    """Play ``scene(bench, proxy)`` with every member behind a hostile broker."""

    async def whole(bench: Bench):
        proxy = Hostile(bench.url, *behaviours, rate=rate)
        bench.url = await proxy.start()
        bench.redial = True
        bench.options = {"broker": {"version": "3.1.1"}}
        try:
            await scene(bench, proxy)
        finally:
            for transport in bench.transports:
                await transport.close()
            await proxy.stop()

    play(UPSTREAM, whole)


@pytest.mark.parametrize("behaviours", [*[[one] for one in ALONE], ALONE], ids="+".join)
def test_it_can_only_delay(behaviours):
    frames = [n.to_bytes(2, "big") + bytes(n) for n in range(1, 200)]
    payload = Payload(6 * MiB)

    async def scene(bench: Bench, proxy: Hostile):
        *_, at_a, at_b = await bench.pair(**bench.options)
        server = Server(bench.heard[0], payload)
        fetcher = Fetcher(bench.heard[1], at_b, payload, patience_s=1)
        for frame in frames:
            at_a.send(frame)
        server.offer(at_a)
        await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
        fetcher.start()
        await bench.heard[1].until(lambda: fetcher.complete)
        fetcher.stop()
        assert bench.heard[1].of("frame")[: len(frames)] == frames
        assert fetcher.data == payload.data
        assert bench.heard[0].of("down") == bench.heard[1].of("down") == []
        assert set(proxy.counts) == set(behaviours), "it did all that it was told to"

    behind(scene, *behaviours)


def test_a_recording_holds_nothing_in_clear():
    payload = Payload(3 * MiB)
    metric = b"accuracy 0.8711 of clinic-a, a metric"

    async def scene(bench: Bench, proxy: Hostile):
        proxy.record = True
        a, _, at_a, at_b = await bench.pair(**bench.options)
        server = Server(bench.heard[0], payload)
        fetcher = Fetcher(bench.heard[1], at_b, payload)
        at_a.send(metric)
        server.offer(at_a)
        await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
        fetcher.start()
        await bench.heard[1].until(lambda: fetcher.complete)
        fetcher.stop()
        groups = [group for groups in a.bulk.sending._groups.values() for group in groups]
        keys = [group.cipher.key for group in groups]
        keys += [at_a.connection.key, at_b.connection.key, KEYS[0].seed, KEYS[1].seed]
        assert len(proxy.recording) > 2 * len(payload.data)  # in and out again
        recording = bytes(proxy.recording)
        for secret in (metric, payload.offer[6:], payload.root, *keys):
            slices = [secret[start : start + 16] for start in range(0, len(secret) - 15, 16)]
            assert not any(one in recording for one in slices if any(one))  # zeros are no secret
        for start in range(0, len(payload.data), 65536):
            assert payload.data[start : start + 8] not in recording

    behind(scene)


def test_a_broker_that_closes_after_every_message_is_borne_with_patience():
    async def scene(bench: Bench, proxy: Hostile):
        a, b, at_a, _ = await bench.pair(**bench.options)
        ups = []
        bench.transports[0].on_broker = lambda up, why: ups.append(up)
        proxy.kill_after_message = True
        at_a.send(b"before")
        await bench.until(lambda: ups.count(True) >= 3)
        assert bench.transports[0].session.failures >= 2, "it waits longer every time"
        proxy.kill_after_message = False
        await bench.until(lambda: a.session.up and b.session.up)
        if b.me not in a.links:  # its last will was published: a link is made again
            a.dial(b.me)
            await bench.until(lambda: b.me in a.links)
        a.links[b.me].send(b"after")
        await bench.heard[1].until(lambda: bench.heard[1].of("frame")[-1:] == [b"after"])

    behind(scene)


@pytest.mark.parametrize("late", [0, 1], ids=["who dials", "who is dialled"])
def test_who_reads_its_own_topic_late_sends_nothing_before_it_has_said_where(late):
    """A busy node may see the other end's answer before the broker's word that it is subscribed."""

    async def scene(bench: Bench, proxy: Hostile):
        a, b = [await bench.member(n, **bench.options) for n in (0, 1)]
        slow = (a, b)[late]
        subscribe = slow.session.subscribe

        async def subscribed_late(topic, qos, receive):
            granted = await subscribe(topic, qos, receive)
            [connection] = slow._connections.values()
            await bench.until(lambda: connection._their_topic is not None or connection.ended)
            return granted

        slow.session.subscribe = subscribed_late
        for n in (0, 1):  # as the core does: its Hello goes out at once
            told = bench.heard[n].on_link
            bench.heard[n].on_link = lambda link, told=told: (told(link), link.send(b"hello"))
        a.dial(b.me)
        for heard in (bench.heard[0], bench.heard[1]):
            assert await heard.first("frame") == b"hello"
            assert heard.of("down") == heard.of("failed") == []
        assert a.stats.refused == b.stats.refused == {}

    behind(scene)


def test_a_handshake_that_comes_before_the_broker_stands_becomes_a_link_at_both_ends(monkeypatch):
    """All nodes of a consortium often start at once: one is dialled while it is connecting."""
    ask_for = Session._ask_for

    async def scene(bench: Bench, proxy: Hostile):
        a = await bench.member(0, **bench.options)

        async def ask_for_and_be_dialled(session, client, topics):
            await ask_for(session, client, topics)
            transport = session._changed.__self__
            await bench.until(lambda: transport._connections)

        monkeypatch.setattr(Session, "_ask_for", ask_for_and_be_dialled)
        a.dial(IDS[1])
        await bench.member(1, **bench.options)
        for n in (0, 1):
            (await bench.heard[n].first("link")).send(b"hello")
        for n in (0, 1):
            assert await bench.heard[n].first("frame") == b"hello"
            assert bench.heard[n].of("down") == bench.heard[n].of("failed") == []

    behind(scene)


def test_who_may_not_read_its_own_topic_has_no_link_after_a_reconnection_either(monkeypatch):
    from node.transport.mqtt import Limits

    ask_for = Session._ask_for

    async def ask_for_and_be_refused(session, client, topics):
        await ask_for(session, client, topics)
        mine = session._changed.__self__._seats[IDS[1]].hex()
        for topic in topics:
            if topic.startswith(f"gv1/in/{mine}/") and not topic.endswith("/hello"):
                session._granted[topic] = False

    async def scene(bench: Bench, proxy: Hostile):
        impatient = {**bench.options, "limits": Limits(handshake_s=1.0, closing_s=0.2)}
        a, b = [await bench.member(n, **impatient) for n in (0, 1)]
        monkeypatch.setattr(Session, "_ask_for", ask_for_and_be_refused)
        a.dial(b.me)
        await bench.until(lambda: b._connections)
        proxy.cut()
        await bench.until(lambda: not b.session.up)
        assert "no answer" in await bench.heard[0].first("failed")
        assert bench.heard[0].of("link") == bench.heard[1].of("link") == []

    behind(scene)


def test_links_outlive_a_broker_that_is_away_for_a_moment_and_no_byte_is_doubled():
    frames = [bytes([n]) * 3000 for n in range(1, 60)]

    async def scene(bench: Bench, proxy: Hostile):
        *_, at_a, at_b = await bench.pair(**bench.options)
        for n, frame in enumerate(frames):
            at_a.send(frame)
            at_b.send(frame)
            if n in (10, 30):
                proxy.cut()
                await bench.until(lambda: not bench.transports[0].session.up)
        for heard in (bench.heard[0], bench.heard[1]):
            await heard.first("frame", len(frames))
            assert heard.of("frame") == frames
            assert heard.of("down") == []

    behind(scene)


def test_links_go_down_when_the_broker_stays_away_and_say_so():
    from node.transport.mqtt import Limits

    async def scene(bench: Bench, proxy: Hostile):
        patient = {**bench.options, "limits": Limits(away_s=0.2, closing_s=0.2)}
        a, b, *_ = await bench.pair(**patient)
        proxy._server.close()
        proxy.cut()
        assert await bench.heard[0].first("down") == "the broker is away"
        assert await bench.heard[1].first("down") == "the broker is away"
        a.dial(b.me)
        assert "broker is away" in await bench.heard[0].first("failed")

    behind(scene)


def test_a_last_will_is_a_hint_that_one_who_answers_refutes(monkeypatch):
    from node.transport import mqtt_connection

    monkeypatch.setattr(mqtt_connection, "_ANSWER_MIN_S", 0.1)

    async def scene(bench: Bench, proxy: Hostile):
        *_, at_a, at_b = await bench.pair(**bench.options)
        asked = []
        ping = at_a.connection.pipe.ping
        at_a.connection.pipe.ping = lambda: (asked.append(1), ping())
        bench.stall(at_b)
        at_a.connection.suspect()  # as if the broker had published b's will
        at_a.connection.suspect()
        assert len(asked) == 1, "many wills are one question"
        await bench.until(lambda: len(asked) == 2)
        bench.go_on(at_b)  # it was late, not gone
        await bench.until(lambda: at_a.connection._asking is None)
        assert len(asked) == 3 and bench.heard[0].of("down") == [] and not at_a.closed
        asked.clear()
        bench.stall(at_b)
        at_a.connection.suspect()
        assert "does not answer" in await bench.heard[0].first("down")
        assert len(asked) == 3

    behind(scene)


def test_frames_beyond_the_pace_are_not_taken_and_come_again():
    async def scene(bench: Bench, proxy: Hostile):
        small = {"version": "3.1.1", "packet_bytes_max": 1024}  # some twenty frames a message
        *_, at_a, at_b = await bench.pair(broker=small)
        pipe, refused = at_b.connection.pipe, 0
        receive = pipe.receive

        def counted(body, now):
            nonlocal refused
            refused += at_b.connection._pace.wait_s(now) > 0
            return receive(body, now)

        pipe.receive = counted
        many = int(FRAMES_BURST) * 3
        for number in range(many):
            at_a.send(number.to_bytes(4, "big"))
        await bench.until(lambda: len(bench.heard[1].of("frame")) == many)
        assert [int.from_bytes(f, "big") for f in bench.heard[1].of("frame")] == list(range(many))
        assert refused == 0, "what comes too fast is not even counted as received"
        assert at_a.connection.pipe.resent_bytes > 0, "its sender went back to it"
        at_b.send(b"the other way")
        assert await bench.heard[0].first("frame") == b"the other way"

    behind(scene)


def test_lost_parts_are_published_again_once_and_nothing_else():
    payload = Payload(24 * MiB)

    async def scene(bench: Bench, proxy: Hostile):
        a, _, at_a, at_b = await bench.pair(**bench.options)
        server = Server(bench.heard[0], payload)
        fetcher = Fetcher(bench.heard[1], at_b, payload, patience_s=60)
        lost = []

        def passes(message, towards_broker):
            if towards_broker or "/out/" not in message.topic or len(lost) >= 5:
                return True
            if proxy.rng.random() < 0.2:
                lost.append(len(message.payload))
                return False
            return True

        proxy.passes = passes
        server.offer(at_a)
        await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
        fetcher.start()
        await bench.heard[1].until(lambda: fetcher.complete)
        fetcher.stop()
        assert len(lost) == 5 and fetcher.asked_again == 0 and fetcher.data == payload.data
        assert a.bulk.sending.repaired_bytes == sum(lost)

    behind(scene)


def test_a_forged_piece_of_the_handshake_has_no_effect_on_a_link_that_is_up():
    async def scene(bench: Bench, proxy: Hostile):
        a, b, at_a, at_b = await bench.pair(**bench.options)
        for link in (at_a, at_b):  # exactly what would come next, from who knows the dial
            offset = link.connection.pipe.received
            body = bytes(1) + offset.to_bytes(8, "big") + bytes(8) + b"garbage"
            link.connection.take_open(memoryview(body))
            hello = bytes((1, 0 if link is at_b else 1)) + link.connection.dial
            a._hello(hello + a._seats[b.me] + body, False)
        at_a.send(b"unmoved")
        assert await bench.heard[1].first("frame") == b"unmoved"
        assert bench.heard[0].of("down") == bench.heard[1].of("down") == []

    behind(scene)


@pytest.mark.parametrize(
    "topic",
    [
        b"gv1/in/+/hello",
        b"gv1/#",
        b"#",
        b"+",
        b"",
        b"$SYS/x",
        b"gv1/\x00",
        b"\xff\xfe",
        b"a" * 65535,
    ],
    ids=["plus", "hash", "all", "one", "empty", "system", "nul", "not-utf-8", "long"],
)
def test_a_message_on_a_topic_that_cannot_be_has_no_effect(topic):
    """Wildcards have no place in the topic of a message; a broker may send them all the same."""

    async def scene(bench: Bench, proxy: Hostile):
        *_, at_a, at_b = await bench.pair(**bench.options)
        body = len(topic).to_bytes(2, "big") + topic + b"payload"
        bad = bytes((PUBLISH << 4,)) + length(len(body)) + body
        for n in range(20):
            for side in proxy.sides:
                side.send(bad)
            at_a.send(bytes([n + 1]))
            at_b.send(bytes([n + 1]))
        for heard in (bench.heard[0], bench.heard[1]):
            await heard.first("frame", 20)
            assert heard.of("frame") == [bytes([n + 1]) for n in range(20)]
            assert heard.of("down") == []

    behind(scene)


def test_strangers_at_the_rendezvous_are_bounded():
    async def scene(bench: Bench, proxy: Hostile):
        a = await bench.member(0, **bench.options)
        start = bytes(17) + b"\x16\x03\x01"
        for n in range(200):
            place = a._seats[IDS[1 + n % 2]]
            a._hello(bytes((1, 0)) + n.to_bytes(16, "big") + place + start, False)
        assert len(a._half_open) == 2 * a.limits.half_open_per_seat
        a._hello(bytes((1, 0)) + b"d" * 16 + bytes(16) + start, False)  # no member's seat
        assert a.stats.refused["stranger"] == 1 and a.stats.refused["half-open"] > 100
        assert a.links == {}

    behind(scene)


def test_beginnings_in_a_members_name_do_not_keep_it_out():
    """Whoever may write to the rendezvous can begin handshakes for others; a real one goes on."""

    async def scene(bench: Bench, proxy: Hostile):
        a, b = [await bench.member(n, **bench.options) for n in (0, 1)]
        for n in range(a.limits.half_open_per_seat):
            hello = bytes((1, 0)) + n.to_bytes(16, "big") + a._seats[b.me]
            a._hello(hello + bytes(17) + b"\x16\x03\x01", False)
        b.dial(a.me)
        assert (await bench.heard[1].first("link")).peer == a.me
        await bench.heard[0].first("link")
        assert bench.heard[1].of("failed") == [] and a.stats.refused["half-open"] == 1

    behind(scene)


def test_a_beginning_that_was_crowded_out_waits_for_no_answer_of_the_broker():
    async def scene(bench: Bench, proxy: Hostile):
        a = await bench.member(0, **bench.options)
        waiting: dict[str, None] = {}

        async def unanswered(topic, qos, receive):
            waiting[topic] = None
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                del waiting[topic]

        a.session.subscribe = unanswered
        for n in range(50):
            hello = bytes((1, 0)) + n.to_bytes(16, "big") + a._seats[IDS[1]]
            a._hello(hello + bytes(17) + b"\x16\x03\x01", False)
            await asyncio.sleep(0)  # it begins to wait
        await asyncio.sleep(0)  # who is given up ends
        await asyncio.sleep(0)
        kept = [a.pipe_topic(a.me, a._connections[dial, False].topic) for dial in a._half_open]
        assert list(waiting) == kept and len(a._joining) == a.limits.half_open_per_seat

    behind(scene)


def test_all_seats_together_are_bounded_too():
    from node.transport.mqtt import Limits

    async def scene(bench: Bench, proxy: Hostile):
        a = await bench.member(0, limits=Limits(half_open=6, closing_s=0.1), **bench.options)
        for n in range(100):
            hello = bytes((1, 0)) + n.to_bytes(16, "big") + a._seats[IDS[1 + n % 2]]
            a._hello(hello + bytes(17) + b"\x16\x03\x01", False)
        assert len(a._half_open) == 6

    behind(scene)
