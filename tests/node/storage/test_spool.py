"""The spool: bytes at their place, memory bounded, a full disk an error and not a crash."""

from __future__ import annotations

import errno
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_bench import in_own_mounts

from node.errors import LocalProtocolError, StorageError
from node.storage.spool import Spool

A, B = b"a" * 32, b"b" * 32
ROOT = b"r" * 32


@given(st.permutations(range(10)), st.sampled_from([100, 10_000]))
def test_chunks_in_any_order_make_the_payload(tmp_path_factory, order, memory):
    spool = Spool(tmp_path_factory.getbasetemp(), memory_bytes=memory)
    payload = bytes(n % 251 for n in range(997))
    for n in order:
        spool.store(A, ROOT, n * 100, len(payload), memoryview(payload)[n * 100 : n * 100 + 100])
    whole = spool.take(A, ROOT)
    assert bytes(whole) == payload
    assert isinstance(whole.obj, mmap.mmap if memory == 100 else bytearray)
    whole[0] = 7  # writable: a replica is made of it without a copy
    assert len(spool) == spool.in_memory_bytes == 0


def test_memory_is_bounded_over_all_payloads(tmp_path):
    spool = Spool(tmp_path, memory_bytes=100)
    for n in range(4):
        spool.store(A, bytes([n]) * 32, 0, 40, b"x")
    assert spool.in_memory_bytes == 80
    views = [spool.take(A, bytes([n]) * 32) for n in range(4)]
    assert [type(view.obj) for view in views] == [bytearray, bytearray, mmap.mmap, mmap.mmap]
    assert list(tmp_path.iterdir()) == [], "files have no name"


def test_equal_payloads_of_two_members_are_two(tmp_path):
    spool = Spool(tmp_path)
    spool.store(A, ROOT, 0, 2, b"ab")
    spool.store(B, ROOT, 1, 2, b"z")
    spool.drop(A, ROOT)
    assert bytes(spool.take(B, ROOT)) == b"\0z"


def test_dropping_gives_the_memory_back_and_is_harmless_twice(tmp_path):
    spool = Spool(tmp_path, memory_bytes=100)
    spool.store(A, ROOT, 0, 90, b"x")
    spool.drop(A, ROOT)
    spool.drop(A, ROOT)
    assert spool.in_memory_bytes == 0
    with pytest.raises(LocalProtocolError):
        spool.take(A, ROOT)
    spool.store(A, ROOT, 0, 90, b"x")
    spool.close()
    assert len(spool) == spool.in_memory_bytes == 0


@pytest.mark.parametrize(
    ("offset", "length", "data"),
    [(-1, 10, b"x"), (10, 10, b"x"), (5, 10, b"123456"), (0, 11, b"x"), (0, 0, b"")],
)
def test_bytes_outside_the_payload_are_our_bug(tmp_path, offset, length, data):
    spool = Spool(tmp_path)
    spool.store(A, ROOT, 0, 10, b"0123456789")
    with pytest.raises(LocalProtocolError):
        spool.store(A, ROOT, offset, length, data)
    assert bytes(spool.take(A, ROOT)) == b"0123456789"


def test_a_payload_beyond_all_bounds_allocates_nothing(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(LocalProtocolError):
        spool.store(A, ROOT, 0, 2**40, b"x")
    assert len(spool) == 0


def test_sweep_removes_what_a_dead_process_left(tmp_path):
    (tmp_path / "tmpabc").write_bytes(b"left")
    Spool(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_an_error_when_the_first_chunk_comes(tmp_path, monkeypatch, what):
    def full(*args):
        raise OSError(what, os.strerror(what))

    monkeypatch.setattr(os, "posix_fallocate", full)
    spool = Spool(tmp_path, memory_bytes=0)
    with pytest.raises(StorageError, match=os.strerror(what)):
        spool.store(A, ROOT, 0, 10, b"x")
    assert len(spool) == 0


def test_a_full_file_system(tmp_path):
    script = (
        "from pathlib import Path\nfrom node.errors import StorageError\n"
        "from node.storage.spool import Spool\n"
        f"spool = Spool(Path({str(tmp_path)!r}), memory_bytes=0)\n"
        "try: spool.store(b'a', b'r', 0, 1 << 22, b'x')\n"
        "except StorageError as error: print(error)\n"
    )
    said = in_own_mounts(f"mount -t tmpfs -o size=1m none {tmp_path}", script)
    assert said.endswith("no room for a payload of 4194304 bytes: No space left on device")
