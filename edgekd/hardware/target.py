"""Build targets: one device, its software versions and its figures, read from a TOML file.

The shipped targets are the files of the package `edgekd.targets`; a user's own target is a file of the same format. A
number, a version or a list of capabilities is always a `Figure`: a value with its source, and whether the source was
read. A plain string is a choice of this project, not a fact about hardware.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml
from edgekd.hardware.budget import Budget

T = TypeVar("T")
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "nvfp4"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
Range = tuple[str, str]
"""Lowest and highest version, both included, each as exact as it is written: `8.5.2` includes 8.5.2.2."""
EXPORT_OPSET = 17
"""Newest opset that benefits these networks; a target may require an older one."""
OPSET_BEFORE_LAYER_NORM = 16
"""The newest opset in which a LayerNorm is written with operators that every TensorRT has."""
LAYER_NORM_SINCE = (8, 6)
"""First TensorRT with LayerNormalization: onnx-tensorrt docs/Changelog.md."""


@dataclass(frozen=True)
class Figure(Generic[T]):
    """A value with its source.

    Args:
        value: Value, in the unit of its key's name.
        source: Source of the value.
        verified: True where the source was read, false where the value was computed, inferred or recalled.
    """

    value: T
    source: str
    verified: bool


@dataclass(frozen=True)
class Software:
    """Software versions on the device. The range of the runtime that `engine` names is decisive.

    Args:
        jetpack, tensorrt, tensorrt_rtx, cuda: Oldest and newest version.
        python, ubuntu: Version.
    """

    jetpack: Figure[Range] | None = None
    tensorrt: Figure[Range] | None = None
    tensorrt_rtx: Figure[Range] | None = None
    cuda: Figure[Range] | None = None
    python: Figure[str] | None = None
    ubuntu: Figure[str] | None = None


@dataclass(frozen=True)
class Precisions:
    """Precisions that the target executes.

    Args:
        conv: Precisions of Conv and ConvTranspose.
        gemm: Precisions of MatMul and Gemm.
        multiple: Channel counts should be multiples of it.
    """

    conv: Figure[tuple[Precision, ...]]
    gemm: Figure[tuple[Precision, ...]]
    multiple: Figure[int] | None = None


@dataclass(frozen=True)
class Dla:
    """DLA cores: fixed-function accelerators beside the GPU.

    Args:
        count: Number of cores.
        version: Generation.
        quantization: Source of INT8 scales: a `calibration-cache` beside a graph without Q/DQ, or `qdq` in the graph.
        int8_tops: Dense peak of all cores together, in 10^12 operations per second.
    """

    count: Figure[int]
    version: Figure[int]
    quantization: Figure[Literal["calibration-cache", "qdq"]]
    int8_tops: Figure[float] | None = None


@dataclass(frozen=True)
class Memory:
    """Memory the GPU can use.

    Args:
        gb: Decimal gigabytes as sold.
        bandwidth_gbs: Gigabytes per second.
        l2_mib: L2 cache of the GPU in MiB.
    """

    gb: Figure[float] | None = None
    bandwidth_gbs: Figure[float] | None = None
    l2_mib: Figure[float] | None = None


@dataclass(frozen=True)
class Peaks:
    """Dense peaks of the GPU, in 10^12 operations per second (a multiply-add is two).

    Args:
        fp32_tflops: Peak of float32 networks: of TF32 if the tensor cores support it.
        fp16_tflops, int8_tops, fp8_tflops, fp4_tflops: 10^12 operations per second.
    """

    fp32_tflops: Figure[float] | None = None
    fp16_tflops: Figure[float] | None = None
    int8_tops: Figure[float] | None = None
    fp8_tflops: Figure[float] | None = None
    fp4_tflops: Figure[float] | None = None


@dataclass(frozen=True)
class TargetPowerMode:
    """A power mode.

    Args:
        name: Name of the mode.
        watts: Its power budget in watts, if it has one.
        nvpmodel: Number for `nvpmodel -m`, where known.
    """

    name: str
    watts: Figure[float] | None = None
    nvpmodel: Figure[int] | None = None


@dataclass(frozen=True)
class Power:
    """Measurement and limits of power.

    Args:
        rails: Names of the measured rails.
        total: The rail of the total power, or `sum` of the rails.
        max_watts: Limit of the board or module.
        default_mode: Power mode of measurements by default.
        modes: Power modes.
    """

    rails: Figure[tuple[str, ...]] | None = None
    total: Figure[str] | None = None
    max_watts: Figure[float] | None = None
    default_mode: str | None = None
    modes: tuple[TargetPowerMode, ...] = ()


@dataclass(frozen=True)
class Target:
    """One device to build for.

    Units are in the names. Every `Figure` has a source; `explain` lists them all. How to write a target:
    docs/reference/target-files.md.

    Args:
        name: Name that `--target` takes.
        title: Name for users.
        kind: Kind of device.
        compatible: Name that firmware compares before it installs.
        engine: Builder of the engine: `deferred` (the device, at installation), `rtx` (TensorRT for RTX, ahead of time,
            for `compute_capability`), `tensorrt` (on the machine at hand), or a CPU runtime.
        packager: Update system of the device.
        recipe: Default recipe.
        nms: How NonMaxSuppression in a graph is run: `plugin`, `native` or `none`.
        compute_capability: GPU that TensorRT for RTX compiles for, such as `SM86`.
        container: Container image with its software.
        sm: CUDA compute capability.
        multiprocessors: Multiprocessors of the GPU.
        clock_ghz: Clock of the GPU in the power mode of `peaks`.
        max_opset: Newest ONNX opset that its parser accepts.
    """

    name: str
    title: str
    kind: Literal["jetson", "gpu", "cpu"]
    compatible: str
    engine: Literal["deferred", "rtx", "tensorrt", "openvino", "onnxruntime"]
    packager: Literal["rauc", "swupdate", "mender", "none"]
    recipe: str
    nms: Figure[Literal["plugin", "native", "none"]]
    precisions: Precisions
    compute_capability: str | None = None
    container: Figure[str] | None = None
    sm: Figure[float] | None = None
    multiprocessors: Figure[int] | None = None
    clock_ghz: Figure[float] | None = None
    max_opset: Figure[int] | None = None
    software: Software = Software()
    dla: Dla | None = None
    memory: Memory = Memory()
    peaks: Peaks = Peaks()
    power: Power | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def on_tensorrt(self) -> bool:
        """True if TensorRT, in any of its forms, runs the graph."""
        return self.engine in ("deferred", "rtx", "tensorrt")

    @property
    def strongly_typed(self) -> bool:
        """True if its builder takes the type of every tensor from the graph, as TensorRT 11 and TensorRT for RTX do."""
        newest = self.software.tensorrt
        return self.engine == "rtx" or (newest is not None and version(newest.value[1]) >= (11,))


class Fact(NamedTuple):
    """One line of an explanation; `verified` is None for a choice of this project."""

    group: str
    name: str
    value: str
    source: str
    verified: bool | None


def version(text: str) -> tuple[int, ...]:
    """Return `8.5.2` as (8, 5, 2), to compare. Raises ValueError if a part is not a number."""
    return tuple(int(part) for part in text.split("."))


def opset_for(target: Target) -> int:
    """Return the opset to export with: as new as is useful, as old as the target's parser needs.

    TensorRT before 8.6 accepts opset 17, but not LayerNormalization, which opset 17 added.
    """
    newest = min(EXPORT_OPSET, target.max_opset.value) if target.max_opset else EXPORT_OPSET
    trt = target.software.tensorrt
    return min(newest, OPSET_BEFORE_LAYER_NORM) if trt and version(trt.value[0]) < LAYER_NORM_SINCE else newest


def takes_bytes(target: Target) -> bool:
    """Return whether a graph's input may be uint8: TensorRT's parser takes that from 8.5 on (onnx-tensorrt PR 879)."""
    return target.software.tensorrt is None or version(target.software.tensorrt.value[0]) >= (8, 5)


def cache_version(target: Target) -> str | None:
    """Return the TensorRT version that the target's calibration cache must name; None if no cache is needed.

    A DLA without Q/DQ needs it, and DeepStream with TensorRT 8.
    """
    if target.software.tensorrt is None:
        return None
    oldest = target.software.tensorrt.value[0]
    read_by_dla = target.dla is not None and target.dla.quantization.value == "calibration-cache"
    return oldest if read_by_dla or version(oldest) < (10,) else None


def target_names() -> tuple[str, ...]:
    """Return the names of the shipped targets, in order."""
    files = resources.files("edgekd.targets").iterdir()
    return tuple(sorted(file.name[: -len(".toml")] for file in files if file.name.endswith(".toml")))


def load_target(name_or_path: str | Path) -> Target:
    """Load a shipped target by name, or a target file by its path (ends in `.toml` or has a separator in it).

    Raises SpecError: no such target or file, or a file that does not describe a target.
    """
    name_or_path = str(name_or_path)
    if name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return _from_file(Path(name_or_path))
    names = target_names()
    if name_or_path not in names:
        raise SpecError(
            f"unknown target {name_or_path!r}",
            expected="one of " + ", ".join(names) + ", or the path of a .toml file",
            fix=did_you_mean(name_or_path, names),
        )
    with resources.as_file(resources.files("edgekd.targets") / f"{name_or_path}.toml") as path:
        return _from_file(path)


def explain(target: Target) -> list[Fact]:
    """Return all facts of a target, grouped as in its file."""
    return sorted(_facts("target", "", target), key=lambda fact: fact.group != "target")


def to_dict(target: Target) -> dict[str, Any]:
    """Return the target as plain dicts, lists, strings and numbers, for JSON."""
    return dataclasses.asdict(target)


def _from_file(path: Path) -> Target:
    target: Target = parse_table(Target, read_toml(path), str(path))
    for problem in _contradictions(target):
        raise SpecError(f"{path}: {problem}")
    return target


def _contradictions(target: Target) -> Iterator[str]:
    """Yield a message for each contradiction among the keys."""
    for key in ("jetpack", "tensorrt", "tensorrt_rtx", "cuda"):
        figure: Figure[Range] | None = getattr(target.software, key)
        if figure and not _ordered(figure.value):
            yield f"software.{key}: expected two versions, the lower one first; found {list(figure.value)}"
    if target.engine in ("deferred", "tensorrt") and not target.software.tensorrt:
        yield f'engine = "{target.engine}": expected software.tensorrt, the range of versions; found none'
    if target.engine == "rtx" and not (target.software.tensorrt_rtx and target.compute_capability):
        yield 'engine = "rtx": expected software.tensorrt_rtx and compute_capability; found at most one of them'
    power = target.power or Power()
    rails = power.rails.value if power.rails else ()
    if power.total and power.total.value not in ("sum", *rails):
        yield f'power.total: expected "sum" or one of power.rails; found "{power.total.value}"'
    if power.default_mode and power.default_mode not in [mode.name for mode in power.modes]:
        yield f'power.default_mode: expected the name of one of power.modes; found "{power.default_mode}"'


def _ordered(versions: Range) -> bool:
    try:
        low, high = map(version, versions)
    except ValueError:
        return False
    return low <= high


def _facts(group: str, name: str, value: Any) -> Iterator[Fact]:
    if isinstance(value, Figure):
        yield Fact(group, name, _text(value.value), value.source, value.verified)
    elif isinstance(value, TargetPowerMode):
        yield from _facts(group, f"{value.name} watts", value.watts)
        yield from _facts(group, f"{value.name} nvpmodel", value.nvpmodel)
    elif isinstance(value, tuple):
        for item in value:
            yield from _facts(group, name, item)
    elif dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            inner = getattr(value, entry.name)
            is_table = dataclasses.is_dataclass(inner) and not isinstance(inner, Figure)
            yield from _facts(entry.name if is_table else group, entry.name, inner)
    elif value is not None:
        yield Fact(group, name, _text(value), "", None)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
