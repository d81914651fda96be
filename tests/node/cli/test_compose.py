"""`grapevine compose` as it is typed: what it writes where, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DRAFT = """
name = "heart"
topology = { kind = "ring" }
task = { name = "quadratic", dimension = 8 }
[[member]]
name = "clinic-a"
[[member]]
name = "clinic-b"
[[member]]
name = "clinic-c"
"""


@pytest.fixture
def founded(site, do, tmp_path):
    """Two members, reached by name rather than by the tests' usual loopback address."""
    for name in site.names:
        address = f"tcp://gv.{name}.example:7400"
        do("id", "--state", site.state(name), "--address", address, "--card", site.card(name))
    return site.found(do)


def test_a_whole_consortium_beside_its_settings(founded, do, tmp_path) -> None:
    out = tmp_path / "trial"
    made = do("compose", founded.sealed, "--out", out, "--json").json
    assert made["compose"] == str(out / "docker-compose.yml")
    assert made["settings"] == [str(out / f"{name}.toml") for name in founded.names]
    assert (out / "heart.consortium").read_bytes() == founded.sealed.read_bytes()
    assert 'consortium = "heart.consortium"' in (out / "clinic-a.toml").read_text()
    services = yaml.safe_load((out / "docker-compose.yml").read_text())["services"]
    assert services["clinic-a"]["networks"] == {
        "clinic-a_clinic-b": {"aliases": ["gv.clinic-a.example"]}
    }


def test_written_again_it_keeps_what_people_wrote(founded, do, refused, tmp_path) -> None:
    out = tmp_path / "trial"
    do("compose", founded.sealed, "--out", out)
    (out / "clinic-a.toml").write_text("mine")
    assert do("compose", founded.sealed, "--out", out, "--json").json["settings"] == []
    assert (out / "clinic-a.toml").read_text() == "mine"
    (out / "docker-compose.yml").write_text("services: {}\n")
    assert "was not made by this command" in refused("compose", founded.sealed, "--out", out)
    assert (out / "docker-compose.yml").read_text() == "services: {}\n"


def test_one_member_and_states(founded, do, refused, tmp_path) -> None:
    out = tmp_path / "own"
    do("compose", founded.sealed, "--member", "clinic-b", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "clinic-b.toml",
        "docker-compose.yml",
        "heart.consortium",
    ]
    assert "did you mean 'clinic-b'" in refused("compose", founded.sealed, "--member", "clinicb")
    trial = tmp_path / "trial"
    do("compose", founded.sealed, "--states", founded.path, "--out", trial)
    service = yaml.safe_load((trial / "docker-compose.yml").read_text())["services"]["clinic-a"]
    assert service["volumes"][0] == "../clinic-a:/var/lib/grapevine"
    owner = founded.state("clinic-a").stat()
    assert service["user"] == f"{owner.st_uid}:{owner.st_gid}"
    (founded.state("clinic-b") / "node.key").unlink()
    assert "the keys of 'clinic-b'" in refused(
        "compose", founded.sealed, "--states", founded.path, "--out", trial
    )


def test_a_whole_consortium_at_a_broker_beside_its_files(at_broker, do, refused, tmp_path) -> None:
    out = tmp_path / "trial"
    wrong = refused("compose", at_broker.sealed, "--states", at_broker.path, "--out", out)
    assert "it is reached through a broker alone" in wrong
    words = ("--states", at_broker.path, "--broker", "--out", out)
    made = do("compose", at_broker.sealed, *words, "--json").json
    assert made["settings"] == [str(out / f"{name}.toml") for name in at_broker.names]
    assert 'broker = "mqtts://broker.example:8883"' in (out / "clinic-a.toml").read_text()
    written = yaml.safe_load((out / "docker-compose.yml").read_text())
    assert written["services"]["broker"]["volumes"] == ["./broker/mosquitto:/mosquitto/config:ro"]
    owner = (out / "broker" / "mosquitto" / "mosquitto.conf").stat()
    assert written["services"]["broker"]["user"] == f"{owner.st_uid}:{owner.st_gid}"
    assert owner.st_uid != 0  # as root mosquitto would change to a user who may read nothing
    for name in at_broker.names:
        path = out / written["secrets"][name]["file"]
        assert path.read_text().strip()
        assert path.parent.stat().st_mode & 0o077 == 0  # nobody else on this machine gets there
        assert path.stat().st_mode & 0o004  # and each container has another user


def test_one_member_at_a_broker(at_broker, do, tmp_path) -> None:
    do("compose", at_broker.sealed, "--member", "clinic-b", "--out", tmp_path / "own")
    settings = (tmp_path / "own" / "clinic-b.toml").read_text()
    assert 'user = "clinic-b"\npassword_file = "/run/secrets/mqtt"\n' in settings
    assert "listen" not in settings


def test_the_demonstration_in_the_checkout_is_what_the_command_makes(do, tmp_path) -> None:
    written = (ROOT / "docker-compose.yml").read_text()
    said = written.split("\n")[0].split("`: grapevine ")[1].split()
    assert said == ["compose", "deploy/hospitals.toml", "--demo", "--build", ".", "--broker"]
    copy = tmp_path / "deploy" / "hospitals.toml"
    copy.parent.mkdir()
    copy.write_bytes((ROOT / "deploy" / "hospitals.toml").read_bytes())
    (tmp_path / "Dockerfile").touch()
    do("compose", copy, "--demo", "--broker", "--build", tmp_path, "--out", tmp_path)
    made = (tmp_path / "docker-compose.yml").read_text()
    assert made.split("\n")[1:] == written.split("\n")[1:]


def test_what_cannot_be_is_refused(founded, site, refused, tmp_path) -> None:
    draft = tmp_path / "draft.toml"
    draft.write_text(DRAFT)
    for arguments, words in (
        ([draft], "no consortium"),
        ([founded.sealed, "--demo"], "where a charter (TOML) is expected"),
        ([founded.charter, "--demo"], "has the card of 'clinic-a'"),
        ([draft, "--demo", "--member", "clinic-a"], "--member is one member"),
        ([draft, "--demo", "--states", tmp_path], "--states says where keys lie"),
        ([founded.sealed, "--member", "clinic-a", "--states", tmp_path], "in that member's volume"),
        ([founded.sealed, "--member", "clinic-a", "--broker"], "its card says where one is"),
        ([founded.sealed, "--broker"], "the card of 'clinic-a' names no broker"),
        ([founded.sealed, "--build", tmp_path], "goes with --demo"),
        ([draft, "--demo", "--build", tmp_path / "no"], "there is no Dockerfile"),
        ([draft, "--demo", "--subnets", "10.0.0.0/29"], "there are 3 edges"),
        ([tmp_path / "no.consortium"], "no such file"),
    ):
        assert words in refused("compose", *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "docker-compose.yml").exists()
