"""Small DETRs of Hugging Face transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIDE = 128
NAMES = ("red", "N/A", "green")
LEVELS: dict[str, Any] = {"feat_strides": [8, 16, 32], "encoder_hidden_dim": 32, "encoder_ffn_dim": 32}
SMALL: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 30}
HEADS: dict[str, Any] = {"decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_in_channels": [32] * 3}


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


def labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def stages() -> list[str]:
    return ["stage2", "stage3", "stage4"]


def rt_detr(names: tuple[str, ...] = NAMES) -> Any:
    return transformers.RTDetrConfig(**resnet(), **LEVELS, **SMALL, **HEADS, **labels(names))


def rt_detr_v2(names: tuple[str, ...] = NAMES) -> Any:
    return transformers.RTDetrV2Config(**resnet(), **LEVELS, **SMALL, **HEADS, **labels(names))


def d_fine(names: tuple[str, ...] = NAMES) -> Any:
    return transformers.DFineConfig(**hgnet(), **LEVELS, **SMALL, **HEADS, **labels(names))


def deimv2(names: tuple[str, ...] = NAMES) -> Any:
    return transformers.Deimv2Config(**hgnet(), **LEVELS, **SMALL, **HEADS, **labels(names))


def rf_detr(names: tuple[str, ...] = NAMES) -> Any:
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
    return transformers.RfDetrConfig(backbone_config=backbone, hidden_dim=32, **SMALL, **attention, **labels(names))


def save_detr(config: Any, folder: Path, **processor: Any) -> Path:
    """Write a model folder whose predictions vary like a trained network's: large weights, updated statistics."""
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
