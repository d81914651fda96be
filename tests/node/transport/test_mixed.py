"""Several ways to one member: the best that works, the next when it fails, and back again."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from links_bench import CERTIFICATES, IDS, KEYS, Bench, play

from crypto.certificate import private_key_pem
from crypto.purposes import PRESENCE
from node.transport.addresses import Address, PeerAddress
from node.transport.mixed import MixedTransport
from node.transport.mqtt_presence import Presence
from node.transport.tcp import LEARNED_MAX, Limits, TcpTransport


class Both(MixedTransport):
    """TCP above a broker, as a node has them."""

    def __init__(self, bench: Bench, me: int, *, direct: bool) -> None:
        self.tcp = TcpTransport(
            IDS[me],
            certificate=CERTIFICATES[me],
            key_pem=private_key_pem(KEYS[me]),
            peers={IDS[n]: PeerAddress(CERTIFICATES[n]) for n in range(3)},
            listen="127.0.0.1:0" if direct else None,
            limits=Limits(handshake_s=2, closing_s=0.1),
        )
        self.mqtt = bench.through_broker(me, (0, 1, 2))
        super().__init__(
            IDS[me],
            (self.tcp, self.mqtt),
            reach=lambda rank, peer: rank == 1 or bool(self.tcp.ways(peer)),
            better_s=0.2,
        )
        self.tcp._addresses.clear()
        self.tcp.learned = self.mqtt.learned

    def says(self, *addresses: str) -> None:
        """Publish presence that names these addresses."""
        self.mqtt.presences._addresses = addresses
        self.mqtt._renew()

    def knows(self, other: Both) -> None:
        self.tcp._addresses[other.me] = (other.tcp.listening,)


async def member(bench: Bench, me: int, *, direct: bool) -> Both:
    from links_bench import Recorder

    both = Both(bench, me, direct=direct)
    bench.heard[me] = Recorder(bench._changed)
    both.attach(bench.heard[me])
    await both.listen()
    bench.transports.append(both)
    await bench.until(lambda: both.mqtt.session.up)
    return both


async def a_closed_port() -> Address:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1")
    host, port = server.sockets[0].getsockname()[:2]
    server.close()
    return Address(host, port)


def test_the_direct_way_is_taken_where_there_is_one():
    async def scene(bench: Bench):
        a, b = [await member(bench, n, direct=True) for n in (0, 1)]
        a.knows(b)
        a.dial(b.me)
        assert (await bench.heard[0].first("link")).via == "tcp"
        assert (await bench.heard[1].first("link")).via == "tcp"
        a.links[b.me].send(b"x")
        assert await bench.heard[1].first("frame") == b"x"
        assert a.stats.sent[b.me] > 0

    play("amqtt", scene)


def test_the_broker_is_the_way_for_who_only_dials_out():
    async def scene(bench: Bench):
        a, b = [await member(bench, n, direct=False) for n in (0, 1)]
        a.dial(b.me)
        assert (await bench.heard[0].first("link")).via == "mqtt"
        assert bench.heard[0].of("failed") == []

    play("amqtt", scene)


def test_it_falls_back_and_returns_to_the_better_way():
    async def scene(bench: Bench):
        a, b = await member(bench, 0, direct=True), await member(bench, 1, direct=True)
        a.tcp._addresses[b.me] = (await a_closed_port(),)
        a.dial(b.me)
        assert (await bench.heard[0].first("link")).via == "mqtt"
        assert (await bench.heard[1].first("link")).via == "mqtt"
        a.knows(b)  # what was in the way is gone
        await bench.heard[0].until(lambda: a.links.get(b.me) and a.links[b.me].via == "tcp")
        await bench.heard[1].until(lambda: b.links.get(a.me) and b.links[a.me].via == "tcp")
        a.links[b.me].send(b"by the better way")
        await bench.heard[1].until(lambda: b"by the better way" in bench.heard[1].of("frame"))
        ups, downs = len(bench.heard[0].of("link")), len(bench.heard[0].of("down"))
        assert ups == downs + 1
        await bench.until(lambda: not a.mqtt.links and not b.mqtt.links)

    play("amqtt", scene)


def test_a_link_by_tcp_does_not_care_about_the_broker():
    async def scene(bench: Bench):
        a, b = [await member(bench, n, direct=True) for n in (0, 1)]
        a.knows(b)
        a.dial(b.me)
        await bench.heard[0].first("link")
        await bench.heard[1].first("link")
        a.mqtt._give_up()
        b.mqtt._give_up()
        a.links[b.me].send(b"still here")
        assert await bench.heard[1].first("frame") == b"still here"
        assert bench.heard[0].of("down") == []

    play("amqtt", scene)


def test_when_no_way_works_every_reason_is_said_once():
    async def scene(bench: Bench):
        a = await member(bench, 0, direct=True)
        a.tcp._addresses[IDS[1]] = (await a_closed_port(),)
        a.dial(IDS[1])
        why = await bench.heard[0].first("failed")
        assert "127.0.0.1" in why and "no answer through the broker" in why

    play("amqtt", scene)


async def a_trap() -> tuple[asyncio.Server, str, list[int]]:
    """A server that counts who knocks."""
    knocks: list[int] = []

    def knocked(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocks.append(1)
        writer.close()

    server = await asyncio.start_server(knocked, "127.0.0.1")
    return server, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", knocks


def test_who_moved_is_found_where_its_presence_says():
    async def scene(bench: Bench):
        a, b = await member(bench, 0, direct=True), await member(bench, 1, direct=True)
        a.tcp._addresses[b.me] = (await a_closed_port(),)  # where the roster has it
        b.says(f"tcp://{b.tcp.listening}")
        await bench.until(lambda: a.mqtt.learned(b.me))
        assert a.tcp.ways(b.me) == (b.tcp.listening, *a.tcp._addresses[b.me])
        a.dial(b.me)
        assert (await bench.heard[0].first("link")).via == "tcp"
        assert bench.heard[0].of("failed") == []

    play("amqtt", scene)


def test_who_is_linked_by_the_broker_and_says_an_address_is_reached_there_from_then_on():
    async def scene(bench: Bench):
        a, b = await member(bench, 0, direct=True), await member(bench, 1, direct=True)
        a.dial(b.me)
        assert (await bench.heard[0].first("link")).via == "mqtt"
        b.says(f"tcp://{b.tcp.listening}")
        await bench.heard[0].until(lambda: a.links.get(b.me) and a.links[b.me].via == "tcp")

    play("amqtt", scene)


def test_the_roster_is_the_fallback_and_a_wrong_address_leads_to_nobody():
    async def scene(bench: Bench):
        a, b, c = [await member(bench, n, direct=True) for n in (0, 1, 2)]
        a.knows(b)
        b.says(f"tcp://{c.tcp.listening}")  # another member's, by mistake or on purpose
        await bench.until(lambda: a.mqtt.learned(b.me))
        a.dial(b.me)
        link = await bench.heard[0].first("link")
        assert (link.peer, link.via) == (b.me, "tcp")
        assert c.me not in a.links and a.me not in c.links

    play("amqtt", scene)


def presence(bench: Bench, signer: int, addresses: tuple[str, ...], until_s: float = 60) -> bytes:
    """What claims to be member 1's, signed by ``signer``."""
    now = time.time_ns() // 1_000_000
    body = msgspec.msgpack.encode(
        Presence(bench.consortium, 0, IDS[1], now, now + int(until_s * 1000), addresses)
    )
    return msgspec.msgpack.encode([body, KEYS[signer].sign(PRESENCE, body)])


@pytest.mark.parametrize(
    ("signer", "until_s", "why"),
    [(2, 60, "presence-signature"), (1, -61, "presence-expired"), (1, 601, "presence-expired")],
)
def test_an_address_that_its_member_does_not_vouch_for_now_is_never_dialled(signer, until_s, why):
    async def scene(bench: Bench):
        a = await member(bench, 0, direct=True)
        trap, address, knocks = await a_trap()
        place = a.mqtt._topic("at", a.mqtt._seats[IDS[1]].hex())
        a.mqtt.session.post(place, presence(bench, signer, (address,), until_s), retain=True)
        await bench.until(lambda: a.stats.refused[why])
        a.tcp.dial(IDS[1])
        await bench.until(lambda: not a.tcp._dials)
        assert knocks == []
        a.mqtt.session.post(place, presence(bench, 1, (address,)), retain=True)
        await bench.until(lambda: a.mqtt.learned(IDS[1]))
        a.tcp.dial(IDS[1])
        await bench.until(lambda: not a.tcp._dials)
        assert knocks == [1], "the test would see it"
        a.mqtt.session.post(place, b"", retain=True)
        trap.close()

    play("amqtt", scene)


def test_a_member_cannot_point_others_at_their_own_machine_or_at_many():
    async def scene(bench: Bench):
        a = await member(bench, 0, direct=True)
        said = ["tcp://127.0.0.1:6379", "tcp://[::1]:1", "tcp://169.254.169.254:80"]
        elsewhere = [f"tcp://192.0.2.{n}:7400" for n in range(5)]
        a.tcp.learned = lambda _: (*said, "mqtts://broker.example", *elsewhere)
        assert len(a.tcp.ways(IDS[1])) == LEARNED_MAX, "all on one machine: loopback is the way"
        assert a.tcp.ways(IDS[1])[0] == ("127.0.0.1", 6379)
        a.tcp._listen = Address("0.0.0.0", 7400)
        assert a.tcp.ways(IDS[1]) == (("192.0.2.0", 7400), ("192.0.2.1", 7400))
        a.tcp._addresses[IDS[1]] = (Address("gv.b.example", 7400), Address("192.0.2.1", 7400))
        assert [one.host for one in a.tcp.ways(IDS[1])] == [
            "192.0.2.0",
            "192.0.2.1",
            "gv.b.example",
        ]

    play("amqtt", scene)
