"""A detector with masks on its whole way: built, scored, packed, installed, served and converted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import tiny
import tiny_segment
from once import once
from running import EdgeKD

import edgekd as api
from edgekd.agent.cli import COMMANDS, main
from edgekd.agent.serving import Served
from edgekd.builds.recipe import load_recipe, refuse_task
from edgekd.core.bundle.archive import extract, read_head
from edgekd.core.bundle.detector_rule import DETECTOR
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Masks, Preprocess, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import BundleError, SpecError
from edgekd.core.formats.golden_set import from_bytes
from edgekd.core.progress import SILENT
from edgekd.deploy.converters.contract import METADATA
from edgekd.deploy.tuned_accuracy import scored_split
from edgekd.detectors.onnx import understand

HEAD = Head("yolo", masks=Masks(tiny_segment.COUNT, tiny_segment.PIXELS, tiny_segment.PIXELS))
PIXELS = tiny_segment.PIXELS**2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data and the build of both for xavier, not to be changed."""

    def build(folder: Path) -> None:
        model, data = tiny_segment.write_model(folder / "segment.onnx"), tiny_segment.write_data(folder / "data")
        api.build(model, data, target="xavier", recipe="ptq", out=folder / "out", device="local:onnxruntime-cpu")

    return once(tmp_path_factory, "tiny-segment-build", build)


def test_the_bundle_has_the_masks_and_their_scores(built: Path) -> None:
    manifest = read_head(built / "out" / "segment-xavier.edgekd").manifest
    assert spec_from_json(manifest.detector).head == HEAD
    scored = api.score_model(built / "segment.onnx", built / "data").score
    assert scored.boxes is not None
    assert scored.map50_95 != scored.boxes.map50_95
    assert manifest.evidence.before.map50_95 == scored.map50_95
    assert scored.map50 > 0.9
    assert manifest.evidence.retention == pytest.approx(1, abs=0.1)
    report = " ".join((built / "out" / "report.html").read_text("utf-8").split())
    assert "Accuracy of masks, mAP50-95" in report
    assert "It compares masks by their pixels; mAP50-95 of the boxes alone is" in report


def test_a_report_and_a_tuned_network_are_scored_on_the_same_masks(built: Path, tmp_path: Path) -> None:
    again = shutil.copytree(built / "out", tmp_path / "out")
    assert api.analyse(again, data=built / "data", images=1).detections is not None
    manifest = read_head(built / "out" / "segment-xavier.edgekd").manifest
    split = scored_split(built / "data", manifest, SILENT)
    assert all(sample.truth.polygons for sample in split.samples)


def test_plans_are_scored_by_masks(built: Path, tmp_path: Path) -> None:
    quantized = api.quantize(built / "segment.onnx", built / "data", out=tmp_path / "out", keep=0.5)
    assert quantized.kept > 0.5


def test_the_golden_set_has_coefficients_and_prototypes(built: Path, tmp_path: Path) -> None:
    manifest = extract(built / "out" / "segment-xavier.edgekd", tmp_path / "files")
    file = next(entry.path for entry in manifest.files if entry.role == "golden")
    golden = from_bytes((tmp_path / "files" / file).read_bytes())
    assert golden.output == (1, 4 + 2 + tiny_segment.COUNT, tiny.CELLS + PIXELS)
    of_prototypes = golden.places >= tiny.CELLS
    assert of_prototypes.sum(axis=1).min() > 8
    assert set(np.abs(golden.values[of_prototypes][:, 6:]).ravel().tolist()) == {1}


def test_the_camera_gives_masks_in_pixels_of_the_frame(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, bundle = tmp_path / "state", built / "out" / "segment-xavier.edgekd"
    given = {"--state": state, "--root": tmp_path, "--runtime": "onnxruntime"}
    for command, *arguments in (["unpack", bundle], ["build"], ["selftest"], ["activate"]):
        options = [word for name, value in given.items() if name in COMMANDS[command][1] for word in (name, value)]
        assert main([command, *map(str, [*arguments, *options])]) == 0, capsys.readouterr().out
    image = cv2.imread(str(next((built / "data" / "images" / "val").glob("*.png"))))
    large = cv2.resize(image, None, fx=4, fy=4)
    with Served(state) as served:
        _, found = served.detect(large)
    assert len(found) > 0
    assert found.masks is not None
    for index, (x1, y1, x2, y2) in enumerate(found.boxes):
        left, top, mask = found.masks.crop(index)
        assert (left, top, mask.shape) == (round(x1), round(y1), (round(y2 - y1), round(x2 - x1)))
        np.testing.assert_array_equal(mask, np.arange(64) < 32 + np.zeros((64, 1)))
        assert found.masks.rle(index)["size"] == [256, 256]


@pytest.mark.parametrize(
    "masks", [{"coefficients": 0, "height": 4, "width": 4}, {"coefficients": 4, "height": 4}, {"coefficients": 4}, True]
)
def test_masks_of_a_manifest_are_checked(masks: Any) -> None:
    detector = to_plain(DetectorSpec(("a",), Preprocess(64, 64), HEAD))
    DETECTOR(detector, "detector")
    with pytest.raises(BundleError, match=r"detector\.head\.masks"):
        DETECTOR({**detector, "head": {**detector["head"], "masks": masks}}, "detector")


def test_masks_beside_rotated_boxes_or_of_finished_detections_are_refused() -> None:
    for head, named in (
        (Head("yolo", rotated=True, masks=HEAD.masks), "several"),
        (Head("end2end", masks=HEAD.masks), "kind"),
    ):
        with pytest.raises(SpecError, match=named):
            checked_spec(DetectorSpec(("a",), Preprocess(64, 64), head), "model")


def test_training_and_unsuited_conversions_are_refused(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    spec = DetectorSpec(("a",), Preprocess(64, 64), HEAD)
    refuse_task(load_recipe("ptq"), spec)
    with pytest.raises(SpecError, match="expected a detector of boxes alone; found one with masks"):
        refuse_task(load_recipe("prune"), spec)
    with pytest.raises(SpecError, match="--postprocess graph; expected a detector without masks"):
        refuse_task(load_recipe("ptq"), spec, "graph")
    refused = edgekd("convert", built / "segment.onnx", "--to", "deepstream", "--out", tmp_path / "deepstream")
    assert "--to deepstream; expected a detector of boxes alone; found one with masks" in refused.err
    converted = edgekd("convert", built / "segment.onnx", "--to", "openvino", "--out", tmp_path / "openvino")
    assert converted.code == 0, converted.err
    assert not (tmp_path / "openvino" / METADATA).exists()  # Ultralytics does not read the joined output


def test_the_description_describes_the_same_detector(built: Path, tmp_path: Path, edgekd: EdgeKD) -> None:
    described = edgekd("describe", built / "segment.onnx", "--json").json
    assert "masks = true" in described["description"]
    (tmp_path / "head.toml").write_text(described["description"], "utf-8")
    again = edgekd("describe", built / "segment.onnx", "--head", tmp_path / "head.toml", "--json").json
    assert again["detector"] == described["detector"]


def test_finished_detections_with_masks_are_refused_in_one_line(built: Path, tmp_path: Path) -> None:
    model = onnx.load(built / "segment.onnx")
    model.graph.output.pop()
    with pytest.raises(SpecError, match=r"outputs of a detector with masks; expected .* fix: pass the checkpoint"):
        understand(model, built / "segment.onnx")
