"""How long a round waits, from what was seen."""

from __future__ import annotations

import pytest
from cores import policy
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.deadline import OBSERVATIONS_MAX, Arrivals

LIMITS = {"deadline_min_s": 0.5, "deadline_max_s": 30.0, "deadline_mads": 6.0}


@pytest.mark.parametrize(
    ("wait", "seen", "expected"),
    [
        ("none", [], 0.0),
        ("none", [1.0] * 9, 0.0),
        ("all", [1.0] * 9, 30.0),
        ("adaptive", [], 30.0),
        ("adaptive", [1.0] * 4, 30.0),
        ("adaptive", [1.0] * 5, 1.0),
        ("adaptive", [0.01] * 5, 0.5),
        ("adaptive", [1.0, 2.0, 3.0, 4.0, 5.0], 9.0),  # 3 + 6 · 1
        ("adaptive", [1.0, 1.0, 1.0, 1.0, 1e9], 1.0),  # one liar's delay moves no median
        ("adaptive", [100.0] * 5, 30.0),
    ],
)
def test_table(wait: str, seen: list[float], expected: float) -> None:
    arrivals = Arrivals(policy(wait=wait, **LIMITS))
    for delay in seen:
        arrivals.observe(delay)
    assert arrivals.wait_s() == pytest.approx(expected)


def test_rounds_without_training_wait_even_where_the_others_do_not() -> None:
    arrivals = Arrivals(policy(wait="none", **LIMITS))
    assert arrivals.wait_s() == 0.0
    assert arrivals.wait_s(training=False) == 30.0


def test_who_is_far_ahead_waits_the_longest_whatever_it_has_seen() -> None:
    arrivals = Arrivals(policy(**LIMITS))
    for _ in range(10):
        arrivals.observe(0.1)
    assert (arrivals.wait_s(), arrivals.wait_s(ahead=True)) == (0.5, 30.0)
    assert Arrivals(policy(wait="none", **LIMITS)).wait_s(ahead=True) == 0.0


@given(st.lists(st.floats(-1e6, 1e6), max_size=200))
def test_always_within_the_policy_and_bounded(delays: list[float]) -> None:
    arrivals = Arrivals(policy(**LIMITS))
    for delay in delays:
        arrivals.observe(delay)
    assert 0.5 <= arrivals.wait_s() <= 30.0
    assert len(arrivals.seen()) <= OBSERVATIONS_MAX
    assert all(delay >= 0 for delay in arrivals.seen())
    assert Arrivals(policy(**LIMITS), arrivals.seen()).wait_s() == arrivals.wait_s()
