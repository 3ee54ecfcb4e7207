"""TensorRT: the engine of NVIDIA's Jetson and data-centre GPUs.

An engine belongs to one GPU architecture, one TensorRT version and one OS, so it is built on the device that runs it,
when the bundle is installed there. On the host this module only says whether the library is here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, HostRuntime, Session


class HostTensorRt(HostRuntime):
    """TensorRT, as far as a host knows it: never usable from here."""

    def available(self) -> Availability:
        """Return which version is here, and where the engine is built."""
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
