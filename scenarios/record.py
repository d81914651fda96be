"""What an engine hands back: one Run, plain data, the same from every engine.

The report, the command and the tests read these; only an engine makes them. ``result`` is the JSON
that users script against (docs/result.md): keys are added to it, never renamed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from msgspec import Struct, to_builtins


class RoundRow(Struct, frozen=True, kw_only=True):
    """One mixed round of one node. Figures are None where they were not measured or not defined."""

    node: str
    round: int
    at: float  # seconds since the engine's start
    accuracy: float | None = None  # on the test rows common to all
    own_accuracy: float | None = None  # on the node's own held-out rows
    auroc: float | None = None
    loss: float | None = None  # on the common test rows
    mixed: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()  # (name, why)
    waited_s: float = 0.0
    sent_bytes: int = 0  # since the node's start, all frames
    received_bytes: int = 0
    half_edges: int = 0
    late: int = 0
    alone: bool = False
    kept_own: str = ""  # why the rule left the own model as it was
    # ‖x − x̄‖ over the shared vector, x̄ the samples' mean of all that mixed this round
    distance: float | None = None


class Missed(Struct, frozen=True):
    """A neighbour that did not take part in some of a node's rounds."""

    peer: str
    rounds: int
    first: int
    last: int
    why: str


class NodeRun(Struct, frozen=True, kw_only=True):
    """How one node ended, and with what."""

    name: str
    samples: int
    ended: str  # "finished", "killed", "stopped", "failed: …"
    rounds: int  # the last one mixed
    accuracy: float | None = None
    auroc: float | None = None
    loss: float | None = None
    correct: int | None = None
    test_rows: int = 0
    own_accuracy: float | None = None
    own_auroc: float | None = None
    own_correct: int | None = None
    own_test_rows: int = 0
    class_accuracy: dict[str, float] = {}  # on the common test rows, by the class's number
    # 95 % intervals by figure: "accuracy", "auroc", "own_accuracy", "own_auroc" -> (low, high)
    intervals: dict[str, tuple[float, float]] = {}
    missed: tuple[Missed, ...] = ()
    sent_bytes: int = 0
    received_bytes: int = 0
    rejections: dict[str, int] = {}
    half_edges: int = 0
    late: int = 0
    jumped: int = 0  # how often it fell behind and skipped rounds
    resumed: int = 0  # how often it was started again
    digest: str | None = None  # BLAKE3 root (hex) of the final shared vector
    model: str | None = None  # path of model.safetensors, where there is one


class FaultSpan(Struct, frozen=True, kw_only=True):
    """A fault in time, for shading: ``end`` None means until the run's end."""

    kind: str  # "partition", "crash", "slow", "link"
    nodes: tuple[str, ...]
    start: float
    end: float | None = None
    label: str = ""
    sides: tuple[tuple[str, ...], ...] = ()  # of a partition
    one_way: bool = False  # only what an earlier side sends to a later one is held
    pairs: tuple[tuple[str, str], ...] = ()  # of links that are changed or clogged


class LinkRun(Struct, frozen=True):
    """One edge of the graph: bytes that left each end for the other, all frames, the whole run."""

    a: str
    b: str
    a_to_b_bytes: int | None = None
    b_to_a_bytes: int | None = None


class Apart(Struct, frozen=True):
    """How far the sides of a partition are from each other after one round."""

    at: float
    round: int
    distance: float  # the greatest between two sides' mean models
    consensus: float  # D of the same round


class SideRun(Struct, frozen=True):
    """One side of a partition. ``accuracy``: (seconds, mean, least) after each round of the run."""

    nodes: tuple[str, ...]
    accuracy: tuple[tuple[float, float, float], ...] = ()


class PartitionRun(Struct, frozen=True, kw_only=True):
    """What one partition did, from the cut to the re-consensus; None where it is not known.

    Ratios are against the same-seed run without faults, where there was one: ``peak_ratio`` the
    greatest of D since the cut, ``apart_peak_ratio`` that of the distance between the sides.
    """

    label: str
    start: float
    end: float | None
    sides: tuple[SideRun, ...]
    start_round: int  # the last mixed anywhere when the cut came
    end_round: int | None = None
    apart: tuple[Apart, ...] = ()  # over the whole run
    apart_free: tuple[tuple[int, float], ...] = ()  # (round, distance) of the run without faults
    apart_peak_ratio: float | None = None
    peak_ratio: float | None = None
    reconverged_rounds: int | None = None  # from ``end_round`` until D is within 1.5×
    reconverged_s: float | None = None  # from the heal until the last node has mixed that round

    @property
    def apart_peak(self) -> float | None:
        """The greatest distance between the sides since the cut."""
        since = (one.distance for one in self.apart if one.round > self.start_round)
        return max(since, default=None)


class DistanceRow(Struct, frozen=True):
    """Consensus distance D over the shared vectors, and D/‖x̄‖; ``round``: of the slowest node."""

    at: float
    round: int
    distance: float
    relative: float


class Level(Struct, frozen=True):
    """One figure over all nodes."""

    mean: float
    min: float
    max: float


class Alone(Struct, frozen=True, kw_only=True):
    """What one node reaches without the others, on the same rows as its NodeRun."""

    node: str
    accuracy: float | None = None
    auroc: float | None = None
    own_accuracy: float | None = None
    own_auroc: float | None = None
    loss: float | None = None
    intervals: dict[str, tuple[float, float]] = {}  # 95 %, by figure, as in NodeRun


class Baselines(Struct, frozen=True, kw_only=True):
    """Local-only per node, and one model pooled over all rows, with the same steps."""

    local_only: tuple[Alone, ...] = ()
    pooled: Alone | None = None  # ``node``: "pooled"; own figures are over all own held-out rows


class Check(Struct, frozen=True):
    """One thing that had to hold. ``value`` and ``limit`` are for people and JSON alike."""

    name: str
    ok: bool
    value: float | int | str | None = None
    limit: float | int | str | None = None


class Run(Struct, frozen=True, kw_only=True):
    """Everything that one run of a scenario showed."""

    scenario: str
    engine: str  # "simulation" | "processes" | "docker"
    seed: int
    rounds: int  # local training and final mixing together
    training_rounds: int
    graph_nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    nodes: tuple[NodeRun, ...]
    rows: tuple[RoundRow, ...] = ()
    faults: tuple[FaultSpan, ...] = ()
    distances: tuple[DistanceRow, ...] = ()
    # D by round of the same-seed run without faults, where the scenario asks for the comparison
    distances_free: tuple[tuple[int, float], ...] = ()
    links: tuple[LinkRun, ...] = ()
    partitions: tuple[PartitionRun, ...] = ()
    consensus_distance: float | None = None
    consensus_relative: float | None = None  # D/‖x̄‖
    baselines: Baselines | None = None
    checks: tuple[Check, ...] = ()
    trace_hash: str | None = None
    schedule_hash: str | None = None
    wall_s: float = 0.0  # from the engine's start to the last node's end
    setup_s: float = 0.0
    baselines_s: float | None = None
    virtual_s: float | None = None
    absent: tuple[str, ...] = ()  # members that were not there to the end
    task: str = ""
    attackers: tuple[str, ...] = ()  # malicious at some time: no figure over nodes counts them
    notes: tuple[str, ...] = ()  # sentences for people: "the fault had no effect", …

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)

    @property
    def finished(self) -> tuple[NodeRun, ...]:
        return tuple(node for node in self.nodes if node.ended == "finished")

    @property
    def honest(self) -> tuple[NodeRun, ...]:
        """Those that finished and never attacked: whom figures over nodes are about."""
        return tuple(node for node in self.finished if node.name not in self.attackers)


def level(values: Iterable[float | None]) -> Level | None:
    """Mean, least and greatest of the values that are there; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Level(math.fsum(known) / len(known), min(known), max(known))


def result(run: Run) -> dict[str, Any]:
    """The JSON of ``grapevine run`` and ``grapevine demo``; nothing in it is NaN or infinite."""
    made = {
        "scenario": run.scenario,
        "engine": run.engine,
        "seed": run.seed,
        "ok": run.ok,
        "rounds": run.rounds,
        "training_rounds": run.training_rounds,
        "trace_hash": run.trace_hash,
        "schedule_hash": run.schedule_hash,
        "wall_s": run.wall_s,
        "setup_s": run.setup_s,
        "baselines_s": run.baselines_s,
        "virtual_s": run.virtual_s,
        "nodes": {node.name: _node(node) for node in run.nodes},
        "absent": list(run.absent),
        "attackers": list(run.attackers),
        "accuracy": _level(level(node.accuracy for node in run.honest)),
        "auroc": _level(level(node.auroc for node in run.honest)),
        "loss": _level(level(node.loss for node in run.honest)),
        "consensus_distance": run.consensus_distance,
        "consensus_relative": run.consensus_relative,
        "baselines": _baselines(run.baselines),
        "checks": [
            {"name": c.name, "ok": c.ok, "value": c.value, "limit": c.limit} for c in run.checks
        ],
        "faults": [
            {"kind": f.kind, "nodes": list(f.nodes), "start": f.start, "end": f.end}
            for f in run.faults
        ],
        "links": [to_builtins(link) for link in run.links],
        "partitions": [_partition(found) for found in run.partitions],
        "notes": list(run.notes),
    }
    cleaned: dict[str, Any] = _finite(made)
    return cleaned


def _node(node: NodeRun) -> dict[str, Any]:
    return {
        "round": node.rounds,
        "accuracy": node.accuracy,
        "own_accuracy": node.own_accuracy,
        "auroc": node.auroc,
        "own_auroc": node.own_auroc,
        "loss": node.loss,
        "samples": node.samples,
        "test_rows": node.test_rows,
        "own_test_rows": node.own_test_rows,
        "class_accuracy": dict(sorted(node.class_accuracy.items())),
        "intervals": {name: list(pair) for name, pair in sorted(node.intervals.items())},
        "sent_bytes": node.sent_bytes,
        "received_bytes": node.received_bytes,
        "missed": [
            {"peer": m.peer, "rounds": m.rounds, "first": m.first, "last": m.last, "why": m.why}
            for m in node.missed
        ],
        "rejections": dict(sorted(node.rejections.items())),
        "half_edges": node.half_edges,
        "late": node.late,
        "jumped": node.jumped,
        "resumed": node.resumed,
        "digest": node.digest,
        "model": node.model,
        "ended": node.ended,
    }


def _partition(found: PartitionRun) -> dict[str, Any]:
    return {
        "label": found.label,
        "start": found.start,
        "end": found.end,
        "start_round": found.start_round,
        "end_round": found.end_round,
        "sides": [
            {"nodes": list(side.nodes), "accuracy": [list(point) for point in side.accuracy]}
            for side in found.sides
        ],
        "divergence": {
            "rounds": [
                {
                    "round": one.round,
                    "t": one.at,
                    "distance": one.distance,
                    "consensus_distance": one.consensus,
                    "over_consensus": one.distance / one.consensus if one.consensus else None,
                }
                for one in found.apart
            ],
            "peak": found.apart_peak,
            "without_faults": [list(point) for point in found.apart_free],
            "peak_ratio": found.apart_peak_ratio,
        },
        "peak_ratio": found.peak_ratio,
        "reconverged_rounds": found.reconverged_rounds,
        "reconverged_s": found.reconverged_s,
    }


def _level(found: Level | None) -> dict[str, float] | None:
    return None if found is None else {"mean": found.mean, "min": found.min, "max": found.max}


def _baselines(found: Baselines | None) -> dict[str, Any] | None:
    if found is None:
        return None
    local = _level(level(alone.accuracy for alone in found.local_only))
    return {
        "local_only": local,
        "pooled": found.pooled.accuracy if found.pooled else None,
        "local_only_auroc": _level(level(alone.auroc for alone in found.local_only)),
        "pooled_auroc": found.pooled.auroc if found.pooled else None,
        "local_only_loss": _level(level(alone.loss for alone in found.local_only)),
        "pooled_loss": found.pooled.loss if found.pooled else None,
        "per_node": {a.node: {"accuracy": a.accuracy, "auroc": a.auroc} for a in found.local_only},
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite was not measured."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
