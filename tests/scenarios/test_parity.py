"""The same files on both engines: the same verdicts, and figures within what seeds make of them.

Real runs take real time, so most files of the library run here at half their times: steps, events
and pauses, which is the same scenario on machines twice as fast. benchmarks/parity.py runs all of
them in full and prints the figures that the tolerances below come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import structs
from sims import found

from scenarios.faults import Heal, Slow, When
from scenarios.nursery import Nursery
from scenarios.parity import differences
from scenarios.processes import run_processes
from scenarios.record import Check, FaultSpan, Run, level
from scenarios.settings import Scenario, load_scenario
from scenarios.simulation import simulate

# Two runs of one seed differ in the order of arrivals alone, which is less than what another seed
# changes: split, initial model and batches. Over six seeds of each file in simulation the accuracy,
# mean and least, spreads by 0.014 to 0.025 on digits (360 test rows), 0.035 on hospitals (114).
ACCURACY: Final = 0.035
# D/‖x̄‖ is compared where it is largest: at the end of the training, before final mixing takes it
# down by orders of magnitude. Over the same seeds it spreads by a factor of 1.2 to 3.
RELATIVE_FACTOR: Final = 3.0
AT_A_TIME: Final = 2  # they sleep most of the time

# file -> by how much its times are cut
FILES: Final = {
    "hospitals": 1.0,
    "crash-and-return": 1.0,  # its events wait for rounds
    "chaos": 1.0,  # what is drawn depends on the length of a round
    "disk-full": 0.5,
    "flapping-link": 0.5,
    "late-founder": 0.5,
    "long-minority-partition": 0.5,
    "one-way-partition": 0.5,
    "rolling-restart": 0.5,
    "stale-backup": 0.5,
    "swizzle": 0.5,
}


def in_less_time(scenario: Scenario, share: float) -> Scenario:
    """All times of the scenario's machines and events × share; latencies stay."""

    def sooner(at: When) -> When:
        return at if at.seconds is None else When(seconds=at.seconds * share)

    settings = scenario.settings
    start = settings.start
    if start.after_s is not None:
        start = structs.replace(start, after_s=start.after_s * share)
    # nobody comes back after the training's end: whoever is missing need not be waited for
    learning = structs.replace(settings.learning, linger_s=1.0)
    return structs.replace(
        scenario,
        settings=structs.replace(settings, start=start, learning=learning),
        step_ms={name: ms * share for name, ms in scenario.step_ms.items()},
        faults=tuple(structs.replace(f, at=sooner(f.at)) for f in scenario.faults),
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """Every file on processes, some at a time; the nurseries are started from this thread."""
    folder = tmp_path_factory.mktemp("nurseries")
    nurseries = [Nursery(Path(folder) / f"{number}.log") for number in range(AT_A_TIME)]
    free = list(nurseries)

    def run(name: str) -> Run:
        nursery = free.pop()
        try:
            return run_processes(chosen(name), nursery=nursery, baselines=False)
        finally:
            free.append(nursery)

    try:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            yield {name: pool.submit(run, name) for name in FILES}
            pool.shutdown(cancel_futures=True)
    finally:
        for nursery in nurseries:
            nursery.close()


def chosen(name: str) -> Scenario:
    return in_less_time(load_scenario(name), FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_both_engines_come_to_the_same_verdicts(name: str, real: dict[str, Future[Run]]) -> None:
    virtual = simulate(chosen(name))
    actual = real[name].result()
    assert not differences(virtual, actual)
    assert actual.ok, found(actual)  # and all of these are meant to hold
    accuracy, other = (level(node.accuracy for node in run.finished) for run in (virtual, actual))
    if accuracy is not None:
        assert other is not None
        assert other.mean == pytest.approx(accuracy.mean, abs=ACCURACY)
        assert other.min == pytest.approx(accuracy.min, abs=ACCURACY)
    ratio = trained(actual) / trained(virtual)
    assert 1 / RELATIVE_FACTOR < ratio < RELATIVE_FACTOR


def trained(run: Run) -> float:
    """D/‖x̄‖ after the last round with training."""
    return next(row.relative for row in run.distances if row.round == run.training_rounds)


def test_half_the_time_is_the_same_scenario_sooner() -> None:
    whole, half = load_scenario("late-founder"), in_less_time(load_scenario("late-founder"), 0.5)
    assert half.step_ms["n0"] == whole.step_ms["n0"] / 2
    assert half.settings.start.after_s == 1.0
    assert [fault.at.seconds for fault in half.faults] == [0.0, 3.5]
    rounds = in_less_time(load_scenario("crash-and-return"), 0.5).faults
    assert [fault.at.round for fault in rounds] == [8, 20, 20]


# ── the comparison sees ─────────────────────────────────────────────────────────────────────────


def test_what_differs_is_said() -> None:
    scenario = structs.replace(chosen("swizzle"), faults=())
    one = simulate(scenario)
    assert not differences(one, one)

    def but(**changes: Any) -> tuple[str, ...]:
        return differences(one, structs.replace(one, engine="processes", **changes))

    first, *others = one.checks
    fails = structs.replace(first, ok=False, value=5)
    (said,) = but(checks=(fails, *others))
    assert said.endswith("simulation holds: 6 (limit 6), processes fails: 5 (limit 6)")
    (said,) = but(checks=tuple(others))
    assert said == f"check '{first.name}' is missing on processes"
    (said,) = but(checks=(*one.checks, Check("another", ok=True)))
    assert said == "check 'another' is missing on simulation"
    # a cut may be too short for a machine that is late by seconds to be judged
    assert not but(
        checks=(*one.checks, Check("after a heal the sides mix with each other", ok=True))
    )
    killed = structs.replace(one.nodes[0], ended="killed")
    (said,) = but(nodes=(killed, *one.nodes[1:]))
    assert said == "n0: ended is finished on simulation, killed on processes"
    (said,) = but(faults=(FaultSpan(kind="clog", nodes=("n0", "n1"), start=1.0),))
    assert said.startswith("faults: simulation []")


def test_faults_without_a_time_of_their_own_stay_where_they_are() -> None:
    scenario = load_scenario("swizzle")
    faults = (Slow(at=When(round=3), nodes=("n0",), factor=2.0), Heal(at=When(seconds=4.0)))
    found = in_less_time(structs.replace(scenario, faults=faults), 0.5).faults
    assert [fault.at for fault in found] == [When(round=3), When(seconds=2.0)]
