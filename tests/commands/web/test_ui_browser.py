"""`edgekd ui` in a real browser: a list, a running build, two builds compared, at desk and phone width."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from result_folders import copy_build
from running import Built

from edgekd.builds.run_progress import recorded
from edgekd.core.progress import SILENT

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
ABORTED = "net::ERR_ABORTED"
"""Of a request for news of a page that is left."""
PATIENCE_MS = 120_000
"""The machine may be busy."""


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    """The page of a process of its own, which ends by Ctrl-C as a success."""
    command = [sys.executable, "-m", "edgekd", "ui", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stderr.readline()
        yield line.split()[-1]
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert "no more pages" in process.stdout.read()


def watched(page: Any, address: str) -> list[str]:
    """What goes wrong on a page from now on: messages, errors, requests that fail or go elsewhere."""
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: None if request.failure == ABORTED else complaints.append(request.url))
    page.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else complaints.append(asked.url))
    return complaints


def require_accessible(page: Any) -> None:
    """Fail for what axe-core finds: names, labels, contrast, order of headings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    assert not found, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


@pytest.mark.parametrize(("size", "scheme"), [("desk", "light"), ("phone", "dark")])
def test_builds_are_watched_and_compared(browser: Any, address: str, runs: Path, size: str, scheme: str) -> None:
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    complaints = watched(page, address)
    page.goto(address)
    assert page.locator("h1").inner_text() == "Runs"
    boxes = page.locator(".choice input")
    boxes.first.focus()
    (runs / "live").mkdir()
    with recorded(runs / "live", "build", "m.pt", "xavier", SILENT) as progress:
        progress.note("begun")
        page.get_by_role("link", name="live").wait_for()  # without a reload
        assert page.evaluate("document.activeElement.type") == "checkbox"
        page.get_by_role("link", name="live").click()
        items = progress.items(range(4), "distill")
        next(items), next(items)
        page.get_by_label("distill: 1 of 4").wait_for()
        page.locator("summary").click()
        progress.epoch("distill", 0, {"box_loss": 2.0})
        page.get_by_text("box_loss").first.wait_for()
        assert page.locator("#lines").get_attribute("open") is None, "as the reader left it"
        require_accessible(page)
    page.get_by_text("done").wait_for()
    for path in ("", "run/first", "run/tried", "run/failed"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        require_accessible(page)
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('a, input, [tabindex]')")
    page.get_by_role("button", name="Compare two").click()
    assert page.locator("h2").first.inner_text() == "Numbers"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#numbers .met, #numbers .missed").count() == 1
    require_accessible(page)
    page.goto(address + "report/first")
    assert "tiny" in page.locator("h1").inner_text()
    assert complaints == []
    page.close()


def test_a_third_choice_takes_the_place_of_the_first_and_a_lost_server_is_said(
    browser: Any, address: str, runs: Path, tiny_build: Built
) -> None:
    copy_build(tiny_build, runs / "third")
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)

    def chosen() -> set[str]:
        return set(page.evaluate("Array.from(document.querySelectorAll('.choice input:checked'), (box) => box.value)"))

    before = chosen()
    (other,) = {"first", "nightly/second", "third"} - before
    page.get_by_label(f"Compare {other}").check()
    assert len(chosen()) == 2
    assert other in chosen()
    page.route("**/*", lambda route: route.abort())
    page.get_by_text("No answer from edgekd ui").wait_for()
    page.close()
