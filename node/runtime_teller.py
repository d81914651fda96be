"""What a running node tells: notices, rounds with their figures, its status, its result."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from node.learning.metrics import Metrics
from node.runtime_links import Links
from node.runtime_parts import Parts
from node.runtime_result import missed, round_figures
from node.runtime_worker import Worker
from node.status.progress import Reporter, Sink
from node.types.events import Jumped, Linked, Notice, RoundDone


class Teller:
    """One node's voice. Lives in the loop; measures models in the learner's thread, ``work``."""

    def __init__(
        self,
        parts: Parts,
        sinks: Iterable[Sink],
        *,
        work: Worker,
        links: Links,
        at: Callable[[], float],
    ) -> None:
        self._parts = parts
        self._reporter = Reporter(parts.me.name, parts.consortium.roster, sinks)
        self._work = work
        self._links = links
        self._at = at  # seconds since the node's start
        self._figures: dict[str, Any] = {}  # of the last round measured
        self._jumps = 0
        self._broker: tuple[bool, str] | None = None  # whether it is there, and which or why not

    def say(self, event: str, **fields: Any) -> None:
        self._reporter.emit(event, at=self._at(), **fields)

    def ready(self) -> None:
        """The first words: where the node listens, what it resumes, what looks odd."""
        parts = self._parts
        self.say(
            "ready",
            listen=parts.settings.listen,
            pid=os.getpid(),
            rounds=parts.consortium.policy.last_round,
            resumed=parts.resumed,
            round=parts.core.round,
        )
        for warning in parts.warnings:
            self.say("warning", why=warning)

    def note(self, notice: Notice) -> None:
        if isinstance(notice, RoundDone):
            self._parts.journal.note(notice, time.time())
            self._round(notice)
            return
        if isinstance(notice, Jumped):
            self._jumps += 1
        via = self._links.via(notice.member) if isinstance(notice, Linked) else ""
        told = self._reporter.notice(notice, at=self._at(), **({"via": via} if via else {}))
        if told:  # of a flood of refusals the journal as well keeps the first few
            self._parts.journal.note(notice, time.time())

    def broker(self, up: bool, why: str) -> None:
        """The broker came or went; said once, however often it is tried."""
        if self._broker is None or self._broker != (up, why):
            self._broker = (up, why)
            self.say("broker", up=up, why=why)

    def _round(self, done: RoundDone) -> None:
        """Measure the mixed model, before the learner's thread goes on to the next round."""
        learner, policy = self._parts.learner, self._parts.consortium.policy
        if done.round in policy.candidates:
            self._work.run(lambda: learner.keep_candidate(done.round))
        at, traffic = self._at(), self._traffic()

        def tell(metrics: Metrics | None) -> None:
            measured = {} if metrics is None else round_figures(metrics)
            self._figures = measured or self._figures
            self._reporter.round(done, at=at, measured=measured, traffic=traffic)

        if done.round % learner.settings.evaluate_every == 0 or done.round >= policy.last_round:
            self._work.run(learner.evaluate, tell)
        else:
            tell(None)

    def status(self) -> dict[str, Any]:
        """What `grapevine status` shows."""
        parts, core = self._parts, self._parts.core
        roster = parts.consortium.roster
        return {
            "running": True,
            "name": parts.me.name,
            "pid": os.getpid(),
            "phase": core.phase.value,
            "round": core.round,
            "rounds": parts.consortium.policy.last_round,
            "neighbours": len(parts.me.neighbours),
            "linked": [roster.name(peer.id) for peer in core.links.linked()],
            "via": {roster.name(p.id): self._links.via(p.id) for p in core.links.linked()},
            "broker": None
            if self._broker is None
            else {"up": self._broker[0], "why": self._broker[1]},
            "accuracy": self._figures.get("accuracy"),
            "rejections": self._rejections(),
            "refused_connections": dict(sorted(self._links.refused.items())),
            **self._traffic(),
        }

    def _traffic(self) -> dict[str, int]:
        return {
            "sent_bytes": self._links.sent_bytes,
            "received_bytes": self._links.received_bytes,
        }

    def _rejections(self) -> dict[str, int]:
        """What members sent that was not taken, by reason: frames, and links broken off."""
        counted = Counter(self._parts.core.context.rejections)
        counted.update(self._links.broken_off)
        return dict(sorted(counted.items()))

    def result(self, ended: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Everything of scenarios' NodeRun; bytes, rejections and jumps are this process's own."""
        parts, core = self._parts, self._parts.core
        return {
            "name": parts.me.name,
            "samples": parts.me.samples,
            "ended": ended,
            "rounds": core.round,
            **figures,
            "missed": missed(core.snapshot(), parts.consortium.roster),
            **self._traffic(),
            "rejections": self._rejections(),
            "half_edges": core.half_edges,
            "late": core.late,
            "jumped": self._jumps,
            "resumed": parts.resumed,
            "model": str(parts.directory.model.resolve()),
        }
