"""The connection to one broker, made again with backoff and jitter for as long as the node runs.

aiomqtt speaks MQTT (mqtt_client.py has one connection); what it has not is here: reconnecting,
subscriptions that outlive a connection, and bounded queues in both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

import aiomqtt

from node.transport.mqtt_client import (
    ANSWER_S,
    KEEPALIVE_S,
    Client,
    knows_no_five,
    make_client,
    reason,
    turns_away,
)
from node.transport.mqtt_login import Login
from node.transport.mqtt_sizes import Sizes

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_AWAY_S: Final = 1.0  # a broker that is back is found soon: rounds go on meanwhile
BACKOFF_AWAY_TRIES: Final = 120  # a minute and a half and more; then as for one that turns us away
BACKOFF_MAX_S: Final = 4.0
STEADY_S: Final = 5.0  # a connection that held this long was a good one: the backoff starts anew
PUBACK_S: Final = 2.0  # then the message is taken for lost; pipes send it again
LANES: Final = 8  # messages of QoS 1 that wait for their PUBACK at once
POSTS_MAX: Final = 1024  # of QoS 1 and waiting to be published; pipes bound their bytes

Receive = Callable[[bytes, bool], None]  # payload, retained


class Session:
    """``changed(up, why)`` is told when the broker is there, and when it is away again."""

    def __init__(
        self, login: Login, *, will: str, probe: str, changed: Callable[[bool, str], None]
    ) -> None:
        self._login = login
        self._will = will  # topics: of the last will, and of our own for trying sizes
        self._sizes = Sizes(login, probe)
        self._changed = changed
        self._client: Client | None = None
        self._topics: dict[str, tuple[int, Receive]] = {}
        self._granted: dict[str, bool] = {}  # what the broker said to each, on this connection
        self._asked: dict[str, None] = {}  # of any connection: may still come here
        self._posts: deque[tuple[str, bytes, bool]] = deque()
        self._bulk: deque[tuple[str, bytes, Callable[[], None] | None]] = deque()
        self._posted = asyncio.Event()
        self._bulked = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._connecting = False
        self._client_id = login.client_id or "gv" + secrets.token_hex(10)
        self._first = True  # no connection yet: an older session of this name is not ours
        self._five = login.version != "3.1.1"
        self.up = False
        self.since = 0.0  # loop's time; when the connection came to stand
        self.failures = 0  # in a row: connections that did not stand, or not for long
        self.bulk_bytes = 0  # waiting to be written to the broker
        self.sent_bytes = 0

    def __str__(self) -> str:
        return str(self._login.address)

    @property
    def packet_bytes(self) -> int:
        """The largest payload that the broker is known to take."""
        return self._sizes.payload_bytes

    # ── for the transport ───────────────────────────────────────────────────────────────────

    def start(self) -> None:
        self._runner = asyncio.get_running_loop().create_task(self._run())
        self._runner.add_done_callback(_no_silent_end)

    async def close(self) -> None:
        """Disconnect in order, once what was posted is out or the broker too slow to take it."""
        if self._runner is None:
            return
        self._stopping.set()
        if self.up:
            for _ in range(50):
                if not self._posts and not self._bulk:
                    break
                await asyncio.sleep(0.01)
        if not self._connecting:  # a thread is at it; it ends by itself within its timeouts
            self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)
        self._runner = None

    async def subscribe(self, topic: str, qos: int, receive: Receive) -> bool:
        """Have ``receive`` called for every message on ``topic``, after reconnections too.

        True once the broker said that it will; False where it refused or is away (it is asked
        again when it is back).
        """
        self._topics[topic] = (qos, receive)
        client = self._client
        if client is None or not self.up:
            return False
        with contextlib.suppress(aiomqtt.MqttError, ValueError):
            await self._ask_for(client, [topic])
        return self.reads(topic)

    def reads(self, topic: str) -> bool:
        """Whether the broker has said, on the connection that stands, that ``topic`` comes here."""
        return self._granted.get(topic, False)

    def unsubscribe(self, topic: str) -> None:
        """Forget ``topic``; the broker is told without waiting for its answer."""
        self._granted.pop(topic, None)
        self._topics.pop(topic, None)
        if self.up and topic in self._asked:  # else when it is there again, or it never heard of it
            del self._asked[topic]
            self._post("", topic.encode(), retain=False)

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Publish at QoS 1, after what was posted before. False where the broker is away."""
        return self.up and self._post(topic, payload, retain=retain)

    def post_bulk(self, topic: str, payload: bytes, written: Callable[[], None] | None) -> bool:
        """Publish at QoS 0; ``written`` is told when the kernel has it, or it is lost."""
        if not self.up:
            return False
        self._bulk.append((topic, payload, written))
        self.bulk_bytes += len(payload)
        self._bulked.set()
        return True

    # ── inside ──────────────────────────────────────────────────────────────────────────────

    def _post(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        if len(self._posts) >= POSTS_MAX:
            return False
        self._posts.append((topic, payload, retain))
        self._posted.set()
        return True

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began, away = loop.time(), True
            try:
                why = await self._connection()
            except* (aiomqtt.MqttError, OSError, ssl.SSLError, ValueError) as group:
                why, away = reason(group), not turns_away(group)
            if self.up:
                steady = loop.time() - began >= STEADY_S
                if not steady and self._login.client_id is not None:
                    why += " (another client with our client id?)"
                self.failures = 0 if steady else self.failures + 1
                self._down(why)
            else:
                self.failures += 1
                self._changed(False, why)
            if self._stopping.is_set():
                return
            await self._pause(backoff_s(self.failures, away=away, jitter=random.random()))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _connection(self) -> str:
        """Connect, serve until it ends. Raises what ended it."""
        client = make_client(
            self._login,
            client_id=self._client_id,
            five=self._five,
            first=self._first,
            will=self._will,
        )
        self._connecting = True
        try:
            await client.__aenter__()
        except BaseException as error:
            client.abandon()
            self._fall_back(error)
            raise
        finally:
            self._connecting = False
        try:
            if not self._stopping.is_set():
                await self._serve(client)
            return "closed"
        finally:
            self._client = None
            self._granted.clear()
            try:
                await client.__aexit__(None, None, None)
            finally:
                client.abandon()  # nothing where it is closed already

    async def _serve(self, client: Client) -> None:
        self._sizes.stated(client.packet_bytes_max)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(client))
            await self._sizes.find_out(client)
            # Messages come already, and what they begin has topics of its own. From 'up' on those
            # ask for themselves: asking until none is new, who begins many would keep us down.
            await self._ask_for(client, list(self._topics))
            self._client, self.up, self._first = client, True, False
            self.since = asyncio.get_running_loop().time()
            for topic in [topic for topic in self._asked if topic not in self._topics]:
                self.unsubscribe(topic)  # it was dropped while the broker could not be told
            await self._ask_for(client, [t for t in self._topics if t not in self._granted])
            for _ in range(LANES):
                group.create_task(self._posting(client))
            group.create_task(self._bulking(client))
            self._changed(True, "")
            await reading

    async def _ask_for(self, client: Client, topics: list[str]) -> None:
        """Subscribe to ``topics``, all of them wanted, and note what the broker says to each."""
        if not topics:
            return
        self._asked.update(dict.fromkeys(topics))
        wanted = [(topic, self._topics[topic][0]) for topic in topics]
        said = await client.subscribe(wanted, timeout=ANSWER_S)
        codes = [code if isinstance(code, int) else code.value for code in said]
        for topic, code in zip(topics, codes, strict=True):
            if topic in self._topics:  # else nobody waits for it any more
                self._granted[topic] = code < 0x80

    def _fall_back(self, error: BaseException) -> None:
        """Try 3.1.1 in turns with 5, until the broker has answered once."""
        if self._login.version == "auto" and self._first and knows_no_five(error):
            self._five = not self._five

    async def _read(self, client: Client) -> None:
        async for message in client.messages:
            topic, payload = message.topic.value, message.payload
            if self._sizes.heard(topic, payload):
                continue
            if (known := self._topics.get(topic)) is not None:
                known[1](bytes(payload), bool(message.retain))

    async def _posting(self, client: Client) -> None:
        """One of the lanes; publishes are handed over in their order, PUBACKs come in any."""
        while _wanted():
            while not self._posts:
                self._posted.clear()
                await self._posted.wait()
            topic, payload, retain = self._posts.popleft()
            try:
                if topic:
                    self.sent_bytes += len(payload)
                    await client.publish(topic, payload, 1, retain, timeout=PUBACK_S)
                else:
                    await client.unsubscribe(payload.decode(), timeout=PUBACK_S)
            except aiomqtt.MqttError as error:
                if "timed out" not in str(error):
                    raise

    async def _bulking(self, client: Client) -> None:
        while _wanted():
            while not self._bulk:
                self._bulked.clear()
                await self._bulked.wait()
            topic, payload, written = self._bulk.popleft()
            self.sent_bytes += len(payload)
            try:
                await client.publish(topic, payload, 0, timeout=KEEPALIVE_S)
            finally:
                self.bulk_bytes -= len(payload)
                if written is not None:
                    written()

    def _down(self, why: str) -> None:
        self.up, self._client = False, None
        self._posts.clear()
        lost, self._bulk = self._bulk, deque()
        self.bulk_bytes = 0
        for _, _, written in lost:
            if written is not None:
                written()
        self._changed(False, why)


def backoff_s(failures: int, *, away: bool, jitter: float) -> float:
    """Seconds until the next try, after so many failures in a row; ``jitter``: 0 to 1.

    away: nobody answers there. Who does, and turns us away, has a reason that will not pass soon.
    """
    soon = away and failures <= BACKOFF_AWAY_TRIES
    most = BACKOFF_AWAY_S if soon else BACKOFF_MAX_S
    return min(BACKOFF_FIRST_S * 2.0 ** min(failures, 10), most) * (0.5 + 0.5 * jitter)


def _wanted() -> bool:
    """Whether this task is not cancelled; ``wait_for`` of Python 3.11 may swallow that."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def _no_silent_end(runner: asyncio.Task[None]) -> None:
    if not runner.cancelled() and (error := runner.exception()) is not None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "the broker's session ended by a bug", "exception": error}
        )
