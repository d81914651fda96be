"""From a charter to what the core needs, and from drafts and cards to a charter.

A charter is a TOML file that people write; `consortium new` adds the members' signed cards and the
pins, the founders sign its exact bytes, and `seal` joins bytes and signatures. Everything that is
wrong with one is a ConfigError in one line, found here before a node or a signature depends on it.
Free of torch: `consortium show` and `verify` answer at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import tomlkit
from msgspec import Struct
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table

from crypto.armour import read_text
from crypto.card import Card, parse_card
from crypto.identity import NodeId, format_id
from crypto.keys import validate_name
from crypto.sealed import Sealed, check_founders, unseal
from node.errors import ConfigError
from node.strict import from_toml
from node.transport.addresses import is_broker
from node.types.roster import Member, Pins, Policy, Roster
from node.types.settings import (
    CharterSettings,
    LearningSettings,
    MemberDraft,
    PinSettings,
    StartSettings,
)
from topology.generate import build
from topology.graph import Graph

CANDIDATES: Final = 8  # models kept for keep = "agreed", evenly over the training


class Consortium(Struct, frozen=True, kw_only=True, eq=False):
    """A sealed charter, checked: signatures, cards, topology, limits."""

    path: Path
    settings: CharterSettings
    id: bytes  # 32 bytes
    training: bytes  # 32 bytes
    roster: Roster
    policy: Policy
    graph: Graph
    sealed: Sealed

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names in the charter's order."""
        return tuple(member.name for member in self.settings.member)

    def pins_for(self, *, schema: bytes, initial: bytes, code: bytes, payload_bytes: int) -> Pins:
        """The pins of this training, once this machine's model was compared with the charter's.

        Raises ConfigError naming what differs, with both digests.
        """
        pinned = self.settings.pins
        assert pinned is not None
        found = {"schema": schema, "initial": initial, "code": code}
        words = {"schema": "model schema", "initial": "initial parameters", "code": "task code"}
        for key, digest in found.items():
            wanted = getattr(pinned, key)
            if digest.hex() != wanted:
                raise ConfigError(
                    f"{self.path}: {words[key]} differ: the charter pins {wanted[:16]}, "
                    f"this machine makes {digest.hex()[:16]}"
                )
        return Pins(
            training=self.training,
            schema=schema,
            initial=initial,
            code=code,
            payload_bytes=payload_bytes,
        )


def load_consortium(path: Path) -> Consortium:
    """Open a sealed charter and check all of it. Raises ConfigError."""
    sealed = unseal(read_text(path), source=str(path))
    settings, cards, graph = check_charter(sealed.body, base=path.parent, source=str(path))
    check_founders(sealed.body, sealed.signatures, founders(cards), source=str(path))
    samples = {member.name: member.samples or 0 for member in settings.member}
    return Consortium(
        path=path,
        settings=settings,
        id=sealed.consortium_id,
        training=training_id(sealed.consortium_id, settings),
        roster=_roster(sealed.consortium_id, settings, cards, graph),
        policy=policy(settings, graph, samples, source=str(path)),
        graph=graph,
        sealed=sealed,
    )


def check_charter(
    body: bytes, *, base: Path, source: str
) -> tuple[CharterSettings, dict[str, Card], Graph]:
    """Everything about a charter's bytes but the signatures. Raises ConfigError.

    ``base``: the folder to which a topology file named in it is relative.
    """
    settings = read_charter(body, source=source)
    cards = member_cards(settings, source=source)
    graph = charter_graph(settings, base=base, source=source)
    _check_pins(settings, graph, source=source)
    policy(settings, graph, {m.name: m.samples or 0 for m in settings.member}, source=source)
    return settings, cards, graph


def founders(cards: Mapping[str, Card]) -> dict[NodeId, tuple[str, bytes]]:
    """Who must sign: id -> (name, member key)."""
    return {NodeId(card.node_id): (card.name, card.member_key) for card in cards.values()}


def read_charter(body: bytes, *, source: str) -> CharterSettings:
    """The settings in a charter's bytes. Raises ConfigError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: the charter is not UTF-8 text") from None
    settings = from_toml(text, CharterSettings, source=source)
    if settings.start.after_s is not None:
        raise ConfigError(f"{source}: key 'start.after_s' is for scenarios; use start.at_latest")
    return settings


def member_cards(settings: CharterSettings, *, source: str) -> dict[str, Card]:
    """The verified card of every member, by name. Raises ConfigError naming the member.

    A founder's signature covers the whole charter, so what it says beside a card must agree with
    that card, or somebody would sign what another member never said.
    """
    if len(settings.member) < 2:
        count = len(settings.member)
        raise ConfigError(f"{source}: key 'member': found {count}, a consortium has at least 2")
    cards: dict[str, Card] = {}
    for member in settings.member:
        where = f"{source}: member '{member.name}'"
        if member.name in cards:
            raise ConfigError(f"{where}: the name stands twice")
        card = _card_of(member, where)
        for other in cards.values():
            _refuse_shared(card, other, where)
        cards[member.name] = card
        limit = settings.limits.samples_max
        if not 1 <= (member.samples or 0) <= limit:
            raise ConfigError(
                f"{where}: key 'samples': found {member.samples}, expected 1 to {limit}; "
                "say it on the card: grapevine id --samples N"
            )
    return cards


def charter_graph(settings: CharterSettings, *, base: Path, source: str) -> Graph:
    """The consortium graph over the members, connected. Raises ConfigError."""
    names = [member.name for member in settings.member]
    graph = build(settings.topology, names=names, base=base, source=f"{source}: [topology]")
    listening = {m.name for m in settings.member if not all(map(is_broker, m.addresses))}
    at_broker = {m.name for m in settings.member if any(map(is_broker, m.addresses))}
    for a, b in graph.edges:
        if not {a, b} & listening and not {a, b} <= at_broker:
            raise ConfigError(
                f"{source}: neighbours '{a}' and '{b}' both only dial out; one of them needs an "
                "address, or both a broker: grapevine id --address tcp://HOST:PORT"
            )
    return graph


def topology_digest(graph: Graph) -> bytes:
    """BLAKE2b-256 of the sorted node names and edges."""
    plain = [sorted(graph.nodes), [list(edge) for edge in graph.edges]]
    data = msgspec.msgpack.encode(plain)
    return hashlib.blake2b(data, digest_size=32, person=b"gv-topology").digest()


def training_id(consortium: bytes, settings: CharterSettings) -> bytes:
    """BLAKE2b-256 of the consortium id and the canonical MessagePack of [task] and [learning].

    Canonical: every default written out, keys sorted; so it names what is learned, and how.
    """
    plain = msgspec.to_builtins({"task": settings.task, "learning": settings.learning})
    data = msgspec.msgpack.encode(plain, order="deterministic")
    return hashlib.blake2b(consortium + b"training" + data, digest_size=32).digest()


class Trains(Protocol):
    """What a charter and a scenario have in common here."""

    @property
    def learning(self) -> LearningSettings: ...
    @property
    def start(self) -> StartSettings: ...


def policy(
    settings: Trains, graph: Graph, samples: Mapping[str, int], *, source: str = "charter"
) -> Policy:
    """What the core obeys, compiled from [learning] and [start]. Raises ConfigError."""
    learning, start = settings.learning, settings.start
    _check_start(start, len(graph.nodes), source)
    if learning.deadline_min_s > learning.deadline_max_s:
        raise ConfigError(
            f"{source}: key 'learning.deadline_min_s': found {learning.deadline_min_s}, more than "
            f"deadline_max_s = {learning.deadline_max_s}"
        )
    if learning.local_steps is not None and learning.local_epochs is not None:
        raise ConfigError(
            f"{source}: keys 'learning.local_steps' and 'learning.local_epochs' both say how long "
            "a node trains in a round; keep one"
        )
    mixing = learning.final_mixing
    return Policy(
        rounds=learning.rounds,
        final_mixing=default_final_mixing(graph, samples) if mixing is None else mixing,
        final_omega=_final_omega(learning, graph, samples),
        rule=learning.rule,
        f=learning.f,
        wait=learning.wait,
        deadline_min_s=learning.deadline_min_s,
        deadline_max_s=learning.deadline_max_s,
        deadline_mads=learning.deadline_mads,
        max_staleness=learning.max_staleness,
        linger_s=learning.linger_s,
        checkpoint_every=learning.checkpoint_every,
        candidates=_candidates(learning),
        start_members=start.members,
        start_at_least=start.at_least,
        start_by_ms=int(start.at_latest.timestamp() * 1000) if start.at_latest else None,
    )


def _final_omega(learning: LearningSettings, graph: Graph, samples: Mapping[str, int]) -> float:
    """Over-relaxation of the final mixing, the same for all nodes; 1 where it does not apply.

    It stands on the mean being linear and on both ends of an edge using it in the same round.
    """
    from topology import measure

    if learning.rule != "mean" or learning.wait == "none":
        return 1.0
    return measure.relaxation(measure.second_eigenvalue(graph, samples))


def default_final_mixing(graph: Graph, samples: Mapping[str, int]) -> int:
    """K = clamp(⌈ln 20 / −ln λ₂⌉, 5, 50): a 20th of what the nodes differ by then remains."""
    from topology import measure

    # rounding may lift the λ₂ of a long path to 1 itself
    second = min(measure.second_eigenvalue(graph, samples), 1 - 1e-12)
    return measure.default_final_mixing(second)


def _candidates(learning: LearningSettings) -> tuple[int, ...]:
    if learning.keep != "agreed":
        return ()
    steps = range(1, CANDIDATES + 1)
    return tuple(sorted({math.ceil(learning.rounds * step / CANDIDATES) for step in steps}))


def _check_start(start: StartSettings, members: int, source: str) -> None:
    for key in ("members", "at_least"):
        count = getattr(start, key)
        if count is not None and count > members:
            raise ConfigError(
                f"{source}: key 'start.{key}': found {count}, but there are {members} members"
            )
    if start.members and start.at_least and start.at_least > start.members:
        raise ConfigError(
            f"{source}: key 'start.at_least': found {start.at_least}, more than "
            f"start.members = {start.members}"
        )
    if start.at_least is not None and start.at_latest is None and start.after_s is None:
        raise ConfigError(
            f"{source}: key 'start.at_least': counts once 'start.at_latest' is past, and there is "
            "none"
        )
    if start.at_latest is not None and start.at_latest.tzinfo is None:
        raise ConfigError(
            f"{source}: key 'start.at_latest': needs its offset, such as 2027-03-02T08:00:00Z"
        )


def _card_of(member: MemberDraft, where: str) -> Card:
    if member.signed_card is None:
        raise ConfigError(f"{where}: has no card yet; run: grapevine consortium new")
    validate_name(member.name)
    try:
        signed = base64.b64decode(member.signed_card, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: key 'signed_card': not base64") from None
    card = parse_card(signed, source=where)
    said = {
        "name": (member.name, card.name),
        "id": (member.id, format_id(NodeId(card.node_id))),
        "addresses": (member.addresses, card.addresses),
        "samples": (member.samples, card.samples or member.samples),
    }
    for key, (here, there) in said.items():
        if here != there:
            raise ConfigError(
                f"{where}: key '{key}': found {here!r}, the signed card says {there!r}"
            )
    return card


def _refuse_shared(card: Card, other: Card, where: str) -> None:
    """No two members may have a key in common: one could speak as the other."""
    for what in ("node_id", "member_key", "node_key", "certificate"):
        if getattr(card, what) == getattr(other, what):
            word = what.replace("_", " ")
            raise ConfigError(f"{where}: has the same {word} as '{other.name}': a card twice?")


def _check_pins(settings: CharterSettings, graph: Graph, *, source: str) -> None:
    pins = settings.pins
    if pins is None:
        raise ConfigError(f"{source}: has no [pins]; run: grapevine consortium new")
    found = topology_digest(graph).hex()
    if pins.topology != found:
        raise ConfigError(
            f"{source}: key 'pins.topology': found {pins.topology[:16]}, but the graph here has "
            f"{found[:16]}; has its file changed since `grapevine consortium new`?"
        )


def _roster(
    consortium: bytes, settings: CharterSettings, cards: Mapping[str, Card], graph: Graph
) -> Roster:
    ids = {name: NodeId(card.node_id) for name, card in cards.items()}
    members = []
    for draft in settings.member:
        card = cards[draft.name]
        members.append(
            Member(
                id=ids[draft.name],
                name=draft.name,
                node_key=card.node_key,
                samples=draft.samples or 0,
                neighbours=tuple(sorted(ids[peer] for peer in graph.neighbours(draft.name))),
                certificate=card.certificate,
                addresses=draft.addresses,
            )
        )
    ordered = {member.id: member for member in sorted(members, key=lambda m: m.id)}
    return Roster(consortium=consortium, epoch=0, members=ordered)


# ── writing a charter ───────────────────────────────────────────────────────────────────────────


class MailedCard(Struct, frozen=True):
    """A verified card, its signed bytes, and the file it came from."""

    card: Card
    signed: bytes
    source: str


def fill_members(
    text: str,
    cards: Sequence[MailedCard],
    *,
    source: str,
    samples: Mapping[str, int] | None = None,
) -> str:
    """The draft with every card written into its [[member]], comments and order kept.

    A card whose name no [[member]] has is added at the end. ``samples``: for members whose card
    states none. Old pins are taken out: they are of the charter before. Raises ConfigError.
    """
    document = _parse(text, source)
    tables = document.get("member")
    if tables is None:
        tables = tomlkit.aot()
        document.append("member", tables)
    if not isinstance(tables, AoT):
        raise ConfigError(f"{source}: key 'member': write each member as its own [[member]]")
    by_name: dict[str, Table] = {}
    for table in tables:
        name = str(table.get("name", ""))
        if name in by_name:
            raise ConfigError(f"{source}: member '{name}' stands twice")
        by_name[name] = table
    seen: dict[str, str] = {}
    for mailed in cards:
        name = mailed.card.name
        if name in seen:
            raise ConfigError(f"{mailed.source}: '{name}' has a card already: {seen[name]}")
        seen[name] = mailed.source
        if name not in by_name:
            by_name[name] = tomlkit.table()
            tables.append(by_name[name])
        _fill(by_name[name], mailed, (samples or {}).get(name))
    document.pop("pins", None)
    return tomlkit.dumps(document)


def set_pins(text: str, pins: PinSettings, *, source: str) -> str:
    """The charter with its [pins] written at the end."""
    document = _parse(text, source)
    document.pop("pins", None)
    table = tomlkit.table()
    table.comment("what every member's machine must reproduce; made by `consortium new`")
    for key, digest in msgspec.to_builtins(pins).items():
        table.add(key, digest)
    document.append("pins", table)
    return tomlkit.dumps(document)


def _parse(text: str, source: str) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def _fill(table: Table, mailed: MailedCard, samples: int | None) -> None:
    card = mailed.card
    table.pop("card", None)
    table["name"] = card.name
    table["id"] = format_id(NodeId(card.node_id))
    count = card.samples or samples or table.get("samples")
    if count is not None:
        table["samples"] = int(count)
    table["addresses"] = list(card.addresses)
    table["signed_card"] = base64.b64encode(mailed.signed).decode()
