"""The order of faults, what they are said to have done, and a restart that comes too soon."""

from __future__ import annotations

import signal
from pathlib import Path

from sims import quadratic

from scenarios.founding import Seat
from scenarios.nursery import Child
from scenarios.processes_log import NodeLog
from scenarios.processes_outages import ProcessOutages
from scenarios.weather import Change


class Hands:
    """Processes that only write down what is done to them."""

    def __init__(self, names: tuple[str, ...], folder: Path) -> None:
        self.time = 0.0
        self.did: list[tuple[str, str]] = []
        self.told: list[Change] = []
        self.logs = {}
        for name in names:
            state = folder / name / "state"
            state.mkdir(parents=True)
            self.logs[name] = NodeLog(
                Seat(
                    name=name,
                    node_toml=folder / "node.toml",
                    folder=folder / name,
                    state=state,
                    part=folder / "rows",
                    port=1,
                    samples=1,
                )
            )

    def now(self) -> float:
        return self.time

    def clock(self) -> float:
        return 1000 + self.time

    def launch(self, name: str) -> None:
        self.did.append(("launch", name))
        self.logs[name].begin(Child(0))

    def kill(self, name: str) -> None:
        self.did.append(("kill", name))
        self.end(name, -signal.SIGKILL)
        self.logs[name].life.killed = True

    def stop(self, name: str) -> None:
        self.did.append(("stop", name))

    def go_on(self, name: str) -> None:
        self.did.append(("go on", name))

    def tell(self, change: Change) -> None:
        self.told.append(change)

    def restore(self, name: str, disk: str) -> None:
        self.did.append((f"restore {disk}", name))

    def end(self, name: str, code: int) -> None:
        child = self.logs[name].life.child
        assert child is not None
        child.code = code


def begun(folder: Path, *events: str) -> tuple[ProcessOutages, Hands]:
    tables = "".join(f"[[event]]\n{event}\n" for event in events)
    scenario = quadratic(tables, rounds=40)
    hands = Hands(scenario.graph.nodes, folder)
    outages = ProcessOutages(scenario, hands)
    for name in hands.logs:
        if name not in outages.before():
            hands.launch(name)
    hands.did.clear()
    return outages, hands


def test_faults_happen_in_order_each_waiting_for_the_one_before(tmp_path: Path) -> None:
    outages, hands = begun(
        tmp_path,
        'at = "1s"\ncrash = "n0"',
        'at = "round 5"\nrestart = "n0"',
        'at = "2s"\npause = "n1"',
        'at = "3s"\nresume = "n1"',
    )
    hands.time = 2.5
    assert [fault.kind for fault in outages.look()] == ["crash"]
    assert hands.did == [("kill", "n0")]
    assert not outages.waits  # for a round, which nobody may mix any more
    hands.logs["n3"].round = 5
    assert [fault.kind for fault in outages.look()] == ["restart", "pause"]
    assert hands.did[1:] == [("launch", "n0"), ("stop", "n1")]
    assert outages.waits
    assert outages.unhappened == ["resume at 3s"]
    assert outages.notes == ("'resume at 3s' never happened: the run was over before",)
    crash, pause = outages.spans()
    assert (crash.start, crash.end) == (2.5, 2.5)
    assert pause.end is None
    assert [one.rounds["n3"] for one in outages.happened] == [0, 5, 5]
    assert "n0" not in outages.happened[1].rounds  # it was down


def test_who_is_killed_at_the_start_is_not_started_and_what_needs_a_process_waits(
    tmp_path: Path,
) -> None:
    outages, hands = begun(
        tmp_path,
        'at = "0s"\ncrash = "n4"',
        'at = "0s"\nclock_skew = { nodes = "n1", offset_s = 5 }',
        'at = "0s"\npause = "n1"',
        'at = "1s"\nresume = "n1"',
    )
    assert hands.logs["n4"].ended() == "killed"
    assert outages.skew_s == {"n1": 5}
    assert hands.did == []
    outages.look()
    assert hands.did == [("stop", "n1")]


def test_a_fault_on_a_node_that_has_ended_does_nothing_and_says_so(tmp_path: Path) -> None:
    outages, hands = begun(tmp_path, 'at = "1s"\ncrash = "n0"', 'at = "2s"\nrestart = "n0"')
    hands.end("n0", 0)
    hands.time = 3.0
    outages.look()
    assert hands.did == []
    assert outages.notes == (
        "'crash at 1s' did nothing: n0 had ended before",
        "'restart at 2s' did nothing: n0 was not down",
    )


def test_a_node_that_stops_for_want_of_room_after_the_room_was_made_comes_back(
    tmp_path: Path,
) -> None:
    outages, hands = begun(
        tmp_path,
        'at = "1s"\ndisk_full = ["n0", "n1", "n2"]',
        'at = "2s"\nrestart = ["n0", "n1", "n2"]',
    )
    hands.time = 1.0
    outages.look()
    hands.end("n0", 4)
    hands.time = 2.0
    outages.look()
    assert hands.did == [("launch", "n0")]  # the others may yet have met their full disks
    hands.end("n1", 4)
    assert outages.waits
    outages.look()
    assert hands.did[1:] == [("launch", "n1")]
    hands.end("n2", 0)
    outages.look()
    assert hands.did[2:] == []
    assert outages.notes == ("'restart at 2s' did nothing: n2 was not down",)
    assert [hands.logs[name].resumed for name in ("n0", "n1", "n2")] == [1, 1, 0]
    assert all(span.end == 2.0 for span in outages.spans())


def test_links_are_told_to_nodes_and_a_disk_is_restored_before_the_start(tmp_path: Path) -> None:
    outages, hands = begun(
        tmp_path,
        'at = "1s"\npartition = [["n0"], ["n1", "n2"]]',
        'at = "2s"\ncrash = "n3"',
        'at = "3s"\nrestart = "n3"\ndisk = "none"',
    )
    hands.time = 4.0
    outages.look()
    assert [change.sides for change in hands.told] == [(("n0",), ("n1", "n2")), None]
    assert hands.told[1].disk_full == {"n3": False}
    assert hands.did == [("kill", "n3"), ("restore none", "n3"), ("launch", "n3")]
