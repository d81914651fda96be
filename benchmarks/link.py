"""One TCP link between two processes: a model of 256 MB, from the order to encode it to applied.

Two real nodes (core, shell, learner, TLS links, spool) train a model of 64 million parameters in
turns, so that one direction is busy at a time; each transfer is timed from the Encode effect at
the sender to the applied replica at the receiver. Beside it, in the same run: a bare pump of as
many bytes through TLS in memory buffers and a socket, which is what the link cannot beat.
Memory is the peak of a node's resident set over that after the imports.

    python benchmarks/link.py [--mb 256] [--rounds 5] [--transport mqtt [--broker URL]] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.learning.task import Task
    from node.runtime_parts import Parts

PIECE = 256 * 1024
NAMES = ("a", "b")
LIMIT_BROKER = "at least 0.15 through mosquitto, 0.04 through amqtt"
TURN_S = 6.0  # longer than a transfer: the receiver sleeps in its turn to train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--mb", type=int, default=256, help="model size in MB (10^6 bytes)")
    parser.add_argument("--transport", choices=("tcp", "mqtt"), default="tcp")
    parser.add_argument("--broker", help="URL of a running broker; else an amqtt of its own")
    parser.add_argument("--rounds", type=int, default=5, help="two transfers each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case "pump":
            pump(int(options.at), options.mb * 1_000_000)
        case "node":
            node(Path(options.at), options.mb * 1_000_000, options.rounds)
        case _:
            with ExitStack() as stack:
                url = options.broker
                if options.transport == "mqtt" and url is None:
                    from scenarios.broker import broker
                    from scenarios.ports import free_ports

                    url = stack.enter_context(broker(free_ports(1)[0]))
                found = measure(options.mb, options.rounds, url)
                report(found, as_json=options.json, direct=url is None)
    return 0


# ── the bare pump ───────────────────────────────────────────────────────────────────────────────


def pump(port: int, size: int) -> None:
    """Send ``size`` bytes to whoever listens there, through TLS in memory buffers."""
    _, client = contexts()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing, server_side=False)
    with socket.create_connection(("127.0.0.1", port)) as pipe:
        handshake(tls, incoming, outgoing, pipe)
        data = memoryview(bytearray(PIECE))
        print(time.monotonic(), flush=True)
        left = size
        while left:
            left -= tls.write(data[: min(left, PIECE)])
            pipe.sendall(outgoing.read())
        pipe.shutdown(socket.SHUT_WR)
        pipe.recv(1)


def receive(server: socket.socket, size: int) -> float:
    """The other end; when the last byte was decrypted."""
    context, _ = contexts()
    pipe, _ = server.accept()
    with pipe:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        handshake(tls, incoming, outgoing, pipe)
        buffer, plain = bytearray(PIECE), bytearray(PIECE)
        got = 0
        while got < size:
            try:
                got += tls.read(PIECE, plain)
            except ssl.SSLWantReadError:
                count = pipe.recv_into(buffer)
                if not count:
                    raise SystemExit("the pump ended early") from None
                incoming.write(memoryview(buffer)[:count])
        return time.monotonic()


def handshake(
    tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, pipe: socket.socket
) -> None:
    while True:
        try:
            tls.do_handshake()
            pipe.sendall(outgoing.read())
            return
        except ssl.SSLWantReadError:
            pipe.sendall(outgoing.read())
            incoming.write(pipe.recv(PIECE))


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server, client), with certificates and settings as nodes have them."""
    from crypto.certificate import make_certificate, private_key_pem
    from crypto.channel import make_context
    from crypto.identity import SigningKey

    keys = [SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2)]
    certificates = [make_certificate(key) for key in keys]
    made = [
        make_context(
            server_side=server,
            certificate=certificates[mine],
            key_pem=private_key_pem(keys[mine]),
            trusted=[certificates[1 - mine]],
        )
        for mine, server in ((0, True), (1, False))
    ]
    return made[0], made[1]


def time_pump(mb: int) -> float:
    """Seconds for ``mb`` megabytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with start("pump", str(port), mb, 0) as sender:
            end = receive(server, mb * 1_000_000)
            assert sender.stdout is not None
            return end - float(sender.stdout.readline())


# ── two nodes ───────────────────────────────────────────────────────────────────────────────────


def node(seat: Path, size: int, rounds: int) -> None:
    """One node: prints an event with its time for all that happens to models."""
    import torch

    from node.runtime import NodeRuntime
    from node.runtime_links import node_links

    torch.set_num_threads(1)
    parts, base_kb = seated(seat, size, rounds)

    def tell(event: dict[str, Any]) -> None:
        at = time.monotonic()
        if event["event"] == "phase" and event["phase"] == "final":
            peak_kb = resident_kb("VmHWM")  # before the model is written to disk
            print(
                json.dumps({"event": "memory", "base_kb": base_kb, "peak_kb": peak_kb}), flush=True
            )
        if event["event"] in ("phase", "received", "round", "failed", "rejected", "unlinked"):
            print(json.dumps({**event, "mono": at}), flush=True)

    # b's turn comes later: until then it sleeps in its training, and a has the link for itself
    pad = (lambda _steps: TURN_S) if parts.me.name == "b" else None
    try:
        asyncio.run(NodeRuntime(parts, node_links(parts), (tell,), pad=pad).run())
    finally:
        parts.close()


def seated(seat: Path, size: int, rounds: int) -> tuple[Parts, int]:
    """The node of ``seat`` as `grapevine start` opens it, but for its model and its policy.

    With it the memory in kB that the imports took.
    """
    from msgspec import structs

    from crypto.identity import verify
    from crypto.keys import load_keys
    from node.consortium import load_consortium
    from node.learning.learner import Learner
    from node.protocol.core import Core
    from node.runtime_parts import Parts
    from node.storage.directory import StateDirectory
    from node.storage.journal import Journal
    from node.storage.spool import Spool
    from node.strict import load_toml
    from node.transport.mqtt_login import login
    from node.types.events import CoreState
    from node.types.roster import Pins
    from node.types.settings import LearningSettings, NodeSettings

    base_kb = resident_kb("VmRSS")
    settings = load_toml(seat / "node.toml", NodeSettings)
    keys = load_keys(Path(settings.state))
    consortium = load_consortium(Path(settings.consortium))
    policy = structs.replace(
        consortium.policy,
        rounds=rounds,
        final_mixing=0,
        wait="all",
        deadline_max_s=600.0,
        checkpoint_every=1_000_000,  # the disk is not what is measured
        linger_s=1.0,
    )
    consortium = structs.replace(consortium, policy=policy)
    me = consortium.roster.members[keys.node_id]
    learning = LearningSettings(rounds=rounds, local_steps=1, optimizer="sgd")
    directory = StateDirectory(settings.state).open()
    task = wide(size, 0.01 if me.name == "a" else -0.01)
    learner = Learner(task, learning, me=me.id, seed=1, spool=directory.spool)
    core = Core(
        me=me.id,
        roster=consortium.roster,
        pins=Pins(
            training=consortium.training,
            schema=learner.schema_digest,
            initial=learner.initial_digest,
            code=learner.code_digest,
            payload_bytes=learner.payload_bytes,
        ),
        policy=policy,
        state=CoreState(),
        sign=keys.node.sign,
        verify=verify,
        entropy=os.urandom,
        rng=random.Random(1),
    )
    parts = Parts(
        settings=settings,
        consortium=consortium,
        me=me,
        node_key=keys.node,
        directory=directory,
        journal=Journal(directory.journal),
        spool=Spool(directory.spool),
        learner=learner,
        core=core,
        resumed=0,
        warnings=(),
        login=settings.mqtt and login(settings.mqtt, base=seat),
    )
    return parts, base_kb


def wide(size: int, value: float) -> Task:
    """As many parameters (4 bytes each) as asked for, and a loss that looks at a few of them."""
    import torch
    from torch import nn

    from node.learning.task import Table, Task

    class Wide(nn.Module):
        """Parameters of their own: autograd would make a slice's gradient as large as the whole,
        and that is no memory of the node's.
        """

        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Parameter(torch.zeros(1000))
            self.rest = nn.Parameter(torch.zeros(size // 4 - 1000))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return (rows - self.seen).square().sum(1)

    rows = Table(torch.full((4, 1000), value), torch.zeros(4))
    return Task(
        Wide(), rows, lambda out, _: out.mean(), metric="loss", learning_rate=0.01, name="w"
    )


def resident_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}: run this on Linux")


def transfers(events: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, int, float]]:
    """(sender, round, seconds) of every model that arrived."""
    for sender, receiver in (NAMES, NAMES[::-1]):
        began = {
            event["round"]: event["mono"]
            for event in events[sender]
            if event["event"] == "phase" and event["phase"] == "encoding"
        }
        for event in events[receiver]:
            if event["event"] == "received":
                yield sender, event["round"], event["mono"] - began[event["round"]]


def time_nodes(mb: int, rounds: int, broker: str | None) -> dict[str, Any]:
    """Seconds of each transfer, and memory in kB."""
    from node.types.settings import LearningSettings, TaskSettings
    from scenarios.founding import found
    from topology.settings import TopologySettings

    with tempfile.TemporaryDirectory(prefix="grapevine-link-") as folder:
        made = found(
            Path(folder),
            NAMES,
            name="link",
            topology=TopologySettings(kind="path"),
            task=TaskSettings(name="quadratic"),
            learning=LearningSettings(rounds=1),
            broker=broker,
        )
        nodes = {name: start("node", str(s.folder), mb, rounds) for name, s in made.seats.items()}
        events: dict[str, list[dict[str, Any]]] = {}
        for name, process in nodes.items():
            out, _ = process.communicate(timeout=600)
            events[name] = [json.loads(line) for line in out.splitlines()]
            if process.returncode:
                raise SystemExit(f"node {name} failed: {events[name][-1:]}")
    memory = [e for name in NAMES for e in events[name] if e["event"] == "memory"]
    return {
        "transfers": [
            {"sender": sender, "round": round_, "s": took}
            for sender, round_, took in transfers(events)
        ],
        "base_kb": max(one["base_kb"] for one in memory),
        "over_kb": max(one["peak_kb"] - one["base_kb"] for one in memory),
    }


def start(role: str, at: str, mb: int, rounds: int) -> subprocess.Popen[str]:
    arguments = ["--role", role, "--at", at, "--mb", str(mb), "--rounds", str(rounds)]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# ── the figures ─────────────────────────────────────────────────────────────────────────────────


def measure(mb: int, rounds: int, broker: str | None = None) -> dict[str, Any]:
    """Pump, nodes, pump: what else the machine does falls on both."""
    before = [time_pump(mb) for _ in range(2)]
    nodes = time_nodes(mb, rounds, broker)
    pumped = [*before, *(time_pump(mb) for _ in range(2))]
    # the first transfer also pays for pages that are touched for the first time; it counts too
    link = median(one["s"] for one in nodes["transfers"])
    allowed_mb = 5 * mb + 100  # (d + 4) · m + 100 MB, one neighbour
    return {
        "model_mb": mb,
        "link_gb_s": mb / 1000 / link,
        "link_best_gb_s": mb / 1000 / min(one["s"] for one in nodes["transfers"]),
        "pump_gb_s": mb / 1000 / median(pumped),
        "ratio": median(pumped) / link,
        "memory_over_imports_mb": nodes["over_kb"] / 1000 * 1.024,
        "memory_allowed_mb": allowed_mb,
        "memory_after_imports_mb": nodes["base_kb"] / 1000 * 1.024,
        "transfers": nodes["transfers"],
        "pumps_s": pumped,
    }


def report(found: dict[str, Any], *, as_json: bool, direct: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for one in found["transfers"]:
        rate = found["model_mb"] / 1000 / one["s"]
        print(f"round {one['round']}, from {one['sender']}: {one['s']:.3f} s, {rate:.2f} GB/s")
    rows = [
        (
            "link, encode to applied",
            f"{found['link_gb_s']:.2f} GB/s",
            "at least 0.30" if direct else LIMIT_BROKER,
        ),
        ("bare TLS pump", f"{found['pump_gb_s']:.2f} GB/s", ""),
        ("ratio", f"{found['ratio']:.2f}", "at least 0.70" if direct else ""),
        (
            "memory over imports",
            f"{found['memory_over_imports_mb']:.0f} MB",
            f"at most {found['memory_allowed_mb']}",
        ),
    ]
    for name, value, limit in rows:
        print(f"{name:<26} {value:>12}   {limit}")


if __name__ == "__main__":
    sys.exit(main())
