"""Formats that a detector can be converted to, one module each; their libraries are imported when converting."""

from __future__ import annotations

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.deploy.converters.deepstream import DEEPSTREAM
from edgekd.deploy.converters.ncnn import NCNN
from edgekd.deploy.converters.onnx_file import ONNX
from edgekd.deploy.converters.openvino_ir import OPENVINO
from edgekd.deploy.converters.tensorrt_rtx import TENSORRT_RTX_ENGINE
from edgekd.deploy.converters.types import Format

__all__ = ["FORMATS", "Format", "format_named"]

FORMATS: tuple[Format, ...] = (ONNX, OPENVINO, NCNN, TENSORRT_RTX_ENGINE, DEEPSTREAM)
_ELSEWHERE = {
    "tensorrt": "TensorRT builds its engine where it runs: `edgekd build --target T`, then `edgekd engine BUNDLE "
    "--device ssh://...`",
    **dict.fromkeys(
        ("litert", "tflite"),
        "convert the .pt with litert-torch, in its own environment: see docs/guides/convert.md",
    ),
}
"""Formats that edgekd does not convert to, with the text on what to use instead."""


def format_named(name: str) -> Format:
    """Return the format `name`. Raises SpecError, suggesting the nearest name or another command."""
    by_name = {each.name: each for each in FORMATS}
    if name not in by_name:
        fix = _ELSEWHERE.get(name) or did_you_mean(name, by_name)
        raise SpecError(f"unknown format {name}", expected=f"one of {', '.join(by_name)}", fix=fix)
    return by_name[name]
