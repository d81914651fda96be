"""Presence: what a member says of itself at the broker, signed, retained, and soon out of date.

A broker can keep it back or show an old one; it cannot make one. So presence shortens or lengthens
how long a dial is worth, and tells where else a member can be reached, and nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from crypto.card import ADDRESSES_MAX, check_address
from crypto.identity import NodeId, verify
from crypto.purposes import PRESENCE
from node.errors import BadSignature, ConfigError, Foreign, MalformedFrame, Replayed
from node.types.messages import U32, U53, Digest, Id, KiB, Signature

EXPIRES_S: Final = 90.0
AGAIN_S: Final = 30.0  # published again; two may get lost
SKEW_MS: Final = 60_000  # that two members' clocks may differ
LONGEST_MS: Final = 600_000  # no presence is valid for longer, whatever it says

Address = Annotated[str, Meta(max_length=300)]


class Presence(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is signed. ``sequence`` grows with every one; times are wall clocks, ms since 1970."""

    consortium: Digest
    epoch: U32
    member: Id
    sequence: U53
    until: U53
    addresses: Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]


class SignedPresence(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    presence: Annotated[bytes, Meta(max_length=4 * KiB)]
    signature: Signature


class Expired(Replayed):
    reason = "expired"


_signed = msgspec.msgpack.Decoder(SignedPresence)
_presence = msgspec.msgpack.Decoder(Presence)


class Presences:
    """This node's own presence, and what is known of the others'. ``now_ms``: the wall clock."""

    def __init__(
        self,
        me: NodeId,
        *,
        consortium: bytes,
        epoch: int,
        keys: Mapping[NodeId, bytes],
        sign: Callable[[str, bytes], bytes],
        addresses: tuple[str, ...],
    ) -> None:
        self._me, self._consortium, self._epoch = me, consortium, epoch
        self._keys, self._sign, self._addresses = keys, sign, addresses
        self._sequence = 0
        self._newest: dict[NodeId, Presence] = {}

    def own(self, now_ms: int) -> bytes:
        """The message to be retained now."""
        self._sequence = max(now_ms, self._sequence + 1)
        until = now_ms + int(EXPIRES_S * 1000)
        body = msgspec.msgpack.encode(
            Presence(
                self._consortium, self._epoch, self._me, self._sequence, until, self._addresses
            )
        )
        return msgspec.msgpack.encode(SignedPresence(body, self._sign(PRESENCE, body)))

    def take(self, member: NodeId, message: bytes, now_ms: int) -> Presence:
        """What ``member``'s topic says. Raises RemoteProtocolError unless its own and fresh."""
        try:
            signed = _signed.decode(message)
            said = _presence.decode(signed.presence)
            for address in said.addresses:
                check_address(address)
        except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
            raise MalformedFrame(str(error)) from None
        if (said.consortium, said.epoch, NodeId(said.member)) != (
            self._consortium,
            self._epoch,
            member,
        ):
            raise Foreign("somebody else's presence")
        if not verify(self._keys[member], PRESENCE, signed.presence, signed.signature):
            raise BadSignature("a presence that its member did not sign")
        if not now_ms - SKEW_MS <= said.until <= now_ms + LONGEST_MS:
            raise Expired("a presence that is out of date, or dated ahead")
        known = self._newest.get(member)
        if known is not None and said.sequence < known.sequence:
            raise Replayed("an older presence than the one known")
        self._newest[member] = said
        return said

    def gone(self, member: NodeId) -> None:
        """Its topic was cleared: it left, or somebody wants us to think so."""
        known = self._newest.get(member)
        if known is not None:
            self._newest[member] = msgspec.structs.replace(known, until=0)

    def here(self, member: NodeId, now_ms: int) -> bool:
        known = self._newest.get(member)
        return known is not None and known.until + SKEW_MS >= now_ms

    def addresses(self, member: NodeId, now_ms: int) -> tuple[str, ...]:
        """Where else it says that it can be reached now."""
        known = self._newest.get(member)
        return known.addresses if known is not None and self.here(member, now_ms) else ()
