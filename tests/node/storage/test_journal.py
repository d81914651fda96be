"""The journal: what was said is known after any death, and damage is seen."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import LocalProtocolError, StorageError
from node.storage import journal as module
from node.storage.journal import Journal
from node.types.events import (
    Checkpoint,
    CoreState,
    Incarnation,
    Linked,
    Quarantine,
    Receipt,
    Rejected,
    Reserved,
    RoundDone,
    Source,
)
from node.types.messages import Header, SignedHeader

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
BOOT = b"o" * 16


def signed(member: bytes, version: int, incarnation: int = 5) -> SignedHeader:
    header = Header(
        consortium=bytes(32),
        epoch=0,
        training=bytes(32),
        sender=member,
        key_version=0,
        incarnation=incarnation,
        boot_id=BOOT,
        round=version,
        kind=0,
        version=version,
        base=None,
        codec="full",
        length=4,
        root=bytes(32),
        model=bytes(32),
        mixed_round=0,
        counted=(),
    )
    return SignedHeader(msgspec.msgpack.encode(header), bytes(64))


def published(version: int, incarnation: int = 5) -> Reserved:
    return Reserved(incarnation, BOOT, version)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


def test_records_come_back_as_the_highest_and_newest(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    journal.write([(1, Incarnation(5, BOOT)), (2, published(1)), (3, Receipt(A, signed(A, 1)))])
    journal.write([(4, Receipt(A, signed(A, 2))), (5, Receipt(B, signed(B, 9))), (6, published(2))])
    proof = Quarantine(C, signed(C, 1), signed(C, 1))
    journal.write([(7, proof), (8, Quarantine(C, signed(C, 2), signed(C, 2)))])
    journal.close()
    again = Journal(tmp_path / "journal.db")
    state = again.recover()
    assert state == CoreState(
        incarnation=5,
        version=2,
        floors={A: signed(A, 2), B: signed(B, 9)},
        quarantined={C: proof},
    )
    assert list(state.floors) == [A, B]
    again.close()


def test_recover_lays_over_a_checkpoint_and_never_takes_away(journal):
    journal.write([(1, Incarnation(5, BOOT)), (2, published(3))])
    journal.write([(3, Receipt(A, signed(A, 4))), (4, Receipt(B, signed(B, 1)))])
    ahead = Quarantine(C, signed(C, 1), signed(C, 1))
    checkpoint = CoreState(
        round=2,
        incarnation=4,
        version=8,
        floors={A: signed(A, 3), B: signed(B, 0, incarnation=6), C: signed(C, 1)},
        quarantined={C: ahead},
        half_edges=3,
    )
    state = journal.recover(checkpoint)
    assert (state.incarnation, state.version, state.round, state.half_edges) == (5, 8, 2, 3)
    assert state.floors == {A: signed(A, 4), B: signed(B, 0, incarnation=6), C: signed(C, 1)}
    assert state.quarantined == {C: ahead}


def test_an_older_incarnation_or_version_never_replaces_a_newer(journal):
    journal.write([(1, Incarnation(9, BOOT)), (2, published(7, incarnation=9))])
    journal.write([(3, Incarnation(3, BOOT)), (4, published(2, incarnation=3))])
    assert (journal.recover().incarnation, journal.recover().version) == (9, 7)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_the_highest_version_wins_in_any_order(tmp_path_factory, versions):
    path = tmp_path_factory.mktemp("j") / "journal.db"
    journal = Journal(path)
    for version in versions:
        journal.write([(0, published(version))])
    assert journal.recover().version == max(versions)
    journal.close()


def test_a_batch_is_one_transaction(tmp_path, journal):
    seen = []
    journal._db.set_trace_callback(seen.append)
    journal.note(Linked(A), 1.0)
    journal.write([(n, published(n)) for n in range(20)])
    assert seen.count("BEGIN IMMEDIATE") == seen.count("COMMIT") == 1
    assert seen[0] == "BEGIN IMMEDIATE" and seen[-1] == "COMMIT"
    seen.clear()
    journal.write([])
    assert seen == []


def test_every_commit_is_synced_before_write_returns(journal):
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_checkpoint_is_no_record_and_the_batch_with_it_is_not_written(journal):
    with pytest.raises(LocalProtocolError):
        journal.write([(1, published(1)), (2, Checkpoint(CoreState()))])
    assert journal.recover().version == 0
    journal.write([(1, published(2))])  # the journal itself is sound
    assert journal.recover().version == 2


def test_a_torn_log_recovers_to_a_batch_that_was_whole(tmp_path):
    source = tmp_path / "journal.db"
    journal = Journal(source)
    whole = []
    for n in range(1, 8):
        journal.write([(n, published(n)), (n, Receipt(A, signed(A, n)))])
        whole.append(source.with_name("journal.db-wal").stat().st_size)
    torn = tmp_path / "torn"
    torn.mkdir()
    log = source.with_name("journal.db-wal").read_bytes()
    assert len(log) == whole[-1]
    edges = {size - less for size in whole[1:] for less in (0, 1)}
    for end in sorted({*range(whole[0], len(log), 1009), *edges}):
        shutil.copy(source, torn / "journal.db")
        (torn / "journal.db-wal").write_bytes(log[:end])
        (torn / "journal.db-shm").unlink(missing_ok=True)
        again = Journal(torn / "journal.db")
        state = again.recover()
        again.close()
        expected = sum(size <= end for size in whole)
        assert state.version == expected
        assert state.floors == {A: signed(A, expected)}, "both records of a batch, or neither"
    journal.close()


def test_a_flipped_bit_in_a_record_is_seen(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.write([(1, Receipt(A, signed(A, 3)))])
    journal.close()
    whole = path.read_bytes()
    at = whole.index(b"full") + 1
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(StorageError, match=r"journal .*: a record of kind Receipt is damaged"):
        Journal(path)


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 300, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_file_that_is_no_journal_is_one_line(tmp_path, content):
    path = tmp_path / "journal.db"
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Journal(path)
    assert str(caught.value).startswith(f"journal {path}: ") and "\n" not in str(caught.value)


def test_a_damaged_page_is_seen_on_opening(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.write([(n, Receipt(bytes([n]) * 32, signed(A, n))) for n in range(200)])
    journal.close()
    whole = bytearray(path.read_bytes())
    whole[4096 * 5 : 4096 * 6] = b"\x99" * 4096
    path.write_bytes(whole)
    with pytest.raises(StorageError, match="journal"):
        Journal(path)


def test_a_journal_of_another_version_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StorageError, match=r"written by another version \(99, expected 2\)"):
        Journal(path)


def test_a_full_disk_is_an_error_and_stays_one(tmp_path):
    script = f"""
from pathlib import Path
from node.errors import StorageError
from node.storage.journal import Journal
from node.types.events import Receipt, Reserved
from node.types.messages import SignedHeader
journal = Journal(Path({str(tmp_path)!r}) / "journal.db")
journal.write([(0, Reserved(1, b"o" * 16, 1))])
large = [(n, Receipt(bytes([n]) * 32, SignedHeader(bytes(30000), b"s" * 64))) for n in range(200)]
for attempt in (large, [(9, Reserved(1, b"o" * 16, 2))]):
    try: journal.write(attempt)
    except StorageError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == 2 and said[0] == said[1], "the second is refused, not tried"
    assert "disk" in said[0]
    journal = Journal(tmp_path / "journal.db")
    assert journal.recover() == CoreState(incarnation=1, version=1)
    journal.close()


def test_notes_are_for_people_and_committed_with_the_batch(tmp_path):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    done = RoundDone(3, (Source(A, 0.25, 1),), (), 0.75, None, 0.1, 0, 0, False, "")
    journal.note(done, 12.5)
    assert journal.notes() == []
    journal.write([(1, published(1))])
    journal.note(Linked(B), 13.0)
    journal.close()  # the last ones too
    again = Journal(path)
    (at, kind, fields), linked = again.notes()
    assert (at, kind) == (12.5, "RoundDone") and linked[1] == "Linked"
    assert fields["mixed"][0]["member"] == A.hex() and fields["loss"] is None
    assert json.loads(json.dumps(fields)) == fields
    again.close()


def test_a_flood_of_notes_is_bounded_in_memory_and_on_disk(journal, monkeypatch):
    monkeypatch.setattr(module, "NOTES_PENDING", 10)
    monkeypatch.setattr(module, "NOTES_KEPT", 25)
    for n in range(12):
        journal.note(Rejected(A, "malformed", str(n)), float(n))
    assert journal.notes_dropped == 2
    for batch in range(5):
        journal.write([])
        for n in range(10):
            journal.note(Rejected(A, "malformed", f"{batch}.{n}"), 0.0)
    journal.write([])
    kept = journal.notes()
    assert len(kept) == 25 and kept[-1][2]["detail"] == "4.9"
