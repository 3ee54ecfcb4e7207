"""The documentation as a site: it builds, every link on it leads somewhere, and what is made from the code is there."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accessibility import violations
from test_docs import PAGES, ROOT, commands

import edgekd
from edgekd import load_target, target_names
from edgekd.hardware.target import explain

KINDS_OF_PAGES = (
    "index",
    "getting-started/first-bundle",
    "guides/recipes",
    "concepts/quantization",
    "reference/cli",
    "reference/json",
    "examples/tour",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: what mkdocs warns of, such as a broken link, is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def plain(markup: str) -> str:
    """Return the text of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def text_of(page: Path) -> str:
    """Return the text of a page."""
    return plain(page.read_text("utf-8"))


def test_every_page_of_the_repository_is_on_the_site(site: Path) -> None:
    headings = [re.search(r"<h1[^>]*>(.*?)</h1>", page.read_text("utf-8"), re.DOTALL) for page in site.rglob("*.html")]
    titles = {plain(found[1]).removesuffix("¶").strip() for found in headings if found}
    for page in PAGES:
        title = next(line.removeprefix("# ") for line in page.read_text("utf-8").splitlines() if line.startswith("# "))
        assert title.replace("`", "") in titles, page


def test_every_number_of_every_target_is_there_with_its_source(site: Path) -> None:
    overview = text_of(site / "reference" / "targets.html")
    for name in target_names():
        assert name in overview
        page = text_of(site / "reference" / "targets" / f"{name}.html")
        for fact in explain(load_target(name)):
            assert fact.value in page
            assert fact.source in page, (name, fact.name)


def test_every_command_and_every_option_is_there(site: Path) -> None:
    page = text_of(site / "reference" / "cli.html")
    for command, flags in commands().items():
        section = page[page.index(f"edgekd {command} ") :]
        assert all(flag in section for flag in flags), command


def test_every_public_name_is_there(site: Path) -> None:
    page = text_of(site / "reference" / "python.html")
    assert all(f"edgekd.{name}" in page for name in edgekd.__all__)
    assert " at 0x" not in page, "a default that has no text of its own"


def test_the_navigation_names_its_parts_and_methods_say_what_they_are_worth_and_where_they_are_from() -> None:
    plain = re.sub(r"^\s+- pymdownx.*$", "", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.MULTILINE)
    parts = {name: pages for entry in yaml.safe_load(plain)["nav"] for name, pages in entry.items()}
    assert list(parts) == ["edgekd", "Getting started", "Guides", "Concepts", "Reference"]
    methods = next(entry["Compression"] for entry in parts["Concepts"] if "Compression" in entry)
    for page in (page for entry in methods for page in entry.values()):
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert "\n## Measured\n" in text, f"{page}: what is it worth?"
        assert "\n## Sources\n" in text, f"{page}: where is it from?"


def test_reading_it_asks_nobody_else(site: Path) -> None:
    for page in site.rglob("*.html"):
        for asked in re.findall(r"<(?:link|script|img|iframe)[^>]+(?:href|src)=\"([^\"]+)\"", page.read_text("utf-8")):
            assert "://" not in asked, (page.name, asked)


def test_it_is_searched_from_disk_without_a_network(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "guides" / "budget.html").as_uri())
    page.fill("input[name=query]", "Hotellin")
    page.press("input[name=query]", "g")  # search starts at key events
    found = page.locator(".md-search-result__item a").first.get_attribute("href")
    page.close()
    assert found.startswith((site / "concepts" / "drift.html").as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_every_image_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for source in re.findall(r"<(?:img|source)[^>]+(?:src|srcset)=\"([^\"]+)\"", page.read_text("utf-8")):
            assert source.startswith("data:") or (page.parent / source).is_file(), (page.name, source)


def test_no_markdown_is_left_as_it_was_written(site: Path) -> None:
    """mkdocs' Markdown is not the repository's: it wants empty lines before lists, and of a block its language only."""
    written = re.compile(r"```|\]\(|\*\*\w|^\s*[-*] \S|^\s*\|.*\|\s*$", re.MULTILINE)
    for page in site.rglob("*.html"):
        shown = re.search(r"<article.*?</article>", page.read_text("utf-8"), re.DOTALL)
        prose = re.sub(r"<(pre|code)[^>]*>.*?</\1>", "", shown[0] if shown else "", flags=re.DOTALL)
        left = written.search(html.unescape(re.sub(r"<[^>]+>", "", prose)))
        assert left is None, (page.name, left and left[0])


@pytest.mark.release
@pytest.mark.parametrize("name", KINDS_OF_PAGES)
def test_pages_are_accessible_on_a_phone_and_on_a_desk(site: Path, browser: Any, name: str) -> None:
    page = browser.new_page()
    page.goto((site / f"{name}.html").as_uri())
    assert violations(page) == []
    page.close()
