"""The command as a whole: what it imports, how it fails, what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from node.cli import main as command
from node.errors import StorageError, TransportError

HEAVY = ("torch", "sklearn", "networkx", "numpy", "scipy", "plotly", "asyncio")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["id", "--state", "s"], ["status", "--state", "s"], ["stop", "--help"]],
)
def test_answers_without_the_heavy_imports(tmp_path: Path, arguments: list[str], do) -> None:
    do("keygen", "--name", "a", "--state", tmp_path / "s")
    code = (
        "import sys\nfrom node.cli.main import main\n"
        f"assert main({arguments!r}) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.strip() == "[]"


def test_unknown_command_and_options_are_usage_errors(refused) -> None:
    assert "No such command" in refused("strat", "x.toml")
    assert "No such option" in refused("keygen", "--nmae", "x")
    assert "--name" in refused("keygen", "--state", "x")
    assert "grapevine consortium verify --help" in refused("consortium", "verify")


def test_nothing_asked_shows_the_help(grapevine) -> None:
    ran = grapevine()
    assert "Commands:" in ran.out + ran.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("disk full"), 4),
        (TransportError("port in use"), 3),
        (RuntimeError("two\nlines"), 5),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    monkeypatch, refused, error: BaseException, code: int
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("importlib.metadata.version", broken)
    why = refused("version", code=code)
    if code == 5:
        assert why.startswith("RuntimeError: two lines")


def test_ctrl_c_is_no_traceback(monkeypatch, grapevine) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.metadata.version", interrupted)
    ran = grapevine("version")
    assert ran.code == 130
    assert "Traceback" not in ran.err


def test_a_bug_shows_its_place_where_asked(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("here")

    monkeypatch.setattr("importlib.metadata.version", broken)
    monkeypatch.setenv("GRAPEVINE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="here"):
        command.main(["version"])


def test_version(do) -> None:
    assert do("version", "--json").json["wire"] == 1
    assert do("version").out.startswith("grapevine ")


@pytest.mark.parametrize(
    "command", [["demo"], ["run", "wan-partition"], ["run", "x.toml"], ["table", "results"]]
)
def test_without_scenarios_a_command_says_so_in_a_line(monkeypatch, refused, command) -> None:
    # as in the release image: no module of that name can be found
    for name in [name for name in sys.modules if name.split(".")[0] == "scenarios"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scenarios", None)
    assert "leaves out" in refused(*command)


def test_topology_of_the_library(do) -> None:
    found = do("topology", "ring-8", "--json").json
    assert len(found["nodes"]) == 8
    assert len(found["edges"]) == 8
    assert found["diameter"] == 4
    assert found["degree"] == {"min": 2, "mean": 2.0, "max": 2}
    assert found["tolerates"] == 1
    assert 0 < found["spectral_gap"] < 1
    assert found["rounds_to_consensus"] > 1
    text = do("topology", "hospitals-5").out
    assert "spectral gap" in text
    assert "clinic-a" in text


def test_topology_names_its_weak_points(tmp_path: Path, do) -> None:
    (tmp_path / "t.toml").write_text('kind = "path"\nnodes = 12\n')
    found = do("topology", tmp_path / "t.toml", "--json").json
    assert len(found["bridges"]) == 11
    assert len(found["cut_nodes"]) == 10
    assert "… 21 in all" in do("topology", tmp_path / "t.toml").out


def test_topology_draws(tmp_path: Path, do, refused) -> None:
    do("topology", "ring-8", "--plot", tmp_path / "g.svg")
    assert ElementTree.parse(tmp_path / "g.svg").getroot().tag.endswith("svg")
    do("topology", "ring-8", "--plot", tmp_path / "g.html")
    assert "<svg" in (tmp_path / "g.html").read_text()
    assert ".svg or .html" in refused("topology", "ring-8", "--plot", tmp_path / "g.png")
    refused("topology", "ring-8", "--plot", tmp_path / "absent" / "g.svg", code=4)


def test_topology_refuses(tmp_path: Path, refused) -> None:
    assert "did you mean 'ring-8'" in refused("topology", "ring-9")
    assert "no such file" in refused("topology", tmp_path / "x.toml")
    file = tmp_path / "t.toml"
    file.write_text(
        'kind = "explicit"\nnames = ["a", "b", "c", "d"]\nedges = [["a","b"],["c","d"]]'
    )
    assert "not connected" in refused("topology", file)
    file.write_text('knd = "ring"')
    assert "did you mean 'kind'" in refused("topology", file)


def test_status_and_stop_without_a_node(tmp_path: Path, do, refused) -> None:
    state = tmp_path / "state"
    state.mkdir()
    assert do("status", "--state", state, "--json").json == {"running": False, "result": None}
    (state / "result.json").write_text(
        json.dumps({"ended": "finished", "rounds": 9, "accuracy": 0.5})
    )
    assert "finished at round 9, accuracy 0.500" in do("status", "--state", state).out
    (state / "result.json").write_text("{")
    assert "has not finished" in do("status", "--state", state).out
    assert "no node is running" in refused("stop", "--state", state)
    assert "no such state directory" in refused("status", "--state", tmp_path / "absent")
    assert "--state DIR" in refused("status")
    node = tmp_path / "NODE.toml"
    node.write_text('state = "state"\nconsortium = "x"\n')
    assert do("status", node, "--json").json["running"] is False
    node.write_text('stat = "state"\nconsortium = "x"\n')
    assert "did you mean 'state'" in refused("status", node)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = "import sys; from node.cli.main import main; sys.exit(main(['topology', 'ring-8']))"
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, "")
