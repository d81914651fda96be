"""The two images as a container sees itself: scenarios in one alone, no root, nothing writable."""

from __future__ import annotations

import json
import os

import engine
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from crypto.keys import create_keys

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

LOCKED = ["run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL"]


def inside(image: str, *words: str, entrypoint: str | None = None, check: bool = True):
    options = [] if entrypoint is None else ["--entrypoint", entrypoint]
    return engine.docker(*LOCKED, *options, image, *words, check=check)


def test_the_node_image_cannot_load_scenarios(node_image) -> None:
    ran = inside(node_image, "-c", "import scenarios", entrypoint="python", check=False)
    assert "ModuleNotFoundError: No module named 'scenarios'" in ran.stderr
    found = inside(node_image, "/opt", "-name", "scenarios*", entrypoint="find").stdout
    assert found == ""
    # nor is there anything by which a process inside could fetch it
    ran = inside(node_image, "-m", "pip", entrypoint="python", check=False)
    assert "No module named pip" in ran.stderr


@pytest.mark.parametrize("command", [["demo"], ["run", "wan-partition"], ["table", "results"]])
def test_commands_that_need_scenarios_say_so_in_a_line(node_image, command) -> None:
    ran = inside(node_image, *command, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert "which the release image leaves out" in line


def test_a_members_own_task_code_can_be_imported_there(node_image) -> None:
    code = "import os; from grapevine import Silo, Task, load_model; print(os.getuid())"
    assert inside(node_image, "-c", code, entrypoint="python").stdout.strip() == "10001"


def test_a_node_makes_its_keys_in_a_new_volume(node_image) -> None:
    volume = engine.docker("volume", "create").stdout.strip()
    try:
        state = ("--volume", f"{volume}:/var/lib/grapevine")
        engine.docker(*LOCKED, *state, node_image, "keygen", "--name", "clinic-a")
        told = engine.docker(*LOCKED, *state, node_image, "id", "--json").stdout
        assert json.loads(told)["name"] == "clinic-a"
        asked = engine.docker(*LOCKED, *state, node_image, "status", "--alive", check=False)
        assert asked.returncode == 1
        assert "not running" in asked.stdout
    finally:
        engine.docker("volume", "rm", volume)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another group, as a kubelet does")
def test_the_keys_of_the_kubernetes_secret_become_a_state_that_a_node_takes(
    node_image, tmp_path
) -> None:
    """The manifest's own commands, on a volume as fsGroup leaves it, and a secret as mounted."""
    documents = yaml.safe_load_all((engine.ROOT / "deploy" / "kubernetes.yaml").read_text())
    (job,) = [one for one in documents if one and one["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    script = pod["initContainers"][0]["command"]
    create_keys(tmp_path / "keys", "clinic-a")
    secret = tmp_path / "keys" / "node.key"
    volume = tmp_path / "volume"
    volume.mkdir()
    tmp_path.chmod(0o755)
    for path, mode in ((secret, 0o440), (tmp_path / "keys", 0o755), (volume, 0o2770)):
        os.chown(path, 0, 10001)
        path.chmod(mode)
    mounts = ["--volume", f"{secret}:/run/secrets/grapevine/node.key:ro"]
    made = [*LOCKED, *mounts, "--volume", f"{volume}:/volume", "--entrypoint", script[0]]
    for _ in range(2):  # a pod that is started again finds them there
        engine.docker(*made, node_image, *script[1:])
    state = ["--volume", f"{volume}/state:/var/lib/grapevine"]
    told = engine.docker(*LOCKED, *state, node_image, "id", "--json").stdout
    assert json.loads(told)["name"] == "clinic-a"
    assert json.loads(told)["member_key_here"] is False


def test_its_bill_of_materials_names_everything(node_image) -> None:
    text = inside(node_image, "/opt/app/sbom.cdx.json", entrypoint="cat").stdout
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"]["name"] == "grapevine-node"
    listed = {component["name"].lower(): component for component in bom["components"]}
    assert {"torch", "pynacl", "grapevine", "cpython"} <= set(listed)
    libc = listed["libc6"]
    here = inside(node_image, "--show", "libc6", entrypoint="dpkg-query").stdout
    assert libc["version"] in here


def test_the_scenario_image_runs_one(scenario_image) -> None:
    ran = inside(scenario_image, "run", "hospitals", "--no-baselines", "--json", "-")
    result = json.loads(ran.stdout)
    assert all(check["ok"] for check in result["checks"])
    assert len(result["nodes"]) == 5
