"""TensorRT: the engine of NVIDIA's Jetson and data-centre GPUs.

An engine belongs to one GPU architecture, one TensorRT version and one OS, so it is built on the device that runs it,
when the bundle is installed there. On the host this module only says whether the library is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.core.errors import DeviceError
from edgekd.graph.runtimes.types import Availability, LoadedApart, Session, import_problem, library_version


@dataclass(frozen=True)
class TensorRt(LoadedApart):
    """TensorRT, as far as a host knows it."""

    name: str = "tensorrt"

    def version(self) -> str | None:
        """The version of the installed package."""
        return library_version("tensorrt")

    def available(self) -> Availability:
        """Never usable from a host: says which version is here and where the engine is built."""
        problem = import_problem("tensorrt")
        if problem:
            why = f"engines are built on the device at install time; here: {problem}"
            return Availability(False, why, "pip install tensorrt")
        return Availability(
            False, f"TensorRT {self.version()} is here; engines are built on the device at install time"
        )

    def load(self, graph: Path, *, threads: int | None = None) -> Session:
        """Always a DeviceError: the engine is built on the device, when the bundle is installed."""
        raise DeviceError(
            f"TensorRT does not run {graph.name} on this host: its engine is built on the device at install time",
            fix="run with onnxruntime-cpu, onnxruntime-cuda or openvino-cpu here, as a stand-in",
        )


TENSORRT = TensorRt()
