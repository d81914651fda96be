"""Judges a run by the scenario's [expect] table: one Check for each thing that was expected.

What was not measured does not hold: an expectation never passes in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from node.errors import ConfigError
from scenarios.expected import ExpectSettings
from scenarios.faults import Crash, DiskFull, Fault, Restart
from scenarios.record import Baselines, Check, NodeRun, level
from scenarios.settings import Scenario

RECONVERGED: Final = 1.5  # D back within this many times that of the run without faults
NO_EFFECT: Final = 1.2  # a peak ratio under this: the fault did nothing to the consensus
_NEEDS_BASELINES: Final = ("pooled_gap_max", "local_gain_min")


class Evidence(Struct, frozen=True, kw_only=True):
    """What an engine found out, for judging."""

    nodes: tuple[NodeRun, ...]
    could_finish: tuple[str, ...]  # nodes that no fault left down
    distance: float | None = None
    relative: float | None = None
    baselines: Baselines | None = None
    reconvergence: Reconvergence | None = None


class Reconvergence(Struct, frozen=True, kw_only=True):
    """How the consensus distance came back after the last heal or restart.

    ``rounds``: from the round in hand at the mending until D is within 1.5× that of the same-seed
    run without faults; None: never. ``peak``: the greatest ratio of the two since the first fault.
    """

    rounds: int | None
    peak: float


def check_baselines(scenario: Scenario, *, baselines: bool) -> None:
    """Raises ConfigError where an expectation needs baselines and there will be none."""
    for key in _NEEDS_BASELINES:
        if getattr(scenario.settings.expect, key) is not None and not baselines:
            raise ConfigError(
                f"{scenario.source}: key 'expect.{key}' needs the baselines; run it with them"
            )


def reconvergence(
    faulty: Mapping[int, float], free: Mapping[int, float], *, mended: int, broken: int
) -> Reconvergence:
    """Compare D by round of a run with that of the same-seed run without faults.

    ``mended``: the last round mixed anywhere when the last heal or restart came; ``broken``: the
    same when the first fault came. Ratios are taken where both runs mixed the round.
    """
    ratios = {r: faulty[r] / free[r] for r in sorted(faulty) if r in free and free[r] > 0}
    peak = max((ratio for r, ratio in ratios.items() if r > broken), default=1.0)
    back = next((r for r, ratio in ratios.items() if r > mended and ratio <= RECONVERGED), None)
    return Reconvergence(rounds=None if back is None else back - mended, peak=peak)


def judge(scenario: Scenario, evidence: Evidence) -> tuple[Check, ...]:
    """One Check for each expectation given, and always one that the nodes ended as they should."""
    expect, attackers = scenario.settings.expect, scenario.attackers
    finished = _finished(evidence, attackers)
    checks = [_ended(expect, evidence, attackers)]

    def least(name: str, value: float | None, limit: float | None) -> None:
        if limit is not None:
            checks.append(Check(name, value is not None and value >= limit, value, limit))

    def most(name: str, value: float | None, limit: float | None) -> None:
        if limit is not None:
            checks.append(Check(name, value is not None and value <= limit, value, limit))

    accuracy = level(node.accuracy for node in finished)
    worst = _if_all(finished, lambda node: node.accuracy, min)
    least("accuracy_min", worst, expect.accuracy_min)
    least("accuracy_mean_min", accuracy.mean if accuracy else None, expect.accuracy_mean_min)
    own = _if_all(finished, lambda node: node.own_accuracy, min)
    least("own_accuracy_min", own, expect.own_accuracy_min)
    for label, limit in sorted((expect.class_accuracy_min or {}).items()):
        figure = functools.partial(_of_class, label=label)
        least(f"class_accuracy_min of {label}", _if_all(finished, figure, min), limit)
    least("auroc_min", _if_all(finished, lambda node: node.auroc, min), expect.auroc_min)
    most("loss_max", _if_all(finished, lambda node: node.loss, max), expect.loss_max)
    most("consensus_distance_max", evidence.distance, expect.consensus_distance_max)
    most("consensus_relative_max", evidence.relative, expect.consensus_relative_max)
    pooled = evidence.baselines.pooled if evidence.baselines else None
    gap = None
    if pooled is not None and pooled.accuracy is not None and worst is not None:
        gap = pooled.accuracy - worst
    most("pooled_gap_max", gap, expect.pooled_gap_max)
    alone = None
    if evidence.baselines is not None:
        left = [a for a in evidence.baselines.local_only if a.node not in attackers]
        alone = level(a.accuracy for a in left)
    gain = accuracy.mean - alone.mean if accuracy and alone else None
    least("local_gain_min", gain, expect.local_gain_min)
    missed = [m.rounds for node in finished for m in node.missed if m.peer not in attackers]
    most("missed_rounds_max", float(max(missed, default=0)), expect.missed_rounds_max)
    if expect.reconverged_within_rounds is not None:
        found = evidence.reconvergence
        limit = expect.reconverged_within_rounds
        rounds = found.rounds if found else None
        checks.append(
            Check(
                "reconverged_within_rounds", rounds is not None and rounds <= limit, rounds, limit
            )
        )
    return tuple(checks)


def could_finish(
    names: Iterable[str], faults: Iterable[Fault], *, down: Iterable[str] = ()
) -> tuple[str, ...]:
    """Of ``names``, those that no fault left down at the end. ``down``: those that a test did."""
    left: set[str] = set()
    for fault in faults:
        if isinstance(fault, Crash | DiskFull):
            left.update(fault.nodes)
        elif isinstance(fault, Restart):
            left.difference_update(fault.nodes)
    left.update(down)
    return tuple(name for name in names if name not in left)


def happened(faults: Sequence[Fault], unhappened: Sequence[str]) -> tuple[Check, ...]:
    """Where a run has faults: whether all came. ``unhappened``: labels of those it ended before."""
    if not faults:
        return ()
    value = ", ".join(unhappened) if unhappened else len(faults)
    return (Check("every event happened", not unhappened, value, len(faults)),)


def remarks(reconvergence: Reconvergence | None) -> tuple[str, ...]:
    """What people should read beside the checks."""
    if reconvergence is None:
        return ()
    peak = reconvergence.peak
    said = [f"consensus distance peaked at {peak:.2f}× that of the same run without faults"]
    if peak < NO_EFFECT:
        said.append("the fault had no effect")
    return tuple(said)


def _finished(evidence: Evidence, attackers: Sequence[str]) -> list[NodeRun]:
    """Who finished and never attacked: nothing is expected of the others."""
    return [n for n in evidence.nodes if n.ended == "finished" and n.name not in attackers]


def _ended(expect: ExpectSettings, evidence: Evidence, attackers: Sequence[str]) -> Check:
    finished = len(_finished(evidence, attackers))
    if expect.finished_min is not None:
        return Check("finished_min", finished >= expect.finished_min, finished, expect.finished_min)
    could = len([name for name in evidence.could_finish if name not in attackers])
    return Check("every node that could finish did", finished >= could, finished, could)


def _of_class(node: NodeRun, *, label: str) -> float | None:
    return node.class_accuracy.get(label)


def _if_all(
    nodes: Iterable[NodeRun],
    figure: Callable[[NodeRun], float | None],
    choose: Callable[[list[float]], float],
) -> float | None:
    """The worst figure, if every node that finished has one."""
    values = [figure(node) for node in nodes]
    known = [value for value in values if value is not None]
    return choose(known) if known and len(known) == len(values) else None
