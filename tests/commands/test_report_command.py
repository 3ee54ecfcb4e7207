"""`edgekd report`: a finished build looked into once more, with its data and without."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from running import Built, EdgeKD
from test_cli import assert_refused
from test_json_contract import assert_documented

from edgekd import analyse
from edgekd.builds import analyse as analyse_module
from edgekd.core.errors import DeviceError


@pytest.fixture
def copy(tiny_build: Built, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_build.out, tmp_path / "run")


def change(folder: Path, **values: object) -> None:
    ledger = json.loads((folder / "ledger.json").read_bytes())
    (folder / "ledger.json").write_text(json.dumps({**ledger, **values}), "utf-8")


def test_a_build_is_analysed_where_its_data_was(edgekd: EdgeKD, copy: Path) -> None:
    ran = edgekd("report", copy, "--json")
    assert_documented(ran.json, "report")
    assert "analyse: found in the store" in ran.err
    found = ran.json
    assert (found["images"], found["missing"]) == (8, [])
    assert found["detections"]["total"]["objects"] == sum(each["objects"] for each in found["classes"])
    assert found["detections"]["total"]["kept"] == found["detections"]["total"]["objects"], "mAP50 is 1 on both sides"
    assert found["inside"]["compared"] == [{"reference": "float", "other": "shipped"}]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert set(layers) == {"cells8", "cells16", "cells32", "p3", "p4", "p5"}
    assert 0.99 < layers["cells8"]["cka"][0] <= 1
    assert layers["cells8"]["us_after"] > 0
    assert found["inside"]["times"]["after"]["basis"] == "predicted"
    assert {each["layer"] for each in found["inside"]["attention"]} == {"cells8", "cells16", "cells32"}
    page = (copy / "analysis.html").read_text("utf-8")
    assert "Objects lost and gained" in page
    assert edgekd("report", copy).out.endswith(f"report: {copy / 'analysis.html'}\n")
    called = analyse(copy)
    assert (called.document, called.report) == (found, copy / "analysis.html")
    assert (called.lost, called.gained, called.missing) == (0, 0, ())


def test_the_page_is_that_of_the_build(edgekd: EdgeKD, copy: Path) -> None:
    """But for what only a running build knows: paths of its calibration set, and the text of its provenance."""
    assert edgekd("report", copy).code == 0
    pages = ((copy / name).read_text("utf-8") for name in ("analysis.html", "report.html"))
    ours, theirs = (re.sub(r"[\d.]+\xa0s<", "s<", page) for page in pages)  # the store keeps rounded seconds
    end = "<h2>Provenance</h2>"
    assert ours[: ours.index(end)] == theirs[: theirs.index(end)]


def test_without_its_data_it_says_what_is_missing(edgekd: EdgeKD, copy: Path, tmp_path: Path) -> None:
    change(copy, data=str(tmp_path / "gone"))
    found = edgekd("report", copy, "--json").json
    assert_documented(found, "report")
    assert found["detections"] is None
    assert "pass --data" in found["missing"][0]
    assert found["inside"]["attention"] == []
    assert found["layers"][0]["cka"][0] > 0.99
    assert found["classes"][0]["after"] > 0
    page = (copy / "analysis.html").read_text("utf-8")
    assert "<h2>Missing</h2>" in page
    assert "Objects lost and gained" not in page
    ledger = json.loads((copy / "ledger.json").read_bytes())
    del ledger["data"]
    (copy / "ledger.json").write_text(json.dumps(ledger), "utf-8")
    called = analyse(copy)
    assert "not in this ledger" in called.missing[0]
    assert called.lost is None


def test_data_that_was_not_scored_is_refused(edgekd: EdgeKD, copy: Path, tiny_data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_data, tmp_path / "other")
    (other / "labels" / "val" / "000.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert_refused(edgekd("report", copy, "--data", other), "not what this build was scored on")
    assert_refused(edgekd("report", copy, "--data", tmp_path / "nowhere"), "no data set")
    assert not (copy / "analysis.html").exists()
    change(copy, data=str(other))
    assert "not what this build was scored on" in edgekd("report", copy, "--json").json["missing"][0]


def test_more_images_are_looked_at_anew(edgekd: EdgeKD, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ran = edgekd("report", copy, "--images", 3, "--out", out, "--json")
    assert ran.json["inside"]["frames"] == 3
    assert ran.json["report"] == str(out)
    assert out.is_file()
    assert "found in the store" not in ran.err


def test_a_build_that_is_not_whole_is_refused(edgekd: EdgeKD, copy: Path, tmp_path: Path) -> None:
    assert_refused(edgekd("report", tmp_path), "no finished build", "ledger.json")
    assert_refused(edgekd("report", copy, "--out", tmp_path / "none" / "page.html"), "cannot be written")
    graph = next(copy.glob("stages/quantize-*/graph.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    assert_refused(edgekd("report", copy), "stage quantize is gone or damaged", "edgekd build")
    shutil.rmtree(copy / "stages")
    assert_refused(edgekd("report", copy), "stage export is gone or damaged")


def test_a_build_does_not_fail_where_its_networks_cannot_be_looked_into(
    edgekd: EdgeKD, copy: Path, tiny_model: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise DeviceError("no memory")

    shutil.rmtree(next(copy.glob("stages/analyse-*")))
    monkeypatch.setattr(analyse_module, "similarities", refuse)
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", copy)
    assert ran.code == 0
    assert "analyse: no memory" in ran.err
    page = (copy / "report.html").read_text("utf-8")
    assert "nothing has looked into the networks" in page
    assert "Objects lost and gained" in page
