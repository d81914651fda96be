"""From what node processes said and left behind to a Run: rows, ends, distances, verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import torch
from msgspec import Struct, structs

from crypto.identity import NodeId
from node.learning.task import Part
from node.types.events import Equivocation, Publishing, Received, RoundDone, Source
from node.types.messages import SignedHeader
from scenarios.baselines import baselines as train_baselines
from scenarios.checkers import Checkers
from scenarios.expectations import Evidence, Reconvergence, judge, reconvergence, remarks
from scenarios.faults import Crash, Heal, Link, Partition, Restart, Slow
from scenarios.founding import Founded
from scenarios.measures import by_round
from scenarios.partitions import partition_runs
from scenarios.prepare import Founded as Prepared
from scenarios.processes_log import Happened, NodeLog
from scenarios.processes_models import consensus, distances, final_vector, links
from scenarios.record import Check, FaultSpan, Missed, NodeRun, RoundRow, Run

T = TypeVar("T")

# A timer of a process on a busy machine may fire this much late; the deadline itself is the core's.
LATE_S: Final = 5.0
_ROW: Final = tuple(RoundRow.__struct_fields__)


def collect(
    prepared: Prepared,
    founded: Founded,
    logs: Mapping[str, NodeLog],
    happened: Sequence[Happened],
    *,
    setup_s: float,
    wall_s: float,
) -> Run:
    """The Run, without baselines and expectations."""
    from scenarios.simulation import undisturbed

    scenario, graph = prepared.scenario, prepared.scenario.graph
    rows = sorted((row for log in logs.values() for row in _rows(log)), key=lambda row: row.at)
    nodes = tuple(_node(log, rows, prepared.parts[name]) for name, log in logs.items())
    finished = [node for node in nodes if node.ended == "finished"]
    vectors = {node.name: final_vector(logs[node.name].seat) for node in finished}
    spread = consensus({name: v for name, v in vectors.items() if v is not None}, founded)
    found = distances(logs, founded, rows, scenario.partitions)
    # in simulation: real time has no second take
    free = _on_one_thread(lambda: undisturbed(scenario))
    rows = [structs.replace(row, distance=found.own.get((row.node, row.round))) for row in rows]
    policy, faults = founded.consortium.policy, spans(happened)
    return Run(
        scenario=scenario.name,
        engine="processes",
        seed=scenario.seed,
        rounds=policy.last_round,
        training_rounds=policy.rounds,
        graph_nodes=graph.nodes,
        edges=graph.edges,
        nodes=nodes,
        rows=tuple(rows),
        faults=faults,
        distances=found.rows,
        links=links(logs, graph.edges),
        partitions=partition_runs(faults, rows, found.rows, found.apart, free),
        distances_free=tuple(free.distances.items()) if free else (),
        consensus_distance=spread[0] if spread else None,
        consensus_relative=spread[1] if spread else None,
        checks=checks(founded, logs, happened),
        wall_s=wall_s,
        setup_s=setup_s,
        absent=tuple(node.name for node in nodes if node.ended != "finished"),
        task=scenario.settings.task.name,
    )


def judged(
    run: Run,
    prepared: Prepared,
    happened: Sequence[Happened],
    unhappened: Sequence[str],
    *,
    baselines: bool,
) -> Run:
    """The Run with baselines, and the scenario's expectations judged as on any engine."""
    scenario = prepared.scenario
    compared, baselines_s = None, None
    if baselines:
        begun = time.perf_counter()
        compared = _on_one_thread(lambda: train_baselines(scenario, prepared.parts))
        baselines_s = time.perf_counter() - begun
    back = _reconvergence(run, happened)
    down = {span.nodes[0] for span in run.faults if span.kind == "crash" and span.end is None}
    evidence = Evidence(
        nodes=run.nodes,
        could_finish=tuple(node.name for node in run.nodes if node.name not in down),
        distance=run.consensus_distance,
        relative=run.consensus_relative,
        baselines=compared,
        reconvergence=back,
    )
    made = list(judge(scenario, evidence))
    if scenario.faults:
        count, value = len(scenario.faults), ", ".join(unhappened) or len(scenario.faults)
        made.append(Check("every event happened", not unhappened, value, count))
    return structs.replace(
        run,
        baselines=compared,
        baselines_s=baselines_s,
        checks=(*made, *run.checks),
        notes=(*run.notes, *remarks(back)),
    )


def _on_one_thread(work: Callable[[], T]) -> T:
    """Models this small are trained many times faster without a pool that waits by spinning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def _reconvergence(run: Run, happened: Sequence[Happened]) -> Reconvergence | None:
    mended = [one for one in happened if one.fault.mends]
    if not mended or not run.distances_free:
        return None
    return reconvergence(
        by_round(run.distances),
        dict(run.distances_free),
        mended=mended[-1].round,
        broken=happened[0].round,
    )


def _rows(log: NodeLog) -> Iterator[RoundRow]:
    """Every round mixed, with times since the engine's start."""
    for life in log.lives:
        origin = life.origin()
        for _, event in life.events:
            if event["event"] == "round":
                yield _row(event, origin)


def _row(event: Mapping[str, Any], origin: float) -> RoundRow:
    known = {key: event[key] for key in _ROW if key in event}
    known["at"] = origin + float(event["at"])
    return msgspec.convert(known, RoundRow, strict=False)


def _node(log: NodeLog, rows: Sequence[RoundRow], part: Part) -> NodeRun:
    """From result.json where the node wrote one, else from the rounds that were heard."""
    seat, ended = log.seat, log.ended()
    mine = [row for row in rows if row.node == seat.name]
    totals = [_total(log, key) for key in ("sent_bytes", "received_bytes")]
    left = _result(seat.state / "result.json") if ended in ("finished", "stopped") else None
    if left is not None:
        return structs.replace(
            left,
            ended=ended,
            sent_bytes=max(left.sent_bytes, totals[0]),
            received_bytes=max(left.received_bytes, totals[1]),
            jumped=_jumps(log),
            resumed=log.resumed,
        )
    measured = next((row for row in reversed(mine) if row.accuracy is not None), None)
    return NodeRun(
        name=seat.name,
        samples=seat.samples,
        ended=ended,
        rounds=log.round,
        accuracy=measured.accuracy if measured else None,
        auroc=measured.auroc if measured else None,
        own_accuracy=measured.own_accuracy if measured else None,
        loss=next((row.loss for row in reversed(mine) if row.loss is not None), None),
        test_rows=len(part.test),
        own_test_rows=len(part.own_test),
        missed=_missed(mine),
        sent_bytes=totals[0],
        received_bytes=totals[1],
        rejections=_rejections(log),
        half_edges=mine[-1].half_edges if mine else 0,
        late=mine[-1].late if mine else 0,
        jumped=_jumps(log),
        resumed=log.resumed,
    )


def _result(path: Path) -> NodeRun | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {key: found[key] for key in NodeRun.__struct_fields__ if key in found}
        return msgspec.convert(known, NodeRun)
    except (OSError, ValueError):  # msgspec's errors are ValueErrors
        return None


def _total(log: NodeLog, key: str) -> int:
    """Over all lives: each process counts from nought."""
    per_life = (
        max((int(e[key]) for _, e in life.events if e["event"] == "round"), default=0)
        for life in log.lives
    )
    return sum(per_life)


def _jumps(log: NodeLog) -> int:
    return sum(e["event"] == "jumped" for life in log.lives for _, e in life.events)


def _rejections(log: NodeLog) -> dict[str, int]:
    counts: dict[str, int] = {}
    for life in log.lives:
        newest: dict[tuple[str, str], int] = {}
        for _, event in life.events:
            if event["event"] == "rejected":
                newest[event["peer"], event["reason"]] = int(event["count"])
        for (_, reason), count in newest.items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def _missed(rows: Sequence[RoundRow]) -> tuple[Missed, ...]:
    found: dict[str, Missed] = {}
    for row in rows:
        for peer, why in row.missing:
            before = found.get(peer, Missed(peer, 0, row.round, row.round, why))
            found[peer] = Missed(peer, before.rounds + 1, before.first, row.round, why)
    return tuple(found.values())


# ── faults and checks ───────────────────────────────────────────────────────────────────────────


def spans(happened: Sequence[Happened]) -> tuple[FaultSpan, ...]:
    """Faults as spans: a heal ends the partition, a restart the crash."""
    made: list[FaultSpan] = []
    for one in happened:
        at, fault = one.at, one.fault
        nodes: tuple[str, ...] = ()
        sides: tuple[tuple[str, ...], ...] = ()
        pairs: tuple[tuple[str, str], ...] = ()
        match fault:
            case Heal():
                made = [_closed(s, at) if s.kind == "partition" else s for s in made]
                continue
            case Restart():
                back = set(fault.nodes)
                made = [
                    _closed(s, at) if s.kind == "crash" and set(s.nodes) <= back else s
                    for s in made
                ]
                continue
            case Partition():
                nodes = tuple(name for side in fault.sides for name in side)
                sides = fault.sides
            case Crash() | Slow():
                nodes = fault.nodes
            case Link():
                nodes = tuple(sorted({name for pair in fault.pairs for name in pair}))
                pairs = fault.pairs
        if isinstance(fault, Crash):
            made += [
                FaultSpan(kind="crash", nodes=(name,), start=at, label=f"{name} killed")
                for name in nodes
            ]
        else:
            made.append(
                FaultSpan(
                    kind=fault.kind,
                    nodes=nodes,
                    start=at,
                    label=fault.label,
                    sides=sides,
                    pairs=pairs,
                )
            )
    return tuple(made)


def _closed(span: FaultSpan, at: float) -> FaultSpan:
    return structs.replace(span, end=at) if span.end is None else span


def checks(
    founded: Founded, logs: Mapping[str, NodeLog], happened: Sequence[Happened]
) -> tuple[Check, ...]:
    """What must hold of any run, as far as it shows from outside the processes."""
    policy, roster = founded.consortium.policy, founded.consortium.roster
    waited = [e["waited_s"] for log in logs.values() for e in _events(log, "round")]
    limit, longest = policy.deadline_max_s + LATE_S, max(waited, default=0.0)
    made = Check("nobody waits longer than the deadline", longest <= limit, longest, limit)
    watching = Checkers(roster, policy)
    ids = {member.name: member.id for member in roster.members.values()}
    rounds: dict[str, int] = {}
    cut_at = at_end = 0.0
    for at, who, what in _timeline(logs, happened):
        at_end = at
        if isinstance(what, Happened):
            if isinstance(what.fault, Partition):
                watching.cut(what.fault, at, rounds)
                cut_at = at
            elif isinstance(what.fault, Heal):
                watching.healed(at, rounds, long=at - cut_at > 2 * limit)
            continue
        if what["event"] == "round":
            rounds[who] = what["round"]
        notice = _notice(what, ids)
        if notice is not None:
            watching.notice(ids[who], notice, at)
    watching.end(at_end)
    found = watching.findings
    always = [found[key] for key in ("unique", "grow", "replayed", "accused")]
    seen = [found[key] for key in ("sides", "meet") if found[key].seen]
    return (made, *(finding.check() for finding in (*always, *seen)))


def _timeline(
    logs: Mapping[str, NodeLog], happened: Sequence[Happened]
) -> list[tuple[float, str, Any]]:
    """Everything heard and done, in order: (seconds since the start, node, event or fault)."""
    told: list[tuple[float, str, Any]] = [(one.at, "", one) for one in happened]
    for name, log in logs.items():
        for life in log.lives:
            origin = life.origin()
            told += [(origin + float(event["at"]), name, event) for _, event in life.events]
    return sorted(told, key=lambda one: one[0])


def _events(log: NodeLog, kind: str) -> Iterator[dict[str, Any]]:
    for life in log.lives:
        for _, event in life.events:
            if event["event"] == kind:
                yield event


class _Version(Struct):
    incarnation: int
    boot_id: str
    version: int
    round: int
    model: str


def _notice(
    event: Mapping[str, Any], ids: Mapping[str, NodeId]
) -> Publishing | Received | Equivocation | RoundDone | None:
    kind = event["event"]
    if kind == "round":
        return RoundDone(
            round=event["round"],
            mixed=tuple(Source(ids[peer], 0.0, 0) for peer in event["mixed"]),
            missing=(),
            own_weight=1.0,
            loss=None,
            waited_s=event["waited_s"],
            half_edges=0,
            late=0,
            alone=event["alone"],
            kept_own="",
        )
    if kind == "equivocation":
        proof = [SignedHeader(bytes.fromhex(h), bytes.fromhex(s)) for h, s in event["proof"]]
        return Equivocation(ids[event["peer"]], proof[0], proof[1])
    if kind not in ("publishing", "received"):
        return None
    plain = {key: event[key] for key in _Version.__struct_fields__}
    plain |= {key: bytes.fromhex(plain[key]) for key in ("boot_id", "model")}
    return Publishing(**plain) if kind == "publishing" else Received(ids[event["peer"]], **plain)
