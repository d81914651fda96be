"""The disk's own thread: records in, group commits out, in order, and one failure that is final."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from node.errors import LocalProtocolError, StorageError
from node.storage.journal import Journal
from node.types.events import Checkpoint, Record

# Each applied version costs one record, so this is minutes of the fastest node: a disk that far
# behind has failed.
PENDING_MAX: Final = 65_536


class _Job(NamedTuple):
    id: int | None
    record: Record | None
    action: Callable[[], object] | None


class Writer:
    """Makes records durable on a thread of its own.

    ``call_soon(function, argument)`` hands a call to the owner's loop, from this thread.
    ``persisted(id)``: this and everything before it is durable. ``failed(error)`` is called once;
    from then on nothing is persisted and ``submit`` raises that error.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        call_soon: Callable[..., object],
        persisted: Callable[[int], object],
        failed: Callable[[StorageError], object],
    ) -> None:
        self._journal = journal
        self._call_soon = call_soon
        self._persisted = persisted
        self._failed = failed
        self._error: StorageError | None = None
        self._closing = False
        self._jobs: queue.Queue[_Job | None] = queue.Queue(PENDING_MAX)
        self._thread = threading.Thread(target=self._work, name="grapevine-disk", daemon=True)
        self._thread.start()

    def submit(
        self,
        number: int,
        record: Record,
        save: Callable[[], object] | None = None,
    ) -> None:
        """Queue record ``number``. A Checkpoint brings ``save``, which writes it, on this thread.

        Raises StorageError after a failure.
        """
        if isinstance(record, Checkpoint) != (save is not None):
            raise LocalProtocolError("a Checkpoint brings what saves it, other records do not")
        self._put(_Job(number, record if save is None else None, save))

    def run(self, action: Callable[[], object]) -> None:
        """Queue any other work for the disk, after all that was submitted before it."""
        self._put(_Job(None, None, action))

    def close(self) -> None:
        """Make durable what is queued and end the thread; blocks. The journal stays open.

        Raises StorageError where the disk had failed.
        """
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _put(self, job: _Job) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise LocalProtocolError("the disk's thread was closed")
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise StorageError(f"the disk is {PENDING_MAX} records behind: it has failed") from None

    def _work(self) -> None:
        last = False
        while not last:
            jobs, last = self._gather()
            if self._error is not None:
                continue  # refused: their ids are never called back
            try:
                self._carry_out(jobs)
            except StorageError as error:
                self._fail(error)
            except OSError as error:
                self._fail(StorageError(f"disk: {error.strerror or error}"))
            except Exception as error:
                self._fail(StorageError(f"disk thread: {type(error).__name__}: {error}"))

    def _gather(self) -> tuple[list[_Job], bool]:
        """All that is queued, waiting for the first: one fsync will serve the lot."""
        jobs: list[_Job] = []
        job: _Job | None = self._jobs.get()
        while job is not None:
            jobs.append(job)
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _carry_out(self, jobs: list[_Job]) -> None:
        batch: list[tuple[int, Record]] = []
        for job in jobs:
            if job.record is not None and job.id is not None:
                batch.append((job.id, job.record))
                continue
            self._commit(batch)
            batch = []
            if job.action is not None:
                job.action()
            if job.id is not None:
                self._tell(self._persisted, job.id)
        self._commit(batch)

    def _commit(self, batch: list[tuple[int, Record]]) -> None:
        self._journal.write(batch)
        for id_, _ in batch:
            self._tell(self._persisted, id_)

    def _fail(self, error: StorageError) -> None:
        self._error = error
        self._tell(self._failed, error)

    def _tell(self, function: Callable[[Any], object], argument: object) -> None:
        self._call_soon(function, argument)
