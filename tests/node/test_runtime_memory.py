"""What a replaced replica leaves behind serves the next payload, and never too early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crypto.identity import NodeId
from node.learning.vector import as_bytes, squares
from node.runtime_memory import RECYCLED_BYTES, ReplicaMemory
from node.storage.spool import Spool
from node.types.events import Apply, DropPayload, StoreChunk

A, B = b"a" * 32, b"b" * 32
SIZE = RECYCLED_BYTES


class Later:
    """A worker whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []

    def run(self, job: Callable[[], Any], then: Callable[[Any], object]) -> None:
        self.jobs.append((job, then))

    def finish(self) -> None:
        job, then = self.jobs.pop(0)
        then(job())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def arrive(spool: Spool, member: Any, size: int = SIZE) -> memoryview:
    spool.store(member, b"r" * 32, 0, size, b"x")
    return spool.take(member, b"r" * 32)


def chunk(memory: ReplicaMemory, offset: int, values: torch.Tensor, length: int) -> None:
    memory.store(StoreChunk(NodeId(A), b"r" * 32, offset, length, as_bytes(values)))


def test_squares_are_known_of_a_payload_that_was_summed_as_a_whole(spool: Spool) -> None:
    memory, vector = ReplicaMemory(spool, 40), torch.arange(10, dtype=torch.float32)
    effect = Apply(NodeId(A), b"r" * 32, None)  # type: ignore[arg-type]
    chunk(memory, 24, vector[6:], 40)
    chunk(memory, 0, vector[:6], 40)
    payload, rough = memory.take(effect)
    assert bytes(payload) == bytes(as_bytes(vector))
    assert rough == squares(vector) == 285.0
    chunk(memory, 0, vector[:6], 40)
    assert memory.take(effect)[1] is None, "a part of it says nothing of the rest"
    chunk(memory, 0, vector[:6], 40)
    memory.drop(DropPayload(NodeId(A), b"r" * 32))
    chunk(memory, 24, vector[6:], 40)
    assert memory.take(effect)[1] is None, "nor does what was dropped"


def test_a_replica_in_use_is_never_written_over(spool: Spool) -> None:
    memory = ReplicaMemory(spool, SIZE)
    first = arrive(spool, A)
    memory.applied(A, first, ok=True)
    second = arrive(spool, A)
    assert second.obj is not first.obj
    memory.applied(A, second, ok=True)
    other = arrive(spool, B)
    assert other.obj is first.obj, "that of the replaced one is used again"
    memory.applied(B, other, ok=True)
    assert not spool.has_spare(SIZE)


def test_a_refused_payload_and_the_replica_it_ended_give_their_memory_back(spool: Spool) -> None:
    memory = ReplicaMemory(spool, SIZE)
    memory.applied(A, arrive(spool, A), ok=True)
    bad = arrive(spool, A)
    memory.applied(A, bad, ok=False)
    assert arrive(spool, B).obj is bad.obj
    memory.forgotten(A)  # twice does no harm
    assert not spool.has_spare(SIZE)


def test_one_is_made_ready_and_only_one(spool: Spool) -> None:
    memory, worker = ReplicaMemory(spool, SIZE), Later()
    memory.stock(worker)  # type: ignore[arg-type]
    memory.stock(worker)  # type: ignore[arg-type]
    assert len(worker.jobs) == 1, "it is being made"
    worker.finish()
    assert spool.has_spare(SIZE)
    memory.stock(worker)  # type: ignore[arg-type]
    assert not worker.jobs
    arrive(spool, A)
    memory.stock(worker)  # type: ignore[arg-type]
    assert len(worker.jobs) == 1


def test_small_models_are_left_to_the_allocator(spool: Spool) -> None:
    memory, worker = ReplicaMemory(spool, 1000), Later()
    memory.stock(worker)  # type: ignore[arg-type]
    assert not worker.jobs
    memory.applied(A, arrive(spool, A, 1000), ok=True)
    memory.forgotten(A)
    assert not spool.has_spare(1000)
