"""The state directory: one process at a time, and only where it can be written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from storage_bench import in_own_mounts

from node.errors import StorageError
from node.storage.directory import StateDirectory
from node.storage.files import write_durably


def test_two_nodes_on_one_directory(tmp_path):
    with StateDirectory(tmp_path / "state") as first:
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()}: stop that"):
            StateDirectory(first.path).open()
        first.open()  # again by the holder itself: nothing happens
    with StateDirectory(first.path):
        pass


def test_another_process_is_kept_out_and_named(tmp_path):
    script = (
        "import sys\nfrom node.storage.directory import StateDirectory\n"
        f"StateDirectory({str(tmp_path)!r}).open()\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match=f"in use by process {holder.pid}"):
            StateDirectory(tmp_path).open()
        holder.kill()  # the lock ends with its process
    StateDirectory(tmp_path).open().close()


def test_folders_are_for_the_owner_alone(tmp_path):
    with StateDirectory(tmp_path / "a" / "state") as state:
        folders = [state.path, state.checkpoints, state.candidates, state.spool]
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 4
        assert stat.S_IMODE(state.lock.stat().st_mode) == 0o600
        assert list(state.spool.iterdir()) == []


@pytest.mark.parametrize("what", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("where", ["open", "pwrite"])
def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, what, where):
    def refuse(*args, **kwargs):
        raise OSError(what, os.strerror(what))

    monkeypatch.setattr(os, where, refuse)
    state = StateDirectory(tmp_path)
    with pytest.raises(StorageError, match=rf"{tmp_path} cannot be written: {os.strerror(what)}"):
        state.open()
    monkeypatch.undo()
    state.open().close()  # and the lock was not kept


def test_a_read_only_file_system(tmp_path):
    """For real: root passes any mode bits, so it takes a read-only mount."""
    script = (
        "from node.errors import StorageError\nfrom node.storage.directory import StateDirectory\n"
        f"try: StateDirectory({str(tmp_path)!r}).open()\n"
        "except StorageError as error: print(error)\n"
    )
    mount = f"mount --bind -o ro {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    said = in_own_mounts(mount, script)
    assert said == f"state directory {tmp_path} cannot be written: Read-only file system"


def test_a_disk_that_is_full_already(tmp_path):
    """The lock and the folders of an earlier start are there: only a written file finds it out."""
    script = (
        "from pathlib import Path\nfrom node.errors import StorageError\n"
        "from node.storage.directory import StateDirectory\n"
        f"where = Path({str(tmp_path)!r})\nStateDirectory(where).open().close()\n"
        "try: (where / 'ballast').write_bytes(bytes(1 << 20))\nexcept OSError: pass\n"
        "try: StateDirectory(where).open()\n"
        "except StorageError as error: print(error)\n"
    )
    said = in_own_mounts(f"mount -t tmpfs -o size=128k none {tmp_path}", script)
    assert said == f"state directory {tmp_path} cannot be written: No space left on device"


def test_a_file_in_its_place_is_one_line(tmp_path):
    (tmp_path / "state").write_text("x")
    with pytest.raises(StorageError, match=r"cannot be written: (File exists|Not a directory)"):
        StateDirectory(tmp_path / "state").open()


def test_files_appear_whole_and_in_the_durable_order(tmp_path, monkeypatch):
    steps = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(_name(fd)) or sync(fd))
    monkeypatch.setattr(os, "rename", lambda a, b: steps.append("rename") or rename(a, b))
    write_durably(tmp_path / "result.json", b"{}")
    assert steps == [f".tmp-{os.getpid()}-result.json", "rename", tmp_path.name]


def test_an_fsync_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "result.json"
    write_durably(target, b"old")

    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="cannot be written: Input/output error"):
        write_durably(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def _name(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name
