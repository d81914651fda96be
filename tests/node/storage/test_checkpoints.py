"""Checkpoints: whole or not at all, three of them; a damaged one never passes for a good one."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from storage_bench import in_own_mounts

from node.errors import StorageError
from node.storage.checkpoints import load_latest, save
from node.types.events import CoreState, Quarantine
from node.types.messages import SignedHeader

A, B = b"a" * 32, b"b" * 32
SIGNED = SignedHeader(b"header", b"s" * 64)
STATE = CoreState(
    round=7,
    version=9,
    incarnation=123,
    floors={A: SIGNED},
    mixed_rounds={A: 6},
    quarantined={B: Quarantine(B, SIGNED, SIGNED)},
    arrivals=(0.25, 0.5),
    missed={B: (2, 3, 4, "silent")},
    counted=(A,),
)
TENSORS = {
    "x": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "strided": torch.arange(24, dtype=torch.float64).reshape(4, 6).T,
    "half": torch.ones(3, dtype=torch.bfloat16),
    "flag": torch.tensor(True),
    "empty": torch.zeros(0, 5),
    "steps": torch.tensor([1, 2**40]),
}
META = {"best": 0.5, "rounds": [1, 2], "raw": b"\0\xff", "none": None}


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    path = save(tmp_path, 7, STATE, TENSORS, META)
    loaded = load_latest(tmp_path)
    assert (loaded.path, loaded.round, loaded.state, loaded.meta) == (path, 7, STATE, META)
    assert loaded.skipped == []
    assert sorted(loaded.tensors) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_none_at_all_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "never made") is None


def test_the_last_three_are_kept(tmp_path):
    (tmp_path / ".tmp-123-round-00000001.safetensors").write_bytes(b"of a process that died")
    for number in (1, 2, 3, 9, 10):
        save(tmp_path, number, STATE, TENSORS, META)
    assert names(tmp_path) == [f"round-{n:08d}.safetensors" for n in (3, 9, 10)]
    assert load_latest(tmp_path).round == 10
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_the_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    steps = []
    sync, rename = os.fsync, os.rename

    def synced(fd):
        path = Path(f"/proc/self/fd/{fd}").readlink()
        steps.append(("sync", path.name, path.stat().st_size if path.is_file() else None))
        sync(fd)

    def renamed(old, new):
        steps.append(("rename", Path(old).name, Path(new).name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    path = save(tmp_path, 7, STATE, TENSORS, META)
    temporary = f".tmp-{os.getpid()}-{path.name}"
    assert steps == [
        ("sync", temporary, path.stat().st_size),  # all of it is written by then
        ("rename", temporary, path.name),
        ("sync", tmp_path.name, None),
    ]


def test_one_cut_short_anywhere_falls_back_to_the_older(tmp_path):
    save(tmp_path, 6, STATE, TENSORS, META)
    path = save(tmp_path, 7, STATE, TENSORS, META)
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:end])
        loaded = load_latest(tmp_path)
        assert loaded.round == 6
        assert [one for one, _ in loaded.skipped] == [path]
    path.write_bytes(whole + b"\0")
    assert load_latest(tmp_path).round == 6
    path.write_bytes(whole)
    assert load_latest(tmp_path).round == 7


def test_a_flipped_bit_anywhere_is_seen(tmp_path):
    save(tmp_path, 6, STATE, TENSORS, META)
    path = save(tmp_path, 7, STATE, TENSORS, META)
    whole = bytearray(path.read_bytes())
    for at in [*range(0, 64), *range(64, len(whole), 13)]:
        whole[at] ^= 1 << at % 8
        path.write_bytes(whole)
        loaded = load_latest(tmp_path)
        whole[at] ^= 1 << at % 8
        if loaded.round == 7:  # JSON's blanks: a bit that says nothing
            assert loaded.state == STATE and loaded.meta == META
            assert all(torch.equal(loaded.tensors[n], t) for n, t in TENSORS.items())
            assert at < int.from_bytes(whole[:8], "little") + 8
        else:
            assert [one for one, _ in loaded.skipped] == [path]


@pytest.mark.parametrize("make", [b"", b"\x80\x04N.", b"\xff" * 64, bytes(8) + b"{}"])
def test_a_foreign_file_is_skipped_with_the_reason(tmp_path, make):
    save(tmp_path, 6, STATE, TENSORS, META)
    foreign = tmp_path / "round-00000008.safetensors"
    foreign.write_bytes(make)
    loaded = load_latest(tmp_path)
    assert loaded.round == 6
    assert loaded.skipped[0][0] == foreign and loaded.skipped[0][1]


def test_safetensors_of_others_are_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "round-00000001.safetensors")
    with pytest.raises(StorageError, match="format None, expected 'grapevine-checkpoint/1'"):
        load_latest(tmp_path)


def test_a_checkpoint_under_another_rounds_name_is_refused(tmp_path):
    save(tmp_path, 7, STATE, TENSORS, META).rename(tmp_path / "round-00000008.safetensors")
    with pytest.raises(StorageError, match="the digest does not fit"):
        load_latest(tmp_path)


def test_all_bad_is_an_error_that_says_what_to_do(tmp_path):
    for number in (1, 2):
        save(tmp_path, number, STATE, TENSORS, META).write_bytes(b"no")
    with pytest.raises(StorageError, match=r"none of 2 checkpoints can be read .*restore a backup"):
        load_latest(tmp_path)


def test_a_refused_newer_one_never_comes_back(tmp_path):
    save(tmp_path, 5, STATE, TENSORS, META)
    save(tmp_path, 9, STATE, TENSORS, META).write_bytes(b"damaged")
    assert load_latest(tmp_path).round == 5
    save(tmp_path, 6, STATE, TENSORS, META)
    assert names(tmp_path) == ["round-00000005.safetensors", "round-00000006.safetensors"]


@pytest.mark.parametrize("what", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_failing_disk_leaves_the_older_ones(tmp_path, monkeypatch, what, call):
    for number in (1, 2, 3):
        save(tmp_path, number, STATE, TENSORS, META)
    before = names(tmp_path)

    def fail(*args):
        raise OSError(what, os.strerror(what))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=os.strerror(what)):
        save(tmp_path, 4, STATE, TENSORS, META)
    assert names(tmp_path) == before
    assert load_latest(tmp_path).round == 3


FULL = """
import torch
from pathlib import Path
from node.errors import StorageError
from node.storage.checkpoints import load_latest, save
from node.types.events import CoreState
directory = Path({directory!r})
save(directory, 1, CoreState(), {{"x": torch.ones(10)}}, {{}})
try: save(directory, 2, CoreState(), {{"x": torch.ones(1 << 20)}}, {{}})
except StorageError as error: print(str(error).count(chr(10)), error)
print(load_latest(directory).round, len(list(directory.iterdir())))
"""


def test_a_full_file_system(tmp_path):
    script = FULL.format(directory=str(tmp_path))
    said = in_own_mounts(f"mount -t tmpfs -o size=1m none {tmp_path}", script).splitlines()
    assert said[0].startswith("0 ") and "o space left on device" in said[0]
    assert said[1] == "1 1"


def test_a_file_size_limit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(directory=str(tmp_path))],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert said[0].startswith("0 ") and "too large" in said[0]
    assert said[1] == "1 1"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
