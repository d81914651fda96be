"""Cuts a failing scenario's faults down to the fewest that still fail, and writes the file.

Delta debugging (Zeller and Hildebrandt 2002) over the file's [[event]] tables, or over those that
its [chaos] draws from the seed: subsets and complements first, then one by one, then in pairs, for
a crash and its restart can only go together. What the reading of the file refuses is no failure.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import tomlkit
from msgspec import Struct

from node.errors import ConfigError, StorageError
from scenarios.explore import Outcome, run_seed
from scenarios.settings import Scenario, parse_scenario
from scenarios.written import event_tables

Units = tuple[int, ...]  # places of events in the file
_PAIRS_MAX: Final = 40  # of more units, 780 and more pairs, only neighbours in time are tried


class Shrunk(Struct, frozen=True, kw_only=True):
    """A smaller scenario that fails the same check. ``tried``: how many were run."""

    text: str
    outcome: Outcome
    before: int
    after: int
    tried: int


class Shrinker:
    """One failing seed of one file. ``on_try`` hears (units left, candidates run)."""

    def __init__(
        self,
        text: str,
        scenario: Scenario,
        seed: int,
        *,
        base: Path,
        on_try: Callable[[int, int], None] | None = None,
    ) -> None:
        self._scenario, self._seed = scenario, seed
        self._text = _drawn(text, scenario.with_seed(seed))
        self._base, self._on_try = base, on_try
        self._known: dict[Units, Outcome | None] = {}
        self._check = ""

    def shrink(self) -> Shrunk:
        """Raises ConfigError where the seed does not fail, or there is no fault to take away."""
        units = tuple(range(len(tomlkit.parse(self._text).get("event", ()))))
        whole = run_seed(self._scenario, self._seed)
        if whole.refused:
            raise ConfigError(whole.refused)
        if whole.ok:
            raise ConfigError(f"--shrink: seed {self._seed} does not fail: nothing to cut down")
        if not units:
            raise ConfigError(
                f"{self._scenario.source}: has no event to take away; it fails as it is "
                f"({whole.why})"
            )
        self._check = _called(whole)
        if not self._fails(units):  # only where events were written out for [chaos]
            raise ConfigError(
                f"{self._scenario.source}: seed {self._seed} fails, but not with the faults that "
                "[chaos] draws written out as events; it cannot be shrunk"
            )
        left = () if self._fails(()) else self._pairs(self._ddmin(units))
        outcome = self._known[left]
        assert outcome is not None
        return Shrunk(
            text=self._written(left),
            outcome=outcome,
            before=len(units),
            after=len(left),
            tried=len(self._known),
        )

    def _ddmin(self, units: Units) -> Units:
        parts = 2
        while len(units) >= 2:
            size = -(-len(units) // parts)
            chunks = [units[at : at + size] for at in range(0, len(units), size)]
            rests = [tuple(u for u in units if u not in chunk) for chunk in chunks]
            if found := next((chunk for chunk in chunks if self._fails(chunk)), None):
                units, parts = found, 2
            elif found := next((rest for rest in rests if rest and self._fails(rest)), None):
                units, parts = found, max(parts - 1, 2)
            elif parts >= len(units):
                break
            else:
                parts = min(len(units), 2 * parts)
        return units

    def _pairs(self, units: Units) -> Units:
        """Take away what can only go two at a time, until nothing can go."""
        while True:
            near = 1 if len(units) > _PAIRS_MAX else len(units)
            away = [{unit} for unit in units]
            away += [
                {units[a], units[b]} for a, b in combinations(range(len(units)), 2) if b - a <= near
            ]
            rests = (tuple(unit for unit in units if unit not in gone) for gone in away)
            found = next((rest for rest in rests if self._fails(rest)), None)
            if found is None:
                return units
            units = found

    def _fails(self, units: Units) -> bool:
        if units not in self._known:
            self._known[units] = self._try(units)
            if self._on_try is not None:
                self._on_try(len(units), len(self._known))
        outcome = self._known[units]
        return outcome is not None and not outcome.ok and _called(outcome) == self._check

    def _try(self, units: Units) -> Outcome | None:
        try:
            scenario = parse_scenario(
                self._written(units), source=self._scenario.source, base=self._base
            )
        except ConfigError:
            return None  # a heal without its partition, say
        outcome = run_seed(scenario, self._seed)
        return None if outcome.refused else outcome

    def _written(self, units: Units) -> str:
        """The file with these units alone, comments kept, and the seed that fails."""
        document: Any = tomlkit.parse(self._text)
        kept = set(units)
        for place in reversed(range(len(document.get("event", ())))):
            if place not in kept:
                del document["event"][place]
        if "event" in document and not kept:
            del document["event"]
        if "seed" in document:
            document["seed"] = self._seed
            return tomlkit.dumps(document)
        return f"seed = {self._seed}\n{tomlkit.dumps(document)}"


def write_shrunk(path: Path, found: Shrunk) -> None:
    """Write the smaller scenario. Raises StorageError."""
    head = (
        f"# Shrunk from {found.before} faults to {found.after}; fails:\n"
        f"#   {' '.join(found.outcome.why.split())}\n\n"
    )
    try:
        path.write_text(head + found.text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def _drawn(text: str, scenario: Scenario) -> str:
    """The file with what [chaos] draws under this seed written out as events."""
    if scenario.settings.chaos is None:
        return text
    document: Any = tomlkit.parse(text)
    del document["chaos"]
    document["event"] = event_tables(scenario.with_chaos().faults)
    return tomlkit.dumps(document)


def _called(outcome: Outcome) -> str:
    """What a smaller scenario must fail as well: the first check's name, or the error's kind."""
    return outcome.failed[0].name if outcome.failed else ":".join(outcome.error.split(":")[:2])
