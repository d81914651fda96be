"""Many seeds of one scenario: every failure with its seed, its events and its replay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from sims import quadratic

from node.cli.main import main
from node.errors import ConfigError
from scenarios import explore as exploring
from scenarios.explore import SEEDS_MAX, explore, parse_seeds, run_seed
from scenarios.record import Check
from scenarios.simulation import simulate
from scenarios.workers import spread

FAILS = "[expect]\nloss_max = -1.0\n"
SCENARIO = """
name = "tiny"
topology = { kind = "ring", nodes = 4 }
[task]
name = "quadratic"
dimension = 4
[learning]
rounds = 3
local_steps = 1
final_mixing = 2
[[event]]
name = "n1 is lost"
at = "round 2"
crash = "n1"
[expect]
finished_min = LEAST
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO.replace("LEAST", "3"))
    return path


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    path = tmp_path / "failing one.toml"
    path.write_text(SCENARIO.replace("LEAST", "4"))
    return path


def test_seeds_are_a_count_or_a_range_with_both_ends() -> None:
    assert parse_seeds("3", where="x") == (0, 1, 2)
    assert parse_seeds("2", where="x", first=7) == (7, 8)
    assert parse_seeds("4..6", where="x") == (4, 5, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a number"),
        ("0-9", "expected a number"),
        ("-1..3", "expected a number"),
        ("9..0", "try '0..9'"),
        ("0", "at least one"),
        (str(SEEDS_MAX + 1), "at most"),
        (f"0..{2**53}", "at most"),
        (f"{2**53}..{2**53}", "greatest seed"),
    ],
)
def test_a_bad_range_of_seeds_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_seeds(text, where="--seeds")
    assert str(caught.value).startswith("--seeds: ")


def test_processes_give_what_one_process_gives_in_the_order_of_the_seeds() -> None:
    scenario = quadratic(rounds=3)
    seen: list[int] = []
    found = explore(scenario, (5, 3, 4), jobs=2, on_outcome=lambda o: seen.append(o.seed))
    assert [o.seed for o in found] == [5, 3, 4]
    assert sorted(seen) == [3, 4, 5]
    assert [o.trace_hash for o in found] == [
        simulate(scenario, seed=seed).trace_hash for seed in (5, 3, 4)
    ]


def test_a_failure_names_the_check_and_what_happened_before_the_end() -> None:
    outcome = run_seed(quadratic(FAILS, rounds=3), 2)
    assert not outcome.ok
    assert outcome.why.startswith("loss_max: ")
    assert 0 < len(outcome.last) <= exploring.LAST_EVENTS
    assert "exit why=finished" in outcome.last[-1]


def test_what_came_after_the_violation_is_not_shown() -> None:
    scenario = quadratic(FAILS, rounds=3)
    run = simulate(scenario)
    check = Check("versions only grow", False, "at 0.150000 s: n0 publishes version 1")
    lines = exploring._before(scenario, run, check)
    assert lines
    assert all(float(line.split()[0]) <= 0.150001 for line in lines)


def test_a_worker_that_dies_costs_its_task_and_no_other() -> None:
    def work(task: int) -> bytes:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return bytes([task])

    found = dict(spread(work, 5, jobs=2))
    assert found == {0: b"\0", 1: None, 2: b"\2", 3: b"\3", 4: b"\4"}


def test_a_worker_computes_on_one_thread() -> None:
    import torch

    assert dict(spread(lambda _: bytes([torch.get_num_threads()]), 1, jobs=1)) == {0: b"\1"}


def test_a_run_that_breaks_off_is_a_failure_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(exploring.engines, "run", broken)
    (outcome,) = explore(quadratic(), [4])
    assert outcome.error.startswith("the run broke off: ZeroDivisionError: by zero, in broken")


def test_the_command_prints_seed_check_events_and_replay(
    failing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(failing), "--seeds", "0..1", "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "seed 1 FAILED: finished_min: 3 (limit 4)" in out
    assert "the last events before it:" in out
    assert f"replay: grapevine run '{failing}' --seed 1\n" in out
    assert "0 of 2 held, 2 failed" in out
    assert main(["run", str(failing), "--seed", "1"]) == 1, "the replay fails as well"


def test_the_command_counts_what_held_and_writes_json(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scenario), "--seeds", "2", "--seed", "5", "--jobs", "1"]) == 0
    assert "seeds 5..6: 2 of 2 held, 0 failed" in capsys.readouterr().out
    assert main(["run", str(scenario), "--seeds", "2", "--jobs", "1", "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["seeds"], made["failed"], made["failures"]) == (2, 0, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "x"], "--seeds: found 'x'"),
        (["--jobs", "2"], "--jobs: there is one run"),
        (["--seeds", "2", "--jobs", "5000"], "--jobs: found '5000', expected 1 to 1024 processes"),
        (["--seeds", "2", "--jobs", "0"], "--jobs: found '0'"),
        (
            ["--seeds", "2", "--jobs", "rai"],
            "--jobs: found 'rai', expected 1 to 1024 processes, or",
        ),
        (["--seeds", "2", "--jobs", "ray", "--on", "processes"], "spreads simulations"),
        (["--seeds", "2", "--report", "r.html"], "--report: shows one run"),
        (["--shrink", "--on", "processes"], "not --on processes"),
        (["--shrink"], "does not fail"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], said: str, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scenario), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_scenario_that_cannot_be_run_is_refused_and_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SCENARIO.replace("LEAST", "3").replace("rounds = 3", 'rule = "median"\nf = 9'))
    assert main(["run", str(path), "--seeds", "2", "--jobs", "1"]) == 2
