"""DETRs by transformers: folders with random weights export to graphs that predict what transformers itself does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's own
SIDE = 128
LEVELS: dict[str, Any] = {"feat_strides": [8, 16, 32], "encoder_hidden_dim": 32, "encoder_ffn_dim": 32}
SMALL: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 30}
HEADS: dict[str, Any] = {"decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_in_channels": [32] * 3}
NAMES = {"id2label": {0: "red", 1: "N/A", 2: "green"}, "label2id": {"red": 0, "N/A": 1, "green": 2}}


def resnet() -> dict[str, Any]:
    widths = [8, 16, 24, 32]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_features=stages()
    )
    return {"backbone_config": backbone, "encoder_in_channels": widths[1:], "decoder_n_points": 2}


def hgnet() -> dict[str, Any]:
    widths = [16, 24, 32, 40]
    backbone = transformers.HGNetV2Config(
        embedding_size=8,
        hidden_sizes=widths,
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, *widths[:3]],
        stage_mid_channels=[8] * 4,
        stage_out_channels=widths,
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        out_features=stages(),
    )
    points = {"decoder_n_points": [2, 2, 2], "hidden_expansion": 0.5}
    return {"backbone_config": backbone, "encoder_in_channels": widths[1:], **points}


def stages() -> list[str]:
    return ["stage2", "stage3", "stage4"]


def rt_detr() -> Any:
    return transformers.RTDetrConfig(**resnet(), **LEVELS, **SMALL, **HEADS, **NAMES)


def rt_detr_v2() -> Any:
    return transformers.RTDetrV2Config(**resnet(), **LEVELS, **SMALL, **HEADS, **NAMES)


def d_fine() -> Any:
    return transformers.DFineConfig(**hgnet(), **LEVELS, **SMALL, **HEADS, **NAMES)


def deimv2() -> Any:
    return transformers.Deimv2Config(**hgnet(), **LEVELS, **SMALL, **HEADS, **NAMES)


def rf_detr() -> Any:
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=SIDE // 2,
        patch_size=16,
        num_windows=2,
        out_features=["stage2"],
        num_register_tokens=0,
        window_block_indexes=[0],
    )
    attention = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "decoder_n_points": 2}
    return transformers.RfDetrConfig(backbone_config=backbone, hidden_dim=32, **SMALL, **attention, **NAMES)


def save_detr(config: Any, folder: Path, **processor: Any) -> Path:
    """Write a folder whose predictions vary like those of a trained network: large weights, and their statistics."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    network = transformers.AutoModelForObjectDetection.from_config(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(pixel_values=torch.rand(4, 3, SIDE, SIDE))
    network.save_pretrained(folder)
    processor_of(config)(size={"height": SIDE, "width": SIDE}, **processor).save_pretrained(folder)
    return folder


def processor_of(config: Any) -> Any:
    return transformers.RfDetrImageProcessor if config.model_type == "rf_detr" else transformers.RTDetrImageProcessor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_detr(rt_detr(), tmp_path / "model")


@pytest.mark.parametrize(
    "config",
    [rt_detr, *(pytest.param(each, marks=pytest.mark.slow) for each in (rt_detr_v2, d_fine, deimv2, rf_detr))],
    ids=lambda each: each.__name__,
)
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
        ("config.json", {"d_model": 64}, "architecture and weights"),
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
