"""`grapevine broker`: what whoever runs a consortium's mosquitto needs, and what members need."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from msgspec import Struct

from node import broker as files
from node.cli.output import JsonOption, columns, emit
from node.consortium import Consortium, load_consortium
from node.errors import StorageError
from node.storage.files import write_durably
from node.transport.addresses import BrokerAddress, seat

FOLDER: Final = "broker"
_SECRET: Final = 0o600
_PUBLIC: Final = 0o644


class Written(Struct, frozen=True):
    """Where everything lies: ``config`` goes to the broker, ``authority`` and passwords do not."""

    address: BrokerAddress
    config: Path
    authority: Path | None  # ca.pem; None where the broker is reached without TLS
    passwords: dict[str, Path]  # by member


def broker(
    consortium: Annotated[
        Path, typer.Argument(metavar="CONSORTIUM", help="Such as heart.consortium.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(FOLDER),
    as_json: JsonOption = False,
) -> None:
    """Write what a mosquitto needs to be this consortium's broker.

    Example: grapevine broker heart.consortium --out broker

    All cards must name one broker. OUT/mosquitto is for /mosquitto/config: settings, a user and
    rights for each member, a certificate. OUT/members has each member's password, and ca.pem, the
    authority for [mqtt] ca_file. Written again, as is due when members change, passwords and
    certificate stay as they are.
    """
    written = write(load_consortium(consortium), out)
    members = out / "members"
    rows = [
        ("broker", str(written.address)),
        ("settings", str(written.config)),
        ("passwords", f"{members}/NAME.password, each for its member alone"),
    ]
    if written.authority is not None:
        rows.append(("authority", f"{written.authority}, for all members"))
    told = {
        "broker": str(written.address),
        "settings": str(written.config),
        "authority": None if written.authority is None else str(written.authority),
        "passwords": {name: str(path) for name, path in written.passwords.items()},
    }
    emit(told, as_json, columns(rows))


def write(found: Consortium, out: Path) -> Written:
    """Write all files below ``out``. Raises ConfigError, StorageError."""
    address = files.meeting_place(found.settings, source=str(found.path))
    config, members = out / "mosquitto", out / "members"
    try:
        for folder in (out, config, members):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        passwords = _passwords(members, found.names)
        users = "".join(
            files.hashed(name, path.read_text(encoding="utf-8").strip())
            for name, path in passwords.items()
        )
        _write(config / "mosquitto.conf", files.settings_of(address, members=len(found.names)))
        _write(config / "acl", files.rights(_seats(found)), mode=_SECRET)
        _write(config / "passwords", users, mode=_SECRET)
        authority = None if address.scheme == "mqtt" else members / "ca.pem"
        if authority is not None and not _certified(config, authority, address.host):
            made = files.certified(address.host, now=datetime.now(UTC))
            _write(config / "broker.key", made.key, mode=_SECRET)
            _write(config / "broker.pem", made.certificate)
            _write(config / "ca.pem", made.authority)
            _write(authority, made.authority)
    except OSError as error:
        raise StorageError(f"{error.filename or out}: {error.strerror}") from None
    return Written(address, config, authority, passwords)


def _passwords(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Each member's password file; a new one where there is none yet."""
    made = {name: folder / f"{name}.password" for name in names}
    for path in made.values():
        if not path.exists():
            _write(path, files.new_password() + "\n", mode=_SECRET)
    return made


def _certified(config: Path, authority: Path, host: str) -> bool:
    """Whether all files of a certificate for ``host`` are there."""
    certificate = config / "broker.pem"
    needed = (authority, config / "ca.pem", config / "broker.key", certificate)
    return all(path.exists() for path in needed) and files.names_host(
        certificate.read_text(encoding="utf-8"), host
    )


def _seats(found: Consortium) -> dict[str, str]:
    epoch = found.roster.epoch
    ids = {member.name: member.id for member in found.roster.members.values()}
    return {name: seat(found.id, ids[name], epoch).hex() for name in found.names}


def _write(path: Path, text: str, *, mode: int = _PUBLIC) -> None:
    write_durably(path, text.encode(), mode=mode)
