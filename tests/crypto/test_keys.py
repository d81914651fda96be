"""Key files: written once and closed to others; each kind of damage has its own words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from crypto import keys as module
from crypto.armour import wrap
from crypto.identity import format_id, node_id
from crypto.keys import MEMBER_FILE, NODE_FILE, create_keys, load_keys, validate_name
from node.errors import ConfigError, GrapevineError, StorageError


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "state"


def test_what_was_made_is_read_again(state: Path) -> None:
    made = create_keys(state, "clinic-a")
    read = load_keys(state)
    assert read.name == "clinic-a"
    assert read.node_id == made.node_id == node_id(made.member.public)  # type: ignore[union-attr]
    assert read.node.seed == made.node.seed
    assert read.member is not None
    assert read.member.public != read.node.public
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for file in (MEMBER_FILE, NODE_FILE):
        assert stat.S_IMODE((state / file).stat().st_mode) == 0o600


def test_a_careless_umask_opens_nothing(state: Path) -> None:
    before = os.umask(0)
    try:
        create_keys(state, "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((state / NODE_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_node_runs_without_the_member_key(state: Path) -> None:
    made = create_keys(state, "clinic-a")
    (state / MEMBER_FILE).unlink()
    read = load_keys(state)
    assert (read.name, read.node_id, read.member) == ("clinic-a", made.node_id, None)


def test_a_node_need_not_open_the_member_key(state: Path) -> None:
    create_keys(state, "clinic-a")
    (state / MEMBER_FILE).write_text("under a passphrase, or on paper")
    assert load_keys(state, member=False).member is None
    with pytest.raises(ConfigError, match=r"member\.key"):
        load_keys(state)


def test_a_key_is_never_replaced(state: Path) -> None:
    create_keys(state, "clinic-a")
    before = (state / NODE_FILE).read_bytes()
    with pytest.raises(ConfigError, match="there is a key already"):
        create_keys(state, "clinic-b")
    (state / MEMBER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"node\.key: there is a key already"):
        create_keys(state, "clinic-b")
    assert (state / NODE_FILE).read_bytes() == before
    assert not (state / MEMBER_FILE).exists()


def test_two_at_once_do_not_replace_each_other(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the write another process made its keys: O_EXCL decides."""
    first = create_keys(state, "clinic-a")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(ConfigError, match="there is a key already"):
        create_keys(state, "clinic-b")
    monkeypatch.undo()
    assert load_keys(state).node_id == first.node_id


def test_a_full_disk_leaves_no_half_pair(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:  # member.key and its folder are down; now node.key
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        create_keys(state, "clinic-a")
    assert list(state.iterdir()) == []
    monkeypatch.undo()
    create_keys(state, "clinic-a")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/state: cannot be made"):
        create_keys(tmp_path / "file" / "state", "a")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o610])
@pytest.mark.parametrize("file", [MEMBER_FILE, NODE_FILE])
def test_a_key_open_to_others_is_refused_with_the_remedy(state: Path, file: str, mode: int) -> None:
    create_keys(state, "clinic-a")
    (state / file).chmod(mode)
    with pytest.raises(ConfigError, match=f"run: chmod 600 {state / file}"):
        load_keys(state)


@pytest.mark.parametrize("mode", [0o770, 0o703])
def test_a_directory_others_can_write_into_is_refused(state: Path, mode: int) -> None:
    create_keys(state, "clinic-a")
    state.chmod(mode)
    with pytest.raises(ConfigError, match=f"run: chmod 700 {state}"):
        load_keys(state)


def test_a_key_of_another_user_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_keys(state, "clinic-a")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to another user; run: chown"):
        load_keys(state)


def test_missing_keys_say_how_to_make_them(state: Path) -> None:
    with pytest.raises(ConfigError, match="grapevine keygen"):
        load_keys(state)


def test_a_file_cut_at_any_length_is_refused(state: Path) -> None:
    create_keys(state, "clinic-a")
    path = state / NODE_FILE
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is the newline
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"node\.key"):
            load_keys(state)


def test_a_flipped_bit_is_refused_or_harmless(state: Path) -> None:
    made = create_keys(state, "clinic-a")
    path = state / NODE_FILE
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            bad = bytearray(whole)
            bad[at] ^= 1 << bit
            path.write_bytes(bad)
            try:
                assert load_keys(state).node.seed == made.node.seed
            except ConfigError as error:
                assert "\n" not in str(error)
                continue
            assert bytes(bad).split() == whole.split() or not whole[at : at + 1].strip()


def test_the_two_files_must_be_of_one_member(state: Path, tmp_path: Path) -> None:
    create_keys(state, "clinic-a")
    create_keys(tmp_path / "other", "clinic-b")
    (tmp_path / "other" / NODE_FILE).replace(state / NODE_FILE)
    with pytest.raises(ConfigError, match="two different members"):
        load_keys(state)


def test_a_member_key_is_no_node_key(state: Path) -> None:
    create_keys(state, "clinic-a")
    (state / MEMBER_FILE).replace(state / NODE_FILE)
    with pytest.raises(ConfigError, match=r"node\.key: holds a member key"):
        load_keys(state)


def test_a_secret_that_is_not_the_public_keys_is_refused(state: Path) -> None:
    create_keys(state, "clinic-a")
    content = module._read(state / NODE_FILE)
    for changes in ({"public": bytes(32)}, {"secret": bytes(32)}, {"secret": b""}, {"id": b"x"}):
        forged = msgspec.structs.replace(content, **changes)
        (state / NODE_FILE).write_text(wrap("KEY", msgspec.msgpack.encode(forged)))
        with pytest.raises(ConfigError, match=r"node\.key: damaged"):
            load_keys(state, member=False)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory under a passphrase: argon2id takes its time, so there is one."""
    state = tmp_path_factory.mktemp("locked")
    create_keys(state, "clinic-a", passphrase=b"correct horse")
    return state


def test_the_right_passphrase_opens_both(locked: Path) -> None:
    read = load_keys(locked, passphrase=b"correct horse")
    assert read.member is not None
    for key, file in ((read.member, MEMBER_FILE), (read.node, NODE_FILE)):
        content = module._read(locked / file)
        assert key.seed not in content.secret
        assert key.seed.hex() not in (locked / file).read_text()


def test_the_wrong_passphrase_is_said_to_be_wrong(locked: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.key: the passphrase is not the right one"):
        load_keys(locked, passphrase=b"wrong horse")
    for none in (None, b""):
        with pytest.raises(ConfigError, match="under a passphrase, and none was given"):
            load_keys(locked, passphrase=none)


def test_an_empty_passphrase_does_not_leave_keys_open_in_silence(state: Path) -> None:
    with pytest.raises(ConfigError, match="passphrase is empty"):
        create_keys(state, "clinic-a", passphrase=b"")
    assert not state.exists()


def test_nothing_shows_a_secret(state: Path) -> None:
    made = create_keys(state, "clinic-a")
    shown = repr(made) + repr(module._read(state / NODE_FILE))
    for seed in (made.node.seed, made.member.seed):  # type: ignore[union-attr]
        assert seed.hex() not in shown
        assert repr(seed) not in shown


def test_keys_follow_from_the_entropy(tmp_path: Path) -> None:
    def entropy(size: int) -> bytes:
        return bytes([7]) * size

    one = create_keys(tmp_path / "1", "a", entropy=entropy)
    two = create_keys(tmp_path / "2", "a", entropy=entropy)
    assert format_id(one.node_id) == format_id(two.node_id)
    assert (tmp_path / "1" / NODE_FILE).read_text() == (tmp_path / "2" / NODE_FILE).read_text()


@pytest.mark.parametrize("name", ["a", "7", "clinic-a", "a" * 40, "a--b"])
def test_good_names(name: str) -> None:
    assert validate_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 41,
        "Clinic",
        "a b",
        "a_b",
        "ä",
        "-a",
        "a-",
        "a\n",
        "a/b",
        "a+b",
        "#",
        "a/#",
        "$a",
        "..",
        "\x1b[31m",
        "\u0661",
    ],
)
def test_bad_names(name: str, state: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 40 characters") as caught:
        create_keys(state, name)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not state.exists()


def test_a_garbage_key_file(state: Path) -> None:
    create_keys(state, "a")
    for junk in (b"", b"\xff\x00", b"{}" * 100_000, b"-----BEGIN GRAPEVINE CARD-----"):
        (state / NODE_FILE).write_bytes(junk)
        with pytest.raises(GrapevineError, match=r"node\.key"):
            load_keys(state)
