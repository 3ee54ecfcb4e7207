"""OpenVINO's intermediate representation: `NAME.xml` and `NAME.bin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.deploy.converters.source import require_float32
from edgekd.deploy.converters.types import Asked, FormatName, Made, Source
from edgekd.graph.runtimes.openvino import OPENVINO_CPU, OpenVino, write_ir
from edgekd.graph.runtimes.types import require


@dataclass(frozen=True)
class OpenVinoIr:
    """A folder as Ultralytics names it. Q/DQ becomes FakeQuantize with the same scales; weights stay INT8."""

    name: FormatName = "openvino"
    suffix: str = "_openvino_model"
    single_file: bool = False
    engine: OpenVino = OPENVINO_CPU
    libraries: tuple[str, ...] = ("openvino",)

    def require(self) -> None:
        """Raises DeviceError unless OpenVINO is installed."""
        require(OPENVINO_CPU)

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write `NAME.xml` and `NAME.bin`; for `fp16` with float32 weights stored in float16. Raises as `Format`."""
        require_float32(source, "an OpenVINO IR")
        written = write_ir(
            source.graph, folder / f"{name}.xml", half=asked.precision == "fp16", labels=source.spec.classes
        )
        notes = ("OpenVINO computes in the precision that its device prefers, whatever weights are stored in",)
        return Made(f"{name}.xml", written, notes=notes if asked.precision == "fp16" else ())


OPENVINO = OpenVinoIr()
