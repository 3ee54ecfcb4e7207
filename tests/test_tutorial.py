"""The tutorial, block by block as it stands, on a real detector and real photographs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import BRIEFLY
from test_docs import BLOCK, ROOT, blocks

PAGE = ROOT / "docs" / "tutorial.md"
REPLACED = {"sh install": "edgekd is installed already", "sh fetch": "detector and photographs lie in ../shared"}
"""The blocks that are not run here, and why."""
PHOTOGRAPHS = 20
HEAD = "path: coco128 # of data\ntrain: images/train2017 # 128 images\nval: images/train2017 # the same\ntest: # none\n"
TAIL = "download: https://example.com/coco128.zip\n"
"""What the published YAML has around its names."""


@pytest.fixture
def workplace(shared: Path, tmp_path: Path) -> Path:
    """What the replaced blocks leave: the detector, and photographs in one folder; `edgekd` and `python3` in `bin`."""
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
    (tmp_path / "bin").mkdir()
    for name, call in (("edgekd", "-m edgekd "), ("python3", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {call}"$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return place


def test_every_block_is_run_or_replaced_for_a_reason() -> None:
    infos = [found["info"] for found in BLOCK.finditer(PAGE.read_text("utf-8"))]
    assert set(infos) == {"sh run", *REPLACED}
    assert all(infos.count(info) == 1 for info in REPLACED)
    replaced = "".join(blocks(PAGE, info)[0] for info in REPLACED)
    assert not re.search(r"\bedgekd (?!edgekd)[a-z]+ ", replaced.replace('--editable ".[', "")), "only what is replaced"


@pytest.mark.slow
def test_the_tutorial_leads_to_a_verified_bundle(workplace: Path) -> None:
    script = "set -eux\n" + "".join(blocks(PAGE, "sh run"))
    environment = {**os.environ, **BRIEFLY, "PATH": f"{workplace.parent / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "every hash right" in done.stdout
    assert "trusted" in done.stdout
    assert done.stdout.count("refused") == 1, "the broken bundle, and nothing else"
    assert "self-test: passed" in done.stdout
