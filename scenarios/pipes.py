"""When what is sent between real nodes arrives, and in what state: a network's arithmetic.

Pure: times in and out are monotonic seconds. The same rules as scenarios.network, which simulation
uses; scenarios.faulty applies these to the frames of a process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from msgspec import structs

from scenarios.vocabulary import LinkShape

PACKET_BYTES: Final = 1460
RETRANSMIT_MIN_S: Final = 0.2  # Linux's least retransmission timeout
OVERTAKEN_MIN_S: Final = 0.001  # what overtakes a frame comes at least this much earlier


class Uplink:
    """A node's own bandwidth, shared by its links."""

    def __init__(self, mbps: float | None) -> None:
        self._mbps = mbps
        self._free = 0.0

    def pass_through(self, now: float, length: int) -> float:
        if self._mbps is None:
            return now
        self._free = max(now, self._free) + length * 8e-6 / self._mbps
        return self._free


class Downlink:
    """The same for what a node receives. A frame that had the line for itself is not delayed:
    its bytes came while the sender's uplink let them out.
    """

    def __init__(self, mbps: float | None) -> None:
        self._mbps = mbps
        self._free = 0.0

    def pass_through(self, now: float, length: int) -> float:
        """When the frame whose last byte is here at ``now`` has been taken in."""
        if self._mbps is None:
            return now
        takes = length * 8e-6 / self._mbps
        self._free = self._free + takes if self._free > now - takes else now
        return self._free


class Pipe:
    """One direction of a link: latency, jitter, bandwidth, loss as a delay; in order.

    ``uplink`` is shared by all links of the sending node.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._free = 0.0
        self._last = 0.0

    def put(
        self,
        now: float,
        frame: bytes,
        shape: LinkShape,
        rng: random.Random,
        *,
        bulk: bool = False,
    ) -> list[tuple[float, bytes]]:
        """What arrives of a frame sent at ``now``, and when: mostly the frame itself, once.

        A byte may be flipped; it may come after frames that were sent later; it may come twice.
        bulk: a chunk over a broker; what is lost of those is gone, and took its share of the line.
        """
        chance = {"jitter": rng.random(), "loss": rng.random()}
        if bulk:
            lost, shape = chance["loss"] < shape.loss, structs.replace(shape, loss=0.0)
            if lost:
                self._uplink.pass_through(now, len(frame))
                return []
        before = self._last
        at = self.arrival(now, len(frame), shape, chance)
        if not unruly(shape):
            return [(at, frame)]
        if rng.random() < shape.corrupt:
            damaged = bytearray(frame)
            damaged[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            frame = bytes(damaged)
        arriving = [(at, frame)]
        if rng.random() < shape.reorder:
            self._last = before  # later frames pass it
            arriving = [(at + max(shape.latency_ms / 1000, OVERTAKEN_MIN_S), frame)]
        if rng.random() < shape.duplicate:
            arriving.append((max(self._last, now), frame))
        return arriving

    def arrival(
        self, now: float, length: int, shape: LinkShape, chance: Mapping[str, float]
    ) -> float:
        """The instant at which ``length`` bytes handed over at ``now`` are with the peer.

        chance: "jitter" and "loss", each drawn uniformly from [0, 1).
        """
        out = self._uplink.pass_through(now, length)
        if shape.bandwidth_mbps is not None:
            out = self._free = max(out, self._free) + length * 8e-6 / shape.bandwidth_mbps
        delay = (shape.latency_ms + shape.jitter_ms * chance["jitter"]) / 1000
        if shape.loss > 0:
            packets = max(1, -(-length // PACKET_BYTES))
            if chance["loss"] < 1 - (1 - shape.loss) ** packets:
                delay += max(RETRANSMIT_MIN_S, 4 * shape.latency_ms / 1000)  # 2 RTT
        self._last = max(self._last, out + delay)  # a stream keeps its order
        return self._last


def unruly(shape: LinkShape) -> bool:
    """Whether the link does what a stream would hide."""
    return bool(shape.duplicate or shape.reorder or shape.corrupt)


def delays(shape: LinkShape) -> bool:
    """Whether the link, left alone, does anything at all to a frame."""
    slow = shape.latency_ms > 0 or shape.jitter_ms > 0 or shape.loss > 0
    return slow or shape.bandwidth_mbps is not None or unruly(shape)
