"""DETRs in INT8: convolutions and linear layers are quantized; selection, sampling and normalization stay float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_detrs import SIDE, d_fine, deimv2, rf_detr, rt_detr, rt_detr_v2, save_detr

from edgekd.compress.quantization.placement import float_head, place
from edgekd.compress.quantization.quantize import prepared, quantize
from edgekd.compress.steps import Quantize
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.graph.fp16 import half
from edgekd.graph.session import cpu_session
from edgekd.graph.view import Graph

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's own

FLOAT = ("GridSample", "LayerNormalization", "Softmax", "TopK")


@pytest.mark.parametrize(
    "config",
    [
        rf_detr,
        pytest.param(d_fine, marks=pytest.mark.slow),
        # Of the same layers.
        *(pytest.param(each, marks=pytest.mark.release) for each in (rt_detr, rt_detr_v2, deimv2)),
    ],
    ids=lambda each: each.__name__,
)
def test_all_layers_but_the_last_are_in_int8_and_the_rest_is_float(config: Callable[[], Any], tmp_path: Path) -> None:
    source, built, narrow = (tmp_path / name for name in ("float.onnx", "int8.onnx", "half.onnx"))
    export(load(save_detr(config(), tmp_path / "model")), source, 17)
    rng = np.random.default_rng(0)
    frames = [rng.uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(4)]
    done = quantize(source, built, frames, Quantize(min_snr_db=-1000))
    floating = prepared(source)
    assert done.int8 == place(floating).layers
    head = {name for name, form in done.forms.items() if form == "float16"}
    assert head <= float_head(floating)
    assert len(done.int8) > 5 * len(head)

    graph = Graph(onnx.load(built))
    onnx.checker.check_model(graph.model, full_check=True)
    pairs = {node.output[0] for node in graph.of("DequantizeLinear")}
    assert pairs.isdisjoint(name for node in graph.of(*FLOAT) for name in node.input)
    half(built, narrow)
    for each in (built, narrow):
        (output,) = cpu_session(str(each)).run(None, {graph.model.graph.input[0].name: frames[0]})
        assert np.isfinite(output).all()
