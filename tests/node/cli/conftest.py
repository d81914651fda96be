"""Runs the command in this process, and founds small consortia with it, as a person would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from node.cli.main import main

CHARTER = """\
# The charter of the tests.
name = "heart"
topology = { kind = "path" }  # who talks to whom

[task]
name = "quadratic"
dimension = 8

[learning]
rounds = 3
linger_s = 2.0
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def grapevine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("GRAPEVINE_STATE", "GRAPEVINE_PASSPHRASE_FILE", "GRAPEVINE_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def do(grapevine: Run) -> Run:
    """The command, which must succeed."""

    def run(*arguments: object) -> Ran:
        ran = grapevine(*arguments)
        assert ran.code == 0, ran.err
        return ran

    return run


@pytest.fixture
def refused(grapevine: Run) -> Callable[..., str]:
    """The command, which must refuse in one line; that line, and exit code 2 unless told."""

    def run(*arguments: object, code: int = 2) -> str:
        ran = grapevine(*arguments)
        assert ran.code == code, (ran.code, ran.out, ran.err)
        lines = ran.err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("grapevine: error: ")
        assert "Traceback" not in ran.err
        return lines[0].removeprefix("grapevine: error: ")

    return run


class Site(NamedTuple):
    """A folder with the keys and cards of some members, and a draft charter."""

    path: Path
    names: tuple[str, ...]

    @property
    def charter(self) -> Path:
        return self.path / "heart.toml"

    @property
    def sealed(self) -> Path:
        return self.path / "heart.consortium"

    def state(self, name: str) -> Path:
        return self.path / name

    def card(self, name: str) -> Path:
        return self.path / f"{name}.card"

    def signature(self, name: str) -> Path:
        return self.path / f"{name}.sig"

    def found(self, do: Run) -> Site:
        """Charter, signatures and seal, out of the cards as they are."""
        do("consortium", "new", self.charter, *self.cards)
        for name in self.names:
            words = ("--state", self.state(name), "--out", self.signature(name))
            do("consortium", "sign", self.charter, *words)
        signatures = [self.signature(name) for name in self.names]
        do("consortium", "seal", self.charter, *signatures, "--out", self.sealed)
        return self

    @property
    def cards(self) -> list[object]:
        return [part for name in self.names for part in ("--card", self.card(name))]


@pytest.fixture
def site(tmp_path: Path, do: Run) -> Site:
    """Keys, cards and a draft of two members."""
    made = Site(tmp_path, ("clinic-a", "clinic-b"))
    made.charter.write_text(CHARTER)
    for number, name in enumerate(made.names):
        do("keygen", "--name", name, "--state", made.state(name))
        address = f"tcp://127.0.0.1:{7400 + number}"
        do("id", "--state", made.state(name), "--address", address, "--card", made.card(name))
    return made


@pytest.fixture
def founded(site: Site, do: Run) -> Site:
    """The same, founded and sealed."""
    return site.found(do)


@pytest.fixture
def at_broker(site: Site, do: Run) -> Site:
    """The same, with cards on which all name one broker."""
    for name in site.names:
        words = ("--address", "mqtts://broker.example", "--card", site.card(name))
        do("id", "--state", site.state(name), *words)
    return site.found(do)
