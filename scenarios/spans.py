"""Faults as spans of time, for the report: when each began, whom it concerned, when it ended."""

from __future__ import annotations

from msgspec import structs

from scenarios.faults import Clog, Fault, Link, Partition
from scenarios.record import FaultSpan


class Spans:
    """In the order in which they began. One that never ends lasts to the end of the run."""

    def __init__(self) -> None:
        self._spans: list[FaultSpan] = []
        self._open: dict[tuple[str, str], int] = {}  # (kind, key) -> its place

    def __len__(self) -> int:
        return len(self._spans)

    def begin(
        self, fault: Fault, names: tuple[str, ...], what: str, at: float, *, key: str = ""
    ) -> None:
        """``key``: by which ``end`` finds it; the first name where none is given."""
        pairs = fault.pairs if isinstance(fault, Link) else ()
        if isinstance(fault, Clog):
            pairs = ((names[0], names[1]),)
        span = FaultSpan(
            kind=fault.kind,
            nodes=names,
            start=at,
            label=fault.name or f"{fault.kind}: {what}",
            sides=fault.sides if isinstance(fault, Partition) else (),
            one_way=isinstance(fault, Partition) and fault.one_way,
            pairs=pairs,
        )
        self._open[fault.kind, key or names[0]] = len(self._spans)
        self._spans.append(span)

    def end(self, kind: str, key: str, at: float) -> None:
        """Nothing happens where there is none."""
        place = self._open.pop((kind, key), None)
        if place is not None:
            self._spans[place] = structs.replace(self._spans[place], end=at)

    def all(self) -> tuple[FaultSpan, ...]:
        return tuple(self._spans)
