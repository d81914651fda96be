"""Two organisations as docs/compose.md has it: own keys, own volume, own compose file, own ports.

What is handed on lies in a folder each; only files that real members mail go from one to the other.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import engine
import pytest

from scenarios.ports import free_ports

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

CHARTER = """
name = "NAME"
topology = { kind = "path" }
task = { name = "breast-cancer" }
learning = { rounds = 5, linger_s = 2.0 }
"""


class Organisation:
    """One member with its volume and its folder, which nobody else can read or write."""

    def __init__(self, consortium: str, name: str, folder: Path, image: str) -> None:
        self.name, self.folder, self._image = name, folder, image
        self.volume = f"{consortium}-{name}"
        folder.mkdir()
        folder.chmod(0o777)
        engine.docker("volume", "create", self.volume)

    def gv(self, *words: str) -> str:
        """The documentation's alias."""
        mounts = [f"{self.volume}:/var/lib/grapevine", f"{self.folder}:/heart"]
        options = [part for mount in mounts for part in ("--volume", mount)]
        return engine.docker(
            "run", "--rm", *options, "--workdir", "/heart", self._image, *words
        ).stdout

    def compose(self, *words: str, check: bool = True) -> str:
        command = [*engine.compose(), "--project-name", self.volume]
        ran = subprocess.run(
            [*command, "--file", str(self.folder / "docker-compose.yml"), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0 or not check, ran.stderr[-2000:]
        return ran.stdout

    def gone(self) -> None:
        if (self.folder / "docker-compose.yml").exists():
            self.compose("down", check=False)
        engine.docker("volume", "rm", "--force", self.volume)


def mail(name: str, sender: Organisation, receiver: Organisation) -> None:
    shutil.copy(sender.folder / name, receiver.folder / name)


@pytest.fixture
def two(tmp_path: Path, node_image: str) -> Iterator[tuple[Organisation, Organisation]]:
    if not engine.compose():
        pytest.skip("neither `docker compose` nor docker-compose is installed")
    consortium = f"heart-{secrets.token_hex(3)}"
    made = [
        Organisation(consortium, name, tmp_path / name, node_image)
        for name in ("clinic-a", "clinic-b")
    ]
    (made[0].folder / "heart.toml").write_text(CHARTER.replace("NAME", consortium))
    (made[0].folder / "heart.toml").chmod(0o666)
    try:
        yield made[0], made[1]
    finally:
        for one in made:
            one.gone()


def test_two_organisations_train_each_with_its_own_compose_file(two, node_image) -> None:
    a, b = two
    (port,) = free_ports(1)
    bridge = json.loads(engine.docker("network", "inspect", "bridge").stdout)[0]
    # the host's own address in the engine's bridge: both members reach it from their networks
    host = next(ipaddress.ip_network(bridge["IPAM"]["Config"][0]["Subnet"]).hosts())
    for one in two:
        one.gv("keygen", "--name", one.name)
    a.gv("id", "--address", f"tcp://{host}:{port}", "--card", "clinic-a.card")
    b.gv("id", "--card", "clinic-b.card")  # dials out only
    mail("clinic-b.card", b, a)
    a.gv("consortium", "new", "heart.toml", "--card", "clinic-a.card", "--card", "clinic-b.card")
    mail("heart.toml", a, b)
    for one in two:
        one.gv("consortium", "sign", "heart.toml", "--out", f"{one.name}.sig")
    mail("clinic-b.sig", b, a)
    a.gv(
        *("consortium", "seal", "heart.toml", "clinic-a.sig", "clinic-b.sig"),
        *("--out", "heart.consortium"),
    )
    mail("heart.consortium", a, b)
    words = [one.gv("consortium", "verify", "heart.consortium", "--json") for one in two]
    assert json.loads(words[0])["words"] == json.loads(words[1])["words"]
    for one in two:
        one.gv("compose", "heart.consortium", "--member", one.name, "--image", node_image)
        one.compose("up", "--detach")
    for one, other in ((a, b), (b, a)):
        container = one.compose("ps", "--quiet", one.name).strip()
        assert engine.docker("wait", container).stdout.strip() == "0"
        log = engine.docker("logs", container).stdout
        assert f"linked with {other.name}" in log
        assert "finished at round" in log.strip().splitlines()[-1]
    # taking the containers away leaves keys and model
    a.compose("down", "--volumes")
    assert json.loads(a.gv("status", "--json"))["result"]["ended"] == "finished"
