"""Make the batch dimension of a single-frame graph dynamic: the first dimension of its input and outputs.

If no operation mixes frames, a batch size of 1 is hard-coded only in Reshape shapes, and in constants that are
concatenated with activations. That frames are not mixed is verified, not read from the nodes: shapes are inferred for
several frames, and outputs are compared with those of single frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.core.errors import SpecError
from edgekd.graph.node_writer import NodeWriter
from edgekd.graph.session import copied, cpu_session
from edgekd.graph.view import Graph, array, attribute, inputs_of, where

AXIS = "batch"
"""Name of the dynamic dimension."""
_MARK = 7  # batch size of the shape inference: a size that few tensors have
_FRAMES = 2  # batch size of the comparison
_MAX_ERROR = 1e-3  # relative error of the output: a runtime may sum a batch in another order
_FIX = "build without --batch; --streams of the service runs several engines at once"


def take_batches(model: Any, name: str) -> None:
    """Make the batch dimension of a single-frame ModelProto dynamic, in place.

    name: of the graph, for errors. Raises SpecError if its nodes mix frames, or a batch gives other outputs.
    """
    import onnx

    single = copied(model)
    _rewrite(model)
    del model.graph.value_info[:]
    first_sides = [value.type.tensor_type.shape.dim[0] for value in (*inputs_of(model), *model.graph.output)]
    first_sides[0].dim_value = _MARK
    for side in first_sides[1:]:
        side.Clear()
    _require_separate_frames(model, name)
    for side in first_sides:
        side.dim_param = AXIS
    onnx.checker.check_model(model)
    _require_same_outputs(single, model, name)


def _rewrite(model: Any) -> None:
    """Replace a first dimension of 1 in Reshape and Concat nodes by the batch size, in place."""
    graph, writer, nodes = Graph(model), NodeWriter("edgekd.batch"), []
    (frame,), shapes = graph.inputs, graph.shapes
    of_frames = {frame}  # tensors that depend on the frame
    for node in graph.nodes:
        if of_frames.intersection(node.input):
            of_frames.update(node.output)
            written = len(writer.nodes)
            if node.op_type == "Concat":
                _expand_constants(graph, writer, node, of_frames, frame)
            nodes += writer.nodes[written:]
        if node.op_type == "Reshape" and node.input[0] in of_frames and node.input[1] in graph.constants:
            first = shapes.get(node.input[0], ())[:1]
            if not attribute(node, "allowzero", 0):
                _copy_first_side(model, node, array(graph.constants[node.input[1]]), first=first[0] if first else None)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(writer.constants)


def _expand_constants(graph: Graph, writer: NodeWriter, node: Any, of_frames: set[str], frame: str) -> None:
    """Expand the inputs of a Concat that do not depend on the frame to the batch size."""
    for index, name in enumerate(node.input):
        constant = graph.constants.get(name)
        shape = tuple(constant.dims) if constant is not None else graph.shapes.get(name, ())
        if name not in of_frames and shape[:1] == (1,) and None not in shape and attribute(node, "axis", 0):
            count = writer.slice(writer.add("Shape", [frame]), 0, 1, axis=0)
            target = writer.add("Concat", [count, np.array(shape[1:], np.int64)], axis=0)
            node.input[index] = writer.add("Expand", [name, target])


def _copy_first_side(model: Any, node: Any, target: np.ndarray, first: int | None) -> None:
    """Replace a first dimension of 1 in the shape of a Reshape: by 0 (copy) if its input has 1, else by -1 (infer)."""
    import onnx

    if not target.size or target[0] != 1 or (first != 1 and -1 in target):
        return
    changed = target.copy()
    changed[0] = 0 if first == 1 else -1
    shape = f"{node.output[0]}.shape"
    model.graph.initializer.append(onnx.numpy_helper.from_array(changed, shape))
    node.input[1] = shape


def _require_separate_frames(model: Any, name: str) -> None:
    """Raise SpecError if shape inference fails, or the first dimension of an output is not the batch size."""
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # exceptions of onnx's C++ code have no common base class
        raise SpecError(f"{name}: no batches", found=str(error)[:300], fix=_FIX) from error
    graph = Graph(model)
    first_sides = {tensor: shape[0] for tensor, shape in graph.shapes.items() if shape}
    if all(first_sides.get(output) in (_MARK, None) for output in graph.outputs):
        return
    readers = [node for node in graph.nodes if any(first_sides.get(tensor) == _MARK for tensor in node.input)]
    mixing = [
        node
        for node in readers
        if node.op_type != "Shape" and all(first_sides.get(tensor) not in (_MARK, None) for tensor in node.output)
    ]
    expected, found = "nodes that treat each frame alone", where(mixing[:1]) if mixing else "an output of fixed size"
    raise SpecError(f"{name}: no batches", expected=expected, found=found, fix=_FIX)


def _require_same_outputs(single: Any, batched: Any, name: str) -> None:
    """Raise SpecError unless each frame has the same output in a batch as alone."""
    (value,) = inputs_of(single)
    kind = value.type.tensor_type
    rng = np.random.default_rng(0)
    shape = (_FRAMES, *(side.dim_value for side in kind.shape.dim[1:]))
    is_bytes = kind.elem_type == 2  # TensorProto.UINT8
    frames = rng.integers(0, 256, shape, np.uint8) if is_bytes else rng.random(shape, np.float32)
    alone, together = (cpu_session(each) for each in (single, batched))
    try:
        expected = np.concatenate([alone.run(None, {value.name: frame[None]})[0] for frame in frames])
        (found,) = together.run(None, {value.name: frames})
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise SpecError(f"{name}: no batches", found=str(error)[:300], fix=_FIX) from error
    if found.shape != expected.shape:
        shapes = (str(list(each.shape)) for each in (expected, found))
        raise SpecError(f"{name}: no batches", expected=next(shapes), found=next(shapes), fix=_FIX)
    # Sorted: rounding may exchange candidates of nearly the same score.
    found, expected = (np.sort(each.reshape(_FRAMES, -1).astype(np.float64)) for each in (found, expected))
    distance = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-12))
    if not distance <= _MAX_ERROR:
        limit = f"outputs of single frames up to {_MAX_ERROR:g}"
        raise SpecError(f"{name}: no batches", expected=limit, found=f"a relative error of {distance:.2g}", fix=_FIX)
