"""Loopback ports for nodes and brokers of this machine that no other run takes meanwhile.

A node that is down for a while must find its port free when it comes back, whatever else runs here:
other runs, other tests, connections of anybody. So ports come in blocks, and whoever takes from a
block keeps its first port bound, without listening: who finds that port taken goes elsewhere.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
from collections import deque
from typing import Final

from node.errors import GrapevineError

LOOPBACK: Final = "127.0.0.1"
_PORT_MIN: Final = 10_000
_EPHEMERAL_MIN: Final = 32_768  # Linux's default; outgoing connections take ports from there on
_BLOCK: Final = 64
_BLOCKS: Final = tuple(range(_PORT_MIN, _EPHEMERAL_MIN - _BLOCK, _BLOCK))  # 355
_KEPT: Final = 8  # blocks: 504 ports are handed out before the first may be anybody's again
_TRIES: Final = 4 * len(_BLOCKS)


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, all different; none is handed out again soon.

    They lie below the range from which outgoing connections get theirs. Raises GrapevineError
    where there are none.
    """
    with _lock:
        if _mine.process != os.getpid():  # a fork: the blocks are its parent's
            _mine.begin()
        return [_mine.next() for _ in range(count)]


class _Ports:
    """What this process has taken."""

    def __init__(self) -> None:
        self._held: deque[socket.socket] = deque()
        self.begin()

    def begin(self) -> None:
        """Own nothing; what a fork has from its parent stays its parent's."""
        for held in self._held:
            held.close()
        self._held.clear()
        self._left: list[int] = []
        self.process = os.getpid()

    def next(self) -> int:
        for _ in range(_TRIES * _BLOCK):
            if not self._left:
                self._take_block()
            port = self._left.pop(0)
            if probe := _bound(port):
                probe.close()
                return port
        raise GrapevineError(f"no free port on {LOOPBACK} from {_PORT_MIN} to {_EPHEMERAL_MIN}")

    def _take_block(self) -> None:
        for _ in range(_TRIES):
            first = secrets.choice(_BLOCKS)
            if held := _bound(first):
                break
        else:
            raise GrapevineError(f"too many runs on this machine: no {_BLOCK} ports together")
        self._held.append(held)
        if len(self._held) > _KEPT:
            self._held.popleft().close()
        self._left = list(range(first + 1, first + _BLOCK))


def _bound(port: int) -> socket.socket | None:
    probe = socket.socket()
    try:
        probe.bind((LOOPBACK, port))
    except OSError:
        probe.close()
        return None
    return probe


_lock: Final = threading.Lock()
_mine: Final = _Ports()
atexit.register(_mine.begin)
