"""Faults as [[event]] tables: what [chaos] drew, in the words of a scenario file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import structs

from scenarios.faults import (
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Resume,
    Slow,
    Unclog,
    When,
)

_OF_NODES = {Crash: "crash", Pause: "pause", Resume: "resume", DiskFull: "disk_full"}
_OF_LINKS = {Clog: "clog", Unclog: "unclog", Reset: "reset"}


def event_tables(faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """One table a fault, in order; of one that concerns several links, one for each link."""
    return [{"at": _when(fault.at)} | what for fault in faults for what in _tables(fault)]


def _when(at: When) -> str:
    """To the last digit, unlike ``at.text``: what was drawn to the millisecond comes back so."""
    return at.text if at.seconds is None else f"{at.seconds!r}s"


def _tables(fault: Fault) -> list[dict[str, Any]]:
    match fault:
        case Partition():
            cut: dict[str, Any] = {"partition": [list(side) for side in fault.sides]}
            return [cut | ({"one_way": True} if fault.one_way else {})]
        case Heal():
            return [{"heal": True}]
        case Restart():
            return [{"restart": list(fault.nodes), "disk": fault.disk}]
        case Slow():
            return [{"slow": {"nodes": list(fault.nodes), "factor": fault.factor}}]
        case ClockSkew():
            return [{"clock_skew": {"nodes": list(fault.nodes), "offset_s": fault.offset_s}}]
        case Attack():
            number = {} if fault.scale is None else {"scale": fault.scale}
            return [{"attack": fault.what, "nodes": list(fault.nodes)} | number]
        case Link():
            changed = {k: v for k, v in structs.asdict(fault.change).items() if v is not None}
            return [{"link": changed | {"a": a, "b": b}} for a, b in fault.pairs]
        case Clog() | Unclog() | Reset():
            return [{_OF_LINKS[type(fault)]: {"a": a, "b": b}} for a, b in fault.pairs]
        case Crash() | Pause() | Resume() | DiskFull():
            return [{_OF_NODES[type(fault)]: list(fault.nodes)}]
