"""What a node process asked for and told, written down by it for the engine's checkers.

The same that the checkers see in simulation: every notice, every model judged, every mix, every
receipt, with the machine's clock. Beside the state: VECTORS, DEEDS and TRAFFIC of each node, and
PAYLOADS, which all of a run share.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from crypto.hashing import tree_digest
from crypto.identity import NodeId
from node.types import events as ev

if TYPE_CHECKING:
    from node.runtime_links import TransportLinks
    from node.runtime_parts import Parts

VECTORS: Final = "vectors.f32"
DEEDS: Final = "deeds.msgpack"
PAYLOADS: Final = "payloads"  # folder: what was judged, each under the digest of its bytes
TRAFFIC: Final = "traffic.jsonl"  # bytes by neighbour after each round, and at the end
# Vectors of every round are written down for the consensus distance, and payloads for the checkers:
# up to here they cost less than the checkpoint that is written anyway.
VECTOR_BYTES_MAX: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")


class _Deed(Struct, frozen=True, tag=True):
    clock: float  # time.monotonic()


class Booted(_Deed, frozen=True, tag=True):
    """A process began, on a disk with ``state``."""

    state: ev.CoreState


class Noted(_Deed, frozen=True, tag=True):
    note: ev.Notice


class Applying(_Deed, frozen=True, tag=True):
    """The core asked for a payload to be judged as a model."""

    effect: ev.Apply


class Judged(_Deed, frozen=True, tag=True):
    """It was. ``digest``: of the payload's bytes, under which they lie in PAYLOADS."""

    member: NodeId
    root: bytes
    digest: bytes
    ok: bool


class Mixing(_Deed, frozen=True, tag=True):
    effect: ev.Mix


class Rebasing(_Deed, frozen=True, tag=True):
    effect: ev.Rebase


class Recording(_Deed, frozen=True, tag=True):
    """The core asked for a receipt to be made durable."""

    record: ev.Receipt


Deed = Booted | Noted | Applying | Judged | Mixing | Rebasing | Recording


def bear_witness(parts: Parts, folder: Path) -> None:
    """From now on write down in ``folder`` what this node's core asks for and tells."""
    core: Any = parts.core
    learner: Any = parts.learner
    handle, apply, mix = core.handle, learner.apply, learner.mix
    small = learner.payload_bytes <= VECTOR_BYTES_MAX
    payloads = folder.parent / PAYLOADS
    payloads.mkdir(exist_ok=True)
    digests: dict[tuple[NodeId, bytes], bytes] = {}
    file = os.open(folder / DEEDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    encode = msgspec.msgpack.Encoder().encode

    def write(deed: Deed) -> None:
        data = encode(deed)
        os.write(file, _LENGTH.pack(len(data)) + data)

    def watched_handle(event: ev.Event, *, now: float) -> Any:
        clock = time.monotonic()
        if isinstance(event, ev.Applied) and small:
            digest = digests.pop((event.member, event.root))
            write(Judged(clock, event.member, event.root, digest, event.ok))
        effects = handle(event, now=now)
        for effect in effects:
            match effect:
                case ev.Note():
                    write(Noted(clock, effect.note))
                case ev.Apply() if small:
                    write(Applying(clock, effect))
                case ev.Mix() if small:  # without its payloads nobody knows what it may mix
                    write(Mixing(clock, effect))
                case ev.Rebase():
                    write(Rebasing(clock, effect))
                case ev.Persist(record=ev.Receipt() as receipt) if small:
                    write(Recording(clock, receipt))
        return effects

    def watched_apply(effect: ev.Apply, payload: Any, *more: Any) -> Any:
        if small:
            digest = tree_digest(payload)
            digests[effect.member, effect.root] = digest
            path = payloads / digest.hex()
            if not path.exists():
                draft = payloads / f"{os.getpid()}.draft"
                draft.write_bytes(payload)
                draft.rename(path)
        return apply(effect, payload, *more)

    def watched_mix(effect: ev.Mix) -> Any:
        mixed = mix(effect)
        if small:
            vector = learner.x.detach().cpu().numpy().astype("<f4").tobytes()
            with (folder / VECTORS).open("ab") as vectors:
                vectors.write(struct.pack("<II", effect.round, len(vector) // 4) + vector)
        return mixed

    write(Booted(time.monotonic(), core.snapshot()))
    core.handle, learner.apply, learner.mix = watched_handle, watched_apply, watched_mix


def read_deeds(folder: Path) -> Iterator[Deed]:
    """In the order in which they were done."""
    try:
        data = memoryview((folder / DEEDS).read_bytes())
    except OSError:
        return
    decode = msgspec.msgpack.Decoder(Deed).decode
    while len(data) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data)
        if len(data) < _LENGTH.size + length:
            return  # the process was killed as it wrote
        yield decode(data[_LENGTH.size : _LENGTH.size + length])
        data = data[_LENGTH.size + length :]


class Traffic:
    """Appends what went over each link since the process began: one object a round, and a last."""

    def __init__(self, links: TransportLinks, name: Callable[[NodeId], str], folder: Path) -> None:
        self._links, self._name, self._path = links, name, folder / TRAFFIC
        # tells this process from the ones before it; in containers all have the same pid
        self._began = time.monotonic()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "round":
            self.write()

    def write(self) -> None:
        found = {self._name(peer): list(both) for peer, both in self._links.bytes_by_peer().items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"began": self._began, "links": found}) + "\n")
