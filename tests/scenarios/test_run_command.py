"""`grapevine run`: verdict as exit code, result as JSON, errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from node.cli.main import main

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
[expect]
loss_max = LIMIT
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO.replace("LIMIT", "100.0"))
    return path


def test_a_run_that_holds_prints_its_table_and_writes_json(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["run", str(scenario), "--seed", "5", "--json", str(out)]) == 0
    said = capsys.readouterr()
    assert "tiny on simulation, seed 5" in said.out
    assert "n3" in said.out
    assert "loss_max" in said.out
    made = json.loads(out.read_text())
    assert made["seed"] == 5
    assert set(made["nodes"]) == {"n0", "n1", "n2", "n3"}
    assert {
        "scenario", "engine", "seed", "rounds", "trace_hash", "schedule_hash", "wall_s", "setup_s",
        "baselines_s", "virtual_s", "nodes", "absent", "accuracy", "consensus_distance",
        "baselines", "checks",
    } <= set(made)  # fmt: skip
    assert made["baselines_s"] is not None


def test_json_to_stdout_is_nothing_but_json(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(scenario), "--no-baselines", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["baselines"] is None


def test_a_failed_expectation_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SCENARIO.replace("LIMIT", "0.0"))
    assert main(["run", str(path), "--no-baselines"]) == 1
    assert "FAIL loss_max" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such file"),
        (["FILE", "--on", "procesess"], "did you mean 'processes'"),
        (["FILE", "--json", "/nowhere/x.json"], "its folder does not exist"),
        (["FILE", "--report", "/"], "is a folder"),
        (["FILE", "--seed", "-1"], "--seed"),
    ],
)
def test_wrong_usage_is_exit_code_2_in_one_line(
    arguments: list[str], said: str, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(scenario) if a == "FILE" else a for a in arguments]
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("grapevine: error: ")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("key", "said"),
    [("f = 1", "learning.f: found 1"), ('optimizer = "adamm"', "learning.optimizer: unknown")],
)
def test_what_learning_refuses_names_the_file(
    key: str, said: str, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.write_text(scenario.read_text().replace("[learning]", f"[learning]\n{key}"))
    assert main(["run", str(scenario)]) == 2
    error = capsys.readouterr().err
    assert f"error: {scenario}: {said}" in error
    assert error.count(str(scenario)) == 1


def test_ctrl_c_says_one_line(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scenarios.engines.run", interrupted)
    assert main(["run", str(scenario)]) == 130
    assert capsys.readouterr().err == "grapevine: error: interrupted\n"


def test_whom_nodes_missed_is_readable_in_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["run", "crash-and-return", "--no-baselines"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 80
    header = next(n for n, line in enumerate(said) if line.startswith("node "))
    names = [line.split()[0] for line in said[header + 1 : header + 9]]
    assert names == [f"n{i}" for i in range(8)], "a row of the table is one line"
    assert any(re.match(r"n\d missed n5 in \d+ \(\d+–\d+\)", line) for line in said)
