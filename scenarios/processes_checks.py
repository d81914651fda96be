"""The checkers of scenarios.checkers over a run on processes: what each asked for, did and told.

Simulation feeds its checkers as it goes; here all that the nodes wrote down is put in order by the
clock that the processes of a machine share, and fed afterwards.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from crypto.identity import NodeId
from node.types.events import Apply
from scenarios.checkers.taken import ball
from scenarios.checkers.watch import Checkers
from scenarios.faults import Heal, Partition, Restart, Resume
from scenarios.founding import Founded
from scenarios.prepare import Prepared
from scenarios.processes_log import NodeLog
from scenarios.processes_outages import Happened
from scenarios.record import Check
from scenarios.witness import (
    PAYLOADS,
    Applying,
    Booted,
    Judged,
    Mixing,
    Noted,
    Rebasing,
    Recording,
    read_deeds,
)

# A timer of a process on a busy machine may fire this much late; the deadline itself is the core's.
LATE_S: Final = 5.0


def checks(
    prepared: Prepared,
    founded: Founded,
    logs: Mapping[str, NodeLog],
    happened: Sequence[Happened],
    *,
    start: float,
    end: float,
) -> tuple[Check, ...]:
    """What must hold of any run. ``start``, ``end``: of the run, by the machine's clock."""
    replay = _Replay(prepared, founded, start)
    told: list[tuple[float, str, Any]] = [(one.clock, "", one) for one in happened]
    for name, log in logs.items():
        told += ((clock, name, what) for clock, what in _told(log.seat.folder))
    for clock, who, what in sorted(told, key=lambda one: one[0]):
        replay.take(clock, who, what)
    left = {name: log.round for name, log in logs.items() if not log.life.down}
    finished = [name for name, log in logs.items() if log.ended() == "finished"]
    return replay.finish(end, left, finished)


class _Judging(Struct, frozen=True):
    """A payload is about to be judged; ``ok``: it was, and how; None: not yet."""

    effect: Apply
    digest: bytes
    ok: bool | None = None


def _told(folder: Path) -> Iterator[tuple[float, Any]]:
    """(the machine's clock, deed): where a payload was judged, the question knows the answer."""
    deeds = list(read_deeds(folder))
    judged: dict[tuple[NodeId, bytes], deque[Judged]] = defaultdict(deque)
    for deed in deeds:
        if isinstance(deed, Judged):
            judged[deed.member, deed.root].append(deed)
    for deed in deeds:
        if isinstance(deed, Applying):
            answers = judged[deed.effect.member, deed.effect.root]
            while answers and answers[0].clock < deed.clock:  # of a question before a kill
                answers.popleft()
            if answers:  # else it was killed before
                found = answers.popleft()
                yield deed.clock, _Judging(deed.effect, found.digest)
                yield found.clock, _Judging(deed.effect, found.digest, found.ok)
        elif not isinstance(deed, Judged):
            yield deed.clock, deed


class _Replay:
    """Feeds one run's checkers, in order."""

    def __init__(self, prepared: Prepared, founded: Founded, start: float) -> None:
        scenario, consortium = prepared.scenario, founded.consortium
        policy, roster = consortium.policy, consortium.roster
        self._ids = {member.name: member.id for member in roster.members.values()}
        self._payloads = founded.directory / PAYLOADS
        learner = prepared.learner(prepared.names[0])
        self._checkers = Checkers(
            roster,
            policy,
            consortium.pins_for(
                schema=learner.schema_digest,
                initial=learner.initial_digest,
                code=learner.code_digest,
                payload_bytes=learner.payload_bytes,
            ),
            attackers=[self._ids[name] for name in scenario.attackers],
            ball=ball(learner),
            late_s=LATE_S,
        )
        self._start = start
        slow = max([1.0, *(getattr(fault, "factor", 1.0) for fault in scenario.faults)])
        steps_s = max(prepared.steps.values()) * slow * max(scenario.step_ms.values()) / 1000
        # long enough: for any node to train, wait for the longest deadline, and mix
        self._long_s = 2 * (steps_s + policy.deadline_max_s) + LATE_S
        self._cut_at: float | None = None

    def take(self, clock: float, who: str, what: Any) -> None:
        at, checkers = clock - self._start, self._checkers
        if isinstance(what, Happened):
            self._fault(what, at)
            return
        me = self._ids[who]
        match what:
            case Noted():
                checkers.notice(me, what.note, at)
            case _Judging(ok=None):
                checkers.apply(me, what.effect, self._payload(what.digest), at)
            case _Judging(ok=ok):
                assert ok is not None
                checkers.applied(me, what.effect, self._payload(what.digest), at, ok=ok)
            case Mixing():
                checkers.mix(me, what.effect, at)
            case Rebasing():
                checkers.rebase(me, what.effect, at)
            case Recording():
                checkers.record(me, what.record, at)
            case Booted():
                checkers.boot(me, what.state)

    def finish(
        self, clock: float, rounds: Mapping[str, int], finished: Sequence[str]
    ) -> tuple[Check, ...]:
        at = clock - self._start
        if self._cut_at is not None:  # it lasted to the end
            self._checkers.healed(at, rounds, long=at - self._cut_at > self._long_s)
        self._checkers.end(at, [self._ids[name] for name in finished])
        return self._checkers.checks()

    def _payload(self, digest: bytes) -> bytes:
        return (self._payloads / digest.hex()).read_bytes()

    def _fault(self, happened: Happened, at: float) -> None:
        match happened.fault:
            case Partition() as partition:
                self._checkers.cut(partition, at, happened.rounds)
                self._cut_at = at
            case Heal():
                assert self._cut_at is not None
                long = at - self._cut_at > self._long_s
                self._checkers.healed(at, happened.rounds, long=long)
                self._cut_at = None
            case Restart(nodes=nodes, disk=disk) if disk != "own":
                for name in nodes:
                    self._checkers.restored(self._ids[name])
            case Resume(nodes=nodes):
                for name in nodes:
                    self._checkers.resumed(self._ids[name], at)
