"""A node process of the engines that tells a test its secrets: a nursery's target.

Every frame of the core in clear, every key that the transport draws and every secret of TLS is
written down beside the node's log. What a recording of the wire must not hold is exactly this.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scenarios import child

FRAMES, KEYS, TLS = "told-frames", "told-keys", "told-tls"
preload = child.preload


def main(argv: Sequence[str]) -> int:
    from node.runtime_links import TransportLinks
    from node.transport import secured

    folder = Path(argv[0]).parent
    frames = os.open(folder / FRAMES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    keys = os.open(folder / KEYS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    send, draw, make = TransportLinks.send, secrets.token_bytes, secured.make_context

    def told_send(self: TransportLinks, peer: Any, *parts: bytes | memoryview) -> None:
        whole = b"".join(parts)
        os.write(frames, len(whole).to_bytes(4, "big") + whole)
        send(self, peer, *parts)

    def told_draw(count: int | None = None) -> bytes:
        drawn = draw(count)
        if count == 32:  # keys of pipes and transfers; topics and dials have 16 bytes
            os.write(keys, drawn)
        return drawn

    def told_make(**options: Any) -> ssl.SSLContext:
        context = make(**options)
        context.keylog_filename = str(folder / TLS)
        return context

    TransportLinks.send = told_send  # type: ignore[method-assign]
    secrets.token_bytes = told_draw  # type: ignore[assignment]
    secured.make_context = told_make  # type: ignore[assignment]
    return child.main(argv)


def told_frames(folder: Path) -> Iterator[bytes]:
    data = (folder / FRAMES).read_bytes()
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        yield data[4:end]
        data = data[end:]


def told_keys(folder: Path) -> Iterator[bytes]:
    """Of pipes, of transfers, and the secrets from which TLS makes its keys."""
    drawn = (folder / KEYS).read_bytes()
    for start in range(0, len(drawn), 32):
        yield drawn[start : start + 32]
    for line in (folder / TLS).read_text().splitlines():
        if not line.startswith("#"):
            yield bytes.fromhex(line.split()[2])
