"""The tour: its commands exist, its pictures are of them, and its part on the host works."""

from __future__ import annotations

import html
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from running import EdgeKD
from test_docs import ROOT, run_commands, write_programs

from edgekd.commands.cli import parser

PAGE, PICTURES = ROOT / "examples" / "tour" / "README.md", ROOT / "docs" / "pictures"
IMAGES = 16  # of each split: the tour, not the score, is tested
MAX_BYTES = 150_000  # of all pictures


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of each section, as docs/tour.py runs them."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    found: list[list[str]] = importlib.import_module("tour").sections()
    return found


def test_the_command_line_accepts_every_command(sections: list[list[str]]) -> None:
    calls = re.findall(r"\bedgekd (\w.*)", "".join(map("".join, sections)).replace("\\\n", ""))
    assert len({call.split()[0] for call in calls}) >= 8
    for call in calls:
        name, *arguments = shlex.split(call)
        parser(name).make_context(name, arguments)  # raises UsageError


def test_the_pictures_are_of_these_commands(sections: list[list[str]]) -> None:
    pictures = [(PICTURES / f"tour-{number}.svg").read_text("utf-8") for number in range(1, len(sections) + 1)]
    for commands, picture in zip(sections, pictures, strict=True):
        shown = "".join(html.unescape(re.sub(r"<[^>]+>", "", picture)).split())  # a long line is wrapped there
        for command in commands:
            assert "$" + "".join(command.split()) in shown
    assert sum(map(len, pictures)) <= MAX_BYTES


@pytest.mark.release
def test_the_part_on_the_host_works(
    shared: Path, tmp_path: Path, edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = shared / "data" / "coco256", tmp_path / "coco256"
    names = yaml.safe_load((source / "data.yaml").read_text("utf-8"))
    for split in ("train2017", "val2017"):
        (data / "images" / split).mkdir(parents=True)
        (data / "labels" / split).mkdir(parents=True)
        for image in sorted((source / "images" / split).iterdir())[:IMAGES]:
            shutil.copy(image, data / "images" / split)
            shutil.copy(source / "labels" / split / f"{image.stem}.txt", data / "labels" / split)
    (data / "data.yaml").write_text(yaml.safe_dump(names), "utf-8")
    (tmp_path / "yolo11n.pt").symlink_to(shared / "models" / "yolo11n.pt")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_programs(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    printed = run_commands(PAGE, edgekd)
    assert "every hash right" in printed
    assert (tmp_path / "update.edgekd-delta").stat().st_size < (tmp_path / "first.edgekd").stat().st_size
