"""A failing scenario is cut down to the fewest faults that still fail, and stays a scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.main import main
from node.errors import ConfigError
from scenarios import shrink as shrinking
from scenarios.explore import Outcome, run_seed
from scenarios.record import Check
from scenarios.settings import load_scenario, parse_scenario
from scenarios.shrink import Shrinker
from scenarios.simulation import simulate

HEAD = """# a comment that stays
name = "tiny"
topology = { kind = "ring", nodes = 4 }
[task]
name = "quadratic"
dimension = 4
[learning]
rounds = 8
local_steps = 1
final_mixing = 2
"""
NOISE = """
[[event]]
name = "slow one"
at = "round 1"
slow = { nodes = "n0", factor = 2 }
[[event]]
name = "n1 is down"
at = "round 2"
crash = "n1"
[[event]]
name = "worse links"
at = "round 3"
link = { latency_ms = 30 }
[[event]]
name = "n1 is back"
at = "round 4"
restart = "n1"
"""
LOST = """
[[event]]
name = "n2 is lost"
at = "round 5"
crash = "n2"
"""
EXPECT = "[expect]\nfinished_min = 4\n"


def shrinker(text: str, seed: int = 3) -> Shrinker:
    scenario = parse_scenario(text, source="tiny.toml")
    return Shrinker(text, scenario, seed, base=Path())


def test_only_the_fault_that_matters_is_left() -> None:
    found = shrinker(HEAD + NOISE + LOST + EXPECT).shrink()
    assert (found.before, found.after) == (5, 1)
    left = parse_scenario(found.text, source="shrunk")
    assert [fault.kind for fault in left.faults] == ["crash"], "any of the two is enough"
    assert left.seed == 3
    assert "# a comment that stays" in found.text


def test_a_crash_and_its_restart_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # n2 comes back and is lost again: its first crash and restart can only go as a pair
    text = HEAD + NOISE.replace("n1", "n2") + LOST + EXPECT
    found = shrinker(text).shrink()
    left = parse_scenario(found.text, source="shrunk")
    assert len(left.faults) == 1
    assert left.faults[0].kind == "crash"
    monkeypatch.setattr(Shrinker, "_ddmin", lambda _self, units: units)
    assert shrinker(text).shrink().after == 1, "the pass over pairs alone comes as far"


def test_a_failure_without_any_fault_leaves_none() -> None:
    found = shrinker(HEAD + NOISE + "[expect]\nloss_max = -1.0\n").shrink()
    assert found.after == 0
    assert parse_scenario(found.text, source="shrunk").faults == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + NOISE, "seed 3 does not fail"),
        (HEAD + "[expect]\nloss_max = -1.0\n", "has no event to take away"),
    ],
)
def test_what_cannot_be_shrunk_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shrinker(text).shrink()


def test_the_command_writes_a_file_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(HEAD + NOISE + LOST + EXPECT)
    assert main(["run", str(path), "--seeds", "1..1", "--jobs", "1", "--shrink"]) == 1
    out = capsys.readouterr().out
    made = tmp_path / "tiny.seed1.shrunk.toml"
    assert "shrunk from 5 faults to 1" in out
    assert f"replay: grapevine run {made} --seed 1" in out
    assert len(load_scenario(made).faults) == 1
    assert main(["run", str(made), "--no-baselines"]) == 1
    assert main(["run", str(path), "--seed", "2", "--shrink"]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_what_chaos_draws_is_the_same_run_written_out_as_events(seed: int) -> None:
    drawn = load_scenario("chaos")
    text = Path(drawn.source).read_text()
    made = Shrinker(text, drawn, seed, base=Path())
    events = parse_scenario(made._text, source="events").with_seed(seed)
    assert events.settings.chaos is None
    assert simulate(events).trace_hash == simulate(drawn, seed=seed).trace_hash


def test_a_failing_seed_of_chaos_is_shrunk_to_events() -> None:
    text = Path(load_scenario("chaos").source).read_text() + "[expect]\nmissed_rounds_max = 0\n"
    scenario = parse_scenario(text, source="chaos.toml")
    outcome = run_seed(scenario, 3)
    assert float(outcome.last[-1].split()[0]) == pytest.approx(
        simulate(scenario, seed=3).virtual_s, abs=1e-5
    ), "the events shown are those of the run with its faults"
    found = Shrinker(text, scenario, 3, base=Path()).shrink()
    assert found.after < found.before
    left = parse_scenario(found.text, source="shrunk")
    assert left.settings.chaos is None
    assert not run_seed(left, 3).ok


def test_faults_that_do_not_fail_when_written_out_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shrinking, "event_tables", lambda _faults: [{"at": "1s", "crash": "n0"}])
    text = Path(load_scenario("chaos").source).read_text()
    scenario = parse_scenario(text, source="x")
    monkeypatch.setattr(shrinking, "run_seed", _fails_once())
    with pytest.raises(ConfigError, match="cannot be shrunk"):
        Shrinker(text, scenario, 3, base=Path()).shrink()


def _fails_once() -> Callable[..., Outcome]:
    answers = iter([Outcome(seed=3, failed=(Check("finished_min", False),)), Outcome(seed=3)])
    return lambda *_args, **_more: next(answers)
