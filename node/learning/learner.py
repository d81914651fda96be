"""One node's learning: carries out the core's Train, Encode, Apply, Mix, Rebase and Finalise.

The only owner of the node's tensors. No clock, no thread, no network: every method runs to its
end in the caller's thread, and one Learner is used by one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor

from crypto.hashing import tree_digest
from crypto.identity import NodeId
from node.errors import (
    ConfigError,
    LocalProtocolError,
    MalformedFrame,
    OutOfBounds,
    RemoteProtocolError,
    StorageError,
    TooFewPeers,
)
from node.learning import optimizers, rules
from node.learning.anchor import Anchor
from node.learning.codecs import CODECS, finite
from node.learning.inference import Inference
from node.learning.metrics import Interval, Metrics
from node.learning.sampling import batches
from node.learning.task import Task, take
from node.learning.vector import (
    FlatModel,
    as_bytes,
    code_digest,
    from_buffer,
    initial_digest,
    schema_digest,
    squares,
)
from node.types.events import (
    Applied,
    Apply,
    Choose,
    Encode,
    Encoded,
    Finalise,
    Finalised,
    Mix,
    Mixed,
    Rebase,
    Rebased,
    Trained,
)
from node.types.messages import Score
from node.types.settings import LearningSettings

Store = Callable[[int, memoryview], None]
Fetch = Callable[[int], "bytes | memoryview | None"]
Read = Callable[[memoryview], Tensor]


class Replica(Struct, frozen=True, eq=False):
    """A neighbour's public model (P,) as last applied; ``root``: of the payload it came in."""

    vector: Tensor
    root: bytes
    round: int
    version: int


class Learner:
    """The model of node ``me``, its public copy, its neighbours' replicas and its optimiser.

    ``seed``: this node's own, for its batches. ``norm_bound``: ‖x̂ − x₀‖ may be at most this many
    times (‖x₀‖ + √P), 0 switches it off; None: the settings'. ``store`` and ``fetch`` keep
    candidate models for keep = "agreed" (memory unless given). ``spool``: a directory for what a
    large model needs seldom. Raises ConfigError for a task, optimiser or policy that cannot be.
    """

    def __init__(
        self,
        task: Task,
        settings: LearningSettings,
        *,
        me: NodeId,
        seed: int,
        norm_bound: float | None = None,
        store: Store | None = None,
        fetch: Fetch | None = None,
        spool: Path | None = None,
    ) -> None:
        self.task, self.settings, self.me, self.seed = task, settings, me, seed
        self.schema_digest = schema_digest(task)
        self.initial_digest = initial_digest(task)
        self.code_digest = code_digest(task)
        self.vector = FlatModel(task)
        self.inference = Inference(task)
        self.optimizer = optimizers.build(task, settings, self.vector)
        self.codec = CODECS[settings.codec]
        self.public = self.vector.shared.detach().cpu().clone()
        self.replicas: dict[NodeId, Replica] = {}
        self._anchor = Anchor(self.public, spool)
        bound = settings.norm_bound if norm_bound is None else norm_bound
        self._reach = bound * (self._anchor.norm + self.vector.size**0.5)
        self._public_root: bytes | None = None  # None: nothing was published yet
        self._same = True  # x equals the public model: nothing happened to x since Encode
        self._best: tuple[int, float, Tensor] | None = None
        self._earlier: Tensor | None = None  # final mixing: the public model before this one
        self.candidates: list[int] = []
        kept: dict[int, bytes] = {}
        self._store: Store = store or (lambda round_, data: kept.update({round_: bytes(data)}))
        self._fetch: Fetch = fetch or kept.get
        if settings.keep != "last" and not self.inference.has(task.validation):
            raise ConfigError(
                f"learning.keep: '{settings.keep}' needs validation rows, and there are none here; "
                "raise [task] validation"
            )

    @property
    def x(self) -> Tensor:
        """The own model's shared part (P,), a live view."""
        return self.vector.shared

    @property
    def payload_bytes(self) -> int:
        """The exact length of a full payload."""
        return 4 * self.vector.size

    @property
    def samples(self) -> int:
        """This member's n in the sample-weighted average."""
        return self.task.weight

    # ── local training ──────────────────────────────────────────────────────────────────────

    def plan(self, round_: int) -> tuple[Tensor, ...]:
        """The row numbers of every local step of a round."""
        return batches(self.task.rows, self.settings, seed=self.seed, round_=round_)

    def train(self, round_: int) -> Trained:
        """Local steps of ``round_`` on own rows; the batches depend on (seed, round) alone."""
        plan = self.plan(round_)
        self._same = False
        self.optimizer.begin()
        if not plan:
            return Trained(round=round_, loss=None, steps=0)
        assert self.task.train is not None
        total = torch.zeros((), device=self.x.device)
        with self.inference.training(self.seed, round_):
            for indices in plan:
                x, y = take(self.task.train, indices, self.x.device)
                loss = self.task.loss(self.vector.model(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += loss.detach()
        return Trained(round=round_, loss=float(total) / len(plan), steps=len(plan))

    def trained_outside(self) -> None:
        """A batched computation has changed x in this node's place."""
        self._same = False

    # ── what leaves and what comes in ───────────────────────────────────────────────────────

    def encode(self, effect: Encode) -> Encoded:
        """Publish: public ← x, and its payload. Raises ConfigError where x is not finite.

        ``effect.again``: the public model as a resume found it, not x.

        The public model's memory is reused: views that ``chunk`` gave out of an older version
        show the new one from now on, and fail their digest.
        """
        source = None if effect.again else self.x.detach()
        try:
            payload = self.codec.encode(self.public, keyframe=effect.keyframe, source=source)
        except OverflowError:
            raise ConfigError(
                f"round {effect.round}: the own model holds values that are not finite; lower "
                "learning.learning_rate, or see whether a neighbour sends excessive models"
            ) from None
        self._same = self._same or not effect.again
        self._public_root = payload.root
        return Encoded(version=effect.version, payload=payload)

    def chunk(self, root: bytes, offset: int, length: int) -> memoryview | None:
        """Bytes [offset, offset + length) of the payload ``root``, not copied; None if not held.

        It may be the own public model's or a replica's: a neighbour's keyframe can be relayed.
        """
        if root == self._public_root:
            return as_bytes(self.public)[offset : offset + length]
        for replica in self.replicas.values():
            if replica.root == root:
                return as_bytes(replica.vector)[offset : offset + length]
        return None

    def apply(
        self, effect: Apply, payload: bytes | memoryview, read: Read | None = None
    ) -> Applied:
        """Check ``payload`` as ``effect.member``'s model; its replica from now on, or none at all.

        The payload's bytes are what ``effect.root`` stands for (the receiver has verified them);
        they are kept by reference, not copied. ``read``: like the method of that name, for a shell
        that knows the answer already.
        """
        header = effect.header
        try:
            self._check_header(effect)
            vector = (read or self.read)(memoryview(payload).cast("B"))
        except RemoteProtocolError as error:
            self.replicas.pop(effect.member, None)
            return Applied(member=effect.member, root=effect.root, ok=False, why=str(error)[:200])
        self.replicas[effect.member] = Replica(vector, effect.root, header.round, header.version)
        return Applied(member=effect.member, root=effect.root, ok=True)

    def _check_header(self, effect: Apply) -> None:
        header = effect.header
        if header.codec != self.codec.name:
            raise OutOfBounds(f"codec '{header.codec}' is not the training's '{self.codec.name}'")
        # the full codec's payload is the model: a header naming two digests contradicts itself
        if header.model != header.root or header.root != effect.root:
            raise OutOfBounds("the payload's digest is not the model's that the header names")

    def read(self, payload: memoryview, rough: float | None = None) -> Tensor:
        """The model (P,) over ``payload``'s own memory, if it may become a replica.

        ``rough``: its ``squares``, where somebody summed them while it came in; mostly the values
        need not be looked at again then.
        Depends on the payload's bytes, the initial model and the settings alone. Raises
        RemoteProtocolError for a wrong length, values not finite, or a model out of bounds.
        """
        vector = self.codec.decode(payload, size=self.vector.size, base=None)
        rough = squares(vector) if rough is None else rough
        if not (math.isfinite(rough) or finite(vector)):
            raise MalformedFrame("payload holds values that are not finite numbers")
        if self._reach and not self._anchor.within(vector, self._reach, rough):
            away = self._anchor.distance(vector)
            raise OutOfBounds(f"norm bound: distance {away:.4g} from x₀, {self._reach:.4g} may")
        return vector

    # ── mixing ──────────────────────────────────────────────────────────────────────────────

    def mix(self, effect: Mix, mixed: Tensor | None = None) -> Mixed:
        """Mix: x ← x + γ (rule(x̂; replicas) − x̂), γ = 1 where the round does not train.

        There the result is over-relaxed by ``effect.omega`` from the second such round on.
        ``mixed`` (P,), used up: what the rule gives, where a batch has worked it out already.

        With too few models for the rule the own model stays, and ``kept_own`` says why. Raises
        LocalProtocolError for a source without a replica, or weights that sum to more than 1.
        """
        kept_own = ""
        gamma = self.settings.gamma if effect.training else 1.0
        try:
            self._apply_rule(effect, gamma, mixed)
        except TooFewPeers as error:
            kept_own = str(error)
        self._relax(effect, kept=bool(kept_own))
        self.optimizer.mixed(training=effect.training)
        if self.settings.keep == "best":
            self._keep_best(effect.round)
        return Mixed(round=effect.round, kept_own=kept_own)

    def sources(self, effect: Mix) -> list[Tensor]:
        """The replicas (P,) that ``effect`` mixes. Raises LocalProtocolError if one is not here."""
        return [self._replica(source.member) for source in effect.sources]

    def _apply_rule(self, effect: Mix, gamma: float, mixed: Tensor | None) -> None:
        # Right after Encode x equals x̂, and with γ = 1 the result is the rule's own: written in
        # place, without the rounding of x + (r − x̂).
        whole = self._same and gamma == 1.0
        x = self.x.detach()
        out = x if whole and x.device.type == "cpu" else None
        if mixed is None:
            weights = [source.weight for source in effect.sources]
            rule, f = self.settings.rule, self.settings.f
            mixed = rules.mix(rule, self.public, self.sources(effect), weights, f=f, out=out)
        self._same = False
        if not whole:
            x.add_(mixed.sub_(self.public).to(x.device), alpha=gamma)
        elif mixed is not x:
            x.copy_(mixed)

    def _relax(self, effect: Mix, *, kept: bool) -> None:
        """Second-order gossip: x ← ω x + (1 − ω) x̂(k−1); x̂ becomes the earlier one."""
        if effect.training or effect.omega == 1.0:
            self._earlier = None
            return
        if self._earlier is None:
            self._earlier = self.public.clone()
            return
        if not kept:
            x = self.x.detach()
            x.mul_(effect.omega).add_(self._earlier.to(x.device), alpha=1.0 - effect.omega)
        self._earlier.copy_(self.public)

    def _replica(self, member: NodeId) -> Tensor:
        replica = self.replicas.get(member)
        if replica is None:
            raise LocalProtocolError(f"no replica of {bytes(member[:4]).hex()} to mix with")
        return replica.vector

    def rebase(self, effect: Rebase) -> Rebased:
        """Start again: x ← the median of the named replicas (x₀ where none), optimiser reset."""
        vectors = [self._replica(member) for member in effect.members]
        with torch.no_grad():
            if vectors:
                self.x.copy_(rules.median(vectors))
            else:
                self._anchor.copy_to(self.x)
        self._same, self._earlier = False, None
        self.optimizer.reset()
        start = f"median of {len(vectors)}" if vectors else "x0"
        return Rebased(round=effect.round, start=start)

    # ── the end of a training ───────────────────────────────────────────────────────────────

    def finalise(self, effect: Finalise) -> Finalised:
        """The node's model is now final: the best one where kept, batch-norm statistics redone.

        With keep = "agreed": the scores of all candidates and, as round 0, of the last model.
        """
        if self.settings.keep == "best" and self._best is not None:
            self.vector.flat.detach().copy_(self._best[2])
        found: list[Score] = []
        if self.settings.keep == "agreed":
            last = self.x.detach().clone()
            for round_ in (*self.candidates, 0):
                if round_ == 0:
                    self.x.detach().copy_(last)
                elif not self._load_candidate(round_):
                    continue
                self.inference.refresh_statistics()
                value = self.inference.validate()
                if value is not None and math.isfinite(value):
                    rows = self.inference.count(self.task.validation)
                    found.append(Score(round=round_, value=value, rows=rows))
        self.inference.refresh_statistics()
        return Finalised(scores=tuple(found))

    def keep_candidate(self, round_: int) -> None:
        """Hand the present model to the store as the candidate of ``round_``."""
        self._store(round_, as_bytes(self.x.detach().cpu()))
        if round_ not in self.candidates:
            self.candidates.append(round_)

    def choose(self, effect: Choose) -> bool:
        """Take the candidate that the members chose (0: the last model). False: not held here."""
        if effect.round == 0:
            return True
        if not self._load_candidate(effect.round):
            return False
        self.inference.refresh_statistics()
        return True

    def _load_candidate(self, round_: int) -> bool:
        data = self._fetch(round_)
        if data is None:
            return False
        vector = from_buffer(data) if memoryview(data).nbytes == self.payload_bytes else None
        if vector is None or not finite(vector):
            raise StorageError(f"the candidate of round {round_} is damaged")
        self.x.detach().copy_(vector)
        self._same = False
        return True

    def _keep_best(self, round_: int) -> None:
        value = self.inference.validate(fallback=True)
        if value is not None and (self._best is None or value > self._best[1]):
            self._best = (round_, value, self.vector.flat.detach().clone())

    # ── figures, checkpoints, export ────────────────────────────────────────────────────────

    def evaluate(self) -> Metrics:
        """The present model on the common test rows and on the member's own held-out rows."""
        return self.inference.evaluate()

    def interval(self, figure: str) -> Interval | None:
        """95 % of "accuracy", "auroc", "own_accuracy" or "own_auroc"; None where undefined."""
        return self.inference.interval(figure)

    def model_state_dict(self) -> dict[str, Tensor]:
        """The whole model by name, copied: to be written as safetensors."""
        return self.vector.state_dict()

    def state(self, *, copy: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What resumes this learner exactly, replicas left out: tensors, and JSON-ready values.

        ``copy`` False: live views, to be written before the next call.
        """
        kept, optimizer = self.optimizer.state()
        tensors = {"flat": self.vector.flat.detach(), "public": self.public}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in kept.items()}
        tensors |= {f"buffer.{name}": b for name, b in self.vector.model.named_buffers()}
        meta: dict[str, Any] = {
            "optimizer": optimizer,
            "published": self._public_root is not None,
            "same": self._same,
            "candidates": list(self.candidates),
        }
        if self._earlier is not None:
            tensors["earlier"] = self._earlier
        if self._best is not None:
            meta["best"] = [self._best[0], self._best[1]]
            tensors["best"] = self._best[2]
        if copy:
            tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return tensors, meta

    def load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Take up what ``state`` gave. Raises StorageError where it is not of this training."""
        try:
            own, _ = self.state(copy=False)
            for name in ("flat", "public", *(n for n in own if n.startswith("buffer."))):
                if tensors[name].shape != own[name].shape:
                    raise KeyError(name)
                own[name].copy_(tensors[name])
            prefix = "optimizer."
            kept = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            self.optimizer.load(kept, meta["optimizer"])
            self._public_root = tree_digest(as_bytes(self.public)) if meta["published"] else None
            self._same = bool(meta["same"])
            self.candidates = [int(round_) for round_ in meta["candidates"]]
            self._earlier = tensors["earlier"].clone() if "earlier" in tensors else None
            self._best = None
            if "best" in meta:
                round_, value = meta["best"]
                self._best = (int(round_), float(value), tensors["best"].clone())
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StorageError(f"the checkpoint is not of this training: {error}") from None
