"""One connection to a broker, by aiomqtt: how it is opened, and why it ended in a few words.

What the library lacks or passes over is here: the broker's own word on its limits, its silence
noticed at once, and reasons that people understand.
"""

from __future__ import annotations

import logging
import re
import socket
from typing import Any, Final

import aiomqtt
import paho.mqtt.client as paho
import socks
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from node.transport.mqtt_login import Login

_QUIET: Final = logging.getLogger("grapevine.mqtt.client")
_QUIET.setLevel(logging.CRITICAL)  # what the library has to say, ``reason`` says in one line

ANSWER_S: Final = 5.0  # for CONNACK, SUBACK and the like
FIVE_S: Final = 2.0  # for a first CONNACK in MQTT 5: some that know only 3.1.1 never answer
KEEPALIVE_S: Final = 20
SESSION_EXPIRY_S: Final = 60  # MQTT 5: the broker keeps subscriptions over a short absence
INFLIGHT_MAX: Final = 32  # of QoS 1; a session's lanes are fewer
INCOMING_MAX: Final = 256

# OpenSSL's words, which is all that aiomqtt passes on
_UNVERIFIED: Final = re.compile(r"certificate verify failed: (?P<why>.*?)\.?(?: \(_ssl.*)?$")


class Client(aiomqtt.Client):
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

    @property
    def packet_bytes_max(self) -> int | None:
        """What MQTT 5 lets a broker say of itself; None where it said nothing."""
        most = getattr(self.properties, "MaximumPacketSize", None)
        return most if isinstance(most, int) else None

    def abandon(self) -> None:
        """Close a connection that never came to stand."""
        self._client._sock_close()


def make_client(login: Login, *, client_id: str, five: bool, first: bool, will: str) -> Client:
    """A client that is not connected yet. ``five``: in MQTT 5, else 3.1.1.

    first: no connection of ours stood before, so that an older session of this name is not ours.
    will: the topic of the last will.
    """
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
    return Client(
        login.address.host,
        login.address.port,
        username=login.user,
        password=login.password,
        logger=_QUIET,
        identifier=client_id,
        protocol=aiomqtt.ProtocolVersion.V5 if five else aiomqtt.ProtocolVersion.V311,
        will=aiomqtt.Will(will, b"", 0, False),
        clean_session=None if five else True,
        clean_start=first if five else paho.MQTT_CLEAN_START_FIRST_ONLY,
        transport="websockets" if login.websockets else "tcp",
        websocket_path=login.address.path if login.websockets else None,
        timeout=FIVE_S if five and first else ANSWER_S,
        keepalive=KEEPALIVE_S,
        max_queued_incoming_messages=INCOMING_MAX,
        max_inflight_messages=INFLIGHT_MAX,
        properties=properties,
        tls_context=login.tls,
        proxy=proxy,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


def knows_no_five(error: BaseException) -> bool:
    """Whether it may be a broker that knows no MQTT 5: it says so, or hangs up."""
    silent = isinstance(error, aiomqtt.MqttError) and _code(error) is None
    return silent or _code(error) in (1, 132)


def turns_away(group: BaseException) -> bool:
    """Whether somebody answers there, and will not have us, or is not who we want."""
    error = _first(group)
    return _code(error) is not None or _UNVERIFIED.search(str(error)) is not None


def reason(group: BaseException) -> str:
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


def _first(group: BaseException) -> BaseException:
    """The first cause of several."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _code(error: BaseException) -> int | None:
    """The reason code of CONNACK, where there is one."""
    rc = getattr(error, "rc", None)
    return getattr(rc, "value", rc)
