"""DeepStream: a folder with the network, what nvinfer is to know of it, and the source of a parser of its output."""

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
from edgekd.deploy.converters.types import Asked, CacheCounts, FormatName, Made, Source
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, OnnxRuntime
from edgekd.graph.view import opset_of

CONFIG, LABELS, HEAD, PLAIN, CACHE = (
    "config_infer_primary.txt",
    "labels.txt",
    "edgekd_head.h",
    "detector-plain.onnx",
    "calibration.cache",
)
GRAPH = "detector.onnx"
PARSER = "NvDsInferParseEdgekd"
_FP32, _INT8, _FP16 = 0, 1, 2
"""nvinfer's `network-mode`."""
_GROUPED, _AS_IT_IS = 2, 4
"""nvinfer's `cluster-mode`: non-maximum suppression, none."""
_FILES = {
    GRAPH: "the network; INT8 as Q/DQ, if it has any",
    PLAIN: "the same in float, of which DeepStream builds an INT8 engine by `calibration.cache`",
    CACHE: "the scales of its activations, as TensorRT's calibration cache",
    CONFIG: "what nvinfer is to know: preprocessing, engine, thresholds, parser",
    LABELS: "the classes",
    "edgekd_parser.cpp": "the parser of the network's output",
    HEAD: "which output this network has",
    "Makefile": "builds what has to be built on the device",
}


@dataclass(frozen=True)
class DeepStream:
    """A folder. Q/DQ stays in the graph; for a target with TensorRT 8 the calibration cache lies beside it."""

    name: FormatName = "deepstream"
    suffix: str = "_deepstream"
    single_file: bool = False
    engine: OnnxRuntime = ONNXRUNTIME_CPU
    libraries: tuple[str, ...] = ("onnx",)

    def require(self) -> None:
        """Nothing is needed that edgekd itself does not need."""

    def convert(self, source: Source, folder: Path, name: str, asked: Asked) -> Made:
        """Write the folder. Raises SpecError for preprocessing that nvinfer does not do, and for float16."""
        from edgekd.graph.view import load_graph

        _require_sayable(source.spec, asked)
        if asked.opset is not None and opset_of(load_graph(source.graph)) <= asked.opset:
            asked = replace(asked, opset=None)  # the target takes it as it is
        made = ONNX.convert(source, folder, GRAPH.removesuffix(ONNX.suffix), asked)
        how = _how(source, asked)
        cache = _write_plain(folder, str(asked.tensorrt), source.scales) if how.cached else None
        notes = (*_notes(source.spec), *how.notes, *_cache_notes(cache))
        for path, text in _texts(source.spec, how, name, notes).items():
            (folder / path).write_text(text, "utf-8")
        told = "the network runs here and is compared; neither configuration nor parser was ever run under DeepStream"
        return Made(made.entry, made.carried, made.opset, (told, *notes), cache)


@dataclass(frozen=True)
class _How:
    """How the engine comes about. mode: nvinfer's; cached: by a calibration cache; built: by trtexec, before."""

    mode: int
    cached: bool = False
    built: bool = False
    flags: str = ""
    notes: tuple[str, ...] = ()


def _how(source: Source, asked: Asked) -> _How:
    if not source.layers:
        return _How(_FP32 if asked.precision == "fp32" else _FP16)
    major = int(asked.tensorrt.split(".")[0]) if asked.tensorrt else None
    if major is not None and major < 10:
        note = "DeepStream builds the engine by the calibration cache: TensorRT, not the graph, says what is INT8"
        return _How(_INT8, cached=True, notes=(note,))
    flags = "" if major is not None and major >= 11 else "--int8 --fp16"
    return _How(_INT8, built=True, flags=flags, notes=("nvinfer builds no engine of a Q/DQ graph: `make` does",))


def _require_sayable(spec: DetectorSpec, asked: Asked) -> None:
    """Raises SpecError for what nvinfer's preprocessing cannot be told."""
    if asked.precision == "fp16":
        fix = "leave --precision out: DeepStream computes in FP16 what is not INT8"
        raise SpecError("--precision fp16 with --to deepstream", expected="a float32 graph", fix=fix)
    if len(set(spec.preprocess.std)) > 1:
        raise SpecError(
            "--to deepstream: nvinfer divides all colours by one number",
            found=f"std {', '.join(map(str, spec.preprocess.std))}",
            fix="divide in the network itself",
        )


def _notes(spec: DetectorSpec) -> tuple[str, ...]:
    notes = []
    if spec.preprocess.pad_value:
        notes.append(
            f"nvinfer fills the rest of the input with black, not with {spec.preprocess.pad_value} as in scores"
        )
    if not spec.preprocess.upscale:
        notes.append("nvinfer enlarges frames that are smaller than the input; scores are of frames that were not")
    return tuple(notes)


def _cache_notes(cache: CacheCounts | None) -> tuple[str, ...]:
    if cache is None or not cache.missing:
        return ()
    return (
        f"{cache.missing} of {cache.activations} activations have no scale, so TensorRT computes the layers around them"
        " in FP16: convert the bundle of a build for this target, whose calibration cache has them all",
    )


def _write_plain(folder: Path, tensorrt: str, scales: Mapping[str, float]) -> CacheCounts:
    """Write the graph in floating point, and the scales of its activations as a cache. Raises SpecError.

    scales: of the source's own cache; those of the Q/DQ graph go before. What must stay in floating point gets no
    scale: nvinfer builds by the cache alone, and TensorRT computes in INT8 whatever has one.
    """
    from edgekd.core.formats.activations import float_activations
    from edgekd.core.formats.calibration_cache import to_text
    from edgekd.core.formats.plain_graph import plain_graph

    try:
        plain = plain_graph((folder / GRAPH).read_bytes())
    except ValueError as error:
        fix = "convert without --target, or the float model"
        raise SpecError(f"{GRAPH}: its INT8 cannot be taken out", found=str(error), fix=fix) from error
    (folder / PLAIN).write_bytes(plain.onnx)
    known, activations = {**scales, **plain.scales}, float_activations(plain.onnx)
    wanted = [name for name in activations if name not in plain.float_tensors]
    written = {name: known[name] for name in wanted if name in known}
    (folder / CACHE).write_text(to_text(written, tensorrt), "utf-8")
    return CacheCounts(len(activations), len(activations) - len(wanted), len(wanted) - len(written))


def _texts(spec: DetectorSpec, how: _How, name: str, notes: tuple[str, ...]) -> Mapping[str, str]:
    """Return the text files of the folder."""
    engine = GRAPH.replace(".onnx", ".engine")
    shipped = {file: told for file, told in _FILES.items() if how.cached or file not in (PLAIN, CACHE)}
    filled = {
        "ENGINE": engine if how.built else "",
        "ENGINE_TOLD": ", and the engine, which takes minutes" if how.built else "",
        "FLAGS": how.flags,
        "NAME": name,
        "VERSION": __version__,
        "FILES": "\n".join(f"| `{file}` | {told} |" for file, told in shipped.items()),
        "NOTES": "\n" + "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes) if notes else "",
    }
    return {
        LABELS: "".join(f"{label}\n" for label in spec.classes),
        CONFIG: config(spec, how.mode, how.cached, engine if how.built else None),
        HEAD: _head(spec),
        "edgekd_parser.cpp": _shipped("edgekd_parser.cpp"),
        "Makefile": _filled(_shipped("Makefile"), filled),
        "README.md": _filled(_shipped("README.md"), filled),
    }


def config(spec: DetectorSpec, mode: int, cached: bool, engine: str | None) -> str:
    """The file for nvinfer. engine: that was built before; None where nvinfer builds it, and keeps it."""
    how, usual = spec.preprocess, Thresholds()
    graph = PLAIN if cached else GRAPH
    precision = {_FP32: "fp32", _INT8: "int8", _FP16: "fp16"}[mode]
    std = how.std[0]
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
        "infer-dims": f"3;{how.height};{how.width}",
        "model-color-format": int(how.color == "bgr"),
        "net-scale-factor": f"{how.scale / std:.12g}",
        "offsets": ";".join(f"{mean / how.scale:.9g}" for mean in how.mean),
        "maintain-aspect-ratio": 1,
        "symmetric-padding": int(how.center),
        "labelfile-path": LABELS,
        "num-detected-classes": len(spec.classes),
        "cluster-mode": _GROUPED if spec.head.nms else _AS_IT_IS,
        "parse-bbox-func-name": PARSER,
        "custom-lib-path": "./libedgekd_parser.so",
    }
    attributes: dict[str, object] = {"pre-cluster-threshold": usual.confidence, "topk": usual.max_detections}
    if spec.head.nms:
        attributes["nms-iou-threshold"] = usual.iou
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
        "// Which output this network has.",
        f"#define EDGEKD_CLASSES {len(spec.classes)}u",
        f"#define EDGEKD_STRIDES {{{strides}}}",
        f"#define EDGEKD_PARSE parse_{spec.head.kind}",
    ]
    return "\n".join(lines) + "\n"


def _shipped(name: str) -> str:
    return (resources.files("edgekd.deploy.converters") / "deepstream_files" / name).read_text("utf-8")


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


DEEPSTREAM = DeepStream()
