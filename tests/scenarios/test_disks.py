from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crypto.identity import NodeId
from node.errors import StorageError
from node.status.progress import LogFile
from node.storage.directory import StateDirectory
from node.storage.files import TEMPORARY
from node.storage.journal import Journal
from node.types.events import Incarnation, Rejected
from scenarios.disks import FullDisk, can_be_full, keep_backup, restore

needs_dev_full = pytest.mark.skipif(not can_be_full(), reason="needs /dev/full")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[StateDirectory]:
    (tmp_path / "state").mkdir()
    for key in ("member.key", "node.key"):
        (tmp_path / "state" / key).write_text("a key")
    with StateDirectory(tmp_path / "state") as made:
        yield made


def lived(directory: StateDirectory, number: int) -> None:
    """As a node leaves it after its round ``number``: checkpoints of that and the two before."""
    journal = Journal(directory.journal)
    journal.write([(number, Incarnation(number, b"boot"))])
    journal.close()
    for path in directory.checkpoints.iterdir():
        path.unlink()
    for round_ in range(max(1, number - 2), number + 1):
        (directory.checkpoints / f"round-{round_}").write_text(str(round_))
    (directory.path / "run.json").write_text(str(number))
    (directory.path / "log.jsonl").write_text("words\n" * number)


def incarnation(directory: StateDirectory) -> int:
    journal = Journal(directory.journal)
    try:
        return journal.recover().incarnation
    finally:
        journal.close()


@needs_dev_full
def test_a_full_disk_refuses_the_journals_and_the_logs_next_write(
    directory: StateDirectory,
) -> None:
    journal, log = Journal(directory.journal), LogFile(directory.path / "log.jsonl")
    journal.write([(1, Incarnation(1, b"boot"))])
    log({"event": "one"})
    disk = FullDisk(directory)
    disk.set(True)
    disk.set(True)
    with pytest.raises(StorageError, match="database or disk is full"):
        journal.write([(2, Incarnation(2, b"boot"))])
    with pytest.raises(StorageError, match="No space left on device"):
        log({"event": "two"})
    log.close()  # what could not be written then is not an error again
    journal.close()
    disk.set(False)
    assert incarnation(directory) == 1  # what was durable before is
    assert (directory.path / "log.jsonl").read_text() == '{"event": "one"}\n'


@needs_dev_full
def test_room_that_was_made_in_time_lets_a_node_go_on(directory: StateDirectory) -> None:
    journal = Journal(directory.journal)
    for _ in range(9000):
        journal.note(Rejected(NodeId(bytes(32)), "reason", "detail " * 30), 0.0)
    # one commit of 3 MB: more than SQLite keeps in memory, less than it moves out of its log
    journal.write([(1, Incarnation(1, b"boot"))])
    disk = FullDisk(directory)
    disk.set(True)
    assert len(journal.notes(last=9000)) == 9000  # what is on a full disk can be read
    disk.set(False)
    journal.write([(2, Incarnation(2, b"boot"))])
    disk.set(True)
    with pytest.raises(StorageError, match="database or disk is full"):
        journal.write([(3, Incarnation(3, b"boot"))])
    journal.close()
    assert incarnation(directory) == 2


def test_an_old_backup_is_the_disk_of_half_the_checkpoints_ago(
    directory: StateDirectory, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    for number in range(1, 21):
        lived(directory, number)
        keep_backup(directory, backups)
    # nothing that a restore might still ask for is dropped, and little else is kept
    assert sorted(path.name for path in backups.iterdir()) == [f"{n:06d}" for n in range(11, 21)]
    directory.close()
    restore(directory.path, backups, "backup")
    assert incarnation(directory) == 11
    assert sorted(p.name for p in directory.checkpoints.iterdir()) == [
        "round-10",
        "round-11",
        "round-9",
    ]
    assert (directory.path / "run.json").read_text() == "11"
    assert (directory.path / "member.key").read_text() == "a key"
    assert not (directory.path / "log.jsonl").exists()
    assert not backups.exists()  # the next one is counted from here
    # the restored disk is a copy: what the node now writes does not change any backup
    lived(directory, 12)
    keep_backup(directory, backups)
    assert [path.name for path in backups.iterdir()] == ["000001"]


def test_a_file_that_another_thread_is_still_writing_is_not_yet_on_the_disk(
    directory: StateDirectory, tmp_path: Path
) -> None:
    """The learner writes its model while the disk's thread keeps the last checkpoint's backup: what
    was listed under a temporary name is gone when it is to be copied. A link to nowhere is both.
    """
    lived(directory, 1)
    for folder in (directory.path, directory.candidates):
        (folder / f"{TEMPORARY}7-model").symlink_to("renamed")
        (folder / "whole").write_text("kept")
    keep_backup(directory, tmp_path / "backups")
    kept = tmp_path / "backups" / "000001"
    assert sorted(path.name for path in kept.iterdir()) == [
        "candidates",
        "checkpoints",
        "journal.db",
        "run.json",
        "whole",
    ]
    assert [path.name for path in (kept / "candidates").iterdir()] == ["whole"]


@pytest.mark.parametrize("which", ["none", "backup"])
def test_a_lost_disk_keeps_the_keys_alone_and_so_does_one_without_a_backup(
    directory: StateDirectory, tmp_path: Path, which: str
) -> None:
    lived(directory, 3)
    if which == "none":
        keep_backup(directory, tmp_path / "backups")
    directory.close()
    restore(directory.path, tmp_path / "backups", which)
    assert sorted(path.name for path in directory.path.iterdir()) == ["member.key", "node.key"]
