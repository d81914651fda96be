"""What each partition of a run did: the sides' accuracy, how far they drifted, when they met again.

The same for every engine: it reads rows, spans and distances, and knows nothing of where from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import Struct

from scenarios.expectations import reconvergence
from scenarios.measures import Sides, by_round
from scenarios.record import Apart, DistanceRow, FaultSpan, PartitionRun, RoundRow, SideRun


class Calm(Struct, frozen=True):
    """The same-seed run without faults: D by round, and how far the sides' means were apart."""

    distances: Mapping[int, float]
    apart: Mapping[Sides, Mapping[int, float]]


def partition_runs(
    faults: Sequence[FaultSpan],
    rows: Sequence[RoundRow],
    distances: Sequence[DistanceRow],
    apart: Mapping[Sides, Mapping[int, float]],
    free: Calm | None,
) -> tuple[PartitionRun, ...]:
    """One for each partition among the ``faults``, in order.

    apart: by sides and round, the distance between the mean models of these sides.
    """
    cuts = [span for span in faults if span.kind == "partition" and span.sides]
    return tuple(_partition(cut, rows, distances, apart.get(cut.sides, {}), free) for cut in cuts)


def _partition(
    cut: FaultSpan,
    rows: Sequence[RoundRow],
    distances: Sequence[DistanceRow],
    apart: Mapping[int, float],
    free: Calm | None,
) -> PartitionRun:
    begun = _round_at(rows, cut.start)
    healed = None if cut.end is None else _round_at(rows, cut.end)
    known = {row.round: row for row in distances}
    calm_apart = free.apart.get(cut.sides, {}) if free else {}
    back, back_s, peak = None, None, None
    if free is not None:
        faulty = by_round(distances)
        mended = max(faulty, default=0) if healed is None else healed
        found = reconvergence(faulty, free.distances, mended=mended, broken=begun)
        peak, back = found.peak, found.rounds
        if back is not None and healed is not None and cut.end is not None:
            back_s = known[healed + back].at - cut.end
    return PartitionRun(
        label=cut.label,
        start=cut.start,
        end=cut.end,
        sides=tuple(SideRun(side, _accuracy(rows, side)) for side in cut.sides),
        start_round=begun,
        end_round=healed,
        apart=tuple(
            Apart(known[round_].at, round_, distance, known[round_].distance)
            for round_, distance in apart.items()
            if round_ in known
        ),
        apart_free=tuple(calm_apart.items()),
        apart_peak_ratio=_peak(apart, calm_apart, begun),
        peak_ratio=peak,
        reconverged_rounds=back,
        reconverged_s=back_s,
    )


def _round_at(rows: Sequence[RoundRow], at: float) -> int:
    """The last round that any node had mixed by then."""
    return max((row.round for row in rows if row.at <= at), default=0)


def _accuracy(
    rows: Sequence[RoundRow], side: Sequence[str]
) -> tuple[tuple[float, float, float], ...]:
    """(seconds, mean, least) after each measured round, at the mean time of the side's nodes."""
    names = frozenset(side)
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row.node in names and row.accuracy is not None:
            found[row.round].append((row.at, row.accuracy))
    made = []
    for _, points in sorted(found.items()):
        times, values = zip(*points, strict=True)
        made.append((sum(times) / len(times), sum(values) / len(values), min(values)))
    return tuple(made)


def _peak(apart: Mapping[int, float], calm_apart: Mapping[int, float], begun: int) -> float | None:
    ratios = [
        distance / calm_apart[round_]
        for round_, distance in apart.items()
        if round_ > begun and calm_apart.get(round_, 0.0) > 0
    ]
    return max(ratios, default=None)
