"""A thread that a running node owns: jobs in order, results in the loop, errors to the shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """One thread that runs jobs in the order given and hands each result to the loop."""

    def __init__(self, name: str, fail: Callable[[BaseException], None]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._fail = fail
        self._loop = asyncio.get_running_loop()

    def run(self, job: Callable[[], T], then: Callable[[T], object] | None = None) -> Future[T]:
        """Queue ``job``; ``then`` gets its result in the loop. An error of it ends the node."""
        future = self._pool.submit(job)
        future.add_done_callback(lambda done: self._hand_over(done, then))
        return future

    def _hand_over(self, done: Future[T], then: Callable[[T], object] | None) -> None:
        if not self._loop.is_closed() and not done.cancelled():
            self._loop.call_soon_threadsafe(self._deliver, done, then)

    def _deliver(self, done: Future[T], then: Callable[[T], object] | None) -> None:
        error = done.exception()
        if error is not None:
            self._fail(error)
        elif then is not None:
            then(done.result())

    async def close(self) -> None:
        """Drop what has not begun and wait for the job in hand."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)
