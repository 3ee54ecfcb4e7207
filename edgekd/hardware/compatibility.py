"""What a target cannot do, or does badly, with a graph: answered from the graph alone, before anything is built.

Each rule is a function of (graph, target) that yields findings; `RULES` lists them with where they apply. Sources: the
operator pages and the changelog of onnx/onnx-tensorrt, the TensorRT documentation (DLA restrictions, support
matrices), Model-Optimizer's examples/torch_onnx/README.md, and trials with tensorrt-rtx 1.7.1 where a rule says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.graph.view import KINDS, GraphView, Kind, array, attribute, load_view, view_of, where
from edgekd.hardware.target import PRECISIONS, Target, version

if TYPE_CHECKING:
    import onnx

Level = Literal["impossible", "slow", "note"]
LEVELS: tuple[Level, ...] = ("impossible", "slow", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that will not work or not work well: where, what and why, and the change to make.

    level: `impossible` (no engine), `slow` (an engine, but not the one wanted), `note` (works; worth knowing).
    where: the operator and node names it is about, or `graph` or `request`.
    """

    level: Level
    where: str
    what: str
    change: str


def check_graph(model: onnx.ModelProto | Path, target: Target, *, dla: bool = False) -> list[Finding]:
    """What `target` makes of the graph, worst first; empty means nothing is known to stand in the way.

    Weights are looked at only for their shapes and types; external data is not loaded. What only the DLA minds is a
    note, unless the graph is meant for it (`dla`). Raises SpecError: the file cannot be read as ONNX.
    """
    graph = load_view(model) if isinstance(model, Path) else view_of(model)
    findings: list[Finding] = []
    for rule in RULES:
        findings += rule(graph, target)
    if target.dla:
        for rule in DLA_RULES:
            found = rule(graph, target)
            findings += found if dla else [dataclasses.replace(finding, level="note") for finding in found]
    if dla and target.dla:
        findings += _dla_operators(graph, target)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def check_request(
    target: Target, *, precision: str | None = None, products: str | None = None, dla: bool = False
) -> list[Finding]:
    """What `target` makes of a wish: convolutions in `precision`, matrix products in that of `products`, or the DLA.

    Raises SpecError: no such precision.
    """
    findings: list[Finding] = []
    wishes: dict[Kind, str | None] = {"conv": precision, "gemm": products}
    for kind, wish in wishes.items():
        if wish is not None and wish not in PRECISIONS:
            fix = did_you_mean(wish, PRECISIONS)
            raise SpecError(f"unknown precision {wish!r}", expected="one of " + ", ".join(PRECISIONS), fix=fix)
        if wish is not None and wish not in getattr(target.precisions, kind).value:
            findings.append(Finding("impossible", "request", *_no_precision(wish, kind, target)))
    if dla and not target.dla:
        what = f"{target.title} has no DLA that its software can use"
        findings.append(Finding("impossible", "request", what, "run on the GPU: drop the request for the DLA"))
    return findings + (_dla_generation(target) if dla else [])


_LAST_WITH_DLA = (10, 7)
_AGAIN_WITH_DLA = (11, 4, 1)
"""TensorRT's guide, "Working with DLA", 11.3 and 11.4.1: 10.7 is the last 10.x with a DLA, 11.4.1 has AGX Orin's."""


def _dla_generation(target: Target) -> list[Finding]:
    """Part of a target's range of TensorRT without a DLA, as in JetPack 7.2 for Orin."""
    trt = _trt(target)
    if not target.dla or trt is None or trt[1][:2] <= _LAST_WITH_DLA or trt[0] >= _AGAIN_WITH_DLA:
        return []
    what = f"TensorRT after 10.7 has no DLA until 11.4.1, which has AGX Orin's alone; this is {_runtime(target)}"
    return [Finding("slow", "request", what, "stay with JetPack 6 for the DLA, or run on the GPU")]


# Rules for every graph

Rule = Callable[[GraphView, Target], list[Finding]]


def _trt(target: Target) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The range of TensorRT versions; None for TensorRT for RTX, which counts its own, and for CPUs."""
    figure = target.software.tensorrt
    return (version(figure.value[0]), version(figure.value[1])) if figure else None


def _opset(graph: GraphView, target: Target) -> list[Finding]:
    """max_opset of the target; TensorRT 10 and later take nothing below 9."""
    limit, trt = target.max_opset, _trt(target)
    if limit and graph.opset > limit.value:
        wanted, bound = limit.value, "at most"
    elif trt and trt[0] >= (10,) and graph.opset < 9:
        wanted, bound = 9, "at least"
    else:
        return []
    what = f"the graph uses opset {graph.opset}; {_runtime(target)} takes {bound} {wanted}"
    change = f"opset {wanted} is required: export again with opset={wanted}, or use onnx.version_converter"
    return [Finding("impossible", "graph", what, change)]


def _runtime(target: Target) -> str:
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
_NEVER = frozenset(  # N in onnx-tensorrt docs/operators.md of both 8.5 and 10.15
    "Bernoulli BitShift Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear MatMulInteger MaxRoiPool"
    " MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement"
    " QLinearConv QLinearMatMul SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength"
    " SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringNormalizer TfIdfVectorizer Unique".split()
)
_INTEGER = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def _operators(graph: GraphView, target: Target) -> list[Finding]:
    """Operators that this generation of TensorRT cannot parse."""
    if not target.on_tensorrt:
        return []
    trt = _trt(target)
    since = {op: text for text, ops in _SINCE.items() for op in ops}
    findings = []
    for op in sorted({node.op_type for node in graph.nodes if node.domain in ("", "ai.onnx")}):
        nodes = where(graph.of(op))
        if op in _INTEGER:
            change = "quantize with QuantizeLinear and DequantizeLinear around float operators (Q/DQ)"
            findings.append(Finding("impossible", nodes, f"no TensorRT has the operator {op}", change))
        elif op in _NEVER:
            change = f"export without {op}: move it out of the graph or rewrite it"
            findings.append(Finding("impossible", nodes, f"no TensorRT has the operator {op}", change))
        elif trt and op in since and trt[0] < version(since[op]):
            change = f"export without {op} (a lower opset may write it with older operators), or compute it outside"
            what = f"{op} needs TensorRT {since[op]}; this is {_runtime(target)}"
            findings.append(Finding("impossible", nodes, what, change))
    return findings


def _custom_operators(graph: GraphView, target: Target) -> list[Finding]:
    """Operators outside ONNX: plugins of TensorRT, contributions of ONNX Runtime, or anything else."""
    foreign = [
        node
        for node in graph.nodes
        if (node.domain not in ("", "ai.onnx") or _is_plugin(node))
        and (node.domain, node.op_type) not in graph.functions
        and not node.op_type.startswith("EfficientNMS")
    ]
    if target.engine in ("deferred", "tensorrt"):
        runs, runner = _is_plugin, "TensorRT without a plugin library"
    elif target.engine == "rtx":
        runs, runner = (lambda node: node.op_type.startswith("TRT_")), "TensorRT-RTX, which has no plugins,"
    else:
        runs, runner = (lambda node: node.domain == "com.microsoft"), target.engine
    findings = []
    for op in sorted({node.op_type for node in foreign if not runs(node)}):
        what = f"{runner} does not have the operator {op}"
        findings.append(Finding("impossible", where(graph.of(op)), what, "export with operators of ONNX itself"))
    return findings


def _is_plugin(node: Any) -> bool:
    """Named as what ships with TensorRT: `..._TRT` plugins, and `TRT_...` quantizers that its parser knows."""
    return bool(node.op_type.endswith("_TRT") or node.op_type.startswith("TRT_"))


_RAW_HEAD = "export the raw head (nms=False) and suppress outside the graph, which works on every target"


def _nms(graph: GraphView, target: Target) -> list[Finding]:
    """NonMaxSuppression: a plugin before TensorRT 8.5, native from there, without a kernel in TensorRT-RTX."""
    nodes = graph.of("NonMaxSuppression")
    if not nodes or not target.on_tensorrt:
        return []
    if target.nms.value == "none":
        what = f"{_runtime(target)} parses NonMaxSuppression but cannot build it"
        return [Finding("impossible", where(nodes), what, _RAW_HEAD)]
    if target.nms.value == "native":
        what = "NonMaxSuppression has outputs whose size depends on the frame: the GPU waits for the host to learn it"
        return [Finding("slow", where(nodes), what, _RAW_HEAD)]
    dynamic = [node for node in nodes if any(name and name not in graph.constants for name in node.input[2:5])]
    if dynamic:
        what = f"{_runtime(target)} runs NonMaxSuppression as a plugin, whose limits have to be constants"
        return [Finding("impossible", where(dynamic), what, "make the limits initializers, or " + _RAW_HEAD)]
    what = f"{_runtime(target)} runs NonMaxSuppression as a plugin with a fixed, padded output"
    return [Finding("slow", where(nodes), what, _RAW_HEAD)]


def _efficient_nms(graph: GraphView, target: Target) -> list[Finding]:
    """EfficientNMS_TRT: from 8.0.1, deprecated in 10.12; EfficientNMS_ONNX_TRT: removed in 10.16; RTX: no plugins."""
    nodes = [node for node in graph.nodes if node.op_type.startswith("EfficientNMS")]
    if not nodes:
        return []
    trt = _trt(target)
    if trt is None:
        what = f"{_runtime(target)} has no EfficientNMS plugin"
        return [Finding("impossible", where(nodes), what, _RAW_HEAD)]
    removed = [node for node in nodes if node.op_type == "EfficientNMS_ONNX_TRT"]
    if removed and trt[1] >= (10, 16):
        what = f"EfficientNMS_ONNX_TRT is gone from TensorRT 10.16; this is {_runtime(target)}"
        return [Finding("impossible", where(removed), what, _RAW_HEAD)]
    if trt[1] >= (10, 12):
        what = f"the plugin is deprecated from TensorRT 10.12; this is {_runtime(target)}"
        return [Finding("note", where(nodes), what, _RAW_HEAD)]
    return [Finding("note", where(nodes), "the plugin ties the graph to TensorRT 8 and 10", _RAW_HEAD)]


def _topk(graph: GraphView, target: Target) -> list[Finding]:
    """K at most 3840 (also tried on TensorRT-RTX 1.7.1: 4096 does not build), and constant before 8.6."""
    findings = []
    trt = _trt(target)
    for node in graph.of("TopK") if target.on_tensorrt else []:
        constant = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        if constant is not None and (k := int(array(constant).reshape(-1)[0])) > 3840:
            what = f"K is {k}; TensorRT takes at most 3840"
            findings.append(Finding("impossible", where([node]), what, "lower K: detectors keep 300 at most"))
        elif constant is None and len(node.input) > 1 and trt and trt[0] < (8, 6):
            what = f"K is computed; {_runtime(target)} needs it constant"
            change = "export with a fixed input shape and simplify, so that K becomes an initializer"
            findings.append(Finding("impossible", where([node]), what, change))
    return findings


def _dynamic_shapes(graph: GraphView, target: Target) -> list[Finding]:
    names = _dynamic_inputs(graph)
    if not names or not target.on_tensorrt:
        return []
    what = (
        f"input {', '.join(names)} has dimensions that are not fixed: kernels are chosen for a range, not for one size"
    )
    return [Finding("slow", "graph", what, "export with a fixed shape (dynamic=False), one engine per size")]


def _dynamic_inputs(graph: GraphView) -> list[str]:
    return [name for name, dims in graph.inputs.items() if None in dims or not all(dims)]


# Rules for quantized graphs

_HARDWARE = {
    "bf16": "BF16 needs sm 8.0 or newer",
    "int8": "INT8 needs sm 6.1, or 7.0 or newer",
    "fp8": "FP8 needs sm 8.9 or newer",
    "nvfp4": "NVFP4 needs sm 10.0 or newer, and MatMul or Gemm",
}


def _no_precision(precision: str, kind: Kind, target: Target) -> tuple[str, str]:
    """Why an operator class cannot use a precision, and what to use."""
    allowed: tuple[str, ...] = getattr(target.precisions, kind).value
    best = next(name for name in ("int8", "fp16", "fp32") if name in allowed)
    if precision == "nvfp4" and kind == "conv":
        return (
            "no hardware runs FP4 convolutions: TensorRT takes FP4 for MatMul and Gemm only",
            f"compute convolutions in {best}; FP4 can still be how their weights are stored (fp4x)",
        )
    why = _HARDWARE.get(precision, f"{precision} is not in its list")
    if precision in target.precisions.gemm.value:
        why = f"{_runtime(target)} takes it for MatMul and Gemm only"
    operators = " and ".join(KINDS[kind])
    what = f"{target.title} does not run {operators} in {precision}: {why}"
    return what, f"use {best} for them (it takes {', '.join(allowed)})"


def _precisions(graph: GraphView, target: Target) -> list[Finding]:
    """Formats at the operands of convolutions and matrix products that the target does not execute."""
    findings = []
    for kind in KINDS:
        allowed = getattr(target.precisions, kind).value
        for precision in PRECISIONS:
            if precision not in allowed and (nodes := graph.computing_in(kind, precision)):
                findings.append(Finding("impossible", where(nodes), *_no_precision(precision, kind, target)))
    if nodes := [node for name in ("int4", "uint4") for node in graph.computing_in("conv", name)]:
        what = "INT4 is for the weights of MatMul and Gemm; nothing runs it in a convolution"
        findings.append(Finding("impossible", where(nodes), what, "quantize convolutions to INT8"))
    return findings


def _symmetry(graph: GraphView, target: Target) -> list[Finding]:
    """TensorRT quantizes symmetrically (parser: zero points must be zero; tried on TensorRT-RTX 1.7.1)."""
    if not target.on_tensorrt:
        return []
    quantizers = graph.of("QuantizeLinear", "DequantizeLinear")
    unsigned = [node for node in quantizers if graph.quantized_type(node) == "uint8"]
    shifted = [node for node in quantizers if node not in unsigned and _is_shifted(graph, node)]
    findings = []
    if unsigned:
        what = "quantizes to UINT8; TensorRT has INT8 only (ONNX without a zero point means UINT8)"
        change = "quantize symmetrically to INT8, with an INT8 zero point of 0"
        findings.append(Finding("impossible", where(unsigned), what, change))
    if shifted:
        what = "has a zero point other than 0; TensorRT quantizes symmetrically"
        findings.append(Finding("impossible", where(shifted), what, "quantize symmetrically, with zero point 0"))
    return findings


def _is_shifted(graph: GraphView, node: Any) -> bool:
    if len(node.input) < 3 or node.input[2] not in graph.constants:
        return False
    return graph.quantized_type(node) in ("int8", "int16") and bool(array(graph.constants[node.input[2]]).any())


def _per_tensor_weights(graph: GraphView, target: Target) -> list[Finding]:
    nodes = []
    for node in graph.of("Conv", "ConvTranspose"):
        weights = graph.producers.get(node.input[1])
        if weights is None or weights.op_type != "DequantizeLinear" or weights.input[1] not in graph.constants:
            continue
        scale, values = graph.constants[weights.input[1]], graph.constants.get(weights.input[0])
        if not any(size > 1 for size in scale.dims) and values is not None and values.dims[0] > 1:
            nodes.append(node)
    if not nodes:
        return []
    what = "one scale for all of a convolution's weights; a scale per output channel loses less at the same speed"
    return [Finding("note", where(nodes), what, "quantize the weights of convolutions per output channel")]


def _fp8_convolutions(graph: GraphView, target: Target) -> list[Finding]:
    """NVIDIA/TensorRT issue 4524: no optimized FP8 kernels for grouped and depthwise convolutions."""
    nodes = [node for node in graph.computing_in("conv", "fp8") if attribute(node, "group", 1) > 1]
    if not nodes or "fp8" not in target.precisions.conv.value:
        return []
    what = "TensorRT has no optimized FP8 kernels for grouped and depthwise convolutions"
    return [Finding("slow", where(nodes), what, "quantize these to INT8, or leave them in FP16")]


def _dynamic_fp4(graph: GraphView, target: Target) -> list[Finding]:
    """Model-Optimizer PR 2333: engines with dynamic NVFP4 quantization build from TensorRT 11.0."""
    nodes, trt = graph.of("TRT_FP4DynamicQuantize"), _trt(target)
    if not nodes or trt is None or trt[0] >= (11,) or "nvfp4" not in target.precisions.gemm.value:
        return []
    what = f"dynamic NVFP4 quantization needs TensorRT 11.0; this is {_runtime(target)}"
    return [Finding("impossible", where(nodes), what, "use static NVFP4 (from TensorRT 10.8), FP8 or INT8")]


def _rtx_int8(graph: GraphView, target: Target) -> list[Finding]:
    """The TensorRT-RTX support matrices list INT8 for weight-only GEMM, nothing for convolutions."""
    nodes = graph.computing_in("conv", "int8") if target.engine == "rtx" else []
    if not nodes:
        return []
    what = "TensorRT-RTX builds INT8 Q/DQ convolutions but lists INT8 for weight-only GEMM: they may run in float"
    return [Finding("slow", where(nodes), what, "measure against FP16; for INT8 convolutions use TensorRT itself")]


RULES: tuple[Rule, ...] = (
    _opset,
    _operators,
    _custom_operators,
    _nms,
    _efficient_nms,
    _topk,
    _dynamic_shapes,
    _precisions,
    _symmetry,
    _per_tensor_weights,
    _fp8_convolutions,
    _dynamic_fp4,
    _rtx_int8,
)


# Rules for the DLA: TensorRT documentation, "DLA Supported Layers and Restrictions". What breaks a limit falls back to
# the GPU where that is allowed, at the price of a copy.

_FALLBACK = "; it falls back to the GPU"


def _dla_dynamic_shapes(graph: GraphView, target: Target) -> list[Finding]:
    if not (names := _dynamic_inputs(graph)):
        return []
    what = f"on the DLA: input {', '.join(names)} has dimensions that are not fixed; the DLA takes fixed shapes only"
    return [Finding("impossible", "graph", what, "export with a fixed shape (dynamic=False)")]


def _dla_quantization(graph: GraphView, target: Target) -> list[Finding]:
    nodes = graph.of("QuantizeLinear", "DequantizeLinear")
    if not nodes or not target.dla or target.dla.quantization.value == "qdq":
        return []
    what = f"on the DLA: {_runtime(target)} takes no Q/DQ there, but a calibration cache that scales every activation"
    return [Finding("note", where(nodes), what, "nothing: a build writes the cache, derived from this graph")]


def _dla_sizes(graph: GraphView, target: Target) -> list[Finding]:
    """Batch at most 4096, every other dimension at most 8192; vectors and scalars are not tensors of a DLA layer."""
    large = {
        n: d
        for n, d in graph.shapes.items()
        if len(d) > 1 and ((d[0] or 0) > 4096 or max(x or 0 for x in d[1:]) > 8192)
    }
    if not large:
        return []
    name, dims = next(iter(large.items()))
    more = f" and {len(large) - 1} more tensors" if len(large) > 1 else ""
    what = f"on the DLA: {name} {list(dims)}{more} exceeds 4096 (batch) or 8192 (any other dimension){_FALLBACK}"
    return [Finding("slow", "graph", what, "keep such tensors (a flattened head) out of the part for the DLA")]


def _dla_convolutions(graph: GraphView, target: Target) -> list[Finding]:
    """Kernels 1 to 32, strides 1 to 8; transposed ones without groups, dilation or padding."""
    large = [node for node in graph.of("Conv", "ConvTranspose") if _exceeds(graph, node)]
    transposed = [node for node in graph.of("ConvTranspose") if _is_special(node)]
    findings = []
    if large:
        what = f"on the DLA: kernels reach 32 and strides 8 at most{_FALLBACK}"
        findings.append(Finding("slow", where(large), what, "use smaller kernels or strides"))
    if transposed:
        what = f"on the DLA: a transposed convolution has no groups, dilation or padding{_FALLBACK}"
        findings.append(Finding("slow", where(transposed), what, "upsample with Resize instead"))
    return findings


def _exceeds(graph: GraphView, node: Any) -> bool:
    weights = graph.constants.get(node.input[1])
    kernel = attribute(node, "kernel_shape", list(weights.dims[2:]) if weights is not None else [])
    return max(kernel, default=1) > 32 or max(attribute(node, "strides", [1])) > 8


def _is_special(node: Any) -> bool:
    return bool(
        attribute(node, "group", 1) > 1
        or max(attribute(node, "dilations", [1])) > 1
        or any(attribute(node, "pads", [0]))
    )


DLA_OPERATORS = frozenset(
    "Abs Add Atan AveragePool BatchNormalization Clip Concat Conv ConvTranspose Cos Div Equal Gemm Greater LeakyRelu"
    " Less LRN Max MaxPool Min Mul PRelu Pow ReduceMax Relu Resize Sigmoid Sin Slice Softmax Split Sub Sum Tanh"
    " Transpose Upsample".split()
)
"""What a DLA has a layer for, within limits. Softmax is Orin's alone."""
_DLA_WINDOW = 8


def _dla_operators(graph: GraphView, target: Target) -> list[Finding]:
    """Operators for which a DLA has no layer, and the share of the multiply-adds that goes to the GPU with them."""
    from edgekd.hardware.predict.graph import computing_nodes

    outside = [node for node in computing_nodes(graph) if _beyond_dla(node, target)]
    if not outside:
        return []
    what = f"on the DLA: there is no layer for these{_FALLBACK}{_share_of(graph, outside)}"
    return [Finding("slow", where(outside), what, "end the graph before the head, or run it on the GPU")]


def _beyond_dla(node: Any, target: Target) -> bool:
    oldest = target.dla is not None and target.dla.version.value < 2
    pooled = node.op_type in ("AveragePool", "MaxPool") and max(attribute(node, "kernel_shape", [1])) > _DLA_WINDOW
    return node.op_type not in DLA_OPERATORS or pooled or (oldest and node.op_type == "Softmax")


def _share_of(graph: GraphView, nodes: list[Any]) -> str:
    """The predicted share of nodes in a frame's multiply-adds, in words; none where sizes are not fixed."""
    from edgekd.hardware.predict.graph import work_name, works_of
    from edgekd.hardware.predict.work import multiply_adds

    try:
        works = works_of(graph, "graph")
    except SpecError:
        return ""
    names = {work_name(node) for node in nodes}
    whole = multiply_adds(works)
    part = multiply_adds(work for work in works if work.name in names)
    return f", with {part / whole:.1%} of the multiply-adds" if whole else ""


DLA_RULES: tuple[Rule, ...] = (_dla_dynamic_shapes, _dla_quantization, _dla_sizes, _dla_convolutions)
