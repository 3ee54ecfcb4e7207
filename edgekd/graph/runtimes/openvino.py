"""OpenVINO on the CPU: a second runtime to cross-check graphs, and the faster one on Intel hosts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session, require, require_file, require_single

if TYPE_CHECKING:
    import numpy as np

IR = ".xml"


class HostOpenVino(HostRuntime):
    """OpenVINO's CPU plugin, tuned for the latency of one frame, or for several streams. Opens ONNX and its own IR."""

    def available(self) -> Availability:
        """Return whether OpenVINO can be used on this host."""
        with interrupts_deferred():
            return super().available()

    def _available_once_imported(self) -> Availability:
        return Availability(True, f"OpenVINO {self.version()}, CPU")

    def load(self, graph: Path, *, threads: int | None = None) -> OpenVinoSession:
        """Compile `graph` for the CPU. Raises DeviceError."""
        return OpenVinoSession(self._compiled(graph, {"PERFORMANCE_HINT": "LATENCY"}, threads or usable_cores()))

    def load_streams(self, graph: Path, streams: int, *, threads: int | None = None) -> tuple[OpenVinoSession, ...]:
        """Return sessions of one graph compiled for all streams: several would share a core. Raises DeviceError."""
        native = self._compiled(graph, {"NUM_STREAMS": streams}, max(threads or usable_cores(), streams))
        return tuple(OpenVinoSession(native) for _ in range(streams))

    def _compiled(self, graph: Path, hints: Mapping[str, Any], threads: int) -> Any:
        """Return OpenVINO's compiled model. Raises DeviceError."""
        model = read(graph)
        import openvino

        settings = {
            **hints,
            "INFERENCE_NUM_THREADS": threads,
            # By default OpenVINO computes float32 layers in bfloat16 on CPUs that support it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            native = openvino.Core().compile_model(model, "CPU", settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own exceptions side by side
            raise DeviceError(f"OpenVINO cannot compile {graph}: {error}", fix="run it with onnxruntime-cpu") from error
        require_single(graph, _names(native.inputs), _names(native.outputs))
        return native


class OpenVinoSession(Session):
    """A graph compiled by OpenVINO."""

    title = "OpenVINO"

    def __init__(self, native: Any) -> None:
        self.outputs = _names(native.outputs)
        self._request = native.create_infer_request()

    def _infer(self, batch: np.ndarray) -> np.ndarray:
        output: np.ndarray = self._request.infer([batch], share_inputs=True)[0]
        return output

    def close(self) -> None:
        super().close()
        self._request = None


def read(graph: Path) -> Any:
    """Read an ONNX file or an IR, `.xml` with `.bin` beside it. Raises DeviceError.

    ONNX files are read by `convert_model`, whose offline transformations convert Q/DQ to the form that plugins compute
    in INT8. Without them, OpenVINO 2026.4 gave wrong outputs for networks with shared scales, without an error.
    """
    with interrupts_deferred():
        require(OPENVINO_CPU)
        require_file(graph)
        import openvino.frontend

        try:
            if graph.suffix == IR:
                return openvino.Core().read_model(graph)
            # Refuses files that are not ONNX: to guess a format, OpenVINO would try TensorFlow's reader, which prints.
            openvino.frontend.FrontEndManager().load_by_framework("onnx").load(str(graph))
            return openvino.convert_model(str(graph))
        except Exception as error:
            raise DeviceError(
                f"OpenVINO cannot load {graph}: {error}", fix="check that it is an ONNX file, or an IR with its .bin"
            ) from error


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer SIGINT to the end of the block: OpenVINO's imports, also those of a conversion, catch every exception."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(signal.SIGINT, None)


def write_ir(graph: Path, xml: Path, *, half: bool, labels: Sequence[str]) -> int:
    """Write an ONNX file as IR, `xml` and `.bin` beside it; `half` stores float32 weights in float16.

    `labels` are stored for OpenVINO's Model API. Returns the number of INT8 weight tensors. Raises DeviceError.
    """
    import openvino

    model = read(graph)
    # The Model API separates labels by spaces.
    model.set_rt_info(" ".join(label.replace(" ", "_") for label in labels), ["model_info", "labels"])
    try:
        openvino.save_model(model, xml, compress_to_fp16=half)
    except Exception as error:
        raise DeviceError(f"OpenVINO cannot write {xml}: {error}", fix="check that there is room") from error
    constants = (each for each in model.get_ops() if each.get_type_name() == "Constant")
    return sum(each.get_element_type() == openvino.Type.i8 and len(each.shape) > 1 for each in constants)


def _names(ports: list[Any]) -> tuple[str, ...]:
    # An IR that another tool wrote may have ports without names.
    return tuple(port.get_any_name() if port.get_names() else f"port{index}" for index, port in enumerate(ports))


OPENVINO_CPU = HostOpenVino("openvino-cpu", "openvino", ("openvino",), "pip install openvino")
