"""Malicious members: what a node that attacks does in the place of an honest one, on any engine.

An attacker is a member. It holds its own node's key and sees what its node receives; nobody else's
key is in its hands. Its node runs the real core and learner; an engine asks the ``Attacker`` what
to publish (``encode``), what leaves in the place of each frame (``send``), and what of an arriving
frame its own node may see (``receive``). What is sent in the place of honest frames stands in
wire.py, what is published in the place of the own model in models.py; malicious.py puts an attacker
between a real node and its links. Here are the interface and the names.
"""

from __future__ import annotations

import ast
import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from crypto.identity import NodeId
from node.errors import ConfigError
from node.protocol.context import Sign
from node.protocol.frames import chunk_prefix, decode
from node.strict import nearest
from node.types.events import Encode, Encoded
from node.types.messages import CHUNK_BYTES, Chunk, Message
from node.types.roster import Pins, Roster
from scenarios.faults import NONE

if TYPE_CHECKING:
    from torch import Tensor

    from node.learning.learner import Learner


class Insider(Struct, frozen=True, kw_only=True, eq=False):
    """What an attacker holds. ``chunk``: its node's payloads, as Learner.chunk gives them.

    ``rng`` is the attacker's own stream; engines derive it from the scenario's seed and the name.
    """

    me: NodeId
    sign: Sign
    roster: Roster
    pins: Pins
    last_round: int
    rng: random.Random
    chunk: Callable[[bytes, int, int], memoryview | None]

    @property
    def neighbours(self) -> tuple[NodeId, ...]:
        return self.roster.members[self.me].neighbours


class Taken(NamedTuple):
    """What becomes of a frame that came: what the own node is given (None: it never sees it)."""

    frame: bytes | None
    answers: tuple[bytes, ...] = ()  # sent back to the same peer at once


class Attacker:
    """An honest node until something here is overridden.

    One object lives as long as its attack does, over restarts of its node. ``scale`` is the event's
    number, and means what the attack says. Frames are whole, as node.protocol.frames makes them.
    """

    def __init__(self, insider: Insider, scale: float | None = None) -> None:
        self.insider = insider
        self.rng = insider.rng
        self.scale = scale
        self._lie: tuple[bytes, bytes] | None = None  # root and bytes of what was published last

    # ── what an engine calls ──

    def encode(self, learner: Learner, effect: Encode) -> Encoded:
        """As ``learner.encode``, but what ``publish`` says; the own model stays as it was."""
        self._lie = None
        own = learner.x.detach().clone()
        lie = None if effect.again else self.publish(own, self._neighbours(learner))
        if lie is None:
            return learner.encode(effect)
        learner.x.detach().copy_(lie)
        encoded = learner.encode(effect)
        if encoded.payload.inline is None:  # its chunks are served from here, see ``_served``
            self._lie = (encoded.payload.root, learner.public.numpy().tobytes())
        learner.x.detach().copy_(own)
        learner.public.copy_(own)
        return encoded

    def send(self, peer: NodeId, frame: bytes) -> tuple[bytes, ...]:
        """The frames that leave for ``peer`` in the place of this one of the own node."""
        message = decode(frame)
        if isinstance(message, Chunk):
            return (self.chunk(peer, self._served(frame, message)),)
        return self.said(peer, message, frame)

    def receive(self, peer: NodeId, frame: bytes) -> Taken:
        """What the own node is given of a frame that came from ``peer``. Never raises."""
        return Taken(frame)

    # ── what an attack overrides ──

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        """The model (P,) to publish instead of ``own`` (P,), finite; None: the honest one.

        neighbours: their public models as held here, in NodeId order.
        """
        return None

    def said(self, peer: NodeId, message: Message, frame: bytes) -> tuple[bytes, ...]:
        """As ``send``, for everything but chunks."""
        return (frame,)

    def chunk(self, peer: NodeId, frame: bytes) -> bytes:
        """The chunk frame that leaves in the place of this one."""
        return frame

    def _neighbours(self, learner: Learner) -> list[Tensor]:
        held = list(learner.replicas.items())  # copied: another thread may add one
        return [replica.vector for _, replica in sorted(held, key=lambda item: item[0])]

    def _served(self, frame: bytes, chunk: Chunk) -> bytes:
        """A chunk of what was published, where the learner has only the own model left."""
        if self._lie is None or self._lie[0] != chunk.root:
            return frame
        start = chunk.index * CHUNK_BYTES
        return chunk_prefix(chunk.root, chunk.index) + self._lie[1][start : start + CHUNK_BYTES]


Make = Callable[[Insider, "float | None"], Attacker]
# (own model, neighbours' models, chance) -> what is published; None: the own
Lie = Callable[["Tensor", "Sequence[Tensor]", random.Random], "Tensor | None"]


class Lies(Attacker):
    """Publishes what a plain function makes of the own model; for files and tests."""

    def __init__(self, insider: Insider, lie: Lie) -> None:
        super().__init__(insider)
        self._function = lie

    def publish(self, own: Tensor, neighbours: Sequence[Tensor]) -> Tensor | None:
        return self._function(own, neighbours, self.rng)


def attacks() -> Mapping[str, Make]:
    """Every attack by its name in a scenario file."""
    from scenarios.attacks.models import MODELS
    from scenarios.attacks.wire import WIRE

    return {**WIRE, **MODELS}


def attacker(what: str, insider: Insider, scale: float | None = None) -> Attacker:
    """The attacker of one event, ``what`` as ``check_attack`` gave it.

    Raises ConfigError for a file that cannot be loaded.
    """
    if ":" not in what:
        return attacks()[what](insider, scale)
    found = _load(what)
    if isinstance(found, type) and issubclass(found, Attacker):
        return found(insider, scale)
    return Lies(insider, found)


def check_attack(what: str, where: str, base: Path | None) -> str:
    """An attack as a scenario names it, the path of ``file.py:function`` made absolute.

    base: what that path is relative to. Raises ConfigError for an attack that nobody knows, and
    for a file without that function; no code of the file is run here.
    """
    if ":" in what:
        path, name = _find(what, where, base)
        return f"{path.resolve()}:{name}"
    if what != NONE and what not in attacks():
        known = (*attacks(), NONE)
        raise ConfigError(
            f"{where}: key 'attack': no attack '{what}'{nearest(what, known)}, or file.py:function"
        )
    return what


def _find(what: str, where: str, base: Path | None = None) -> tuple[Path, str]:
    """The file and the name in it, looked at but not run."""
    file, _, name = what.rpartition(":")
    path = (base or Path()) / file
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{where}: key 'attack': {path}: cannot be read: {error}") from None
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    if name not in names:
        raise ConfigError(
            f"{where}: key 'attack': {path} has no function '{name}'{nearest(name, names)}"
        )
    return path, name


def _load(what: str) -> Any:
    path, name = _find(what, what)
    spec = importlib.util.spec_from_file_location(f"attack_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from None
    return getattr(module, name)
