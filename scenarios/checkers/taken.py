"""Checks on what a node takes in: whose it is, what it is, and whether it is news."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from crypto.identity import NodeId
from crypto.purposes import HEADER
from node.types.events import Apply, CoreState, Publishing, Receipt, Received
from node.types.messages import Header
from node.types.roster import Pins, Policy, Roster
from scenarios.memory import FRAME_BYTES, Memory, Recent

if TYPE_CHECKING:
    from node.learning.learner import Learner
    from scenarios.checkers.watch import Checkers, Payload

Version = tuple[int, bytes, int]  # incarnation, boot_id, version
_ROUNDING: Final = 1.01  # norms summed in float32, as node.learning.anchor says
_HEARD_MIN: Final = 5  # versions of one boot of which a neighbour must have taken one


class Ball(Struct, frozen=True, eq=False):
    """Where models may be: around x₀ (P,), within ``reach``."""

    centre: NDArray[np.float32]
    reach: float


def ball(learner: Learner) -> Ball | None:
    """Where the models of ``learner``'s training may be; it stands at x₀. None: anywhere."""
    centre = learner.x.detach().cpu().numpy().astype(np.float32)
    bound = learner.settings.norm_bound
    reach = bound * (float(np.linalg.norm(centre.astype(np.float64))) + len(centre) ** 0.5)
    return Ball(centre, reach) if bound else None


class _Held(Struct, frozen=True):
    """A replica at some node, as seen from outside."""

    digest: bytes
    round: int


class Taken:
    """Per node and neighbour: what was published, received, held."""

    def __init__(
        self,
        checkers: Checkers,
        roster: Roster,
        policy: Policy,
        pins: Pins | None,
        *,
        memory: Memory,
        ball: Ball | None,
    ) -> None:
        self._all, self._found = checkers, checkers.findings
        self._roster, self._pins, self._memory, self._ball = roster, pins, memory, ball
        self._last_round = policy.last_round
        self._judged: Recent[bytes, tuple[bool, float]] = Recent(FRAME_BYTES)
        self._published: dict[NodeId, dict[Version, bytes]] = {m: {} for m in roster.members}
        self._newest: dict[NodeId, tuple[int, int]] = {}
        # newest incarnation, versions published under it with a link to an honest neighbour
        self._boots: dict[NodeId, tuple[int, int]] = {}
        self._heard: dict[NodeId, int] = {}  # newest incarnation that an honest neighbour took
        self.received: dict[tuple[NodeId, NodeId], tuple[int, int, bytes]] = {}
        self.held: dict[tuple[NodeId, NodeId], _Held] = {}  # (holder, owner)
        # the newest version that each node ever held of another: incarnation, version
        self.took: dict[tuple[NodeId, NodeId], tuple[int, int]] = {}
        self._done: dict[NodeId, int] = {}  # the last round mixed or jumped to
        self._phase: dict[NodeId, str] = {}

    def boot(self, node: NodeId, state: CoreState) -> None:
        for holder, owner in [key for key in self.held if key[0] == node]:
            del self.held[holder, owner]
        self._done[node], self._phase[node] = state.round, "starting"

    def restored(self, node: NodeId) -> None:
        self._newest.pop(node, None)
        self.received = {pair: last for pair, last in self.received.items() if pair[0] != node}

    def done(self, node: NodeId, round_: int) -> None:
        self._done[node] = round_

    def phase(self, node: NodeId, phase: str) -> None:
        self._phase[node] = phase

    # ── what a node publishes ──

    def publishing(self, node: NodeId, notice: Publishing, at: float) -> None:
        key = (notice.incarnation, notice.boot_id, notice.version)
        before = self._published[node].setdefault(key, notice.model)
        order = (notice.incarnation, notice.version)
        for finding, holds in (
            (self._found["unique"], before == notice.model),
            (self._found["grow"], order > self._newest.get(node, (0, 0))),
        ):
            if not finding.held(holds):
                name, (incarnation, version) = self._all.name(node), order
                finding.fail(f"{name} publishes version {version} of {incarnation}", at)
        self._newest[node] = max(order, self._newest.get(node, order))
        last, count = self._boots.get(node, (0, 0))
        count = count if last == notice.incarnation else 0
        # who comes back when the others have gone is heard by nobody, and through no fault
        self._boots[node] = notice.incarnation, count + self._all.in_company(node)

    # ── what a node is about to apply, and has applied ──

    def apply(self, node: NodeId, effect: Apply, payload: Payload, at: float) -> None:
        header, owner = effect.header, effect.member
        version = (header.incarnation, header.boot_id, header.version)
        model = self._published.get(owner, {}).get(version)
        if self._all.attacks(owner):
            model = header.model  # whatever it signed it has published
        genuine = self._found["genuine"]
        digest = self._memory.tree_digest(payload)
        if not genuine.held(model is not None and model == header.model == digest):
            genuine.fail(self._says(node, header, "what that node never published"), at)
        asked = self._found["asked"]
        near = owner in self._roster.members[node].neighbours
        if not asked.held(near or self._phase.get(node) == "catching-up"):
            asked.fail(self._says(node, header, "that it never asked for"), at)
        labels = self._found["labels"]
        if not labels.held(header.round <= self._last_round):
            labels.fail(self._says(node, header, f"of round {header.round}"), at)
        if self._pins is None:
            return
        shape, size = self._found["shape"], memoryview(payload).nbytes
        if not shape.held(size == self._pins.payload_bytes):
            shape.fail(self._says(node, header, f"{size} bytes"), at)
        self._place(node, header, self._pins, at)

    def _place(self, node: NodeId, header: Header, pins: Pins, at: float) -> None:
        """Is it of this consortium, this epoch, this training, under the key of the roster?"""
        foreign, member = self._found["foreign"], self._roster.members.get(NodeId(header.sender))
        here = (
            member is not None
            and header.key_version == member.key_version
            and header.epoch == self._roster.epoch
            and header.consortium == self._roster.consortium
            and header.training == pins.training
        )
        if not foreign.held(here):
            foreign.fail(self._says(node, header, "a header of somewhere else"), at)

    def applied(
        self, node: NodeId, effect: Apply, payload: Payload, at: float, *, ok: bool
    ) -> None:
        key = (node, effect.member)
        if not ok:
            self.held.pop(key, None)
            return
        header, before = effect.header, self.held.get(key)
        in_hand = self._done.get(node, 0) + 1
        finding = self._found["in-hand"]
        kept = before is None or before.round != in_hand or header.round <= in_hand
        kept = kept or self._all.left_out(node, effect.member, in_hand)
        if not finding.held(kept or self._phase.get(node) in ("catching-up", "final")):
            said = f"of round {header.round}, with that of round {in_hand} in hand"
            finding.fail(self._says(node, header, said), at)
        self.held[key] = _Held(effect.root, header.round)
        order = header.incarnation, header.version
        self.took[key] = max(order, self.took.get(key, order))
        self._values(node, header, payload, at)

    def _values(self, node: NodeId, header: Header, payload: Payload, at: float) -> None:
        """Finite, and within the norm bound: in float32 where that can tell."""
        whole, ball = bytes(payload), self._ball
        known = self._judged.young.get(whole) or self._judged.again(whole, len(whole))
        finite, square = known or self._judged.keep(whole, self._judge(whole), len(whole))
        finding = self._found["finite"]
        if not finding.held(finite):
            finding.fail(self._says(node, header, "values that are not finite"), at)
        if ball is None or not finite:
            return
        norm = math.sqrt(square) if math.isfinite(square) else math.inf
        if not self._found["bound"].held(norm <= _ROUNDING * ball.reach):
            said = f"a model {norm:.4g} from x₀, {ball.reach:.4g} may"
            self._found["bound"].fail(self._says(node, header, said), at)

    def _judge(self, payload: bytes) -> tuple[bool, float]:
        """Whether all is finite, and ‖x − x₀‖² where float32 can tell: of these bytes, for all."""
        values = np.frombuffer(payload[: len(payload) // 4 * 4], "<f4")
        ball, square = self._ball, math.nan
        if ball is None or len(ball.centre) != len(values):
            return bool(np.isfinite(values).all()), square
        with np.errstate(over="ignore", invalid="ignore"):
            away = values - ball.centre
            square = float(np.dot(away, away))
        return math.isfinite(square) or bool(np.isfinite(values).all()), square

    # ── what a node says that it took ──

    def receipt(self, node: NodeId, record: Receipt, at: float) -> None:
        signed, member = record.signed, self._roster.members[record.member]
        holds = self._memory.verify(member.node_key, HEADER, signed.header, signed.signature)
        if not self._found["signed"].held(holds):
            said = f"{self._all.name(node)} takes what {member.name} never signed"
            self._found["signed"].fail(said, at)

    def receiving(self, node: NodeId, notice: Received, at: float) -> None:
        order = (notice.incarnation, notice.version)
        *before, boot = self.received.get((node, notice.member), (0, 0, notice.boot_id))
        replayed, boots = self._found["replayed"], self._found["boots"]
        if not replayed.held(order >= tuple(before)):
            said = f"{self._all.name(notice.member)}'s {order} after {tuple(before)}"
            replayed.fail(f"{self._all.name(node)} applies {said}", at)
        if not boots.held(notice.incarnation != before[0] or notice.boot_id == boot):
            name = self._all.name(notice.member)
            boots.fail(f"{self._all.name(node)} applies a second boot of {name}", at)
        self.received[node, notice.member] = (*order, notice.boot_id)
        self._heard[notice.member] = max(notice.incarnation, self._heard.get(notice.member, 0))

    def end(self, at: float, finished: Iterable[NodeId]) -> None:
        for node in finished:
            incarnation, count = self._boots.get(node, (0, 0))
            if count < _HEARD_MIN:
                continue  # too early to tell, or nobody was there to hear it
            if not self._found["heard"].held(self._heard.get(node, 0) >= incarnation):
                said = f"{count} versions of {self._all.name(node)} and none was taken"
                self._found["heard"].fail(said, at)

    def _says(self, node: NodeId, header: Header, what: str) -> str:
        owner = self._all.name(NodeId(header.sender))
        return f"{self._all.name(node)} applies as {owner}'s version {header.version} {what}"
