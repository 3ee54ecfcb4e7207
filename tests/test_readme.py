"""README.md is short, pictures are there, and what is generated in it is what the results give."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from test_docs import BLOCK, ROOT, commands

from edgekd import __version__
from edgekd.core.toml import read_toml

README = (ROOT / "README.md").read_text("utf-8")
TOUR = ROOT / "examples" / "tour" / "README.md"
IMAGE = re.compile(r'(?:src|srcset)="([^"]+)"')
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


def words_of(markdown: str) -> list[str]:
    """Return the words that a reader sees, without tags, addresses of links, and signs."""
    shown = re.sub(r"<[^>]+>|\]\([^)]*\)|[`*|]", " ", markdown)
    return [word for word in shown.split() if re.search(r"\w", word)]


@pytest.mark.parametrize("script", ["results.py", "readme.py", "diagrams.py"])
def test_results_are_those_of_the_benchmarks(script: str) -> None:
    command = [sys.executable, ROOT / "docs" / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_it_is_read_in_minutes_and_says_at_once_what_to_install() -> None:
    lines = README.splitlines()
    assert len(words_of(lines[2])) <= 12, "the sentence under the title"
    assert any(line.startswith("pip install") for line in lines[:15])
    for line in lines:
        assert not line.startswith("- ") or len(words_of(line[2:])) <= 14, line
    before, _, rest = README.partition("<!-- results -->\n")
    table, _, after = rest.partition("<!-- /results -->")
    assert len(table.splitlines()) <= 2 + 6
    assert len(words_of(before + after)) <= 420


def test_it_groups_every_command_once() -> None:
    rows = re.findall(r"^\| (?:make|measure|ship|operate) \| (.*) \|$", README, re.MULTILINE)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows))) == sorted(commands())


def test_every_extra_that_it_installs_exists() -> None:
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    for named in re.findall(r"\.\[([\w,]+)\]", README):
        assert set(named.split(",")) <= set(extras)


def test_pictures_of_all_pages_are_there_small_and_described() -> None:
    shown = {ROOT / path for path in IMAGE.findall(BLOCK.sub("", README))}
    shown |= {(TOUR.parent / path).resolve() for path in IMAGE.findall(TOUR.read_text("utf-8"))}
    for page in (ROOT / "docs").rglob("*.md"):
        pictures = PICTURE.findall(BLOCK.sub("", page.read_text("utf-8")))
        assert all(len(text.split()) > 3 for text, _ in pictures), page
        shown |= {(page.parent / path).resolve() for _, path in pictures}
    assert {*(ROOT / "docs" / "pictures").iterdir()} == shown
    for path in shown:
        assert path.stat().st_size <= 300_000
        assert not re.search(rb"(?:url\(|href=)['\"]?http", path.read_bytes()), "asks nobody else"
    for path, text in re.findall(r'<img src="([^"]+)" alt="([^"]+)"', README):
        assert "badge" not in path or f"<title>{text}</title>" in (ROOT / path).read_text("utf-8")
    assert README.count("<img ") == README.count(' alt="')


def test_what_a_forge_reads_is_well_formed() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = read_toml(ROOT / "pyproject.toml")["project"]
    assert (citation["version"], citation["license"]) == (__version__, project["license"])
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for form in forms:
        content = yaml.safe_load(form.read_text("utf-8"))
        assert {"name", "description", "body"} <= set(content)
        for field in content["body"]:
            assert field["type"] == "markdown" or field["id"]
