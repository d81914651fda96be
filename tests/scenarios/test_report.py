from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from node.errors import StorageError
from scenarios.record import (
    Alone,
    Baselines,
    Check,
    DistanceRow,
    FaultSpan,
    Missed,
    NodeRun,
    RoundRow,
    Run,
)
from scenarios.report import html_report, write_report
from scenarios.report_tables import verdict

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
                at=0.1 * k,
                accuracy=0.9 + 0.01 * k,
                auroc=0.95,
                own_accuracy=0.9,
                loss=1 / k if k != 2 else float("nan"),
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
    return Run(
        scenario=f"three{evil}",
        engine="processes",
        seed=1,
        rounds=8,
        training_rounds=6,
        graph_nodes=tuple(names),
        edges=tuple((names[i], names[(i + 1) % nodes]) for i in range(nodes)),
        nodes=tuple(ends),
        rows=tuple(rows),
        faults=(FaultSpan(kind=f"crash{evil}", nodes=(names[1],), start=0.3, label=f"x{evil}"),),
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
    assert set(figures) == {"accuracy", "auroc", "loss", "own", "distance", "bytes", "graph"}
    assert set(figures) <= set(page.ids)
    # what was not finite is left out, not drawn as zero
    assert all(len(line["x"]) in (2, 7) for line in figures["loss"]["data"])
    assert figures["distance"]["layout"]["yaxis"]["type"] == "log"
    assert len(figures["accuracy"]["layout"]["shapes"]) == 1


def test_the_page_says_who_was_missing_since_when() -> None:
    text = Page(html_report(a_run())).text
    words = " ".join(text.split())
    assert "3 of 4 nodes finished 8 rounds." in words
    assert "Not there to the end: clinic-1 (killed, round 3)." in words
    assert "clinic-1 clinic-0 5 4 8 link down" in words


def test_verdict_says_what_failed() -> None:
    said, good = verdict(a_run())
    assert good
    assert "right in 98.0 %, the same nodes alone in 90.0 % (worst 90.0 %)" in said
    said, good = verdict(a_run(failed=True))
    assert not good
    assert said.endswith("Not as expected: worst node.")


def test_many_nodes_become_bands_and_the_worst_rows() -> None:
    page = Page(html_report(a_run(nodes=80)))
    figures = json.loads(page.scripts[0])
    assert figures["accuracy"]["data"][0]["name"] == "best node"
    assert len(figures["accuracy"]["data"]) == 5
    assert "The 64 worst of 80 nodes." in page.text


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
