"""A sweep: one scenario, many seeds, every combination of [vary]; resumable, one file a run.

    scenario = "base.toml"                      # a file beside this one, or a name of the library
    seeds = "0..9"
    [vary]
    learning.rule = ["mean", "trimmed-mean"]    # mean bears no attacker: it is run without an f
    event.attacker.at = ["round 3", "round 10"]  # of the event with that name

What was run is kept under OUT/runs; the tables (scenarios.sweep_tables) are made from it alone.
"""

from __future__ import annotations

import copy
import itertools
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3
from msgspec import Struct

from node.errors import ConfigError, StorageError
from node.strict import convert, from_toml, nearest
from scenarios import engines
from scenarios.explore import SEEDS_MAX, parse_seeds, wants_baselines
from scenarios.record import Run
from scenarios.settings import (
    Scenario,
    ScenarioSettings,
    check_scenario,
    library_names,
    load_scenario,
)
from scenarios.sweep_tables import manifest, run_record, write_tables
from scenarios.workers import Jobs, spread

_MANIFEST: Final = "manifest.json"
_RUNS: Final = "runs"


class SweepSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sweep file as written."""

    scenario: str
    seeds: str = "0..9"
    vary: dict[str, Any] = {}


class Combination(Struct, frozen=True, kw_only=True):
    """One choice of every varied key, checked."""

    values: dict[str, Any]  # by dotted key
    scenario: Scenario


class Sweep(Struct, frozen=True, kw_only=True):
    """A sweep that was checked. ``digest``: of scenario text and [vary]; more seeds may come."""

    source: str
    scenario: str
    seeds: tuple[int, ...]
    keys: tuple[str, ...]
    combinations: tuple[Combination, ...]
    digest: str


class Done(Struct, frozen=True, kw_only=True):
    """What a call of ``run_sweep`` did."""

    runs: int
    skipped: int  # were finished before
    failed: int  # of all, a check did not hold
    broken: tuple[str, ...] = ()  # runs without a result, and why


def is_sweep(path: Path) -> bool:
    """Whether a file names a scenario, rather than being one."""
    try:
        return isinstance(tomllib.loads(path.read_text(encoding="utf-8")).get("scenario"), str)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # whoever reads it as a scenario says what is wrong


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep and every combination in it. Raises ConfigError."""
    source = str(path)
    settings = from_toml(path.read_text(encoding="utf-8"), SweepSettings, source=source)
    base = _base(settings.scenario, path)
    text = Path(base.source).read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    seeds = parse_seeds(settings.seeds, where=f"{source}: key 'seeds'")
    varied = dict(_flat(settings.vary, (), source))
    combinations = []
    for chosen in itertools.product(*varied.values()):
        values = dict(zip(varied, chosen, strict=True))
        combinations.append(_combination(raw, values, base, source))
    if len(combinations) * len(seeds) > SEEDS_MAX:
        raise ConfigError(f"{source}: {len(combinations) * len(seeds)} runs, at most {SEEDS_MAX}")
    plain = {".".join(key): values for key, values in varied.items()}
    return Sweep(
        source=source,
        scenario=base.name,
        seeds=seeds,
        keys=tuple(plain),
        combinations=tuple(combinations),
        digest=_digest([text, plain]),
    )


def _base(named: str, sweep: Path) -> Scenario:
    """The scenario that a sweep's file names: a file beside it, or one of the library."""
    where, beside = f"{sweep}: key 'scenario'", sweep.parent / named
    if not beside.exists() and (named != Path(named).name or named.endswith(".toml")):
        stem = Path(named).stem
        hint = f"; the library has '{stem}'" if stem in library_names() else ""
        raise ConfigError(f"{where}: {beside}: no such file{hint}")
    if not beside.exists() and named not in library_names():
        raise ConfigError(
            f"{where}: '{named}' is neither a file in {sweep.parent} nor a scenario of the library"
            f"{nearest(named, library_names())}"
        )
    if beside.is_dir():
        raise ConfigError(f"{where}: {beside} is a folder, expected a scenario file")
    return load_scenario(beside if beside.exists() else named)


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    on: str = "simulation",
    jobs: Jobs = 1,
    on_run: Callable[[bool], None] | None = None,
) -> Done:
    """Run what is not there yet, then write runs.csv, rounds.csv and manifest.json.

    Raises ConfigError where ``out`` holds something else or a combination cannot be run, before
    any is; StorageError where ``out`` cannot be written.
    """
    for combination in sweep.combinations:
        engines.check(combination.scenario.with_seed(sweep.seeds[0]), on=on)
    _claim(sweep, out, on, jobs)
    todo, before = [], 0
    for combination, seed in itertools.product(sweep.combinations, sweep.seeds):
        if (out / _RUNS / f"{_name(combination, seed)}.json").exists():
            before += 1
        else:
            todo.append((combination, seed))
    if on == "simulation":
        import scenarios.simulation  # noqa: F401  (and torch with it, before the fork)

    def work(task: int) -> bytes:
        combination, seed = todo[task]
        return _run(combination, seed, on)

    broken = []
    try:
        for task, answer in spread(work, len(todo), jobs=jobs):
            combination, seed = todo[task]
            if answer is None or answer.startswith(b"!"):
                why = "its process died" if answer is None else answer[1:].decode()
                broken.append(f"seed {seed}, {combination.values}: {why}")
                held = False
            else:
                _write(out / _RUNS / f"{_name(combination, seed)}.json", answer)
                held = bool(msgspec.json.decode(answer)["row"]["ok"])
            if on_run is not None:
                on_run(held)
    finally:  # also when it is interrupted: what is there can be looked at
        rows = write_tables(out, _records(out))
        _write(out / _MANIFEST, _encoded(manifest(sweep, on=on, jobs=jobs, rows=rows)))
    failed = sum(not row["ok"] for row in rows)
    return Done(runs=len(rows), skipped=before, failed=failed, broken=tuple(broken))


def _flat(
    table: dict[str, Any], above: tuple[str, ...], source: str
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """[vary] as (path, values): a.b = [] is a table in a table, "a.b" = [] one key; both count."""
    for key, value in table.items():
        path = (*above, *(key.split(".") if not above else (key,)))
        dotted = ".".join(path)
        if isinstance(value, dict):
            yield from _flat(value, path, source)
        elif not isinstance(value, list):
            raise ConfigError(
                f"{source}: key 'vary.{dotted}': found {value!r}, expected a list of values"
            )
        elif not value:
            raise ConfigError(f"{source}: key 'vary.{dotted}': names no value")
        elif any(value.count(one) > 1 for one in value):
            raise ConfigError(f"{source}: key 'vary.{dotted}': a value stands twice")
        elif path == ("seed",):
            raise ConfigError(
                f"{source}: key 'vary.seed': seeds are not varied; say seeds = \"0..9\""
            )
        else:
            yield path, value


def _combination(
    raw: dict[str, Any], values: dict[tuple[str, ...], Any], base: Scenario, source: str
) -> Combination:
    changed = copy.deepcopy(raw)
    for path, value in values.items():
        _set(changed, path, value, f"{source}: key 'vary.{'.'.join(path)}'")
    _spare_mean(changed, values)
    plain = {".".join(path): value for path, value in values.items()}
    shown = ", ".join(f"{key} = {json.dumps(value)}" for key, value in plain.items())
    where = f"{source}: {shown}" if plain else source
    settings = convert(changed, ScenarioSettings, source=where)
    scenario = check_scenario(settings, source=where, base=Path(base.source).parent)
    return Combination(values=plain, scenario=scenario)


def _spare_mean(raw: dict[str, Any], values: dict[tuple[str, ...], Any]) -> None:
    """Among varied rules `mean` is what the others are compared with: the f is theirs alone.

    Outside a sweep over rules an f beside `mean` is refused, for somebody counts on it.
    """
    if values.get(("learning", "rule")) == "mean":
        raw["learning"].pop("f", None)


def _set(raw: dict[str, Any], path: tuple[str, ...], value: Any, where: str) -> None:
    if path[0] == "event":
        if len(path) < 3:
            raise ConfigError(f"{where}: say event.NAME.key, with the name of an event")
        names = [event["name"] for event in raw.get("event", ()) if "name" in event]
        if path[1] not in names:
            said = nearest(path[1], names) if names else "; no event has a name"
            raise ConfigError(f"{where}: no event is called '{path[1]}'{said}")
        table = next(event for event in raw["event"] if event.get("name") == path[1])
        path = path[2:]
    else:
        table = raw
    for key in path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: '{key}' is no table")
    table[path[-1]] = value


def _run(combination: Combination, seed: int, on: str) -> bytes:
    """One run to the bytes of its file; ``!`` and the reason where there is no result."""
    scenario = combination.scenario
    try:
        run: Run = engines.run(scenario, on=on, seed=seed, baselines=wants_baselines(scenario))
    except Exception as error:
        return b"!" + " ".join(f"{type(error).__name__}: {error}".split()).encode()
    return _encoded(run_record(_name(combination, seed), combination.values, run))


def _claim(sweep: Sweep, out: Path, on: str, jobs: Jobs) -> None:
    """Make ``out`` this sweep's, or find that it is."""
    claimed = out / _MANIFEST
    try:
        if claimed.exists():
            held = json.loads(claimed.read_text(encoding="utf-8"))
            if not isinstance(held, dict) or held.get("sweep") != sweep.digest:
                name = held.get("scenario") if isinstance(held, dict) else None
                raise ConfigError(
                    f"--out: {out} holds another sweep (scenario '{name}', or other values); "
                    "give another folder"
                )
            if held.get("engine") != on:
                raise ConfigError(f"--out: {out} holds this sweep on {held.get('engine')}")
        elif out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"--out: {out} is not empty and holds no sweep; give another folder")
        (out / _RUNS).mkdir(parents=True, exist_ok=True)
    except json.JSONDecodeError:
        raise ConfigError(f"--out: {claimed} is not the manifest of a sweep") from None
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from None
    if not claimed.exists():
        _write(claimed, _encoded(manifest(sweep, on=on, jobs=jobs, rows=[])))


def _records(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / _RUNS).glob("*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise StorageError(f"{path}: is damaged; delete it, and it is run again") from None


def _name(combination: Combination, seed: int) -> str:
    return _digest([combination.values, seed])[:16]


def _digest(value: Any) -> str:
    return blake3(msgspec.json.encode(value, order="sorted")).hexdigest()


def _encoded(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a run that was cut off is run again."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
