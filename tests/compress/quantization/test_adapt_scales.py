"""A graph fitted to other conditions: nearer to what it was, in the forms that it had, with the same nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_graph import frames, small_model, write

from edgekd.compress.quantization.adapt import adapt
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.quantization.sensitivity_4bit import relative_error
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.errors import CompressError
from edgekd.graph.fp16 import half
from edgekd.graph.session import cpu_session

WEIGHT_FORMATS: Mapping[str, WeightFormat] = {"stem": "int8", "body": "fp4x", "neck": "coded"}
STEPS = {"neck": 0.1}
COUNT = 24


def dimmed(frame: np.ndarray) -> np.ndarray:
    """Less light and some haze: what weights and biases can make up for exactly."""
    return (0.3 * frame + 0.2).astype(np.float32)


def outputs(graph: Path, given: list[np.ndarray]) -> list[np.ndarray]:
    session = cpu_session(onnx.load(graph))
    return [session.run(None, {"images": frame})[0] for frame in given]


@pytest.fixture(scope="module")
def known() -> list[np.ndarray]:
    return frames(COUNT)


@pytest.fixture(scope="module")
def base(known: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    step = Quantize(min_snr_db=-1000)
    quantize(write(small_model(), folder), folder / "int8.onnx", known, step, WEIGHT_FORMATS, STEPS)
    return folder / "int8.onnx"


@pytest.mark.parametrize("kind", ["int8", "float16", "float"])
def test_it_computes_again_what_the_old_graph_did(
    base: Path, known: list[np.ndarray], tmp_path: Path, kind: str
) -> None:
    source = {"int8": base, "float": write(small_model(), tmp_path), "float16": tmp_path / "half.onnx"}[kind]
    if kind == "float16":
        half(base, source)
    shown, out = [dimmed(frame) for frame in known], tmp_path / "out.onnx"
    scales = adapt(source, out, known, shown, shown)
    fresh = frames(6, seed=9)
    wanted = outputs(source, fresh)
    before, after = (relative_error(wanted, outputs(path, list(map(dimmed, fresh)))) for path in (source, out))
    assert after < 0.1 * before
    assert bool(scales) is (kind != "float")
    old, new = read_layers(source), read_layers(out)
    assert [layer.form for layer in old] == [layer.form for layer in new]
    assert [layer.weights.dtype for layer in old] == [layer.weights.dtype for layer in new]
    assert [node.name for node in onnx.load(source).graph.node] == [node.name for node in onnx.load(out).graph.node]
    for layer in new:
        if layer.input_scale is not None and layer.node == "stem":
            assert layer.input_scale == pytest.approx(0.5 / 127, rel=0.02), "the range of what is seen now"


def test_tensors_that_share_a_scale_still_do(base: Path, known: list[np.ndarray], tmp_path: Path) -> None:
    shown = [dimmed(frame) for frame in known]
    scales = adapt(base, tmp_path / "out.onnx", known, shown, shown)
    # The neck reads a concatenation of the sum and the pooled stem.
    assert scales["joined"] == scales["sum"] == scales["pool"]


def test_the_same_frames_give_the_same_bytes(base: Path, known: list[np.ndarray], tmp_path: Path) -> None:
    shown = [dimmed(frame) for frame in known]
    for name in ("a", "b"):
        adapt(base, tmp_path / name, known, shown, shown)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_graph_without_constant_weights_is_refused(known: list[np.ndarray], tmp_path: Path) -> None:
    model = small_model()
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[1] += ".computed"
    model.graph.node.extend(
        onnx.helper.make_node("Identity", [name.removesuffix(".computed")], [name])
        for name in sorted({node.input[1] for node in model.graph.node if node.op_type == "Conv"})
    )
    with pytest.raises(CompressError, match="nothing to change"):
        adapt(write(model, tmp_path), tmp_path / "out.onnx", known, known, known)
    assert not (tmp_path / "out.onnx").exists()
