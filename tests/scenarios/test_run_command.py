"""`grapevine run`: verdict as exit code, result as JSON, errors in one line."""

from __future__ import annotations

import json
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
