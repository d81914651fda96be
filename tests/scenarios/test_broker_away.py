"""The broker is away for half a minute: sockets go on, who had none is alone, and all meet again.

clinic-a and clinic-b take connections; the others only dial out. So the broker carries the two
links of clinic-d and no other, and without it clinic-d is alone. In virtual time: what a broker
costs beyond that is to find out that it is back (benchmarks/broker.py away).
"""

from __future__ import annotations

import pytest
from msgspec import structs

from scenarios.expected import ExpectSettings
from scenarios.record import RoundRow, Run
from scenarios.settings import ComputeSettings, check_scenario, load_scenario
from scenarios.simulation import simulate
from scenarios.vocabulary import EventSettings

AWAY_S = 30.0
WITHIN = 10  # rounds after its return
OTHERS = ("clinic-a", "clinic-b", "clinic-c", "clinic-e")


def away(seed: int) -> Run:
    library = load_scenario("hospitals")
    learning = structs.replace(library.settings.learning, rounds=220)
    settings = structs.replace(
        library.settings,
        learning=learning,
        compute=ComputeSettings(step_ms=100.0),
        event=(
            EventSettings(at="8s", partition=(("clinic-d",), ("clinic-[abce]",))),
            EventSettings(at=f"{8 + AWAY_S}s", heal=True),
        ),
        expect=ExpectSettings(),
    )
    return simulate(check_scenario(settings, source="away").with_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_sockets_go_on_and_the_others_meet_again(seed: int) -> None:
    run = away(seed)
    assert [check for check in run.checks if not check.ok] == []
    [cut] = run.faults
    assert cut.end is not None and cut.end - cut.start == AWAY_S

    def rows(name: str, begin: float, end: float) -> list[RoundRow]:
        return [row for row in run.rows if row.node == name and begin < row.at < end]

    linked = {name: rows(name, cut.start + 2, cut.end) for name in OTHERS}
    assert all(len(during) > 20 for during in linked.values())
    assert not any(row.alone for during in linked.values() for row in during)
    assert all(row.mixed for during in linked.values() for row in during), "by their sockets"
    alone = rows("clinic-d", cut.start + 2, cut.end)
    assert len(alone) > 40, "it waits for nobody"
    assert all(row.alone and not row.mixed for row in alone)
    assert {peer for row in alone for peer, why in row.missing if why} == {"clinic-c", "clinic-e"}
    for name, lost in (
        ("clinic-c", "clinic-d"),
        ("clinic-e", "clinic-d"),
        ("clinic-d", "clinic-c"),
        ("clinic-d", "clinic-e"),
    ):
        after = rows(name, cut.end, 1e9)[:WITHIN]
        assert any(lost in row.mixed for row in after), f"{name} meets {lost}"
