"""The five hospitals as compose services: they train to the end, apart from one another."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import engine
import pytest

from node.cli.main import main

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

MEMBERS = ("clinic-a", "clinic-b", "clinic-c", "clinic-d", "clinic-e")
# what the library's scenario expects of the same training in simulation and on processes
AUROC_MIN, ACCURACY_MIN = 0.97, 0.92
UP_S = 240.0


class Project:
    """One compose project of its own name, subnets and image."""

    def __init__(self, folder: Path) -> None:
        self._command = engine.compose()
        if not self._command:
            pytest.skip("neither `docker compose` nor docker-compose is installed")
        self.name = f"grapevine-test-{secrets.token_hex(3)}"
        self._file = folder / "docker-compose.yml"

    def __call__(self, *words: str, check: bool = True) -> str:
        options = ["--project-name", self.name, "--file", str(self._file)]
        ran = subprocess.run(
            [*self._command, *options, *words],
            capture_output=True,
            text=True,
            timeout=UP_S,
            env=engine.environment(),
            check=False,
        )
        assert ran.returncode == 0 or not check, ran.stdout[-2000:] + ran.stderr[-3000:]
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, node_image: str) -> Iterator[Project]:
    """The checkout's demonstration, under a name of its own, after `up` has ended."""
    folder = tmp_path_factory.mktemp("compose")
    words = ["--demo", "--image", node_image, "--subnets", "10.208.0.0/24", "--out", str(folder)]
    assert main(["compose", str(engine.ROOT / "deploy" / "hospitals.toml"), *words]) == 0
    project = Project(folder)
    try:
        # without clinic-a its neighbours wait, and can be asked at leisure
        project("up", "--detach", *MEMBERS[1:])
        _ask_while_it_waits(project)
        project("up", "--detach")
        for member in MEMBERS:
            container = project("ps", "--quiet", member).split()[0]
            try:
                assert engine.docker("wait", container).stdout.strip() == "0"
            except subprocess.TimeoutExpired:
                pytest.fail(f"{member} does not end\n{project('logs', '--tail', '15')}")
        yield project
    finally:
        project("down", "--volumes", check=False)


ASKED: dict[str, str] = {}


def _ask_while_it_waits(project: Project) -> None:
    """What can be seen only from inside a running node."""
    container = project("ps", "--quiet", "clinic-b").split()[0]
    follow = ["docker", "logs", "--follow", container]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as log:
        assert log.stdout is not None
        for line in log.stdout:
            if "listening on" in line:
                break
        log.kill()
    look = "import socket; print([socket.getaddrinfo(n, 7400)[0][4][0] for n in ['clinic-c']])"
    for key, words in {
        "alive": ("grapevine", "status", "--alive"),
        "neighbour": ("python", "-c", look),
        "stranger": ("python", "-c", look.replace("clinic-c", "clinic-d")),
        "root": ("touch", "/opt/app/x"),
    }.items():
        ran = engine.docker("exec", container, *words, check=False)
        ASKED[key] = f"{ran.returncode} {ran.stdout} {ran.stderr}"


def test_each_hospital_finishes_and_its_last_line_is_the_result(trained: Project) -> None:
    for member in MEMBERS:
        last = trained("logs", "--no-color", "--tail", "1", member).strip().splitlines()[-1]
        found = re.search(r"finished at round 37; accuracy (\S+); auroc (\S+);", last)
        assert found is not None, last
        assert float(found[1]) >= ACCURACY_MIN
        assert float(found[2]) >= AUROC_MIN
        assert last.endswith("model in /var/lib/grapevine/model.safetensors")


def test_the_volumes_hold_the_models(trained: Project, node_image: str) -> None:
    read = (
        "from grapevine import load_model; "
        "print(sum(t.numel() for t in load_model('/var/lib/grapevine/model.safetensors').values()))"
    )
    for member in ("clinic-a", "clinic-e"):
        volume = f"{trained.name}_{member}:/var/lib/grapevine:ro"
        words = ["--volume", volume, "--entrypoint", "python", node_image, "-c", read]
        assert int(engine.docker("run", "--rm", *words).stdout) > 30


def test_a_running_node_is_healthy_and_sees_its_neighbours_alone(trained: Project) -> None:
    assert ASKED["alive"].startswith("0 node ")
    assert ASKED["neighbour"].startswith("0 ['10.208.0.")
    assert ASKED["stranger"].startswith("1 ")
    assert "Name or service not known" in ASKED["stranger"] or "failure" in ASKED["stranger"]
    assert "Read-only file system" in ASKED["root"]


def test_started_again_it_goes_on_from_its_volumes(trained: Project) -> None:
    trained("up", "--detach")
    container = trained("ps", "--quiet", "init").split()[0]
    assert engine.docker("wait", container).stdout.strip() == "0"
    assert "founded before" in trained("logs", "--no-color", "init")
