"""How large a packet a broker takes: what it says of itself, else what comes back of a try.

MQTT 3.1.1 has no word for it, and a broker that finds a packet too large drops it or hangs up.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import aiomqtt

from node.transport.mqtt_client import ANSWER_S, Client
from node.transport.mqtt_login import Login
from node.types.messages import CHUNK_BYTES, KiB

OVERHEAD_BYTES: Final = 256  # topic, fixed and variable header, our own header and tags
SIZES: Final = (CHUNK_BYTES + KiB, 128 * KiB, 32 * KiB, 8 * KiB, 2 * KiB)
UNPROBED_BYTES: Final = 32 * KiB  # taken where the broker does not let us find out
# mosquitto 2.0 takes 4 KiB of a websocket in each turn of its loop, and turns ten times a second:
# 60 kB/s in packets of 128 KiB, 10 MB/s in packets that one turn takes
PIECEMEAL_BYTES: Final = 4 * KiB
PIECEMEAL_S: Final = 0.5  # that the largest packet takes there and back, or the broker is one such
_NONCE_BYTES: Final = 16


class Sizes:
    """What one broker is known to take; it is found out once. ``topic``: our own, for trying."""

    def __init__(self, login: Login, topic: str) -> None:
        self._topic = topic
        self._websockets = login.websockets
        self._left = [size for size in SIZES if size <= (login.packet_bytes_max or SIZES[0])]
        if login.packet_bytes_max is not None:
            self._left.insert(0, login.packet_bytes_max)
        elif self._websockets:
            self._left.pop(0)  # masking is done byte by byte: half a MiB would block the loop
        self._known = False
        self._nonce = b""
        self._came: list[int] = []
        self._changed = asyncio.Event()

    @property
    def payload_bytes(self) -> int:
        """The largest payload of a message that fits."""
        return self._left[0] - OVERHEAD_BYTES

    def stated(self, most: int | None) -> None:
        """The broker itself says how large a packet may be."""
        if most is not None and self._left[0] > most:
            self._left = [max(most, KiB), *(size for size in self._left if size < most)]

    def heard(self, topic: str, payload: bytes | bytearray) -> bool:
        """See a message; True where it was one of ours, for trying."""
        if topic == self._topic and payload[:_NONCE_BYTES] == self._nonce:
            self._came.append(len(payload))
            self._changed.set()
        return topic == self._topic

    async def find_out(self, client: Client) -> None:
        """Try, once for all connections. Raises MqttError where the broker hung up."""
        if self._known:
            return
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_S):
                await client.subscribe(self._topic, 0)
                began = loop.time()
                while not await self._comes_back(client, self.payload_bytes):
                    if len(self._left) == 1:
                        break
                    del self._left[0]
                    began = loop.time()
            if self._websockets and loop.time() - began > PIECEMEAL_S:
                self._left = [min(self._left[0], PIECEMEAL_BYTES)]
        except TimeoutError:  # not allowed, or very slow: take what most brokers bear
            most = PIECEMEAL_BYTES if self._websockets else UNPROBED_BYTES
            self._left = [min(self._left[0], most)]
        except aiomqtt.MqttError:
            if len(self._left) > 1:
                del self._left[0]
            raise
        self._known = True
        await client.unsubscribe(self._topic)

    async def _comes_back(self, client: Client, size: int) -> bool:
        """A large message and a small one behind it: if the small one comes alone, it is no."""
        self._came.clear()
        await client.publish(self._topic, self._nonce + bytes(size - _NONCE_BYTES), 0)
        await client.publish(self._topic, self._nonce, 0)
        while _NONCE_BYTES not in self._came:
            self._changed.clear()
            await self._changed.wait()
        return size in self._came
