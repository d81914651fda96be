"""A sweep: checked before it starts, resumed where it stopped, written for other programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from node.cli.main import main
from node.errors import ConfigError, StorageError
from scenarios.sweep import is_sweep, load_sweep, run_sweep

BASE = """
name = "tiny"
topology = { kind = "ring", nodes = 4 }
[task]
name = "quadratic"
dimension = 4
[learning]
rounds = 4
local_steps = 1
final_mixing = 2
[[event]]
name = "power cut"
at = "round 2"
crash = "n1"
[[event]]
at = "round 2"
link = { latency_ms = 30 }
[expect]
finished_min = 3
"""
SWEEP = """
scenario = "base.toml"
seeds = "0..1"
[vary]
learning.learning_rate = [0.1, 0.05]
event."power cut".at = ["round 1", "round 2"]
"""


def written(folder: Path, text: str = SWEEP, base: str = BASE) -> Path:
    (folder / "base.toml").write_text(base)
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_every_combination_and_events_go_by_their_names(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert is_sweep(path)
    assert not is_sweep(tmp_path / "base.toml")
    sweep = load_sweep(path)
    assert sweep.keys == ("learning.learning_rate", "event.power cut.at")
    assert len(sweep.combinations) == 4
    last = sweep.combinations[-1].scenario
    assert last.settings.learning.learning_rate == 0.05
    assert [fault.at.round for fault in sweep.combinations[0].scenario.faults] == [1, 2]
    quoted = '"learning.learning_rate" = [0.1, 0.05]'
    same = SWEEP.replace("learning.learning_rate = [0.1, 0.05]", quoted)
    assert load_sweep(written(tmp_path, same)).digest == sweep.digest


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning.learning_rate", "learning.learning_rat", "did you mean 'learning_rate'"),
        ("learning.learning_rate", "lerning.learning_rate", "did you mean 'learning'"),
        ('"power cut"', '"power cat"', "no event is called 'power cat'; did you mean 'power cut'"),
        ('event."power cut".at', 'event."power cut"', "say event.NAME.key"),
        ("learning.learning_rate", "name.x", "'name' is no table"),
        ("[0.1, 0.05]", "0.1", "expected a list of values"),
        ("[0.1, 0.05]", "[]", "names no value"),
        ("[0.1, 0.05]", "[0.1, 0.1]", "stands twice"),
        ("[0.1, 0.05]", '["fast"]', "learning.learning_rate"),
        ("learning.learning_rate", "seed", "seeds are not varied"),
        ('"round 1"', '"round 9"', "last round is 4"),
        ("learning_rate = [0.1, 0.05]", 'rule = ["mean", "meen"]', "'meen'; did you mean 'mean'"),
        ("learning.learning_rate = [0.1, 0.05]", 'task.name = ["digit"]', "did you mean 'digits'"),
        ("learning_rate = [0.1, 0.05]", 'rule = ["median"]\nlearning.f = [1, 2]', "f = 2"),
        ('"0..1"', '"1..0"', "key 'seeds': '1..0' ends before it begins"),
        ("seeds", "seads", "did you mean 'seeds'"),
        ('"base.toml"', '"wan-partitoin"', "did you mean 'wan-partition'"),
        (
            '"base.toml"',
            '"wan-partitoin"',
            "sweep.toml: key 'scenario': 'wan-partitoin' is neither",
        ),
        ('"base.toml"', '"other.toml"', "key 'scenario': "),
        ('"base.toml"', '"swizzle.toml"', "no such file; the library has 'swizzle'"),
        ('"base.toml"', '"."', "is a folder, expected a scenario file"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_starts(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SWEEP
    path = written(tmp_path, SWEEP.replace(old, new))
    assert main(["run", str(path), "--out", str(tmp_path / "results"), "--jobs", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "results").exists()


def test_attacks_vary_and_none_is_what_they_are_compared_with(tmp_path: Path) -> None:
    base = BASE.replace(
        'name = "power cut"\nat = "round 2"\ncrash = "n1"',
        'name = "attacker"\nat = "0s"\nattack = "sign-flip"\nnodes = "n1"',
    )
    text = (
        'scenario = "base.toml"\nseeds = "0..0"\n[vary]\nevent.attacker.attack = ["none", "nan"]\n'
    )
    out = tmp_path / "results"
    done = run_sweep(load_sweep(written(tmp_path, text, base)), out)
    assert (done.runs, done.failed, done.broken) == (2, 0, ())
    runs = {run["event.attacker.attack"]: run for run in table(out / "runs.csv")}
    assert set(runs) == {"none", "nan"}
    assert runs["none"]["trace_hash"] != runs["nan"]["trace_hash"]
    with pytest.raises(ConfigError, match="did you mean"):
        load_sweep(written(tmp_path, text.replace('"nan"', '"nann"'), base))


def test_a_sweep_that_an_engine_cannot_run_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    event = '[[event]]\nat = "round 3"\nslow = { nodes = "n1", factor = 2 }\n'
    slow = "[compute]\nstep_ms = 0\n" + event
    sweep = load_sweep(written(tmp_path, base=BASE + slow))
    with pytest.raises(ConfigError, match="on processes a slow node pads its steps"):
        run_sweep(sweep, tmp_path / "results", on="processes")
    assert not (tmp_path / "results").exists()


def test_the_command_writes_tables_and_a_manifest_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path), tmp_path / "results"
    command = ["run", str(path), "--out", str(out), "--jobs", "2"]
    assert main(command) == 0
    runs, rounds = table(out / "runs.csv"), table(out / "rounds.csv")
    assert len(runs) == 8
    assert {run["event.power cut.at"] for run in runs} == {"round 1", "round 2"}
    assert all(float(run["loss_mean"]) >= 0 and run["ok"] == "True" for run in runs)
    assert {row["run"] for row in rounds} == {run["run"] for run in runs}
    assert any(row["node"] == "*" and row["consensus_distance"] for row in rounds)
    held = json.loads((out / "manifest.json").read_text())
    assert {"versions", "cpu", "cores", "threads", "jobs", "seeds", "digests"} <= set(held)
    assert held["digests"] == {run["run"]: run["trace_hash"] for run in runs}

    kept = sorted((out / "runs").glob("*.json"))
    kept[0].unlink()
    touched = {file: file.stat().st_mtime_ns for file in kept[1:]}
    capsys.readouterr()
    assert main(command) == 0
    assert "7 were there before" in capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == then for file, then in touched.items())
    again = table(out / "runs.csv")
    assert [run["trace_hash"] for run in again] == [run["trace_hash"] for run in runs]


def test_more_seeds_go_on_and_another_sweep_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "results"
    text = SWEEP.replace("[0.1, 0.05]", "[0.1]").replace('"0..1"', '"0..0"')
    assert run_sweep(load_sweep(written(tmp_path, text)), out).runs == 2
    more = run_sweep(load_sweep(written(tmp_path, text.replace("0..0", "0..1"))), out)
    assert (more.runs, more.skipped) == (4, 2)
    with pytest.raises(ConfigError, match=r"holds another sweep \(scenario 'tiny'"):
        run_sweep(load_sweep(written(tmp_path)), out)
    with pytest.raises(ConfigError, match="holds another sweep"):
        changed = written(tmp_path, text, BASE.replace("dimension = 4", "dimension = 5"))
        run_sweep(load_sweep(changed), out)
    with pytest.raises(ConfigError, match="on simulation"):
        run_sweep(load_sweep(written(tmp_path, text)), out, on="processes")


def test_a_folder_that_is_not_a_sweeps_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    sweep = load_sweep(written(tmp_path))
    with pytest.raises(ConfigError, match="is not empty and holds no sweep"):
        run_sweep(sweep, out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="is not the manifest"):
        run_sweep(sweep, out)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "thesis.tex"]


def test_a_damaged_run_is_named_and_not_counted(tmp_path: Path) -> None:
    text = SWEEP.replace("[0.1, 0.05]", "[0.1]").replace('"0..1"', '"0..0"')
    sweep, out = load_sweep(written(tmp_path, text)), tmp_path / "results"
    run_sweep(sweep, out)
    damaged = next((out / "runs").glob("*.json"))
    damaged.write_text(damaged.read_text()[:40])
    with pytest.raises(StorageError, match=f"{damaged.name}: is damaged"):
        run_sweep(sweep, out)


def test_a_failed_check_is_exit_code_1_and_stands_in_the_table(tmp_path: Path) -> None:
    text = SWEEP.replace("[0.1, 0.05]", "[0.1]").replace('"0..1"', '"0..0"')
    path = written(tmp_path, text, BASE.replace("finished_min = 3", "finished_min = 4"))
    assert main(["run", str(path), "--out", str(tmp_path / "r"), "--jobs", "1"]) == 1
    assert {run["failed"] for run in table(tmp_path / "r" / "runs.csv")} == {"finished_min"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SWEEP"], "say where its results go: --out FOLDER"),
        (["SWEEP", "--out", "r", "--seeds", "3"], "--seeds: is for a scenario"),
        (["SWEEP", "--out", "r", "--shrink"], "--shrink: is for a scenario"),
        (["SWEEP", "--out", "r", "--json", "-"], "--json: is for a scenario"),
        (["BASE", "--out", "r"], "--out: is a sweep's folder"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    names = {"SWEEP": str(path), "BASE": str(tmp_path / "base.toml"), "r": str(tmp_path / "r")}
    assert main(["run", *(names.get(a, a) for a in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_among_varied_rules_mean_is_run_without_the_f_of_the_others(tmp_path: Path) -> None:
    base = BASE.replace("[learning]", "[learning]\nf = 1\nrule = 'median'")
    text = 'scenario = "base.toml"\nseeds = "0..0"\n[vary]\nlearning.rule = ["mean", "median"]\n'
    mean, median = load_sweep(written(tmp_path, text, base)).combinations
    assert (mean.scenario.settings.learning.rule, mean.scenario.settings.learning.f) == ("mean", 0)
    assert median.scenario.settings.learning.f == 1
    done = run_sweep(load_sweep(written(tmp_path, text, base)), tmp_path / "results")
    assert (done.runs, done.broken) == (2, ())


def test_outside_a_sweep_over_rules_an_f_beside_mean_is_refused(tmp_path: Path) -> None:
    base = BASE.replace("[learning]", "[learning]\nf = 1")
    text = 'scenario = "base.toml"\nseeds = "0..0"\n[vary]\nlearning.momentum = [0.5, 0.9]\n'
    with pytest.raises(ConfigError, match=r"learning.f: found 1, but rule 'mean'"):
        run_sweep(load_sweep(written(tmp_path, text, base)), tmp_path / "results")
