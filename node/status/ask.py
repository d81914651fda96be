"""Talking to a running node from another process: one JSON line to its control socket, one back.

Light on purpose: `grapevine status` and `stop` import this and neither asyncio nor torch.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from node.errors import ConfigError, TransportError

SOCKET_NAME: Final = "control.sock"
# sun_path holds 108 bytes on Linux and 104 on macOS and the BSDs, the closing zero included
PATH_BYTES_MAX: Final = 103
LINE_BYTES_MAX: Final = 64 * 1024
ANSWER_S: Final = 10.0


class NotRunning(ConfigError):
    """No node answers in this state directory."""


def address(state: Path) -> Path:
    """Where the socket of ``state`` really is: in it, or (path too long) where its link points."""
    path = state.absolute() / SOCKET_NAME
    if path.is_symlink():
        return path.readlink()
    return path


def ask(state: Path, request: dict[str, Any], *, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Send ``request`` to the node that runs in ``state``; its answer.

    Raises NotRunning where none does, ConfigError where it refuses, TransportError on silence.
    """
    path = address(state)
    if len(os.fsencode(path)) > PATH_BYTES_MAX or not _same_owner(path, state):
        raise NotRunning(f"{state}: no node is running there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_s)
        try:
            link.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunning(f"{state}: no node is running there") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot reach the node: {error.strerror}") from None
        try:
            link.sendall(json.dumps(request).encode() + b"\n")
            line = _read_line(link)
        except OSError as error:
            raise TransportError(f"{path}: the node does not answer: {error}") from None
    answer = _parse(line, path)
    if "error" in answer:
        raise ConfigError(f"{state}: the node refused: {answer['error']}")
    return answer


def _same_owner(path: Path, state: Path) -> bool:
    """Whether the socket's folder is the node's: /tmp is open to all, a stale link may mislead."""
    try:
        return path.parent.stat().st_uid == state.stat().st_uid
    except OSError:
        return False


def _read_line(link: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) <= LINE_BYTES_MAX:
        part = link.recv(65536)
        if not part:
            break
        line += part
    return line


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not line.endswith(b"\n") or not isinstance(answer, dict):
        raise TransportError(f"{path}: the node closed the connection without an answer")
    return answer
