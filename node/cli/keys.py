"""`grapevine keygen` and `grapevine id`: a member's keys, and the card it mails to the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from crypto.card import make_card
from crypto.identity import format_id
from crypto.keys import MEMBER_FILE, create_keys, load_keys
from node.cli.output import JsonOption, columns, emit
from node.errors import ConfigError, StorageError

PASSPHRASE_BYTES_MAX = 4096

StateOption = Annotated[
    Path, typer.Option("--state", envvar="GRAPEVINE_STATE", help="The node's state directory.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="GRAPEVINE_PASSPHRASE_FILE",
        help="A file whose first line is the keys' passphrase.",
    ),
]


def keygen(
    name: Annotated[str, typer.Option("--name", help="The member's name, such as clinic-a.")],
    state: StateOption,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the member key and the node key of a new member.

    Example: grapevine keygen --name clinic-a --state /var/lib/grapevine

    Both are written with mode 0600 and never replaced. The member key (member.key) signs the
    charter and may be moved to a safe place afterwards; the node runs without it.
    """
    keys = create_keys(state, name, passphrase=read_passphrase(passphrase_file))
    identity = format_id(keys.node_id)
    text = columns(
        [
            ("name", keys.name),
            ("id", identity),
            ("keys", str(state)),
            ("next", f"grapevine id --state {state} --address tcp://HOST:7400 --card {name}.card"),
        ]
    )
    emit({"name": keys.name, "id": identity, "state": str(state)}, as_json, text)


def identity(
    *,
    state: StateOption,
    card: Annotated[
        Path | None, typer.Option("--card", help="Write the card to mail to the others here.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", help="Where others reach this node; may be repeated."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Rows this member trains on: its weight.")
    ] = 0,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who this node is, or write its card.

    Example: grapevine id --state /var/lib/grapevine --address tcp://gv.a.example:7400
    --samples 812 --card clinic-a.card

    A member without an address dials out only. Without --samples the weight follows from the
    task's split, which only the built-in tasks have.
    """
    keys = load_keys(state, passphrase=read_passphrase(passphrase_file))
    text = format_id(keys.node_id)
    if card is None and (address or samples):
        raise ConfigError("--address and --samples are for a card: say --card FILE too")
    if card is not None:
        written = make_card(keys, addresses=address or (), samples=samples)
        write_text(card, written)
        text = columns(
            [("id", text), ("card", str(card)), ("next", "mail the card to the founder")]
        )
    result = {
        "name": keys.name,
        "id": format_id(keys.node_id),
        "node_key": keys.node.public.hex(),
        "member_key_here": (state / MEMBER_FILE).exists(),
        "card": str(card) if card else None,
    }
    emit(result, as_json, text)


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of the passphrase file; None where none is named. Raises ConfigError."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            line = file.readline(PASSPHRASE_BYTES_MAX).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{path}: the passphrase cannot be read: {error.strerror}") from None
    if not line:
        raise ConfigError(f"{path}: the passphrase file is empty")
    return line


def write_text(path: Path, text: str) -> None:
    """Write a file that is meant for others. Whole or not at all. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text.encode())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
