"""DETRs by transformers: folders with random weights export to graphs that predict what transformers itself does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundle_runs import require_agent_runs, require_bundle_runs
from family_marks import BUILT, of_families
from running import EdgeKD
from tiny_detrs import SIDE, d_fine, deimv2, processor_of, rf_detr, rt_detr, rt_detr_v2, save_detr

from edgekd.compress.steps import Distill
from edgekd.core.bundle.archive import verify
from edgekd.core.canonical import file_sha256
from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export
from edgekd.detectors.family import detector_file, load_teacher
from edgekd.detectors.teacher import paired_aids
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.hardware.compatibility import check_graph
from edgekd.hardware.target import load_target, opset_for

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's own

NAMES = {rt_detr: "RT-DETR", rt_detr_v2: "RT-DETRv2", d_fine: "D-FINE", deimv2: "DEIMv2", rf_detr: "RF-DETR"}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of image processors with `do_normalize`."""
TEACHERS = {rt_detr: "RT-DETR", d_fine: "D-FINE"}
OTHERS = {config: name for config, name in NAMES.items() if config is not d_fine}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_detr(rt_detr(), tmp_path / "model")


@pytest.mark.parametrize("config", of_families("transformers", NAMES, "describe", fast=[rt_detr]))
def test_a_graph_predicts_what_transformers_predicts(config: Callable[[], Any], tmp_path: Path) -> None:
    """Boxes, scores, classes and their order, by the own preprocessing and postprocessing of the package."""
    folder = save_detr(config(), tmp_path / "model", do_normalize=True)
    found = export(load(folder), tmp_path / "graph.onnx", 17)
    assert found.spec.classes == ("red", "green")
    assert found.error <= TOLERANCE
    frame = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    batch, placement = letterbox(frame, found.spec.preprocess)
    with ONNXRUNTIME_CPU.load(tmp_path / "graph.onnx") as session:
        output = session.run(batch)
    ours = decode(output, found.spec, placement, replace(SCORING, max_detections=10**6))

    processor = processor_of(config()).from_pretrained(folder)
    network = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = network(**processor(images=frame[..., ::-1].copy(), return_tensors="pt"))
    outputs.logits[..., 1] = -30  # N/A
    (theirs,) = processor.post_process_object_detection(outputs, threshold=0.001, target_sizes=[(SIDE, SIDE)])
    count = len(theirs["scores"])
    assert 20 <= count <= len(ours)  # theirs: as many as there are queries
    np.testing.assert_allclose(ours.scores[:count], theirs["scores"], atol=1e-4)
    np.testing.assert_array_equal(ours.classes[:count], theirs["labels"] // 2)
    np.testing.assert_allclose(ours.boxes[:count], np.clip(theirs["boxes"], 0, SIDE), atol=1e-4 * SIDE)


@pytest.mark.slow
def test_for_xavier_a_transformer_has_no_operator_that_its_tensorrt_lacks(folder: Path, tmp_path: Path) -> None:
    xavier = load_target("xavier")
    export(load(folder), tmp_path / "graph.onnx", opset_for(xavier))
    findings = check_graph(tmp_path / "graph.onnx", xavier)
    assert not [each for each in findings if each.level == "impossible"]
    assert any("normalizations written with older operators" in each.what for each in findings)


def edited(folder: Path, name: str, **values: Any) -> Path:
    content = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps({**content, **values}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "detr"}, "model_type rt_detr|model_type d_fine"),
        ("config.json", {"backbone": "resnet50"}, "backbone_config"),
        ("config.json", {"backbone_config": {"model_type": "timm_backbone"}}, "backbone_config"),
        ("config.json", {"quantization_config": {}}, "float weights"),
        ("config.json", {"id2label": ["red"]}, "name of each class"),
        ("config.json", {"d_model": 64}, "architecture and weights of rt_detr"),
        ("config.json", {"decoder_layers": 3}, "the weights of this rt_detr"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 800}}, "height and width"),
        ("preprocessor_config.json", {"do_normalize": True, "image_mean": [0.5]}, "three numbers"),
    ],
)
def test_a_folder_that_is_no_detector_is_refused(
    name: str, values: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        load(edited(folder, name, **values)).export(tmp_path / "graph.onnx", 17)


def test_code_beside_a_model_never_runs(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\n", "utf-8")
    automatic = {"AutoConfig": "modeling.Config", "AutoModelForObjectDetection": "modeling.Model"}
    load(edited(folder, "config.json", auto_map=automatic)).export(tmp_path / "graph.onnx", 17)
    assert not ran.exists()


def test_pickled_weights_are_not_taken(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SpecError, match="no such file"):
        load(folder)


@pytest.mark.slow
@pytest.mark.family("D-FINE", *BUILT, package="transformers")
def test_a_folder_becomes_a_bundle(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    model = save_detr(d_fine(("red", "green")), tmp_path / "finder")
    ran = edgekd("build", model, "--data", tiny_data, "--target", "cpu", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    bundle = Path(ran.json["bundle"])
    assert bundle.name == "finder-cpu.edgekd"
    manifest = verify(bundle)
    assert manifest.lineage.model_sha256 == file_sha256(model / "model.safetensors")
    assert manifest.graph.length < 0.5 * (model / "model.safetensors").stat().st_size
    given, shipped = (edgekd("eval", each, "--data", tiny_data, "--json").json for each in (model, bundle))
    assert given["map50_95"] == manifest.evidence.before.map50_95
    assert shipped["map50_95"] == manifest.evidence.after.map50_95
    require_agent_runs(bundle, tiny_data, tmp_path)


@pytest.mark.parametrize("config", of_families("transformers", OTHERS, *BUILT, release=OTHERS))
def test_other_folders_become_bundles(config: Callable[..., Any], tiny_data: Path, tmp_path: Path) -> None:
    require_bundle_runs(save_detr(config(("red", "green")), tmp_path / "finder"), tiny_data, tmp_path)


@pytest.mark.parametrize("config", of_families("transformers", TEACHERS, "teach", release=TEACHERS))
def test_a_folder_teaches_what_it_predicts(config: Callable[..., Any], tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("edgekd.detectors.ultralytics.distill")
    path = detector_file(save_detr(config(("red", "green")), tmp_path / "teacher", do_normalize=True))
    teacher, expected = load_teacher(path), load(path)
    frames = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        objects = teacher(frames).objects
    mean, std = (np.reshape(values, (3, 1, 1)) for values in IMAGENET)
    for index, frame in enumerate(frames.numpy()):
        output = expected.reference(((frame - mean) / std).astype(np.float32)[None])[0]
        np.testing.assert_allclose(objects.boxes[index] * SIDE, output[:4], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(objects.scores[index].sigmoid(), output[4:], atol=1e-4)
    step = Distill("yolo11n.yaml", width=0.06, epochs=1, batch=6, image_size=64, warmup_steps=0)
    done = distill.distill_student(path, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert min(done.losses[0]["classes"], done.losses[0]["boxes"]) > 0
    assert done.teacher_parameters == sum(each.numel() for each in teacher.parameters())


@pytest.mark.slow
@pytest.mark.family("RT-DETR", "teach", package="transformers")
def test_a_student_learns_from_a_folder(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    teacher, out = save_detr(rt_detr(("red", "green")), tmp_path / "finder"), tmp_path / "out"
    flags = ("--data", tiny_data, "--width", 0.06, "--epochs", 1, "--out", out, "--json")
    ran = edgekd("distill", teacher, "yolo11n.yaml", *flags)
    assert ran.code == 0, ran.err
    assert (ran.json["teacher"], ran.json["checkpoint"]) == ("finder", str(out / "student.pt"))
    assert min(ran.json["losses"][0][name] for name in ("classes", "boxes")) > 0
    assert ran.json["before"]["map50_95"] is not None


def test_a_teacher_without_maps_is_refused_where_maps_are_compared() -> None:
    teacher = SimpleNamespace(widths=(), strides=())
    with pytest.raises(SpecError, match="no feature maps"):
        paired_aids((8,), (8.0,), teacher, Distill("yolo11n.yaml"))
    assert not paired_aids((8,), (8.0,), teacher, Distill("yolo11n.yaml"), live=False).projectors
