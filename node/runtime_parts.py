"""What one node is made of: read from NODE.toml, charter, keys, data and state, and checked.

Everything that can be wrong with them is found here, before a socket is opened. The shell that
drives the parts is node/runtime.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from crypto.card import ADDRESSES_MAX, check_address
from crypto.identity import SigningKey, verify
from crypto.keys import load_keys
from node.consortium import Consortium, load_consortium
from node.errors import ConfigError, StorageError
from node.learning.data import BUILT_IN, parts
from node.learning.learner import Learner
from node.learning.rules import check_rule
from node.learning.task import Part, Silo
from node.learning.tasks import build_task
from node.protocol.core import Core
from node.storage import checkpoints
from node.storage.directory import StateDirectory
from node.storage.files import write_durably
from node.storage.journal import Journal
from node.storage.spool import Spool
from node.transport.addresses import is_broker
from node.transport.mqtt_login import Login, login
from node.types.events import CoreState
from node.types.roster import Member
from node.types.settings import NodeSettings

ENTROPY_BYTES: Final = 32


class RunRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """run.json in the state: which training lives there, and how often a process has begun."""

    training: str
    starts: int


@dataclass(kw_only=True, eq=False)
class Parts:
    """All that a running node holds but the loop, the threads and the sockets."""

    settings: NodeSettings
    consortium: Consortium
    me: Member
    node_key: SigningKey
    directory: StateDirectory
    journal: Journal
    spool: Spool
    learner: Learner
    core: Core
    resumed: int  # how often this training was started here before
    warnings: tuple[str, ...]
    login: Login | None = None  # of the broker, where [mqtt] names one
    advertise: tuple[str, ...] = ()  # where else it is reached, as said at the broker

    def close(self) -> None:
        """Give everything back. Raises StorageError where the journal cannot be closed."""
        try:
            self.journal.close()
        finally:
            self.spool.close()
            self.directory.close()


def assemble(
    settings: NodeSettings, *, base: Path, passphrase: bytes | None = None, seed: int | None = None
) -> Parts:
    """Open and check everything. ``base``: what the settings' paths are relative to.

    ``seed``: fixes the node's own randomness, for scenarios. Raises ConfigError and StorageError;
    nothing stays open then.
    """
    consortium = load_consortium(base / settings.consortium)
    state = base / settings.state
    keys = load_keys(state, passphrase=passphrase)
    me = consortium.roster.members.get(keys.node_id)
    if me is None:
        raise ConfigError(
            f"{state}: '{keys.name}' is not a member of {consortium.path}; is this the right state?"
        )
    if me.node_key != keys.node.public:
        raise ConfigError(f"{state}: the charter's card of '{me.name}' names another node key")
    broker = None if settings.mqtt is None else login(settings.mqtt, base=base)
    advertise = advertised(settings, me)
    directory = StateDirectory(state).open()
    try:
        opened = _open(settings, consortium, me, keys.node, directory, base=base, seed=seed)
        return replace(opened, login=broker, advertise=advertise)
    except BaseException:
        directory.close()
        raise


def advertised(settings: NodeSettings, me: Member) -> tuple[str, ...]:
    """The sockets at which this node says that it is reached. Raises ConfigError."""
    if settings.advertise is None:
        return tuple(address for address in me.addresses if not is_broker(address))
    if settings.mqtt is None:
        raise ConfigError("advertise: is said at a broker, and no [mqtt] names one")
    if len(settings.advertise) > ADDRESSES_MAX:
        raise ConfigError(
            f"advertise: {len(settings.advertise)} addresses, at most {ADDRESSES_MAX} are said"
        )
    for text in settings.advertise:
        try:
            if is_broker(text):
                raise ConfigError("a broker's stands in [mqtt]")
            check_address(text)
        except ConfigError as error:
            raise ConfigError(f"advertise: {error}") from None
    return settings.advertise


def _open(
    settings: NodeSettings,
    consortium: Consortium,
    me: Member,
    node_key: SigningKey,
    directory: StateDirectory,
    *,
    base: Path,
    seed: int | None,
) -> Parts:
    resumed = _same_training(directory, consortium)
    learner = _learner(settings, consortium, me, directory, base=base, seed=seed)
    pins = consortium.pins_for(
        schema=learner.schema_digest,
        initial=learner.initial_digest,
        code=learner.code_digest,
        payload_bytes=learner.payload_bytes,
    )
    if learner.payload_bytes > consortium.settings.limits.model_mb_max * 1_000_000:
        raise ConfigError(
            f"{consortium.path}: the model has {learner.payload_bytes / 1e6:.1f} MB, "
            f"limits.model_mb_max is {consortium.settings.limits.model_mb_max}"
        )
    warnings = []
    if learner.samples != me.samples:
        warnings.append(
            f"the charter says {me.samples} samples for this member, its data has "
            f"{learner.samples}: mixing weights follow the charter"
        )
    journal = Journal(directory.journal)
    try:
        core_state, skipped = _resume(directory, journal, learner)
        warnings += skipped
        core = Core(
            me=me.id,
            roster=consortium.roster,
            pins=pins,
            policy=consortium.policy,
            state=core_state,
            sign=node_key.sign,
            verify=verify,
            entropy=os.urandom,
            rng=random.Random(seed) if seed is not None else random.SystemRandom(),
        )
    except BaseException:
        journal.close()
        raise
    spool = Spool(directory.spool)
    return Parts(
        settings=settings,
        consortium=consortium,
        me=me,
        node_key=node_key,
        directory=directory,
        journal=journal,
        spool=spool,
        learner=learner,
        core=core,
        resumed=resumed,
        warnings=tuple(warnings),
    )


def _same_training(directory: StateDirectory, consortium: Consortium) -> int:
    """Refuse another training's state; how often this one was started here before."""
    path = directory.path / "run.json"
    training, starts = consortium.training.hex(), 0
    if path.exists():
        try:
            found = msgspec.json.decode(path.read_bytes(), type=RunRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(f"{path}: damaged: {error}") from None
        if found.training != training:
            raise ConfigError(
                f"{directory.path}: holds the state of another training; give this one a directory "
                "of its own, with a copy of the keys"
            )
        starts = found.starts
    write_durably(path, msgspec.json.encode(RunRecord(training, starts + 1)))
    return starts


def _learner(
    settings: NodeSettings,
    consortium: Consortium,
    me: Member,
    directory: StateDirectory,
    *,
    base: Path,
    seed: int | None,
) -> Learner:
    charter = consortium.settings
    degrees = {name: 1 + consortium.graph.degree(name) for name in consortium.names}
    check_rule(charter.learning.rule, charter.learning.f, degrees)
    data = dict(settings.data)
    if isinstance(data.get("part"), str):
        data["part"] = str(base / data["part"])
    silo = Silo(
        name=me.name,
        data=data,
        device=settings.device,
        seed=charter.learning.seed,
        settings=charter.task,
        part=_own_part(consortium, me) if not data else None,
    )
    Spool(directory.spool).sweep()
    return Learner(
        build_task(silo),
        charter.learning,
        me=me.id,
        seed=_private_seed(directory, consortium) if seed is None else seed,
        store=lambda round_, model: write_durably(_candidate(directory, round_), model),
        fetch=lambda round_: _read_candidate(_candidate(directory, round_)),
        spool=directory.spool,
    )


def _own_part(consortium: Consortium, me: Member) -> Part | None:
    """This member's rows of a built-in data set, by the charter's own split."""
    task = consortium.settings.task
    if task.name not in BUILT_IN:
        return None
    return parts(task, consortium.names, seed=consortium.settings.learning.seed)[me.name]


def _private_seed(directory: StateDirectory, consortium: Consortium) -> int:
    """The node's own seed: what others know of the training, and entropy they do not have.

    The entropy is made once and kept, so that a resumed node draws the batches it would have drawn.
    """
    path = directory.path / "seed.entropy"
    try:
        if not path.exists():
            write_durably(path, os.urandom(ENTROPY_BYTES))
        entropy = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    if len(entropy) != ENTROPY_BYTES:
        raise StorageError(f"{path}: damaged: {len(entropy)} bytes, expected {ENTROPY_BYTES}")
    seed = consortium.settings.learning.seed.to_bytes(16, "big", signed=True)
    digest = hashlib.blake2b(consortium.training + seed, digest_size=8, key=entropy).digest()
    return int.from_bytes(digest, "big") >> 1


def _candidate(directory: StateDirectory, round_: int) -> Path:
    return directory.candidates / f"round-{round_:08d}.f32"


def _read_candidate(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None


def _resume(
    directory: StateDirectory, journal: Journal, learner: Learner
) -> tuple[CoreState, list[str]]:
    """What the core goes on from; the learner has its checkpoint's state then."""
    loaded = checkpoints.load_latest(directory.checkpoints)
    if loaded is None:
        return journal.recover(CoreState()), []
    learner.load_state(loaded.tensors, loaded.meta)
    skipped = [f"checkpoint {path.name} was not used: {why}" for path, why in loaded.skipped]
    return journal.recover(loaded.state), skipped


def wall_ms() -> int:
    """The wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000
