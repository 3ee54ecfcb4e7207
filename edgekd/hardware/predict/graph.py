"""The kernels of an ONNX graph and their work, as TensorRT fuses them.

A convolution or matrix product is fused with the batch norm, activation and addition that follow it; consecutive
elementwise operators are one kernel; quantization, dequantization and reshapes cost nothing, so a Q/DQ graph has the
work of its float graph. Source: the TensorRT developer guide on layer fusion. Mish, which it does not list, is a
separate kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from edgekd.core.canonical import file_sha256
from edgekd.core.errors import SpecError
from edgekd.graph.view import KINDS, Graph, attribute, load_graph, load_view
from edgekd.hardware.predict.work import Work

COMPUTING = tuple(name for names in KINDS.values() for name in names)
FREE = frozenset("Cast Dropout Flatten Identity QuantizeLinear DequantizeLinear Reshape Squeeze Unsqueeze".split())
"""Operators without a kernel: views, and those that are part of a neighbouring kernel."""
FUSED = frozenset("Add BatchNormalization Clip Elu HardSigmoid HardSwish LeakyRelu Mul Relu Sigmoid Sub Tanh".split())
"""Operators that fuse with a convolution or product."""
ELEMENTWISE = FUSED | frozenset(
    "Abs And Ceil Div Equal Erf Exp Floor Gelu Greater Less Log Max Min Mish Mod Neg Not Or Pow PRelu Reciprocal Round"
    " Selu Sign Softplus Softsign Sqrt Swish Where".split()
)
ONNX = ("", "ai.onnx")
COPIES = frozenset(("Concat", "Slice", "Split"))


def works_in(graph: Path) -> tuple[Work, ...]:
    """Return the work of each kernel of an ONNX file, in order. Raises SpecError for no ONNX file, or dynamic sizes."""
    try:
        digest = file_sha256(graph)
    except OSError:
        digest = ""  # load_graph raises the error
    return _works(graph, digest)


@lru_cache(maxsize=8)  # a build needs the work of the same two graphs several times; each call takes seconds
def _works(graph: Path, digest: str) -> tuple[Work, ...]:
    import onnxslim

    # Simplifying makes sizes constant that the graph computes itself.
    return works_of(Graph(onnxslim.slim(load_graph(graph)), nested=True), str(graph))


def numbers_copied(graph: Path) -> int:
    """Return the number of values per frame in a graph's inputs and outputs, without tensors of dynamic size."""
    view = load_view(graph)
    flow = _Flow(view, str(graph))
    return sum(flow.size(name) for name in (*view.inputs, *view.outputs))


def works_of(view: Graph, name: str) -> tuple[Work, ...]:
    """Return the work of each kernel of a graph, in order. name: for errors. Raises SpecError for dynamic sizes."""
    flow = _Flow(view, name)
    return tuple(flow.work(kernel) for kernel in flow.kernels())


def computing_nodes(view: Graph) -> list[Any]:
    """Return the nodes that are part of a kernel, in order."""
    flow = _Flow(view, "graph")
    return [node for node in view.nodes if not flow.free(node)]


def work_name(node: Any) -> str:
    """Return the name of the work of a kernel whose first node is `node`."""
    return str(node.name or (node.output[0] if node.output else node.op_type))


@dataclass
class _Kernel:
    """Fused nodes; the first determines the kind. tensors: Their outputs."""

    first: Any
    nodes: list[Any] = field(default_factory=list)
    tensors: set[str] = field(default_factory=set)

    def takes(self, node: Any) -> bool:
        """Return whether a node can be fused into this kernel."""
        if self.first.op_type in COMPUTING:
            return node.op_type in FUSED
        return self.first.op_type in ELEMENTWISE and node.op_type in ELEMENTWISE


def _ends_in_silu(kernel: _Kernel) -> bool:
    """Return whether x * sigmoid(x) is fused into a kernel."""
    gates = {(node.output[0], node.input[0]) for node in kernel.nodes if node.op_type == "Sigmoid"}
    return any(
        (first, second) in gates or (second, first) in gates
        for first, second in (node.input for node in kernel.nodes if node.op_type == "Mul")
    )


class _Flow:
    """The data flow of a graph between tensors in memory: views are replaced by the tensors that they refer to."""

    def __init__(self, view: Graph, name: str) -> None:
        self.view = view
        self.name = name
        self.constant = _constants(view)
        self.batch = next((dims[0] or 1 for dims in view.inputs.values() if dims), 1)
        self.readers: dict[str, list[Any]] = {}
        for node in view.nodes:
            if not self.free(node):
                for tensor in self.operands(node):
                    self.readers.setdefault(tensor, []).append(node)

    def free(self, node: Any) -> bool:
        """Return whether a node has no kernel: its outputs are constant, or views."""
        return node.op_type in FREE or "Quantize" in node.op_type or all(name in self.constant for name in node.output)

    def source(self, name: str) -> str:
        """Return the tensor in memory that a tensor is a view of."""
        node = self.view.producers.get(name)
        while node is not None and name not in self.constant and self.free(node):
            name = node.input[0]
            node = self.view.producers.get(name)
        return name

    def operands(self, node: Any) -> list[str]:
        """Return the tensors that a node reads, without constants, each once."""
        return list(dict.fromkeys(self.source(name) for name in node.input if name and name not in self.constant))

    def kernels(self) -> list[_Kernel]:
        """Return the kernels, in order."""
        kernels: list[_Kernel] = []
        maker: dict[str, int] = {}
        for node in self.view.nodes:
            if self.free(node):
                continue
            # Of the kernels that write its operands, only the last can include the node: all operands are ready then.
            index = max((maker[name] for name in self.operands(node) if name in maker), default=-1)
            if index < 0 or not kernels[index].takes(node):
                index = len(kernels)
                kernels.append(_Kernel(node))
            kernels[index].nodes.append(node)
            kernels[index].tensors |= set(node.output)
            maker |= dict.fromkeys(node.output, index)
        return kernels

    def work(self, kernel: _Kernel) -> Work:
        """Return the work of a kernel."""
        node = kernel.first
        fused = {id(each) for each in kernel.nodes}
        operands = dict.fromkeys(name for each in kernel.nodes for name in self.operands(each))
        read = sum(self.size(name) for name in operands if name not in kernel.tensors)
        written = sum(
            self.size(name)
            for each in kernel.nodes
            for name in each.output
            if not (readers := self.readers.get(name)) or any(id(reader) not in fused for reader in readers)
        )
        if node.op_type in KINDS["conv"]:
            return replace(self._convolution(node), read=read, written=written, silu=_ends_in_silu(kernel))
        if node.op_type in COMPUTING:
            return replace(self._product(node), read=read, written=written)
        if node.op_type in COPIES:
            return Work(work_name(node), "copy", read=written, written=written)
        return Work(work_name(node), "memory", read=read, written=written, plugin=node.domain not in ONNX)

    def size(self, name: str) -> int:
        """Return the number of values in a tensor per frame; 0 for a dynamic size."""
        dims = self.view.shapes.get(name, (None, None))
        known = [dims[0] or 1, *dims[1:]] if dims else []
        return 0 if None in known else prod(known) // self.batch  # type: ignore[arg-type]

    def _convolution(self, node: Any) -> Work:
        weights, groups = self._dims(node, node.input[1]), attribute(node, "group", 1)
        transposed = node.op_type == "ConvTranspose"
        dims = self._dims(node, node.input[0] if transposed else node.output[0])
        outputs, inputs = (weights[1] * groups, weights[0]) if transposed else (weights[0], weights[1] * groups)
        return Work(
            work_name(node),
            "depthwise" if groups > 1 and groups == inputs else "conv",
            positions=prod(dims[2:]),
            inputs=inputs,
            outputs=outputs,
            kernel=prod(weights[2:]),
            groups=groups,
            weights=prod(weights),
        )

    def _product(self, node: Any) -> Work:
        out, right = self._dims(node, node.output[0]), self._dims(node, node.input[1])
        columns = right[0] if attribute(node, "transB", 0) else right[-1]
        rows = prod(right[-2:]) // columns
        constant = node.input[1] in self.constant
        heads = 1 if constant else prod(right[:-2]) // (self.batch if len(right) > 2 else 1)
        return Work(
            work_name(node),
            "gemm",
            positions=prod(out) // (columns * heads * self.batch),
            inputs=rows * heads,
            outputs=columns * heads,
            groups=heads,
            weights=prod(right) if constant else 0,
        )

    def _dims(self, node: Any, name: str) -> tuple[int, ...]:
        """Return the fixed dimensions of an operand, with the batch of the graph. Raises SpecError."""
        constant = self.view.constants.get(name)
        dims = tuple(constant.dims) if constant is not None else self.view.shapes.get(name, ())
        dims = tuple(self.batch if index == 0 and size is None else size for index, size in enumerate(dims))
        if not dims or None in dims:
            raise SpecError(
                f"{self.name}: {node.op_type} {node.name or node.output[0]} has no fixed size",
                expected="every size but the batch fixed",
                found=f"{name} {list(dims) or 'of unknown shape'}",
                fix="export the model with a fixed input size",
            )
        return dims  # type: ignore[return-value]


def _constants(view: Graph) -> frozenset[str]:
    """Return the tensors that do not depend on the frame: constants, tensors computed from them, and shapes."""
    constants = set(view.constants)
    for node in view.nodes:
        given = [name for name in node.input if name]
        if node.op_type in ("Shape", "Constant") or (given and all(name in constants for name in given)):
            constants |= set(node.output)
    return frozenset(constants)
