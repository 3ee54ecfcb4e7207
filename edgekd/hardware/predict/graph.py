"""The work in an ONNX graph, as TensorRT would run it: what is fused into one kernel counts as one.

A convolution or product takes up the batch norm, activation and addition that follow it; elementwise operators in a row
are one kernel; quantizing, dequantizing and changes of shape cost nothing. So a Q/DQ graph is read as the graph it
stands for. Source: the TensorRT developer guide on layer fusion. Mish, which is not in its list, is a kernel by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from edgekd.core.canonical import file_sha256
from edgekd.core.errors import SpecError
from edgekd.graph.view import KINDS, GraphView, attribute, view_of
from edgekd.hardware.predict.work import Kind, Work

COMPUTING = tuple(name for names in KINDS.values() for name in names)
FREE = frozenset("Cast Dropout Flatten Identity QuantizeLinear DequantizeLinear Reshape Squeeze Unsqueeze".split())
"""Operators that leave the numbers where they are, or are part of the kernel beside them."""
FUSED = frozenset("Add BatchNormalization Clip Elu HardSigmoid HardSwish LeakyRelu Mul Relu Sigmoid Sub Tanh".split())
"""Operators that the kernel of a convolution or product takes up."""
ELEMENTWISE = FUSED | frozenset(
    "Abs And Ceil Div Equal Erf Exp Floor Gelu Greater Less Log Max Min Mish Mod Neg Not Or Pow PRelu Reciprocal Round"
    " Selu Sign Softplus Softsign Sqrt Swish Where".split()
)
ONNX = ("", "ai.onnx")
COPIES = frozenset(("Concat", "Slice", "Split"))


def works_in(graph: Path) -> tuple[Work, ...]:
    """The work in an ONNX file, in order. Raises SpecError: no ONNX file, or sizes that are not fixed."""
    try:
        digest = file_sha256(graph)
    except OSError:
        digest = ""  # what reads it next says why it cannot be read
    return _works(graph, digest)


@lru_cache(maxsize=8)  # a build asks for that of the same two graphs several times, seconds each
def _works(graph: Path, digest: str) -> tuple[Work, ...]:
    import onnxslim

    from edgekd.detectors.onnx import load_graph

    # Sizes that the graph computes for itself become constants.
    return works_of(view_of(onnxslim.slim(load_graph(graph))), str(graph))


def works_of(view: GraphView, name: str) -> tuple[Work, ...]:
    """The work in a graph, in order; `name` is what errors call it. Raises SpecError: sizes that are not fixed."""
    flow = _Flow(view, name)
    return tuple(flow.work(kernel) for kernel in flow.kernels())


def computing_nodes(view: GraphView) -> list[Any]:
    """The nodes that make something of the frame, in order."""
    flow = _Flow(view, "graph")
    return [node for node in view.nodes if not flow.free(node)]


def work_name(node: Any) -> str:
    """What the work that begins with a node is called."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


@dataclass
class _Kernel:
    """Nodes that run as one: the first says what it is. tensors: what they make."""

    first: Any
    nodes: list[Any] = field(default_factory=list)
    tensors: set[str] = field(default_factory=set)

    def takes(self, node: Any) -> bool:
        """Whether the node can become a part of it."""
        return node.op_type in (FUSED if self.first.op_type in COMPUTING else ELEMENTWISE) and (
            self.first.op_type in COMPUTING or self.first.op_type in ELEMENTWISE
        )


class _Flow:
    """How numbers of the frame go through a graph: by the tensors that exist in memory, without views of them."""

    def __init__(self, view: GraphView, name: str) -> None:
        self.view = view
        self.name = name
        self.still = _still(view)
        self.batch = next((dims[0] or 1 for dims in view.inputs.values() if dims), 1)
        self.readers: dict[str, list[Any]] = {}
        for node in view.nodes:
            if not self.free(node):
                for tensor in self.operands(node):
                    self.readers.setdefault(tensor, []).append(node)

    def free(self, node: Any) -> bool:
        """Whether a node makes nothing of the frame, or leaves it where it is."""
        return node.op_type in FREE or "Quantize" in node.op_type or all(name in self.still for name in node.output)

    def source(self, name: str) -> str:
        """The tensor in memory that a name is a view of."""
        node = self.view.producers.get(name)
        while node is not None and name not in self.still and self.free(node):
            name = node.input[0]
            node = self.view.producers.get(name)
        return name

    def operands(self, node: Any) -> list[str]:
        """The tensors of the frame that a node reads, each once."""
        return list(dict.fromkeys(self.source(name) for name in node.input if name and name not in self.still))

    def kernels(self) -> list[_Kernel]:
        """What runs, in order."""
        found: list[_Kernel] = []
        maker: dict[str, int] = {}
        for node in self.view.nodes:
            if self.free(node):
                continue
            # Only the kernel that is ready last can take the node up: its other operands are there by then.
            at = max((maker[name] for name in self.operands(node) if name in maker), default=-1)
            if at < 0 or not found[at].takes(node):
                at = len(found)
                found.append(_Kernel(node))
            found[at].nodes.append(node)
            found[at].tensors |= set(node.output)
            maker |= dict.fromkeys(node.output, at)
        return found

    def work(self, kernel: _Kernel) -> Work:
        """What a kernel does."""
        node = kernel.first
        inside = {id(each) for each in kernel.nodes}
        operands = dict.fromkeys(name for each in kernel.nodes for name in self.operands(each))
        read = sum(self.size(name) for name in operands if name not in kernel.tensors)
        kept = [
            name
            for each in kernel.nodes
            for name in each.output
            if not (readers := self.readers.get(name)) or any(id(reader) not in inside for reader in readers)
        ]
        written = sum(map(self.size, kept))
        called = work_name(node)
        if node.op_type in COMPUTING:
            return Work(called, **self._arithmetic(node), read=read, written=written)
        if node.op_type in COPIES:
            return Work(called, "copy", read=written, written=written)
        return Work(called, "memory", read=read, written=written, plugin=node.domain not in ONNX)

    def size(self, name: str) -> int:
        """Numbers in a tensor for one frame; 0 where they are not known before it runs."""
        dims = self.view.shapes.get(name, (None, None))
        known = [dims[0] or 1, *dims[1:]] if dims else []
        return 0 if None in known else prod(known) // self.batch  # type: ignore[arg-type]

    def _arithmetic(self, node: Any) -> dict[str, Any]:
        if node.op_type in KINDS["conv"]:
            return self._convolution(node)
        return self._product(node)

    def _convolution(self, node: Any) -> dict[str, Any]:
        weights, groups = self._dims(node, node.input[1]), attribute(node, "group", 1)
        transposed = node.op_type == "ConvTranspose"
        place = self._dims(node, node.input[0] if transposed else node.output[0])
        outputs, inputs = (weights[1] * groups, weights[0]) if transposed else (weights[0], weights[1] * groups)
        kind: Kind = "depthwise" if groups > 1 and groups == inputs else "conv"
        return {
            "kind": kind,
            "positions": prod(place[2:]),
            "inputs": inputs,
            "outputs": outputs,
            "kernel": prod(weights[2:]),
            "groups": groups,
            "weights": prod(weights),
        }

    def _product(self, node: Any) -> dict[str, Any]:
        out, right = self._dims(node, node.output[0]), self._dims(node, node.input[1])
        columns = right[0] if attribute(node, "transB", 0) else right[-1]
        rows = prod(right[-2:]) // columns
        constant = node.input[1] in self.still
        heads = 1 if constant else prod(right[:-2]) // (self.batch if len(right) > 2 else 1)
        return {
            "kind": "gemm",
            "positions": prod(out) // (columns * heads * self.batch),
            "inputs": rows * heads,
            "outputs": columns * heads,
            "groups": heads,
            "weights": prod(right) if constant else 0,
        }

    def _dims(self, node: Any, name: str) -> tuple[int, ...]:
        """The dimensions of a tensor that arithmetic is done on, with the batch that they are stated for."""
        constant = self.view.constants.get(name)
        dims = tuple(constant.dims) if constant is not None else self.view.shapes.get(name, ())
        dims = tuple(self.batch if at == 0 and size is None else size for at, size in enumerate(dims))
        if not dims or None in dims:
            raise SpecError(
                f"{self.name}: {node.op_type} {node.name or node.output[0]} has no fixed size",
                expected="every size but the batch fixed",
                found=f"{name} {list(dims) or 'of unknown shape'}",
                fix="export the model with a fixed input size",
            )
        return dims  # type: ignore[return-value]


def _still(view: GraphView) -> frozenset[str]:
    """The tensors that no frame changes: constants, what follows from them, and sizes."""
    still = set(view.constants)
    for node in view.nodes:
        given = [name for name in node.input if name]
        if node.op_type in ("Shape", "Constant") or (given and all(name in still for name in given)):
            still |= set(node.output)
    return frozenset(still)
