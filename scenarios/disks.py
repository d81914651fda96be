"""What a scenario does to the disk of a real node: full, as an old backup has it, or lost.

The node's own storage code meets all of it: a full disk is one whose writes the kernel refuses.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Final

from crypto.keys import MEMBER_FILE, NODE_FILE
from node.errors import StorageError
from node.storage.directory import StateDirectory
from node.storage.files import TEMPORARY

FULL: Final = Path("/dev/full")  # every write to it fails with ENOSPC
_KEYS: Final = (MEMBER_FILE, NODE_FILE)
_JOURNAL: Final = ("journal.db", "journal.db-wal", "journal.db-shm")
# A backup of a node has its journal as one file, and neither its keys nor what a process holds.
_LEFT_OUT: Final = (*_KEYS, *_JOURNAL, "lock", "control.sock", "spool", "log.jsonl", "log.1.jsonl")
# SQLite reads these two through their descriptors; all that it writes goes to its log first.
_READ: Final = ("journal.db", "journal.db-shm", "lock")


def can_be_full() -> bool:
    """Whether this machine has what FullDisk needs."""
    return sys.platform == "linux" and FULL.exists()


class FullDisk:
    """Makes the disk of this very process full: what it holds open for writing leads to /dev/full.

    The kernel then refuses each write with ENOSPC, as it does on a full file system.
    """

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._kept: dict[int, int] = {}  # descriptor -> what it was

    def set(self, full: bool) -> None:
        """Full from now on, or with room again. Called twice it does nothing more.

        Raises StorageError where that fails.
        """
        try:
            if full and not self._kept:
                self._fill()
            elif not full:
                self._make_room()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"the disk cannot be made full: {error}") from None

    def _fill(self) -> None:
        # what is in SQLite's log goes to the database first: it would be read back from /dev/full
        with contextlib.closing(sqlite3.connect(self._directory.journal)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found = self._written()
        nowhere = os.open(FULL, os.O_RDWR | os.O_CLOEXEC)
        for handle in found:
            self._kept[handle] = os.dup(handle)
            os.dup2(nowhere, handle, inheritable=False)
        os.close(nowhere)

    def _make_room(self) -> None:
        for handle, before in self._kept.items():
            os.dup2(before, handle, inheritable=False)
            os.close(before)
        self._kept.clear()

    def _written(self) -> list[int]:
        """Descriptors of files in the state directory that are open for writing."""
        found = []
        for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
            try:
                path = Path(os.readlink(f"/proc/self/fd/{entry}"))  # noqa: PTH115 - as above
                how = fcntl.fcntl(int(entry), fcntl.F_GETFL) & os.O_ACCMODE
            except OSError:
                continue  # the listing's own
            inside = path.is_relative_to(self._directory.path.resolve())
            if inside and path.name not in _READ and how != os.O_RDONLY:
                found.append(int(entry))
        return found


def keep_backup(directory: StateDirectory, backups: Path) -> None:
    """Add the disk as it is now to ``backups``, as number 1, 2, 3 …

    Called between two commits, it holds what a power cut would have left. Those that no restore
    will ask for any more are dropped: the one at half of all grows with their number. Other threads
    may write meanwhile: files come and go under temporary names, and under no others.
    """
    numbers = _numbers(backups)
    number = numbers[-1] + 1 if numbers else 1
    draft = backups / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for path in directory.path.iterdir():
        if path.name in _LEFT_OUT or path.name.startswith(TEMPORARY):
            continue
        if path.is_dir():
            # linked, not copied: checkpoints and candidates are replaced, never written again
            unfinished = shutil.ignore_patterns(f"{TEMPORARY}*")
            shutil.copytree(path, draft / path.name, copy_function=os.link, ignore=unfinished)
        else:
            shutil.copyfile(path, draft / path.name)
    with contextlib.closing(sqlite3.connect(directory.journal)) as journal:
        journal.execute("VACUUM INTO ?", (str(draft / directory.journal.name),))
    draft.rename(backups / f"{number:06d}")
    for old in numbers:
        if old <= number // 2:
            shutil.rmtree(backups / f"{old:06d}")


def restore(state: Path, backups: Path, which: str) -> None:
    """Make ``state`` what ``which`` says: "backup", as of half the checkpoints ago; "none", keys.

    The keys stay as they are. Without a backup nothing else does. The node must not run.
    """
    for path in state.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _KEYS:
            path.unlink()
    numbers = _numbers(backups)
    if which == "backup" and numbers:
        chosen = backups / f"{numbers[-1] // 2 + 1:06d}"
        shutil.copytree(chosen, state, dirs_exist_ok=True)
    shutil.rmtree(backups, ignore_errors=True)


def _numbers(backups: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in backups.iterdir() if path.name.isdigit())
    except FileNotFoundError:
        return []
