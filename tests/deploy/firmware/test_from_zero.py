"""The page "A camera from zero": its commands in their order, up to a strict camera that takes what they make."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from firmware import COMPATIBLE, OnCamera, accepted, need
from running import EdgeKD

from edgekd.core.bundle.archive import read_head

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "guides" / "firmware.md").read_text("utf-8")
MAX_WORDS = 1500
STEP = re.compile(r"^```(sh keys|toml trust|sh release)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_is_short() -> None:
    assert len(PAGE.split()) <= MAX_WORDS


def follow(edgekd: EdgeKD, folder: Path) -> None:
    """Run the commands of the page in a folder."""
    for info, body in STEP.findall(PAGE):
        if info == "toml trust":
            (folder / "trust.toml").write_text(body, "utf-8")
            continue
        for line in body.splitlines():
            program, *arguments = shlex.split(line)
            if program == "edgekd":
                ran = edgekd(*arguments)
                assert ran.code == 0, f"{line}: {ran.err}"
            else:
                accepted("sh", "-c", line)


def test_the_page_leads_to_a_camera_with_updates(
    edgekd: EdgeKD, bundle: Path, on_camera: OnCamera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openssl", "rauc", "mksquashfs", "swupdate", "mender-artifact")
    shutil.copy(bundle, tmp_path / "model-xavier.edgekd")
    monkeypatch.chdir(tmp_path)
    follow(edgekd, tmp_path)

    accepted("rauc", "info", "--keyring", "rauc.pem", "next.raucb")
    for name in ("next", "delta", "night", "trust"):
        accepted("swupdate", "-H", f"camera:{COMPATIBLE}", "-k", "swu.pem", "-c", "-i", f"{name}.swu")
    accepted("mender-artifact", "validate", "-k", "mender.pub", "next.mender")

    etc = on_camera.folder / "root" / "etc" / "edgekd"
    etc.mkdir(parents=True)
    shutil.copy("trust.json", etc)
    (etc / "compatible").write_text(f"{COMPATIBLE}\n", "utf-8")
    (etc / "strict").touch()
    for file, identity in (("model.edgekd", "model.edgekd"), ("next.edgekd-delta", "next.edgekd")):
        on_camera.agent("install", tmp_path / file, "--runtime", "null")
        assert on_camera.serves(tmp_path / identity)
    assert on_camera.agent("commit")["active"]
    assert on_camera.status()["counter"] == read_head(Path("next.edgekd")).manifest.counter == 2


def test_settings_of_the_page_are_those_of_the_layer() -> None:
    (quoted,) = re.findall(r"^```sh\n# install.conf\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    layer = ROOT / "examples" / "meta-edgekd" / "recipes-edgekd" / "edgekd" / "files" / "install.conf"
    assert layer.read_text("utf-8").endswith(quoted)


def test_figures_of_the_page_are_those_measured() -> None:
    rows = json.loads((ROOT / "bench" / "results" / "agent_memory.json").read_text("utf-8"))["resources"]
    figures = [
        [", ".join(f"{size / 1e6:.1f}" for size in row["bytes"].values()) for row in rows],
        *([f"{row['disk'][name] / 1e6:.1f}" for row in rows] for name in ("two slots", "two models")),
        *([f"{row['peak_mb'][name]:.0f}" for row in rows] for name in ("verify", "install", "serve")),
    ]
    table = PAGE[PAGE.index("| | demo detector | YOLO11n |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.strip("| ").split(" | ")[1:] for line in table] == figures
