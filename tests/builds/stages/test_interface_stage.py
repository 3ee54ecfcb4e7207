"""An interface that a graph cannot have is refused before anything is compressed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from running import DEVICE

import edgekd
from edgekd.core.errors import SpecError


def odd(model: onnx.ModelProto) -> None:
    """Make the input one column wider, which the first convolution leaves out."""
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value += 1


def mixing(model: onnx.ModelProto) -> None:
    """Let scores depend on all frames of a batch."""
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type = "Softmax"
    node.attribute.append(onnx.helper.make_attribute("axis", 0))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (odd, {"input_format": "nv12"}, "no NV12 frames; expected an input of even sides; found 64 x 65"),
        (mixing, {"max_batch": 2}, "no batches; expected outputs of single frames up to 0.001; found a relative error"),
    ],
)
def test_what_the_graph_cannot_have_is_refused_before_anything_is_compressed(
    change: object, options: dict[str, object], message: str, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = onnx.load(tiny_model)
    change(model)  # type: ignore[operator]
    onnx.save(model, tmp_path / "tiny.onnx")
    known = {"head": "yolo", "recipe": "ptq", "device": DEVICE[1]}
    with pytest.raises(SpecError, match=message):
        edgekd.build(tmp_path / "tiny.onnx", tiny_data, out=tmp_path / "out", **known, **options)
    stages = {each.name.split("-")[0].strip(".") for each in (tmp_path / "out" / "stages").iterdir()}
    assert stages <= {"export", "interface"}
