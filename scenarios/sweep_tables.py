"""What a sweep leaves for other programs: runs.csv, rounds.csv (long form) and manifest.json."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.errors import StorageError
from scenarios.record import Run, level

if TYPE_CHECKING:
    from scenarios.sweep import Sweep
    from scenarios.workers import Jobs

_PACKAGES: Final = ("grapevine", "torch", "numpy", "scipy", "scikit-learn", "msgspec", "blake3")
ROUND_COLUMNS: Final = (
    "node", "round", "at", "accuracy", "own_accuracy", "auroc", "loss", "mixed", "missing",
    "waited_s", "sent_bytes", "received_bytes", "consensus_distance", "consensus_relative",
)  # fmt: skip
EVERY: Final = "*"  # the node of rows that are about all nodes: the consensus distance


def run_record(name: str, values: dict[str, Any], run: Run) -> dict[str, Any]:
    """One run as it is kept: its row of runs.csv and its rows of rounds.csv."""
    accuracy = level(node.accuracy for node in run.honest)
    auroc = level(node.auroc for node in run.honest)
    loss = level(node.loss for node in run.honest)
    pooled = run.baselines.pooled if run.baselines else None
    local = level(a.accuracy for a in run.baselines.local_only) if run.baselines else None
    row = {
        "run": name,
        "scenario": run.scenario,
        "engine": run.engine,
        "seed": run.seed,
        "ok": run.ok,
        "failed": "; ".join(check.name for check in run.checks if not check.ok),
        "nodes": len(run.nodes),
        "finished": len(run.finished),
        "rounds": run.rounds,
        "accuracy_mean": accuracy.mean if accuracy else None,
        "accuracy_min": accuracy.min if accuracy else None,
        "accuracy_max": accuracy.max if accuracy else None,
        "auroc_mean": auroc.mean if auroc else None,
        "auroc_min": auroc.min if auroc else None,
        "loss_mean": loss.mean if loss else None,
        "loss_max": loss.max if loss else None,
        "local_accuracy_mean": local.mean if local else None,
        "pooled_accuracy": pooled.accuracy if pooled else None,
        "consensus_distance": run.consensus_distance,
        "consensus_relative": run.consensus_relative,
        "sent_bytes": sum(node.sent_bytes for node in run.nodes),
        "missed_rounds": sum(missed.rounds for node in run.nodes for missed in node.missed),
        "half_edges": sum(node.half_edges for node in run.nodes),
        "late": sum(node.late for node in run.nodes),
        "virtual_s": run.virtual_s,
        "wall_s": run.wall_s,
        "trace_hash": run.trace_hash,
        "schedule_hash": run.schedule_hash,
    }
    return {"values": values, "row": row, "rounds": _rounds(run)}


def _rounds(run: Run) -> list[list[Any]]:
    rows: list[list[Any]] = [
        [
            r.node, r.round, r.at, r.accuracy, r.own_accuracy, r.auroc, r.loss, len(r.mixed),
            len(r.missing), r.waited_s, r.sent_bytes, r.received_bytes, None, None,
        ]
        for r in run.rows
    ]  # fmt: skip
    blank = [None] * 9
    rows += [[EVERY, d.round, d.at, *blank, d.distance, d.relative] for d in run.distances]
    return rows


def write_tables(out: Path, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write runs.csv and rounds.csv from the records; returns the rows of the first."""
    kept: list[dict[str, Any]] = []
    varied: tuple[str, ...] = ()
    rounds, runs = out / "rounds.csv", out / "runs.csv"
    temporary = rounds.with_name(".rounds.csv.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for record in records:
                varied = tuple(record["values"])
                values = {key: _plain(value) for key, value in record["values"].items()}
                if not kept:
                    writer.writerow(("run", "seed", *values, *ROUND_COLUMNS))
                row = record["row"]
                for line in record["rounds"]:
                    writer.writerow((row["run"], row["seed"], *values.values(), *line))
                kept.append(values | row)
        temporary.replace(rounds)
        kept.sort(key=lambda row: (str([row[key] for key in varied]), row["seed"]))
        temporary = runs.with_name(".runs.csv.part")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if kept:
                table = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
                table.writeheader()
                table.writerows(kept)
        temporary.replace(runs)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from None
    return kept


def manifest(sweep: Sweep, *, on: str, jobs: Jobs, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How the figures came about: enough to make them again, and to see whether they are equal."""
    return {
        "sweep": sweep.digest,
        "scenario": sweep.scenario,
        "engine": on,
        "varied": {
            key: _distinct(combination.values[key] for combination in sweep.combinations)
            for key in sweep.keys
        },
        "seeds": [sweep.seeds[0], sweep.seeds[-1]],
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": 1,  # of each run
        "jobs": jobs,
        "runs": len(rows),
        "digests": {row["run"]: row["trace_hash"] for row in rows},
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _plain(value: Any) -> str | float | int | bool:
    """A varied value in one cell."""
    return value if isinstance(value, str | float | int | bool) else str(value)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
