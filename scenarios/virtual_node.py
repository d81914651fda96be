"""One node of a simulation: the real core, the real learner, a spool, and a disk that survives."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import structs
from torch import Tensor

from crypto.hashing import tree_digest
from crypto.identity import NodeId, SigningKey
from node.learning.learner import Learner
from node.learning.vector import as_bytes
from node.protocol.core import Core
from node.types.events import (
    Applied,
    Apply,
    Checkpoint,
    CoreState,
    Encode,
    Encoded,
    Event,
    Incarnation,
    Quarantine,
    Receipt,
    Record,
    Reserved,
    Send,
    StoreChunk,
)
from node.types.roster import Pins, Policy, Roster
from scenarios.attacks.attacker import Attacker
from scenarios.memory import Memory

Verify = Callable[[bytes, str, bytes, bytes], bool]
LearnerState = tuple[dict[str, Tensor], dict[str, Any]]


class Disk:
    """What outlives the process: the core's records, and the learner as of the last checkpoint."""

    def __init__(self) -> None:
        self.state = CoreState()
        self.learner: LearnerState | None = None
        self.full = False  # the next write fails
        # what a backup taken at each checkpoint would hold; None where nobody asks for one
        self.backups: list[tuple[CoreState, LearnerState | None]] | None = None

    def restore(self, which: str) -> None:
        """For "backup" back to half the checkpoints ago; for "none", or without one, to nothing."""
        old = self.backups[len(self.backups) // 2] if self.backups else (CoreState(), None)
        self.state, self.learner = old if which == "backup" else (CoreState(), None)
        if self.backups is not None:
            self.backups.clear()

    def write(self, record: Record, learner: LearnerState | None) -> None:
        """Commit one record; ``learner`` comes with a Checkpoint."""
        match record:
            case Incarnation():
                self._set(incarnation=record.incarnation)
            case Reserved():
                self._set(version=record.version)
            case Receipt():
                self._set(floors={**self.state.floors, record.member: record.signed})
            case Quarantine():
                self._set(quarantined={**self.state.quarantined, record.member: record})
            case Checkpoint():
                self.state, self.learner = record.state, learner
                if self.backups is not None:
                    self.backups.append((record.state, learner))

    def _set(self, **changes: Any) -> None:
        self.state = structs.replace(self.state, **changes)


class VirtualNode:
    """A member's process under virtual time. The engine carries its effects out."""

    def __init__(self, *, name: str, index: int, me: NodeId, key: SigningKey, samples: int) -> None:
        self.name, self.index, self.me, self.key = name, index, me, key
        self.samples = samples
        self.disk = Disk()
        self.alive = False
        self.boots = 0  # processes so far; what was scheduled for an older one is dropped
        self.ended = ""
        self.slow = 1.0
        self.step_ms = 0.0  # of one local step where nothing slows it
        self.steps = 0
        self.effects = 0  # carried out, over all boots
        self.kill_at: int | None = None
        self.attacker: Attacker | None = None  # while it is malicious
        self.round = 0  # the last one mixed, as told by the core
        self.jumped = 0
        self.core: Core
        self.learner: Learner
        self.skew_s = 0.0  # of the wall clock
        self.paused = False
        self.waiting: list[tuple[Event, bytes]] = []  # what came while the process stood still
        self.todo: deque[Event] = deque()
        self.busy = False
        self.armed: int | None = None  # when the next Wake is scheduled, ns
        self.durable = 0  # the last Persist that is on the disk
        self.withheld: dict[NodeId, deque[Send]] = {}
        self.spool: dict[tuple[NodeId, bytes], bytes | bytearray | memoryview] = {}

    def boot(
        self,
        learner: Learner,
        *,
        roster: Roster,
        pins: Pins,
        policy: Policy,
        verify: Verify,
        memory: Memory,
        seed: int,
    ) -> None:
        """A new process on this node's disk."""
        self.boots += 1
        self.alive, self.ended = True, ""
        self.learner = learner
        self._memory, self._read = memory, partial(memory.checked, learner.read)
        if self.disk.learner is not None:
            learner.load_state(*self.disk.learner)
        rng = random.Random(seed)
        self.core = Core(
            me=self.me,
            roster=roster,
            pins=pins,
            policy=policy,
            state=self.disk.state,
            sign=self.key.sign,
            verify=verify,
            entropy=rng.randbytes,
            rng=rng,
            reader=memory,
        )
        self.todo.clear()
        self.waiting.clear()
        self.withheld.clear()
        self.spool.clear()
        self.armed, self.durable, self.busy = None, 0, False

    # ── what the learner's shell does on a real node ──

    def encode(self, effect: Encode) -> Encoded:
        """Publish, or publish a lie while this node attacks."""
        if self.attacker is None:
            return self.learner.encode(effect)
        return self.attacker.encode(self.learner, effect)

    def chunk(self, root: bytes, start: int, length: int) -> memoryview | None:
        """Of what the process in hand serves, as Learner.chunk."""
        return self.learner.chunk(root, start, length)

    def store(self, effect: StoreChunk) -> None:
        """Keep verified bytes. A payload that came whole is kept as it is: frames never change."""
        key = (effect.member, effect.root)
        if effect.offset == 0 and len(effect.data) == effect.length:
            self.spool[key] = effect.data
            return
        buffer = self.spool.setdefault(key, bytearray(effect.length))
        assert isinstance(buffer, bytearray)
        buffer[effect.offset : effect.offset + len(effect.data)] = effect.data

    def take(self, effect: Apply) -> bytes:
        """The whole payload out of the spool; one object for all who received the same."""
        payload = self.spool.pop((effect.member, effect.root))
        if isinstance(payload, bytes):
            return payload
        return self._memory.whole(effect.root, payload)

    def apply(self, effect: Apply, payload: bytes) -> Applied:
        return self.learner.apply(effect, payload, self._read)

    def digest(self) -> bytes:
        """Of the own model's shared part, 32 bytes."""
        return tree_digest(as_bytes(self.learner.x.detach().cpu()))
