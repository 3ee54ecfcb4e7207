"""PyTorch networks with a description of their head: export with decoded boxes, and use as teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import MIN_PROBABILITY, DetectorFeatures, Predictions
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.detectors.heads.decoding import OUTPUT, append_decoding
from edgekd.detectors.heads.description import HeadDescription
from edgekd.detectors.torch_support import write_onnx
from edgekd.graph.session import cpu_session
from edgekd.graph.view import load_graph

_OPSET = 17
_IR_VERSION = 8
"""IR version; with _OPSET for the graph that only decodes. ONNX Runtime 1.20 and newer support both."""


Outputs = Callable[[Any], Sequence[torch.Tensor]]
"""Returns the outputs, in the order of `output_names`, from a network's return value."""


def output_names(described: HeadDescription) -> tuple[str, ...]:
    """Return the names of a network's outputs, in the order in which its module returns them."""
    return (*described.predictions, *described.scores, *described.boxes)


def export_described(
    module: Any, described: HeadDescription, size: tuple[int, int], graph: Path, opset: int, where: str
) -> Head:
    """Write a module as float32 ONNX, and append the decoding of its outputs.

    Args:
        module: Returns the outputs of `output_names` for frames float32 [1, 3, h, w].
        described: The complete description of its head.
        size: Height and width of the frames.
        where: Start of error messages.

    Returns the decoded head. Raises CompressError if the export fails, SpecError if outputs contradict the description.
    """
    import onnx

    write_onnx(_FixedShapes(module), *size, graph, opset, output_names(described))
    model = load_graph(graph)
    head = append_decoding(model, described, size, where)
    onnx.save(model, graph)
    return head


class RawOutputs(nn.Module):  # type: ignore[misc]
    """A network in evaluation mode that returns its raw outputs for frames float32 [1, 3, h, w].

    described: its head and classes; size: height and width of the frames; outputs: selects them from its return value.
    """

    def __init__(self, network: Any, described: HeadDescription, size: tuple[int, int], outputs: Outputs) -> None:
        super().__init__()
        self.network = network.float().eval()
        self.described, self.size, self._outputs = described, size, outputs

    @property
    def preprocess(self) -> Preprocess:
        """Preparation of a frame for the network."""
        return self.described.preprocess(Preprocess(*self.size))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._outputs(self.network(frames)))

    def export(self, graph: Path, opset: int, where: str) -> DetectorSpec:
        """Write the network like `export_described`; return the graph's contract. Raises CompressError, SpecError."""
        head = export_described(self, self.described, self.size, graph, opset, where)
        return checked_spec(DetectorSpec(self.described.classes, self.preprocess, head), where)

    def teacher(self) -> DescribedTeacher:
        """Return the network as a teacher."""
        return DescribedTeacher(self, self.described, self.preprocess)


class _FixedShapes(nn.Module):  # type: ignore[misc]
    """A module whose outputs get constant shapes in an exported graph, because shape inference may not find them."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(values.reshape([int(side) for side in values.shape]) for values in self.module(frames))


def decoded(module: Any, described: HeadDescription, size: tuple[int, int], batch: np.ndarray) -> np.ndarray:
    """Return a module's outputs for a batch float32 [1, 3, h, w], decoded as in the exported graph."""
    with torch.no_grad():
        return _decoded_outputs(described, size, module(torch.from_numpy(batch)))


def _decoded_outputs(
    described: HeadDescription, size: tuple[int, int], values_by_output: Sequence[torch.Tensor]
) -> np.ndarray:
    """Return the raw outputs of one frame decoded, float32 [1, 4 + classes, n], by a graph that only decodes."""
    from onnx import TensorProto, helper

    found = [values.float().cpu().numpy() for values in values_by_output]
    outputs = dict(zip(output_names(described), found, strict=True))

    def values(suffix: str) -> list[Any]:
        shapes = {name: list(value.shape) for name, value in outputs.items()}
        return [helper.make_tensor_value_info(name + suffix, TensorProto.FLOAT, shapes[name]) for name in shapes]

    nodes = [helper.make_node("Identity", [f"{name}.raw"], [name], f"{name}.node") for name in outputs]
    graph = helper.make_graph(nodes, "decoding", values(".raw"), values(""))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    append_decoding(model, described, size, "decoding")
    feeds = {f"{name}.raw": value for name, value in outputs.items()}
    return np.asarray(cpu_session(model).run([OUTPUT], feeds)[0])


class DescribedTeacher(nn.Module):  # type: ignore[misc]
    """A network as a teacher of boxes and classes, without anchors and feature maps; see `Teacher`.

    Args:
        module: As for `export_described`.
        described: The complete description of its head.
        preprocess: Preparation of frames that the module expects.
    """

    widths: tuple[int, ...] = ()
    strides: tuple[float, ...] = ()

    def __init__(self, module: nn.Module, described: HeadDescription, preprocess: Preprocess) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.classes = described.classes
        usual = Preprocess(preprocess.height, preprocess.width)
        self.preprocess = replace(preprocess, color=usual.color, scale=usual.scale, mean=usual.mean, std=usual.std)
        self._described, self._expected = described, preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(3, 1, 1))

    def forward(self, frames: torch.Tensor) -> DetectorFeatures:
        """Return the objects in frames float32 [b, 3, h, w] of the teacher's own size, RGB, 0 to 1."""
        size = height, width = self.preprocess.height, self.preprocess.width
        ordered = frames.flip(1) if self._expected.color == "bgr" else frames
        batch = (ordered * (255 * self._expected.scale) - self.mean) / self.std
        with torch.autocast(frames.device.type, enabled=False):  # boxes are fractions of the frame
            raw = self.module(batch.float())
        one_each = zip(*(values.split(1) for values in raw), strict=True)
        rows = np.concatenate([_decoded_outputs(self._described, size, one) for one in one_each])
        found = torch.from_numpy(rows).to(frames.device)
        boxes = found[:, :4] / found.new_tensor([width, height, width, height])[:, None]
        objects = Predictions(found[:, 4:].logit(MIN_PROBABILITY), boxes)
        return DetectorFeatures(Grid(((height, width),), (1.0,)), (), (), {}, objects)
