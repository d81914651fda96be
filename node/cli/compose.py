"""`grapevine compose`: a compose file for a consortium, or for one member of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from crypto.armour import read_text
from crypto.keys import validate_name
from node import compose as files
from node import compose_parts as parts
from node.broker import meeting_place
from node.cli.broker import FOLDER as BROKER_FOLDER
from node.cli.broker import write as write_broker
from node.cli.consortium import read_draft
from node.cli.keys import write_text
from node.cli.output import JsonOption, columns, emit
from node.consortium import Consortium, load_consortium, read_charter
from node.errors import ConfigError, StorageError
from node.strict import nearest

FILE = "docker-compose.yml"


def compose(
    consortium: Annotated[
        Path, typer.Argument(metavar="CONSORTIUM", help="Sealed; with --demo a draft charter.")
    ],
    *,
    member: Annotated[
        str | None, typer.Option(help="Only this member's node: a real organisation's file.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="With a service that makes everybody's keys.")
    ] = False,
    build: Annotated[
        Path | None, typer.Option(help="With --demo: build the image from this checkout.")
    ] = None,
    states: Annotated[
        Path | None, typer.Option(help="Keys lie in STATES/NAME, not in volumes.")
    ] = None,
    broker: Annotated[
        bool,
        typer.Option("--broker", help="Members meet at a broker of the file's, over no other way."),
    ] = False,
    image: Annotated[str, typer.Option(help="The image that nodes run.")] = parts.IMAGE,
    subnets: Annotated[
        str, typer.Option(help="Private addresses out of which each network gets eight.")
    ] = parts.SUBNETS,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a docker-compose.yml: a service for each member, a network for each edge.

    Example: grapevine compose heart.consortium --member clinic-a --out /srv/grapevine

    Example: grapevine compose heart.consortium --states states --broker --out trial

    Beside it NAME.toml, the settings of each node, where there is none yet. With --broker a
    mosquitto is among the services, and no member shares a network with another. Every card must
    name that broker (not with --demo, which makes the cards); its files go to OUT/broker, as by
    `grapevine broker`. Works with docker-compose 1.29 and with Compose 2.
    """
    _check_together(demo=demo, member=member, build=build, states=states, broker=broker)
    folder = out.absolute()
    options = parts.Options(
        command=_said(
            consortium, member=member, demo=demo, build=build, states=states, broker=broker
        ),
        image=image,
        build=None if build is None else _relative(build, folder),
        subnets=parts.read_pool(subnets),
    )
    settings: dict[str, str] = {}
    if demo:
        if broker:
            options = structs.replace(options, broker=files.demonstration_broker())
        text = _demonstration(consortium, folder, options)
    else:
        found = load_consortium(consortium)
        if member is not None:
            text, settings = _alone(found, member, options)
        else:
            if states is not None:
                options = structs.replace(options, states=_states(found, states, folder))
            if broker:
                options = structs.replace(options, broker=_broker(found, folder))
            text, settings = _whole(found, options)
    written = _write(folder, text, settings, None if demo else consortium)
    rows = [("compose", str(out / FILE)), *(("settings", str(out / name)) for name in written)]
    rows.append(("next", f"docker compose -f {out / FILE} up"))
    made = {"compose": str(out / FILE), "settings": [str(out / name) for name in written]}
    emit(made, as_json, columns(rows))


def _check_together(
    *, demo: bool, member: str | None, build: Path | None, states: Path | None, broker: bool
) -> None:
    """Raises ConfigError for options that contradict each other."""
    if demo and member is not None:
        raise ConfigError("--demo makes everybody's keys, --member is one member with its own")
    if demo and states is not None:
        raise ConfigError("--demo makes new keys in volumes, --states says where keys lie")
    if member is not None and states is not None:
        raise ConfigError("--states: with --member the keys lie in that member's volume")
    if member is not None and broker:
        raise ConfigError("--broker: a member's own file needs none; its card says where one is")
    if build is not None and not demo:
        raise ConfigError("--build: goes with --demo; else say --image")
    if build is not None and not (build / "Dockerfile").is_file():
        raise ConfigError(f"--build {build}: there is no Dockerfile")


def _said(consortium: Path, **options: object) -> str:
    """The command as it was called, for the file's first line."""
    words = ["grapevine compose", str(consortium)]
    for key, value in options.items():
        if value is True:
            words.append(f"--{key}")
        elif value:
            words.append(f"--{key} {value}")
    return " ".join(words)


def _alone(found: Consortium, member: str, options: parts.Options) -> tuple[str, dict[str, str]]:
    drafts = {draft.name: draft for draft in found.settings.member}
    if member not in drafts:
        raise ConfigError(f"--member: no member '{member}'{nearest(member, found.names)}")
    addresses = drafts[member].addresses
    sealed = found.path.name
    text = files.alone(found.settings.name, member, addresses, options, sealed=sealed)
    return text, {f"{member}.toml": files.settings_alone(member, addresses, sealed=sealed)}


def _whole(found: Consortium, options: parts.Options) -> tuple[str, dict[str, str]]:
    name, graph, sealed = found.settings.name, found.graph, found.path.name
    if options.broker is None:
        where = files.sites(found.settings, source=str(found.path))
        text = files.whole(name, graph, where, options, sealed=sealed)
        return text, {f"{n}.toml": parts.node_toml(sealed, where[n].port) for n in found.names}
    address = str(meeting_place(found.settings, source=str(found.path)))
    authority = files.AUTHORITY if options.broker.authority else None
    text = files.whole(name, graph, {}, options, sealed=sealed)
    return text, {
        f"{n}.toml": parts.node_toml(sealed, None, files.at_broker(n, address, authority=authority))
        for n in found.names
    }


def _broker(found: Consortium, folder: Path) -> parts.BrokerSite:
    """Write the broker's files to ``folder``/broker; who may read them once they are mounted.

    A member's password is mounted by itself, for whichever user its node runs as: it is the
    folder that keeps everybody else on this machine out.
    """
    written = write_broker(found, folder / BROKER_FOLDER)
    try:
        if os.geteuid() == 0:  # mosquitto would give that up, and then find nothing it may read
            for path in (written.config, *written.config.iterdir()):
                os.chown(path, files.BROKER_USER, files.BROKER_USER)
        for path in written.passwords.values():
            path.chmod(0o644)
        owner = written.config.stat()
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from None
    return parts.BrokerSite(
        host=written.address.host,
        port=written.address.port,
        config=_relative(written.config, folder),
        user=f"{owner.st_uid}:{owner.st_gid}",
        authority=None if written.authority is None else _relative(written.authority, folder),
        passwords={name: _relative(path, folder) for name, path in written.passwords.items()},
    )


def _demonstration(charter: Path, folder: Path, options: parts.Options) -> str:
    from topology.generate import build as build_graph

    settings = read_charter(read_draft(charter), source=str(charter))
    signed = [member.name for member in settings.member if member.signed_card or member.card]
    if signed:
        raise ConfigError(
            f"{charter}: --demo makes new keys, and the charter has the card of '{signed[0]}'"
        )
    if len(settings.member) < 2:
        raise ConfigError(f"{charter}: key 'member': --demo needs at least two, by their names")
    names = [validate_name(member.name) for member in settings.member]
    graph = build_graph(
        settings.topology, names=names, base=charter.parent, source=f"{charter}: [topology]"
    )
    place = _relative(charter, folder)
    return files.demonstration(settings.name, graph, options, charter=place)


def _states(found: Consortium, states: Path, folder: Path) -> dict[str, parts.State]:
    """Every member's state directory and its owner. Raises ConfigError where one is missing."""
    made = {}
    for name in found.names:
        path = states / name
        if not (path / "node.key").is_file():
            raise ConfigError(f"--states: {path}: no node.key, the keys of '{name}' are not here")
        owner = path.stat()
        made[name] = parts.State(_relative(path, folder), owner.st_uid, owner.st_gid)
    return made


def _relative(path: Path, folder: Path) -> str:
    """``path`` as a compose file in ``folder`` names it: from ./ or ../ on."""
    found = os.path.relpath(path.absolute(), folder)
    return found if found.startswith("..") else "." if found == "." else f"./{found}"


def _write(folder: Path, text: str, settings: dict[str, str], consortium: Path | None) -> list[str]:
    """Write what is new; the names of the settings that were. Raises ConfigError, StorageError."""
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_text(encoding="utf-8").startswith(parts.MADE_BY):
            raise ConfigError(f"{path}: is there and was not made by this command; say --out DIR")
        if consortium is not None and consortium.absolute() != folder / consortium.name:
            write_text(folder / consortium.name, read_text(consortium))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    write_text(path, text)
    written = [name for name in settings if not (folder / name).exists()]
    for name in written:
        write_text(folder / name, settings[name])
    return written
