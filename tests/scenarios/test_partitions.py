"""What a partition did: each side's accuracy, how far they drifted, and when they met again."""

from __future__ import annotations

from pathlib import Path

import pytest
from sims import quadratic

from scenarios.partitions import Calm, partition_runs
from scenarios.record import DistanceRow, FaultSpan, RoundRow, result
from scenarios.simulation import simulate

SIDES = (("a", "b"), ("c",))


def row(node: str, round_: int, accuracy: float | None) -> RoundRow:
    return RoundRow(node=node, round=round_, at=float(round_), accuracy=accuracy)


def test_from_the_cut_to_the_re_consensus() -> None:
    cut = FaultSpan(kind="partition", nodes=("a", "b", "c"), start=2.5, end=4.5, sides=SIDES)
    rows = [row(n, r, 0.1 * r - 0.05 * (n == "b")) for r in range(1, 9) for n in "abc"]
    d = [1.0, 1.0, 3.0, 4.0, 4.0, 2.0, 1.4, 1.0]
    distances = [DistanceRow(r + 0.25, r, d[r - 1], 0.0) for r in range(1, 9)]
    apart = {SIDES: {r: 2.0 * d[r - 1] for r in range(1, 9)}}
    free = Calm(dict.fromkeys(range(1, 9), 1.0), {SIDES: dict.fromkeys(range(1, 9), 0.5)})
    (found,) = partition_runs([cut], rows, distances, apart, free)
    assert (found.start_round, found.end_round) == (2, 4)
    left, right = found.sides
    assert left.accuracy[2] == pytest.approx((3.0, 0.275, 0.25))
    assert right.accuracy[2] == pytest.approx((3.0, 0.3, 0.3))
    assert found.apart_peak == 8.0
    assert (found.peak_ratio, found.apart_peak_ratio) == (4.0, 16.0)
    assert (found.reconverged_rounds, found.reconverged_s) == (3, 7.25 - 4.5)


def test_what_is_not_known_is_none() -> None:
    cut = FaultSpan(kind="partition", nodes=("a", "b", "c"), start=2.5, sides=SIDES)
    (found,) = partition_runs([cut], [row("a", 1, None)], [], {}, None)
    assert found.end_round is None
    assert found.sides[0].accuracy == ()
    assert found.peak_ratio is found.reconverged_rounds is found.apart_peak is None


def test_the_json_of_a_simulated_partition() -> None:
    text = """
    [[event]]
    at = "0.5s"
    partition = [["n0", "n1"], ["n2", "n3", "n4"]]
    [[event]]
    at = "1.5s"
    heal = true
    [expect]
    reconverged_within_rounds = 10
    """
    run = simulate(quadratic(text, rounds=20))
    made = result(run)
    listed = (Path(__file__).parents[2] / "docs/result.md").read_text("utf-8")
    node, link = made["nodes"]["n0"], made["links"][0]
    told = {*made, *node, *link, *made["partitions"][0]} - {"divergence"}
    told |= {f"divergence.{key}" for key in made["partitions"][0]["divergence"]}
    assert sorted(key for key in told if f"`{key}`" not in listed) == []
    (part,) = made["partitions"]
    assert [side["nodes"] for side in part["sides"]] == [["n0", "n1"], ["n2", "n3", "n4"]]
    assert (part["start"], part["end"]) == (0.5, 1.5)
    rounds = part["divergence"]["rounds"]
    assert [one["round"] for one in rounds] == list(range(1, run.rounds + 1))
    by_round = {one["round"]: one["distance"] for one in rounds}
    assert part["divergence"]["peak"] == max(
        d for r, d in by_round.items() if r > part["start_round"]
    )
    assert by_round[part["end_round"]] > 2 * by_round[run.rounds]  # they meet again
    check = next(c for c in run.checks if c.name == "reconverged_within_rounds")
    assert part["reconverged_rounds"] == check.value
    assert 0 < part["reconverged_s"] < 5
    # the cut links carried less than the others
    cut = {("n1", "n2"), ("n0", "n4"), ("n4", "n0")}
    sent = {(link["a"], link["b"]): link["a_to_b_bytes"] for link in made["links"]}
    assert max(v for k, v in sent.items() if k in cut) < min(
        v for k, v in sent.items() if k not in cut
    )
    node_bytes = sum(node["sent_bytes"] for node in made["nodes"].values())
    both = sum(link["a_to_b_bytes"] + link["b_to_a_bytes"] for link in made["links"])
    assert both == node_bytes
