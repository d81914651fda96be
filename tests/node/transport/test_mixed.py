"""Several ways to one member: the best that works, the next when it fails, and back again."""

from __future__ import annotations

import asyncio

from links_bench import CERTIFICATES, IDS, KEYS, Bench, play

from crypto.certificate import private_key_pem
from node.transport.addresses import Address, PeerAddress
from node.transport.mixed import MixedTransport
from node.transport.tcp import Limits, TcpTransport


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
            reach=lambda rank, peer: rank == 1 or peer in self.tcp._addresses,
            better_s=0.2,
        )
        self.tcp._addresses.clear()

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
