"""The broker's connection: who is let in, what fits, and what is said when it does not work."""

from __future__ import annotations

import asyncio
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
from node.transport import mqtt_session
from node.transport.mqtt_login import PASSWORD_VARIABLE, login
from node.transport.mqtt_session import BACKOFF_AWAY_TRIES, Session, backoff_s
from node.types.messages import MiB
from node.types.settings import MqttSettings
from scenarios.founding import free_ports

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


def tls_broker(folder: Path, *lines: str) -> brokers.Mosquitto:
    return brokers.Mosquitto(
        folder,
        f"cafile {folder}/ca.pem",
        f"certfile {folder}/server.pem",
        f"keyfile {folder}/server.key",
        *lines,
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


@leaks
def test_websockets_over_tls_through_a_proxy(tmp_path):
    broker_certificates.make(tmp_path)
    port = free_ports(1)[0]
    listener = {"type": "ws", "bind": f"127.0.0.1:{port}", "ssl": True}
    listener |= {"certfile": str(tmp_path / "server.pem"), "keyfile": str(tmp_path / "server.key")}
    allowed = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    asked: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    async def whole() -> None:
        broker = Broker({"listeners": {"default": listener}, "plugins": allowed})
        await broker.start()
        proxy = await asyncio.start_server(tunnel, "127.0.0.1")
        settings = MqttSettings(
            broker=f"wss://127.0.0.1:{port}",
            ca_file="ca.pem",
            proxy=f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
            version="3.1.1",
        )
        session = Watched(settings, tmp_path)
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        await session.subscribe("t/x", 1, lambda payload, _: got.set_result(payload))
        session.start()
        await session.says(True)
        session.post("t/x", b"through the proxy")
        assert await got == b"through the proxy"
        await session.close()
        proxy.close()
        await broker.shutdown()

    asyncio.run(whole())
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())


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
