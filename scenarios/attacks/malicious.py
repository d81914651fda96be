"""A real node that attacks: an Attacker of scenarios.attacks between a node and its links.

What the node publishes goes through the attacker, and so does every frame on its way out and in.
Only the engines start such a node; the release image has no scenarios package.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crypto.identity import NodeId
from node.runtime_links import Links, Owner
from scenarios.attacks.attacker import Attacker, Insider, attacker

if TYPE_CHECKING:
    from node.runtime_parts import Parts
    from node.types.events import Encode, Encoded
    from scenarios.weather import Weather


class MaliciousLinks:
    """Links like those it wraps, for a node that attacks while the weather says so.

    Without an attack every frame passes as it is.
    """

    def __init__(self, inner: Links, parts: Parts, weather: Weather) -> None:
        self._inner, self._parts, self._weather = inner, parts, weather
        self._attacker: Attacker | None = None
        self._number = 0  # of the attack that is carried out
        self._owner: Owner
        learner: Any = parts.learner
        encode = learner.encode

        def publish(effect: Encode) -> Encoded:
            attack = self._attacker
            if attack is None:
                encoded: Encoded = encode(effect)
                return encoded
            learner.encode = encode  # for the attacker, who asks the learner itself
            try:
                return attack.encode(learner, effect)
            finally:
                learner.encode = publish

        learner.encode = publish

    def look(self) -> None:
        """Begin or end an attack. Raises ConfigError for a file that cannot be loaded."""
        told, number = self._weather.attack, self._weather.attacks
        if number == self._number:
            return
        self._number = number
        if told is None:
            self._attacker = None
        else:
            self._attacker = attacker(told.what, self._insider(told.seed), told.scale)

    def _insider(self, seed: int) -> Insider:
        parts = self._parts
        consortium, learner = parts.consortium, parts.learner
        return Insider(
            me=parts.me.id,
            sign=parts.node_key.sign,
            roster=consortium.roster,
            pins=consortium.pins_for(
                schema=learner.schema_digest,
                initial=learner.initial_digest,
                code=learner.code_digest,
                payload_bytes=learner.payload_bytes,
            ),
            last_round=consortium.policy.last_round,
            rng=random.Random(seed),
            chunk=learner.chunk,
        )

    # ── from the node ───────────────────────────────────────────────────────────────────────

    async def start(self, owner: Owner) -> None:
        self._owner = owner
        await self._inner.start(self)

    async def close(self) -> None:
        await self._inner.close()

    @property
    def sent_bytes(self) -> int:
        return self._inner.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._inner.received_bytes

    @property
    def refused(self) -> Mapping[str, int]:
        return self._inner.refused

    @property
    def broken_off(self) -> Mapping[str, int]:
        return self._inner.broken_off

    def via(self, peer: NodeId) -> str:
        return self._inner.via(peer)

    def dial(self, peer: NodeId) -> None:
        self._inner.dial(peer)

    def hangup(self, peer: NodeId, why: str) -> None:
        self._inner.hangup(peer, why)

    def send(self, peer: NodeId, *parts: bytes | memoryview) -> None:
        if self._attacker is None:
            self._inner.send(peer, *parts)
            return
        prefix = [b""] * (len(parts) - 1)  # what came in two parts is a chunk: it is told drained
        for frame in self._attacker.send(peer, b"".join(parts)):
            self._inner.send(peer, *prefix, frame)

    def queued_bytes(self, peer: NodeId) -> int:
        return self._inner.queued_bytes(peer)

    # ── from the links ──────────────────────────────────────────────────────────────────────

    def on_up(self, peer: NodeId) -> None:
        self._owner.on_up(peer)

    def on_down(self, peer: NodeId, why: str) -> None:
        self._owner.on_down(peer, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self._owner.on_dial_failed(peer, why)

    def on_frame(self, peer: NodeId, frame: memoryview) -> None:
        if self._attacker is None:
            self._owner.on_frame(peer, frame)
            return
        taken, answers = self._attacker.receive(peer, bytes(frame))
        for answer in answers:
            self._inner.send(peer, answer)
        if taken is not None:
            self._owner.on_frame(peer, memoryview(taken))

    def on_drained(self, peer: NodeId) -> None:
        self._owner.on_drained(peer)

    def on_broker(self, up: bool, why: str) -> None:
        self._owner.on_broker(up, why)
