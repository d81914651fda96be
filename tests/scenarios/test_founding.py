from __future__ import annotations

import stat
from pathlib import Path

import pytest

from crypto.keys import load_keys
from node.consortium import load_consortium
from node.errors import ConfigError
from node.learning.task import load_part
from node.strict import from_toml, load_toml
from node.types.settings import LearningSettings, NodeSettings, SplitSettings, TaskSettings
from scenarios.founding import Founded, found, toml
from topology.settings import TopologySettings

NAMES = ("clinic-a", "clinic-b", "clinic-c")
QUADRATIC = TaskSettings(name="quadratic", dimension=4)


def make(directory: Path, names: tuple[str, ...] = NAMES) -> Founded:
    return found(
        directory,
        names,
        name="three",
        topology=TopologySettings(kind="ring"),
        task=QUADRATIC,
        learning=LearningSettings(rounds=3, seed=5),
    )


def test_what_is_founded_passes_every_check_of_a_member(tmp_path: Path) -> None:
    made = make(tmp_path)
    again = load_consortium(tmp_path / "three.consortium")
    assert again.id == made.consortium.id
    assert again.names == NAMES
    assert len(again.sealed.signatures) == 3
    ports = set()
    for name, seat in made.seats.items():
        settings = load_toml(seat.node_toml, NodeSettings)
        keys = load_keys(Path(settings.state))
        member = again.roster.members[keys.node_id]
        assert member.name == keys.name == name
        assert member.addresses == (f"tcp://{settings.listen}",)
        assert load_part(Path(settings.data["part"])).samples == member.samples == seat.samples
        assert stat.S_IMODE((seat.state / "member.key").stat().st_mode) == 0o600
        ports.add(seat.port)
    assert len(ports) == 3


def test_nothing_is_founded_over_keys_that_exist(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError, match="there is a key already"):
        make(tmp_path)


def test_a_name_that_no_member_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name 'Clinic A'"):
        make(tmp_path, ("Clinic A", "b"))


def test_settings_written_as_toml_read_the_same() -> None:
    task = TaskSettings(name="digits", split=SplitSettings(kind="dirichlet", alpha=0.5))
    topology = TopologySettings(kind="ring", edges=(("a", "b"),), seed=3)
    assert from_toml(toml(task), TaskSettings, source="t") == task
    assert from_toml(toml(topology), TopologySettings, source="t") == topology
    assert "batch_size" not in toml(LearningSettings(rounds=3))
