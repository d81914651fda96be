from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import GrapevineError
from scenarios.nursery import Child, Nursery

TARGET = """
import os, signal, sys, time

def preload():
    if os.environ.get("BROKEN"):
        raise SystemExit("cannot import")
    print("preloaded by", os.getpid(), flush=True)

def main(argv):
    print("child", os.getpid(), argv, flush=True)
    if argv[0] == "exit":
        return int(argv[1])
    if argv[0] == "raise":
        raise ValueError("a bug")
    if argv[0] == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
    return 0
"""
PATIENCE_S = 60.0  # until a test gives up on an event that must come; no verdict depends on it


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    (tmp_path / "gv_target.py").write_text(TARGET)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with Nursery(tmp_path / "nursery.log", target="gv_target", env=env) as made:
        made.wait_ready(PATIENCE_S)
        yield made


def until_ended(nursery: Nursery, *children: Child) -> list[int | None]:
    end = time.monotonic() + PATIENCE_S
    while any(child.code is None for child in children) and time.monotonic() < end:
        nursery.poll(0.05)
    return [child.code for child in children]


def until_said(path: Path, words: str) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if path.exists() and words in path.read_text():
            return path.read_text()
        time.sleep(0.01)
    raise AssertionError(f"{path} never said {words}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_children_are_processes_of_their_own_with_exit_codes(
    nursery: Nursery, tmp_path: Path
) -> None:
    children = [nursery.start(["exit", str(code)], tmp_path / f"{code}.log") for code in (0, 3)]
    crash = nursery.start(["raise"], tmp_path / "crash.log")
    assert until_ended(nursery, *children, crash) == [0, 3, 5]
    pids = {child.pid for child in (*children, crash)}
    assert len(pids) == 3
    assert os.getpid() not in pids
    assert f"child {children[1].pid} ['exit', '3']" in (tmp_path / "3.log").read_text()
    assert "ValueError: a bug" in (tmp_path / "crash.log").read_text()
    assert (tmp_path / "nursery.log").read_text().count("preloaded") == 1


def test_one_child_is_killed_and_the_others_live(nursery: Nursery, tmp_path: Path) -> None:
    one = nursery.start(["wait"], tmp_path / "one.log")
    other = nursery.start(["wait"], tmp_path / "other.log")
    until_said(tmp_path / "other.log", "child")
    nursery.signal(one, signal.SIGKILL)
    assert until_ended(nursery, one) == [-signal.SIGKILL]
    nursery.signal(one, signal.SIGKILL)  # it is reaped: nobody else is hit
    assert other.pid is not None
    assert alive(other.pid)
    nursery.signal(other, signal.SIGTERM)
    assert until_ended(nursery, other) == [-signal.SIGTERM]


def test_closing_leaves_nobody_behind(nursery: Nursery, tmp_path: Path) -> None:
    stubborn = nursery.start(["ignore"], tmp_path / "log")
    until_said(tmp_path / "log", "child")
    nursery.poll(1.0)
    nursery.close()
    nursery.close()
    assert stubborn.code == -signal.SIGKILL
    assert stubborn.pid is not None
    assert not alive(stubborn.pid)


ENGINE = """
import sys
from pathlib import Path
from scenarios.nursery import Nursery

nursery = Nursery(Path(sys.argv[1]), target="gv_target")
nursery.wait_ready()
nursery.start(["ignore"], Path(sys.argv[2]))
while True:
    nursery.poll(1.0)
"""


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nobody_outlives_the_engine(tmp_path: Path, how: signal.Signals, paused: bool) -> None:
    (tmp_path / "gv_target.py").write_text(TARGET)
    (tmp_path / "engine.py").write_text(ENGINE)
    log = tmp_path / "child.log"
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    engine = subprocess.Popen(
        [sys.executable, str(tmp_path / "engine.py"), str(tmp_path / "nursery.log"), str(log)],
        env=env,
        stderr=subprocess.DEVNULL,
    )
    child = int(until_said(log, "child").split()[1])
    if paused:
        os.kill(child, signal.SIGSTOP)
    engine.send_signal(how)
    engine.wait(PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(child)


def test_a_nursery_that_cannot_import_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "gv_target.py").write_text(TARGET)
    env = {"PYTHONPATH": str(tmp_path), "BROKEN": "1"}
    log = tmp_path / "nursery.log"
    with (
        Nursery(log, target="gv_target", env=env) as broken,
        pytest.raises(GrapevineError, match=r"died; see .*nursery\.log"),
    ):
        broken.wait_ready(PATIENCE_S)
    assert "cannot import" in log.read_text()
