"""What a node tells about itself: notices become JSON events, a log file, and lines for people.

An event is one flat JSON object; `docs` and the engines read the same ones. Nothing here decides
anything, and nothing secret passes through.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Final, Protocol

from node.errors import StorageError
from node.types.events import (
    Equivocation,
    Jumped,
    Linked,
    Notice,
    PhaseChanged,
    Publishing,
    Received,
    Reincarnated,
    Rejected,
    RoundDone,
    Unlinked,
    Waiting,
)
from node.types.roster import Roster

Event = dict[str, Any]
Sink = Callable[[Event], None]

LOG_BYTES_MAX: Final = 16 * 1024 * 1024  # then log.jsonl becomes log.1.jsonl
EVENTS_WAITING: Final = 50_000  # some 20 MB
LEAVING_S: Final = 5.0
REPEATS_SHOWN: Final = 3  # of one peer's one kind of fault; then at 4, 8, 16 …

Numbers = Mapping[str, Any]


class Printable(Protocol):
    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...


class Reporter:
    """Turns one node's notices into events and hands each to every sink, in order."""

    def __init__(self, name: str, roster: Roster, sinks: Iterable[Sink]) -> None:
        self.name = name
        self._roster = roster
        self._sinks = tuple(sinks)
        self._faults: Counter[tuple[bytes, str]] = Counter()

    def emit(self, event: str, *, at: float, **fields: Any) -> None:
        """One event. ``at``: seconds since the node's start."""
        line = {"event": event, "node": self.name, "at": round(at, 4), **fields}
        for sink in self._sinks:
            sink(line)

    def notice(self, notice: Notice, *, at: float, **more: Any) -> bool:
        """Tell of anything but a finished round, which waits for its measures.

        False where it was not worth telling: one more refusal like many before.
        """
        if isinstance(notice, Rejected) and not self._worth_telling(notice):
            return False
        kind, fields = self._describe(notice)
        self.emit(kind, at=at, **fields, **more)
        return True

    def round(self, done: RoundDone, *, at: float, measured: Numbers, traffic: Numbers) -> Event:
        """A mixed round with what was measured after it; returned as it was sent."""
        name = self._roster.name
        fields: Event = {
            "round": done.round,
            "accuracy": None,
            "own_accuracy": None,
            "auroc": None,
            "loss": done.loss,
            "train_loss": done.loss,
            "mixed": [name(source.member) for source in done.mixed],
            "missing": [[name(missing.member), missing.why] for missing in done.missing],
            "waited_s": done.waited_s,
            "half_edges": done.half_edges,
            "late": done.late,
            "alone": done.alone,
            "kept_own": done.kept_own,
            "own_weight": done.own_weight,
            "ages": [source.age for source in done.mixed],
            **traffic,
            **measured,
        }
        self.emit("round", at=at, **fields)
        return fields

    def _worth_telling(self, rejected: Rejected) -> bool:
        """The first few of a kind, then ever rarer: a flood of garbage must not fill the disk."""
        self._faults[rejected.peer, rejected.reason] += 1
        count = self._faults[rejected.peer, rejected.reason]
        return count <= REPEATS_SHOWN or count & (count - 1) == 0

    def _describe(self, notice: Notice) -> tuple[str, Event]:
        name = self._roster.name
        match notice:
            case PhaseChanged():
                return "phase", {"phase": notice.phase, "round": notice.round}
            case Waiting():
                lacking = [name(member) for member in notice.lacking]
                fields: Event = {"present": notice.present, "needed": notice.needed}
                return "waiting", {**fields, "lacking": lacking, "more": notice.more}
            case Linked():
                return "linked", {"peer": name(notice.member)}
            case Unlinked():
                return "unlinked", {"peer": name(notice.member), "why": notice.why}
            case Publishing():
                return "publishing", _version(notice)
            case Received():
                return "received", {"peer": name(notice.member), **_version(notice)}
            case Jumped():
                return "jumped", {
                    "from_round": notice.from_round,
                    "round": notice.to_round,
                    "start": notice.start,
                }
            case Rejected():
                count = self._faults[notice.peer, notice.reason]
                return "rejected", {
                    "peer": name(notice.peer),
                    "reason": notice.reason,
                    "detail": notice.detail,
                    "count": count,
                }
            case Equivocation():
                one, other = notice.one, notice.other
                return "equivocation", {
                    "peer": name(notice.member),
                    "proof": [[s.header.hex(), s.signature.hex()] for s in (one, other)],
                }
            case Reincarnated():
                return "reincarnated", {"incarnation": notice.incarnation, "why": notice.why}
            case RoundDone():
                return "mixed", {"round": notice.round}


def _version(notice: Publishing | Received) -> Event:
    return {
        "incarnation": notice.incarnation,
        "boot_id": notice.boot_id.hex(),
        "version": notice.version,
        "round": notice.round,
        "model": notice.model.hex(),
    }


class JsonLines:
    """A sink: one JSON line an event, flushed, so that a reader of the pipe sees it at once."""

    def __init__(self, stream: Printable) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()


class Background:
    """Hands events to another sink on a thread: whoever reads our output may be slow, or gone.

    At most ``EVENTS_WAITING`` wait; what is told beyond that is lost to this sink (log.jsonl has
    it). Use as a context: leaving it waits for the reader, but not for long.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._events: queue.Queue[Event | None] = queue.Queue(EVENTS_WAITING)
        self._thread = threading.Thread(target=self._work, name="grapevine-output", daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._events.put(None, timeout=LEAVING_S)
            self._thread.join(LEAVING_S)

    def __call__(self, event: Event) -> None:
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(event)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._sink(event)
            except OSError:
                return  # nobody reads any more; the node goes on


class LogFile:
    """A sink: log.jsonl in the state directory, bounded. Raises StorageError."""

    def __init__(self, path: Path, *, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._file: IO[str] | None = None

    def __call__(self, event: Event) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
            elif self._file.tell() >= self._bytes_max:
                self._file.close()
                self._path.replace(self._path.with_suffix(".1.jsonl"))
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
            self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """What could not be written was an error when it was; it is not one again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class PlainLines:
    """A sink for people without a terminal: a line for what an operator would want to know."""

    def __init__(self, stream: Printable) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        line = sentence(event)
        if line:
            self._stream.write(f"{event['node']}: {line}\n")
            self._stream.flush()


def sentence(event: Event) -> str:
    """An event in words; "" for one that people need not see."""
    match event["event"]:
        case "ready":
            return f"listening on {event['listen'] or 'nothing (dials out only)'}"
        case "waiting" if event["lacking"]:
            lacking = ", ".join(event["lacking"]) + (" and others" if event["more"] else "")
            return f"waiting to start: {event['present']} of {event['needed']}, lacking {lacking}"
        case "linked":
            return f"linked with {event['peer']}" + (
                f" over {via}" if (via := event.get("via")) else ""
            )
        case "broker" if event["up"]:
            return f"the broker {event['why']} is there"
        case "broker":
            return f"broker away: {event['why']}"
        case "unlinked":
            return f"lost {event['peer']}: {event['why']}"
        case "round":
            return _round_words(event)
        case "jumped":
            return f"jumped from round {event['from_round']} to {event['round']}: {event['start']}"
        case "rejected":
            detail = f"{event['reason']}: {event['detail']}"
            return f"refused input of {event['peer']} ({detail}), {event['count']} so far"
        case "equivocation":
            return f"{event['peer']} signed two different models as one version; quarantined"
        case "reincarnated":
            return f"began a new incarnation: {event['why']}"
        case "warning" | "stopping":
            return str(event["why"])
        case "failed":
            return f"ends: {event['why']}"
    return ""


def last_words(result: Event) -> str:
    """A result, as in result.json, in a line for people."""
    words = [f"{result['ended']} at round {result['rounds']}"]
    known = [figure for figure in ("accuracy", "auroc") if result.get(figure) is not None]
    words += [f"{figure} {result[figure]:.3f}" for figure in known]
    for missed in result["missed"]:
        if missed["rounds"] == 1:
            span, why = f"round {missed['last']}", missed["why"]
        else:  # each round has said its own reason
            span = f"{missed['rounds']} rounds, {missed['first']} to {missed['last']}"
            why = f"in the last of them: {missed['why']}"
        words.append(f"{missed['peer']} was missing in {span} ({why})")
    return "; ".join([*words, f"model in {result['model']}"])


def _round_words(event: Event) -> str:
    k, n = len(event["mixed"]), len(event["mixed"]) + len(event["missing"])
    words = [f"round {event['round']}"]
    if event["accuracy"] is not None:
        words.append(f"accuracy {event['accuracy']:.3f}")
    words.append(f"mixed {k} of {n}")
    words.append(f"sent {human_bytes(event['sent_bytes'])}")
    line = ", ".join(words)
    if event["missing"]:
        line += "; missing " + ", ".join(f"{name} ({why})" for name, why in event["missing"])
    if event["alone"]:
        line += "; this node is alone"
    if event["kept_own"]:
        line += f"; kept its own model: {event['kept_own']}"
    return line


def human_bytes(count: float) -> str:
    """1234567 → "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
