"""A sealed consortium at a broker, on one engine: keys in folders, passwords as secrets."""

from __future__ import annotations

import json
from pathlib import Path

import engine
import pytest
from composed import Project, free_range

from node.cli.main import main

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CHARTER = """
name = "heart"
topology = { kind = "path" }
task = { name = "breast-cancer" }
learning = { rounds = 5, linger_s = 2.0 }
"""
MEMBERS = ("clinic-a", "clinic-b")


def grapevine(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def test_members_with_their_own_keys_meet_at_the_broker_on_their_cards(
    tmp_path: Path, node_image: str
) -> None:
    states, sealed = tmp_path / "states", tmp_path / "heart.consortium"
    charter = tmp_path / "heart.toml"
    charter.write_text(CHARTER)
    cards = []
    for name in MEMBERS:
        card = tmp_path / f"{name}.card"
        grapevine("keygen", "--name", name, "--state", states / name)
        address = ("--address", "mqtts://broker.example")
        grapevine("id", "--state", states / name, *address, "--card", card)
        cards += ["--card", card]
    grapevine("consortium", "new", charter, *cards)
    signed = [tmp_path / f"{name}.sig" for name in MEMBERS]
    for name, out in zip(MEMBERS, signed, strict=True):
        grapevine("consortium", "sign", charter, "--state", states / name, "--out", out)
    grapevine("consortium", "seal", charter, *signed, "--out", sealed)
    options = ("--image", node_image, "--subnets", free_range(), "--out", tmp_path / "trial")
    grapevine("compose", sealed, "--states", states, "--broker", *options)
    project = Project(tmp_path / "trial")
    try:
        project("up", "--detach")
        for name, other in (MEMBERS, MEMBERS[::-1]):
            assert project.ended(name) == "0", project.lines(name)[-5:]
            assert f"{name}: linked with {other} over mqtt" in project.lines(name)
            assert "finished at round" in project.lines(name)[-1]
            assert (states / name / "model.safetensors").exists()
        # the secret is a file of that container alone
        mounts = json.loads(engine.docker("inspect", project.container("clinic-a")).stdout)
        secrets = [one for one in mounts[0]["Mounts"] if "password" in one["Source"]]
        assert [one["Destination"] for one in secrets] == ["/run/secrets/mqtt"]
    finally:
        project("down", check=False)
