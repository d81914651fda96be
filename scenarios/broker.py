"""An MQTT broker of its own for demonstrations and tests: amqtt, on loopback, with no password.

    python -m scenarios.broker PORT

It runs until its standard input ends, and says "ready" once it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from node.errors import TransportError

LOOPBACK: Final = "127.0.0.1"


@contextlib.contextmanager
def broker(port: int) -> Iterator[str]:
    """Run one in a process of its own; its URL. Raises TransportError where it does not start."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                process.kill()
                _, said = process.communicate()
                last = said.strip().splitlines()[-1:] or ["it said nothing"]
                raise TransportError(f"the embedded broker did not start: {last[0]}")
            yield f"mqtt://{LOOPBACK}:{port}"
        finally:
            process.kill()


async def serve(port: int) -> None:
    """Listen until standard input ends."""
    from amqtt.broker import Broker

    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    running = Broker(config)
    await running.start()
    print("ready", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.read)
    await running.shutdown()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # it logs every packet
    asyncio.run(serve(int(sys.argv[1])))
