"""The connection to one broker, made again with backoff and jitter for as long as the node runs.

aiomqtt speaks MQTT; what it has not is here: reconnecting, subscriptions that outlive a connection,
bounded queues in both directions, and finding out how large a packet the broker takes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import secrets
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import aiomqtt
import paho.mqtt.client as paho
import socks
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from node.transport.mqtt_login import Login
from node.types.messages import CHUNK_BYTES, KiB

_log = logging.getLogger("grapevine.mqtt")
_QUIET: Final = logging.getLogger("grapevine.mqtt.client")
_QUIET.setLevel(logging.CRITICAL)  # what the library has to say, this module says in one line

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_AWAY_S: Final = 1.0  # a broker that is back is found soon: rounds go on meanwhile
BACKOFF_AWAY_TRIES: Final = 120  # a minute and a half and more; then as for one that turns us away
BACKOFF_MAX_S: Final = 4.0
STEADY_S: Final = 5.0  # a connection that held this long was a good one: the backoff starts anew
ANSWER_S: Final = 5.0  # for CONNACK, SUBACK and the like
FIVE_S: Final = 2.0  # for a first CONNACK in MQTT 5: some that know only 3.1.1 never answer
PUBACK_S: Final = 2.0  # then the message is taken for lost; pipes send it again
KEEPALIVE_S: Final = 20
SESSION_EXPIRY_S: Final = 60  # MQTT 5: the broker keeps subscriptions over a short absence
LANES: Final = 8  # messages of QoS 1 that wait for their PUBACK at once
POSTS_MAX: Final = 1024  # of QoS 1 and waiting to be published; pipes bound their bytes
INCOMING_MAX: Final = 256
OVERHEAD_BYTES: Final = 256  # topic, fixed and variable header, our own header and tags
SIZES: Final = (CHUNK_BYTES + KiB, 128 * KiB, 32 * KiB, 8 * KiB, 2 * KiB)
# mosquitto 2.0 takes 4 KiB of a websocket in each turn of its loop, and turns ten times a second:
# 60 kB/s in packets of 128 KiB, 10 MB/s in packets that one turn takes
PIECEMEAL_BYTES: Final = 4 * KiB
PIECEMEAL_S: Final = 0.5  # that the largest packet takes there and back, or the broker is one such
UNPROBED_BYTES: Final = 32 * KiB  # taken where the broker does not let us find out

# OpenSSL's words, which is all that aiomqtt passes on
_UNVERIFIED: Final = re.compile(r"certificate verify failed: (?P<why>.*?)\.?(?: \(_ssl.*)?$")

Receive = Callable[[bytes, bool], None]  # payload, retained


class _Client(aiomqtt.Client):
    """aiomqtt's client, with the broker's word on limits, and its silence noticed at once."""

    properties: Properties | None = None

    def _on_connect(self, *args: Any) -> None:
        self.properties = args[4] if len(args) > 4 else None
        super()._on_connect(*args)

    def _on_disconnect(self, *args: Any) -> None:
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError("it closed before it answered"))
            return
        super()._on_disconnect(*args)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """As aiomqtt's, but for a socket that was closed meanwhile: its number may be another's."""

        def write() -> None:
            try:
                client.loop_write()
            except Exception as error:
                if not self._disconnected.done():
                    self._disconnected.set_exception(error)

        def register() -> None:
            if client.socket() is sock and sock is not None and sock.fileno() >= 0:
                self._loop.add_writer(sock.fileno(), write)

        self._loop.call_soon_threadsafe(register)

    def abandon(self) -> None:
        """Close a connection that never came to stand."""
        self._client._sock_close()


class Session:
    """``changed(up, why)`` is told when the broker is there, and when it is away again."""

    def __init__(
        self, login: Login, *, will: str, probe: str, changed: Callable[[bool, str], None]
    ) -> None:
        self._login = login
        self._will = will  # topics: of the last will, and of our own for trying sizes
        self.probe_topic = probe
        self._changed = changed
        self._client: _Client | None = None
        self._topics: dict[str, tuple[int, Receive]] = {}
        self._posts: deque[tuple[str, bytes, bool]] = deque()
        self._bulk: deque[tuple[str, bytes, Callable[[], None] | None]] = deque()
        self._posted = asyncio.Event()
        self._bulked = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._connecting = False
        self._client_id = login.client_id or "gv" + secrets.token_hex(10)
        self._first = True  # no connection yet: an older session of this name is not ours
        self._version = aiomqtt.ProtocolVersion.V5
        if login.version == "3.1.1":
            self._version = aiomqtt.ProtocolVersion.V311
        self._sizes = [s for s in SIZES if s <= (login.packet_bytes_max or SIZES[0])]
        if login.packet_bytes_max is not None:
            self._sizes.insert(0, login.packet_bytes_max)
        elif self.websockets:
            self._sizes.pop(0)  # masking is done byte by byte: half a MiB would block the loop
        self._probed = False
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
        return self._sizes[0] - OVERHEAD_BYTES

    @property
    def websockets(self) -> bool:
        return self._login.address.scheme == "wss"

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
        try:
            granted = await client.subscribe(topic, qos, timeout=ANSWER_S)
        except (aiomqtt.MqttError, ValueError):
            return False
        return all((one if isinstance(one, int) else one.value) < 0x80 for one in granted)

    def unsubscribe(self, topic: str) -> None:
        """Forget ``topic``; the broker is told without waiting for its answer."""
        if self._topics.pop(topic, None) is not None and self.up:
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
                why, away = _reason(group), not _turns_away(group)
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
        client = self._make_client()
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
            try:
                await client.__aexit__(None, None, None)
            finally:
                client.abandon()  # nothing where it is closed already

    async def _serve(self, client: _Client) -> None:
        self._stated(client)
        async with asyncio.TaskGroup() as group:
            probe = _Probe(self, client)
            reading = group.create_task(self._read(client, probe))
            if self._topics:
                await client.subscribe([(t, qos) for t, (qos, _) in self._topics.items()])
            await probe.run()
            self._client, self.up, self._first = client, True, False
            self.since = asyncio.get_running_loop().time()
            for _ in range(LANES):
                group.create_task(self._posting(client))
            group.create_task(self._bulking(client))
            self._changed(True, "")
            await reading

    def _make_client(self) -> _Client:
        login, five = self._login, self._version is aiomqtt.ProtocolVersion.V5
        properties = None
        if five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = SESSION_EXPIRY_S
        proxy = None
        if login.proxy is not None:
            proxy = aiomqtt.ProxySettings(
                proxy_type=socks.HTTP,
                proxy_addr=login.proxy.host,
                proxy_port=login.proxy.port,
                proxy_username=login.proxy.user,
                proxy_password=login.proxy.password,
            )
        return _Client(
            login.address.host,
            login.address.port,
            username=login.user,
            password=login.password,
            logger=_QUIET,
            identifier=self._client_id,
            protocol=self._version,
            will=aiomqtt.Will(self._will, b"", 0, False),
            clean_session=None if five else True,
            clean_start=self._first if five else paho.MQTT_CLEAN_START_FIRST_ONLY,
            transport="websockets" if self.websockets else "tcp",
            websocket_path=login.address.path if self.websockets else None,
            timeout=FIVE_S if five and self._first else ANSWER_S,
            keepalive=KEEPALIVE_S,
            max_queued_incoming_messages=INCOMING_MAX,
            max_inflight_messages=4 * LANES,
            properties=properties,
            tls_context=login.tls,
            proxy=proxy,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )

    def _fall_back(self, error: BaseException) -> None:
        """A broker that knows no MQTT 5 says so, or hangs up: try 3.1.1 in turns with 5."""
        if self._login.version != "auto" or not self._first:
            return
        five = self._version is aiomqtt.ProtocolVersion.V5
        silent = isinstance(error, aiomqtt.MqttError) and _code(error) is None
        if silent or _code(error) in (1, 132):
            self._version = aiomqtt.ProtocolVersion.V311 if five else aiomqtt.ProtocolVersion.V5

    def _stated(self, client: _Client) -> None:
        """What MQTT 5 lets a broker say of itself."""
        most = getattr(client.properties, "MaximumPacketSize", None)
        if isinstance(most, int) and self._sizes[0] > most:
            self._sizes = [max(most, KiB), *(size for size in self._sizes if size < most)]

    async def _read(self, client: _Client, probe: _Probe) -> None:
        async for message in client.messages:
            topic, payload = message.topic.value, message.payload
            if topic == probe.topic:
                probe.heard(payload)
            elif (known := self._topics.get(topic)) is not None:
                known[1](bytes(payload), bool(message.retain))

    async def _posting(self, client: _Client) -> None:
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

    async def _bulking(self, client: _Client) -> None:
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


class _Probe:
    """Finds out, once, how large a packet comes back: MQTT 3.1.1 has no word for it.

    A large message and a small one behind it go to a topic of our own. If the small one comes
    alone, or the broker hangs up, the large one was too large.
    """

    def __init__(self, session: Session, client: _Client) -> None:
        self._session, self._client = session, client
        self.topic = session.probe_topic
        self._nonce = secrets.token_bytes(16)
        self._came: list[int] = []
        self._changed = asyncio.Event()

    def heard(self, payload: bytes | bytearray) -> None:
        if payload[:16] == self._nonce:
            self._came.append(len(payload))
            self._changed.set()

    async def run(self) -> None:
        session = self._session
        if session._probed:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._client.subscribe(self.topic, 0)
                began = loop.time()
                while not await self._fits(session._sizes[0] - OVERHEAD_BYTES):
                    if len(session._sizes) == 1:
                        break
                    del session._sizes[0]
                    began = loop.time()
            if session.websockets and loop.time() - began > PIECEMEAL_S:
                session._sizes = [min(session._sizes[0], PIECEMEAL_BYTES)]
        except TimeoutError:  # not allowed, or very slow: take what most brokers bear
            most = PIECEMEAL_BYTES if session.websockets else UNPROBED_BYTES
            session._sizes = [min(session._sizes[0], most)]
        except aiomqtt.MqttError:
            if len(session._sizes) > 1:
                del session._sizes[0]
            raise
        session._probed = True
        await self._client.unsubscribe(self.topic)

    async def _fits(self, size: int) -> bool:
        self._came.clear()
        await self._client.publish(self.topic, self._nonce + bytes(size - 16), 0)
        await self._client.publish(self.topic, self._nonce, 0)
        while 16 not in self._came:
            self._changed.clear()
            await self._changed.wait()
        return size in self._came


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


def _code(error: BaseException) -> int | None:
    """The reason code of CONNACK, where there is one."""
    rc = getattr(error, "rc", None)
    return getattr(rc, "value", rc)


def _first(group: BaseException) -> BaseException:
    """The first cause of several."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _turns_away(group: BaseException) -> bool:
    """Whether somebody answers there, and will not have us, or is not who we want."""
    error = _first(group)
    return _code(error) is not None or _UNVERIFIED.search(str(error)) is not None


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    """Why a connection ended, in a few words."""
    error = _first(group)
    if unverified := _UNVERIFIED.search(str(error)):
        return f"its certificate is not taken: {unverified['why']}"
    code = _code(error)
    if code in (4, 5, 134, 135):
        return "it refuses our user, password or certificate"
    if code in (2, 133):
        return "it refuses our client id"
    if code == 142:
        return "another client took over our client id"
    if code == 128:
        return "it closed the connection"
    cause = error.__cause__
    text = str(
        getattr(cause, "strerror", None) or cause or getattr(error, "strerror", None) or error
    )
    return " ".join(text.split()) or type(error).__name__
