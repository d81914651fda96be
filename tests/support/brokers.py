"""Real brokers for tests: amqtt always, mosquitto where it is installed. One of each a session."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scenarios.broker import LOOPBACK, broker
from scenarios.ports import free_ports

MOSQUITTO = shutil.which("mosquitto") or next(
    (str(path) for path in (Path("/usr/sbin/mosquitto"),) if path.exists()), None
)
WITHOUT_MOSQUITTO = "mosquitto is not installed here"


@functools.cache
def amqtt() -> str:
    """The URL of an amqtt broker that runs until the tests end."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(broker(free_ports(1)[0]))


@functools.cache
def mosquitto() -> str:
    """The URL of a mosquitto broker that runs until the tests end."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    running = Mosquitto(folder)
    stack.enter_context(running.up())
    return running.url


class Mosquitto:
    """One mosquitto on a port of its own, to be started and stopped."""

    def __init__(self, folder: Path, *lines: str, port: int | None = None) -> None:
        self.port = port or free_ports(1)[0]
        self.url = f"mqtt://{LOOPBACK}:{self.port}"
        self.config = folder / "mosquitto.conf"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        defaults = [
            f"listener {self.port} {LOOPBACK}",
            "persistence false",
            "set_tcp_nodelay true",
            "log_dest none",
        ]
        if os.geteuid() == 0:
            defaults.append("user root")  # else it gives up the right to read a test's folder
        if not any("allow_anonymous" in line for line in lines):
            defaults.append("allow_anonymous true")
        self.config.write_text("\n".join([*defaults, *lines]) + "\n")

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_port(self.port)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def up(self) -> Iterator[str]:
        self.start()
        try:
            yield self.url
        finally:
            self.stop()


def wait_for_port(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port)):
            return
        time.sleep(0.01)
    raise RuntimeError(f"nobody listens on port {port}")
