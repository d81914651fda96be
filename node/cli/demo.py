"""`grapevine demo`: five hospitals on this machine learn together, each in a process of its own."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from node.errors import ConfigError, StorageError


class Transport(StrEnum):
    """How the hospitals of the demo reach one another."""

    TCP = "tcp"
    MQTT = "mqtt"


if TYPE_CHECKING:
    from rich.console import Console

    from scenarios.record import Alone, NodeRun, Run
    from scenarios.settings import Scenario

SCENARIO: Final = "hospitals"
FOLDER: Final = Path("grapevine-demo")
# A terminal narrower than this would fold the rows; into a file nothing needs to fold.
WIDTH_MIN: Final = 88
LINGER_S: Final = 1.0
EVERY: Final = 10  # rounds between two plain lines of one hospital


def demo(
    *,
    kill: Annotated[
        str | None,
        typer.Option(metavar="NAME@ROUND", help="Kill this hospital's process at its round."),
    ] = None,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Keys, logs, models and report go here.")
    ] = FOLDER,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the split and the batches.")] = None,
    transport: Annotated[
        Transport,
        typer.Option(help="mqtt: through a broker that it starts, with no port at any hospital."),
    ] = Transport.TCP,
    rounds: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="With local training.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the result as JSON; - prints it."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; else DIR/report.html.")
    ] = None,
) -> None:
    """Five hospitals train one model on 569 real patients: no server, five processes.

    Example: grapevine demo --kill clinic-c@10

    Founds a consortium in DIR (keys, a charter signed by all five), starts five processes, shows
    them learn, and compares what each reaches alone and with the others.
    """
    from rich.console import Console

    from scenarios.processes import clear

    to_stdout = json_file is not None and str(json_file) == "-"
    console = Console(stderr=to_stdout, highlight=False)
    if not console.is_terminal or console.width < WIDTH_MIN:
        console.width = max(console.width, WIDTH_MIN)
    scenario = demo_scenario(rounds=rounds, seed=seed, kill=kill)
    clear(directory)
    page = report or directory / "report.html"
    began = time.monotonic()
    run = _run(scenario, directory, console, transport)
    _write(run, directory, page, None if to_stdout else json_file)
    show(run, console)
    _where(directory, page, console, time.monotonic() - began)
    if to_stdout:
        from scenarios.record import result

        typer.echo(json.dumps(result(run), ensure_ascii=False, indent=2))
    left = [n.name for n in run.nodes if n.ended not in ("finished", "killed")]
    if left or not run.finished:
        for node in run.nodes:
            if node.name in left:
                console.print(f"{node.name}: {node.ended}", markup=False, style="red")
        raise typer.Exit(3)


def demo_scenario(
    *, rounds: int | None = None, seed: int | None = None, kill: str | None = None
) -> Scenario:
    """The library's hospitals on this machine's own network and speed.

    Raises ConfigError for a --kill that cannot be.
    """
    from msgspec import structs

    from scenarios.expected import ExpectSettings
    from scenarios.settings import (
        ComputeSettings,
        NetworkSettings,
        check_scenario,
        load_scenario,
    )
    from scenarios.vocabulary import EventSettings

    library = load_scenario(SCENARIO)
    settings = library.settings
    learning = settings.learning
    # nobody comes back here to be served
    learning = structs.replace(learning, linger_s=min(learning.linger_s, LINGER_S))
    if rounds is not None:
        learning = structs.replace(learning, rounds=rounds)
    events: tuple[EventSettings, ...] = ()
    if kill is not None:
        name, round_ = _parse_kill(kill, library.graph.nodes, learning.rounds)
        events = (EventSettings(at=f"round {round_}", crash=name),)
    settings = structs.replace(
        settings,
        learning=learning,
        # what is measured is real: no padding, no delay, and nothing that it must reach
        compute=ComputeSettings(step_ms=0.0),
        network=NetworkSettings(latency_ms=0.0),
        link=(),
        event=events,
        expect=ExpectSettings(),
    )
    return check_scenario(settings, source=library.source).with_seed(seed)


def _parse_kill(text: str, names: tuple[str, ...], rounds: int) -> tuple[str, int]:
    from node.strict import nearest

    name, at, number = text.partition("@")
    if not at or not number.isascii() or not number.isdigit():
        raise ConfigError(f"--kill {text}: expected NAME@ROUND, such as clinic-c@10")
    if name not in names:
        raise ConfigError(f"--kill {text}: no hospital '{name}'{nearest(name, names)}")
    if not 1 <= int(number) < rounds:
        raise ConfigError(
            f"--kill {text}: round {number} is not from 1 to {rounds - 1}, the rounds before the "
            "training's last"
        )
    return name, int(number)


# ── while it runs ───────────────────────────────────────────────────────────────────────────────


def _run(scenario: Scenario, directory: Path, console: Console, transport: Transport) -> Run:
    with ExitStack() as stack:
        url = None
        if transport is Transport.MQTT:
            from scenarios.broker import broker
            from scenarios.ports import free_ports

            url = stack.enter_context(broker(free_ports(1)[0]))
            console.print(f"A broker of its own at {url}; the hospitals listen nowhere.")
        return _run_nodes(scenario, directory, console, url)


def _run_nodes(scenario: Scenario, directory: Path, console: Console, broker: str | None) -> Run:
    from node.status.board import Board
    from scenarios.processes import run_processes

    learning = scenario.settings.learning
    names = scenario.graph.nodes
    console.print(
        f"Five hospitals, {len(scenario.graph.edges)} links, no server. Each keeps its patients; "
        f"{learning.rounds} rounds of training.\nFounding the consortium and starting "
        f"{len(names)} processes …"
    )
    if not console.is_terminal:
        plain = _Plain(console)
        return run_processes(scenario, directory=directory, on_progress=plain, broker=broker)
    with Board(console) as board:

        def live(event: dict[str, Any]) -> None:
            for one in _for_people(event):
                board(one)

        return run_processes(scenario, directory=directory, on_progress=live, broker=broker)


def _for_people(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Events as the board takes them: a fault becomes what it does to each node."""
    if event["event"] != "fault":
        return [event]
    return [
        {"event": "stopping", "node": name, "at": event["at"], "why": "killed"}
        for name in event["nodes"]
    ]


class _Plain:
    """Lines for a file or a pipe: the first round, every tenth, and what is out of the ordinary."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: dict[str, Any]) -> None:
        from node.status.progress import sentence

        for one in _for_people(event):
            kind = one["event"]
            if kind == "round" and one["round"] > 1 and one["round"] % EVERY:
                continue
            if kind in ("linked", "ready", "waiting", "finished"):
                continue
            line = sentence(one)
            if line:
                self._console.print(f"{one['node']}: {line}", markup=False, soft_wrap=True)


# ── afterwards ──────────────────────────────────────────────────────────────────────────────────


def show(run: Run, console: Console) -> None:
    """The result for people: alone and together, on common and on own patients; who was missing."""
    from rich.markup import escape

    tests = max((node.test_rows for node in run.nodes), default=0)
    console.print()
    console.print(_table(run, f"On the {tests} patients held out for all", own=False))
    console.print()
    console.print(_table(run, "On each hospital's own held-out patients", own=True))
    console.print(
        "alone: the same steps on its own patients only; pooled: one model on all patients' data, "
        "which no hospital here could make. Ranges are 95 % intervals."
    )
    for line in absences(run):
        console.print(f"[yellow]{escape(line)}[/yellow]")
    sent = sum(node.sent_bytes for node in run.nodes)
    distance = ""
    if run.consensus_distance is not None and run.consensus_relative is not None:
        distance = (
            f"Consensus distance {run.consensus_distance:.2g} "
            f"({100 * run.consensus_relative:.2g} % of the model's norm); "
        )
    console.print(
        f"\n{distance}{sent / 1e6:.2f} MB sent in all, over {run.wall_s:.1f} s and "
        f"{run.rounds} rounds ({run.training_rounds} with training)."
    )
    for check in run.checks:
        if not check.ok:
            console.print(f"Did not hold: {check.name}: {check.value}", markup=False, style="red")


def _table(run: Run, title: str, *, own: bool) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    prefix = "own_" if own else ""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # else a terminal of 80 columns cuts words off
    )
    table.add_column("hospital", no_wrap=True)
    table.add_column("held out" if own else "patients", justify="right", no_wrap=True)
    for figure in ("accuracy", "AUROC"):
        table.add_column(f"{figure}\nalone", justify="right", no_wrap=True)
        table.add_column(f"{figure}\ntogether", justify="right", no_wrap=True)
    if not own:
        table.add_column("MB\nsent", justify="right", no_wrap=True)
        table.add_column("ended")
    alone = {a.node: a for a in run.baselines.local_only} if run.baselines else {}
    for node in run.nodes:
        cells = [escape(node.name), str(node.own_test_rows if own else node.samples)]
        for key in (f"{prefix}accuracy", f"{prefix}auroc"):
            before = alone.get(node.name)
            tested = node.own_test_rows if own else node.test_rows
            cells.append(figure_text(before, key, tested) if before else "–")
            cells.append(figure_text(node, key, tested))
        if not own:
            finished = node.ended == "finished"
            ended = node.ended if finished else f"{node.ended.split(':')[0]}, round {node.rounds}"
            cells.append(f"{node.sent_bytes / 1e6:.2f}")
            cells.append(escape(ended) if finished else f"[red]{escape(ended)}[/red]")
        table.add_row(*cells)
    pooled = run.baselines.pooled if run.baselines else None
    if pooled is not None:
        table.add_section()
        rows = sum(node.own_test_rows if own else node.samples for node in run.nodes)
        tests = max(node.test_rows for node in run.nodes)
        cells = ["(pooled)", str(rows)]
        for key in (f"{prefix}accuracy", f"{prefix}auroc"):
            cells += ["", figure_text(pooled, key, rows if own else tests)]
        table.add_row(*cells, *([] if own else ["", ""]))
    return table


def figure_text(of: NodeRun | Alone, key: str, rows: int) -> str:
    """A share in percent, with its 95 % interval below where there is one.

    rows: how many it was tested on, enough for an accuracy's interval.
    """
    from node.learning.metrics import wilson

    value = getattr(of, key)
    if value is None:
        return "–"
    interval = of.intervals.get(key)
    if interval is None and rows and key.endswith("accuracy"):
        interval = wilson(round(value * rows), rows)
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text}\n{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def absences(run: Run) -> list[str]:
    """Who was missing, since when and why, in sentences."""
    lines = [
        f"{node.name} was killed after its round {node.rounds}."
        for node in run.nodes
        if node.ended == "killed"
    ]
    grouped: dict[tuple[str, int, int, int], list[tuple[str, str]]] = {}
    for node in run.nodes:
        for missed in node.missed:
            key = (missed.peer, missed.first, missed.last, missed.rounds)
            grouped.setdefault(key, []).append((node.name, missed.why))
    for (peer, first, last, rounds), told in sorted(grouped.items()):
        until = "the end" if last >= run.rounds else f"round {last}"
        names = ", ".join(name for name, _ in told)
        lines.append(
            f"{peer} was missing from round {first} to {until} ({rounds} rounds) at {names}: "
            f"{told[-1][1]}."
        )
    return lines


def _write(run: Run, directory: Path, page: Path, json_file: Path | None) -> None:
    from scenarios.record import result
    from scenarios.report.html import write_report

    text = json.dumps(result(run), ensure_ascii=False, indent=2) + "\n"
    for path in {directory / "result.json", json_file or directory / "result.json"}:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
    write_report(run, page)


def _where(directory: Path, page: Path, console: Console, took_s: float) -> None:
    rows = [
        ("report", page),
        ("result", directory / "result.json"),
        ("models", directory / "*" / "state" / "model.safetensors"),
        ("logs", directory / "*" / "log.jsonl"),
        ("charter", directory / f"{SCENARIO}.toml"),
    ]
    console.print()
    for name, path in rows:
        console.print(f"{name:<8} {path}", markup=False, soft_wrap=True)
    console.print(f"\nDone in {took_s:.1f} s.")
