"""A PyTorch module written as ONNX, the same way for every family of detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.core.errors import CompressError


def write_onnx(module: Any, height: int, width: int, graph: Path, opset: int) -> None:
    """Write a module from `images` [1, 3, h, w] to `output0` as float32 ONNX. Raises CompressError."""
    import torch

    frame = torch.zeros(1, 3, height, width)
    try:
        with torch.no_grad():
            module(frame)  # heads build their anchors for this input size, which become constants
            torch.onnx.export(
                module,
                (frame,),
                str(graph),
                opset_version=opset,
                input_names=["images"],
                output_names=["output0"],
                dynamo=False,
            )
    except Exception as error:
        raise CompressError(f"export of {graph.name} at opset {opset} failed", found=str(error)) from error
