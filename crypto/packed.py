"""MessagePack in files: decoded into one declared type, every kind of damage one ConfigError."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from node.errors import ConfigError

T = TypeVar("T")


def decode(data: bytes, into: type[T], *, source: str, what: str) -> T:
    """``data`` as ``into``. Raises ConfigError naming ``source`` and ``what`` it should be."""
    try:
        return msgspec.msgpack.decode(data, type=into)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # ValueError: msgspec passes on Python's own for bytes in a key that are not UTF-8
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(f"{source}: not {what}: {reason}") from None
