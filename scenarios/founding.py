"""Founds a consortium on this machine: keys, cards, a charter signed by all, a folder per member.

The steps and the files are those of `grapevine keygen, id, consortium new, sign, seal`, done with
the same functions; only that one person does them for all, which real members never let happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from msgspec import Struct

from crypto.card import make_card, read_card
from crypto.identity import NodeId
from crypto.keys import Keys, create_keys
from crypto.sealed import read_signature, seal, sign_charter
from node.consortium import (
    Consortium,
    MailedCard,
    charter_graph,
    fill_members,
    load_consortium,
    read_charter,
    set_pins,
    topology_digest,
)
from node.errors import StorageError
from node.learning.data import parts as make_parts
from node.learning.task import Part, save_part
from node.learning.tasks import bare_task
from node.learning.vector import code_digest, initial_digest, schema_digest
from node.types.settings import (
    CharterSettings,
    LearningSettings,
    MqttSettings,
    NodeSettings,
    PinSettings,
    StartSettings,
    TaskSettings,
)
from scenarios.ports import LOOPBACK, free_ports
from topology.settings import TopologySettings


class Seat(Struct, frozen=True, kw_only=True):
    """One member's files and port on this machine."""

    name: str
    node_toml: Path
    folder: Path
    state: Path
    part: Path
    port: int
    samples: int

    @property
    def log(self) -> Path:
        """What the node's processes print."""
        return self.folder / "log.jsonl"


class Founded(Struct, frozen=True, kw_only=True, eq=False):
    """A sealed consortium whose members all live in ``directory``."""

    directory: Path
    consortium: Consortium
    seats: dict[str, Seat]  # in the order of the names given
    parts: dict[str, Part]


def found(
    directory: Path,
    names: Sequence[str],
    *,
    name: str,
    topology: TopologySettings,
    task: TaskSettings,
    learning: LearningSettings,
    start: StartSettings | None = None,
    parts: Mapping[str, Part] | None = None,
    broker: str | None = None,
    direct: Sequence[str] | None = None,
    address: str | None = None,
) -> Founded:
    """Found the consortium ``name`` of ``names`` in ``directory``, which may not have one yet.

    parts: every member's rows; without them the built-in data set is divided by ``learning.seed``,
    as members would do it themselves. broker: the URL of one through which all meet; then only
    those in ``direct`` also listen on a port of their own. address: what cards say in the place of
    a free port on loopback, NAME for the member's. Raises ConfigError as the commands do.
    """
    directory = directory.resolve()
    rows = dict(parts or make_parts(task, names, seed=learning.seed))
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    keys: dict[str, Keys] = {}
    cards: list[MailedCard] = []
    for member in names:
        folder = directory / member
        keys[member] = create_keys(folder / "state", member)
        card = folder / f"{member}.card"
        addresses = [] if broker is None else [broker]
        if broker is None or member in (direct or ()):
            at = f"tcp://{LOOPBACK}:{ports[member]}" if address is None else address
            addresses.insert(0, at.replace("NAME", member))
        _write(card, make_card(keys[member], addresses=addresses, samples=rows[member].samples))
        cards.append(MailedCard(*read_card(card.read_text(), source=str(card)), str(card)))
    draft = CharterSettings(
        name=name, topology=topology, task=task, learning=learning, start=start or StartSettings()
    )
    charter = directory / f"{name}.toml"
    body = _charter(draft, cards, source=charter)
    _write(charter, body.decode())
    sealed = directory / f"{name}.consortium"
    _write(sealed, _signed_by_all(directory, keys, body))
    seats = {
        member: _seat(
            directory / member,
            member,
            sealed,
            ports[member],
            rows[member],
            listens=broker is None or member in (direct or ()),
            mqtt=None if broker is None else MqttSettings(broker=broker, version="3.1.1"),
        )
        for member in names
    }
    return Founded(directory=directory, consortium=load_consortium(sealed), seats=seats, parts=rows)


def toml(value: object) -> str:
    """A settings struct as TOML, defaults left out."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return tomlkit.dumps(_without_defaults(value, plain))


def _without_defaults(value: object, plain: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null, and a file full of defaults hides what was chosen."""
    kept: dict[str, Any] = {}
    for field in msgspec.structs.fields(type(value)):  # type: ignore[arg-type]
        here = getattr(value, field.name)
        if here is None or (field.default is not msgspec.NODEFAULT and here == field.default):
            continue
        inner = plain[field.name]
        if isinstance(here, Struct):
            inner = _without_defaults(here, inner)
            if not inner and not field.required:
                continue
        kept[field.name] = inner
    # single values first: after a table's header they would belong to that table
    return dict(sorted(kept.items(), key=lambda item: isinstance(item[1], dict)))


def _charter(draft: CharterSettings, cards: Sequence[MailedCard], *, source: Path) -> bytes:
    """The charter's final bytes: draft, members, pins."""
    text = fill_members(toml(draft), cards, source=str(source))
    settings = read_charter(text.encode(), source=str(source))
    graph = charter_graph(settings, base=source.parent, source=str(source))
    bare = bare_task(settings.task, seed=settings.learning.seed)
    pins = PinSettings(
        topology=topology_digest(graph).hex(),
        schema=schema_digest(bare).hex(),
        initial=initial_digest(bare).hex(),
        code=code_digest(bare).hex(),
    )
    return set_pins(text, pins, source=str(source)).encode()


def _signed_by_all(directory: Path, keys: Mapping[str, Keys], body: bytes) -> str:
    signatures: dict[NodeId, bytes] = {}
    for member, held in keys.items():
        assert held.member is not None
        path = directory / member / f"{member}.sig"
        _write(path, sign_charter(held.member, held.node_id, body))
        signer, signature = read_signature(path.read_text(), body, source=str(path))
        signatures[signer] = signature
    return seal(body, signatures)


def _seat(
    folder: Path,
    name: str,
    consortium: Path,
    port: int,
    part: Part,
    *,
    listens: bool,
    mqtt: MqttSettings | None,
) -> Seat:
    rows = folder / "rows.safetensors"
    save_part(rows, part)
    settings = NodeSettings(
        state=str(folder / "state"),
        consortium=str(consortium),
        listen=f"{LOOPBACK}:{port}" if listens else None,
        mqtt=mqtt,
        data={"part": str(rows)},
    )
    node_toml = folder / "node.toml"
    _write(node_toml, toml(settings))
    return Seat(
        name=name,
        node_toml=node_toml,
        folder=folder,
        state=folder / "state",
        part=rows,
        port=port,
        samples=part.samples,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
