"""OpenVINO's intermediate representation: `NAME.xml` and `NAME.bin`, in a folder as Ultralytics names it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from edgekd.deploy.converters.source import require_float32
from edgekd.deploy.converters.types import ConversionRequest, ConversionResult, Format, Source
from edgekd.graph.runtimes.openvino import OPENVINO_CPU, write_ir
from edgekd.graph.runtimes.types import require


def convert(source: Source, folder: Path, name: str, request: ConversionRequest) -> ConversionResult:
    """Convert; Q/DQ becomes FakeQuantize with the same scales, INT8 weights stay INT8."""
    require_float32(source, "an OpenVINO IR")
    half = request.precision == "fp16"
    carried = write_ir(source.graph, folder / f"{name}.xml", half=half, labels=source.spec.classes)
    notes = ("OpenVINO computes in the precision that its device prefers, independent of the stored weights",)
    return ConversionResult(f"{name}.xml", carried, notes=notes if half else ())


OPENVINO = Format(
    name="openvino",
    suffix="_openvino_model",
    single_file=False,
    runtime=OPENVINO_CPU,
    libraries=("openvino",),
    convert=convert,
    require=partial(require, OPENVINO_CPU),
)
