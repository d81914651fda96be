"""The error tree: each branch says who is at fault. Nothing else lives here."""

from __future__ import annotations


class GrapevineError(Exception):
    """Base of every error that this project raises on purpose.

    Its text is one line that a person can act on; the command prints it without a traceback.
    """

    exit_code = 5


class ConfigError(GrapevineError):
    """The operator's: a file or argument. Names file, key, what was found, what would be right."""

    exit_code = 2


class LocalProtocolError(GrapevineError):
    """Ours: an event that the phase table does not allow. A bug."""

    exit_code = 5


class RemoteProtocolError(GrapevineError):
    """A peer's. The receiver rejects, counts and goes on; these never end a node."""

    exit_code = 3
    reason = "protocol"


class MalformedFrame(RemoteProtocolError):
    reason = "malformed"


class BadSignature(RemoteProtocolError):
    reason = "signature"


class Replayed(RemoteProtocolError):
    reason = "replay"


class OutOfBounds(RemoteProtocolError):
    reason = "bounds"


class Foreign(RemoteProtocolError):
    """Validly made, but for another consortium, epoch, training or sender."""

    reason = "foreign"


class TransportError(GrapevineError):
    """The network's: retried with backoff."""

    exit_code = 3


class TooFewPeers(GrapevineError):
    """The neighbourhood's: a rule cannot bear what was asked of it with so few models."""

    exit_code = 2


class StorageError(GrapevineError):
    """The disk's: the node stops and says so; never retried as success."""

    exit_code = 4
