"""`edgekd compare`: two builds side by side, from what lies in their folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD
from test_cli import assert_refused
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import verify


@pytest.fixture
def small(edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny pair once more, built by the recipe mixed."""
    out = shutil.copytree(tiny_build.out, tmp_path / "small")
    flags = ("--out", out, "--recipe", "mixed", "--max-size", "550kB")
    assert edgekd("build", tiny_model, "--data", tiny_data, *flags).code == 0
    return out


def change(folder: Path, **values: Any) -> None:
    ledger = json.loads((folder / "ledger.json").read_bytes())
    (folder / "ledger.json").write_text(json.dumps({**ledger, **values}), "utf-8")


def test_two_builds_side_by_side(edgekd: EdgeKD, tiny_build: Built, small: Path) -> None:
    found = edgekd("compare", tiny_build.out, small, "--json").json
    assert_documented(found, "compare")
    assert (found["same_model"], found["same_data"], found["same_host"]) == (True, True, True)
    for which, folder, recipe in (("a", tiny_build.out, "ptq"), ("b", small, "mixed")):
        side, said = found[which], verify(folder / "tiny-xavier.edgekd")
        assert (side["run"], side["recipe"]) == (str(folder), recipe)
        assert (side["map50_95"], side["graph_bytes"]) == (said.evidence.after.map50_95, said.evidence.after.bytes)
        assert side["bundle_bytes"] == (folder / "tiny-xavier.edgekd").stat().st_size
        assert side["p50_ms"] > 0
        assert {row["name"]: row[which] for row in found["classes"]} == dict(
            zip(("red", "green"), said.evidence.after.classes, strict=True)
        )
    stages = {row["name"]: row for row in found["stages"]}
    assert stages["export"]["same"]
    assert stages["plan"]["a_seconds"] is None
    assert stages["plan"]["b_seconds"] > 0
    assert not stages["plan"]["same"]
    people = edgekd("compare", tiny_build.out, small).out
    assert "mixed" in people
    assert "do not compare" not in people


def test_what_may_not_be_compared_is_said(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_build.out, tmp_path / "other")
    change(other, host={**json.loads((other / "ledger.json").read_bytes())["host"], "threads": 999})
    ran = edgekd("compare", tiny_build.out, other)
    assert "their times do not compare" in ran.out
    assert "their scores do not compare" not in ran.out
    assert edgekd("compare", tiny_build.out, other, "--json").json["same_host"] is False


def test_a_build_that_was_stopped_while_it_replaced_another_is_not_mixed_with_it(
    edgekd: EdgeKD, tiny_build: Built, tmp_path: Path
) -> None:
    """The bundle is written some seconds before the ledger: the report is made of both."""
    other = shutil.copytree(tiny_build.out, tmp_path / "other")
    lineage = json.loads((other / "ledger.json").read_bytes())["lineage"]
    change(other, lineage={**lineage, "recipe": "mixed", "recipe_sha256": "0" * 64})
    words = ("tiny-xavier.edgekd is not the bundle of its ledger.json", "run the same `edgekd build` again")
    assert_refused(edgekd("compare", tiny_build.out, other), *words)
    assert_refused(edgekd("report", other), *words)


def test_a_ledger_by_an_older_edgekd_has_no_times(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    old = shutil.copytree(tiny_build.out, tmp_path / "old")
    ledger = json.loads((old / "ledger.json").read_bytes())
    del ledger["timing"], ledger["predicted"]
    (old / "ledger.json").write_text(json.dumps(ledger), "utf-8")
    found = edgekd("compare", old, tiny_build.out, "--json").json
    assert_documented(found, "compare")
    assert found["a"]["p50_ms"] is found["a"]["predicted_ms"] is None
    assert edgekd("compare", old, tiny_build.out).code == 0


def test_what_is_no_build_is_refused(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    assert_refused(edgekd("compare", tiny_build.out, tmp_path), "no finished build", "ledger.json")
    other = shutil.copytree(tiny_build.out, tmp_path / "other")
    (other / "ledger.json").write_text("[]", "utf-8")
    assert_refused(edgekd("compare", other, tiny_build.out), "ledger.json: cannot be read")
    change_back = shutil.copy(tiny_build.out / "ledger.json", other / "ledger.json")
    assert Path(change_back).is_file()
    bundle = other / "tiny-xavier.edgekd"
    bundle.write_bytes(bundle.read_bytes()[:100])
    assert_refused(edgekd("compare", other, tiny_build.out), "tiny-xavier.edgekd")
    bundle.unlink()
    assert_refused(edgekd("compare", other, tiny_build.out), "tiny-xavier.edgekd")
