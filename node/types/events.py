"""What goes into the core (events), what it asks for (effects), and what it tells (notes)."""

from __future__ import annotations

from msgspec import Struct

from crypto.identity import NodeId
from node.types.messages import Header, Score, SignedHeader

# ── events: what happened; each is given to ``Core.handle(event, now=…)`` ──────────────────────


class Start(Struct, frozen=True):
    """The process is up. ``wall_ms``: the wall clock now, ms since 1970."""

    wall_ms: int


class LinkUp(Struct, frozen=True):
    """An authenticated link to ``peer`` stands: both ends have welcomed each other."""

    peer: NodeId


class LinkDown(Struct, frozen=True):
    peer: NodeId
    why: str


class DialFailed(Struct, frozen=True):
    peer: NodeId
    why: str


class Frame(Struct, frozen=True):
    """One whole frame from a link; ``data`` may be a memoryview valid during the call only."""

    peer: NodeId
    data: bytes | memoryview


class Wake(Struct, frozen=True):
    """``next_wake()`` has come."""


class Trained(Struct, frozen=True):
    """Answers Train. ``loss``: mean over the local steps, None where there were none."""

    round: int
    loss: float | None
    steps: int


class Payload(Struct, frozen=True):
    """An encoded version: its digests, and its bytes where they fit into an Offer."""

    root: bytes  # BLAKE3 root over the leaf digests
    model: bytes  # digest of the resulting public model
    leaves: bytes  # 32 bytes per 64 KiB leaf
    length: int  # bytes
    codec: str
    keyframe: bool
    inline: bytes | None  # the payload itself where length <= INLINE_BYTES


class Encoded(Struct, frozen=True):
    """Answers Encode."""

    version: int
    payload: Payload


class Applied(Struct, frozen=True):
    """Answers Apply. ``ok`` False: the replica was dropped, ``why`` says what was wrong."""

    member: NodeId
    root: bytes
    ok: bool
    why: str = ""


class Mixed(Struct, frozen=True):
    """Answers Mix. ``kept_own`` says why the rule left the own model as it was, else ""."""

    round: int
    kept_own: str = ""


class Rebased(Struct, frozen=True):
    """Answers Rebase. ``start``: "median of 3", "x0" … for the journal."""

    round: int
    start: str


class Finalised(Struct, frozen=True):
    """Answers Finalise: the node's model is written. ``scores``: of the candidates, if any."""

    scores: tuple[Score, ...] = ()


class Persisted(Struct, frozen=True):
    """Everything in Persist ``id`` and before it is durable."""

    id: int


class Stop(Struct, frozen=True):
    """Stop: at once, or (``after_round``) when the round in hand is mixed."""

    after_round: bool = False


Event = (
    Start
    | LinkUp
    | LinkDown
    | DialFailed
    | Frame
    | Wake
    | Trained
    | Encoded
    | Applied
    | Mixed
    | Rebased
    | Finalised
    | Persisted
    | Stop
)

# ── records: what must outlive the process; carried by Persist ──────────────────────────────────


class Incarnation(Struct, frozen=True, tag=True):
    """Written before anything is said under it."""

    incarnation: int
    boot_id: bytes


class Reserved(Struct, frozen=True, tag=True):
    """A version's number is taken. Written before the version is offered."""

    incarnation: int
    boot_id: bytes
    version: int


class Receipt(Struct, frozen=True, tag=True):
    """A version was applied: the sender's replay floor, with the header that proves it."""

    member: NodeId
    signed: SignedHeader


class Quarantine(Struct, frozen=True, tag=True):
    """Two signed headers that contradict each other: proof against ``member``."""

    member: NodeId
    one: SignedHeader
    other: SignedHeader


class CoreState(Struct, frozen=True, kw_only=True):
    """What a core resumes from. ``round``: the last round whose mixing is done."""

    round: int = 0
    version: int = 0  # highest version ever published
    incarnation: int = 0  # highest ever used
    floors: dict[NodeId, SignedHeader] = {}  # newest applied header per member
    mixed_rounds: dict[NodeId, int] = {}  # highest round label already mixed, per member
    quarantined: dict[NodeId, Quarantine] = {}
    arrivals: tuple[float, ...] = ()  # the deadline's observations, s
    # rounds in which a neighbour was missing: (name-independent) id -> (count, first, last, why)
    missed: dict[NodeId, tuple[int, int, int, str]] = {}
    half_edges: int = 0
    late: int = 0
    jumped_at: int = 0  # the round of the last jump
    mixed_round: int = 0  # the last round mixed (a jump moves ``round`` alone)
    counted: tuple[NodeId, ...] = ()  # whose edge counted in it
    finished: bool = False


class Checkpoint(Struct, frozen=True, tag=True):
    """The round is mixed: the shell adds the learner's state and writes both as one."""

    state: CoreState


Record = Incarnation | Reserved | Receipt | Quarantine | Checkpoint

# ── effects: what the shell must do, in this order ──────────────────────────────────────────────


class Send(Struct, frozen=True):
    """Send ``frame``; withheld until Persisted(after) where ``after`` is given."""

    peer: NodeId
    frame: bytes
    after: int | None = None


class SendChunk(Struct, frozen=True):
    """Send chunk ``index`` of the kept payload ``root`` as a chunk frame."""

    peer: NodeId
    root: bytes
    index: int


class StoreChunk(Struct, frozen=True):
    """Keep verified bytes at ``offset`` of ``member``'s incoming payload ``root``.

    ``length``: of the whole payload, bytes. ``data`` is valid during the effect only; the shell
    copies it. Two members may publish equal payloads: spool by (member, root).
    """

    member: NodeId
    root: bytes
    offset: int
    length: int
    data: bytes | memoryview


class DropPayload(Struct, frozen=True):
    """An incoming payload of ``member``, whole or in part, is no longer wanted."""

    member: NodeId
    root: bytes


class Dial(Struct, frozen=True):
    peer: NodeId


class Hangup(Struct, frozen=True):
    peer: NodeId
    why: str


class Train(Struct, frozen=True):
    round: int


class Encode(Struct, frozen=True):
    """Publish: copy the own model to the public model, encode it. Older payloads are gone.

    ``again``: after a resume, encode the restored public model as it is.
    """

    round: int
    version: int
    keyframe: bool
    again: bool = False


class Apply(Struct, frozen=True):
    """Check the complete payload ``root`` as a model and make it ``member``'s replica."""

    member: NodeId
    root: bytes
    header: Header


class Source(Struct, frozen=True):
    """One replica in a mix: ``weight`` w_ij, already discounted by ``age`` rounds."""

    member: NodeId
    weight: float
    age: int


class Mix(Struct, frozen=True):
    """Mix the own public model with these replicas (sorted by NodeId); the rest is own weight."""

    round: int
    sources: tuple[Source, ...]
    training: bool  # False in final_mixing: momentum frozen, γ = 1
    omega: float = 1.0  # final mixing: x ← ω · mixed + (1 − ω) · the public model before this one


class Rebase(Struct, frozen=True):
    """Start again from the coordinate-wise median of these replicas; from x₀ where none given."""

    round: int
    members: tuple[NodeId, ...]


class Forget(Struct, frozen=True):
    """The replica of ``member`` is no longer needed (it was borrowed for a Rebase)."""

    member: NodeId


class Finalise(Struct, frozen=True):
    """The last round is mixed: recompute batch-norm statistics, evaluate, write the model."""

    round: int


class Choose(Struct, frozen=True):
    """keep = "agreed": the members chose the candidate of this round (0: the last model)."""

    round: int
    voters: int


class Persist(Struct, frozen=True):
    """Make ``record`` durable, in order; answer Persisted(id)."""

    id: int
    record: Record


class Note(Struct, frozen=True):
    """Something for log, journal, report and checkers."""

    note: Notice


class Exit(Struct, frozen=True):
    """The core is STOPPED: nothing follows. ``why`` is for people."""

    why: str
    finished: bool


# ── notices ─────────────────────────────────────────────────────────────────────────────────────


class Missing(Struct, frozen=True):
    member: NodeId
    why: str


class PhaseChanged(Struct, frozen=True, tag=True):
    phase: str
    round: int


class Waiting(Struct, frozen=True, tag=True):
    """Before the start: whom the node still lacks; the first of them where there are ``more``."""

    present: int
    needed: int
    lacking: tuple[NodeId, ...]
    more: bool = False


class Linked(Struct, frozen=True, tag=True):
    member: NodeId


class Unlinked(Struct, frozen=True, tag=True):
    member: NodeId
    why: str


class Publishing(Struct, frozen=True, tag=True):
    """A version leaves: what checkers compare across nodes."""

    incarnation: int
    boot_id: bytes
    version: int
    round: int
    model: bytes


class Received(Struct, frozen=True, tag=True):
    """A version of ``member`` was applied."""

    member: NodeId
    incarnation: int
    boot_id: bytes
    version: int
    round: int
    model: bytes


class RoundDone(Struct, frozen=True, tag=True):
    """mixed k of n, and who was missing, and why."""

    round: int
    mixed: tuple[Source, ...]
    missing: tuple[Missing, ...]
    own_weight: float
    loss: float | None
    waited_s: float
    half_edges: int
    late: int
    alone: bool
    kept_own: str


class Jumped(Struct, frozen=True, tag=True):
    """Fell behind: rounds (from, to] were skipped. ``start``: which model it goes on from."""

    from_round: int
    to_round: int
    start: str


class Rejected(Struct, frozen=True, tag=True):
    """Bad input from ``peer``: refused and counted under ``reason``."""

    peer: NodeId
    reason: str
    detail: str


class Equivocation(Struct, frozen=True, tag=True):
    member: NodeId
    one: SignedHeader
    other: SignedHeader


class Reincarnated(Struct, frozen=True, tag=True):
    incarnation: int
    why: str


Notice = (
    PhaseChanged
    | Waiting
    | Linked
    | Unlinked
    | Publishing
    | Received
    | RoundDone
    | Jumped
    | Rejected
    | Equivocation
    | Reincarnated
)

Effect = (
    Send
    | SendChunk
    | StoreChunk
    | DropPayload
    | Dial
    | Hangup
    | Train
    | Encode
    | Apply
    | Mix
    | Rebase
    | Forget
    | Finalise
    | Choose
    | Persist
    | Note
    | Exit
)
