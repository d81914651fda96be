"""Turns a simulation that has ended into a Run: last figures, who ended how, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from node.learning.batch import evaluate_batch
from node.learning.metrics import Metrics
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
from scenarios.measures import by_round, consensus
from scenarios.partitions import Calm, partition_runs
from scenarios.record import Check, DistanceRow, LinkRun, Missed, NodeRun, Run

if TYPE_CHECKING:
    from scenarios.simulation import Simulation
    from scenarios.virtual_node import VirtualNode

# Intervals of an AUROC sort the rows once a node; beyond this nobody reads them one by one.
_INTERVALS_NODES_MAX: Final = 64


def collect(
    simulation: Simulation,
    *,
    free: Calm | None,
    setup_s: float,
    wall_s: float,
    baselines: bool,
) -> Run:
    """The Run of a simulation that has ended; ``free``: the same without faults."""
    scenario, founded = simulation.scenario, simulation.founded
    figures = _figures(simulation)
    nodes = tuple(_node_run(simulation, node, figures) for node in simulation.nodes)
    attackers = frozenset(simulation.attackers)
    honest = [n for n in simulation.nodes if n.ended == "finished" and n.name not in attackers]
    spread = consensus([node.learner for node in honest], [node.samples for node in honest])
    distance, relative = spread if spread is not None else (None, None)
    begun = time.perf_counter()
    compared = train_baselines(scenario, founded.parts) if baselines else None
    baselines_s = time.perf_counter() - begun if baselines else None
    distances = simulation.measures.distances()
    spans = simulation.outages.spans()
    honest_rows = [row for row in simulation.measures.rows if row.node not in attackers]
    evidence = Evidence(
        nodes=nodes,
        could_finish=_could_finish(simulation),
        distance=distance,
        relative=relative,
        baselines=compared,
        reconvergence=_reconvergence(simulation, distances, free),
    )
    ended = [n.digest() if n.ended == "finished" else bytes(32) for n in simulation.nodes]
    trace_hash, schedule_hash = simulation.trace.finish(ended)
    return Run(
        scenario=scenario.name,
        engine="simulation",
        seed=scenario.seed,
        rounds=founded.policy.last_round,
        training_rounds=founded.policy.rounds,
        graph_nodes=scenario.graph.nodes,
        edges=scenario.graph.edges,
        nodes=nodes,
        rows=tuple(simulation.measures.rows),
        faults=spans,
        distances=distances,
        distances_free=tuple(free.distances.items()) if free else (),
        links=_links(simulation),
        partitions=partition_runs(spans, honest_rows, distances, simulation.measures.apart(), free),
        consensus_distance=distance,
        consensus_relative=relative,
        baselines=compared,
        checks=_checks(simulation, evidence),
        trace_hash=trace_hash,
        schedule_hash=schedule_hash,
        wall_s=wall_s,
        setup_s=setup_s,
        baselines_s=baselines_s,
        virtual_s=simulation.now,
        absent=tuple(node.name for node in simulation.nodes if node.ended != "finished"),
        task=scenario.settings.task.name,
        attackers=simulation.attackers,
        notes=(
            *_malicious(simulation.attackers),
            *remarks(evidence.reconvergence),
            *simulation.outages.notes,
        ),
    )


def _checks(simulation: Simulation, evidence: Evidence) -> tuple[Check, ...]:
    """What the scenario expects, whether its faults happened, and what must hold of any run."""
    scenario = simulation.scenario
    return (
        *judge(scenario, evidence),
        *happened(scenario.faults, simulation.outages.unhappened),
        *simulation.checkers.checks(),
    )


def _could_finish(simulation: Simulation) -> tuple[str, ...]:
    hooks, founded = simulation.hooks, simulation.founded
    down = hooks.kill_at if hooks.restart_after_s is None else ()
    return could_finish(founded.names, simulation.scenario.faults, down=down)


def _malicious(attackers: tuple[str, ...]) -> tuple[str, ...]:
    if not attackers:
        return ()
    return (f"malicious for some time, and in no figure over nodes: {', '.join(attackers)}",)


def _figures(simulation: Simulation) -> dict[str, Metrics]:
    """Last figures of every node: of the final model, or the last measured before the end."""
    known = {
        row.node: Metrics(
            accuracy=row.accuracy, own_accuracy=row.own_accuracy, auroc=row.auroc, loss=row.loss
        )
        for row in simulation.measures.rows
        if row.loss is not None
    }
    finished = [node for node in simulation.nodes if node.ended == "finished"]
    found = evaluate_batch([node.learner for node in finished])
    return known | {node.name: metrics for node, metrics in zip(finished, found, strict=True)}


def _node_run(simulation: Simulation, node: VirtualNode, figures: Mapping[str, Metrics]) -> NodeRun:
    metrics = figures.get(node.name) or Metrics()
    finished = node.ended == "finished"
    few = len(simulation.nodes) <= _INTERVALS_NODES_MAX
    core = node.core
    name = simulation.founded.roster.name
    return NodeRun(
        name=node.name,
        samples=node.samples,
        ended="failed: still running when the time was up" if node.alive else node.ended,
        rounds=node.round,
        accuracy=metrics.accuracy,
        auroc=metrics.auroc,
        loss=metrics.loss,
        correct=metrics.correct if metrics.rows else None,
        test_rows=metrics.rows,
        own_accuracy=metrics.own_accuracy,
        own_auroc=metrics.own_auroc,
        own_correct=metrics.own_correct if metrics.own_rows else None,
        own_test_rows=metrics.own_rows,
        class_accuracy=_by_class(simulation, node) if finished else {},
        intervals=node.learner.inference.intervals() if finished and few else {},
        missed=tuple(
            Missed(name(p.id), p.missed_count, p.missed_first, p.missed_last, p.missed_why)
            for p in core.links.peers.values()
            if p.missed_count
        ),
        sent_bytes=simulation.network.sent_bytes[node.index],
        received_bytes=simulation.network.received_bytes[node.index],
        rejections=dict(sorted(core.context.rejections.items())),
        half_edges=core.half_edges,
        late=core.late,
        jumped=node.jumped,
        resumed=node.boots - 1,
        digest=node.digest().hex() if finished else None,
    )


def _by_class(simulation: Simulation, node: VirtualNode) -> dict[str, float]:
    """Where the report shows it or the scenario asks for it: it is one more pass over the rows."""
    few = len(simulation.nodes) <= _INTERVALS_NODES_MAX
    if not few and simulation.scenario.settings.expect.class_accuracy_min is None:
        return {}
    return node.learner.inference.class_accuracy()


def _links(simulation: Simulation) -> tuple[LinkRun, ...]:
    sent = simulation.network.link_bytes
    places = {node.name: node.index for node in simulation.nodes}
    return tuple(
        LinkRun(a, b, sent(places[a], places[b]), sent(places[b], places[a]))
        for a, b in simulation.scenario.graph.edges
    )


def _reconvergence(
    simulation: Simulation, distances: tuple[DistanceRow, ...], free: Calm | None
) -> Reconvergence | None:
    mended = simulation.outages.mended
    if free is None or not mended:
        return None
    faulty = by_round(distances)
    return reconvergence(
        faulty, free.distances, mended=mended[-1].round, broken=simulation.outages.broken
    )
