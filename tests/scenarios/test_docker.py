"""The docker engine: the other engines' verdicts, real cuts and kills, and nothing left behind."""

from __future__ import annotations

import io
import os
import secrets
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import engine
import pytest
from msgspec import structs
from sims import found

from node.errors import ConfigError, GrapevineError
from scenarios import docker, engines
from scenarios.docker_berths import LABEL, Berth, Berths, undisturbed
from scenarios.docker_broker import cut_off, mosquitto_conf
from scenarios.docker_child import fingerprint
from scenarios.docker_command import check_engine
from scenarios.docker_command import docker as command
from scenarios.faults import Partition, When
from scenarios.nursery import Nursery
from scenarios.parity import differences
from scenarios.processes import run_processes
from scenarios.record import Run
from scenarios.settings import Scenario, load_scenario, parse_scenario
from scenarios.simulation import simulate

F = TypeVar("F", bound=Callable[..., Any])


def real(test: F) -> F:
    """Needs an engine and images, which take their time to build."""
    marked: F = pytest.mark.docker(pytest.mark.timeout(900)(test))
    return marked


SMALL = """
name = "small"
seed = 5
topology = { kind = "complete", nodes = 4 }
task = { name = "quadratic", dimension = 8 }
learning = { rounds = 60, local_steps = 2, final_mixing = 12, deadline_max_s = 2.0, linger_s = 1.0 }
compute = { step_ms = 100 }
network = { latency_ms = 5 }
"""
EVERY_FAULT = """
event = [
  { at = "round 4", pause = "n1" },
  { at = "round 8", resume = "n1" },
  { at = "round 10", crash = "n2" },
  { at = "round 16", restart = "n2", disk = "none" },
  { at = "round 20", partition = [["n0"], ["n1", "n2", "n3"]] },
  { at = "round 24", heal = true },
  { at = "round 26", crash = "n3" },
  { at = "round 30", restart = "n3", disk = "backup" },
  { at = "round 32", slow = { nodes = "n1", factor = 3 } },
  { at = "round 36", slow = { nodes = "n1", factor = 1 } },
  { at = "round 38", disk_full = "n0" },
  { at = "round 44", restart = "n0" },
  { at = "round 46", clog = { a = "n1", b = "n2" } },
  { at = "round 50", unclog = { a = "n1", b = "n2" } },
  { at = "round 52", partition = [["n0", "n1"], ["n2", "n3"]], one_way = true },
  { at = "round 54", heal = true },
]
expect = { finished_min = 4, consensus_distance_max = 0.1 }
"""


def left(run: str) -> list[str]:
    """What the engine still has of a run."""
    found = []
    for kind in (("ps", "--all"), ("network", "ls"), ("volume", "ls")):
        found += engine.docker(*kind, "--quiet", "--filter", f"label={LABEL}={run}").stdout.split()
    return found


# ── verdicts ────────────────────────────────────────────────────────────────────────────────────


def without_lingering(name: str) -> Scenario:
    """A file of the library in full; but who comes back has come back long before the end."""
    scenario = load_scenario(name)
    learning = structs.replace(scenario.settings.learning, linger_s=1.0)
    return structs.replace(scenario, settings=structs.replace(scenario.settings, learning=learning))


@real
@pytest.mark.parametrize("name", ["wan-partition", "crash-and-return"])
def test_the_three_engines_come_to_the_same_verdicts(
    name: str, scenario_image: str, tmp_path: Path
) -> None:
    scenario = without_lingering(name)
    # side by side: sixteen nodes train at a time, and no verdict may depend on how fast
    with Nursery(tmp_path / "nursery.log") as nursery, ThreadPoolExecutor(1) as pool:
        there = pool.submit(run_processes, scenario, nursery=nursery, baselines=False)
        here = docker.run_docker(scenario, image=scenario_image, baselines=False)
        processes = there.result()
    assert here.engine == "docker"
    assert here.ok, found(here)
    assert not differences(simulate(scenario), here)
    assert not differences(processes, here)


@pytest.fixture(scope="module")
def every_fault(scenario_image: str) -> Run:
    scenario = parse_scenario(SMALL + EVERY_FAULT, source="small.toml")
    return docker.run_docker(scenario, image=scenario_image, baselines=False)


@real
def test_every_fault_happens_and_all_invariants_hold(every_fault: Run) -> None:
    assert every_fault.ok, found(every_fault)
    assert [(node.ended, node.resumed) for node in every_fault.nodes] == [
        ("finished", 1),
        ("finished", 0),
        ("finished", 1),
        ("finished", 1),
    ]
    kinds = {span.kind for span in every_fault.faults}
    assert kinds == {"pause", "crash", "partition", "slow", "disk_full", "clog"}
    # both ends of an edge counted what it carried, over all lives
    assert all((link.a_to_b_bytes or 0) > 1000 for link in every_fault.links)


@real
def test_who_was_paused_cut_off_or_killed_was_missing(every_fault: Run) -> None:
    missed = {node.name: {one.peer for one in node.missed} for node in every_fault.nodes}
    assert {"n1", "n2", "n3"} <= missed["n0"]
    assert {"n0", "n2", "n3"} <= missed["n1"]
    alone = [row for row in every_fault.rows if row.node == "n0" and not row.mixed]
    assert alone, "n0 was never cut off"


# ── at a broker ─────────────────────────────────────────────────────────────────────────────────

AT_BROKER = """
name = "at-broker"
seed = 5
topology = { kind = "complete", nodes = 4 }
task = { name = "quadratic", dimension = 8 }
learning = { rounds = 44, local_steps = 2, final_mixing = 8, deadline_max_s = 2.0, linger_s = 1.0 }
compute = { step_ms = 100 }
network = { transport = "mqtt", latency_ms = 5 }
event = [
  { at = "round 8", partition = [["n0"], ["n1", "n2", "n3"]] },
  { at = "round 12", heal = true },
  { at = "round 16", crash = "n2" },
  { at = "round 20", restart = "n2" },
  { at = "round 24", partition = [["n0"], ["n1"], ["n2"], ["n3"]] },
  { at = "round 29", heal = true },
]
expect = { finished_min = 4, consensus_distance_max = 0.1 }
"""


@real
def test_nodes_meet_at_a_broker_and_lose_it(scenario_image: str, tmp_path: Path) -> None:
    scenario = parse_scenario(AT_BROKER, source="at-broker.toml")
    told: list[dict[str, Any]] = []
    here = docker.run_docker(
        scenario,
        image=scenario_image,
        directory=tmp_path / "run",
        on_progress=told.append,
        baselines=False,
    )
    assert here.ok, found(here)
    assert not differences(simulate(scenario), here)
    linked = [event for event in told if event["event"] == "linked"]
    assert {event["via"] for event in linked} == {"mqtt"}
    assert {event["node"] for event in linked} == set(scenario.graph.nodes)
    # the one that was cut off was alone, and then, in the second cut, everybody
    assert "n0" in {row.node for row in here.rows if not row.mixed and row.round < 16}
    assert {row.node for row in here.rows if not row.mixed} == set(scenario.graph.nodes)
    assert "New client connected" in (tmp_path / "run" / "broker.log").read_text()


def test_whom_a_partition_leaves_no_neighbour_is_cut_off() -> None:
    graph = parse_scenario(AT_BROKER, source="at-broker.toml").graph
    at = When(seconds=0.0)
    for sides, alone in (
        ((("n0",), ("n1", "n2", "n3")), ("n0",)),
        ((("n0",), ("n1",), ("n2", "n3")), ("n0", "n1")),
        ((("n0",), ("n1",), ("n2",), ("n3",)), ("n0", "n1", "n2", "n3")),
    ):
        assert cut_off(Partition(at=at, sides=sides), graph) == alone


def test_what_one_broker_cannot_do_is_refused() -> None:
    halves = AT_BROKER.replace('[["n0"], ["n1", "n2", "n3"]]', '[["n0", "n1"], ["n2", "n3"]]')
    with pytest.raises(ConfigError, match="'n0' and 'n2' would be apart and each with neighbours"):
        docker.refuse(parse_scenario(halves, source="at-broker.toml"))
    named = 'names = ["broker", "n1", "n2", "n3"]'
    text = AT_BROKER.replace("nodes = 4", "nodes = 4, " + named).replace('"n0"', '"broker"')
    with pytest.raises(ConfigError, match="a node is called 'broker', as the broker is"):
        docker.refuse(parse_scenario(text, source="at-broker.toml"))


def test_its_broker_has_the_deployed_limits_and_asks_nobody_for_a_password() -> None:
    said = mosquitto_conf(4).decode()
    lines = [line for line in said.splitlines() if line and not line.startswith("#")]
    assert "listener 1883" in lines
    assert "allow_anonymous true" in lines
    assert "max_packet_size 540672" in lines
    assert "/mosquitto/config" not in "".join(lines)


# ── networks ────────────────────────────────────────────────────────────────────────────────────

LOOK = """
import socket, sys
link = socket.socket()
link.settimeout(2)
print(link.connect_ex((sys.argv[1], 7400)))
"""
REFUSED = "111"  # reached, and nobody listens there


@pytest.fixture
def berths(scenario_image: str) -> Iterator[Berths]:
    made = Berths(scenario_image, [("n0", "n1"), ("n1", "n2")])
    try:
        made.open()
        yield made
    finally:
        made.close()
        assert left(made.run) == []


def reached(berth: Berth, address: str) -> str:
    words = ["exec", berth.container, "python", "-c", LOOK, address]
    return engine.docker(*words, check=False).stdout.strip()


@real
def test_an_edge_joins_its_two_ends_until_it_is_cut(berths: Berths, tmp_path: Path) -> None:
    at = {}
    for node in ("n0", "n1", "n2"):
        at[node] = berths.make(node)
        berths.join(at[node])
        berths.start(at[node], tmp_path / f"{node}.log")
    find = "import socket; print(socket.gethostbyname('n1'))"
    n1 = engine.docker("exec", at["n0"].container, "python", "-c", find).stdout.strip()
    inspect = ["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"]
    (n2,) = engine.docker(*inspect, at["n2"].container).stdout.split()
    assert reached(at["n0"], n1) == REFUSED
    assert reached(at["n0"], n2) != REFUSED  # no neighbour: not even by its address
    berths.cut([("n0", "n1")])
    assert reached(at["n0"], n1) != REFUSED
    assert reached(at["n2"], n2) == REFUSED
    berths.mend()
    assert reached(at["n0"], n1) == REFUSED
    assert engine.docker(*inspect, at["n0"].container).stdout.split() != []


@real
def test_two_runs_at_a_time_take_different_networks(berths: Berths, scenario_image: str) -> None:
    other = Berths(scenario_image, berths.edges)
    try:
        other.open()
        taken = [
            engine.docker(
                "network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", one
            ).stdout.strip()
            for run in (berths, other)
            for one in engine.docker(
                "network", "ls", "--quiet", "--filter", f"label={LABEL}={run.run}"
            ).stdout.split()
        ]
        assert len(set(taken)) == 4
        assert all(one.endswith("/29") for one in taken)
    finally:
        other.close()
    assert left(other.run) == []
    assert left(berths.run) != []  # what another run has is not touched


# ── nothing is left behind ──────────────────────────────────────────────────────────────────────


@real
@pytest.mark.parametrize(
    ("number", "event"),
    [(signal.SIGINT, "create"), (signal.SIGINT, "start"), (signal.SIGTERM, "start")],
)
def test_an_interrupted_run_takes_everything_away(
    number: int, event: str, scenario_image: str, tmp_path: Path
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    stranger = engine.docker(
        *("create", "--label", f"{LABEL}=somebody-elses", "--network", "none", scenario_image)
    ).stdout.strip()
    words = ["events", "--filter", f"event={event}", "--filter", "type=container"]
    words += ["--filter", f"label={LABEL}", "--format", "{{.Actor.Attributes.name}}"]
    try:
        with (
            subprocess.Popen(["docker", *words], stdout=subprocess.PIPE, text=True) as events,
            subprocess.Popen(
                [sys.executable, "-m", "node.cli.main", "run", str(path), "--on", "docker"],
                env={**os.environ, docker.IMAGE_VARIABLE: scenario_image},
                stderr=subprocess.PIPE,
                text=True,
            ) as run,
        ):
            assert events.stdout is not None
            named = [events.stdout.readline().strip() for _ in range(2)][-1]
            run.send_signal(number)
            _, said = run.communicate(timeout=300)
            events.kill()
        assert run.returncode == 130
        assert "Traceback" not in said
        assert left(named.rpartition("-")[0]) == []
        assert engine.docker("inspect", "--format", "{{.Id}}", stranger).stdout
    finally:
        engine.docker("rm", "--force", "--volumes", stranger)


def test_what_a_node_waits_for_is_readable_while_it_is_still_roots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").touch(0o600)
    packed = b""

    def take(*_words: str, given: bytes) -> None:
        nonlocal packed
        packed = given

    monkeypatch.setattr("scenarios.docker_berths.docker", take)
    files = {"n0/plan.json": b"{}", "go-1": b"[]", "n0/key": tmp_path / "key"}
    Berths("image", ()).put(Berth("n0", "c", "v", "go-1"), files)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        modes = {entry.name: entry.mode for entry in archive if entry.isfile()}
    assert modes == {"n0/plan.json": 0o644, "go-1": 0o644, "n0/key": 0o600}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_end_the_cleaning(number: int) -> None:
    with docker._terminable():
        with undisturbed():
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


# ── refusals, each in a line ────────────────────────────────────────────────────────────────────


def test_without_a_docker_command_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="there is no docker command on this machine; install"):
        engines.run(parse_scenario(SMALL, source="small.toml"), on="docker")


@real
def test_without_an_engine_or_an_image_it_says_what_to_do(
    docker_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"grapevine-no-{secrets.token_hex(4)}"
    with pytest.raises(ConfigError, match=rf"no image '{name}'; make it in a checkout: docker bui"):
        check_engine(name)
    with pytest.raises(GrapevineError, match=r"docker volume inspect .*: .*[Nn]o such volume"):
        command("volume", "inspect", name)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(ConfigError, match="no engine answers"):
        check_engine(name)


@real
def test_an_image_of_other_code_is_refused(scenario_image: str) -> None:
    image = f"grapevine-other-{secrets.token_hex(4)}"
    text = f"FROM {scenario_image}\nUSER root\nRUN echo '# other' >> /opt/app/scenarios/groups.py\n"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", image, "-"],
        input=text.encode(),
        check=True,
        capture_output=True,
        env=engine.environment(),
    )
    try:
        with pytest.raises(ConfigError, match=f"'{image}' holds other code than runs here"):
            docker.run_docker(parse_scenario(SMALL, source="small.toml"), image=image)
    finally:
        engine.docker("rmi", image)


@real
def test_an_image_without_scenarios_is_refused(node_image: str) -> None:
    with pytest.raises(GrapevineError, match=r"n\d ended at once: .*docker_child"):
        docker.run_docker(parse_scenario(SMALL, source="small.toml"), image=node_image)


def test_the_fingerprint_is_of_what_is_imported() -> None:
    assert fingerprint() == fingerprint()
    assert len(fingerprint()) == 32


def test_more_edges_than_there_are_networks_are_refused() -> None:
    scenario = parse_scenario(
        SMALL.replace("nodes = 4", "nodes = 260"),
        source="small.toml",
    )
    with pytest.raises(ConfigError, match=r"33670 edges.*has room for 32768; processes need none"):
        docker.refuse(scenario)


def test_what_no_image_has_or_no_node_can_do_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def worse(own, neighbours, chance):\n    return own\n")
    attack = 'event = [{ at = "round 3", attack = "mine.py:worse", nodes = ["n1"] }]\n'
    scenario = parse_scenario(SMALL + attack, source="small.toml", base=tmp_path)
    with pytest.raises(ConfigError, match="docker cannot inject an attack from a file"):
        engines.check(scenario, on="docker")
    slow = 'event = [{ at = "round 3", slow = { nodes = "n1", factor = 2 } }]\n'
    text = (SMALL + slow).replace("step_ms = 100", "step_ms = 0")
    with pytest.raises(ConfigError, match="on docker a slow node pads its steps"):
        engines.check(parse_scenario(text, source="small.toml"), on="docker")
