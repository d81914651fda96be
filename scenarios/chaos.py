"""Faults drawn from the seed: what [chaos] adds, so that a file without an event explores.

Every fault ends, and all of them before the training does: what is left must be whole again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta, Struct

from node.errors import ConfigError
from node.types.settings import Positive
from scenarios.attacks.attacker import attacks, check_attack
from scenarios.faults import (
    NONE,
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Resume,
    Slow,
    Unclog,
    When,
)
from scenarios.vocabulary import LinkFaultSettings, LinkShape
from topology.graph import Graph

_Expected = Annotated[float, Meta(ge=0, le=100)]
_QUIET_BEFORE: Final = 0.05  # of the duration, without faults at its start …
_QUIET_AFTER: Final = 0.10  # … and at its end


class ChaosSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[chaos]: how many faults of each kind a run may expect; 0 turns a kind off.

    At least ``kinds_min`` different kinds come in every run (crash, backup and amnesia are one
    kind; so are partition and one_way, link, garble and reset). Faults last 0.5 to 1.5 times
    ``lasts_s``; every other attack lasts to the run's end. ``attacks``: what is chosen from, all
    by default; at most one node in four attacks in a run.
    """

    kinds_min: Annotated[int, Meta(ge=1)] = 4
    lasts_s: Positive = 1.0
    partition: _Expected = 0.7
    one_way: _Expected = 0.5
    crash: _Expected = 1.0  # with the disk as it was
    backup: _Expected = 0.3  # a crash, and an old disk; at times the clock is behind as well
    amnesia: _Expected = 0.3  # a crash, and a disk with nothing but the key; the same
    disk_full: _Expected = 0.5
    pause: _Expected = 1.0
    slow: _Expected = 0.5
    link: _Expected = 0.7  # latency and loss
    garble: _Expected = 0.5  # frames duplicated, reordered, corrupted
    reset: _Expected = 0.5  # a link breaks, and may be made again at once
    swizzle: _Expected = 0.7  # links clogged one by one, unclogged in another order
    attack: _Expected = 0.7
    attacks: tuple[str, ...] = ()


# One kind each: an old disk and a disk lost are crashes, a one-way cut is a partition.
_KINDS: Final = (
    ("partition", "one_way"),
    ("crash", "backup", "amnesia"),
    ("disk_full",),
    ("pause",),
    ("slow",),
    ("link", "garble", "reset"),
    ("swizzle",),
    ("attack",),
)


def check_chaos(chaos: ChaosSettings, *, duration_s: float, source: str) -> None:
    """Raises ConfigError for rates that cannot do what they promise."""
    on = _on(chaos)
    if len(on) < chaos.kinds_min:
        raise ConfigError(
            f"{source}: key 'chaos.kinds_min': {chaos.kinds_min}, but only {len(on)} kinds have a "
            "rate above 0"
        )
    for what in chaos.attacks:
        check_attack(what, f"{source}: key 'chaos.attacks'", None)
        if what == NONE or ":" in what:
            raise ConfigError(f"{source}: key 'chaos.attacks': '{what}' is no attack by name")
    room = duration_s * (1 - _QUIET_BEFORE - _QUIET_AFTER)
    if room <= 1.5 * chaos.lasts_s:
        raise ConfigError(
            f"{source}: key 'chaos.lasts_s': faults of up to {1.5 * chaos.lasts_s:g} s do not fit "
            f"into the {room:g} s that a training of {duration_s:g} s leaves them"
        )


def _on(chaos: ChaosSettings) -> list[list[str]]:
    """The kinds with a rate above 0, each with the forms that have one."""
    forms = ([form for form in kind if getattr(chaos, form) > 0] for kind in _KINDS)
    return [kind for kind in forms if kind]


def draw(
    chaos: ChaosSettings,
    graph: Graph,
    shape: Callable[[str, str], LinkShape],
    *,
    duration_s: float,
    seed: int,
) -> tuple[Fault, ...]:
    """The faults of one seed, in time.

    shape: of a link when nothing is wrong with it. duration_s: the shortest of the training.
    """
    return _Draw(chaos, graph, shape, duration_s, random.Random(seed)).faults()


class _Draw:
    """One seed's faults. ``_busy``: when a node, a link or the cut is taken by another fault."""

    def __init__(
        self,
        chaos: ChaosSettings,
        graph: Graph,
        shape: Callable[[str, str], LinkShape],
        duration_s: float,
        rng: random.Random,
    ) -> None:
        self._chaos, self._graph, self._shape, self._rng = chaos, graph, shape, rng
        self._first = duration_s * _QUIET_BEFORE
        self._last = duration_s * (1 - _QUIET_AFTER)
        self._found: list[Fault] = []
        self._busy: dict[str, list[tuple[float, float]]] = {}
        self._attackers: set[str] = set()

    def faults(self) -> tuple[Fault, ...]:
        kinds = _on(self._chaos)
        sure = [self._rng.choice(k) for k in self._rng.sample(kinds, self._chaos.kinds_min)]
        more = []
        for form in (form for kind in kinds for form in kind):
            more += [form] * (self._poisson(getattr(self._chaos, form)) - (form in sure))
        for kind in sure:  # first, while there is room
            while not _INJECT[kind](self, kind, *self._span()):
                pass
        for kind in more:  # where nothing is free at that time, one fault fewer
            _INJECT[kind](self, kind, *self._span())
        return tuple(sorted(self._found, key=lambda fault: fault.at.seconds or 0.0))

    def _poisson(self, expected: float) -> int:
        """Arrivals of a process of rate 1 within ``expected``."""
        count, at = 0, self._rng.expovariate(1.0)
        while at < expected:
            count, at = count + 1, at + self._rng.expovariate(1.0)
        return count

    def _span(self) -> tuple[float, float]:
        lasts = self._chaos.lasts_s * self._rng.uniform(0.5, 1.5)
        start = self._rng.uniform(self._first, self._last - lasts)
        return round(start, 3), round(start + lasts, 3)

    def _take(self, what: str, start: float, end: float) -> bool:
        """Whether it is free from start to end; then it is taken."""
        spans = self._busy.setdefault(what, [])
        if any(start <= other_end and other_start <= end for other_start, other_end in spans):
            return False
        spans.append((start, end))
        return True

    def _add(self, *faults: Fault) -> bool:
        self._found += faults
        return True

    def _nodes(self, start: float, end: float) -> tuple[str, ...]:
        """One node, at times several, that no other fault has in hand."""
        most = max(1, len(self._graph.nodes) // 4)
        chosen = self._rng.sample(self._graph.nodes, self._rng.randint(1, most))
        free = tuple(name for name in chosen if self._take(name, start, end))
        if free:
            return free
        return tuple(n for n in self._graph.nodes if self._take(n, start, end))[:1]

    # ── each kind ──

    def partition(self, kind: str, start: float, end: float) -> bool:
        if not self._take("the cut", start, end):
            return False
        names = self._rng.sample(self._graph.nodes, len(self._graph.nodes))
        place = self._rng.randint(1, len(names) - 1)
        sides = (tuple(sorted(names[:place])), tuple(sorted(names[place:])))
        one_way = kind == "one_way"
        return self._add(
            Partition(at=When(start), sides=sides, one_way=one_way), Heal(at=When(end))
        )

    def crash(self, kind: str, start: float, end: float) -> bool:
        nodes = self._nodes(start, end)
        if not nodes:
            return False
        disk = {"backup": "backup", "amnesia": "none"}.get(kind, "own")
        if disk != "own" and self._rng.random() < 0.5:
            # without its disk a node numbers its boots by the clock alone; now that is behind too
            self._add(ClockSkew(at=When(start), nodes=nodes, offset_s=-3600.0))
        return self._add(
            Crash(at=When(start), nodes=nodes), Restart(at=When(end), nodes=nodes, disk=disk)
        )

    def disk_full(self, _kind: str, start: float, end: float) -> bool:
        nodes = self._nodes(start, end)
        if not nodes:
            return False
        return self._add(DiskFull(at=When(start), nodes=nodes), Restart(at=When(end), nodes=nodes))

    def pause(self, _kind: str, start: float, end: float) -> bool:
        nodes = self._nodes(start, end)
        if not nodes:
            return False
        return self._add(Pause(at=When(start), nodes=nodes), Resume(at=When(end), nodes=nodes))

    def slow(self, _kind: str, start: float, end: float) -> bool:
        nodes = self._nodes(start, end)
        if not nodes:
            return False
        factor = round(self._rng.uniform(2, 10), 1)
        return self._add(
            Slow(at=When(start), nodes=nodes, factor=factor),
            Slow(at=When(end), nodes=nodes, factor=1.0),
        )

    def link(self, kind: str, start: float, end: float) -> bool:
        pair = self._rng.choice(self._graph.edges)
        if not self._take("–".join(pair), start, end):
            return False
        if kind == "garble":
            one, two, three = (round(self._rng.uniform(0, 0.1), 3) for _ in range(3))
            bad = LinkFaultSettings(duplicate=one, reorder=two, corrupt=three)
            good = LinkFaultSettings(duplicate=0.0, reorder=0.0, corrupt=0.0)
        else:
            before, jitter = self._shape(*pair), round(self._rng.uniform(50, 500))
            bad = LinkFaultSettings(jitter_ms=jitter, loss=round(self._rng.uniform(0, 0.3), 2))
            good = LinkFaultSettings(jitter_ms=before.jitter_ms, loss=before.loss)
        return self._add(
            Link(at=When(start), pairs=(pair,), change=bad),
            Link(at=When(end), pairs=(pair,), change=good),
        )

    def reset(self, _kind: str, start: float, _end: float) -> bool:
        return self._add(Reset(at=When(start), pairs=(self._rng.choice(self._graph.edges),)))

    def attack(self, _kind: str, start: float, end: float) -> bool:
        """One member turns malicious, for a while or for good; it may be in other trouble too."""
        most = max(1, len(self._graph.nodes) // 4)
        if len(self._attackers) < most:
            name = self._rng.choice(self._graph.nodes)
        else:
            name = self._rng.choice(sorted(self._attackers))
        until = end if self._rng.random() < 0.5 else math.inf
        if not self._take(f"{name} as a member", start, until):
            return False
        self._attackers.add(name)
        what = self._rng.choice(self._chaos.attacks or tuple(attacks()))
        self._add(Attack(at=When(start), nodes=(name,), what=what))
        if until is math.inf:
            return True
        return self._add(Attack(at=When(until), nodes=(name,), what=NONE))

    def swizzle(self, _kind: str, start: float, end: float) -> bool:
        """Clog a random set of links one by one, then free them one by one in another order."""
        if not self._take("the swizzle", start, end):
            return False
        edges = self._graph.edges
        chosen = self._rng.sample(edges, self._rng.randint(1, max(1, len(edges) // 2)))
        middle = (start + end) / 2
        for pair in chosen:
            at = round(self._rng.uniform(start, middle), 3)
            self._add(Clog(at=When(at), pairs=(pair,)))
        for pair in self._rng.sample(chosen, len(chosen)):
            at = round(self._rng.uniform(middle + 0.001, end), 3)
            self._add(Unclog(at=When(at), pairs=(pair,)))
        return True


_INJECT: Final[dict[str, Callable[[_Draw, str, float, float], bool]]] = {
    "partition": _Draw.partition,
    "one_way": _Draw.partition,
    "crash": _Draw.crash,
    "backup": _Draw.crash,
    "amnesia": _Draw.crash,
    "disk_full": _Draw.disk_full,
    "pause": _Draw.pause,
    "slow": _Draw.slow,
    "link": _Draw.link,
    "garble": _Draw.link,
    "reset": _Draw.reset,
    "swizzle": _Draw.swizzle,
    "attack": _Draw.attack,
}
