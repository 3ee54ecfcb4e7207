"""Rules for a graph on a target: each is a function of (graph, target) that yields findings; `RULES` lists them.

Sources: the operator pages and the changelog of onnx/onnx-tensorrt, the TensorRT documentation (support matrices),
Model-Optimizer's examples/torch_onnx/README.md, and trials with tensorrt-rtx 1.7.1 where a rule says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from edgekd.graph.view import KINDS, Graph, OperatorClass, array, attribute, inputs_of, opset_of, type_name, where
from edgekd.hardware.target import PRECISIONS, Target, takes_bytes, version

Level = Literal["impossible", "slow", "note"]
LEVELS: tuple[Level, ...] = ("impossible", "slow", "note")


@dataclass(frozen=True)
class Finding:
    """A problem of a graph or request on a target, and the change that solves it.

    Args:
        level: `impossible` (no engine), `slow` (works, but inefficiently), `note` (works; for information).
        where: Operator and node names, or `graph` or `request`.
        what: The problem, and its cause.
        change: The change that solves it.
    """

    level: Level
    where: str
    what: str
    change: str


Rule = Callable[[Graph, Target], Iterator[Finding]]


def tensorrt_range(target: Target) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the range of TensorRT versions; None for TensorRT for RTX, which has its own versions, and for CPUs."""
    figure = target.software.tensorrt
    return (version(figure.value[0]), version(figure.value[1])) if figure else None


def _opset(graph: Graph, target: Target) -> Iterator[Finding]:
    """Opsets above the target's `max_opset`; below 9 for TensorRT 10 and later."""
    limit, trt, opset = target.max_opset, tensorrt_range(target), opset_of(graph.model)
    if limit and opset > limit.value:
        required, bound = limit.value, "at most"
    elif trt and trt[0] >= (10,) and opset < 9:
        required, bound = 9, "at least"
    else:
        return
    what = f"the graph uses opset {opset}; {runtime_title(target)} takes {bound} {required}"
    change = f"opset {required} is required: export again with opset={required}, or use onnx.version_converter"
    yield Finding("impossible", "graph", what, change)


def runtime_title(target: Target) -> str:
    """Return the runtime and its versions for messages, such as `TensorRT 8.5.2`."""
    for name, figure in (("TensorRT", target.software.tensorrt), ("TensorRT-RTX", target.software.tensorrt_rtx)):
        if figure:
            low, high = figure.value
            return f"{name} {low}" if low == high else f"{name} {low} to {high}"
    return target.engine


_SINCE = {  # the first TensorRT whose parser takes the operator: onnx-tensorrt docs/Changelog.md
    "8.4": ("Shrink", "Xor"),
    "8.5": (
        *("GridSample", "MeanVarianceNormalization", "Mod", "NonZero", "RandomNormal", "RandomNormalLike", "RoiAlign"),
        "Trilu",
    ),
    "8.6": ("GroupNormalization", "IsInf", "LayerNormalization"),
    "9.2": ("Hardmax",),
    "10.1": ("DeformConv",),
    "10.4": ("BlackmanWindow", "HammingWindow", "HannWindow"),
    "10.5": ("STFT",),
    "10.14": ("Attention",),
    "10.15": ("RMSNormalization", "RotaryEmbedding", "TensorScatter"),
}
_NEVER = frozenset(  # marked N (unsupported) in onnx-tensorrt docs/operators.md of both 8.5 and 10.15
    "Bernoulli BitShift Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear MatMulInteger MaxRoiPool"
    " MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement"
    " QLinearConv QLinearMatMul SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength"
    " SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringNormalizer TfIdfVectorizer Unique".split()
)
_INTEGER = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def _operators(graph: Graph, target: Target) -> Iterator[Finding]:
    """Operators that this generation of TensorRT cannot parse."""
    if not target.on_tensorrt:
        return
    trt = tensorrt_range(target)
    since = {op: text for text, ops in _SINCE.items() for op in ops}
    for op in sorted({node.op_type for node in graph.nodes if node.domain in ("", "ai.onnx")}):
        nodes = where(graph.of(op))
        if op in _INTEGER:
            change = "quantize with QuantizeLinear and DequantizeLinear around float operators (Q/DQ)"
            yield Finding("impossible", nodes, f"no TensorRT has the operator {op}", change)
        elif op in _NEVER:
            change = f"export without {op}: move it out of the graph or rewrite it"
            yield Finding("impossible", nodes, f"no TensorRT has the operator {op}", change)
        elif trt and op in since and trt[0] < version(since[op]):
            change = f"export without {op} (a lower opset may write it with older operators), or compute it outside"
            what = f"{op} needs TensorRT {since[op]}; this is {runtime_title(target)}"
            yield Finding("impossible", nodes, what, change)


def _custom_operators(graph: Graph, target: Target) -> Iterator[Finding]:
    """Operators that are not ONNX's: TensorRT's plugins, ONNX Runtime's contrib operators, and others."""
    functions = {(function.domain, function.name) for function in graph.model.functions}
    foreign = [
        node
        for node in graph.nodes
        if (node.domain not in ("", "ai.onnx") or _is_plugin(node))
        and (node.domain, node.op_type) not in functions
        and not node.op_type.startswith("EfficientNMS")
    ]
    if target.engine in ("deferred", "tensorrt"):
        runs, runner = _is_plugin, "TensorRT without a plugin library"
    elif target.engine == "rtx":
        runs, runner = (lambda node: node.op_type.startswith("TRT_")), "TensorRT-RTX, which has no plugins,"
    else:
        runs, runner = (lambda node: node.domain == "com.microsoft"), target.engine
    for op in sorted({node.op_type for node in foreign if not runs(node)}):
        what = f"{runner} does not have the operator {op}"
        yield Finding("impossible", where(graph.of(op)), what, "export with operators of ONNX itself")


def _is_plugin(node: Any) -> bool:
    """Return whether a node is named like TensorRT's plugins, `..._TRT`, or its parser's quantizers, `TRT_...`."""
    return bool(node.op_type.endswith("_TRT") or node.op_type.startswith("TRT_"))


_RAW_HEAD = "export the raw head (nms=False) and suppress outside the graph, which works on every target"


def _nms(graph: Graph, target: Target) -> Iterator[Finding]:
    """NonMaxSuppression: a plugin before TensorRT 8.5, native from there, without a kernel in TensorRT-RTX."""
    nodes = graph.of("NonMaxSuppression")
    if not nodes or not target.on_tensorrt:
        return
    dynamic = [node for node in nodes if any(name and name not in graph.constants for name in node.input[2:5])]
    if target.nms.value == "none":
        what = f"{runtime_title(target)} parses NonMaxSuppression but cannot build it"
        yield Finding("impossible", where(nodes), what, _RAW_HEAD)
    elif target.nms.value == "native":
        what = "NonMaxSuppression has outputs whose size depends on the frame: the GPU waits for the host to learn it"
        yield Finding("slow", where(nodes), what, _RAW_HEAD)
    elif dynamic:
        what = f"{runtime_title(target)} runs NonMaxSuppression as a plugin, whose limits have to be constants"
        yield Finding("impossible", where(dynamic), what, "make the limits initializers, or " + _RAW_HEAD)
    else:
        what = f"{runtime_title(target)} runs NonMaxSuppression as a plugin with a fixed, padded output"
        yield Finding("slow", where(nodes), what, _RAW_HEAD)


def _efficient_nms(graph: Graph, target: Target) -> Iterator[Finding]:
    """EfficientNMS_TRT: from 8.0.1, deprecated in 10.12; EfficientNMS_ONNX_TRT: removed in 10.16; RTX: no plugins."""
    nodes = [node for node in graph.nodes if node.op_type.startswith("EfficientNMS")]
    removed = [node for node in nodes if node.op_type == "EfficientNMS_ONNX_TRT"]
    trt = tensorrt_range(target)
    if not nodes:
        return
    if trt is None:
        what = f"{runtime_title(target)} has no EfficientNMS plugin"
        yield Finding("impossible", where(nodes), what, _RAW_HEAD)
    elif removed and trt[1] >= (10, 16):
        what = f"EfficientNMS_ONNX_TRT is gone from TensorRT 10.16; this is {runtime_title(target)}"
        yield Finding("impossible", where(removed), what, _RAW_HEAD)
    elif trt[1] >= (10, 12):
        what = f"the plugin is deprecated from TensorRT 10.12; this is {runtime_title(target)}"
        yield Finding("note", where(nodes), what, _RAW_HEAD)
    else:
        yield Finding("note", where(nodes), "the plugin ties the graph to TensorRT 8 and 10", _RAW_HEAD)


def _topk(graph: Graph, target: Target) -> Iterator[Finding]:
    """K at most 3840 (also tried on TensorRT-RTX 1.7.1: 4096 does not build), and constant before 8.6."""
    trt = tensorrt_range(target)
    for node in graph.of("TopK") if target.on_tensorrt else []:
        constant = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        if constant is not None and (k := int(array(constant).reshape(-1)[0])) > 3840:
            what = f"K is {k}; TensorRT takes at most 3840"
            yield Finding("impossible", where([node]), what, "lower K: detectors keep 300 at most")
        elif constant is None and len(node.input) > 1 and trt and trt[0] < (8, 6):
            what = f"K is computed; {runtime_title(target)} needs it constant"
            change = "export with a fixed input shape and simplify, so that K becomes an initializer"
            yield Finding("impossible", where([node]), what, change)


def _dynamic_shapes(graph: Graph, target: Target) -> Iterator[Finding]:
    if not target.on_tensorrt:
        return
    if takes_batches(graph):
        what = "takes several frames at once: kernels are chosen for the largest batch, single frames may take longer"
        yield Finding("note", "graph", what, "build without --batch for a camera alone")
    elif names := dynamic_inputs(graph):
        dynamic = f"input {', '.join(names)} has dimensions that are not fixed"
        what = f"{dynamic}: kernels are chosen for a range, not for one size"
        yield Finding("slow", "graph", what, "export with a fixed shape (dynamic=False), one engine per size")


def _byte_inputs(graph: Graph, target: Target) -> Iterator[Finding]:
    """8-bit inputs: since the parser of TensorRT 8.5 (onnx/onnx-tensorrt pull request 879)."""
    types = {value.name: type_name(value.type.tensor_type.elem_type) for value in inputs_of(graph.model)}
    names = [name for name, kind in types.items() if kind == "uint8"]
    if names and not takes_bytes(target):
        what = f"input {', '.join(names)} is UINT8, which needs TensorRT 8.5; this is {runtime_title(target)}"
        yield Finding("impossible", "graph", what, "pass the bytes as float32: `build --input` for this target does")


def takes_batches(graph: Graph) -> bool:
    """Return whether there is one input, and only its first dimension is dynamic."""
    shapes = list(graph.inputs.values())
    return len(shapes) == 1 and shapes[0][:1] == (None,) and all(shapes[0][1:])


def dynamic_inputs(graph: Graph) -> list[str]:
    """Return the names of inputs with dimensions that are not fixed."""
    return [name for name, dims in graph.inputs.items() if None in dims or not all(dims)]


# Rules for quantized graphs

_HARDWARE = {
    "bf16": "BF16 needs sm 8.0 or newer",
    "int8": "INT8 needs sm 6.1, or 7.0 or newer",
    "fp8": "FP8 needs sm 8.9 or newer",
    "nvfp4": "NVFP4 needs sm 10.0 or newer, and MatMul or Gemm",
}


def missing_precision(precision: str, kind: OperatorClass, target: Target) -> tuple[str, str]:
    """Return why an operator class cannot use a precision, and what to use instead."""
    allowed: tuple[str, ...] = getattr(target.precisions, kind).value
    best = next(name for name in ("int8", "fp16", "fp32") if name in allowed)
    if precision == "nvfp4" and kind == "conv":
        return (
            "no hardware runs FP4 convolutions: TensorRT takes FP4 for MatMul and Gemm only",
            f"compute convolutions in {best}; FP4 can still be how their weights are stored (fp4x)",
        )
    why = _HARDWARE.get(precision, f"{precision} is not in its list")
    if precision in target.precisions.gemm.value:
        why = f"{runtime_title(target)} takes it for MatMul and Gemm only"
    operators = " and ".join(KINDS[kind])
    what = f"{target.title} does not run {operators} in {precision}: {why}"
    return what, f"use {best} for them (it takes {', '.join(allowed)})"


def _precisions(graph: Graph, target: Target) -> Iterator[Finding]:
    """Formats of operands in which the target does not execute convolutions or matrix products."""
    for kind in KINDS:
        allowed = getattr(target.precisions, kind).value
        for precision in PRECISIONS:
            if precision not in allowed and (nodes := graph.computing_in(kind, precision)):
                yield Finding("impossible", where(nodes), *missing_precision(precision, kind, target))
    if nodes := [node for name in ("int4", "uint4") for node in graph.computing_in("conv", name)]:
        what = "INT4 is for the weights of MatMul and Gemm; nothing runs it in a convolution"
        yield Finding("impossible", where(nodes), what, "quantize convolutions to INT8")


def _symmetry(graph: Graph, target: Target) -> Iterator[Finding]:
    """TensorRT quantizes symmetrically (parser: zero points must be zero; tried on TensorRT-RTX 1.7.1)."""
    quantizers = graph.of("QuantizeLinear", "DequantizeLinear") if target.on_tensorrt else []
    unsigned = [node for node in quantizers if graph.quantized_type(node) == "uint8"]
    if unsigned:
        what = "quantizes to UINT8; TensorRT has INT8 only (ONNX without a zero point means UINT8)"
        yield Finding(
            "impossible", where(unsigned), what, "quantize symmetrically to INT8, with an INT8 zero point of 0"
        )
    if shifted := [node for node in quantizers if node not in unsigned and _is_shifted(graph, node)]:
        what = "has a zero point other than 0; TensorRT quantizes symmetrically"
        yield Finding("impossible", where(shifted), what, "quantize symmetrically, with zero point 0")


def _is_shifted(graph: Graph, node: Any) -> bool:
    if len(node.input) < 3 or node.input[2] not in graph.constants:
        return False
    return graph.quantized_type(node) in ("int8", "int16") and bool(array(graph.constants[node.input[2]]).any())


def _per_tensor_weights(graph: Graph, target: Target) -> Iterator[Finding]:
    nodes = []
    for node in graph.of("Conv", "ConvTranspose"):
        weights = graph.producers.get(node.input[1])
        if weights is None or weights.op_type != "DequantizeLinear" or weights.input[1] not in graph.constants:
            continue
        scale, values = graph.constants[weights.input[1]], graph.constants.get(weights.input[0])
        if not any(size > 1 for size in scale.dims) and values is not None and values.dims[0] > 1:
            nodes.append(node)
    if nodes:
        what = "one scale for all of a convolution's weights; a scale per output channel loses less at the same speed"
        yield Finding("note", where(nodes), what, "quantize the weights of convolutions per output channel")


def _fp8_convolutions(graph: Graph, target: Target) -> Iterator[Finding]:
    """NVIDIA/TensorRT issue 4524: no optimized FP8 kernels for grouped and depthwise convolutions."""
    nodes = [node for node in graph.computing_in("conv", "fp8") if attribute(node, "group", 1) > 1]
    if nodes and "fp8" in target.precisions.conv.value:
        what = "TensorRT has no optimized FP8 kernels for grouped and depthwise convolutions"
        yield Finding("slow", where(nodes), what, "quantize these to INT8, or leave them in FP16")


def _dynamic_fp4(graph: Graph, target: Target) -> Iterator[Finding]:
    """Model-Optimizer PR 2333: engines with dynamic NVFP4 quantization build from TensorRT 11.0."""
    nodes, trt = graph.of("TRT_FP4DynamicQuantize"), tensorrt_range(target)
    if nodes and trt and trt[0] < (11,) and "nvfp4" in target.precisions.gemm.value:
        what = f"dynamic NVFP4 quantization needs TensorRT 11.0; this is {runtime_title(target)}"
        yield Finding("impossible", where(nodes), what, "use static NVFP4 (from TensorRT 10.8), FP8 or INT8")


def _rtx_int8(graph: Graph, target: Target) -> Iterator[Finding]:
    """The TensorRT-RTX support matrices list INT8 for weight-only GEMM, nothing for convolutions."""
    if target.engine == "rtx" and (nodes := graph.computing_in("conv", "int8")):
        what = "TensorRT-RTX builds INT8 Q/DQ convolutions but lists INT8 for weight-only GEMM: they may run in float"
        yield Finding("slow", where(nodes), what, "measure against FP16; for INT8 convolutions use TensorRT itself")


RULES: tuple[Rule, ...] = (
    _opset,
    _operators,
    _custom_operators,
    _nms,
    _efficient_nms,
    _topk,
    _dynamic_shapes,
    _byte_inputs,
    _precisions,
    _symmetry,
    _per_tensor_weights,
    _fp8_convolutions,
    _dynamic_fp4,
    _rtx_int8,
)
