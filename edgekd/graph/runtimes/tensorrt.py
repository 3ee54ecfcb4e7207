"""TensorRT: the runtime of NVIDIA's Jetson and data-centre GPUs.

An engine belongs to one GPU architecture, one TensorRT version and one OS, so it is built on the device that runs it,
when the bundle is installed there. On the host, this module only reports whether the library is installed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session


class HostTensorRt(HostRuntime):
    """TensorRT on a host, where it is never usable."""

    def available(self) -> Availability:
        """Return that TensorRT is not usable on this host, with the installed version and where engines are built."""
        imported = super().available()
        return imported if imported.install is None else replace(imported, why=f"{_ON_DEVICE}; here: {imported.why}")

    def _available_once_imported(self) -> Availability:
        return Availability(False, f"TensorRT {self.version()} is here; {_ON_DEVICE}")

    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """Raise DeviceError: the engine is built on the device, when the bundle is installed."""
        raise DeviceError(
            f"TensorRT does not run {graph.name} on this host: its engine is built on the device at install time",
            fix="run with onnxruntime-cpu, onnxruntime-cuda or openvino-cpu here, as a stand-in",
        )


_ON_DEVICE = "engines are built on the device at install time"
TENSORRT = HostTensorRt("tensorrt", "tensorrt", ("tensorrt",), "pip install tensorrt")
