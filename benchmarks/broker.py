"""Payloads through mosquitto: what d neighbours cost their publisher, and what restarts cost.

    python benchmarks/broker.py upload [--mb 64] [--neighbours 8]
    python benchmarks/broker.py away [--seconds 30]
    python benchmarks/broker.py restarts [--mb 1000] [--every 10] [--loss 0.02] [--mb-per-s 25]

upload: one publisher, d receivers, each a process; the broker's inbound bytes are counted by a
proxy in front of it. restarts: one publisher and one receiver; the proxy drops a share of all
messages in both directions and kills and starts mosquitto every so often; it takes so much of each
client in a second (0: all that comes), so that a transfer sees several restarts. Every chunk is
compared bit for bit; memory is the peak of a process's resident set over that before the transfer.
away: the five hospitals of the demo, two of them with sockets, train through mosquitto, which is
killed in mid-run and comes back after so long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

CONSORTIUM = bytes(range(32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("upload", "restarts", "away", "node"))
    parser.add_argument("--mb", type=int)
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two restarts")
    parser.add_argument("--seconds", type=float, default=30.0, help="that the broker is away")
    parser.add_argument("--loss", type=float, default=0.02)
    parser.add_argument("--mb-per-s", type=float, default=25.0, help="through restarts' proxy")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--me", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--all", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "node":
        asyncio.run(node(options.url, options.me, options.all, options.mb))
    elif options.what == "away":
        away(options.seconds)
    elif options.what == "upload":
        asyncio.run(upload(options.mb or 64, options.neighbours))
    else:
        at_s = options.mb_per_s * 1e6 or None
        asyncio.run(restarts(options.mb or 1000, options.every, options.loss, at_s))
    return 0


# ── one process ─────────────────────────────────────────────────────────────────────────────────


def resident_kb(field: str, process: int | str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}: run this on Linux")


async def node(url: str, me: int, count: int, mb: int) -> None:
    """Number 0 publishes; the others fetch, and print what they saw."""
    import payloads
    from links_bench import Recorder

    from crypto.certificate import make_certificate, private_key_pem
    from crypto.identity import SigningKey, node_id
    from node.transport.addresses import PeerAddress
    from node.transport.mqtt import MqttTransport
    from node.transport.mqtt_login import login
    from node.types.settings import MqttSettings

    keys = [SigningKey.from_seed(bytes([n + 1]) * 32) for n in range(count)]
    ids = [node_id(key.public) for key in keys]
    transport = MqttTransport(
        ids[me],
        login(MqttSettings(broker=url, version="3.1.1"), base=Path()),
        consortium=CONSORTIUM,
        epoch=0,
        certificate=make_certificate(keys[me]),
        key_pem=private_key_pem(keys[me]),
        sign=keys[me].sign,
        peers={ids[n]: PeerAddress(make_certificate(keys[n]), (url,)) for n in range(count)},
    )
    recorder = Recorder(asyncio.Event())
    kept = recorder._add
    recorder._add = lambda kind, *rest: kept(kind, *(rest if kind != "frame" else (rest[0], b"")))
    transport.attach(recorder)
    recorder.on_dial_failed = lambda peer, why: asyncio.get_running_loop().call_later(
        0.3, transport.dial, peer
    )
    await transport.listen()
    payload = Stripes(mb)
    if me == 0:
        await publish(transport, recorder, payload, count - 1)
    else:
        await fetch(transport, recorder, payload, ids[0], payloads)
    await transport.close()


class Stripes:
    """A payload that nobody has to hold: each chunk is made when it is asked for."""

    def __init__(self, mb: int) -> None:
        from payloads import Payload

        from node.types.messages import CHUNK_BYTES

        self.block = random.Random(1).randbytes(CHUNK_BYTES)
        self.length = mb * 1_000_000
        self.chunks = -(-self.length // CHUNK_BYTES)
        like = Payload(1)
        self.root, self.offer = like.root, like.offering(self.length)
        self._last = self.length - (self.chunks - 1) * CHUNK_BYTES

    def chunk(self, index: int) -> bytes:
        data = index.to_bytes(4, "big") + self.block[4:]
        return data[: self._last] if index == self.chunks - 1 else data


async def publish(transport: Any, recorder: Any, payload: Stripes, receivers: int) -> None:
    from payloads import Server

    server = Server(recorder, payload)
    loop = asyncio.get_running_loop()
    done = 0
    told = recorder.on_link

    def linked(link: Any) -> None:
        told(link)
        if len(transport.links) == receivers:  # as a version is offered to all neighbours at once
            for one in list(transport.links.values()):
                loop.call_soon(server.offer, one)

    recorder.on_link = linked
    while done < receivers:
        line = await asyncio.to_thread(sys.stdin.readline)
        done += line.strip() == "done"
    sending = transport.bulk.sending
    groups = [group for groups in sending._groups.values() for group in groups]
    say(
        {
            "published": sending.published_bytes,
            "repaired": sending.repaired_bytes,
            "topics": len(groups),
        }
    )


async def fetch(transport: Any, recorder: Any, payload: Stripes, peer: Any, payloads: Any) -> None:
    loop = asyncio.get_running_loop()
    transport.dial(peer)
    link = await recorder.first("link")

    class Checker(payloads.Fetcher):
        """Compares each chunk and forgets it."""

        def keep(self, index: int, data: bytes) -> None:
            if data != payload.chunk(index):
                raise SystemExit(f"chunk {index} differs")
            self.got[index] = b""

    await recorder.first("frame")
    base = resident_kb("VmRSS")
    fetcher = Checker(recorder, link, payload)
    downs = 0
    told = recorder.on_down

    def down(link: Any, why: str) -> None:
        nonlocal downs
        downs += 1
        told(link, why)
        loop.call_later(0.3, transport.dial, peer)

    def up(link: Any) -> None:
        fetcher.link = link
        fetcher.asked.clear()
        loop.call_later(0.5, fetcher.start)

    recorder.on_down, recorder.on_link = down, up
    began = time.monotonic()
    fetcher.start()
    await recorder.until(lambda: fetcher.complete)
    fetcher.stop()
    say(
        {
            "s": time.monotonic() - began,
            "over_mb": (resident_kb("VmHWM") - base) * 1.024 / 1000,
            "links_lost": downs,
            "asked_again": fetcher.asked_again,
            "received": transport.stats.received.total(),
        }
    )
    await asyncio.to_thread(sys.stdin.readline)


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def start(me: int, count: int, url: str, mb: int) -> subprocess.Popen[str]:
    arguments = ["node", "--me", str(me), "--all", str(count), "--url", url, "--mb", str(mb)]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


async def play(proxy: Any, mb: int, receivers: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the publisher and the receivers said."""
    url = await proxy.start()
    nodes = [start(n, receivers + 1, url, mb) for n in range(receivers + 1)]
    try:
        read = [asyncio.to_thread(one.stdout.readline) for one in nodes[1:]]  # type: ignore[union-attr]
        said = [json.loads(line or "{}") for line in await asyncio.gather(*read)]
        for one in nodes[1:]:
            nodes[0].stdin.write("done\n")  # type: ignore[union-attr]
            one.stdin.write("\n")  # type: ignore[union-attr]
        for one in nodes:
            one.stdin.flush()  # type: ignore[union-attr]
        line = await asyncio.to_thread(nodes[0].stdout.readline)  # type: ignore[union-attr]
        return json.loads(line or "{}"), said
    finally:
        for one in nodes:
            one.kill()
            one.wait()
        await proxy.stop()


# ── the figures ─────────────────────────────────────────────────────────────────────────────────


async def upload(mb: int, neighbours: int) -> None:
    import brokers
    from hostile import Hostile

    with tempfile.TemporaryDirectory() as folder:
        broker = brokers.Mosquitto(Path(folder))
        with broker.up():
            proxy = Hostile(broker.url)
            publisher, said = await play(proxy, mb, neighbours)
    inbound = proxy.published_bytes / 1e6
    print(f"{neighbours} neighbours, {mb} MB, each compared bit for bit")
    print(f"broker's inbound, all clients  {inbound:8.1f} MB   at most {1.1 * mb:.1f}")
    print(f"published in bulk              {publisher['published'] / 1e6:8.1f} MB")
    print(f"of it repairs                  {publisher['repaired'] / 1e6:8.1f} MB")
    print(f"topics used                    {publisher['topics']:8d}")
    print(f"slowest receiver               {max(one['s'] for one in said):8.1f} s")


async def restarts(mb: int, every: float, loss: float, bytes_per_s: float | None) -> None:
    import brokers
    from hostile import Hostile

    rng = random.Random(1)
    dropped = reconnects = 0
    broker_kb = 0
    with tempfile.TemporaryDirectory() as folder:
        broker = brokers.Mosquitto(Path(folder))
        broker.start()
        proxy = Hostile(broker.url)

        def passes(message: Any, towards_broker: bool) -> bool:
            nonlocal dropped
            if rng.random() >= loss:
                return True
            dropped += len(message.payload) if "/out/" in message.topic else 0
            return False

        proxy.passes = passes
        proxy.bytes_per_s = bytes_per_s

        async def shake() -> None:
            nonlocal reconnects, broker_kb
            next_at = time.monotonic() + every
            while True:
                await asyncio.sleep(0.2)
                assert broker.process is not None
                broker_kb = max(broker_kb, resident_kb("VmHWM", broker.process.pid))
                if time.monotonic() >= next_at:
                    broker.stop()
                    await asyncio.to_thread(broker.start)
                    reconnects += 1
                    next_at = time.monotonic() + every

        shaking = asyncio.create_task(shake())
        publisher, [receiver] = await play(proxy, mb, 1)
        shaking.cancel()
        broker.stop()
    window = 8 * 1.048576
    sent_again = publisher["published"] / 1e6 - mb
    print(f"{mb} MB, mosquitto restarted {reconnects} times, {loss:.0%} of messages dropped")
    print(
        f"complete, bit for bit, after   {receiver['s']:8.1f} s; links lost: "
        f"{receiver['links_lost']}"
    )
    print(f"dropped of bulk                {dropped / 1e6:8.1f} MB")
    print(
        f"published again                {sent_again:8.1f} MB   at most "
        f"{dropped / 1e6 + reconnects * window:.1f}"
    )
    print(f"receiver over its start        {receiver['over_mb']:8.1f} MB   at most 128")
    print(f"broker's peak                  {broker_kb * 1.024 / 1000:8.1f} MB   at most 64")


def away(seconds: float) -> None:
    import threading

    import brokers
    from msgspec import structs

    from node.cli.demo import demo_scenario
    from scenarios.processes import run_processes
    from scenarios.settings import ComputeSettings, check_scenario

    plain = demo_scenario(rounds=150)
    settings = structs.replace(plain.settings, compute=ComputeSettings(step_ms=100.0))
    scenario = check_scenario(settings, source="away")
    direct = ("clinic-a", "clinic-b")
    events: list[dict[str, Any]] = []
    moments: dict[str, float] = {}
    ready = threading.Event()

    def heard(event: dict[str, Any]) -> None:
        events.append({**event, "mono": time.monotonic()})
        if event["event"] == "round" and event["round"] == 10:
            ready.set()

    with tempfile.TemporaryDirectory() as folder:
        broker = brokers.Mosquitto(Path(folder))
        broker.start()

        def shake() -> None:
            ready.wait()
            broker.stop()
            moments["down"] = time.monotonic()
            time.sleep(seconds)
            broker.start()
            moments["back"] = time.monotonic()

        shaking = threading.Thread(target=shake)
        shaking.start()
        run = run_processes(
            scenario, broker=broker.url, direct=direct, on_progress=heard, baselines=False
        )
        shaking.join()
        broker.stop()
    print(
        f"broker away for {moments['back'] - moments['down']:.1f} s; ended: "
        f"{sorted({node.ended for node in run.nodes})}"
    )
    for node in run.nodes:
        rounds = [e for e in events if e["event"] == "round" and e["node"] == node.name]
        during = [e for e in rounds if moments["down"] + 12 < e["mono"] < moments["back"]]
        after = [e for e in rounds if e["mono"] > moments["back"]]
        whole = next((n for n, e in enumerate(after, 1) if not e["missing"]), None)
        lost = {peer for e in during for peer, _ in e["missing"]}
        met = next((n for n, e in enumerate(after, 1) if lost & set(e["mixed"]) or not lost), None)
        mixed = sorted({peer for e in during for peer in e["mixed"]})
        whys = sorted({why for e in during for _, why in e["missing"]})
        print(
            f"{node.name}: {len(during)} rounds once it was known to be away, alone in "
            f"{sum(e['alone'] for e in during)}, mixed {mixed or 'nobody'}; missing: {whys}; "
            f"met again in round {met} after, whole in round {whole}"
        )


if __name__ == "__main__":
    sys.exit(main())
