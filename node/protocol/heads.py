"""Signed headers: checked in order, remembered as each member's head, compared for contradiction.

Order of checks (cheap before dear, and nothing is believed before the signature): consortium and
training, epoch, roster, purpose (in the signature), replay, bounds. The payload comes after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from crypto.identity import NodeId
from crypto.purposes import HEADER
from node.errors import BadSignature, Foreign, OutOfBounds, Replayed
from node.protocol.context import Context
from node.protocol.reading import Head
from node.types.events import Equivocation
from node.types.events import Quarantine as QuarantineRecord
from node.types.messages import HEADS_MAX, Header, SignedHeader
from node.types.roster import Member

# Headers kept per member to meet a contradiction: 32 versions are at least 8 flooding periods
RECENT_MAX: Final = 32
# Verified headers kept by their bytes: 8 flooding periods of HEADS_MAX heads, some 200 KiB
VERIFIED_MAX: Final = 8 * HEADS_MAX


class HeadBook:
    """The newest verified head of every member, and what contradicts it."""

    def __init__(self, context: Context, floors: dict[NodeId, SignedHeader]) -> None:
        self._context = context
        self.newest: dict[NodeId, Head] = {}
        self.begun: dict[NodeId, None] = {}  # members that have signed a round's label
        self.quarantined: dict[NodeId, QuarantineRecord] = {}
        self.untold: list[QuarantineRecord] = []  # proofs to be passed on to the neighbours
        self._recent: dict[NodeId, tuple[Head, ...]] = {}  # oldest first, one of each place
        self._verified: dict[bytes, Head] = {}  # by signature, oldest first
        for member in sorted(floors):
            head = context.read.head(floors[member])
            self._check_contradiction(head)
            self._remember(head)

    def check(self, signed: SignedHeader) -> Head:
        """Verify a header of another member, whoever relayed it.

        Raises MalformedFrame, Foreign, BadSignature, Replayed or OutOfBounds. A contradiction
        with a known header quarantines the sender and raises Replayed.
        """
        known = self.known(signed)
        if known is None:
            return self.accept(self._context.read.head(signed))
        self._check_place(known.header)
        self._check_quarantine(NodeId(known.header.sender))
        self._check_boot(known)  # verified once, but perhaps before its sender's next boot
        return known

    def accept(self, head: Head) -> Head:
        """Verify a head that is not known yet, and remember it. Raises as ``check``."""
        signed, header = head.signed, head.header
        member = self._check_place(header)
        self._check_quarantine(member.id)
        if not self._context.verify(member.node_key, HEADER, signed.header, signed.signature):
            raise BadSignature("header signature does not verify")
        self._check_contradiction(head)
        self._check_boot(head)
        self._check_bounds(header, member)
        self._remember(head)
        return head

    def check_own(self, signed: SignedHeader, header: Header) -> None:
        """Raises unless this node's own key signed ``header`` for this training."""
        self._check_place(header, own=True)
        key = self._context.self_member.node_key
        if not self._context.verify(key, HEADER, signed.header, signed.signature):
            raise BadSignature("a header said to be this node's own does not verify")

    def round_of(self, member: NodeId) -> int:
        """The newest round label signed by ``member``; 0 if none is known."""
        head = self.newest.get(member)
        return head.header.round if head else 0

    def sample(self, most: int = HEADS_MAX) -> list[SignedHeader]:
        """Heads to pass on: all up to ``most``, above that a random sample of them."""
        members = list(self.newest)  # in the order in which they were first heard of
        if self.quarantined:
            members = [member for member in members if member not in self.quarantined]
        if len(members) > most:
            members = self._context.rng.sample(members, most)
        return [self.newest[member].signed for member in sorted(members)]

    def known(self, signed: SignedHeader) -> Head | None:
        """A head whose exact bytes were verified before: floods bring each one many times."""
        head = self._verified.get(signed.signature)
        return head if head is not None and head.signed.header == signed.header else None

    def unknown(self, heads: Iterable[SignedHeader]) -> Iterator[SignedHeader]:
        """Those that are not ``known``, each asked about when its turn comes."""
        verified = self._verified
        for signed in heads:
            head = verified.get(signed.signature)
            if head is None or head.signed.header != signed.header:
                yield signed

    def _check_place(self, header: Header, *, own: bool = False) -> Member:
        """The roster's entry of its sender."""
        context = self._context
        if header.consortium != context.roster.consortium:
            raise Foreign("header of another consortium")
        if header.training != context.pins.training:
            raise Foreign("header of another training")
        if header.epoch != context.roster.epoch:
            raise Foreign(f"header of epoch {header.epoch}, this is epoch {context.roster.epoch}")
        member = context.roster.members.get(NodeId(header.sender))
        if member is None:
            raise Foreign("header of somebody who is not a member")
        if (member.id == context.me) is not own:
            raise Foreign("header of the wrong sender")
        if header.key_version != member.key_version:
            raise Foreign(f"header under key version {header.key_version}")
        return member

    def _check_quarantine(self, sender: NodeId) -> None:
        if sender in self.quarantined:
            raise Foreign("its sender contradicted itself and is in quarantine")

    def _check_boot(self, head: Head) -> None:
        """A header of an older boot is refused once a newer one is known."""
        newest = self.newest.get(NodeId(head.header.sender))
        if newest is None:
            return
        if head.header.incarnation < newest.header.incarnation:
            raise Replayed(f"header of incarnation {head.header.incarnation}, a newer is known")
        same = head.header.incarnation == newest.header.incarnation
        if same and head.header.boot_id != newest.header.boot_id:
            raise Replayed("two boots under one incarnation")

    def _check_bounds(self, header: Header, sender: Member) -> None:
        last = self._context.policy.last_round
        if header.round > last or header.mixed_round > last:
            raise OutOfBounds(f"round {header.round}, the training ends at {last}")
        if len(header.counted) > len(sender.neighbours):
            raise OutOfBounds("it counts more edges than its node has")
        if header.base is not None and header.base >= header.version:
            raise OutOfBounds(f"version {header.version} on base {header.base}")

    def _check_contradiction(self, head: Head) -> None:
        sender = NodeId(head.header.sender)
        recent = self._recent.get(sender, ())
        for other in recent:
            if other.place != head.place:
                continue
            if other.header.model == head.header.model:
                return
            self.quarantine(QuarantineRecord(sender, other.signed, head.signed))
            raise Replayed("two different models under one version: proof of equivocation")
        # kept even if it turns out to be of an older boot: a contradiction stays one
        self._recent[sender] = (*recent[1 - RECENT_MAX :], head)

    def quarantine(self, record: QuarantineRecord) -> None:
        """Nothing more is taken from a member that signed a contradiction."""
        if record.member in self.quarantined:
            return
        self.quarantined[record.member] = record
        self.untold.append(record)
        self._context.note(Equivocation(record.member, record.one, record.other))
        self._context.persist(record)

    def restore_quarantine(self, records: dict[NodeId, QuarantineRecord]) -> None:
        self.quarantined.update(records)

    def _remember(self, head: Head) -> None:
        sender = NodeId(head.header.sender)
        newest = self.newest.get(sender)
        if newest is None or head.order > newest.order:
            self.newest[sender] = head
        if head.header.round:
            self.begun[sender] = None
        self._verified[head.signed.signature] = head
        if len(self._verified) > VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
