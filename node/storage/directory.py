"""The state directory: where each thing lies, and the lock that lets one process use it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from node.errors import StorageError


class StateDirectory:
    """A node's directory. Everything but paths asks for ``open`` first.

    The lock is flock(2) on ``lock``: it ends with the process, however that ends.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.journal = self.path / "journal.db"
        self.checkpoints = self.path / "checkpoints"
        self.candidates = self.path / "candidates"
        self.spool = self.path / "spool"
        self.control = self.path / "control.sock"
        self.result = self.path / "result.json"
        self.model = self.path / "model.safetensors"
        self.lock = self.path / "lock"
        self._handle: int | None = None

    def open(self) -> StateDirectory:
        """Make what is missing and take the lock. Returns itself.

        Raises StorageError where another process holds it, or it cannot be written.
        """
        if self._handle is not None:
            return self
        handle: int | None = None
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._take(handle)
            for folder in (self.checkpoints, self.candidates, self.spool):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._probe()
        except OSError as error:
            if handle is not None:
                os.close(handle)
            raise StorageError(
                f"state directory {self.path} cannot be written: {error.strerror or error}"
            ) from None
        except StorageError:
            if handle is not None:
                os.close(handle)
            raise
        self._handle = handle
        return self

    def close(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> StateDirectory:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            raise StorageError(
                f"state directory {self.path} is in use by process {holder or 'unknown'}: "
                "stop that node first, or give this one another directory"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def _probe(self) -> None:
        """A directory that exists may still be read-only, or its disk full: write one file."""
        probe = self.spool / f"probe-{os.getpid()}"
        try:
            probe.write_bytes(b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
