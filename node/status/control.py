"""The control socket of a running node: `status` and `stop`, for whoever may enter its state.

control.sock lies in the state directory with mode 0600: the file system decides who may ask.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from node.errors import StorageError
from node.status.ask import LINE_BYTES_MAX, PATH_BYTES_MAX, SOCKET_NAME

Handler = Callable[[dict[str, Any]], dict[str, Any]]

REQUEST_S: Final = 5.0  # a client that says nothing for so long is let go
CLIENTS_MAX: Final = 8


class Control:
    """Serves one request a connection. The caller holds the state directory's lock."""

    def __init__(self, state: Path, handle: Handler) -> None:
        self._path = state.absolute() / SOCKET_NAME
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._private: Path | None = None
        self._clients: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen. A socket left by a killed node is replaced. Raises StorageError."""
        try:
            self._clear()
            ours = _bound(self._place())
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, sock=ours, limit=LINE_BYTES_MAX
                )
            except BaseException:
                ours.close()
                raise
        except OSError as error:
            raise StorageError(f"{self._path}: cannot listen: {error}") from None

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._clients.values()):
                task.cancel()
            await asyncio.gather(*self._clients.values(), return_exceptions=True)
            self._server = None
        self._clear()

    def _place(self) -> Path:
        """Where to bind: here, or behind a link where this path is too long for a socket."""
        if len(os.fsencode(self._path)) <= PATH_BYTES_MAX:
            return self._path
        self._private = Path(tempfile.mkdtemp(prefix="grapevine-", dir="/tmp"))
        place = self._private / SOCKET_NAME
        self._path.symlink_to(place)
        return place

    def _clear(self) -> None:
        """Remove our socket, or what a killed node left."""
        if self._path.is_symlink():
            folder = self._path.readlink().parent
            if folder.name.startswith("grapevine-") and folder.parent == Path("/tmp"):  # noqa: S108
                shutil.rmtree(folder, ignore_errors=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= CLIENTS_MAX:
            writer.close()
            return
        self._clients[id(task)] = task
        try:
            async with asyncio.timeout(REQUEST_S):
                answer = self._answer(await reader.readline())
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the client left, said nothing, or sent more than a line may hold
        finally:
            del self._clients[id(task)]
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "not a JSON line"}
        if not isinstance(request, dict):
            return {"error": "not a JSON object"}
        return self._handle(request)


def _bound(place: Path) -> socket.socket:
    """A socket that the owner alone may connect to, from its first moment on.

    The umask is the whole process's: it is back before anything else of this loop runs, another
    node that starts included.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        made.bind(os.fspath(place))
    except OSError:
        made.close()
        raise
    finally:
        os.umask(mask)
    return made
