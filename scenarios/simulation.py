"""The simulation engine: real cores and real learners under virtual time, repeatable bit by bit.

The shell of node/runtime.py once more, with a heap of things to come in the place of the event
loop. No wall clock decides anything here, no order of a set, no hash of an object.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from blake3 import blake3
from msgspec import Struct, structs

from node.errors import GrapevineError
from node.types import events as ev
from scenarios.ablation.safeguards import Ablation
from scenarios.attacks.attacker import Insider, attacker
from scenarios.carrier import Carrier
from scenarios.checkers.findings import Caught
from scenarios.checkers.taken import ball
from scenarios.checkers.watch import Checkers, blind
from scenarios.expectations import check_baselines
from scenarios.faults import Attack
from scenarios.measures import Measures, Sides, by_round
from scenarios.memory import Memory
from scenarios.network import SECOND, Clock, Network
from scenarios.outages import Outages
from scenarios.partitions import Calm
from scenarios.prepare import Prepared, prepare
from scenarios.record import RoundRow, Run
from scenarios.results import collect
from scenarios.settings import Scenario, derive
from scenarios.trace import CRASH, KINDS, RESTART, Trace
from scenarios.virtual_node import VirtualNode

WALL_MS: Final = 1_767_225_600_000  # what the nodes' clocks show at the start: 2026-01-01, UTC
_TICK_NS: Final = 1000  # a Wake that came too early, by rounding, comes again this much later

Progress = Callable[[float, float], None]  # (virtual seconds, share done)


class Hooks(Struct, kw_only=True):
    """What tests may do to a run; an ordinary run has none.

    ``kill_at``: crash a node before its k-th effect; it starts again ``restart_after_s`` later
    (None: never). ``on_effect`` sees every effect before it is carried out.
    """

    kill_at: Mapping[str, int] = {}
    restart_after_s: float | None = 1.0
    on_effect: Callable[[str, ev.Effect, float], None] | None = None
    evaluate: bool = True
    ablate: str = ""  # a name of scenarios.ablation: that safeguard is off in every honest node
    blind: tuple[str, ...] = ()  # keys of scenarios.checkers.findings: those look away


class Simulation:
    """One run. ``run`` may be called once.

    ``partitions``: between whose sides the models' distance is measured, besides the scenario's.
    """

    def __init__(
        self,
        founded: Prepared,
        hooks: Hooks | None = None,
        on_progress: Progress | None = None,
        *,
        partitions: Sequence[Sides] = (),
    ) -> None:
        self.founded, self.hooks = founded, hooks or Hooks()
        self.scenario = founded.scenario
        settings = self.scenario.settings
        self.clock = Clock()
        self.trace = Trace()
        self.memory = Memory()
        names = founded.names
        self.nodes = [
            VirtualNode(
                name=name,
                index=index,
                me=founded.ids[name],
                key=founded.keys[name],
                samples=founded.parts[name].samples,
            )
            for index, name in enumerate(names)
        ]
        self.by_id = {node.me: node for node in self.nodes}
        self.network = Network(
            self.clock,
            self,
            random.Random(self._seed("network")),
            nodes=len(names),
            bandwidth=settings.network.bandwidth_mbps,
            broker=settings.network.transport == "mqtt",
        )
        places = {name: index for index, name in enumerate(names)}
        for a, b in self.scenario.graph.edges:
            self.network.add_link(places[a], places[b], self.scenario.link_shape(a, b))
        self.attackers = self.scenario.attackers
        self.measures = Measures(
            names,
            evaluate=self.hooks.evaluate,
            partitions=(*self.scenario.partitions, *partitions),
            attackers=len(self.attackers),
        )
        self.outages = Outages(self)
        keeps_disks = self.outages.restarts or bool(self.hooks.kill_at)
        self._on_progress = on_progress
        self._rounds_done = 0
        first = founded.learner(names[0])
        self.pins = founded.pins(first)
        self.checkers = Checkers(
            founded.roster,
            founded.policy,
            self.pins,
            memory=self.memory,
            attackers=[founded.ids[a] for a in self.attackers],
            ball=ball(first),
        )
        blind(self.checkers, self.hooks.blind)
        self._ablation = Ablation(self, self.hooks.ablate) if self.hooks.ablate else None
        self.carrier = Carrier(self, keeps_disks=keeps_disks)
        self._made = {0: first} | {
            index: founded.learner(name) for index, name in enumerate(names) if index
        }

    # ── the run ──

    def run(self) -> None:
        """Until every node has ended and every fault has happened, or nothing moves any more.

        With a safeguard taken out: until the checker that is to notice has noticed.
        """
        with contextlib.suppress(Caught):
            self._play()

    def _play(self) -> None:
        for node in self.nodes:
            node.steps = self.founded.steps[node.name]
            node.step_ms = self.scenario.step_ms[node.name]
            node.kill_at = self.hooks.kill_at.get(node.name)
        self.outages.prepare()
        for node in self.nodes:
            self.boot(node)
        self.outages.arm()
        limit = self._limit_ns()
        clock = self.clock
        while not self.over and clock.step():
            if clock.now > limit:
                break
        self.measures.flush()
        self.outages.finish()
        self.checkers.end(self.now, [n.me for n in self.nodes if n.ended == "finished"])

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.clock.now / SECOND

    @property
    def over(self) -> bool:
        return not self.outages.pending and not any(node.alive for node in self.nodes)

    def boot(self, node: VirtualNode) -> None:
        """Start a node's process on its disk."""
        again = node.boots > 0
        learner = self._made.pop(node.index, None) or self.founded.learner(node.name)
        if again:
            self.trace.add(self.clock.now, node.index, RESTART)
        policy = self.founded.policy
        start = self.scenario.settings.start
        if start.after_s is not None:
            by = WALL_MS + round(start.after_s * 1000)
            policy = structs.replace(policy, start_by_ms=by)
        self.network.boot(node.index)
        node.boot(
            learner,
            roster=self.founded.roster,
            pins=self.pins,
            policy=policy,
            verify=self.memory.verify,
            memory=self.memory,
            seed=self._seed("nodes", node.name, str(node.boots)),
        )
        self.checkers.boot(node.me, node.disk.state)
        if self._ablation is not None:
            self._ablation.boot(node)
        if self.attackers:
            self.checkers.watch(node.core)
        wall_ms = WALL_MS + self.clock.now // 1_000_000 + round(node.skew_s * 1000)
        self.feed(node, ev.Start(max(0, wall_ms)))

    def kill(self, node: VirtualNode, *, ended: str = "killed", why: str = "reset") -> None:
        """The process is gone, with everything that is not on its disk."""
        if not node.alive:
            return
        self.measures.settle(node.index)
        node.alive, node.ended = False, ended
        node.todo.clear()
        node.paused = False
        node.waiting.clear()
        self.carrier.forget(node)
        if ended == "killed":
            self.trace.add(self.clock.now, node.index, CRASH)
        self.network.kill(node.index, why)

    def resume(self, node: VirtualNode) -> None:
        """A process that stood still goes on, with all that came meanwhile, in order."""
        waiting, node.waiting = node.waiting, []
        node.paused = False
        self.checkers.resumed(node.me, self.now)
        for event, digest in waiting:
            self.feed(node, event, digest)

    def attack(self, node: VirtualNode, fault: Attack) -> None:
        """The node is malicious from now on, or no longer."""
        node.attacker = None
        if not fault.ends:
            node.attacker = attacker(fault.what, self._insider(node), fault.scale)

    def _insider(self, node: VirtualNode) -> Insider:
        return Insider(
            me=node.me,
            sign=node.key.sign,
            roster=self.founded.roster,
            pins=self.pins,
            last_round=self.founded.policy.last_round,
            rng=random.Random(self._seed("attack", node.name, str(self.clock.now))),
            chunk=node.chunk,
        )

    def _limit_ns(self) -> int:
        """Far beyond what the slowest run may take: a node alive then hangs."""
        policy, settings = self.founded.policy, self.scenario.settings
        slowest = max(node.steps * node.step_ms for node in self.nodes) / 1000
        a_round = slowest * self.outages.slowest + policy.deadline_max_s + 1.0
        extra = self.outages.last_s + (settings.start.after_s or 0.0) + 600.0
        boots = 1 + len(self.hooks.kill_at)
        return round((a_round * (policy.last_round + 2) + policy.linger_s) * boots + extra) * SECOND

    def _seed(self, *purpose: str) -> int:
        return derive(self.scenario.seed, *purpose)

    # ── events in ──

    def feed(self, node: VirtualNode, event: ev.Event, digest: bytes = b"") -> None:
        """Hand one event to a core and carry out all that follows at this instant."""
        if not node.alive:
            return
        if node.paused:
            node.waiting.append((event, digest))
            return
        self.trace.add(self.clock.now, node.index, KINDS[type(event)], digest)
        node.todo.append(event)
        if node.busy:
            return
        node.busy = True
        try:
            self._work_off(node)
        except GrapevineError as error:  # the learner or the core refuses: this node stops
            self.kill(node, ended=f"failed: {error}", why="closed")
        finally:
            node.busy = False

    def _work_off(self, node: VirtualNode) -> None:
        now, boots = self.clock.now / SECOND, node.boots
        handlers, watch, todo = self.carrier.handlers, self.hooks.on_effect, node.todo
        while todo and node.boots == boots:
            durable = node.durable
            for effect in node.core.handle(todo.popleft(), now=now):
                if node.effects == node.kill_at:
                    self._kill_for_test(node)
                if not node.alive:
                    return
                node.effects += 1
                if watch is not None:
                    watch(node.name, effect, now)
                handlers[type(effect)](node, effect)
            if node.durable > durable and node.alive:
                # group commit: one answer for all that was written
                self.answer(node, ev.Persisted(node.durable))
        if node.alive:
            self._arm(node)

    def answer(self, node: VirtualNode, event: ev.Event, digest: bytes = b"") -> None:
        """What takes no virtual time is answered at once, after the effects in hand."""
        self.trace.add(self.clock.now, node.index, KINDS[type(event)], digest)
        node.todo.append(event)

    def _kill_for_test(self, node: VirtualNode) -> None:
        node.kill_at = None
        self.kill(node)
        if self.hooks.restart_after_s is not None:
            at = self.clock.now + round(self.hooks.restart_after_s * SECOND)
            self.outages.pending += 1
            self.clock.at(at, self._boot_after_test, node)

    def _boot_after_test(self, node: VirtualNode) -> None:
        self.outages.pending -= 1
        self.boot(node)

    def _arm(self, node: VirtualNode) -> None:
        wake = node.core.next_wake()
        if wake is None:
            return
        due = math.ceil(wake * SECOND)
        if due <= self.clock.now:
            due = self.clock.now + _TICK_NS
        if node.armed is None or due < node.armed:
            node.armed = due
            self.clock.at(due, self._wake, node, node.boots, due)

    def _wake(self, node: VirtualNode, boots: int, due: int) -> None:
        if node.boots != boots or node.armed != due or not node.alive:
            return
        node.armed = None
        wake = node.core.next_wake()
        if wake is not None and wake <= self.clock.now / SECOND:
            self.feed(node, ev.Wake())
        else:
            self._arm(node)

    # ── the network's answers (scenarios.network.Ends) ──

    def deliver(self, node: int, peer: int, frame: bytes, digest: bytes) -> None:
        to, source = self.nodes[node], self.nodes[peer].me
        if to.attacker is not None and to.alive:
            taken, answers = to.attacker.receive(source, frame)
            for answer in answers:
                self.carrier.put(to, source, answer)
            if taken is None:
                return
            if taken is not frame:
                frame, digest = taken, blake3(taken).digest()
        self.feed(to, ev.Frame(source, frame), digest)

    def link_up(self, node: int, peer: int) -> None:
        self.feed(self.nodes[node], ev.LinkUp(self.nodes[peer].me))

    def link_down(self, node: int, peer: int, why: str) -> None:
        self.nodes[node].withheld.pop(self.nodes[peer].me, None)
        self.feed(self.nodes[node], ev.LinkDown(self.nodes[peer].me, why))

    def dial_failed(self, node: int, peer: int, why: str) -> None:
        self.feed(self.nodes[node], ev.DialFailed(self.nodes[peer].me, why))

    def round_done(self, node: VirtualNode, done: ev.RoundDone, at: float) -> None:
        name, policy = self.founded.roster.name, self.founded.policy
        node.round = done.round
        row = RoundRow(
            node=node.name,
            round=done.round,
            at=at,
            mixed=tuple(name(source.member) for source in done.mixed),
            missing=tuple((name(missing.member), missing.why) for missing in done.missing),
            waited_s=done.waited_s,
            sent_bytes=self.network.sent_bytes[node.index],
            received_bytes=self.network.received_bytes[node.index],
            half_edges=done.half_edges,
            late=done.late,
            alone=done.alone,
            kept_own=done.kept_own,
        )
        every = self.founded.learning.evaluate_every
        self.measures.mixed(
            node.index,
            node.learner,
            row,
            weight=0.0 if node.name in self.attackers else float(node.samples),
            evaluate=done.round % every == 0 or done.round == policy.last_round,
        )
        self.outages.round_done(node)
        self._rounds_done += 1
        if self._on_progress is not None and self._rounds_done % len(self.nodes) == 0:
            share = self._rounds_done / (policy.last_round * len(self.nodes))
            self._on_progress(at, min(1.0, share))


def simulate(
    scenario: Scenario,
    *,
    seed: int | None = None,
    hooks: Hooks | None = None,
    on_progress: Progress | None = None,
    baselines: bool = False,
) -> Run:
    """Run a scenario under virtual time.

    ``baselines``: also train each node alone, and one model on all rows. Raises ConfigError for
    what cannot be run. The same scenario and seed give the same Run, but for the times it took.
    """
    scenario = scenario.with_seed(seed).with_chaos()
    check_baselines(scenario, baselines=baselines)
    with _one_thread(), _uncollected():
        return _simulate(scenario, hooks, on_progress, baselines=baselines)


def _simulate(
    scenario: Scenario, hooks: Hooks | None, on_progress: Progress | None, *, baselines: bool
) -> Run:
    begun = time.perf_counter()
    founded = prepare(scenario)
    simulation = Simulation(founded, hooks, on_progress)
    started = time.perf_counter()
    simulation.run()
    ended = time.perf_counter()
    return collect(
        simulation,
        free=undisturbed(scenario),
        setup_s=started - begun,
        wall_s=ended - started,
        baselines=baselines,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """On one thread results are bit-equal whatever the batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def undisturbed(scenario: Scenario) -> Calm | None:
    """The same seed without faults, where the scenario expects the comparison."""
    if scenario.settings.expect.reconverged_within_rounds is None:
        return None
    calm = Simulation(
        prepare(scenario.without_faults()), Hooks(evaluate=False), partitions=scenario.partitions
    )
    calm.run()
    return Calm(by_round(calm.measures.distances()), calm.measures.apart())


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles among the millions of objects of a run, a third of its time otherwise.

    What a run drops is freed by its reference count; the cycles in it are found once, at the end,
    among what it made (what was there before is set aside, or that search would cost more than a
    small run).
    """
    if not gc.isenabled() or gc.get_freeze_count():  # somebody else decides
        yield
        return
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        gc.enable()
