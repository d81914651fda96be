"""The control socket: two processes' worth of talk inside one, through a real Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from node.errors import ConfigError, StorageError, TransportError
from node.status.ask import NotRunning, address, ask
from node.status.control import Control


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"error": "no"} if request.get("do") == "refuse" else {"got": request}


async def served(state: Path, *requests: dict[str, Any]) -> list[Any]:
    control = Control(state, echo)
    await control.start()
    try:
        return [await asyncio.to_thread(ask, state, request) for request in requests]
    finally:
        await control.close()


def test_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    assert asyncio.run(served(tmp_path, {"do": "a"}, {"do": "b"})) == [
        {"got": {"do": "a"}},
        {"got": {"do": "b"}},
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_an_error_of_the_one_who_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refused: no"):
        asyncio.run(served(tmp_path, {"do": "refuse"}))


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    async def mode() -> int:
        control = Control(tmp_path, echo)
        await control.start()
        try:
            return stat.S_IMODE(address(tmp_path).stat().st_mode)
        finally:
            await control.close()

    assert asyncio.run(mode()) == 0o600


def test_nodes_that_start_together_leave_the_umask_as_it_was(tmp_path: Path) -> None:
    async def together() -> None:
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        controls = [Control(folder, echo) for folder in folders]
        await asyncio.gather(*(control.start() for control in controls))
        for folder, control in zip(folders, controls, strict=True):
            assert stat.S_IMODE(address(folder).stat().st_mode) == 0o600
            await control.close()

    before = os.umask(0o022)
    try:
        asyncio.run(together())
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_left_by_a_killed_node_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunning):
        ask(tmp_path, {"do": "status"})
    assert asyncio.run(served(tmp_path, {"do": "a"})) == [{"got": {"do": "a"}}]


def test_a_path_too_long_for_a_socket_still_works(tmp_path: Path) -> None:
    state = tmp_path / ("d" * 100) / "state"
    state.mkdir(parents=True)
    folders = []

    async def go() -> Any:
        control = Control(state, echo)
        await control.start()
        folders.append(address(state).parent)
        try:
            return await asyncio.to_thread(ask, state, {"do": "a"})
        finally:
            await control.close()

    assert asyncio.run(go()) == {"got": {"do": "a"}}
    assert not folders[0].exists()
    assert list(state.iterdir()) == []
    with pytest.raises(NotRunning):
        ask(state, {"do": "a"})


def test_no_node_no_folder(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotRunning, match="no node is running"):
            ask(state, {"do": "status"})


@pytest.mark.parametrize("line", [b"{not json\n", b"[1]\n", b"\xff\n", b"[" * 60_000 + b"\n"])
def test_garbage_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    async def go() -> bytes:
        control = Control(tmp_path, echo)
        await control.start()
        try:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
            writer.write(line)
            answer = await reader.readline()
            writer.close()
            return answer
        finally:
            await control.close()

    assert b"error" in asyncio.run(go())


def test_an_endless_line_is_cut_off(tmp_path: Path) -> None:
    async def go() -> bytes:
        control = Control(tmp_path, echo)
        await control.start()
        try:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
            writer.write(b"x" * 300_000)
            answer = await reader.read()
            writer.close()
            return answer
        except ConnectionError:
            return b""
        finally:
            await control.close()

    assert asyncio.run(go()) == b""


def test_a_node_that_closes_without_answer_is_reported(tmp_path: Path) -> None:
    async def go() -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_unix_server(hang_up, tmp_path / "control.sock")
        try:
            await asyncio.to_thread(ask, tmp_path, {"do": "status"})
        finally:
            server.close()

    with pytest.raises(TransportError, match="answer"):
        asyncio.run(go())


def test_a_state_directory_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot listen"):
        asyncio.run(served(tmp_path / "gone", {"do": "a"}))
