from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from node.errors import GrapevineError
from scenarios import ports
from scenarios.ports import free_ports


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has taken nothing yet."""
    mine = ports._Ports()
    monkeypatch.setattr(ports, "_mine", mine)
    yield
    for held in mine._held:
        held.close()


def block(port: int) -> int:
    return (port - ports._PORT_MIN) // ports._BLOCK


def two_free_blocks() -> tuple[int, int]:
    found = ports._Ports()
    found.next()
    (one,) = (held.getsockname()[1] for held in found._held)
    found._left.clear()
    found.next()
    (_, two) = (held.getsockname()[1] for held in found._held)
    found.begin()
    return one, two


def test_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    found = free_ports(200)
    assert len(set(found)) == 200
    assert all(10_000 <= port < 32_768 for port in found)


def test_a_port_in_use_is_passed_over() -> None:
    (first,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        assert free_ports(1)[0] > first + 1


def test_what_one_process_took_no_other_takes_while_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the machine had two blocks and two processes."""
    monkeypatch.setattr(ports, "_BLOCKS", two_free_blocks())
    one, other = ports._mine, ports._Ports()
    mine = set(free_ports(10))
    monkeypatch.setattr(ports, "_mine", other)
    theirs = set(free_ports(10))
    assert {block(port) for port in mine} != {block(port) for port in theirs}
    with pytest.raises(GrapevineError, match="too many runs on this machine"):
        free_ports(64)
    one.begin()  # it has ended
    assert set(free_ports(60)).isdisjoint(theirs)
    other.begin()


def test_a_fork_takes_blocks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(free_ports(10))
    held = [socket.socket(fileno=socket.dup(one.fileno())) for one in ports._mine._held]
    monkeypatch.setattr("os.getpid", lambda: 0)
    after = set(free_ports(10))
    for one in held:
        one.close()
    assert {block(port) for port in before}.isdisjoint(block(port) for port in after)
