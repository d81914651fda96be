"""The broker's connection: who is let in, what fits, and what is said when it does not work."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
from pathlib import Path

import broker_certificates
import brokers
import pytest
from amqtt.broker import Broker
from links_bench import Bench, play
from payloads import Fetcher, Payload, Server

from node.errors import ConfigError
from node.transport import mqtt_session, mqtt_sizes
from node.transport.mqtt_client import Client
from node.transport.mqtt_login import PASSWORD_VARIABLE, PROXY_VARIABLE, login
from node.transport.mqtt_session import BACKOFF_AWAY_TRIES, Session, backoff_s
from node.transport.mqtt_sizes import OVERHEAD_BYTES
from node.types.messages import MiB
from node.types.settings import MqttSettings
from scenarios.ports import free_ports

needs_mosquitto = pytest.mark.skipif(brokers.MOSQUITTO is None, reason=brokers.WITHOUT_MOSQUITTO)


class Watched(Session):
    """A session that keeps what it says, and lets a test wait for it."""

    def __init__(self, settings: MqttSettings, base: Path = Path()) -> None:
        self.said: list[tuple[bool, str]] = []
        self._moved = asyncio.Event()
        super().__init__(
            login(settings, base=base), will="t/bye", probe="t/probe", changed=self._hear
        )

    def _hear(self, up: bool, why: str) -> None:
        self.said.append((up, why))
        self._moved.set()

    async def says(self, up: bool, count: int = 1) -> str:
        while [one for one, _ in self.said].count(up) < count:
            self._moved.clear()
            await self._moved.wait()
        return [why for one, why in self.said if one is up][count - 1]


def meet(settings: MqttSettings, base: Path, scene) -> None:
    async def whole() -> None:
        session = Watched(settings, base)
        session.start()
        try:
            await scene(session)
        finally:
            await session.close()

    asyncio.run(whole())


@needs_mosquitto
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_wrong_password_is_said_and_a_right_one_is_taken_from_file_or_environment(
    tmp_path, monkeypatch, version
):
    users = tmp_path / "users"
    users.write_text("clinic-a:right\n")
    subprocess.run(["mosquitto_passwd", "-U", users], check=True, capture_output=True)
    users.chmod(0o644)
    broker = brokers.Mosquitto(tmp_path, "allow_anonymous false", f"password_file {users}")
    asked = {"broker": broker.url, "user": "clinic-a", "version": version}
    (tmp_path / "secret").write_text("right\n")

    async def refused(session: Watched) -> None:
        assert await session.says(False) == "it refuses our user, password or certificate"

    async def welcome(session: Watched) -> None:
        await session.says(True)

    with broker.up():
        monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
        meet(MqttSettings(**asked), tmp_path, refused)
        meet(MqttSettings(**asked, password_file="secret"), tmp_path, welcome)
        monkeypatch.setenv(PASSWORD_VARIABLE, "right")
        meet(MqttSettings(**asked), tmp_path, welcome)


def test_a_broker_that_is_away_is_asked_every_second_and_one_that_turns_us_away_less_often():
    def waits(jitter, **options):
        return [backoff_s(n, jitter=jitter, **options) for n in range(1, 200)]

    assert max(waits(1.0, away=True)[:BACKOFF_AWAY_TRIES]) == 1.0  # a round of most trainings
    assert waits(1.0, away=True)[BACKOFF_AWAY_TRIES:] == [4.0] * (199 - BACKOFF_AWAY_TRIES)
    assert waits(1.0, away=False)[5:] == [4.0] * 194
    assert waits(0.0, away=False)[5:] == [2.0] * 194, "no two nodes at one time"
    assert waits(1.0, away=False)[:3] == [0.4, 0.8, 1.6]


@needs_mosquitto
def test_who_is_turned_away_does_not_take_the_broker_for_away(tmp_path, monkeypatch):
    broker = brokers.Mosquitto(tmp_path, "allow_anonymous false")
    asked: list[bool] = []
    monkeypatch.setattr(
        mqtt_session, "backoff_s", lambda _, *, away, jitter: (asked.append(away), 0.01)[1]
    )

    async def scene(session: Watched) -> None:
        await session.says(False)
        broker.stop()
        await session.says(False, 3)

    with broker.up():
        meet(MqttSettings(broker=broker.url, version="5"), tmp_path, scene)
    assert asked[0] is False and asked[-1] is True


def tls_broker(folder: Path, *lines: str, port: int | None = None) -> brokers.Mosquitto:
    return brokers.Mosquitto(
        folder,
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
        *lines,
        port=port,
    )


# paho leaves the socket of a failed TLS handshake to the garbage collector
leaks = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@leaks
@needs_mosquitto
def test_an_expired_certificate_of_the_broker_is_refused_by_name(tmp_path):
    broker_certificates.make(tmp_path, expired=True)
    broker = tls_broker(tmp_path)

    async def scene(session: Watched) -> None:
        assert await session.says(False) == "its certificate is not taken: certificate has expired"

    with broker.up():
        url = broker.url.replace("mqtt:", "mqtts:")
        meet(MqttSettings(broker=url, ca_file="ca.pem"), tmp_path, scene)


@leaks
@needs_mosquitto
def test_a_certificate_of_an_unknown_authority_is_refused(tmp_path):
    broker_certificates.make(tmp_path)
    broker = tls_broker(tmp_path)

    async def scene(session: Watched) -> None:
        assert "certificate is not taken" in await session.says(False)

    with broker.up():
        meet(MqttSettings(broker=broker.url.replace("mqtt:", "mqtts:")), tmp_path, scene)


@leaks
@needs_mosquitto
def test_a_broker_that_asks_for_a_certificate_gets_it(tmp_path):
    broker_certificates.make(tmp_path)
    broker = tls_broker(tmp_path, "require_certificate true")
    url = broker.url.replace("mqtt:", "mqtts:")
    files = {"certificate_file": "client.pem", "key_file": "client.key"}

    async def refused(session: Watched) -> None:
        await session.says(False)

    async def welcome(session: Watched) -> None:
        await session.says(True)

    with broker.up():
        meet(MqttSettings(broker=url, ca_file="ca.pem"), tmp_path, refused)
        meet(MqttSettings(broker=url, ca_file="ca.pem", **files), tmp_path, welcome)


@needs_mosquitto
@pytest.mark.parametrize(
    ("limit", "version"),
    [
        ("message_size_limit 8300", "3.1.1"),  # drops larger ones and says nothing
        ("message_size_limit 8300", "5"),
        ("max_packet_size 8300", "3.1.1"),  # hangs up
        ("max_packet_size 8300", "5"),  # says so when asked
    ],
)
def test_a_broker_that_takes_only_small_packets_gets_small_ones(tmp_path, limit, version):
    broker = brokers.Mosquitto(tmp_path, limit)
    payload = Payload(2 * MiB)

    async def scene(bench: Bench) -> None:
        bench.url = broker.url
        a, _, at_a, at_b = await bench.pair(broker={"version": version})
        assert a.session.packet_bytes < 8300
        frame = bytes(range(256)) * 400
        at_a.send(frame)
        assert await bench.heard[1].first("frame") == frame
        server = Server(bench.heard[0], payload)
        fetcher = Fetcher(bench.heard[1], at_b, payload)
        server.offer(at_a)
        await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
        fetcher.start()
        await bench.heard[1].until(lambda: fetcher.complete)
        fetcher.stop()
        assert fetcher.data == payload.data

    with broker.up():
        play("mosquitto", scene)


@needs_mosquitto
def test_two_nodes_with_one_client_id_wait_longer_and_longer_and_say_why(tmp_path):
    broker = brokers.Mosquitto(tmp_path)
    settings = MqttSettings(broker=broker.url, client_id="clinic", version="5")

    async def scene(first: Watched) -> None:
        await first.says(True)
        second = Watched(settings)
        second.start()
        try:
            await second.says(True)
            assert "another client with our client id?" in await first.says(False)
            await first.says(True, 2)
            await second.says(False)
            assert first.failures + second.failures >= 1
        finally:
            await second.close()

    with broker.up():
        meet(settings, tmp_path, scene)


def test_what_is_asked_for_while_the_connection_is_made_is_read_before_it_stands(monkeypatch):
    """A message that comes then may begin a handshake, which has a topic of its own."""
    ask_for = Session._ask_for
    got: list[bytes] = []

    async def ask_for_and_be_asked(session, client, topics):
        await ask_for(session, client, topics)
        if topics == ["t/early"]:
            assert not session.up
            late = await session.subscribe("t/late", 1, lambda payload, _: got.append(payload))
            assert not late, "the broker has not been asked"

    monkeypatch.setattr(Session, "_ask_for", ask_for_and_be_asked)

    async def scene(session: Watched) -> None:
        await session.subscribe("t/early", 1, lambda payload, _: got.append(payload))
        await session.says(True)
        assert session.reads("t/early") and session.reads("t/late")
        session.post("t/late", b"one")
        session.post("t/early", b"two")
        while len(got) < 2:  # noqa: ASYNC110 - nothing to be woken by
            await asyncio.sleep(0.001)
        session.unsubscribe("t/late")
        assert not session.reads("t/late")

    meet(MqttSettings(broker=brokers.amqtt(), version="3.1.1"), Path(), scene)


def test_who_begins_something_whenever_we_ask_the_broker_does_not_keep_us_down(monkeypatch):
    """Each time that topics are asked for a stranger begins anew, and crowds out what it began."""
    ask_for, unsubscribe = Session._ask_for, Client.unsubscribe
    asked: list[list[str]] = []
    told: list[str] = []

    async def ask_for_and_be_knocked_at(session, client, topics):
        asked.append(topics)
        await ask_for(session, client, topics)
        if not session.up and len(asked) < 20:
            session.unsubscribe("t/knock-0")
            await session.subscribe(f"t/knock-{len(asked)}", 1, lambda *_: None)

    async def noted(client, topic, *args, **options):
        told.append(topic)
        await unsubscribe(client, topic, *args, **options)

    monkeypatch.setattr(Session, "_ask_for", ask_for_and_be_knocked_at)
    monkeypatch.setattr(Client, "unsubscribe", noted)

    async def scene(session: Watched) -> None:
        heard = asyncio.Event()
        await session.subscribe("t/hello", 1, lambda *_: heard.set())
        await session.subscribe("t/knock-0", 1, lambda *_: None)
        await session.says(True)
        assert asked == [["t/hello", "t/knock-0"], ["t/knock-1"]]
        assert session.reads("t/hello") and session.reads("t/knock-1")
        session.post("t/hello", b"after what was posted before")
        await heard.wait()
        assert told == ["t/probe", "t/knock-0"], "dropped before the broker could be told"

    meet(MqttSettings(broker=brokers.amqtt(), version="3.1.1"), Path(), scene)


@pytest.mark.parametrize("when", ["as it connects", "later"])
def test_what_the_broker_does_not_let_us_read_is_known(when):
    port = free_ports(1)[0]
    topics = ["t/mine", "prohibited"]  # the second is what amqtt's example of a rule refuses

    async def whole() -> None:
        async with amqtt_of_ours(port, {"amqtt.plugins.topic_checking.TopicTabooPlugin": {}}):
            session = Watched(MqttSettings(broker=f"mqtt://127.0.0.1:{port}", version="3.1.1"))
            if when == "later":
                session.start()
                await session.says(True)
            said = [await session.subscribe(topic, 1, lambda *_: None) for topic in topics]
            if when != "later":
                session.start()
                await session.says(True)
            assert said == [when == "later", False]
            assert [session.reads(topic) for topic in topics] == [True, False]
            await session.close()

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def amqtt_of_ours(port: int, plugins: dict, **listener):
    listener = {"type": "tcp", "bind": f"127.0.0.1:{port}", **listener}
    allowed = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    broker = Broker({"listeners": {"default": listener}, "plugins": allowed | plugins})
    await broker.start()
    yield
    await broker.shutdown()


def amqtt_over_websockets(folder: Path, port: int):
    files = {"certfile": str(folder / "server.pem"), "keyfile": str(folder / "server.key")}
    return amqtt_of_ours(port, {}, type="ws", ssl=True, **files)


@contextlib.asynccontextmanager
async def mosquitto_over_websockets(folder: Path, port: int):
    # mosquitto 2.0.11 wants a listener of another kind as well, or it says that it has none
    other = f"listener {free_ports(1)[0]} 127.0.0.1"
    with tls_broker(folder, "protocol websockets", other, port=port).up():
        yield


@contextlib.asynccontextmanager
async def an_http_proxy(port: int, *, user: str | None = None):
    """Tunnels what asks for ``port`` of this machine; yields its own port and what was asked."""
    asked: list[bytes] = []
    ends: list[asyncio.StreamWriter] = []
    tunnels: list[asyncio.Task[None]] = []
    wanted = b"" if user is None else base64.b64encode(user.encode())

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnels.append(asyncio.current_task())
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if wanted not in asked[-1]:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        ends.extend((writer, up_writer))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(tunnel, "127.0.0.1")
    yield server.sockets[0].getsockname()[1], asked
    server.close()
    for end in ends:
        end.close()
    await asyncio.gather(*tunnels)


@leaks
@pytest.mark.parametrize("piecemeal", [True, False])
@pytest.mark.parametrize(
    ("broker", "version"),
    [
        (amqtt_over_websockets, "3.1.1"),
        pytest.param(mosquitto_over_websockets, "3.1.1", marks=needs_mosquitto),
        pytest.param(mosquitto_over_websockets, "5", marks=needs_mosquitto),
    ],
)
def test_websockets_over_tls_through_a_proxy(tmp_path, monkeypatch, broker, version, piecemeal):
    broker_certificates.make(tmp_path)
    monkeypatch.setattr(mqtt_sizes, "PIECEMEAL_S", 0.0 if piecemeal else 60.0)
    port = free_ports(1)[0]
    monkeypatch.setenv(PROXY_VARIABLE, "right")

    async def whole() -> None:
        async with (
            broker(tmp_path, port),
            an_http_proxy(port, user="clinic-a:right") as (at, asked),
        ):
            settings = MqttSettings(
                broker=f"wss://127.0.0.1:{port}",
                ca_file="ca.pem",
                proxy=f"http://clinic-a@127.0.0.1:{at}",
                version=version,
            )
            session = Watched(settings, tmp_path)
            got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            await session.subscribe("t/x", 1, lambda payload, _: got.set_result(payload))
            session.start()
            await session.says(True)
            session.post("t/x", b"through the proxy" * 1000)
            assert await got == b"through the proxy" * 1000
            assert session.packet_bytes == (4096 if piecemeal else 128 * 1024) - OVERHEAD_BYTES
            await session.close()
        assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())

    asyncio.run(whole())


@needs_mosquitto
def test_a_payload_through_websockets_and_a_proxy(tmp_path):
    """Members, links and chunks, not only messages: the whole way as a hospital behind one has."""
    broker_certificates.make(tmp_path)
    port = free_ports(1)[0]
    payload = Payload(2 * MiB)

    async def scene(bench: Bench) -> None:
        async with mosquitto_over_websockets(tmp_path, port), an_http_proxy(port) as (at, asked):
            bench.url = f"wss://127.0.0.1:{port}"
            ca, proxy = str(tmp_path / "ca.pem"), f"http://127.0.0.1:{at}"
            broker = {"ca_file": ca, "proxy": proxy, "version": "5"}
            *_, at_a, at_b = await bench.pair(broker=broker)
            server = Server(bench.heard[0], payload)
            fetcher = Fetcher(bench.heard[1], at_b, payload)
            server.offer(at_a)
            await bench.heard[1].until(lambda: payload.offer in bench.heard[1].of("frame"))
            fetcher.start()
            await bench.heard[1].until(lambda: fetcher.complete)
            fetcher.stop()
            assert fetcher.data == payload.data and len(asked) == 2  # each went through the proxy
            for transport in bench.transports:
                await transport.close()

    play("mosquitto", scene)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"broker": "tcp://b.example"}, "expected mqtt://, mqtts:// or wss://"),
        ({"broker": "mqtt://a:secret@b.example"}, "a user or password has no place"),
        ({"broker": "mqtt://b.example/path"}, "only wss:// has a path"),
        ({"broker": "mqtts://b.example:99999"}, "a port is 1 to 65535"),
        ({"broker": "mqtt://b.example", "prefix": "gv/+"}, "mean something to a broker"),
        ({"broker": "mqtt://b.example", "prefix": "#"}, "mean something to a broker"),
        ({"broker": "mqtt://b.example", "client_id": "a b"}, "client_id 'a b'"),
        ({"broker": "mqtt://b.example", "password_file": "p"}, "a password needs a user"),
        ({"broker": "mqtt://b.example", "user": "u", "password_file": "none"}, "cannot be read"),
        ({"broker": "mqtts://b.example", "ca_file": "none"}, "ca_file"),
        ({"broker": "mqtts://b.example", "key_file": "k"}, "certificate_file: is missing"),
        ({"broker": "wss://b.example", "proxy": "socks://p:1"}, "expected such as http://"),
        ({"broker": "wss://b.example", "proxy": "http://u:pw@p:1"}, "a password has no place"),
    ],
)
def test_bad_settings_are_one_line_and_show_no_secret(tmp_path, settings, what):
    with pytest.raises(ConfigError, match=what) as caught:
        login(MqttSettings(**settings), base=tmp_path)
    text = str(caught.value)
    assert text.startswith("[mqtt] ") and "\n" not in text
    assert "secret" not in text and "pw@" not in text
