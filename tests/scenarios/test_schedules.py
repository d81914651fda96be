"""Schedules are the same on every Python and machine: a file of them, kept."""

from __future__ import annotations

import json

import schedules
from msgspec import structs
from sims import quadratic

from scenarios.simulation import simulate


def test_schedules_are_those_of_every_other_python_and_machine() -> None:
    kept = json.loads(schedules.FILE.read_text(encoding="utf-8"))
    assert schedules.schedules() == kept, (
        "a change of schedules that is meant: python tests/support/schedules.py --write"
    )
    every = [hash_ for hashes in kept.values() for hash_ in hashes]
    assert len(set(every)) == len(every) == 4 * schedules.SEEDS


def test_no_weight_reaches_the_schedule() -> None:
    """Another learning rate: every model another, and nothing happens at another time."""
    calm = quadratic()
    settings = calm.settings
    learning = structs.replace(settings.learning, learning_rate=0.03)
    other = structs.replace(calm, settings=structs.replace(settings, learning=learning))
    one, two = simulate(calm), simulate(other)
    assert one.schedule_hash == two.schedule_hash
    assert one.trace_hash != two.trace_hash
