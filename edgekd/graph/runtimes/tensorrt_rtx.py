"""TensorRT for RTX: engines compiled ahead of time on the CPU, without a GPU.

For an RTX target the result is the shipped engine (the GPU's code is generated when it is loaded there). For a
Jetson with TensorRT 10 or later it is only a check that a TensorRT parser and builder accept the graph: TensorRT for
RTX has no Jetson GPU among its compute capabilities, and an engine belongs to one TensorRT version. It is no evidence
for TensorRT 8.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.core.atomic_files import new_file
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session, require, require_file


@dataclass(frozen=True)
class CompiledEngine:
    """Result of an ahead-of-time compilation.

    seconds: wall time; bytes: total size of `files`; sm: the compute capabilities inside, such as SM86; log: warnings
    and errors of TensorRT.
    """

    seconds: float
    bytes: int
    sm: tuple[str, ...]
    files: tuple[Path, ...]
    log: tuple[str, ...]


class TensorRtRtx(HostRuntime):
    """TensorRT for RTX, as a compiler, which needs no GPU."""

    def _available_once_imported(self) -> Availability:
        supported = ", ".join(supported_compute_capabilities())
        return Availability(True, f"TensorRT for RTX {self.version()}, compiles ahead of time for {supported}")

    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """Raise DeviceError: this engine compiles here and runs on the RTX target."""
        raise DeviceError(
            f"TensorRT for RTX does not run {graph.name} on this host",
            expected="an engine that runs here",
            fix="run with onnxruntime-cpu, onnxruntime-cuda or openvino-cpu; this one compiles for RTX targets",
        )


TENSORRT_RTX = TensorRtRtx("tensorrt-rtx", "tensorrt_rtx", ("tensorrt-rtx",), "pip install tensorrt-rtx")


def supported_compute_capabilities() -> tuple[str, ...]:
    """Return the compute capabilities that the installed TensorRT for RTX compiles for, such as SM86."""
    import tensorrt_rtx

    return tuple(name for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM"))


def compile_ahead(graph: Path, compute_capabilities: Sequence[str], out: Path, batch: int = 1) -> CompiledEngine:
    """Compile the ONNX file `graph` into one engine file `out` for all `compute_capabilities` (SM86, sm_86 or 8.6).

    batch: largest batch size, for a graph with a dynamic first dimension.

    The network is strongly typed: precisions are the graph's own, from its Q/DQ nodes and tensor types.
    Raises DeviceError: not installed, unsupported compute capability, a node that the parser or the builder refuses;
    SpecError: `out` cannot be written.
    """
    require(TENSORRT_RTX)
    require_file(graph)
    names = _capabilities(compute_capabilities)
    began = time.perf_counter()
    log: list[str] = []
    plan = _build(graph, names, batch, log)
    with new_file(out) as stream:
        stream.write(plan)
    seconds = time.perf_counter() - began
    return CompiledEngine(seconds, out.stat().st_size, names, (out,), tuple(log))


def _capabilities(requested: Sequence[str]) -> tuple[str, ...]:
    """Return compute capabilities as TensorRT for RTX names them, such as SM86. Raises DeviceError."""
    supported = supported_compute_capabilities()
    names = tuple("SM" + "".join(filter(str.isdigit, text)) for text in requested)
    refused = [text for text, name in zip(requested, names, strict=True) if name not in supported]
    if refused or not names:
        raise DeviceError(
            f"TensorRT for RTX {TENSORRT_RTX.version()} does not compile for {', '.join(refused) or 'no GPU at all'}",
            expected=f"one or more of {', '.join(supported)}",
            fix="build the engine on the target with TensorRT (a Jetson builds its own when the bundle is installed)",
        )
    return names


def _build(graph: Path, names: Sequence[str], batch: int, log: list[str]) -> Any:
    """Return the serialized engine, an object with the buffer protocol; append warnings and errors to `log`."""
    import tensorrt_rtx

    logger = _logger(tensorrt_rtx, log)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise DeviceError(f"TensorRT for RTX cannot parse {graph.name}: {_refusal(parser)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(tensorrt_rtx.ComputeCapability.__members__[name], index)
    port = network.get_input(0)
    first, *rest = port.shape
    if first == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(port.name, (1, *rest), (batch, *rest), (batch, *rest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = log[-1] if log else "no reason given"
        raise DeviceError(f"TensorRT for RTX cannot build {graph.name} for {', '.join(names)}: {why}")
    return plan


def _refusal(parser: Any) -> str:
    """Return the parser's first error: node, operator and reason."""
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    if not error.node_operator():  # the file as a whole, not one of its nodes
        return _one_line(error.desc()) or "it is not an ONNX file"
    node = error.node_name() or f"number {error.node()}"
    return f"node {node} ({error.node_operator()}): {_one_line(error.desc())}"


def _one_line(message: str) -> str:
    """Return a message on one line, without the complaint that this host has no GPU driver: compiling needs none."""
    return " ".join(line.strip() for line in message.splitlines() if "catchCudaError" not in line)


def _logger(trt: Any, log: list[str]) -> Any:
    """Return a TensorRT logger that appends warnings and errors to `log` and prints nothing.

    Its class is defined here because the base class exists only after the import of the library.
    """

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            line = _one_line(message)
            if line and severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                log.append(f"{severity.name.lower()}: {line}")

    return KeepingLogger()
