"""Two runs of one scenario on two engines, verdict by verdict: what differs, in sentences."""

from __future__ import annotations

from scenarios.checkers.findings import INVARIANTS
from scenarios.record import Check, Run

# Shown only where there was something to look at: time decides, or the engine cannot look there.
_AT_TIMES = frozenset(name for name, always in INVARIANTS.values() if not always)


def differences(one: Run, other: Run) -> tuple[str, ...]:
    """What two engines saw differently: checks, faults, how nodes ended; nothing where they agree.

    Figures are not compared here: how far they may be apart is for the caller to say.
    """
    found = [*_checks(one, other), *_nodes(one, other)]
    faults = [[(span.kind, span.nodes) for span in run.faults] for run in (one, other)]
    if faults[0] != faults[1]:
        found.append(f"faults: {one.engine} {faults[0]}, {other.engine} {faults[1]}")
    return tuple(found)


def _checks(one: Run, other: Run) -> list[str]:
    these, those = ({check.name: check for check in run.checks} for run in (one, other))
    found = []
    for name in sorted({*these, *those}):
        here, there = these.get(name), those.get(name)
        if here is None or there is None:
            if name not in _AT_TIMES:
                engine = other.engine if there is None else one.engine
                found.append(f"check '{name}' is missing on {engine}")
        elif here.ok != there.ok:
            found.append(
                f"check '{name}': {one.engine} {_said(here)}, {other.engine} {_said(there)}"
            )
    return found


def _nodes(one: Run, other: Run) -> list[str]:
    found = []
    for here, there in zip(one.nodes, other.nodes, strict=True):
        for key in ("name", "samples", "ended", "resumed"):
            values = getattr(here, key), getattr(there, key)
            if values[0] != values[1]:
                found.append(
                    f"{here.name}: {key} is {values[0]} on {one.engine}, {values[1]} on "
                    f"{other.engine}"
                )
    return found


def _said(check: Check) -> str:
    limit = "" if check.limit is None else f" (limit {check.limit})"
    return f"{'holds' if check.ok else 'fails'}: {check.value}{limit}"
