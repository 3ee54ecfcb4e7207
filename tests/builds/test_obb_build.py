"""A detector of rotated boxes on its whole way: built, scored, packed, installed, served and converted."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import tiny_obb
from once import once
from running import EdgeKD

import edgekd as api
from edgekd.agent.cli import COMMANDS, main
from edgekd.agent.serving import Served
from edgekd.builds.recipe import load_recipe, refuse_task
from edgekd.core.bundle.archive import extract, read_head
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.rotated import enclosing
from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Preprocess, spec_from_json
from edgekd.core.errors import SpecError
from edgekd.core.formats.golden_set import from_bytes
from edgekd.deploy.converters.contract import METADATA

HEAD = Head("yolo", rotated=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data and the build of both for xavier, not to be changed."""

    def build(folder: Path) -> None:
        model, data = tiny_obb.write_model(folder / "obb.onnx"), tiny_obb.write_data(folder / "data")
        api.build(model, data, target="xavier", recipe="ptq", out=folder / "out", device="local:onnxruntime-cpu")

    return once(tmp_path_factory, "tiny-obb-build", build)


def test_the_bundle_has_rotated_boxes_and_their_scores(built: Path) -> None:
    manifest = read_head(built / "out" / "obb-xavier.edgekd").manifest
    assert spec_from_json(manifest.detector).head == HEAD
    scored = api.score_model(built / "obb.onnx", built / "data").score
    assert (manifest.evidence.before.map50_95, scored.boxes) == (scored.map50_95, None)
    assert scored.map50 > 0.9
    assert manifest.evidence.retention == pytest.approx(1, abs=0.1)
    report = " ".join((built / "out" / "report.html").read_text("utf-8").split())
    assert "Accuracy of rotated boxes, mAP50-95" in report
    assert "It compares rotated boxes by their exact overlap" in report


def test_the_golden_set_has_the_angles_of_its_candidates(built: Path, tmp_path: Path) -> None:
    manifest = extract(built / "out" / "obb-xavier.edgekd", tmp_path / "files")
    file = next(entry.path for entry in manifest.files if entry.role == "golden")
    golden = from_bytes((tmp_path / "files" / file).read_bytes())
    assert golden.output == (1, 4 + 2 + 1, tiny.CELLS)
    np.testing.assert_allclose(golden.values[:, :, 6].astype(np.float64), tiny_obb.ANGLE, atol=1e-3)


def test_the_camera_gives_rotated_boxes_in_pixels_of_the_frame(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, bundle = tmp_path / "state", built / "out" / "obb-xavier.edgekd"
    given = {"--state": state, "--root": tmp_path, "--runtime": "onnxruntime"}
    for command, *arguments in (["unpack", bundle], ["build"], ["selftest"], ["activate"]):
        options = [word for name, value in given.items() if name in COMMANDS[command][1] for word in (name, value)]
        assert main([command, *map(str, [*arguments, *options])]) == 0, capsys.readouterr().out
    image = cv2.imread(str(next((built / "data" / "images" / "val").glob("*.png"))))
    large = cv2.resize(image, None, fx=3, fy=3)
    with Served(state) as served:
        _, found = served.detect(large)
    assert len(found) > 0
    assert found.rotated is not None
    np.testing.assert_allclose(found.rotated[:, 2:], [[48, 48, tiny_obb.ANGLE]] * len(found), rtol=1e-4)
    np.testing.assert_allclose(found.boxes, enclosing(found.rotated).clip(0, 3 * tiny.SIDE), atol=0.01)


def test_keypoints_or_stretched_frames_beside_rotated_boxes_are_refused() -> None:
    both = Head("yolo", keypoints=Keypoints((0.5,)), rotated=True)
    with pytest.raises(SpecError, match="keypoints, rotated boxes or masks; found several"):
        checked_spec(DetectorSpec(("a",), Preprocess(64, 64), both), "model")
    with pytest.raises(SpecError, match="stretch: wrong"):
        checked_spec(DetectorSpec(("a",), Preprocess(64, 64, stretch=True), HEAD), "model")


def test_training_and_unsuited_conversions_are_refused(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    spec = DetectorSpec(("a",), Preprocess(64, 64), HEAD)
    refuse_task(load_recipe("ptq"), spec)
    with pytest.raises(SpecError, match="expected a detector of boxes alone; found one with rotated boxes"):
        refuse_task(load_recipe("prune"), spec)
    refused = edgekd("convert", built / "obb.onnx", "--to", "deepstream", "--out", tmp_path / "deepstream")
    assert "--to deepstream; expected a detector of boxes alone; found one with rotated boxes" in refused.err
    converted = edgekd("convert", built / "obb.onnx", "--to", "openvino", "--out", tmp_path / "openvino")
    assert converted.code == 0, converted.err
    assert "task: obb" in (tmp_path / "openvino" / METADATA).read_text("utf-8")


def test_the_description_describes_the_same_detector(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    described = edgekd("describe", built / "obb.onnx", "--json").json
    assert "rotated = true" in described["description"]
    (tmp_path / "head.toml").write_text(described["description"], "utf-8")
    again = edgekd("describe", built / "obb.onnx", "--head", tmp_path / "head.toml", "--json").json
    assert again["detector"] == described["detector"]
