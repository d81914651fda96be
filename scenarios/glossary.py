"""What a scenario file may name: the library's files, faults, attacks, graphs. For people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Final

from scenarios.attacks.attacker import attacks
from scenarios.settings import LIBRARY, library_names
from scenarios.vocabulary import FAULTS
from topology.settings import PARAMETERS

_WIDTH: Final = 78


def lines() -> Iterator[str]:
    """A page of text for a terminal of 80 columns."""
    yield "Scenarios of the library (grapevine run NAME):"
    for name in library_names():
        sentence = f"  {name}: {about(LIBRARY / f'{name}.toml')}"
        yield from wrap(sentence, _WIDTH, subsequent_indent="      ", drop_whitespace=True)
    yield from _listed("Faults of an [[event]]", FAULTS)
    yield from _listed('Attacks (attack = "NAME")', sorted(attacks()))
    yield from _listed("Kinds of [topology]", tuple(PARAMETERS))
    yield ""
    yield "Every key of a scenario file, with its default: docs/scenario-file.md"


def about(path: Path) -> str:
    """The first sentence of a file's opening comment."""
    said: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        said.append(line[2:])
    return " ".join(said).split(". ")[0].rstrip(".")


def _listed(title: str, names: Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"{title}:"
    yield from wrap(", ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="  ")
