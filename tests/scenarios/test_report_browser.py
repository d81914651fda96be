"""The report in a real browser: it draws, the slider moves the graph, and nothing is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sims import quadratic

from scenarios.report.html import write_report
from scenarios.simulation import simulate

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
FAULTS = """
[[event]]
at = "0.5s"
partition = [["n[0-2]"], ["n[3-5]"]]
[[event]]
at = "1.5s"
heal = true
[[event]]
at = "2s"
crash = "n4"
[expect]
reconverged_within_rounds = 10
"""
NODES = "#graph .scatterlayer .trace:last-child path.point"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    run = simulate(quadratic(FAULTS, topology='kind = "ring", nodes = 6', rounds=30))
    write_report(run, path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        except sync_api.Error as error:  # it crashes at its own start, before any page of ours
            pytest.skip(f"chromium does not start here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, open; a word on the console that is no mere log fails the test."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []

    def hear(said: Any) -> None:
        if said.type in ("error", "warning"):
            complaints.append(said.text)

    opened.on("console", hear)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    opened.wait_for_selector(NODES)
    yield opened
    opened.close()
    assert complaints == []


def colours(page: Any) -> list[str]:
    fills = page.eval_on_selector_all(NODES, "all => all.map(one => getComputedStyle(one).fill)")
    return list(fills)


def legend(page: Any) -> set[str]:
    """How links are drawn at this instant."""
    return set(page.locator("#graph .legendtext").all_text_contents())


def test_the_slider_opens_and_closes_the_partition(page: Any) -> None:
    slider, now = page.locator("#graph-time"), page.locator("#graph-now")
    # at first: the end of the partition
    sync_api.expect(now).to_contain_text("2 of 6 links cut")
    assert "cut or held" in legend(page)
    cut = colours(page)
    assert len(cut) == 6
    slider.press("Home")
    sync_api.expect(now).not_to_contain_text("cut")
    assert "cut or held" not in legend(page)
    before = colours(page)
    assert len(before) == 6
    assert before != cut
    slider.press("End")
    sync_api.expect(now).to_contain_text("1 node down")
    assert "an end is down" in legend(page)
    assert colours(page) not in (before, cut)


def test_it_plays_to_the_end_and_stops(page: Any) -> None:
    slider, button = page.locator("#graph-time"), page.locator("#graph-play")
    slider.press("End")
    slider.press("ArrowLeft")
    button.click()
    sync_api.expect(slider).to_have_value(slider.get_attribute("max"))
    sync_api.expect(button).to_have_text("Play")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.reload()
    page.wait_for_selector(NODES)
    edges = page.eval_on_selector_all(
        ".figure .main-svg", "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(edges) <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_figure_is_drawn(page: Any) -> None:
    empty = page.eval_on_selector_all(
        ".figure", "all => all.filter(one => !one.querySelector('.main-svg')).map(one => one.id)"
    )
    assert empty == []
    assert page.locator(".figure").count() >= 5
