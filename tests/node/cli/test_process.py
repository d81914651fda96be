"""`grapevine start`, `status` and `stop` with real processes over TCP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scenarios.ports import free_ports

COMMAND = [sys.executable, "-c", "import sys; from node.cli.main import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Node:
    """A started process; its events are read as they come."""

    def __init__(self, toml: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "start", str(toml), "--json", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def until(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next such event. Fails when the process ends before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            if found["event"] == event and all(found[k] == v for k, v in fields.items()):
                return found
        raise AssertionError(self.end())

    def end(self) -> tuple[int, str]:
        """(exit code, stderr) once it has ended."""
        _, err = self.process.communicate()
        return self.process.returncode, err


@pytest.fixture
def started() -> Iterator[list[Node]]:
    nodes: list[Node] = []
    # a guard against a hang, as pytest's own is, but one that leaves no process behind
    guard = threading.Timer(200, lambda: [n.process.kill() for n in nodes])
    guard.start()
    yield nodes
    guard.cancel()
    for node in nodes:
        node.process.kill()
        node.process.communicate()


def node_toml(site: Any, name: str, port: int) -> Path:
    path = site.path / f"{name}.toml"
    path.write_text(
        f'state = "{name}"\nconsortium = "heart.consortium"\nlisten = "127.0.0.1:{port}"\n'
    )
    return path


def listens(toml: Path) -> int:
    found = re.search(r":(\d+)\"", toml.read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture
def pair(site: Any, do: Any) -> list[Path]:
    """NODE.toml of two founded members, on free ports; their training takes for ever."""
    text = site.charter.read_text().replace("rounds = 3", "rounds = 100000")
    site.charter.write_text(text)
    ports = free_ports(2)
    for name, port in zip(site.names, ports, strict=True):
        address = f"tcp://127.0.0.1:{port}"
        do("id", "--state", site.state(name), "--address", address, "--card", site.card(name))
    do("consortium", "new", site.charter, *site.cards)
    for name in site.names:
        out = site.signature(name)
        do("consortium", "sign", site.charter, "--state", site.state(name), "--out", out)
    signatures = [site.signature(name) for name in site.names]
    do("consortium", "seal", site.charter, *signatures, "--out", site.sealed)
    return [node_toml(site, n, p) for n, p in zip(site.names, ports, strict=True)]


def test_two_processes_train_and_are_asked_stopped_killed_and_resumed(
    pair: list[Path], started: list[Node], grapevine: Any, do: Any, refused: Any
) -> None:
    a, b = pair
    started += [Node(a), Node(b)]
    first, second = started
    assert first.until("round", round=3)["mixed"] == ["clinic-b"]
    asked = do("status", a, "--json").json
    assert asked["linked"] == ["clinic-b"]
    assert asked["round"] >= 3
    assert "clinic-a (process" in do("status", a, "--alive").out
    # a second process on the same state directory
    assert Node(a).end()[0] == 4
    # a scanner at the port costs nobody anything, and the operator sees that it was there
    with socket.create_connection(("127.0.0.1", listens(a))) as scanner:
        scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while scanner.recv(4096):
                pass
    assert do("status", a, "--json").json["refused_connections"] == {"handshake": 1}
    assert "turned away" in do("status", a).out
    # SIGKILL: the other goes on and says who is missing
    first.process.kill()
    first.process.wait()
    lost = second.until("round", mixed=[])
    assert lost["missing"][0][0] == "clinic-a"
    # started again it resumes, over the killed one's control socket
    again = Node(a)
    started.append(again)
    assert again.until("ready")["resumed"] == 1
    assert again.until("round")["round"] > 3
    second.until("round", mixed=["clinic-a"])
    # one is asked to stop, the other gets SIGTERM: both end in order
    assert "stops after this round" in do("stop", a, "--after-round").out
    second.process.send_signal(signal.SIGTERM)
    for node in (again, second):
        assert node.until("stopped")["result"]["ended"] == "stopped"
        assert node.end()[0] == 0
    assert "last run stopped at round" in do("status", b).out
    checked = grapevine("status", b, "--alive")  # as a health check asks
    assert (checked.code, checked.out) == (1, do("status", b).out)
    assert "no node is running" in refused("stop", b)


def test_what_start_refuses(founded: Any, refused: Any, tmp_path: Path) -> None:
    ports = free_ports(1)
    toml = node_toml(founded, "clinic-a", ports[0])
    text = toml.read_text()

    def start(old: str, new: str, code: int = 2) -> str:
        toml.write_text(text.replace(old, new))
        return refused("start", toml, code=code)

    assert "did you mean 'listen'" in start("listen", "lisen")
    assert "no such file" in start("heart.consortium", "absent.consortium")
    assert "a consortium is expected" in start("heart.consortium", "clinic-a.card")
    assert "keygen" in start('"clinic-a"', '"nowhere"')
    assert "is not known" in start("127.0.0.1:", "http://127.0.0.1:")
    assert "no such file" in refused("start", tmp_path / "absent.toml")
    with occupied(ports[0]):
        assert "in use" in start("x", "x")
    (founded.state("clinic-a") / "node.key").chmod(0o640)
    assert "chmod 600" in start("x", "x")


def test_a_read_only_state_directory(founded: Any, started: list[Node]) -> None:
    state = founded.state("clinic-a")
    toml = node_toml(founded, "clinic-a", free_ports(1)[0])
    if os.geteuid() == 0:  # root may write anywhere: put a file in the place of a folder
        (state / "spool").write_text("")
    else:
        state.chmod(0o500)
    code, err = Node(toml).end()
    assert code == 4
    assert "cannot be written" in err
    assert len(err.splitlines()) == 1


class occupied:  # noqa: N801
    """Somebody else listens on this loopback port."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", port))
        self._socket.listen()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._socket.close()
