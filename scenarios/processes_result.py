"""From what node processes said and left behind to a Run: rows, ends, distances, verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import torch
from msgspec import structs

from node.learning.task import Part
from scenarios.baselines import baselines as train_baselines
from scenarios.expectations import (
    Evidence,
    Reconvergence,
    could_finish,
    happened,
    judge,
    reconvergence,
    remarks,
)
from scenarios.founding import Founded
from scenarios.measures import by_round
from scenarios.partitions import partition_runs
from scenarios.prepare import Prepared
from scenarios.processes_checks import checks
from scenarios.processes_fleet import Fleet
from scenarios.processes_log import NodeLog
from scenarios.processes_models import consensus, distances, final_vector, links
from scenarios.processes_outages import Happened, ProcessOutages
from scenarios.record import Missed, NodeRun, RoundRow, Run

T = TypeVar("T")

_ROW: Final = tuple(RoundRow.__struct_fields__)


def collect(
    prepared: Prepared,
    founded: Founded,
    fleet: Fleet,
    *,
    setup_s: float,
    engine: str = "processes",
) -> Run:
    """The Run, without baselines and expectations."""
    from scenarios.simulation import undisturbed

    scenario, graph, logs = prepared.scenario, prepared.scenario.graph, fleet.logs
    rows = [row for log in logs.values() for row in _rows(log, fleet.start)]
    rows.sort(key=lambda row: row.at)
    nodes = tuple(_node(log, rows, prepared.parts[name]) for name, log in logs.items())
    honest = [n.name for n in nodes if n.ended == "finished" and n.name not in scenario.attackers]
    vectors = {name: final_vector(logs[name].seat) for name in honest}
    spread = consensus({name: v for name, v in vectors.items() if v is not None}, founded)
    trusted = {name: log for name, log in logs.items() if name not in scenario.attackers}
    found = distances(trusted, founded, rows, scenario.partitions)
    # in simulation: real time has no second take
    free = _on_one_thread(lambda: undisturbed(scenario))
    rows = [structs.replace(row, distance=found.own.get((row.node, row.round))) for row in rows]
    policy, faults = founded.consortium.policy, fleet.outages.spans()
    end = fleet.start + fleet.wall_s
    return Run(
        scenario=scenario.name,
        engine=engine,
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
        checks=checks(prepared, founded, logs, fleet.outages.happened, start=fleet.start, end=end),
        wall_s=fleet.wall_s,
        setup_s=setup_s,
        absent=tuple(node.name for node in nodes if node.ended != "finished"),
        task=scenario.settings.task.name,
        attackers=scenario.attackers,
        notes=fleet.outages.notes,
    )


def judged(run: Run, prepared: Prepared, outages: ProcessOutages, *, baselines: bool) -> Run:
    """The Run with baselines, and the scenario's expectations judged as on any engine."""
    scenario = prepared.scenario
    compared, baselines_s = None, None
    if baselines:
        begun = time.perf_counter()
        compared = _on_one_thread(lambda: train_baselines(scenario, prepared.parts))
        baselines_s = time.perf_counter() - begun
    back = _reconvergence(run, outages.happened)
    evidence = Evidence(
        nodes=run.nodes,
        could_finish=could_finish((node.name for node in run.nodes), scenario.faults),
        distance=run.consensus_distance,
        relative=run.consensus_relative,
        baselines=compared,
        reconvergence=back,
    )
    made = (*judge(scenario, evidence), *happened(scenario.faults, outages.unhappened))
    return structs.replace(
        run,
        baselines=compared,
        baselines_s=baselines_s,
        checks=(*made, *run.checks),
        notes=(*remarks(back), *run.notes),
    )


def _on_one_thread(work: Callable[[], T]) -> T:
    """Models this small are trained many times faster without a pool that waits by spinning."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def _reconvergence(run: Run, faults: Sequence[Happened]) -> Reconvergence | None:
    mended = [one for one in faults if one.fault.mends]
    if not mended or not run.distances_free:
        return None
    return reconvergence(
        by_round(run.distances),
        dict(run.distances_free),
        mended=mended[-1].round,
        broken=faults[0].round,
    )


def _rows(log: NodeLog, start: float) -> Iterator[RoundRow]:
    """Every round mixed, with times since ``start``."""
    for life in log.lives:
        origin = life.origin() - start
        for event in life.events:
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
        max((int(e[key]) for e in life.events if e["event"] == "round"), default=0)
        for life in log.lives
    )
    return sum(per_life)


def _jumps(log: NodeLog) -> int:
    return sum(1 for _ in log.events("jumped"))


def _rejections(log: NodeLog) -> dict[str, int]:
    counts: dict[str, int] = {}
    for life in log.lives:
        newest: dict[tuple[str, str], int] = {}
        for event in life.events:
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
