from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from node.cli.demo import absences, demo_scenario, figure_text, show
from node.cli.main import main
from node.errors import ConfigError
from scenarios.faults import Crash
from scenarios.record import Alone, Baselines, Missed, NodeRun, Run

CLINICS = [f"clinic-{letter}" for letter in "abcde"]
PATIENCE_S = 120.0  # until a test gives up on something that must come


def test_the_demo_with_a_hospital_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, page = tmp_path / "demo", tmp_path / "page.html"
    arguments = ["demo", "--dir", str(folder), "--rounds", "8", "--kill", "clinic-c@3"]
    code = main([*arguments, "--json", "-", "--report", str(page)])
    out, shown = capfd.readouterr()
    assert code == 0, shown
    found: dict[str, Any] = json.loads(out)
    assert json.loads((folder / "result.json").read_text()) == found
    nodes = found["nodes"]
    assert sorted(nodes) == CLINICS
    assert nodes["clinic-c"]["ended"] == "killed"
    assert 3 <= nodes["clinic-c"]["round"] < 8
    for name in ("clinic-a", "clinic-b", "clinic-d", "clinic-e"):
        assert nodes[name]["ended"] == "finished"
        assert nodes[name]["round"] == found["rounds"]
        assert 0.5 < nodes[name]["accuracy"] <= 1
        assert nodes[name]["test_rows"] == 114
        assert (folder / name / "state" / "model.safetensors").is_file()
    for name in ("clinic-a", "clinic-b", "clinic-d"):  # its neighbours
        (missed,) = nodes[name]["missed"]
        assert missed["peer"] == "clinic-c"
        assert missed["first"] <= nodes["clinic-c"]["round"] + 2
    assert found["baselines"]["pooled"] > 0.5
    # uneven and not of one mix: that is what the split is for
    patients = [nodes[name]["samples"] for name in CLINICS]
    assert max(patients) >= 3 * min(patients)
    assert "clinic-c was killed after its round" in shown
    assert "clinic-c was missing from round" in shown
    assert "alone" in shown
    assert page.stat().st_size > 1_000_000
    assert not (folder / "report.html").exists()


def test_the_demo_through_a_broker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    arguments = ["demo", "--transport", "mqtt", "--dir", str(folder), "--rounds", "6"]
    code = main([*arguments, "--json", "-"])
    out, shown = capfd.readouterr()
    assert code == 0, shown
    found: dict[str, Any] = json.loads(out)
    assert {node["ended"] for node in found["nodes"].values()} == {"finished"}
    assert all(node["accuracy"] > 0.5 for node in found["nodes"].values())
    for name in CLINICS:
        lines = (folder / name / "log.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        (ready,) = [event for event in events if event["event"] == "ready"]
        assert ready["listen"] is None
        assert {event["via"] for event in events if event["event"] == "linked"} == {"mqtt"}
        assert [event["up"] for event in events if event["event"] == "broker"][-1] is True


def test_ctrl_c_ends_the_demo_and_all_its_processes(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        [sys.executable, "-m", "node.cli.main", "demo", "--dir", str(folder), "--rounds", "5000"],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        pids = [_pid(folder / name / "log.jsonl") for name in CLINICS]
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=PATIENCE_S)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert "Traceback" not in said
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def _pid(log: Path) -> int:
    """Of a node that is running, as it told itself."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        lines = log.read_text().splitlines() if log.exists() else []
        for line in lines:
            event = json.loads(line) if line.endswith("}") else {}
            if event.get("event") == "ready":
                return int(event["pid"])
        time.sleep(0.02)
    raise AssertionError(f"{log} never said ready")


@pytest.mark.parametrize(
    ("kill", "said"),
    [
        ("clinic-c", "expected NAME@ROUND, such as clinic-c@10"),
        ("clinic-c@", "expected NAME@ROUND"),
        ("clinic-c@x", "expected NAME@ROUND"),
        ("clinic-c@-1", "expected NAME@ROUND"),
        ("clinic-x@3", "no hospital 'clinic-x'; did you mean"),
        ("clinic-c@0", "round 0 is not from 1 to 9"),
        ("clinic-c@10", "round 10 is not from 1 to 9"),
    ],
)
def test_a_kill_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kill: str, said: str
) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--rounds", "10", "--kill", kill, "--dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"grapevine: error: --kill {kill}: ")
    assert said in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_a_folder_that_is_not_a_demos_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "patients.csv").write_text("…")
    assert main(["demo", "--dir", str(tmp_path)]) == 2
    assert "is not empty, and not of an earlier run" in capsys.readouterr().err
    assert (tmp_path / "patients.csv").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert main(["demo", "--dir", str(tmp_path / "demo")]) == 4
    assert "cannot be written" in capsys.readouterr().err


def test_the_demo_runs_the_librarys_hospitals_as_they_are_on_this_machine() -> None:
    made = demo_scenario(rounds=12, seed=9, kill="clinic-c@10")
    assert made.graph.nodes == tuple(CLINICS)
    assert len(made.graph.edges) == 6  # a ring and a chord
    assert (made.seed, made.settings.learning.rounds) == (9, 12)
    (crash,) = made.faults
    assert isinstance(crash, Crash)
    assert (crash.nodes, crash.at.round) == (("clinic-c",), 10)
    shape = made.link_shape("clinic-a", "clinic-b")
    assert (shape.latency_ms, shape.loss, made.settings.compute.step_ms) == (0, 0, 0)
    with pytest.raises(ConfigError):
        demo_scenario(kill="nobody@1")


def test_absences_are_told_once_for_all_whom_they_concern() -> None:
    gone = NodeRun(name="c", samples=1, ended="killed", rounds=3)
    others = [
        NodeRun(
            name=name,
            samples=1,
            ended="finished",
            rounds=9,
            missed=(Missed("c", 6, 4, 9, "refused"),),
        )
        for name in "ab"
    ]
    run = Run(
        scenario="s",
        engine="processes",
        seed=0,
        rounds=9,
        training_rounds=8,
        graph_nodes=("a", "b", "c"),
        edges=(),
        nodes=(*others, gone),
    )
    assert absences(run) == [
        "c was killed after its round 3.",
        "c was missing from round 4 to the end (6 rounds) at a, b: refused.",
    ]


def test_figures_show_their_intervals() -> None:
    node = NodeRun(
        name="a", samples=1, ended="finished", rounds=1, auroc=0.9, intervals={"auroc": (0.8, 0.95)}
    )
    assert figure_text(node, "auroc", 10) == "90.0 %\n80.0–95.0"
    assert figure_text(node, "accuracy", 10) == "–"
    # an accuracy's follows from its rows (Wilson 1927): 9 of 10
    assert figure_text(Alone(node="a", accuracy=0.9), "accuracy", 10) == "90.0 %\n59.6–98.2"


def test_the_table_fits_a_terminal_of_eighty_columns() -> None:
    share = {"accuracy": 0.947, "own_accuracy": 1.0, "auroc": 0.995, "own_auroc": 1.0}
    wide = dict.fromkeys(share, (0.439, 1.0))
    nodes = tuple(
        NodeRun(
            name=name,
            samples=114,
            ended="finished",
            rounds=39,
            sent_bytes=370_000,
            test_rows=114,
            own_test_rows=32,
            intervals=wide,
            **share,
        )
        for name in CLINICS
    )
    alone = tuple(Alone(node=name, intervals=wide, **share) for name in CLINICS)
    run = Run(
        scenario="s",
        engine="processes",
        seed=0,
        rounds=39,
        training_rounds=30,
        graph_nodes=tuple(CLINICS),
        edges=(),
        nodes=nodes,
        baselines=Baselines(local_only=alone, pooled=alone[0]),
    )
    written = io.StringIO()
    show(run, Console(file=written, width=80))
    text = written.getvalue()
    assert "…" not in text
    assert text.count("finished") == len(CLINICS)
    assert "patients  " in text
    assert max(len(line) for line in text.splitlines()) <= 80
