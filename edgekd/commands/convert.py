"""`edgekd convert`: a detector in another format, compared with its source before it is written."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np

from edgekd.commands.arguments import names_of, path_or_none
from edgekd.commands.options import Artifact, Head, Trust
from edgekd.commands.options import Split as SplitName
from edgekd.commands.parameter import Option
from edgekd.core.atomic_files import copy_file, new_folder, remove_folder, writing
from edgekd.core.bundle.archive import read_file, read_manifest
from edgekd.core.canonical import file_sha256
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import BundleError, DeviceError, ParityError, SpecError, did_you_mean
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.deploy.artifact import BUNDLE_SUFFIX, opened
from edgekd.deploy.converters import format_named
from edgekd.deploy.converters.contract import NAME, Contract, write_contract
from edgekd.deploy.converters.parity import distance, limits
from edgekd.deploy.converters.result import (
    Converted,
    ConvertedFile,
    ConvertedScores,
    Int8Layers,
    MapScores,
    Parity,
)
from edgekd.deploy.converters.source import prepare, without_int8
from edgekd.deploy.converters.types import (
    PRECISIONS,
    ConversionRequest,
    ConversionResult,
    Format,
    Precision,
    Source,
)
from edgekd.detectors.export import probe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.types import HostRuntime, library_version
from edgekd.hardware.target import load_target

MADE = "made"
"""Name of the temporary folder into which a result is written before it is moved to its place."""
FRAMES = 4
"""Number of frames on which a conversion is compared with its source."""
MAP_LIMIT = 0.003
"""mAP50-95 that a conversion may lose."""
INT8_MAP_LIMIT = 0.01
"""mAP50-95 that a conversion of an INT8 network may lose, because runtimes round halves differently."""


_FOR_TENSORRT = ("onnx", "deepstream")
"""Formats that a device's TensorRT reads."""


def convert(
    artifact: Artifact,
    to: Annotated[str, Option("onnx, openvino, ncnn, tensorrt-rtx or deepstream.")],
    *,
    out: Annotated[
        str | Path | None, Option("File or folder to write. Default: in runs, by both names.", group="Output")
    ] = None,
    precision: Annotated[
        str, Option("as-is; fp16 for what is not INT8; fp32 for everything, INT8 taken out.")
    ] = "as-is",
    opset: Annotated[int | None, Option("Opset of an ONNX result. Default: the artifact's.")] = None,
    target: Annotated[
        str | Sequence[str],
        Option("GPUs of a TensorRT for RTX engine; the Jetson that reads an ONNX or DeepStream result."),
    ] = (),
    data: Annotated[str | Path | None, Option("Labelled data on which to score both, too.", group="Input")] = None,
    split: SplitName = "val",
    head: Head = None,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Converted:
    """Convert an artifact to another format, compare the result with its source, and only then write it.

    INT8 layers keep their scales, unless `precision` is `fp32`. GPUs of an engine are targets such as `rtx-40`.

    Raises SpecError for invalid options, DeviceError if a converter or runtime fails, ParityError if the outputs or
    scores of the result differ too much; then nothing is written. The command: `edgekd convert`. The checks and their
    limits: docs/guides/convert.md.
    """
    path, kind = Path(artifact), format_named(to)
    request = _request(kind, precision, opset, names_of(target))
    place = path_or_none(out) or Path("runs") / f"{_stem(path)}{kind.suffix}"
    _require_place(path, place, kind)
    kind.require()
    dataset = load_dataset(Path(data)) if data else None
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        work, classes = Path(scratch), dataset.classes if dataset else ()
        with opened(path, head, classes, trust_checkpoint) as (graph, spec):
            if dataset:
                require_classes(spec, dataset)
            scored = dataset.split(split, spec.head.task) if dataset else None
            source = prepare(graph, spec, request.precision, work, _cached_scales(path))
            written, result = _compared(path, source, kind, request, place, work, scored, progress)
        _publish(work / MADE, written, place, kind)
    files = _files(place, kind)
    return replace(result, files=files, bytes=sum(each.bytes for each in files))


def _compared(
    artifact: Path,
    source: Source,
    kind: Format,
    request: ConversionRequest,
    out: Path,
    work: Path,
    split: Split | None,
    progress: Progress,
) -> tuple[ConversionResult, Converted]:
    """Convert into the folder MADE of `work`, and compare the result with its source. Raises DeviceError, ParityError.

    out: the final place, for the result that is returned.
    """
    folder = work / MADE
    folder.mkdir()
    progress.note(f"converting {artifact.name} to {kind.name} ...")
    began = time.perf_counter()
    written = kind.convert(source, folder, _stem(artifact), request)
    seconds = time.perf_counter() - began
    parity = scores = None
    if kind.runtime is not None:
        entry = folder / written.entry
        parity = _parity(source, entry, kind.runtime, request, split, work)
        scores = _scores(source, entry, kind.runtime, written, split, progress) if split is not None else None
    unchecked = () if kind.runtime else ("nothing on this machine runs it, so it is not compared with its source",)
    result = Converted(
        artifact=artifact,
        format=kind.name,
        out=out,
        entry=out if kind.single_file else out / written.entry,
        precision=request.precision,
        opset=written.opset,
        int8=Int8Layers(len(source.layers), written.carried),
        calibration_cache=written.cache,
        libraries={name: library_version(name) for name in kind.libraries},
        seconds=seconds,
        notes=(*unchecked, *written.notes),
        parity=parity,
        scores=scores,
    )
    if not kind.single_file:
        about = {key: result.document[key] for key in ("precision", "int8", "libraries", "parity", "scores")}
        engine = kind.runtime.name if kind.runtime else None
        write_contract(folder, Contract(kind.name, written.entry, engine, source.spec), about)
    return written, result


def _request(kind: Format, precision_name: str, opset: int | None, targets: Sequence[str]) -> ConversionRequest:
    """Return the settings from the flags. Raises SpecError for those that the format does not have."""
    precision = next((each for each in PRECISIONS if each == precision_name), None)
    if precision is None:
        fix = did_you_mean(precision_name, PRECISIONS)
        raise SpecError("--precision", expected=", ".join(PRECISIONS), found=precision_name, fix=fix)
    if opset is not None and kind.name != "onnx":
        raise SpecError("--opset is for --to onnx", found=f"--to {kind.name}", fix="leave it out")
    if targets and kind.name in _FOR_TENSORRT:
        return _for_tensorrt(kind, precision, opset, targets)
    if targets and kind.name != "tensorrt-rtx":
        expected = f"tensorrt-rtx, {' or '.join(_FOR_TENSORRT)}"
        raise SpecError(f"--target is for --to {expected}", found=f"--to {kind.name}", fix="leave it out")
    return ConversionRequest(precision, opset, tuple(map(_compute_capability, targets)))


def _for_tensorrt(kind: Format, precision: Precision, opset: int | None, targets: Sequence[str]) -> ConversionRequest:
    """Return the settings for the TensorRT of a device. Raises SpecError."""
    if len(targets) > 1:
        raise SpecError(f"--to {kind.name}: several targets", expected="one", found=", ".join(targets))
    target = load_target(targets[0])
    if target.software.tensorrt is None:
        raise SpecError(f"{target.name}: has no TensorRT", fix="name a Jetson, or leave --target out")
    newest = target.max_opset.value if target.max_opset else None
    if opset is not None and newest is not None and opset > newest:
        raise SpecError("--opset", expected=f"at most {newest} for {target.name}", found=str(opset))
    return ConversionRequest(precision, opset or newest, tensorrt=target.software.tensorrt.value[0])


def _compute_capability(name: str) -> str:
    """Return the compute capability of a target for TensorRT for RTX. Raises SpecError."""
    target = load_target(name)
    if target.engine != "rtx" or target.compute_capability is None:
        raise SpecError(
            f"{name}: TensorRT for RTX makes no engine for a {target.title}",
            expected="a target such as rtx-30, rtx-40 or rtx-50",
            fix="`edgekd build` packs what the device builds its engine from",
        )
    return target.compute_capability


def _require_place(artifact: Path, out: Path, kind: Format) -> None:
    """Raise SpecError if something else is at `out`, or its name does not suit the format."""
    if out.absolute() == artifact.absolute():
        raise SpecError(f"{out}: is what is converted", fix="choose another --out")
    if kind.single_file:
        if out.is_dir() or out.suffix != kind.suffix:
            raise SpecError(f"{out}: --to {kind.name} writes one file", expected=f"a name with {kind.suffix}")
    elif out.exists() and not (out / NAME).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise SpecError(
            f"{out}: is there already, and no conversion of edgekd's", fix="remove it, or choose another --out"
        )


def _cached_scales(artifact: Path) -> dict[str, float]:
    """Return the scales in a bundle's calibration cache by tensor; empty without one. Raises BundleError."""
    if artifact.suffix != BUNDLE_SUFFIX:
        return {}
    entry = next((each for each in read_manifest(artifact).files if each.role == "calibration-cache"), None)
    try:
        return from_text(read_file(artifact, entry).decode("utf-8")) if entry else {}
    except ValueError as error:
        raise BundleError(f"{artifact}: its calibration cache cannot be read", found=str(error)) from error


def _parity(
    source: Source, entry: Path, engine: HostRuntime, request: ConversionRequest, split: Split | None, work: Path
) -> Parity:
    """Compare the result with its source on a few frames. Raises ParityError."""
    frames, head = list(_frames(source, split)), source.spec.head
    expected = outputs(source.graph, ONNXRUNTIME_CPU, frames)
    own = None
    if source.layers:
        float_graph = without_int8(source, work / "judge.onnx").graph
        own = distance(outputs(float_graph, ONNXRUNTIME_CPU, frames), expected, head)
    found = distance(outputs(entry, engine, frames), expected, head)
    allowed = limits(own, narrow=request.precision == "fp16")
    if not found.within(allowed):
        raise ParityError(
            f"{entry.name}: {engine.name} computes something else than ONNX Runtime computes of the source",
            expected=f"a relative error of boxes and scores of at most {allowed[0]:.3g} and {allowed[1]:.3g}",
            found=f"{found.boxes:.3g} and {found.scores:.3g} on {len(frames)} frames",
            fix="convert to another format or with another --precision; nothing was written",
        )
    return Parity(engine.name, len(frames), *allowed, distance=found)


def _frames(source: Source, split: Split | None) -> Iterator[np.ndarray]:
    """Yield frames float32 [1, 3, h, w] to compare on, from the data or else synthetic."""
    if split is None:
        yield from (probe(source.spec, seed) for seed in range(FRAMES))
        return
    for _, image in ReadableImages(split.samples[:FRAMES], SILENT, label="compare"):
        yield letterbox(image, source.spec.preprocess)[0]


def outputs(graph: Path, engine: HostRuntime, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Return the output of a runtime for each frame. Raises DeviceError."""
    with engine.load(graph) as session:
        return [session.run(frame).copy() for frame in frames]


def _scores(
    source: Source, entry: Path, engine: HostRuntime, written: ConversionResult, split: Split, progress: Progress
) -> ConvertedScores:
    """Score source and result on a split. Raises ParityError if the result loses more than its limit."""
    sides = {"source": (source.graph, ONNXRUNTIME_CPU), "converted": (entry, engine)}
    found = {
        side: evaluate(graph, source.spec, split, progress, f"score {side}", by).score
        for side, (graph, by) in sides.items()
    }
    difference = found["converted"].map50_95 - found["source"].map50_95
    limit = INT8_MAP_LIMIT if written.carried else MAP_LIMIT
    if difference < -limit:
        raise ParityError(
            f"{entry.name}: finds less than its source on split {split.name}",
            expected=f"at most {limit} of mAP50-95 less",
            found=f"{found['converted'].map50_95:.4f} after {found['source'].map50_95:.4f}",
            fix="convert to another format or with another --precision; nothing was written",
        )
    scores = {side: MapScores(score.map50_95, score.map50) for side, score in found.items()}
    return ConvertedScores(split.name, found["source"].images, **scores, difference=difference, allowed=limit)


def _publish(folder: Path, written: ConversionResult, out: Path, kind: Format) -> None:
    """Copy the result to its place atomically. Raises SpecError if it cannot be written."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if kind.single_file:
        copy_file(folder / written.entry, out)
        return
    if (out / NAME).is_file():
        remove_folder(out)
    with new_folder(out) as temporary, writing(out):
        for path in sorted(folder.iterdir()):
            shutil.copyfile(path, temporary / path.name)


def _files(out: Path, kind: Format) -> tuple[ConvertedFile, ...]:
    """Return the files of a result with sizes and hashes. Raises DeviceError if they cannot be read."""
    paths = [out] if kind.single_file else sorted(out.iterdir())
    try:
        return tuple(ConvertedFile(path, path.stat().st_size, file_sha256(path)) for path in paths)
    except OSError as error:
        raise DeviceError(f"{out}: cannot be read back", found=error.strerror) from error


def _stem(artifact: Path) -> str:
    return artifact.name.partition(".")[0]
