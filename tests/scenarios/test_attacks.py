"""Attackers: each leaves its marks on honest nodes and stops none; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import convert, structs
from sims import QUADRATIC, failed, quadratic

from node.errors import ConfigError
from scenarios.attacks.attacker import attacks
from scenarios.record import Run, result
from scenarios.settings import Scenario, check_scenario, load_scenario, parse_scenario
from scenarios.shrink import Shrinker
from scenarios.simulation import simulate
from scenarios.vocabulary import EventSettings
from scenarios.written import event_tables

REGULAR = 'kind = "regular", nodes = 6, degree = 3, seed = 1'
# what the honest neighbours must have counted against whom; nothing: it looks like a member
MARKS: dict[str, set[str]] = {
    "flood": {"rate", "malformed"},
    "replay": {"replay", "foreign"},
    "equivocation": {"foreign"},  # what comes after the proof
    "forged": {"signature"},
    "foreign": {"foreign", "signature"},
    "wrong-shape": {"bounds"},
    "wrong-digest": {"digest"},
    "nan": {"model"},
    "inf": {"model"},
    "huge": {"model"},
    "over-credit": {"bounds"},
    "stale-version": {"foreign"},
    "old-boot": {"replay"},
    "jump": {"bounds"},
    "inflated-heads": {"foreign"},
}


def event(at: str, what: str, nodes: str = "n1", more: str = "") -> str:
    return f'[[event]]\nat = "{at}"\nattack = "{what}"\nnodes = "{nodes}"\n{more}\n'


def attacked(text: str, **more: object) -> Scenario:
    return quadratic(text, topology=REGULAR, rounds=10, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", sorted(attacks()))
def test_each_attack_is_borne_and_leaves_its_marks(what: str) -> None:
    run = simulate(attacked(event("150ms", what)))
    assert run.ok, failed(run)
    assert run.attackers == ("n1",)
    honest = [node for node in run.nodes if node.name != "n1"]
    assert all(node.ended == "finished" for node in honest)
    counted = {reason for node in honest for reason in node.rejections}
    assert MARKS.get(what, set()) <= counted


@pytest.mark.parametrize("what", ["replay", "noise", "flood", "foreign"])
def test_an_attack_that_ends_leaves_a_member_like_any_other(what: str) -> None:
    def told(run: Run, name: str) -> int:
        return next(sum(n.rejections.values()) for n in run.nodes if n.name == name)

    ended = simulate(attacked(event("150ms", what) + event("500ms", "none")))
    lasting = simulate(attacked(event("150ms", what)))
    assert 0 < told(ended, "n0") < told(lasting, "n0") or what == "noise"
    assert ended.faults[0].end == pytest.approx(0.5)
    last = [row for row in ended.rows if row.node == "n0"][-1]
    assert "n1" in last.mixed


def test_the_same_seed_attacks_the_same_way() -> None:
    scenario = attacked(event("150ms", "foreign") + event("150ms", "noise", "n4"))
    one, other = simulate(scenario), simulate(scenario)
    assert one.trace_hash == other.trace_hash
    assert one.trace_hash != simulate(attacked(event("150ms", "foreign"))).trace_hash


def test_figures_are_about_honest_nodes_and_the_result_names_the_others() -> None:
    run = simulate(attacked(event("0s", "zero") + "[expect]\nfinished_min = 5\n"))
    assert [node.name for node in run.honest] == ["n0", "n2", "n3", "n4", "n5"]
    made = result(run)
    assert made["attackers"] == ["n1"]
    losses = [node.loss for node in run.nodes if node.name != "n1"]
    assert made["loss"]["max"] == max(loss for loss in losses if loss is not None)
    few = simulate(attacked(event("0s", "zero") + "[expect]\nfinished_min = 6\n"))
    assert [check.name for check in failed(few)] == ["finished_min"]


def test_a_function_or_a_class_of_a_file_attacks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from scenarios.attacks.attacker import Attacker\n"
        "def tenfold(own, neighbours, rng):\n    return own * 10\n"
        "class Silent(Attacker):\n    def said(self, peer, message, frame):\n        return ()\n"
    )
    plain = attacked("")
    text = event("150ms", "mine.py:tenfold")
    assert simulate(_beside(tmp_path, text)).trace_hash != simulate(plain).trace_hash
    silent = simulate(_beside(tmp_path, event("150ms", "mine.py:Silent")))
    assert silent.ok, failed(silent)
    last = [row for row in silent.rows if row.node == "n0"][-1]
    assert "n1" not in last.mixed


def _beside(folder: Path, text: str) -> Scenario:
    head = QUADRATIC.format(topology=REGULAR, rounds=10, mixing=4)
    return parse_scenario(head + text, source="quadratic.toml", base=folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (event("1s", "replays"), "no attack 'replays'; did you mean 'replay'"),
        (event("1s", "replay", "n9"), "no node 'n9'"),
        (event("1s", "replay", "*"), "every node attacks"),
        (event("1s", "none"), "attack = 'none', but 'n1' does not attack"),
        (event("100ms", "zero") + event("200ms", "zero"), "'n1' attacks by 'zero' already"),
        ('[[event]]\nat = "1s"\nattack = "zero"\n', "key 'nodes': missing"),
        ('[[event]]\nat = "1s"\ncrash = "n1"\nnodes = "n1"\n', "'nodes' belongs to an attack"),
        ('[[event]]\nat = "1s"\ncrash = "n1"\nscale = 2\n', "'scale' belongs to an attack"),
        (event("1s", "noise", more="scale = -1"), "event.scale"),
        (event("100ms", "zero") + event("200ms", "none", more="scale = 2"), "key 'scale'"),
        (event("1s", "absent.py:lie"), "absent.py: cannot be read"),
        (event("9s", "zero"), "the run may be over"),
    ],
)
def test_an_attack_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        quadratic(text)
    assert said.replace("event.scale", "scale") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_that_function_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit\ndef lie(own, neighbours, rng): ...\n")
    with pytest.raises(ConfigError, match=r"no function 'lye'.*did you mean 'lie'"):
        _beside(tmp_path, event("1s", "mine.py:lye"))
    (tmp_path / "mine.py").write_text("def lie(:\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        _beside(tmp_path, event("1s", "mine.py:lie"))


def test_what_chaos_draws_is_written_out_as_events_that_draw_the_same_run() -> None:
    chaos = load_scenario("chaos")
    seed = next(s for s in range(100) if len(chaos.with_seed(s).with_chaos().attackers))
    drawn = chaos.with_seed(seed).with_chaos()
    settings = structs.replace(
        drawn.settings,
        chaos=None,
        event=tuple(convert(table, EventSettings) for table in event_tables(drawn.faults)),
    )
    written = check_scenario(settings, source="written.toml")
    assert written.attackers == drawn.attackers
    assert simulate(written).trace_hash == simulate(chaos, seed=seed).trace_hash


def test_shrinking_leaves_the_attack_that_a_failure_needs(tmp_path: Path) -> None:
    slow = '[[event]]\nat = "400ms"\nslow = { nodes = "n2", factor = 2 }\n'
    text = QUADRATIC.format(topology=REGULAR, rounds=10, mixing=4)
    text += event("150ms", "zero") + event("300ms", "none") + slow
    text += "[expect]\nfinished_min = 6\n"  # one of them attacks: five at most
    scenario = parse_scenario(text, source="t.toml")
    found = Shrinker(text, scenario, 0, base=tmp_path).shrink()
    assert found.after == 1
    assert 'attack = "zero"' in found.text
