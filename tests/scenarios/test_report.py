from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec import structs

from node.errors import StorageError
from scenarios.record import (
    Alone,
    Apart,
    Baselines,
    Check,
    DistanceRow,
    FaultSpan,
    LinkRun,
    Missed,
    NodeRun,
    PartitionRun,
    RoundRow,
    Run,
    SideRun,
)
from scenarios.report.html import html_report, write_report
from scenarios.report.tables import verdict

EVIL = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>&quot;\'"<a href="x:y">'


def a_run(*, nodes: int = 4, evil: str = "", failed: bool = False) -> Run:
    names = [f"clinic-{i}{evil}" for i in range(nodes)]
    rows, ends = [], []
    for i, name in enumerate(names):
        killed = i == 1
        rows += [
            RoundRow(
                node=name,
                round=k,
                at=k / 10,
                accuracy=0.9 + 0.01 * k,
                auroc=0.95,
                own_accuracy=0.9,
                loss=1 / k if k != 2 else float("nan"),
                mixed=(names[(i + 1) % nodes], names[i - 1]) if k < 4 else (names[i - 1],),
                distance=0.1 + 0.01 * i * k,
            )
            for k in range(1, 4 if killed else 9)
        ]
        ends.append(
            NodeRun(
                name=name,
                samples=10 + i,
                ended=f"failed: {evil}" if killed and evil else "killed" if killed else "finished",
                rounds=3 if killed else 8,
                accuracy=None if killed else 0.98,
                auroc=0.99,
                intervals={"accuracy": (0.9, 0.995)},
                missed=(Missed(names[1], 5, 4, 8, f"link down {evil}"),) if i == 0 else (),
                rejections={f"bounds{evil}": 2} if i == 2 else {},
                sent_bytes=1000,
                received_bytes=2000,
                model=f"/somewhere/{evil}",
            )
        )
    edges = tuple((names[i], names[(i + 1) % nodes]) for i in range(nodes))
    return Run(
        scenario=f"three{evil}",
        engine="processes",
        seed=1,
        rounds=8,
        training_rounds=6,
        graph_nodes=tuple(names),
        edges=edges,
        links=tuple(LinkRun(a, b, 300_000 + i, None) for i, (a, b) in enumerate(edges)),
        partitions=(
            PartitionRun(
                label=f"cut{evil}",
                start=0.1,
                end=0.3,
                sides=(
                    SideRun((names[0],), ((0.1, 0.5, 0.5), (0.2, 0.6, 0.6))),
                    SideRun(tuple(names[1:]), ((0.1, 0.5, 0.4), (0.2, 0.7, 0.6))),
                ),
                start_round=1,
                end_round=3,
                apart=(Apart(0.1, 1, 0.2, 0.1), Apart(0.2, 2, 0.4, 0.1)),
                apart_peak_ratio=4.0,
                reconverged_rounds=2,
                reconverged_s=0.25,
            ),
        ),
        nodes=tuple(ends),
        rows=tuple(rows),
        faults=(
            FaultSpan(kind=f"crash{evil}", nodes=(names[1],), start=0.3, label=f"x{evil}"),
            FaultSpan(
                kind="partition",
                nodes=tuple(names),
                start=0.1,
                end=0.3,
                label=f"y{evil}",
                sides=((names[0],), tuple(names[1:])),
            ),
        ),
        distances=(DistanceRow(0.1, 1, 0.5, 0.1), DistanceRow(0.2, 2, 0.0, 0.0)),
        consensus_distance=0.01,
        baselines=Baselines(
            local_only=tuple(Alone(node=name, accuracy=0.9) for name in names),
            pooled=Alone(node="pooled", accuracy=0.985),
        ),
        checks=(Check(f"worst node{evil}", not failed, 0.98, f"0.9{evil}"),),
        trace_hash=f"ab{evil}",
        absent=(names[1],),
        notes=(f"a note{evil}",),
        task=f"breast-cancer{evil}",
    )


class Page(HTMLParser):
    """Which elements a browser would make, and what stands between them."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self._in_script = False
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [key for key, _ in attrs if key.startswith("on") or key in ("href", "src")]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_strings_from_files_are_shown_and_never_obeyed() -> None:
    plain, evil = Page(html_report(a_run())), Page(html_report(a_run(evil=EVIL)))
    # the same elements in the same order: not one was added by a name, a reason or a label
    assert evil.tags == plain.tags
    assert evil.handlers == []
    assert len(evil.scripts) == 3
    assert EVIL in evil.text
    assert "<" not in evil.scripts[0]  # the data block cannot be closed from inside
    labels = json.dumps(json.loads(evil.scripts[0]))
    assert "<img" not in labels  # plotly obeys some HTML in labels
    assert "&lt;img" in labels


def test_only_our_scripts_may_run_and_nothing_is_fetched() -> None:
    document = html_report(a_run())
    page = Page(document)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', document)
    assert policy is not None
    allowed = re.findall(r"'sha256-([^']*)'", policy[1])
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in page.scripts[1:]
    ]
    assert allowed == hashes
    assert "default-src 'none'" in policy[1]
    assert "unsafe-inline" not in policy[1].split("style-src")[0]
    assert not {"link", "img", "iframe", "a"} & set(page.tags)


def test_every_figure_has_its_place() -> None:
    page = Page(html_report(a_run()))
    figures = json.loads(page.scripts[0])
    curves = {"accuracy", "auroc", "loss", "own", "distance"}
    assert set(figures) == curves | {"mixing", "bytes", "graph", "sides-1", "apart-1"}
    assert set(figures) <= set(page.ids)
    # what was not finite is left out, not drawn as zero
    assert all(len(line["x"]) in (2, 7) for line in figures["loss"]["data"])
    assert figures["distance"]["layout"]["yaxis"]["type"] == "log"
    assert len(figures["accuracy"]["layout"]["shapes"]) == 2


def test_the_page_says_who_was_missing_since_when() -> None:
    text = Page(html_report(a_run())).text
    words = " ".join(text.split())
    assert "3 of 4 nodes finished 8 rounds." in words
    assert "Not there to the end: clinic-1 (killed, round 3)." in words
    assert "clinic-1 clinic-0 5 4 8 link down" in words


def test_verdict_says_what_failed() -> None:
    said, good = verdict(a_run())
    assert good
    words = " ".join(said.split())  # some of the spaces do not break
    assert "right in 98.0 %, the same nodes alone in 90.0 % (worst 90.0 %)" in words
    said, good = verdict(a_run(failed=True))
    assert not good
    assert said.endswith("Not as expected: worst node.")


def test_many_nodes_become_bands_and_the_worst_rows() -> None:
    page = Page(html_report(a_run(nodes=80)))
    figures = json.loads(page.scripts[0])
    names = [line["name"] for line in figures["accuracy"]["data"]]
    assert names[1:4] == ["least to greatest", "90 %", "10 to 90 %"]
    assert names[4] == "clinic-1 (ends among the worst)"
    assert names[-1] == "mean of 80 nodes"
    assert len(names) == 8  # three of the worst, whatever the number of nodes
    assert "The 20 worst of 80 nodes." in page.text
    assert "all 80: mean, and range" in page.text
    # of many links the shares and the ranks, not a row each
    assert [line["name"] for line in figures["mixing"]["data"]] == [
        "both ends",
        "one end",
        "not mixed",
    ]
    assert figures["bytes"]["data"][0]["x"][-1] == 80


def test_the_graph_over_time() -> None:
    page = Page(html_report(a_run()))
    line = json.loads(page.scripts[0])["graph"]["timeline"]
    # the rounds at 0.1, 0.2 … 0.8; the faults begin and end at two of these
    assert [label.split(",")[0] for label in line["label"]] == [f"{k / 10} s" for k in range(1, 9)]
    assert line["distance"][1] == [0.1, 0.12, 0.14, 0.16]
    # clinic-0 is cut off until 0.3, when clinic-1 is killed; from round 4 on one end alone mixes
    assert line["links"][:4] == ["cbbc", "cbbc", "ddbb", "ddoo"]
    assert [state[1] for state in line["state"]] == list("..dddddd")
    assert "2 of 4 links cut" in line["label"][0]
    assert line["first"] == 1  # the last instant of the partition


def test_without_a_partition_the_graph_is_shown_as_it_ended() -> None:
    run = a_run()
    page = Page(html_report(structs.replace(run, faults=run.faults[:1])))
    line = json.loads(page.scripts[0])["graph"]["timeline"]
    assert line["label"][-1].split(", ")[2] == "1 node down"
    assert line["first"] == len(line["label"]) - 1


def test_malicious_nodes_are_marked_and_in_no_mean() -> None:
    run = structs.replace(a_run(nodes=30), attackers=("clinic-4",))
    page = Page(html_report(run))
    figures = json.loads(page.scripts[0])
    assert {state[4] for state in figures["graph"]["timeline"]["state"]} == {"a"}
    assert figures["accuracy"]["data"][-1]["name"] == "mean of 29 nodes"
    words = " ".join(page.text.split())
    assert "clinic-4 malicious" in words
    assert "Diamonds: malicious nodes." in words


def test_a_partition_in_words() -> None:
    words = " ".join(Page(html_report(a_run())).text.split())
    assert "clinic-0 against clinic-1, clinic-2, clinic-3." in words
    assert "drifted 0.4 apart, 4.0× as far as the same run without faults" in words
    assert "2 rounds (0.2 s) after the heal" in words


def test_who_was_mixed_with_whom() -> None:
    words = " ".join(Page(html_report(a_run())).text.split())
    assert "clinic-0 8 clinic-1 3 clinic-3 8" in words
    figure = json.loads(Page(html_report(a_run())).scripts[0])["mixing"]["data"][0]
    assert figure["z"][0][:4] == [2, 2, 2, 0]


@pytest.mark.parametrize("nodes", [200, 1000])
def test_a_large_run_stays_a_page_and_says_what_was_thinned_out(nodes: int) -> None:
    run = a_run(nodes=nodes)
    rounds = [
        structs.replace(row, round=row.round + 8 * k, at=row.at + 0.8 * k)
        for k in range(25)
        for row in run.rows
    ]
    missed = tuple(Missed(f"clinic-{k}", 2, 1, 2, "no answer") for k in range(40))
    ends = tuple(structs.replace(node, missed=missed) for node in run.nodes)
    page = Page(html_report(structs.replace(run, rows=tuple(rounds), nodes=ends)))
    assert len(page.scripts[0]) < 1_500_000
    assert page.tags.count("tr") < 150
    line = json.loads(page.scripts[0])["graph"]["timeline"]
    assert "The slider stops at" in page.text
    drawn = 200 if nodes == 200 else 250
    assert len(line["names"]) == drawn
    assert (f"{drawn} of {nodes} nodes are drawn" in page.text) == (drawn < nodes)


def test_a_run_without_rows_is_still_a_page() -> None:
    run = Run(
        scenario="s",
        engine="simulation",
        seed=0,
        rounds=1,
        training_rounds=1,
        graph_nodes=("a",),
        edges=(),
        nodes=(NodeRun(name="a", samples=1, ended="stopped", rounds=0),),
    )
    page = Page(html_report(run))
    assert set(json.loads(page.scripts[0])) == {"graph"}
    assert "0 of 1 nodes finished" in page.text
    assert "a (stopped, took no part at all)" in page.text


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(a_run(), tmp_path / "missing" / "report.html")
    write_report(a_run(), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
