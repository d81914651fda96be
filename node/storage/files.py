"""Files that appear whole or not at all: temp file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from node.errors import StorageError

TEMPORARY = ".tmp-"


def replace_durably(target: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a temporary file, then make it ``target``, durably.

    After a crash at any point ``target`` is the old content or the new one. Raises StorageError.
    """
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    try:
        try:
            fill(temporary)
            _sync(temporary)
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(target.parent)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from None


def write_durably(target: Path, data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """``replace_durably`` for bytes that are in memory; with ``mode`` before the first is there."""

    def fill(path: Path) -> None:
        path.touch(mode=mode)
        path.write_bytes(data)

    replace_durably(target, fill)


def _sync(path: Path) -> None:
    # an fsync that failed is never tried again: the kernel may have dropped the dirty pages
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
