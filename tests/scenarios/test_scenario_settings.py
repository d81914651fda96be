"""The scenario file: what is read, and each thing that is refused before anything starts."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from scenarios.faults import Crash, Heal, Partition, Restart
from scenarios.settings import library_names, load_scenario, parse_scenario

HEAD = """
name = "t"
topology = { kind = "ring", nodes = 6 }
[task]
name = "quadratic"
[learning]
rounds = 10
local_steps = 2
[compute]
step_ms = 100
"""
CUT = '[[event]]\nat = "0.5s"\npartition = [["n0", "n1", "n2"], ["n3", "n4", "n5"]]\n'
PAUSE = '[[event]]\nat = "0.5s"\npause = "n1"\n'
HEAL = '[[event]]\nat = "1s"\nheal = true\n'


def parse(text: str, head: str = HEAD):
    return parse_scenario(head + text, source="t.toml")


def test_events_become_faults_in_the_order_in_which_they_happen() -> None:
    scenario = parse(
        HEAL + CUT + '[[event]]\nat = "250ms"\ncrash = "n1"\n'
        '[[event]]\nat = "1.5s"\nrestart = ["n1"]\n'
    )
    assert [type(fault) for fault in scenario.faults] == [Crash, Partition, Heal, Restart]
    partition = scenario.faults[1]
    assert isinstance(partition, Partition)
    assert partition.cuts("n2", "n3")
    assert not partition.cuts("n0", "n1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[event]]\nat = "1s"\ncras = "n0"\n', "did you mean 'crash'"),
        ('[[event]]\nat = "1s"\ncrash = "n9"\n', "no node 'n9'"),
        ('[[event]]\nat = "1s"\ncrash = []\n', "names no node"),
        ('[[event]]\nat = "-1s"\ncrash = "n0"\n', "before the start"),
        ('[[event]]\nat = "soon"\ncrash = "n0"\n', 'expected "3s"'),
        ('[[event]]\nat = "round 0"\ncrash = "n0"\n', "rounds count from 1"),
        ('[[event]]\nat = "2s"\ncrash = "n0"\n', "may be over after 2 s"),
        ('[[event]]\nat = "round 10"\ncrash = "n0"\n', "must come before that"),
        ('[[event]]\nat = "1s"\n', "exactly one of"),
        ('[[event]]\nat = "1s"\ncrash = "n0"\nheal = true\n', "found heal and crash"),
        (HEAL, "heal without a partition"),
        (CUT + CUT.replace("0.5s", "0.6s"), "still lasts"),
        (CUT.replace('"n3"', '"n2"'), "sides overlap: 'n2' is in 1 and 2"),
        ('[[event]]\nat = "1s"\npartition = [["n0"]]\n', "at least two sides"),
        ('[[event]]\nat = "1s"\npartition = [["n0"], ["n2"]]\n', "no edge of the topology crosses"),
        ('[[event]]\nat = "1s"\nrestart = "n0"\n', "which is not down"),
        ('[[event]]\nat = "0.5s"\ncrash = "n0"\n[[event]]\nat = "1s"\ncrash = "n0"\n', "is down"),
        ('[[event]]\nat = "1s"\nslow = { nodes = ["n0"], factor = 0 }\n', "event[0].slow.factor"),
        ('[[event]]\nat = "1s"\nlink = { a = "n0", b = "n2", loss = 0.1 }\n', "no edge n0–n2"),
        ('[[event]]\nat = "1s"\nlink = { a = "n0", b = "n1" }\n', "changes nothing"),
        ('[[event]]\nat = "1s"\nlink = { a = "n0", loss = 0.1 }\n', "both a and b"),
        (
            '[[event]]\nat = "1s"\nname = "x"\ncrash = "n0"\n' * 1
            + CUT.replace("[[event]]", '[[event]]\nname = "x"'),
            "two events",
        ),
        ('[[event]]\nat = "1s"\ncrash = "x-*"\n', "no node 'x-*'"),
        ('[[event]]\nat = "1s"\npause = "m1"\n', "did you mean 'n1'"),
        ('[[event]]\nat = "1s"\npause = "n1"\n', "'n1' is paused and never resumed"),
        ('[[event]]\nat = "1s"\nresume = "n1"\n', "resume of 'n1', which is not paused"),
        (PAUSE + PAUSE.replace("0.5s", "0.6s"), "'n1' is paused already"),
        (PAUSE + '[[event]]\nat = "0.6s"\ncrash = "n1"\n', "resume it first"),
        ('[[event]]\nat = "0.1s"\ncrash = "n[12]"\n' + PAUSE, "'n1' is down"),
        ('[[event]]\nat = "1s"\nclog = { a = "n0" }\n', "needs both a and b"),
        ('[[event]]\nat = "1s"\nclog = { a = "n0", b = "n3" }\n', "no edge n0–n3"),
        ('[[event]]\nat = "1s"\nunclog = { a = "n0", b = "*" }\n', "n0–n1, which is not clogged"),
        ('[[event]]\nat = "1s"\nclog = {}\n[[event]]\nat = "1.1s"\nclog = {}\n', "clogged already"),
        ('[[event]]\nat = "1s"\ncrash = "n0"\none_way = true\n', "belongs to a partition"),
        ('[[event]]\nat = "1s"\ncrash = "n0"\ndisk = "none"\n', "belongs to a restart"),
        ('[[event]]\nat = "1s"\nlink = { corrupt = 1.5 }\n', "event[0].link.corrupt"),
        (CUT.replace('"n3", ', '"n[2-3]", '), "sides overlap: 'n2' is in 1 and 2"),
        ('[[event]]\nat = "1s"\nclock_skew = { nodes = "n0" }\n', "offset_s"),
        ('[[event]]\nat = "1s"\ndisk_ful = "n0"\n', "did you mean 'disk_full'"),
        ("[expect]\nacuracy_min = 0.5\n", "did you mean 'accuracy_min'"),
        ("[expect]\naccuracy_min = 1.5\n", "expect.accuracy_min"),
        ("[expect]\nreconverged_within_rounds = 5\n", "no heal or restart"),
        ("[expect]\nfinished_min = 7\n", "7 of 6 nodes"),
        ('[[link]]\na = "n0"\nb = "n2"\n', "no edge n0–n2"),
        ('[[link]]\na = "n0"\nb = "nX"\n', "no node 'nX'"),
        ('[[link]]\na = "n0"\nb = "n1"\n[[link]]\na = "n1"\nb = "n0"\n', "stands twice"),
        ("[network]\nlatency = 4\n", "did you mean 'latency_ms'"),
        ('[network]\ntransport = "mqt"\n', "network.transport"),
        ('[[node]]\nname = "m1"\nstep_ms = 5\n', "no node 'm1'; did you mean 'n1'"),
        ('[[node]]\nname = "n1"\n', "node[0]"),
        (
            '[[node]]\nname = "n[0-2]"\nstep_ms = 5\n[[node]]\nname = "n2"\nstep_ms = 9\n',
            "[[node]] 2: key 'name': 'n2' is in an earlier [[node]]",
        ),
        # the quickest node may be through after 10 × 2 × 40 ms
        ('[[event]]\nat = "1s"\ncrash = "n0"\n[[node]]\nname = "n5"\nstep_ms = 40\n', "0.8 s"),
        ('[[event]]\nat = "1s"\nreset = { a = "n0", b = "n3" }\n', "no edge n0–n3"),
        ("[start]\nmembers = 9\n", "there are 6 nodes"),
        ("[start]\nat_latest = 2027-01-01T00:00:00Z\n", "say after_s"),
    ],
)
def test_the_impossible_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert said in str(error.value)
    assert str(error.value).startswith("t.toml: ")
    assert "\n" not in str(error.value)


def test_groups_of_nodes_are_named_by_pattern() -> None:
    scenario = parse(
        '[[event]]\nat = "1s"\npartition = [["n[0-2]"], ["n3", "n[4-5]"]]\none_way = true\n'
        '[[event]]\nat = "1.1s"\nslow = { nodes = ["n1", "n*"], factor = 2 }\n'
        '[[event]]\nat = "1.2s"\nclog = { a = "n0", b = "*" }\n'
    )
    cut, slow, clog = scenario.faults
    assert isinstance(cut, Partition)
    assert cut.sides == (("n0", "n1", "n2"), ("n3", "n4", "n5"))
    assert cut.holds("n2", "n3")
    assert not cut.holds("n3", "n2")
    assert slow.nodes == ("n1", "n0", "n2", "n3", "n4", "n5")
    assert clog.pairs == (("n0", "n1"), ("n0", "n5"))


def test_mixed_clocks_must_be_written_in_order() -> None:
    text = '[[event]]\nat = "{}"\ncrash = "n0"\n[[event]]\nat = "round 3"\ncrash = "n1"\n'
    assert len(parse(text.format("0.1s")).faults) == 2
    late = '[[event]]\nat = "0.2s"\ncrash = "n2"\n[[event]]\nat = "round 1"\ncrash = "n3"\n'
    with pytest.raises(ConfigError, match="write them in the order"):
        parse(text.format("0.5s") + late)


def test_a_missing_file_names_the_nearest_of_the_library() -> None:
    with pytest.raises(ConfigError, match="did you mean 'wan-partition'"):
        load_scenario("wan-partitoin")
    with pytest.raises(ConfigError, match="no such file"):
        load_scenario("nowhere/x.toml")


def test_the_library_is_readable_by_name() -> None:
    assert {"wan-partition", "crash-and-return", "hospitals"} <= set(library_names())
    for name in library_names():
        assert load_scenario(name).name == name


def test_a_node_takes_its_own_time_for_a_step() -> None:
    scenario = parse('[[node]]\nname = ["n[0-1]", "n5"]\nstep_ms = 400\n')
    assert scenario.step_ms == {
        **dict.fromkeys(("n0", "n1", "n5"), 400.0),
        **dict.fromkeys(("n2", "n3", "n4"), 100.0),
    }


def test_links_take_what_network_and_link_say() -> None:
    scenario = parse('[network]\nlatency_ms = 7\n[[link]]\na = "n1"\nb = "n0"\nloss = 0.5\n')
    assert scenario.link_shape("n0", "n1").loss == 0.5
    assert scenario.link_shape("n0", "n1").latency_ms == 7
    assert scenario.link_shape("n2", "n1").loss == 0
