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
    assert [isinstance(view.obj, mmap.mmap) for view in views] == [False, False, True, True]
    assert list(tmp_path.iterdir()) == [], "files have no name"


@pytest.mark.parametrize("prepared", [False, True])
def test_a_replaced_replica_s_memory_holds_the_next_payload(tmp_path, prepared):
    spool = Spool(tmp_path, memory_bytes=100)
    if prepared:
        made = spool.prepare(90)
        assert made is not None
        first = made
    else:
        spool.store(A, ROOT, 0, 90, b"x" * 90)
        first = spool.take(A, ROOT)
    memory = first.obj
    assert not spool.has_spare(90)
    spool.recycle(first)
    assert spool.has_spare(90)
    assert not spool.has_spare(80)
    spool.store(A, ROOT, 0, 90, b"y" * 90)
    spool.store(B, ROOT, 0, 90, b"z" * 90)  # there is one spare, not two
    assert bytes(spool.take(B, ROOT)) == b"z" * 90
    again = spool.take(A, ROOT)
    assert again.obj is memory
    assert bytes(again) == b"y" * 90
    assert spool.in_memory_bytes == 0


def test_one_payload_s_memory_is_kept_and_no_file(tmp_path):
    spool = Spool(tmp_path, memory_bytes=0)
    for size in (10, 20):
        made = spool.prepare(size)
        assert made is not None
        spool.recycle(made)
    assert not spool.has_spare(10)
    spool.store(A, ROOT, 0, 30, b"x")
    spool.recycle(spool.take(A, ROOT))
    assert not spool.has_spare(30), "the kernel would write a file's pages out again and again"
    assert spool.has_spare(20)
    spool.close()
    assert not spool.has_spare(20)


def test_a_machine_that_grants_no_memory_gets_by_with_a_file(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    spool = Spool(tmp_path, memory_bytes=0)
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refused)
        assert spool.prepare(10) is None
    spool.store(A, ROOT, 0, 1, b"x")
    assert bytes(spool.take(A, ROOT)) == b"x"


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


def test_a_kernel_without_huge_pages_gives_small_ones(monkeypatch):
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 9999, raising=False)  # EINVAL
    made = Spool.prepare(10)
    assert made is not None and bytes(made) == bytes(10)
