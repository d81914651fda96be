from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from node.errors import StorageError
from node.status.board import Board
from node.status.progress import (
    EVENTS_WAITING,
    Background,
    JsonLines,
    LogFile,
    PlainLines,
    Reporter,
    human_bytes,
    last_words,
)
from node.types.events import (
    Linked,
    Missing,
    Notice,
    PhaseChanged,
    Rejected,
    RoundDone,
    Source,
    Waiting,
)
from node.types.roster import Member, Roster

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def roster() -> Roster:
    members = {
        i: Member(id=i, name=name, node_key=i, samples=1, neighbours=())  # type: ignore[arg-type]
        for i, name in ((A, "a"), (B, "b"), (C, "[red]c"))
    }
    return Roster(consortium=bytes(32), epoch=0, members=members)  # type: ignore[arg-type]


def done(**changes: Any) -> RoundDone:
    fields: dict[str, Any] = {
        "round": 3,
        "mixed": (Source(B, 0.25, 0),),
        "missing": (Missing(C, "silent"),),
        "own_weight": 0.75,
        "loss": 0.5,
        "waited_s": 0.1,
        "half_edges": 0,
        "late": 0,
        "alone": False,
        "kept_own": "",
    }
    return RoundDone(**{**fields, **changes})


def test_a_round_names_whom_it_mixed_and_whom_it_missed() -> None:
    out = io.StringIO()
    Reporter("a", roster(), [JsonLines(out)]).round(
        done(), at=1.0, measured={"accuracy": 0.9, "loss": 0.4}, traffic={"sent_bytes": 10}
    )
    event = json.loads(out.getvalue())
    assert event["event"] == "round"
    assert event["node"] == "a"
    assert event["mixed"] == ["b"]
    assert event["missing"] == [["[red]c", "silent"]]
    assert (event["accuracy"], event["loss"], event["train_loss"]) == (0.9, 0.4, 0.5)


def test_a_flood_of_one_fault_is_told_ever_more_rarely() -> None:
    events: list[dict[str, Any]] = []
    reporter = Reporter("a", roster(), [events.append])
    for _ in range(1000):
        reporter.notice(Rejected(B, "malformed", "x"), at=0.0)
    assert [e["count"] for e in events] == [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]


def test_every_notice_has_its_event() -> None:
    assert {kind.__name__ for kind in get_args(Notice)} == {
        *("PhaseChanged", "Waiting", "Linked", "Unlinked", "Publishing", "Received", "RoundDone"),
        *("Jumped", "Rejected", "Equivocation", "Reincarnated"),
    }, "teach Reporter the new notice, then name it here"


def test_plain_lines_say_what_an_operator_asks() -> None:
    out = io.StringIO()
    reporter = Reporter("a", roster(), [PlainLines(out)])
    reporter.notice(PhaseChanged("training", 1), at=0.0)
    reporter.notice(Linked(B), at=0.0)
    reporter.notice(Waiting(1, 3, (B, C)), at=0.0)
    reporter.notice(Waiting(1, 99, (B, C), more=True), at=0.0)
    reporter.notice(Waiting(1, 99, (B, C), more=True), at=0.0)
    reporter.round(done(alone=True), at=1.0, measured={}, traffic={"sent_bytes": 1500})
    assert out.getvalue().splitlines() == [
        "a: linked with b",
        "a: waiting to start: 1 of 3, lacking b, [red]c",
        "a: waiting to start: 1 of 99, lacking b, [red]c and others",
        "a: waiting to start: 1 of 99, lacking b, [red]c and others",
        "a: round 3, mixed 1 of 2, sent 1.5 kB; missing [red]c (silent); this node is alone",
    ]


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl", bytes_max=1000)
    for n in range(200):
        log({"event": "linked", "n": n})
    log.close()
    assert all(path.stat().st_size <= 1100 for path in tmp_path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.1.jsonl", "log.jsonl"]
    last = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["n"] == 199


def test_a_log_that_cannot_be_written_stops_the_node(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        LogFile(tmp_path / "absent" / "log.jsonl")({"event": "linked"})


def test_the_board_shows_names_as_they_are() -> None:
    out = io.StringIO()
    board = Board(Console(file=out, width=100), title="heart")
    board({"event": "waiting", "node": "[red]c", "at": 0, "present": 1, "needed": 2})
    reporter = Reporter("a", roster(), [board])
    reporter.emit("ready", at=0.0, listen=None, rounds=10)
    reporter.round(done(), at=1.0, measured={"accuracy": 0.9}, traffic={"sent_bytes": 1500})
    console = Console(file=io.StringIO(), width=120)
    console.print(board.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]c" in text
    assert "3/10" in text
    assert "1 of 2" in text


def test_a_reader_that_stands_still_does_not_hold_the_node() -> None:
    going_on, got = threading.Event(), list[Any]()

    def slow(event: dict[str, Any]) -> None:
        going_on.wait()
        got.append(event)

    with Background(slow) as sink:
        for n in range(EVENTS_WAITING + 1000):
            sink({"n": n})
        going_on.set()
    assert EVENTS_WAITING <= len(got) <= EVENTS_WAITING + 1
    assert [e["n"] for e in got] == list(range(len(got)))


def test_a_reader_that_is_gone_does_not_end_the_node() -> None:
    def gone(_: dict[str, Any]) -> None:
        raise BrokenPipeError

    with Background(gone) as sink:
        for n in range(10):
            sink({"n": n})


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")]
)
def test_bytes_in_words(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_the_last_words_say_of_which_round_a_reason_is() -> None:
    found = {"ended": "finished", "rounds": 40, "model": "m"}
    once = {"peer": "b", "rounds": 1, "first": 27, "last": 27, "why": "it left"}
    often = {"peer": "c", "rounds": 9, "first": 3, "last": 30, "why": "connection lost"}
    assert last_words({**found, "missed": [once, often]}) == (
        "finished at round 40; b was missing in round 27 (it left); "
        "c was missing in 9 rounds, 3 to 30 (in the last of them: connection lost); model in m"
    )
