"""Many seeds of one scenario, in parallel processes; of a failing one, what happened before it.

A seed whose run breaks off with an exception has failed as well: a bug is what is looked for.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from node.errors import ConfigError
from node.types import events as ev
from scenarios import engines
from scenarios.expectations import check_baselines
from scenarios.record import Check, Run
from scenarios.settings import Scenario
from scenarios.workers import Jobs, spread

SEEDS_MAX: Final = 1_000_000  # outcomes are kept until the end, some 300 bytes each
LAST_EVENTS: Final = 12  # what a person reads before going to the replay
_RANGE: Final = re.compile(r"(?P<first>\d{1,16})\.\.(?P<last>\d{1,16})")
_COUNT: Final = re.compile(r"\d{1,16}")
_AT: Final = re.compile(r"at (?P<at>\d+\.\d+) s: ")  # how a checker's finding begins
# Each frame and chunk would leave room for nothing else.
_UNSAID: Final = (ev.Send, ev.SendChunk, ev.StoreChunk)


class Outcome(Struct, frozen=True, kw_only=True):
    """How one seed ended. ``last``: what happened before a failure, one line an event."""

    seed: int
    failed: tuple[Check, ...] = ()
    error: str = ""  # the run broke off with this
    refused: str = ""  # the scenario cannot be run at all, under any seed
    last: tuple[str, ...] = ()
    wall_s: float = 0.0
    trace_hash: str = ""

    @property
    def ok(self) -> bool:
        return not self.failed and not self.error

    @property
    def why(self) -> str:
        """The failed checkers in words."""
        if self.error:
            return self.error
        return "; ".join(said(check) for check in self.failed)


def said(check: Check) -> str:
    """One check for people: its name, what was found, and the limit."""
    limit = "" if check.limit is None else f" (limit {check.limit})"
    return f"{check.name}: {check.value}{limit}"


def parse_seeds(text: str, *, where: str, first: int = 0) -> tuple[int, ...]:
    """``"500"``: so many from ``first`` on; ``"0..9"``: both ends included. Raises ConfigError."""
    text = text.strip()
    if found := _RANGE.fullmatch(text):
        low, high = int(found["first"]), int(found["last"])
        if high < low:
            raise ConfigError(f"{where}: '{text}' ends before it begins; try '{high}..{low}'")
    elif _COUNT.fullmatch(text):
        low, high = first, first + int(text) - 1
        if high < low:
            raise ConfigError(f"{where}: found 0, expected at least one seed")
    else:
        raise ConfigError(f"{where}: found '{text}', expected a number such as 500, or '0..9'")
    if high - low >= SEEDS_MAX:
        raise ConfigError(f"{where}: {high - low + 1} seeds, at most {SEEDS_MAX} in one go")
    if high >= 2**53:
        raise ConfigError(f"{where}: {high} is beyond the greatest seed, 2^53 - 1")
    return tuple(range(low, high + 1))


def explore(
    scenario: Scenario,
    seeds: Sequence[int],
    *,
    on: str = "simulation",
    jobs: Jobs = 1,
    on_outcome: Callable[[Outcome], None] | None = None,
    ablate: str = "",
) -> tuple[Outcome, ...]:
    """Run every seed, ``jobs`` at a time; outcomes in the order of ``seeds``.

    ``on_outcome`` sees each as it comes. ``ablate``: see ``run_seed``. Raises ConfigError for a
    scenario that cannot be run.
    """
    if on == "simulation":
        import scenarios.simulation  # noqa: F401  (and torch with it, before the fork)
    found: dict[int, Outcome] = {}

    def work(task: int) -> bytes:
        return msgspec.msgpack.encode(run_seed(scenario, seeds[task], on=on, ablate=ablate))

    for task, answer in spread(work, len(seeds), jobs=jobs):
        if answer is None:
            outcome = Outcome(seed=seeds[task], error="its process died (killed, or out of memory)")
        else:
            outcome = msgspec.msgpack.decode(answer, type=Outcome)
        if outcome.refused:
            raise ConfigError(outcome.refused)
        found[task] = outcome
        if on_outcome is not None:
            on_outcome(outcome)
    return tuple(found[task] for task in range(len(seeds)))


def run_seed(scenario: Scenario, seed: int, *, on: str = "simulation", ablate: str = "") -> Outcome:
    """One seed, to its outcome; nothing is raised but what ends a process.

    ablate: a safeguard of scenarios.ablation, taken out of the nodes of a simulation.
    """
    begun = time.perf_counter()
    try:
        if ablate:
            failed = _ablated(scenario.with_seed(seed).with_chaos(), ablate)
            return Outcome(seed=seed, failed=failed, wall_s=time.perf_counter() - begun)
        run = engines.run(scenario, on=on, seed=seed, baselines=wants_baselines(scenario))
    except ConfigError as error:
        return Outcome(seed=seed, refused=str(error))
    except Exception as error:
        return Outcome(seed=seed, error=_broke_off(error), wall_s=time.perf_counter() - begun)
    failed = tuple(check for check in run.checks if not check.ok)
    last: tuple[str, ...] = ()
    if failed:
        last = _before(scenario.with_seed(seed).with_chaos(), run, failed[0])
    return Outcome(
        seed=seed,
        failed=failed,
        last=last,
        wall_s=time.perf_counter() - begun,
        trace_hash=run.trace_hash or "",
    )


def _ablated(scenario: Scenario, ablate: str) -> tuple[Check, ...]:
    """What the checkers found; nothing is expected of such a run."""
    from scenarios.prepare import prepare
    from scenarios.simulation import Hooks, Simulation

    simulation = Simulation(prepare(scenario), Hooks(ablate=ablate, evaluate=False))
    simulation.run()
    return tuple(check for check in simulation.checkers.checks() if not check.ok)


def wants_baselines(scenario: Scenario) -> bool:
    """Whether an expectation compares with them: else they only cost time."""
    try:
        check_baselines(scenario, baselines=False)
    except ConfigError:
        return True
    return False


def _broke_off(error: Exception) -> str:
    trace, where = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f", in {code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return " ".join(f"the run broke off: {type(error).__name__}: {error}{where}".split())


def _before(scenario: Scenario, run: Run, check: Check) -> tuple[str, ...]:
    """The last events before ``check`` failed; before the run's end where it has no instant."""
    instant = _AT.match(check.value) if isinstance(check.value, str) else None
    until = float(instant["at"]) if instant else None
    lines = [(span.start, f"{span.start:.6f} s: {span.label or span.kind}") for span in run.faults]
    lines += _effects(scenario, until) if run.engine == "simulation" else _rounds(run)
    if until is not None:
        lines = [line for line in lines if line[0] <= until + 1e-6]
    lines.sort(key=lambda line: line[0])
    return tuple(text for _, text in lines[-LAST_EVENTS:])


def _effects(scenario: Scenario, until: float | None) -> list[tuple[float, str]]:
    """What the nodes did: the same run once more, with somebody watching."""
    from scenarios.prepare import prepare
    from scenarios.simulation import Hooks, Simulation

    seen: deque[tuple[float, str, ev.Effect]] = deque(maxlen=LAST_EVENTS)

    def watch(name: str, effect: ev.Effect, at: float) -> None:
        if not isinstance(effect, _UNSAID) and (until is None or at <= until + 1e-6):
            seen.append((at, name, effect))

    founded = prepare(scenario)
    Simulation(founded, Hooks(on_effect=watch, evaluate=False)).run()
    names: dict[Any, str] = {m: founded.roster.name(m) for m in founded.roster.members}
    return [(at, f"{at:.6f} s: {name}: {_words(effect, names)}") for at, name, effect in seen]


def _rounds(run: Run) -> list[tuple[float, str]]:
    return [
        (row.at, f"{row.at:.6f} s: {row.node}: mixed round {row.round} with {len(row.mixed)}")
        for row in run.rows[-LAST_EVENTS:]
    ]


def _words(effect: Any, names: dict[Any, str]) -> str:
    """An effect or notice as ``kind key=value …``: short values and names of members alone."""
    if isinstance(effect, ev.Note):
        return _words(effect.note, names)
    if isinstance(effect, ev.Persist):
        return f"writes {type(effect.record).__name__.lower()} to its disk"
    parts = [type(effect).__name__.lower()]
    for field in msgspec.structs.fields(effect):
        value = getattr(effect, field.name)
        if isinstance(value, bytes):
            shown = names.get(value, "")
        elif isinstance(value, bool | int | float | str):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        elif isinstance(value, tuple):
            listed = [names.get(getattr(item, "member", item), "") for item in value[:8]]
            shown = ",".join(name for name in listed if name)
        else:
            continue
        if shown:
            parts.append(f"{field.name}={shown}")
    return " ".join(parts)
