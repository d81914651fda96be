"""docs/scenario-file.md has every key with its default, and nothing that there is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.cli.main import main
from node.types.settings import LearningSettings, SplitSettings, StartSettings, TaskSettings
from scenarios.attacks.attacker import attacks
from scenarios.chaos import ChaosSettings
from scenarios.expected import ExpectSettings
from scenarios.settings import (
    ComputeSettings,
    LinkSettings,
    NetworkSettings,
    NodeTable,
    ScenarioSettings,
    library_names,
)
from scenarios.sweep import SweepSettings
from scenarios.vocabulary import (
    FAULTS,
    BetweenSettings,
    EventSettings,
    LinkFaultSettings,
    SkewSettings,
    SlowSettings,
)
from topology.settings import PARAMETERS, TopologySettings

PAGE = Path(__file__).parents[2] / "docs" / "scenario-file.md"
TABLES: dict[str, type[msgspec.Struct]] = {
    "The file": ScenarioSettings,
    "[topology]": TopologySettings,
    "[task]": TaskSettings,
    "[task.split]": SplitSettings,
    "[learning]": LearningSettings,
    "[start]": StartSettings,
    "[compute]": ComputeSettings,
    "[network]": NetworkSettings,
    "[[link]]": LinkSettings,
    "[[node]]": NodeTable,
    "[[event]]": EventSettings,
    "slow": SlowSettings,
    "link of an event": LinkFaultSettings,
    "clog, unclog, reset": BetweenSettings,
    "clock_skew": SkewSettings,
    "[chaos]": ChaosSettings,
    "[expect]": ExpectSettings,
    "A sweep": SweepSettings,
}


def sections() -> dict[str, str]:
    """The page's text by its headings, without backquotes."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        title.replace("`", ""): text for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the others, of the section's table of keys."""
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, flags=re.MULTILINE)
    return {key: [cell.strip() for cell in rest.split(" | ")] for key, rest in found}


def default(field: msgspec.structs.FieldInfo) -> str:
    """As the page writes it."""
    if field.required:
        return "required"
    made: Any = field.default
    if made is msgspec.NODEFAULT:
        made = field.default_factory()
    if made is None:
        return "–"
    if isinstance(made, msgspec.Struct):
        return "its own"
    if made in ((), {}):
        return "none"
    return f'`"{made}"`' if isinstance(made, str) else f"`{made}`"


def test_every_table_has_its_section() -> None:
    assert sorted(sections()) == sorted([*TABLES, "Attacks"])


@pytest.mark.parametrize("title", TABLES)
def test_every_key_stands_there_with_its_default_and_a_word(title: str) -> None:
    written = rows(sections()[title])
    fields = {field.encode_name: field for field in msgspec.structs.fields(TABLES[title])}
    assert list(written) == list(fields)
    assert {key: cells[0] for key, cells in written.items()} == {
        key: default(field) for key, field in fields.items()
    }
    assert all(len(cells) == 2 and cells[1] for cells in written.values())


def test_faults_attacks_and_kinds_stand_there() -> None:
    found = sections()
    assert set(rows(found["Attacks"])) == set(attacks())
    assert "`, `".join(FAULTS) in found["[[event]]"]
    assert re.findall(r"^- `([a-z-]+)`", found["[topology]"], flags=re.MULTILINE) == list(
        PARAMETERS
    )


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--list"]) == 0
    said = capsys.readouterr().out
    for name in (*library_names(), *FAULTS, *attacks(), *PARAMETERS):
        assert re.search(rf"\b{name}\b", said), name
    assert max(map(len, said.splitlines())) <= 80
    assert main(["run", "--help"]) == 0
    assert "grapevine run --list" in capsys.readouterr().out
