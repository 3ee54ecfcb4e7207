"""Rules of TensorRT's builder by version: layers, precisions, messages, refusals. Pure functions.

Sources: messages from NVIDIA/TensorRT issues 2681, 1556, 4555, 4021, 1837, 2462 and 2865, NVIDIA/Model-Optimizer issues
50 and 70, pytorch/TensorRT issue 3362, Deci-AI/super-gradients issue 1760 and onnx/tensorflow-onnx issue 1632. Layer
precisions with a calibration cache: the same, and the README of tools/qdq-translator in
NVIDIA/Deep-Learning-Accelerator-SW. DLAs do not support Q/DQ up to TensorRT 10: NVIDIA/TensorRT issue 2222; the text of
that error is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from fake_tensorrt_graph import COMPUTING, QUANTIZING, Graph
from tensorrt_tables import numbers

ERROR, WARNING, INFO, VERBOSE = "ERROR", "WARNING", "INFO", "VERBOSE"
Log = Callable[[str, str], None]
"""Takes the name of a severity and a message."""
ON_DLA = ("Conv", "ConvTranspose", "Relu", "Sigmoid", "MaxPool", "AveragePool", "Add", "Mul", "Concat", "Resize")
CONSTRAINTS = {"STRICT_TYPES", "PREFER_PRECISION_CONSTRAINTS", "OBEY_PRECISION_CONSTRAINTS"}
"""Flags without which layer precisions are ignored."""
_ACTIVATIONS = ("Relu", "Sigmoid")
_TYPED_FROM = (11, 0)
_CAPABILITIES = {
    onnx.TensorProto.FLOAT8E4M3FN: ("FP8", (8, 9)),
    onnx.TensorProto.FLOAT4E2M1: ("FP4", (10, 0)),
}
"""Lowest compute capability that supports a type."""
_ENGINE_ASSERTION_BEFORE = (8, 6)
"""First version in which the last error of a failed build says more than that there is no engine."""
_COMPUTING_MS = (1.0, 1.5)
"""Default times in INT8 and in FP16."""
_OTHER_MS = (0.1, 0.1)


@dataclass
class Behaviour:
    """Settings of a fake, and records of its use.

    dla_cores: number of DLA cores; compute_capability: of the GPU; refuses: operators that the parser rejects;
    without_int8_kernel: names of nodes without an INT8 implementation; fused_names: whether layers have the names that
    fusions give them; int8_runs: whether the builder uses INT8; fails: whether the build fails; bends: offset added to
    every output; breaks: tensor with wrong values in INT8; times: milliseconds in INT8 and in FP16 by node name;
    reformat_ms: milliseconds of each conversion between INT8 and floats.

    built: record of each engine; messages: severity and text of all log messages; elapsed_ms: total of all runs.
    """

    dla_cores: int = 0
    compute_capability: tuple[int, int] = (8, 7)
    refuses: tuple[str, ...] = ()
    without_int8_kernel: tuple[str, ...] = ()
    fused_names: bool = False
    int8_runs: bool = True
    fails: bool = False
    bends: float = 0.0
    breaks: str = ""
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reformat_ms: float = 0.1
    built: list[dict[str, Any]] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    elapsed_ms: float = 0.0


@dataclass(frozen=True)
class Request:
    """A build request.

    flags: names of BuilderFlag; cache: scales from a calibrator, None without one; ranges: scales set per tensor; half:
    names of layers whose precision was set to HALF; dla_core: None for the GPU.
    """

    version: str
    flags: frozenset[str] = frozenset()
    cache: Mapping[str, float] | None = None
    ranges: Mapping[str, float] = field(default_factory=dict)
    half: frozenset[str] = frozenset()
    dla_core: int | None = None

    @property
    def typed(self) -> bool:
        """Whether types come from the graph alone (strongly typed)."""
        return numbers(self.version) >= _TYPED_FROM

    @property
    def scales(self) -> Mapping[str, float]:
        """Scales by tensor, from the cache or set ranges."""
        return {**(self.cache or {}), **self.ranges}


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine. precision: INT8, FP16 or FP32; kind: the inspector's name of the layer type."""

    name: str
    kind: str
    precision: str
    ms: float
    weights: int = 0


@dataclass(frozen=True)
class Plan:
    """The engine built from a graph.

    layers: layers in order; precisions: by node name; missing: tensors without a scale, in a build with implicit
    quantization; on_dla: names of the nodes that run on the DLA.
    """

    layers: tuple[EngineLayer, ...]
    precisions: Mapping[str, str]
    missing: tuple[str, ...]
    on_dla: tuple[str, ...]


def plan(model: onnx.ModelProto, request: Request, behaviour: Behaviour, log: Log) -> Plan | None:
    """Return the engine of a graph; None, with a message at ERROR, if TensorRT builds none."""
    graph = Graph(model)
    try:
        if behaviour.fails:
            raise _Refusal("told to find nothing", plain=True)
        return _Build(graph, request, behaviour, log).plan()
    except _Refusal as refusal:
        for text in _worded(refusal, request.version):
            log(ERROR, text)
        return None


def layer_name(node: onnx.NodeProto, version: str) -> str:
    """Return the name of a node's layer before fusions. 8.2 renames those of Q/DQ (`QuantDequantLinearHelper`)."""
    if node.op_type in QUANTIZING and numbers(version) < (8, 4):
        return f"{node.name}_{node.op_type.removesuffix('Linear').lower()}_scale_node"
    return node.name


def total_ms(layers: tuple[EngineLayer, ...]) -> float:
    """Return the milliseconds of one run."""
    return sum(layer.ms for layer in layers)


class _Refusal(Exception):  # noqa: N818 TensorRT reports errors as messages
    """A reason why the build fails. code: TensorRT's ErrorCode; plain: the text is not TensorRT's."""

    def __init__(self, text: str, code: int = 4, place: str = "", kind: str = "Internal Error", plain: bool = False):
        super().__init__(text)
        self.text, self.code, self.place, self.kind, self.plain = text, code, place, kind, plain


def _worded(refusal: _Refusal, version: str) -> Iterator[str]:
    """Yield the messages for a refusal, formatted as in this version."""
    if refusal.plain:
        yield refusal.text
    elif numbers(version) >= (10, 0):
        yield f"IBuilder::buildSerializedNetwork: Error Code {refusal.code}: {refusal.kind} ({refusal.text})"
    else:
        if numbers(version) >= (8, 6) and refusal.code == 10:
            yield f"{refusal.code}: {refusal.text}"
        yield f"{refusal.code}: [{refusal.place}] Error Code {refusal.code}: {refusal.kind} ({refusal.text})"
        if numbers(version) < _ENGINE_ASSERTION_BEFORE:
            place = "[builder.cpp::buildSerializedNetwork::636]"
            yield f"2: {place} Error Code 2: Internal Error (Assertion engine != nullptr failed. )"


class _Build:
    """One run of the builder."""

    def __init__(self, graph: Graph, request: Request, behaviour: Behaviour, log: Log) -> None:
        self.graph, self.request, self.behaviour, self.log = graph, request, behaviour, log
        flags = request.flags
        self.explicit = graph.quantized
        self.implicit = not self.explicit and "INT8" in flags
        self.half = request.half if flags & CONSTRAINTS else frozenset()
        self.floating = "FP16" if "FP16" in flags or (request.typed and self._in_half()) else "FP32"

    def plan(self) -> Plan:
        self._require_hardware()
        self._require_flags()
        self._quantization_messages()
        missing = self._missing() if self.implicit else ()
        on_dla = self._on_dla() if self.request.dla_core is not None else ()
        precisions = {node.name: self._precision(node) for node in self.graph.layers}
        layers = tuple(self._layers(precisions, on_dla))
        self.log(
            INFO, f"Detected {len(self.graph.inputs)} inputs and {len(self.graph.outputs)} output network tensors."
        )
        return Plan(layers, precisions, missing, on_dla)

    def _in_half(self) -> bool:
        return any(each.data_type == onnx.TensorProto.FLOAT16 for each in self.graph.model.graph.initializer)

    def _require_hardware(self) -> None:
        types = {each.data_type for each in self.graph.model.graph.initializer}
        for kind, (name, needed) in _CAPABILITIES.items():
            if kind in types and self.behaviour.compute_capability < needed:
                text = f"Networks with {name} Q/DQ layers require hardware with {name} support."
                raise _Refusal(text, 9, kind="API Usage Error")

    def _require_flags(self) -> None:
        """Raise _Refusal for precisions without their flag, Q/DQ on a DLA, and per-channel scales of activations."""
        flags, place = self.request.flags, "network.cpp::validate::2965"
        form = "{} precision has been set for a layer or layer output, but {} is not configured in the builder"
        if self.explicit and not self.request.typed and "INT8" not in flags:
            raise _Refusal(form.format("Int8", "int8"), 4, place)
        if self.request.half and not self.request.typed and "FP16" not in flags:
            raise _Refusal(form.format("fp16", "fp16"), 4, place)
        if self.explicit and self.request.dla_core is not None and not self.request.typed:
            raise _Refusal("QuantizeLayer/DequantizeLayer layers are not supported on DLA.", 9, place)
        for node in self.graph.nodes:
            if node.op_type == "QuantizeLinear" and self.graph.activations(node.input[:1]):
                scale = self.graph.constant(node.input[1])
                if scale is not None and self.graph.value(node.input[1]).size > 1:
                    raise _Refusal(
                        f"{node.name}: per-channel quantization is supported only for weight inputs", 4, place
                    )

    def _quantization_messages(self) -> None:
        """Log the messages about INT8. Raise _Refusal if no tensor has a scale."""
        if self.explicit and not self.request.typed:
            text = "Calibrator won't be used in explicit precision mode. Use quantization aware training to generate "
            self.log(WARNING, text + "network with Quantize/Dequantize nodes.")
        if not self.implicit:
            return
        if self.request.cache is None:
            text = (
                "Calibrator is not being used. Users must provide dynamic range for all tensors that are not Int32 or "
            )
            self.log(WARNING, text + "Bool.")
        names = {name for node in self.graph.nodes for name in (*node.input, *node.output)}
        if not names & self.request.scales.keys():
            text = (
                "Calibration failure occurred with no scaling factors detected. This could be due to no int8 "
                "calibrator or insufficient custom scales for network layers. Please see int8 sample to setup "
                "calibration correctly."
            )
            raise _Refusal(text, 4, "standardEngineBuilder.cpp::initCalibrationParams::1463")

    def _missing(self) -> tuple[str, ...]:
        """Log a warning for each float tensor without a scale, and return their names."""
        tensors = [*self.graph.inputs, *(name for node in self.graph.layers for name in node.output)]
        missing = tuple(each for each in self.graph.activations(tensors) if each not in self.request.scales)
        for name in missing:
            text = "expect fall back to non-int8 implementation for any layer consuming or producing given tensor"
            self.log(WARNING, f"Missing scale and zero-point for tensor {name}, {text}")
        return missing

    def _scaled(self, node: onnx.NodeProto) -> bool:
        tensors = self.graph.activations((*node.input, *node.output))
        return all(each in self.request.scales for each in tensors)

    def _on_dla(self) -> tuple[str, ...]:
        """Return the names of nodes that run on the DLA. Raises _Refusal for others without GPU fallback."""
        kept = []
        for node in self.graph.layers:
            reason = self._not_on_dla(node)
            if reason is None:
                kept.append(node.name)
            elif "GPU_FALLBACK" in self.request.flags:
                self.log(WARNING, reason)
            else:
                text = f"Default DLA is enabled but layer {node.name} is not supported on DLA"
                raise _Refusal(f"{text} and falling back to GPU is not enabled.", 4, "network.cpp::validate::2965")
        return tuple(kept)

    def _not_on_dla(self, node: onnx.NodeProto) -> str | None:
        if node.op_type not in ON_DLA:
            return f"Default DLA is enabled but layer {node.name} is not supported on DLA, falling back to GPU."
        if self.request.typed or self.floating == "FP16":
            return None
        if not self.implicit:
            return f"DLA only supports FP16 and Int8 precision type. Switching {node.name} device type to GPU."
        if self._scaled(node):
            return None
        reason = "cannot run in INT8 mode due to missing scale and zero point. This node will not run on DLA."
        return f"Node: {node.name} {reason}"

    def _precision(self, node: onnx.NodeProto) -> str:
        """Return a node's precision. Raises _Refusal if INT8 is required and has no kernel."""
        if not self._wants_int8(node):
            return self.floating
        if node.name in self.behaviour.without_int8_kernel:
            text = f"Could not find any implementation for node {self._name(node)}."
            raise _Refusal(text, 10, "optimizer.cpp::computeCosts::3728")
        return "INT8"

    def _wants_int8(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in COMPUTING or not self.behaviour.int8_runs or node.name in self.half:
            return False
        if self.explicit:
            return all(self.graph.dequantized(name) for name in node.input[:2])
        return self.implicit and self._scaled(node)

    # ------------------------------------------------------------------------------------------ layers of the engine

    def _fused(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the activation that TensorRT fuses with a convolution: Relu, or Sigmoid and Mul."""
        if not self.behaviour.fused_names or node.op_type not in COMPUTING:
            return []
        following = self.graph.consumers(node.output[0])
        activation = next((each for each in following if each.op_type in _ACTIVATIONS), None)
        if activation is None:
            return []
        product = [each for each in self.graph.consumers(activation.output[0]) if each.op_type == "Mul"]
        if activation.op_type == "Sigmoid" and product and product[0] in following:
            return [activation, product[0]]
        return [activation] if len(following) == 1 else []

    def _name(self, node: onnx.NodeProto) -> str:
        """Return the name of a node's layer, composed of its weights, their Q node, and fused nodes."""
        if not self.behaviour.fused_names:
            return node.name
        parts, dequantize = [], self.graph.producers.get(node.input[1]) if len(node.input) > 1 else None
        quantize = self.graph.producers.get(dequantize.input[0]) if dequantize is not None else None
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            parts.append(self.graph.origin(node.input[1]))
            parts += [layer_name(quantize, self.request.version)] if quantize is not None else []
        parts.append(node.name)
        match self._fused(node):
            case [sigmoid, product]:
                parts.append(f"PWN(PWN({sigmoid.name}), {product.name})")
            case [activation]:
                parts.append(f"PWN({activation.name})" if activation.op_type == "Sigmoid" else activation.name)
        return " + ".join(parts)

    def _layers(self, precisions: Mapping[str, str], on_dla: tuple[str, ...]) -> Iterator[EngineLayer]:
        """Yield the layers: one per DLA region, one per GPU node, and reformats between INT8 and floats."""
        fused = {each.name for node in self.graph.layers for each in self._fused(node)}
        carried = dict.fromkeys(self.graph.inputs, False)
        region: list[onnx.NodeProto] = []
        for node in self.graph.layers:
            if node.name in on_dla:
                region.append(node)
                continue
            if region:
                yield self._region(region, precisions)
                region = []
            in_int8 = precisions[node.name] == "INT8"
            sources = [
                self.graph.origin(name) for name in node.input if self.graph.constant(self.graph.origin(name)) is None
            ]
            computing = node.op_type in COMPUTING
            if computing and any(carried.get(name, False) != in_int8 for name in sources[:1]):
                yield self._reformat(f"Reformatting CopyNode for Input Tensor 0 to {self._name(node)}")
            result = in_int8 if computing else any(carried.get(name, False) for name in sources)
            carried.update(dict.fromkeys(node.output, result))
            if node.name not in fused:
                yield self._layer(node, precisions[node.name])
        if region:
            yield self._region(region, precisions)
        for index, name in enumerate(self.graph.outputs):
            if carried.get(self.graph.origin(name), False):
                yield self._reformat(f"Reformatting CopyNode for Output Tensor {index} to {name}")

    def _layer(self, node: onnx.NodeProto, precision: str) -> EngineLayer:
        computing = node.op_type in COMPUTING
        weights = self.graph.constant(self.graph.origin(node.input[1])) if computing else None
        count = int(onnx.numpy_helper.to_array(weights).size) if weights is not None else 0
        kind = "CaskConvolution" if node.op_type.startswith("Conv") else node.op_type
        return EngineLayer(self._name(node), kind, precision, self._ms(node, precision), count)

    def _region(self, nodes: list[onnx.NodeProto], precisions: Mapping[str, str]) -> EngineLayer:
        """Return the single layer of a DLA region, whose precision the engine does not show."""
        names = [nodes[0].name, nodes[-1].name][: len(nodes)]
        ms = sum(self._ms(node, precisions[node.name]) for node in nodes)
        return EngineLayer(f"{{ForeignNode[{'...'.join(names)}]}}", "DLA", self.floating, ms)

    def _reformat(self, name: str) -> EngineLayer:
        return EngineLayer(name, "Reformat", "FP32", self.behaviour.reformat_ms)

    def _ms(self, node: onnx.NodeProto, precision: str) -> float:
        default = _COMPUTING_MS if node.op_type in COMPUTING else _OTHER_MS
        int8_ms, float_ms = self.behaviour.times.get(node.name, default)
        return int8_ms if precision == "INT8" else float_ms
