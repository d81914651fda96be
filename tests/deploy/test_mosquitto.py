"""deploy/mosquitto.conf and deploy/mosquitto.acl, as they stand there, with three members.

Users, rights and certificate are those that `grapevine broker` makes.
"""

from __future__ import annotations

import asyncio
import datetime
import os
from pathlib import Path

import brokers
import pytest
from links_bench import IDS, Bench, play
from payloads import Fetcher, Payload, Server

from node import broker as files
from node.transport.addresses import parse_broker, seat
from node.types.messages import MiB
from scenarios.ports import free_ports

DEPLOY = Path(__file__).parents[2] / "deploy"
with_mosquitto = pytest.mark.skipif(brokers.MOSQUITTO is None, reason=brokers.WITHOUT_MOSQUITTO)


class Deployed(brokers.Mosquitto):
    """mosquitto with the files of deploy/, and the rights of members 0 to 2 of ``consortium``."""

    def __init__(self, folder: Path, consortium: bytes) -> None:
        self.port, self.folder, self.process = free_ports(1)[0], folder, None
        self.url = f"mqtts://127.0.0.1:{self.port}"
        self.config = folder / "mosquitto.conf"
        made = files.certified("127.0.0.1", now=datetime.datetime.now(datetime.UTC))
        (folder / "ca.pem").write_text(made.authority)
        (folder / "broker.pem").write_text(made.certificate)
        (folder / "broker.key").write_text(made.key)
        text = (DEPLOY / "mosquitto.conf").read_text()
        text = text.replace("/mosquitto/config", str(folder))
        text = text.replace("listener 8883", f"listener {self.port} 127.0.0.1")
        if os.geteuid() == 0:
            text += "user root\n"
        self.config.write_text(text)
        users = []
        for n in range(3):
            (folder / f"{n}.secret").write_text(f"secret {n}")
            users.append(files.hashed(f"clinic-{n}", f"secret {n}"))
        (folder / "passwords").write_text("".join(users))
        seats = {f"clinic-{n}": seat(consortium, IDS[n], 0).hex() for n in range(3)}
        (folder / "acl").write_text(files.rights(seats))

    def login(self, n: int) -> dict[str, object]:
        return {
            "user": f"clinic-{n}",
            "password_file": str(self.folder / f"{n}.secret"),
            "ca_file": str(self.folder / "ca.pem"),
        }


def test_the_files_in_the_checkout_are_what_the_command_makes():
    address = parse_broker("mqtts://broker.example")
    made = files.settings_of(address, members=5)
    assert (DEPLOY / "mosquitto.conf").read_text() == made
    assert (DEPLOY / "mosquitto.acl").read_text() == files.rights({"clinic-a": "SEAT"})


@with_mosquitto
def test_members_link_and_fetch_and_a_third_reads_nothing_of_theirs(tmp_path):
    payload = Payload(3 * MiB)

    async def scene(bench: Bench) -> None:
        broker = Deployed(tmp_path, bench.consortium)
        with broker.up():
            bench.url = broker.url
            a = await bench.member(0, broker=broker.login(0))
            b = await bench.member(1, broker=broker.login(1))
            c = await bench.member(2, broker=broker.login(2))
            heard: list[bytes] = []
            for topic in (f"gv1/in/{a._seats[b.me].hex()}/#", "gv1/in/#", "#"):
                await c.session.subscribe(topic, 0, lambda *_: None)
            await c.session.subscribe(
                f"gv1/in/{a._seats[b.me].hex()}/hello", 0, lambda data, _: heard.append(data)
            )
            a.dial(b.me)
            at_a = await bench.heard[0].first("link")
            fetcher = Fetcher(bench.heard[1], await bench.heard[1].first("link"), payload)
            server = Server(bench.heard[0], payload)
            server.offer(at_a)
            await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
            fetcher.start()
            await bench.heard[1].until(lambda: fetcher.complete)
            fetcher.stop()
            assert fetcher.data == payload.data
            await bench.until(lambda: a.presences._newest and c.presences._newest)
            await asyncio.sleep(0.1)
            assert heard == []
            for transport in bench.transports:
                await transport.close()

    play("mosquitto", scene)
