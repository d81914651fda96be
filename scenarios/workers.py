"""Worker processes for many runs: forked once torch is there, one thread each, a task at a time.

Answers cross as bytes over pipes; what they mean is the caller's. A worker that dies costs the task
that it had in hand and no other.
"""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Literal

from scenarios import cluster

Work = Callable[[int], bytes]
Jobs = int | Literal["ray"]  # processes on this machine, or a cluster

_FORK = multiprocessing.get_context("fork")  # torch is imported once, not once a worker


def spread(work: Work, tasks: int, *, jobs: Jobs) -> Iterator[tuple[int, bytes | None]]:
    """Do ``work(0) … work(tasks - 1)`` in ``jobs`` processes; yields (task, answer) as they come.

    The answer is None where the process died over the task. ``work`` must not raise.
    """
    return cluster.spread(work, tasks) if jobs == "ray" else _spread(work, tasks, jobs)


def _spread(work: Work, tasks: int, jobs: int) -> Iterator[tuple[int, bytes | None]]:
    waiting = deque(range(tasks))
    workers = [_Worker(work) for _ in range(min(jobs, tasks))]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while busy := {worker.pipe: worker for worker in workers if worker.task is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                task, answer = worker.take()
                if answer is None:
                    worker.end()
                    workers.remove(worker)
                    if waiting:
                        worker = _Worker(work)
                        workers.append(worker)
                if waiting:
                    worker.give(waiting.popleft())
                yield task, answer
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    def __init__(self, work: Work) -> None:
        self.task: int | None = None
        self.pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(work, theirs, self.pipe), daemon=True)
        with warnings.catch_warnings():
            # Newer Pythons warn of a fork beside threads. Torch's idle ones hold no lock that a
            # child, which computes on one thread, would ask for.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()  # or the end of the process would not end the pipe

    def give(self, task: int) -> None:
        self.task = task
        try:
            self.pipe.send_bytes(task.to_bytes(8, "big"))
        except BrokenPipeError:
            return  # it died meanwhile: ``take`` finds the end of the pipe

    def take(self) -> tuple[int, bytes | None]:
        task, self.task = self.task, None
        assert task is not None
        try:
            return task, self.pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            return task, None

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.pipe.close()


def _serve(work: Work, pipe: Connection, parents_end: Connection) -> None:
    import torch

    parents_end.close()  # so that the parent's end ends this process too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        try:
            task = int.from_bytes(pipe.recv_bytes(), "big")
        except EOFError:
            return
        pipe.send_bytes(work(task))
