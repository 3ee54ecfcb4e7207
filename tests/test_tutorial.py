"""The tutorial, block by block as it stands, on a real detector and real photographs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from running import EdgeKD
from test_docs import BLOCK, ROOT, blocks, run_commands, write_programs

PAGE = ROOT / "docs" / "getting-started" / "first-bundle.md"
REPLACED = {"sh install": "edgekd is installed already", "sh fetch": "detector and photographs lie in ../shared"}
"""The blocks that are not run here, and why."""
PHOTOGRAPHS = 20
HEAD = "path: coco128 # of data\ntrain: images/train2017 # 128 images\nval: images/train2017 # the same\ntest: # none\n"
TAIL = "download: https://example.com/coco128.zip\n"
"""What the published YAML has around its names."""


@pytest.fixture
def workplace(shared: Path, tmp_path: Path) -> Path:
    """What the replaced blocks leave: the detector, and photographs in one folder."""
    place, source = tmp_path / "work", shared / "data" / "coco256"
    for kind in ("images", "labels"):
        (place / "coco128" / kind / "train2017").mkdir(parents=True)
    shutil.copy(shared / "models" / "yolox_nano.onnx", place)
    for image in sorted((source / "images" / "train2017").iterdir())[:PHOTOGRAPHS]:
        shutil.copy(image, place / "coco128" / "images" / "train2017")
        label = source / "labels" / "train2017" / f"{image.stem}.txt"
        if label.is_file():
            shutil.copy(label, place / "coco128" / "labels" / "train2017")
    names = yaml.safe_load((source / "data.yaml").read_text("utf-8"))["names"]
    (place / "coco128" / "data.yaml").write_text(HEAD + yaml.safe_dump({"names": names}) + TAIL, "utf-8")
    return place


def test_every_block_is_run_or_replaced_for_a_reason() -> None:
    infos = [found["info"] for found in BLOCK.finditer(PAGE.read_text("utf-8"))]
    assert set(infos) == {"sh run", *REPLACED}
    assert all(infos.count(info) == 1 for info in REPLACED)
    replaced = "".join(blocks(PAGE, info)[0] for info in REPLACED)
    assert not re.search(r"\bedgekd (?!edgekd)[a-z]+ ", replaced.replace('--editable ".[', "")), "only what is replaced"


@pytest.mark.slow
def test_the_tutorial_leads_to_a_verified_bundle(
    workplace: Path, edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_programs(workplace.parent, monkeypatch)
    monkeypatch.chdir(workplace)
    printed = run_commands(PAGE, edgekd)
    assert "every hash right" in printed
    assert "trusted" in printed
    assert printed.count("refused") == 1, "the broken bundle, and nothing else"
    assert "self-test: passed" in printed
