"""All that a broker sees of five real nodes' whole run: no byte of a model, a key or a metric.

The nodes tell what they say to each other in clear, and every key that they use (telling.py); a
proxy before the broker writes down every byte in both directions. Then it is one search.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brokers
import msgspec
import numpy as np
import pytest
from hostile import PUBLISH, Message, behind, packets
from msgspec import structs
from safetensors.numpy import load_file
from telling import told_frames, told_keys

from crypto.channel import PROTOCOL
from crypto.keys import load_keys
from node.cli.demo import demo_scenario
from node.transport.mqtt_presence import Presence, SignedPresence
from node.types.messages import INLINE_BYTES
from node.types.settings import TaskSettings
from scenarios.nursery import Nursery
from scenarios.processes import run_processes
from scenarios.record import Run
from scenarios.settings import Scenario, check_scenario

SUPPORT = Path(__file__).parents[1] / "support"
WINDOW = 8  # bytes: two parameters. Of 10⁷ random ones none is in 10⁷ others (10¹⁴ / 2⁶⁴)
DISTINCT = 6  # with fewer different bytes it is no secret: counters and zeros are everywhere


def small() -> Scenario:
    """Real patients; a model goes inside the link, in its Offer."""
    return demo_scenario(rounds=5)


def large() -> Scenario:
    """A model of 80 KB: it is published once for all neighbours, in chunks."""
    settings = demo_scenario(rounds=3).settings
    learning = structs.replace(settings.learning, learning_rate=0.1, final_mixing=2)
    task = TaskSettings(name="quadratic", dimension=20_000)
    return check_scenario(
        structs.replace(settings, task=task, learning=learning), source="large.toml"
    )


@pytest.mark.parametrize("scenario", [small(), large()], ids=["inline", "in chunks"])
def test_a_recording_of_a_whole_run_holds_nothing_in_clear(
    tmp_path: Path, scenario: Scenario
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    upstream = brokers.mosquitto() if brokers.MOSQUITTO else brokers.amqtt()
    path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
    with (
        behind(upstream, record=True) as proxy,
        Nursery(tmp_path / "nursery.log", target="telling", env={"PYTHONPATH": path}) as nursery,
    ):
        run = run_processes(
            scenario, directory=folder, nursery=nursery, broker=proxy.url, baselines=False
        )
    assert {node.ended for node in run.nodes} == {"finished"}
    seen = without_presence(bytes(proxy.recording))
    assert len(seen) > sum(node.sent_bytes for node in run.nodes), "it all went through here"
    names = [node.name for node in run.nodes]
    payload = max(len(frame) for name in names for frame in told_frames(folder / name))
    assert (payload > INLINE_BYTES) == (scenario.settings.task.name == "quadratic")

    secret = [*spoken(folder, names), *models(folder, names)]
    secret += [*keys(folder, names), *figures(folder, run), *(name.encode() for name in names)]
    hidden = windows(b"".join(secret))  # what spans two of them is in no recording either
    assert common(seen, hidden)[:3] == []
    # the search finds what is there
    frame, figure = max(secret, key=len), secret[-1 - len(names)]
    for leaked in (frame[len(frame) // 2 :][: WINDOW + 6], figure, b"clinic-b"):
        assert common(seen[-1000:] + leaked + seen[:1000], hidden) != []


def without_presence(recording: bytes) -> bytes:
    """What is left when that is taken out which is meant for all: signed presence, and the name
    of the protocol with which each handshake begins.
    """
    kept = bytearray()
    for kind, flags, body, raw in packets(recording):
        message = Message(flags, body) if kind == PUBLISH else None
        if message is None or "/at/" not in message.topic:
            kept += raw
        elif message.payload:
            signed = msgspec.msgpack.decode(message.payload, type=SignedPresence)
            said = msgspec.msgpack.decode(signed.presence, type=Presence)
            assert said.addresses == (), "nobody of this run has another address"
    return bytes(kept.replace(PROTOCOL.encode(), b""))


def spoken(folder: Path, names: list[str]) -> list[bytes]:
    """Every frame that one core sent to another; a frame for several once."""
    return sorted({frame for name in names for frame in told_frames(folder / name)})


def models(folder: Path, names: list[str]) -> list[bytes]:
    """All that a node keeps of models: its own, what it published, replicas, optimiser's state."""
    files = [path for name in names for path in sorted((folder / name).rglob("*.safetensors"))]
    assert any("checkpoint" in str(path) for path in files)
    tensors = [array.tobytes() for path in files for array in load_file(path).values()]
    return [*(path.read_bytes() for path in files), *(data for data in tensors if len(data) > 64)]


def keys(folder: Path, names: list[str]) -> Iterator[bytes]:
    for name in names:
        held = load_keys(folder / name / "state")
        assert held.member is not None
        for key in (held.member, held.node):
            for data in (key.seed, key.public):
                yield from (data, data.hex().encode(), base64.b64encode(data))
        several = list(told_keys(folder / name))
        assert len(several) >= 2 * 6  # two links at least: five secrets of TLS and a key
        yield from several


def figures(folder: Path, run: Run) -> Iterator[bytes]:
    """Metrics, losses and sample counts, as text and as numbers, in both orders of bytes."""
    values: set[float] = set()
    for node in run.nodes:
        for line in (folder / node.name / "log.jsonl").read_text().splitlines():
            values.update(numbers(json.loads(line) if line.startswith("{") else None))
        values.update(v for v in (node.accuracy, node.own_accuracy, node.auroc, node.loss) if v)
    told = [value for value in sorted(values) if isinstance(value, float) and value % 1]
    assert len(told) > 10
    for value in told:
        yield from (struct.pack("<d", value), struct.pack(">d", value))
        yield from (text.encode() for text in {repr(value), f"{value:.6f}"} if len(text) >= 8)
    for node in run.nodes:
        yield f'"samples":{node.samples}'.encode()
        yield msgspec.msgpack.encode({"samples": node.samples})[1:]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


def windows(data: bytes) -> np.ndarray:
    """Every ``WINDOW`` bytes in a row, as numbers, in order."""
    whole = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), WINDOW)
    return np.sort(np.ascontiguousarray(whole).view(np.uint64).ravel())


def common(seen: bytes, hidden: np.ndarray) -> list[bytes]:
    """What of the secrets' windows is in ``seen``."""
    here = windows(seen)
    at = np.searchsorted(hidden, here)
    both = here[hidden[np.minimum(at, len(hidden) - 1)] == here]
    found = {number.tobytes() for number in both}
    return sorted(one for one in found if len(set(one)) >= DISTINCT)
