"""From what node processes wrote beside their logs: models of every round, and bytes by link."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from scenarios.founding import Founded, Seat
from scenarios.measures import Groups, Sides, Spread
from scenarios.processes_log import NodeLog
from scenarios.record import DistanceRow, LinkRun, RoundRow
from scenarios.witness import TRAFFIC, VECTORS


class Distances(Struct, frozen=True):
    """Of every round that at least two nodes mixed."""

    rows: tuple[DistanceRow, ...] = ()
    own: Mapping[tuple[str, int], float] = {}  # (node, round) -> ‖x − x̄‖
    apart: Mapping[Sides, Mapping[int, float]] = {}  # by round, between the sides' mean models


def final_vector(seat: Seat) -> NDArray[np.float64] | None:
    """The final shared vector (P,), or None where the node left no readable model."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(seat.state / "model.safetensors")["vector"].astype(np.float64)
    except (OSError, SafetensorError, KeyError):
        return None


def consensus(
    vectors: Mapping[str, NDArray[np.float64]], founded: Founded
) -> tuple[float, float] | None:
    """(D, D/‖x̄‖) over the vectors, π by samples."""
    if not vectors:
        return None
    return _spread(vectors, founded, None).distance()


def distances(
    logs: Mapping[str, NodeLog],
    founded: Founded,
    rows: Sequence[RoundRow],
    partitions: Sequence[Sides] = (),
) -> Distances:
    """From the vectors that the nodes wrote down, one round in memory at a time."""
    at: dict[int, float] = {}
    for row in rows:
        at[row.round] = max(at.get(row.round, 0.0), row.at)
    places: dict[int, dict[str, tuple[int, int]]] = defaultdict(dict)
    for name, log in logs.items():
        for round_, place, length in vector_places(log.seat.folder / VECTORS):
            places[round_][name] = place, length
    groups = Groups(partitions, tuple(logs))
    made: list[DistanceRow] = []
    own: dict[tuple[str, int], float] = {}
    apart: dict[Sides, dict[int, float]] = {sides: {} for sides in groups.partitions}
    for round_, found in sorted(places.items()):
        if len(found) < 2 or round_ not in at:
            continue
        vectors = {
            name: _read(logs[name].seat.folder / VECTORS, place, length)
            for name, (place, length) in found.items()
        }
        spread = _spread(vectors, founded, groups)
        made.append(DistanceRow(at[round_], round_, *spread.distance()))
        mean = spread.mean
        for name, vector in vectors.items():
            own[name, round_] = float(np.linalg.norm(vector - mean))
        for sides, distance in groups.apart(spread).items():
            apart[sides][round_] = distance
    return Distances(tuple(made), own, apart)


def _spread(
    vectors: Mapping[str, NDArray[np.float64]], founded: Founded, groups: Groups | None
) -> Spread:
    models = np.stack(list(vectors.values()))
    weights = np.array([founded.seats[name].samples for name in vectors], dtype=float)
    member = None
    if groups is not None:
        order = {name: place for place, name in enumerate(groups.nodes)}
        member = groups.member[:, [order[name] for name in vectors]]
    spread = Spread(models[0].copy(), sides=0 if member is None else len(member))
    spread.add(models, weights, member)
    return spread


def vector_places(path: Path) -> Iterator[tuple[int, int, int]]:
    """(round, offset, length) of the vectors that scenarios.witness appends: two u32, then floats.

    What a process was writing when it was killed is left out.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            place = 0
            while place + 8 <= size:
                file.seek(place)
                round_, length = np.frombuffer(file.read(8), "<u4").tolist()
                if place + 8 + 4 * length > size:
                    return
                yield round_, place + 8, length
                place += 8 + 4 * length
    except OSError:
        return


def _read(path: Path, place: int, length: int) -> NDArray[np.float64]:
    return np.fromfile(path, "<f4", length, offset=place).astype(np.float64)


def links(logs: Mapping[str, NodeLog], edges: Sequence[tuple[str, str]]) -> tuple[LinkRun, ...]:
    """Bytes on the wire of every edge, TLS included, over all lives of both ends.

    A killed process counts up to its last round: of the two ends' counts the greater is taken.
    """
    counted = {name: _traffic(log.seat.folder / TRAFFIC) for name, log in logs.items()}

    def sent(a: str, b: str) -> int | None:
        told = [counted[a][b][0]] if b in counted[a] else []
        told += [counted[b][a][1]] if a in counted[b] else []
        return max(told, default=None)

    return tuple(LinkRun(a, b, sent(a, b), sent(b, a)) for a, b in edges)


def _traffic(path: Path) -> dict[str, tuple[int, int]]:
    """By neighbour: (sent, received), each process's last count, summed over the processes."""
    last: dict[float, dict[str, Any]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            last[told["began"]] = told["links"]
    except (OSError, ValueError):  # no process lived to its first round; or died as it wrote
        pass
    totals: dict[str, tuple[int, int]] = {}
    for counts in last.values():
        for peer, (sent, received) in counts.items():
            before = totals.get(peer, (0, 0))
            totals[peer] = before[0] + sent, before[1] + received
    return totals
