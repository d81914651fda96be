"""The disk's thread: in order, in groups, and one failure is the last word."""

from __future__ import annotations

import threading

import pytest

from node.errors import LocalProtocolError, StorageError
from node.storage.journal import Journal
from node.storage.writer import Writer
from node.types.events import Checkpoint, CoreState, Reserved


def published(version: int) -> Reserved:
    return Reserved(1, b"o" * 16, version)


class Bench:
    def __init__(self, path) -> None:
        self.journal = Journal(path / "journal.db")
        self.told: list[object] = []
        self.writer = Writer(
            self.journal,
            call_soon=lambda function, argument: function(argument),
            persisted=self.told.append,
            failed=self.told.append,
        )

    def hold(self) -> threading.Event:
        """Keep the thread busy until the event is set."""
        begun, go_on = threading.Event(), threading.Event()
        self.writer.run(lambda: begun.set() or go_on.wait())
        begun.wait()
        return go_on


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


def test_ids_come_back_in_order_after_what_they_stand_for(bench, monkeypatch):
    write = bench.journal.write
    monkeypatch.setattr(
        bench.journal, "write", lambda batch: bench.told.append(len(batch)) or write(batch)
    )
    go_on = bench.hold()
    for number in (1, 2, 3):
        bench.writer.submit(number, published(number))
    bench.writer.submit(4, Checkpoint(CoreState()), lambda: bench.told.append("saved"))
    bench.writer.submit(5, published(4))
    go_on.set()
    bench.writer.close()
    written = [one for one in bench.told if one != 0]
    assert bench.told[0] == 0, "nothing stood before the work that held the thread"
    assert written == [3, 1, 2, 3, "saved", 4, 1, 5], "the group, then what it allows to say"
    assert bench.journal.recover().version == 4


def test_a_failed_save_is_told_once_and_nothing_later_is_persisted(bench):
    def full():
        raise StorageError("checkpoints: no space left")

    go_on = bench.hold()
    bench.writer.submit(1, published(1))
    bench.writer.submit(2, Checkpoint(CoreState()), full)
    bench.writer.submit(3, published(3))
    go_on.set()
    with pytest.raises(StorageError, match="no space left"):
        bench.writer.close()
    assert [str(one) for one in bench.told] == ["1", "checkpoints: no space left"]
    assert bench.journal.recover().version == 1
    for call in (lambda: bench.writer.submit(4, published(4)), bench.writer.close):
        with pytest.raises(StorageError, match="no space left"):
            call()
    assert len(bench.told) == 2


def test_what_was_queued_before_the_failure_was_known_is_refused_too(bench):
    submitted = threading.Event()

    def fail():
        bench.writer.submit(1, published(1))  # lands behind the group in hand
        submitted.set()
        raise StorageError("full")

    bench.writer.run(fail)
    submitted.wait()
    with pytest.raises(StorageError, match="full"):
        bench.writer.close()
    assert [str(one) for one in bench.told] == ["full"]
    assert bench.journal.recover().version == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_whatever_goes_wrong_on_the_thread_is_told(bench, error):
    def fail():
        raise error

    bench.writer.run(fail)
    with pytest.raises(StorageError, match=r"No space left|a bug"):
        bench.writer.close()
    assert len(bench.told) == 1


def test_a_failed_group_persists_none_of_it(bench, monkeypatch):
    def fail(batch):
        if batch:
            raise StorageError("journal: disk I/O error")

    go_on = bench.hold()
    monkeypatch.setattr(bench.journal, "write", fail)
    for number in (1, 2, 3):
        bench.writer.submit(number, published(number))
    go_on.set()
    with pytest.raises(StorageError):
        bench.writer.close()
    assert [str(one) for one in bench.told] == ["journal: disk I/O error"]


def test_a_checkpoint_without_what_saves_it_is_our_bug(bench):
    with pytest.raises(LocalProtocolError):
        bench.writer.submit(1, Checkpoint(CoreState()))
    with pytest.raises(LocalProtocolError):
        bench.writer.submit(1, published(1), lambda: None)
    bench.writer.close()
    bench.writer.close()
    with pytest.raises(LocalProtocolError):
        bench.writer.submit(1, published(1))
