"""The journal: what must outlive the process between two checkpoints, and the log people read.

SQLite in WAL mode with synchronous=FULL: a batch is one transaction, durable when ``write``
returns. The record tables hold the newest per member, so the file stays small; each row carries a
digest, since SQLite does not notice a flipped bit.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from blake3 import blake3

from node.errors import LocalProtocolError, StorageError
from node.types.events import (
    CoreState,
    Incarnation,
    Notice,
    Quarantine,
    Receipt,
    Record,
    Reserved,
)
from node.types.messages import Header, SignedHeader

VERSION: Final = 2
# A notice has some 300 bytes: the log stays below 30 MB however many bad frames a peer sends.
NOTES_KEPT: Final = 100_000
NOTES_PENDING: Final = 10_000

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, member BLOB NOT NULL, body BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (kind, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL);
PRAGMA user_version = {VERSION};
COMMIT;
"""
_UPSERT: Final = "INSERT OR REPLACE INTO records (kind, member, body, digest) VALUES (?, ?, ?, ?)"
_KEEP_FIRST: Final = (
    "INSERT OR IGNORE INTO records (kind, member, body, digest) VALUES (?, ?, ?, ?)"
)
_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (Incarnation, Reserved, Receipt, Quarantine)
}


class Journal:
    """One node's journal. ``note`` may be called from any thread, the rest from one at a time.

    After the first StorageError every later write raises it again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._notes: deque[tuple[float, str, str]] = deque()
        self._guard = threading.Lock()
        self._broken: StorageError | None = None
        self.notes_dropped = 0
        self._incarnation = 0
        self._reserved = -1
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._failed(error) from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def write(self, records: Sequence[tuple[int, Record]]) -> None:
        """Make these records and the notes so far durable, in one transaction. Raises StorageError.

        The ids are the caller's own; the order of the records is kept.
        """
        if self._broken is not None:
            raise self._broken
        with self._guard:
            notes = list(self._notes)
            self._notes.clear()
        if not records and not notes:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for _, record in records:
                self._put(record)
            if notes:
                self._put_notes(notes)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._broken = self._failed(error)
            raise self._broken from None
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def note(self, notice: Notice, at: float) -> None:
        """Add to the log, committed with the next batch. ``at``: wall clock, s since 1970."""
        row = (at, type(notice).__name__, msgspec.json.encode(_plain(notice)).decode())
        with self._guard:
            if len(self._notes) >= NOTES_PENDING:
                self.notes_dropped += 1  # a flood from outside must not eat memory
            else:
                self._notes.append(row)

    def notes(self, *, last: int = 1000) -> list[tuple[float, str, dict[str, Any]]]:
        """The newest committed notes, oldest first: (at, kind, fields)."""
        rows = self._query("SELECT at, kind, body FROM notes ORDER BY id DESC LIMIT ?", (last,))
        return [(at, kind, msgspec.json.decode(body)) for at, kind, body in reversed(rows)]

    def recover(self, state: CoreState | None = None) -> CoreState:
        """Lay what the journal knows over a checkpoint's state. Raises StorageError if damaged.

        Highest incarnation and version, newest floor per member, every quarantine: never less
        than the checkpoint has, so that nothing is said twice and no replay is let in.
        """
        state = state if state is not None else CoreState()
        incarnation, version = state.incarnation, state.version
        floors, quarantined = dict(state.floors), dict(state.quarantined)
        for record in self._records():
            match record:
                case Incarnation():
                    incarnation = max(incarnation, record.incarnation)
                case Reserved():
                    incarnation = max(incarnation, record.incarnation)
                    version = max(version, record.version)
                case Receipt():
                    known = floors.get(record.member)
                    if known is None or self._order(record.signed) >= self._order(known):
                        floors[record.member] = record.signed
                case Quarantine():
                    quarantined.setdefault(record.member, record)
        return msgspec.structs.replace(
            state,
            incarnation=incarnation,
            version=version,
            floors=dict(sorted(floors.items())),
            quarantined=dict(sorted(quarantined.items())),
        )

    def close(self) -> None:
        """Commit the notes that are left and close. Raises StorageError where that fails."""
        try:
            if self._broken is None:
                self.write([])
        finally:
            self._db.close()

    def _prepare(self) -> None:
        # FULL: fsync of the log before a commit returns; losing power then loses nothing
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "trusted_schema = OFF"):
            self._query(f"PRAGMA {pragma}")
        verdict = self._query("PRAGMA quick_check(1)")
        if verdict != [("ok",)]:
            raise self._failed(str(verdict[0][0]) if verdict else "damaged")
        found = self._query("PRAGMA user_version")[0][0]
        if found not in (0, VERSION):
            raise self._failed(f"written by another version ({found}, expected {VERSION})")
        try:
            if found == 0:
                self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise self._failed(error) from None
        for record in self._records():
            if isinstance(record, Incarnation):
                self._incarnation = record.incarnation
            elif isinstance(record, Reserved):
                self._reserved = record.version

    def _put(self, record: Record) -> None:
        statement, member = _UPSERT, b""
        match record:
            case Incarnation():
                if record.incarnation < self._incarnation:
                    return
                self._incarnation = record.incarnation
            case Reserved():
                if record.version < self._reserved:
                    return
                self._reserved = record.version
            case Receipt():
                member = record.member
            case Quarantine():
                statement, member = _KEEP_FIRST, record.member
            case _:
                raise LocalProtocolError(f"a {type(record).__name__} is no record of the journal")
        kind, body = type(record).__name__, msgspec.msgpack.encode(record)
        self._db.execute(statement, (kind, member, body, _digest(kind, member, body)))

    def _put_notes(self, notes: list[tuple[float, str, str]]) -> None:
        self._db.executemany("INSERT INTO notes (at, kind, body) VALUES (?, ?, ?)", notes)
        newest = self._db.execute("SELECT max(id) FROM notes").fetchone()[0]
        self._db.execute("DELETE FROM notes WHERE id <= ?", (newest - NOTES_KEPT,))

    def _records(self) -> list[Record]:
        rows = self._query("SELECT kind, member, body, digest FROM records ORDER BY kind, member")
        found: list[Record] = []
        for kind, member, body, digest in rows:
            if digest != _digest(kind, member, body) or kind not in _KINDS:
                raise self._failed(f"a record of kind {kind} is damaged")
            try:
                found.append(msgspec.msgpack.decode(body, type=_KINDS[kind]))
            except msgspec.MsgspecError as error:
                raise self._failed(f"a record of kind {kind}: {error}") from None
        return found

    def _order(self, signed: SignedHeader) -> tuple[int, int, int]:
        try:
            header = msgspec.msgpack.decode(signed.header, type=Header)
        except msgspec.MsgspecError as error:
            raise self._failed(f"a receipt's header: {error}") from None
        return header.incarnation, header.version, header.mixed_round

    def _query(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: sqlite3.Error | str) -> StorageError:
        return StorageError(f"journal {self._path}: {error}")


def _digest(kind: str, member: bytes, body: bytes) -> bytes:
    parts = msgspec.msgpack.encode((kind, member, body))
    return blake3(parts).digest(16)


def _plain(notice: Notice) -> Any:
    """The notice as JSON's types, ids and digests in hexadecimal."""
    return _hexed(msgspec.to_builtins(notice, builtin_types=(bytes,)))


def _hexed(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {key: _hexed(one) for key, one in value.items()}
        case list() | tuple():
            return [_hexed(one) for one in value]
        case _:
            return value
