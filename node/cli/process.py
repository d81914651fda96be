"""`grapevine start`, `stop` and `status`: one member's node on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.keys import PassphraseOption, read_passphrase
from node.cli.output import JsonOption, columns, emit
from node.errors import ConfigError
from node.status.ask import NotRunning, ask
from node.strict import load_toml
from node.types.settings import NodeSettings

if TYPE_CHECKING:
    from node.status.progress import Sink

NodeArgument = Annotated[
    Path | None, typer.Argument(metavar="NODE.toml", help="The node's own settings.")
]
AnyStateOption = Annotated[
    Path | None,
    typer.Option("--state", envvar="GRAPEVINE_STATE", help="Its state directory, instead."),
]


def start(
    node: Annotated[Path, typer.Argument(metavar="NODE.toml", help="The node's own settings.")],
    passphrase_file: PassphraseOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every event as a JSON line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Run this member's node until the training is done.

    Example: grapevine start NODE.toml

    NODE.toml needs state = "DIR" and consortium = "FILE"; listen = "0.0.0.0:7400" unless the node
    dials out only. Ctrl-C or `grapevine stop` ends it in order; started again, it resumes.
    """
    from node.runtime import run_node
    from node.status.progress import last_words

    settings = load_toml(node, NodeSettings)
    passphrase = read_passphrase(passphrase_file or _beside(node, settings.passphrase_file))
    with _shown("nothing" if quiet else "json" if as_json else "people") as sinks:
        result = run_node(settings, base=node.parent, passphrase=passphrase, sinks=sinks)
    if not quiet and not as_json:
        typer.echo(f"{result['name']}: {last_words(result)}")


@contextmanager
def _shown(how: str) -> Iterator[tuple[Sink, ...]]:
    """Where events go: a live row in a terminal, lines of text elsewhere, JSON, or nowhere."""
    from rich.console import Console

    from node.status.board import Board
    from node.status.progress import Background, JsonLines, PlainLines

    console = Console()
    with ExitStack() as stack:
        if how == "nothing":
            yield ()
            return
        sink: Sink = JsonLines(sys.stdout) if how == "json" else PlainLines(sys.stdout)
        if how == "people" and console.is_terminal:
            sink = stack.enter_context(Board(console))
        yield (stack.enter_context(Background(sink)),)


def stop(
    node: NodeArgument = None,
    state: AnyStateOption = None,
    after_round: Annotated[
        bool, typer.Option("--after-round", help="Only once the round in hand is mixed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop a running node in order.

    It writes a checkpoint and says good-bye to its neighbours; nothing is lost.

    Example: grapevine stop NODE.toml --after-round
    """
    answer = ask(_state(node, state), {"do": "stop", "after_round": after_round})
    when = "after this round" if after_round else "now"
    emit(answer, as_json, f"{answer['name']} stops {when}, at round {answer['round']}")


def status(
    node: NodeArgument = None,
    state: AnyStateOption = None,
    alive: Annotated[
        bool, typer.Option("--alive", help="Exit with code 1 unless a node runs: a health check.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a node is doing, or how its last run ended.

    Example: grapevine status NODE.toml --json
    """
    folder = _state(node, state)
    try:
        answer = ask(folder, {"do": "status"})
    except NotRunning:
        answer = _last(folder)
    emit(answer, as_json, _words(answer))
    if alive and not answer["running"]:
        raise typer.Exit(1)


def _beside(file: Path, name: str | None) -> Path | None:
    return None if name is None else file.parent / name


def _state(node: Path | None, state: Path | None) -> Path:
    """The state directory meant. Raises ConfigError unless it is said, and exists."""
    if node is not None:  # said outright; GRAPEVINE_STATE may be set for other commands
        folder = node.parent / load_toml(node, NodeSettings).state
    elif state is not None:
        folder = state
    else:
        raise ConfigError("which node? give its NODE.toml or --state DIR")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such state directory")
    return folder


def _last(folder: Path) -> dict[str, Any]:
    """What the last run left. Never raises for a result that is absent or damaged."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return {"running": False, "result": found if isinstance(found, dict) else None}


def _words(answer: dict[str, Any]) -> str:
    if not answer["running"]:
        result = answer["result"]
        if result is None:
            return "not running; it has not finished a run here yet"
        reached = _accuracy(result.get("accuracy"))
        return (
            f"not running; last run {result.get('ended')} at round {result.get('rounds')}{reached}"
        )
    via = answer.get("via", {})
    linked = ", ".join(_with(name, via.get(name)) for name in answer["linked"]) or "nobody"
    rows = [
        ("node", f"{answer['name']} (process {answer['pid']})"),
        ("phase", answer["phase"]),
        ("round", f"{answer['round']} of {answer['rounds']}{_accuracy(answer['accuracy'])}"),
        ("linked", f"{len(answer['linked'])} of {answer['neighbours']}: {linked}"),
        ("bytes", f"{answer['sent_bytes']} sent, {answer['received_bytes']} received"),
    ]
    if (broker := answer.get("broker")) is not None:
        away = "" if broker["up"] else "away: "
        rows.append(("broker", f"{away}{broker['why']}"))
    for what, key in (("refused", "rejections"), ("turned away", "refused_connections")):
        if answer[key]:
            rows.append((what, ", ".join(f"{n} × {why}" for why, n in answer[key].items())))
    return columns(rows)


def _with(name: str, via: str | None) -> str:
    return f"{name} ({via})" if via else name


def _accuracy(value: Any) -> str:
    return f", accuracy {value:.3f}" if isinstance(value, float) else ""
