"""A detector with keypoints on its whole way: built, scored, packed, installed, served and converted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
import tiny_pose
from once import once
from running import Built, EdgeKD

import edgekd as api
from edgekd.agent.cli import COMMANDS, main
from edgekd.agent.serving import Served
from edgekd.builds.recipe import load_recipe, recipe_names, refuse_task
from edgekd.builds.search.setup import detector_facts
from edgekd.builds.search.space import DetectorFacts
from edgekd.core.bundle.archive import extract, read_head
from edgekd.core.bundle.detector_rule import DETECTOR
from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Preprocess, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import BundleError, SpecError
from edgekd.core.formats.golden_set import from_bytes
from edgekd.deploy.converters.contract import METADATA

KEYPOINTS = Keypoints((0.5, 0.5), 3)
QUANTIZED_ONLY = {"float", "mixed", "ptq"}
"""Recipes that train and change nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data and the build of both for xavier, not to be changed."""

    def build(folder: Path) -> None:
        model, data = tiny_pose.write_model(folder / "pose.onnx"), tiny_pose.write_data(folder / "data")
        device = "local:onnxruntime-cpu"
        api.build(model, data, target="xavier", recipe="ptq", out=folder / "out", device=device)

    return once(tmp_path_factory, "tiny-pose-build", build)


def frame(built: Path) -> np.ndarray:
    return cv2.imread(str(next((built / "data" / "images" / "val").glob("*.png"))))


def test_the_bundle_has_the_keypoints_and_their_scores(built: Path) -> None:
    manifest = read_head(built / "out" / "pose-xavier.edgekd").manifest
    assert spec_from_json(manifest.detector).head == Head("yolo", keypoints=KEYPOINTS)
    scored = api.score_model(built / "pose.onnx", built / "data").score
    assert scored.boxes is not None
    assert scored.map50_95 != scored.boxes.map50_95
    assert manifest.evidence.before.map50_95 == scored.map50_95 > 0.3
    assert manifest.evidence.retention == pytest.approx(1, abs=0.1)
    report = " ".join((built / "out" / "report.html").read_text("utf-8").split())
    assert "It compares keypoints by OKS; mAP50-95 of the boxes alone is" in report
    assert "Accuracy of keypoints, mAP50-95" in report


def test_the_golden_set_has_the_keypoints_of_its_candidates(built: Path, tmp_path: Path) -> None:
    manifest = extract(built / "out" / "pose-xavier.edgekd", tmp_path / "files")
    file = next(entry.path for entry in manifest.files if entry.role == "golden")
    golden = from_bytes((tmp_path / "files" / file).read_bytes())
    values = golden.values.astype(np.float64)
    assert golden.output == (1, 4 + 2 + 6, tiny.CELLS)
    np.testing.assert_allclose(values[:, :, 6:8], values[:, :, :2] - values[:, :, 2:4] / 2)


def test_the_camera_gives_keypoints_in_pixels_of_the_frame(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, bundle = tmp_path / "state", built / "out" / "pose-xavier.edgekd"
    given = {"--state": state, "--root": tmp_path, "--runtime": "onnxruntime"}
    for command, *arguments in (["unpack", bundle], ["build"], ["selftest"], ["activate"]):
        options = [word for name, value in given.items() if name in COMMANDS[command][1] for word in (name, value)]
        assert main([command, *map(str, [*arguments, *options])]) == 0, capsys.readouterr().out
    large = cv2.resize(frame(built), None, fx=2, fy=4)
    with Served(state) as served:
        _, found = served.detect(large)
    assert len(found) > 0
    assert found.keypoints is not None
    assert found.keypoints.shape == (len(found), 2, 3)
    np.testing.assert_allclose(found.keypoints[:, :, :2].reshape(-1, 4), found.boxes, atol=0.1)
    np.testing.assert_allclose(found.keypoints[:, :, 2], [tiny_pose.VISIBLE] * len(found), atol=1e-5)


def test_a_bundle_without_keypoints_says_nothing_of_them(tiny_build: Built) -> None:
    assert "keypoints" not in read_head(tiny_build.bundle).manifest.detector["head"]


@pytest.mark.parametrize(
    "keypoints", [{"sigmas": [], "dimensions": 3}, {"sigmas": [0.5], "dimensions": 4}, {"sigmas": [0.5]}]
)
def test_keypoints_of_a_manifest_are_checked(keypoints: dict[str, Any]) -> None:
    detector = to_plain(DetectorSpec(("a",), Preprocess(64, 64), Head("yolo", keypoints=KEYPOINTS)))
    DETECTOR(detector, "detector")
    with pytest.raises(BundleError, match=r"detector\.head\.keypoints"):
        DETECTOR({**detector, "head": {**detector["head"], "keypoints": keypoints}}, "detector")


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_train_or_prune_are_refused(name: str) -> None:
    spec = DetectorSpec(("a",), Preprocess(64, 64), Head("yolo", keypoints=KEYPOINTS))
    recipe = load_recipe(name)
    refuse_task(recipe, DetectorSpec(("a",), Preprocess(64, 64), Head("yolo")))
    if name in QUANTIZED_ONLY:
        refuse_task(recipe, spec)
        return
    with pytest.raises(SpecError, match=f"recipe {name} .*; expected a detector of boxes alone; found one with 2 keyp"):
        refuse_task(recipe, spec)


def test_a_search_only_chooses_formats_of_layers() -> None:
    def facts(keypoints: Keypoints | None) -> DetectorFacts:
        spec = DetectorSpec(("a",), Preprocess(64, 64), Head("yolo", keypoints=keypoints))
        graph = SimpleNamespace(result=SimpleNamespace(spec=spec))
        return detector_facts(Path("pose.pt"), graph, ("yolo11n.pt",))  # type: ignore[arg-type]

    assert facts(None).trains
    assert facts(KEYPOINTS) == DetectorFacts(64, 32)  # without all that a family of networks can do


def test_scores_of_keypoints_and_of_boxes_are_printed(built: Path, edgekd: EdgeKD) -> None:
    printed = edgekd("eval", built / "pose.onnx", "--data", built / "data")
    assert [line.split("  ")[0] for line in printed.out.splitlines()][1:3] == ["all", "all, boxes alone"]
    document = edgekd("eval", built / "pose.onnx", "--data", built / "data", "--json").json
    assert document["boxes"]["map50"] == pytest.approx(1)


def test_conversions_keep_keypoints_or_refuse_them(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    model = built / "pose.onnx"
    refused = edgekd("convert", model, "--to", "deepstream", "--out", tmp_path / "deepstream")
    assert "--to deepstream; expected a detector of boxes alone; found one with 2 keypoints" in refused.err
    converted = edgekd("convert", model, "--to", "openvino", "--out", tmp_path / "openvino")
    assert converted.code == 0, converted.err
    metadata = (tmp_path / "openvino" / METADATA).read_text("utf-8")
    assert "task: pose" in metadata
    assert "kpt_shape:\n- 2\n- 3\n" in metadata


def test_the_description_of_keypoints_describes_the_same_detector(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    described = edgekd("describe", built / "pose.onnx", "--json").json
    (tmp_path / "head.toml").write_text(described["description"], "utf-8")
    again = edgekd("describe", built / "pose.onnx", "--head", tmp_path / "head.toml", "--json").json
    assert again["detector"] == described["detector"]
    assert json.dumps(described["detector"]["head"]["keypoints"]) == '{"sigmas": [0.5, 0.5], "dimensions": 3}'
