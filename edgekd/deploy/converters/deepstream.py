"""DeepStream: a folder with the network, the configuration of nvinfer, and the source of an output parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from edgekd.core.detection.decode import Thresholds
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import SpecError
from edgekd.core.version import __version__
from edgekd.deploy.converters.onnx_file import ONNX
from edgekd.deploy.converters.types import CacheCounts, ConversionRequest, ConversionResult, Format, Source
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import opset_of

CONFIG = "config_infer_primary.txt"
LABELS = "labels.txt"
HEAD = "edgekd_head.h"
GRAPH = "detector.onnx"
PLAIN = "detector-plain.onnx"
CACHE = "calibration.cache"
PARSER = "NvDsInferParseEdgekd"
_FP32, _INT8, _FP16 = 0, 1, 2
"""Values of nvinfer's `network-mode`."""
_NMS, _NO_CLUSTERING = 2, 4
"""Values of nvinfer's `cluster-mode`."""
_FILES = {
    GRAPH: "the network; INT8 as Q/DQ, if it has any",
    PLAIN: "the same in floating point, from which DeepStream builds an INT8 engine with `calibration.cache`",
    CACHE: "the scales of its activations, as TensorRT's calibration cache",
    CONFIG: "configuration of nvinfer: preprocessing, engine, thresholds, parser",
    LABELS: "the classes",
    "edgekd_parser.cpp": "the parser of the network's output",
    HEAD: "the kind of output of this network",
    "Makefile": "builds the parser on the device, and the engine if needed",
}


def convert(source: Source, folder: Path, name: str, request: ConversionRequest) -> ConversionResult:
    """Write the folder. Q/DQ stays in the graph; TensorRT before 10 also gets a float graph and a calibration cache.

    Raises SpecError for preprocessing that nvinfer does not support, and for float16.
    """
    from edgekd.graph.view import load_graph

    _require_supported(source.spec, request)
    if request.opset is not None and opset_of(load_graph(source.graph)) <= request.opset:
        request = replace(request, opset=None)  # the target reads it without conversion
    graph = ONNX.convert(source, folder, GRAPH.removesuffix(ONNX.suffix), request)
    build = _engine_build(source, request)
    cache = _write_plain(folder, str(request.tensorrt), source.scales) if build.cached else None
    notes = (*_notes(source.spec), *build.notes, *_cache_notes(cache))
    for path, text in _text_files(source.spec, build, name, notes).items():
        (folder / path).write_text(text, "utf-8")
    untested = "the network is run here and compared; configuration and parser were never run under DeepStream"
    return ConversionResult(graph.entry, graph.carried, graph.opset, (untested, *notes), cache)


DEEPSTREAM = Format(
    name="deepstream",
    suffix="_deepstream",
    single_file=False,
    runtime=ONNXRUNTIME_CPU,
    libraries=("onnx",),
    convert=convert,
)


@dataclass(frozen=True)
class _EngineBuild:
    """How the engine is built. mode: nvinfer's; cached: with a calibration cache; by_make: by trtexec with `flags`."""

    mode: int
    cached: bool = False
    by_make: bool = False
    flags: str = ""
    notes: tuple[str, ...] = ()


def _engine_build(source: Source, request: ConversionRequest) -> _EngineBuild:
    if not source.layers:
        return _EngineBuild(_FP32 if request.precision == "fp32" else _FP16)
    major = int(request.tensorrt.split(".")[0]) if request.tensorrt else None
    if major is not None and major < 10:
        note = (
            "DeepStream builds the engine from the calibration cache: TensorRT chooses the INT8 layers, not the graph"
        )
        return _EngineBuild(_INT8, cached=True, notes=(note,))
    flags = "" if major is not None and major >= 11 else "--int8 --fp16"
    note = "nvinfer cannot build an engine from a Q/DQ graph: run `make`"
    return _EngineBuild(_INT8, by_make=True, flags=flags, notes=(note,))


def _require_supported(spec: DetectorSpec, request: ConversionRequest) -> None:
    """Raise SpecError for options and preprocessing that nvinfer does not support."""
    if request.precision == "fp16":
        fix = "leave --precision out: DeepStream computes in FP16 what is not INT8"
        raise SpecError("--precision fp16 with --to deepstream", expected="a float32 graph", fix=fix)
    if spec.head.beside_boxes:
        found = f"one with {spec.head.beside_boxes}"
        fix = "convert to onnx or openvino"
        raise SpecError("--to deepstream", expected="a detector of boxes alone", found=found, fix=fix)
    if len(set(spec.preprocess.std)) > 1:
        raise SpecError(
            "--to deepstream: nvinfer divides all colours by one number",
            found=f"std {', '.join(map(str, spec.preprocess.std))}",
            fix="divide in the network itself",
        )


def _notes(spec: DetectorSpec) -> tuple[str, ...]:
    notes = []
    if spec.preprocess.pad_value and not spec.preprocess.stretch:
        notes.append(f"nvinfer pads the input with black, not with {spec.preprocess.pad_value} as in scores")
    if not (spec.preprocess.upscale or spec.preprocess.stretch):
        notes.append("nvinfer enlarges frames that are smaller than the input, unlike scores")
    return tuple(notes)


def _cache_notes(cache: CacheCounts | None) -> tuple[str, ...]:
    if cache is None or not cache.missing:
        return ()
    return (
        f"{cache.missing} of {cache.activations} activations have no scale, so TensorRT computes the layers around them"
        " in FP16: convert the bundle of a build for this target, whose calibration cache is complete",
    )


def _write_plain(folder: Path, tensorrt: str, scales: Mapping[str, float]) -> CacheCounts:
    """Write the graph in floating point, and a calibration cache of its activations. Raises SpecError.

    scales: of the source's cache; those of the Q/DQ graph take precedence. Tensors that must stay in floating point get
    no scale, as TensorRT computes in INT8 whatever has one.
    """
    from edgekd.core.formats.activations import float_activations
    from edgekd.core.formats.calibration_cache import to_text
    from edgekd.core.formats.plain_graph import plain_graph

    try:
        plain = plain_graph((folder / GRAPH).read_bytes())
    except ValueError as error:
        fix = "convert without --target, or the float model"
        raise SpecError(f"{GRAPH}: its INT8 cannot be removed", found=str(error), fix=fix) from error
    (folder / PLAIN).write_bytes(plain.onnx)
    known, activations = {**scales, **plain.scales}, float_activations(plain.onnx)
    quantizable = [name for name in activations if name not in plain.float_tensors]
    cached = {name: known[name] for name in quantizable if name in known}
    (folder / CACHE).write_text(to_text(cached, tensorrt), "utf-8")
    return CacheCounts(len(activations), len(activations) - len(quantizable), len(quantizable) - len(cached))


def _text_files(spec: DetectorSpec, build: _EngineBuild, name: str, notes: tuple[str, ...]) -> Mapping[str, str]:
    """Return the text files of the folder."""
    engine = GRAPH.replace(".onnx", ".engine")
    files = {file: text for file, text in _FILES.items() if build.cached or file not in (PLAIN, CACHE)}
    values = {
        "ENGINE": engine if build.by_make else "",
        "ENGINE_NOTE": ", and the engine, which takes minutes" if build.by_make else "",
        "FLAGS": build.flags,
        "NAME": name,
        "VERSION": __version__,
        "FILES": "\n".join(f"| `{file}` | {text} |" for file, text in files.items()),
        "NOTES": "\n" + "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes) if notes else "",
    }
    return {
        LABELS: "".join(f"{label}\n" for label in spec.classes),
        CONFIG: config(spec, build.mode, engine if build.by_make else None, cached=build.cached),
        HEAD: _head(spec),
        "edgekd_parser.cpp": _template("edgekd_parser.cpp", {}),
        "Makefile": _template("Makefile", values),
        "README.md": _template("README.md", values),
    }


def config(spec: DetectorSpec, mode: int, engine: str | None, *, cached: bool) -> str:
    """Return the configuration of nvinfer. engine: a prebuilt one; None if nvinfer builds and stores it."""
    preprocess, thresholds = spec.preprocess, Thresholds()
    graph = PLAIN if cached else GRAPH
    precision = {_FP32: "fp32", _INT8: "int8", _FP16: "fp16"}[mode]
    settings: dict[str, object] = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 0,
        "batch-size": 1,
        "onnx-file": graph,
        "model-engine-file": engine or f"{graph}_b1_gpu0_{precision}.engine",
        **({"int8-calib-file": CACHE} if cached else {}),
        "network-mode": mode,
        "infer-dims": f"3;{preprocess.height};{preprocess.width}",
        "model-color-format": int(preprocess.color == "bgr"),
        "net-scale-factor": f"{preprocess.scale / preprocess.std[0]:.12g}",
        "offsets": ";".join(f"{mean / preprocess.scale:.9g}" for mean in preprocess.mean),
        "maintain-aspect-ratio": int(not preprocess.stretch),
        "symmetric-padding": int(preprocess.center),
        "labelfile-path": LABELS,
        "num-detected-classes": len(spec.classes),
        "cluster-mode": _NMS if spec.head.nms else _NO_CLUSTERING,
        "parse-bbox-func-name": PARSER,
        "custom-lib-path": "./libedgekd_parser.so",
    }
    attributes: dict[str, object] = {
        "pre-cluster-threshold": thresholds.confidence,
        "topk": thresholds.max_detections,
    }
    if spec.head.nms:
        attributes["nms-iou-threshold"] = thresholds.iou
    return _ini({"property": settings, "class-attrs-all": attributes})


def _ini(groups: Mapping[str, Mapping[str, object]]) -> str:
    parts = (
        f"[{group}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
        for group, values in groups.items()
    )
    return "\n".join(parts)


def _head(spec: DetectorSpec) -> str:
    strides = ", ".join(f"{stride:d}" for stride in spec.head.strides)
    lines = [
        "// The kind of output of this network.",
        f"#define EDGEKD_CLASSES {len(spec.classes)}u",
        f"#define EDGEKD_STRIDES {{{strides}}}",
        f"#define EDGEKD_PARSE parse_{spec.head.kind}",
    ]
    return "\n".join(lines) + "\n"


def _template(name: str, values: Mapping[str, str]) -> str:
    text = (resources.files("edgekd.deploy.converters") / "deepstream_files" / name).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
