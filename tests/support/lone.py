"""One core among members that a test speaks for: it signs, offers and lies in their names."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from cores import make_roster, policy

from crypto.hashing import leaf_digests, root
from crypto.identity import verify
from crypto.purposes import HEADER
from node.protocol.core import Core
from node.protocol.frames import chunk_prefix, decode, encode, encode_header
from node.types import events as ev
from node.types.messages import (
    CHUNK_BYTES,
    INLINE_BYTES,
    KEYFRAME,
    PRESENCE,
    Chunk,
    Have,
    Header,
    Heads,
    Hello,
    Message,
    Offer,
    SignedHeader,
)
from node.types.roster import Pins, Policy

T = TypeVar("T")
BOOT = b"B" * 16
WALL_MS = 1_000_000
POLICY = policy(20, 2, wait="all")


def model(number: float, size: int) -> bytes:
    return random.Random(number).randbytes(size)


class Lone:
    """Member 0's core. Effects are answered at once, except those whose type is in ``hold``."""

    def __init__(
        self,
        *,
        edges: Iterable[tuple[int, int]] = ((0, 1), (0, 2), (0, 3), (1, 2)),
        count: int = 5,
        policy: Policy = POLICY,
        payload_bytes: int = 8,
        state: ev.CoreState | None = None,
        hold: Iterable[type] = (ev.Train,),
        wall_ms: int = WALL_MS,
        now: float = 0.0,
    ) -> None:
        self.roster, self.ids, self.secrets = make_roster(edges, count)
        self.pins = Pins(
            training=b"t" * 32,
            schema=b"s" * 32,
            initial=b"i" * 32,
            code=b"k" * 32,
            payload_bytes=payload_bytes,
        )
        self.hold, self.now = set(hold), now
        self.effects: list[ev.Effect] = []
        rng = random.Random(7)
        self.core = Core(
            me=self.ids[0],
            roster=self.roster,
            pins=self.pins,
            policy=policy,
            state=state or ev.CoreState(),
            sign=self.secrets[self.ids[0]].sign,
            verify=verify,
            entropy=rng.randbytes,
            rng=rng,
        )
        self.feed(ev.Start(wall_ms))

    # ── events in, effects out ──

    def feed(self, event: ev.Event) -> list[ev.Effect]:
        """Hand one event in, and what the shell answers to it; all effects that came of it."""
        before, todo = len(self.effects), [event]
        while todo:
            effects = self.core.handle(todo.pop(0), now=self.now)
            self.effects += effects
            todo += [a for e in effects if type(e) not in self.hold and (a := self.answer(e))]
        return self.effects[before:]

    def answer(self, effect: ev.Effect) -> ev.Event | None:
        match effect:
            case ev.Persist(id=id_):
                return ev.Persisted(id_)
            case ev.Train(round=round_):
                return ev.Trained(round_, 0.5, 1)
            case ev.Encode(version=version):
                return ev.Encoded(version, self.payload(model(-version, self.pins.payload_bytes)))
            case ev.Apply(member=member, root=root_):
                return ev.Applied(member, root_, True)
            case ev.Mix(round=round_):
                return ev.Mixed(round_)
            case ev.Rebase(round=round_):
                return ev.Rebased(round_, "test")
            case ev.Finalise():
                return ev.Finalised(())
        return None

    def wake(self, at: float) -> list[ev.Effect]:
        self.now = at
        return self.feed(ev.Wake())

    def all(self, kind: type[T], effects: Iterable[ev.Effect] | None = None) -> list[T]:
        """Effects, notices or records of one kind, in order."""
        found: list[Any] = []
        for effect in self.effects if effects is None else effects:
            inner = getattr(effect, "note", getattr(effect, "record", None))
            found += [x for x in (effect, inner) if isinstance(x, kind)]
        return found

    def sent(self, kind: type[T], to: int | None = None) -> list[T]:
        """Messages sent to one neighbour, or to all."""
        sends = [e for e in self.effects if isinstance(e, ev.Send)]
        frames = [decode(e.frame) for e in sends if to is None or e.peer == self.ids[to]]
        return [m for m in frames if isinstance(m, kind)]

    @property
    def rejections(self) -> dict[str, int]:
        return dict(self.core.context.rejections)

    # ── speaking for the others ──

    def frame(self, i: int, message: Message | bytes) -> list[ev.Effect]:
        data = message if isinstance(message, bytes) else encode(message)
        return self.feed(ev.Frame(self.ids[i], data))

    def hello(self, i: int, **changes: Any) -> Hello:
        pins = self.pins
        hello = Hello(
            self.roster.consortium,
            self.roster.epoch,
            pins.training,
            pins.schema,
            pins.initial,
            pins.code,
            WALL_MS,
            BOOT,
            0,
            None,
        )
        return msgspec.structs.replace(hello, **changes)

    def link(self, *members: int, round_: int = 0) -> None:
        """Links stand, and each neighbour has said where it is: unsigned, then signed."""
        for i in members:
            self.feed(ev.LinkUp(self.ids[i]))
            self.frame(i, self.hello(i, round=round_))
            self.frame(i, Heads((self.presence(i, round_),)))

    def payload(self, data: bytes) -> ev.Payload:
        leaves = leaf_digests(data)
        digest = root(leaves, len(data))
        inline = data if len(data) <= INLINE_BYTES else None
        return ev.Payload(digest, digest, leaves, len(data), "full", True, inline)

    def header(self, i: int, version: int, data: bytes | None = None, **changes: Any) -> Header:
        size = self.pins.payload_bytes
        payload = self.payload(model(version, size) if data is None else data)
        header = Header(
            consortium=self.roster.consortium,
            epoch=self.roster.epoch,
            training=self.pins.training,
            sender=self.ids[i],
            key_version=0,
            incarnation=WALL_MS,
            boot_id=BOOT,
            round=max(version, 1),
            kind=KEYFRAME,
            version=version,
            base=None,
            codec="full",
            length=payload.length,
            root=payload.root,
            model=payload.model,
            mixed_round=0,
            counted=(),
        )
        return msgspec.structs.replace(header, **changes)

    def presence(self, i: int, round_: int, version: int = 0, **changes: Any) -> SignedHeader:
        empty = {"codec": "", "length": 0, "root": bytes(32), "kind": PRESENCE, "round": round_}
        return self.sign(i, self.header(i, version, **{**empty, **changes}))

    def sign(self, i: int, header: Header, purpose: str = HEADER) -> SignedHeader:
        raw = encode_header(header)
        return SignedHeader(raw, self.secrets[self.ids[i]].sign(purpose, raw))

    def offer(self, i: int, version: int, data: bytes | None = None, **changes: Any) -> Offer:
        data = model(version, self.pins.payload_bytes) if data is None else data
        payload = self.payload(data)
        signed = self.sign(i, self.header(i, version, data, **changes))
        return Offer(signed, payload.leaves, payload.inline)

    def chunk(self, i: int, version: int, index: int) -> list[ev.Effect]:
        """Member i sends chunk ``index`` of its version."""
        data = model(version, self.pins.payload_bytes)
        piece = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        return self.frame(i, chunk_prefix(self.payload(data).root, index) + piece)

    def have(self, i: int, version: int, ok: bool = True, why: str = "") -> list[ev.Effect]:
        publisher = self.core.publisher
        return self.frame(i, Have(publisher.incarnation, publisher.boot_id, version, ok, why))


__all__ = ["BOOT", "WALL_MS", "Chunk", "Lone", "model"]
