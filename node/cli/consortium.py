"""`grapevine consortium …`: founding by files alone, and looking at what was founded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crypto.armour import read_text
from crypto.card import read_card
from crypto.identity import NodeId, short_id
from crypto.keys import load_keys
from crypto.sealed import (
    check_founders,
    consortium_id,
    read_signature,
    seal,
    sign_charter,
    unseal,
    words,
)
from node.cli.keys import PassphraseOption, StateOption, read_passphrase, write_text
from node.cli.output import JsonOption, columns, emit
from node.consortium import (
    Consortium,
    MailedCard,
    charter_graph,
    check_charter,
    fill_members,
    founders,
    load_consortium,
    member_cards,
    read_charter,
    set_pins,
    topology_digest,
)
from node.errors import ConfigError
from node.transport.addresses import seat
from node.types.settings import CharterSettings, PinSettings

if TYPE_CHECKING:
    from node.learning.task import Task
    from topology.graph import Graph

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Found a consortium by files, show and verify it.

    Example: grapevine consortium verify heart.consortium
    """,
)

CharterArgument = Annotated[Path, typer.Argument(metavar="CHARTER", help="Such as heart.toml.")]
SealedArgument = Annotated[
    Path, typer.Argument(metavar="CONSORTIUM", help="Such as heart.consortium.")
]


@app.command()
def new(
    charter: CharterArgument,
    card: Annotated[
        list[Path] | None, typer.Option("--card", help="A member's card; once for each member.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the members' cards and the pins into a draft, and check it.

    Example: grapevine consortium new heart.toml --card clinic-a.card --card clinic-b.card

    The draft keeps its comments. Afterwards it must not change by a byte: that is what is signed.
    """
    source = str(charter)
    text = read_draft(charter).decode("utf-8", "replace")
    draft = read_charter(text.encode(), source=source)
    cards = _mailed(draft, charter, card or [])
    task = _task(draft, source)
    text = fill_members(text, cards, source=source)
    settings = read_charter(text.encode(), source=source)
    if any(not member.samples for member in settings.member):
        text = fill_members(text, cards, source=source, samples=_split_sizes(settings, source))
        settings = read_charter(text.encode(), source=source)
    member_cards(settings, source=source)
    graph = charter_graph(settings, base=charter.parent, source=source)
    _check_rule(settings, graph, source)
    text = set_pins(text, _pins(task, topology_digest(graph)), source=source)
    check_charter(text.encode(), base=charter.parent, source=source)
    write_text(charter, text)
    names = [member.name for member in settings.member]
    rows = [
        ("charter", source),
        ("members", ", ".join(names)),
        ("edges", str(len(graph.edges))),
        ("words", " ".join(words(consortium_id(text.encode())))),
        ("next", f"each founder: grapevine consortium sign {source} --state DIR --out NAME.sig"),
    ]
    emit({"charter": source, **_identity(text.encode()), "members": names}, as_json, columns(rows))


@app.command()
def sign(
    charter: CharterArgument,
    state: StateOption,
    out: Annotated[Path, typer.Option("--out", help="Where to write the signature.")],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign the charter's exact bytes with this member's key.

    Example: grapevine consortium sign heart.toml --state /var/lib/grapevine --out clinic-a.sig
    """
    body = read_draft(charter)
    settings, cards, _ = check_charter(body, base=charter.parent, source=str(charter))
    keys = load_keys(state, passphrase=read_passphrase(passphrase_file))
    if keys.member is None:
        raise ConfigError(f"{state}: the member key is not here, and only it can sign a charter")
    mine = cards.get(keys.name)
    if mine is None or NodeId(mine.node_id) != keys.node_id:
        raise ConfigError(f"{charter}: '{keys.name}' ({short_id(keys.node_id)}…) is not a member")
    if mine.node_key != keys.node.public:
        raise ConfigError(
            f"{charter}: the card of '{keys.name}' names another node key than {state}"
        )
    _check_pins(settings, str(charter))
    write_text(out, sign_charter(keys.member, keys.node_id, body))
    rows = [
        ("signed", f"{charter} ({settings.name}, {len(cards)} members)"),
        ("signature", str(out)),
        ("words", " ".join(words(consortium_id(body)))),
        ("next", "mail the signature to whoever seals the charter"),
    ]
    emit({"signature": str(out), "signer": keys.name, **_identity(body)}, as_json, columns(rows))


@app.command(name="seal")
def seal_command(
    charter: CharterArgument,
    signatures: Annotated[
        list[Path], typer.Argument(metavar="SIGNATURE…", help="Every founder's signature.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where to write the consortium.")],
    as_json: JsonOption = False,
) -> None:
    """Join the charter and all founders' signatures into one file.

    Example: grapevine consortium seal heart.toml clinic-*.sig --out heart.consortium
    """
    body = read_draft(charter)
    _, cards, _ = check_charter(body, base=charter.parent, source=str(charter))
    found: dict[NodeId, bytes] = {}
    for path in signatures:
        signer, signature = read_signature(read_text(path), body, source=str(path))
        if signer in found:
            raise ConfigError(f"{path}: a signature of {_signer(cards, signer)} was given already")
        found[signer] = signature
    check_founders(body, found, founders(cards), source=str(charter))
    write_text(out, seal(body, found))
    rows = [
        ("consortium", str(out)),
        ("signed by", ", ".join(sorted(cards))),
        ("words", " ".join(words(consortium_id(body)))),
        ("next", f"each member: grapevine consortium verify {out}, and read the words aloud"),
    ]
    result = {"consortium": str(out), "signed_by": sorted(cards), **_identity(body)}
    emit(result, as_json, columns(rows))


@app.command()
def show(
    consortium: SealedArgument,
    as_json: JsonOption = False,
    charter: Annotated[
        bool, typer.Option("--charter", help="Print the charter's exact text instead.")
    ] = False,
) -> None:
    """Show members, graph and policy of a consortium.

    Example: grapevine consortium show heart.consortium
    """
    if charter:
        body = unseal(read_text(consortium), source=str(consortium)).body
        typer.echo(body.decode("utf-8", "replace"), nl=False)
        return
    found = load_consortium(consortium)
    emit(_described(found), as_json, _shown(found))


@app.command()
def verify(consortium: SealedArgument, as_json: JsonOption = False) -> None:
    """Check every signature, card and pin, and print six words to read aloud.

    Example: grapevine consortium verify heart.consortium

    When all members read the same six words to one another, all hold the same charter.
    """
    found = load_consortium(consortium)
    _check_pins(found.settings, str(consortium))
    rows = [
        ("consortium", found.settings.name),
        ("signed by", ", ".join(found.names)),
        ("words", " ".join(words(found.id))),
    ]
    result = {
        "name": found.settings.name,
        "signed_by": list(found.names),
        **_identity(found.sealed.body),
    }
    emit(result, as_json, columns(rows))


def read_draft(path: Path) -> bytes:
    """A charter's exact bytes. Raises ConfigError for a file that is none, or a sealed one."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if b"-----BEGIN GRAPEVINE" in body[:4096]:
        raise ConfigError(f"{path}: an armoured file where a charter (TOML) is expected")
    return body


def _identity(body: bytes) -> dict[str, Any]:
    identity = consortium_id(body)
    return {"id": identity.hex(), "words": list(words(identity))}


def _signer(cards: dict[str, Any], signer: NodeId) -> str:
    names = {NodeId(card.node_id): name for name, card in cards.items()}
    return names.get(signer, short_id(signer))


def _mailed(draft: CharterSettings, charter: Path, given: Sequence[Path]) -> list[MailedCard]:
    """The cards given, then those that the draft's members name by path. Raises ConfigError."""
    paths = [*given]
    paths += [charter.parent / member.card for member in draft.member if member.card is not None]
    named = {member.card: member.name for member in draft.member if member.card is not None}
    read: dict[Path, MailedCard] = {}
    for path in paths:
        if path.resolve() in read:
            if path in given[: given.index(path)] or given.count(path) > 1:
                raise ConfigError(f"{path}: this card is listed twice")
            continue  # named in the draft and on the command line alike
        card, signed = read_card(read_text(path), source=str(path))
        read[path.resolve()] = MailedCard(card, signed, str(path))
    for relative, name in named.items():
        mailed = read[(charter.parent / relative).resolve()]
        if mailed.card.name != name:
            raise ConfigError(
                f"{charter}: member '{name}': {relative} is the card of '{mailed.card.name}'"
            )
    return list(read.values())


def _split_sizes(settings: CharterSettings, source: str) -> dict[str, int]:
    """What each member trains on, where the task's own split says it. Raises ConfigError."""
    from node.learning.data import BUILT_IN, parts

    if settings.task.name not in BUILT_IN:
        return {}
    names = [member.name for member in settings.member]
    try:
        made = parts(settings.task, names, seed=settings.learning.seed)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return {name: part.samples for name, part in made.items()}


def _task(settings: CharterSettings, source: str) -> Task:
    """The task without rows, its optimiser tried. Raises ConfigError."""
    from node.learning import optimizers
    from node.learning.tasks import bare_task
    from node.learning.vector import FlatModel

    try:
        task = bare_task(settings.task, seed=settings.learning.seed)
        optimizers.build(task, settings.learning, FlatModel(task))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return task


def _check_rule(settings: CharterSettings, graph: Graph, source: str) -> None:
    from node.learning.rules import check_rule

    models = {name: 1 + graph.degree(name) for name in graph.nodes}
    try:
        check_rule(settings.learning.rule, settings.learning.f, models)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_pins(settings: CharterSettings, source: str) -> None:
    """Make the model on this machine: who signs or verifies knows that its node can start.

    Raises ConfigError naming what differs from the charter's pins.
    """
    pinned = settings.pins
    assert pinned is not None
    made = _pins(_task(settings, source), bytes.fromhex(pinned.topology))
    for key in ("schema", "initial", "code"):
        theirs, ours = getattr(pinned, key), getattr(made, key)
        if theirs != ours:
            raise ConfigError(
                f"{source}: key 'pins.{key}': the charter pins {theirs[:16]}, this machine makes "
                f"{ours[:16]}"
            )


def _pins(task: Task, topology: bytes) -> PinSettings:
    from node.learning.vector import code_digest, initial_digest, schema_digest

    return PinSettings(
        topology=topology.hex(),
        schema=schema_digest(task).hex(),
        initial=initial_digest(task).hex(),
        code=code_digest(task).hex(),
    )


def _described(found: Consortium) -> dict[str, Any]:
    ids = {member.name: member.id for member in found.roster.members.values()}
    members = [
        {
            "name": member.name,
            "id": member.id,
            "samples": member.samples,
            "addresses": list(member.addresses),
            "seat": seat(found.id, ids[member.name], found.roster.epoch).hex(),
            "neighbours": list(found.graph.neighbours(member.name)),
        }
        for member in found.settings.member
    ]
    return {
        "name": found.settings.name,
        **_identity(found.sealed.body),
        "training": found.training.hex(),
        "task": found.settings.task.name,
        "rounds": found.policy.rounds,
        "final_mixing": found.policy.final_mixing,
        "rule": found.policy.rule,
        "f": found.policy.f,
        "members": members,
        "edges": [list(edge) for edge in found.graph.edges],
    }


def _shown(found: Consortium) -> str:
    policy = found.policy
    head = columns(
        [
            ("consortium", found.settings.name),
            ("words", " ".join(words(found.id))),
            ("task", found.settings.task.name),
            ("rounds", f"{policy.rounds}, then {policy.final_mixing} of mixing alone"),
            ("rule", policy.rule if policy.rule == "mean" else f"{policy.rule}, f = {policy.f}"),
        ]
    )
    lines = [head, ""]
    for member in found.settings.member:
        where = ", ".join(member.addresses) or "dials out only"
        peers = ", ".join(found.graph.neighbours(member.name))
        lines.append(f"{member.name}: {member.samples} samples; {where}; neighbours {peers}")
    return "\n".join(lines)
