"""The stages of a build: what each takes, does and leaves in the store. `pipeline.build` puts them in order.

A stage's inputs are hashed into its key: names and values of everything that changes what comes out. `VERSION` counts
changes of the code behind a stage that change its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.builds.recipe import Quantize
from edgekd.builds.stage_store import FileHashes, Stage, Store
from edgekd.core.canonical import canonical_json
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.errors import CompressError, DataError, SpecError
from edgekd.core.progress import Progress, tell_stage
from edgekd.core.toml import read_toml
from edgekd.data.calibration import (
    CalibrationRule,
    CalibrationSet,
    choose,
    load_rule,
    read_calibration,
    refuse_overlap,
)
from edgekd.data.calibration import write_calibration as write_calibration_toml
from edgekd.data.images import ReadableImages, fingerprint, read_image
from edgekd.data.long_tail import rare_classes
from edgekd.data.types import Dataset, Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors import Detector
from edgekd.graph.runtimes.types import library_version
from edgekd.hardware.target import Target, to_dict

if TYPE_CHECKING:
    import numpy as np

    from edgekd.compress.quantization.plan import Plan
    from edgekd.core.bundle.manifest import Thresholds

VERSION = {
    "export": 1,
    "score": 3,
    "calibrate": 2,
    "student": 1,
    "trial": 1,
    "board": 1,
    "plan": 2,
    "search": 2,
    "label": 1,
    "resize": 1,
    "prune": 4,
    "factorize": 2,
    "sensitivity": 1,
    "distill": 4,
    "quantize": 5,
    "quant_aware_distill": 3,
    "compare": 1,
    "half": 1,
    "encode": 1,
    "drift": 1,
    "check": 1,
    "compile": 2,
    "benchmark": 2,
    "analyse": 2,
    "report": 3,
    "pack": 4,
}
TOOLS = {
    "export": ("onnx", "onnxslim"),
    "score": ("faster-coco-eval", "numpy", "onnxruntime", "opencv-python-headless"),
    "calibrate": ("numpy", "opencv-python-headless"),
    "plan": ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy"),
    "drift": ("numpy", "onnxruntime", "opencv-python-headless"),
    "search": ("faster-coco-eval", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy"),
    "label": ("numpy", "onnxruntime", "opencv-python-headless"),
    "student": ("torch", "ultralytics"),
    "trial": (
        *("faster-coco-eval", "numpy", "onnx", "onnxruntime", "onnxslim", "opencv-python-headless", "scipy"),
        *("torch", "torch-pruning", "torchvision", "ultralytics"),
    ),
    "resize": ("torch", "ultralytics"),
    "prune": ("numpy", "torch", "torch-pruning", "torchvision", "ultralytics"),
    "sensitivity": ("numpy", "torch", "torch-pruning", "torchvision", "ultralytics"),
    "factorize": ("numpy", "opencv-python-headless", "torch", "ultralytics"),
    "distill": ("numpy", "torch", "torchvision", "ultralytics"),
    "quantize": ("numpy", "onnx", "onnxruntime", "opencv-python-headless"),
    "quant_aware_distill": ("numpy", "onnx", "torch", "ultralytics"),
    "compare": ("numpy", "onnxruntime", "opencv-python-headless"),
    "half": ("onnx", "onnxruntime"),
    "compile": ("tensorrt-rtx",),
    "analyse": ("numpy", "onnx", "onnxruntime", "onnxslim", "opencv-python-headless"),
    "report": ("numpy", "opencv-python-headless"),
}
"""The libraries whose version a stage's output may depend on."""
GRAPH, LABELS, PACKED, PLAN, COSTS, CACHE, CALIBRATION, DETECTIONS, SAMPLES, DRIFT = (
    "graph.onnx",
    "labels.json",
    "graph.packed",
    "plan.toml",
    "costs.json",
    "calibration.cache",
    "calibration.toml",
    "detections.npz",
    "samples.json",
    "drift.json",
)
KEPT_CONFIDENCE = 0.01
"""From which on detections of scored images are kept: far below what a camera goes by, to see what nearly counted."""
TIMED_FRAMES = 16


@dataclass(frozen=True)
class Frames:
    """What a network is calibrated on. sha256: of what is read, and how; read: the frames float32, one at a time."""

    sha256: str
    read: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Calibrated:
    """The stage that chose the calibration images, the images, and the frames that they are to the network."""

    stage: Stage
    images: CalibrationSet
    frames: Frames


class Stages:
    """The stages of one build, run or found in the store, in the order they were asked for."""

    def __init__(self, store: Store, hashes: FileHashes, progress: Progress) -> None:
        self.done: list[Stage] = []
        self.store = store
        self._hashes = hashes
        self.progress = progress

    @classmethod
    def within(cls, out: Path, fresh: bool, progress: Progress) -> Stages:
        """The stages of a job whose results go to the folder `out`; `fresh`: none from before is reused."""
        store = Store(out / "stages", fresh, progress)
        return cls(store, FileHashes(store.root / "hashes.json"), progress)

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[Path], Mapping[str, Any]],
        libraries: Sequence[str] = (),
    ) -> Stage:
        """One stage, with a line said about it. `score-int8` has the version and the tools of `score`.

        Versions of its `TOOLS`, and of further `libraries`, are part of its key; its results state them as `tools`.
        """
        kind = name.split("-")[0]
        tools = tool_versions(*TOOLS.get(kind, ()), *libraries)
        key = {**inputs, "tools": tools}
        stage = self.store.stage(name, VERSION[kind], key, lambda folder: {**work(folder), "tools": tools})
        if stage.key not in {other.key for other in self.done}:
            self.done.append(stage)
            tell_stage(self.progress, stage.name, stage.results, stage.seconds)
        score = f", mAP50-95 {stage.results['map50_95']:.4f}" if "map50_95" in stage.results else ""
        self.progress.note(f"{name}: {'found in the store' if stage.cached else f'{stage.seconds:.1f} s'}{score}")
        return stage

    def note(self, text: str) -> None:
        """Say one thing to whoever waits."""
        self.progress.note(text)

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file, read again only when it changed."""
        return self._hashes.sha256(file)

    def named(self, model: str) -> str:
        """What a model is: the SHA-256 of the file of that name, or the name itself where there is no file."""
        return self.sha256(Path(model)) if Path(model).is_file() else model

    def fingerprint(self, split: Split) -> str:
        """SHA-256 of what a split shows and says: images and labels, wherever they lie."""
        found = fingerprint(split, self._hashes.sha256, self.progress)
        self._hashes.save()
        return found

    def refuse_shared(self, trained: Split, scored: Split) -> None:
        """Raise DataError where an image of a split that is trained on is also scored."""
        seen = {self.sha256(sample.image): sample.image for sample in scored.samples}
        for sample in trained.samples:
            if (found := seen.get(self.sha256(sample.image))) is not None:
                raise DataError(
                    f"{sample.image} is trained on and, as {found}, scored in split {scored.name!r}",
                    expected="training and scoring to share no image",
                    fix="take the image out of one of the splits",
                )

    def export(self, detector: Detector, head: str | None, classes: Sequence[str], opset: int) -> Stage:
        """The float32 graph. Results: `detector` (the spec as JSON), `opset`, `error`, `bytes`."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.detectors.export import export

            exported = export(detector, folder / GRAPH, opset)
            size = (folder / GRAPH).stat().st_size
            return {
                "detector": asdict(exported.spec),
                "opset": exported.opset,
                "error": exported.error,
                "bytes": size,
            }

        described = read_toml(Path(head)) if head and head.endswith(".toml") else head
        inputs = {
            "model": self.sha256(detector.path),
            "family": detector.family,
            "head": described,
            "classes": list(classes),
            "opset": opset,
        }
        return self.run("export", inputs, work, detector.libraries)

    def check(self, graph: Stage, target: Target, precision: str) -> Stage:
        """What is impossible or slow on the target. Results: `findings`. Raises SpecError for the impossible."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.hardware.compatibility import check_graph

            return {"findings": [asdict(finding) for finding in check_graph(graph.path / GRAPH, target)]}

        stage = self.run(f"check-{precision}", {"graph": graph.sha256, "target": to_dict(target)}, work)
        for finding in stage.results["findings"]:
            if finding["level"] == "impossible":
                raise SpecError(f"{target.name}: {finding['what']} ({finding['where']})", fix=finding["change"])
        return stage

    def score(self, graph: Stage, split: Split, data: str, precision: str) -> Stage:
        """COCO scores of a graph. Results: `map50_95`, `map50`, `per_class`, `by_size`, `images`, `skipped`."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.evaluation.evaluate import evaluate, save_detections, sure

            found = evaluate(graph.path / GRAPH, spec_of(graph), split, self.progress, f"score {precision}")
            shapes = [(width, height) for _, width, height in found.truths]
            save_detections(folder / DETECTIONS, [sure(one, KEPT_CONFIDENCE) for one in found.detections], shapes)
            why = dict(found.skipped)
            skipped = [[i, s.image.name, why[s.image]] for i, s in enumerate(split.samples) if s.image in why]
            return {**found.score.to_json(), "skipped": skipped}

        return self.run(f"score-{precision}", {"graph": graph.sha256, "data": data}, work)

    def calibrate(
        self, source: CalibrationRule | Path, dataset: Dataset, scored: Split, data: str, spec: DetectorSpec
    ) -> Calibrated:
        """The calibration set: chosen from the training split by a rule, or read from a TOML. Never scored on.

        Results: `sha256`, `images`, their number, and `rare`: the classes that are rare in the training split, as far
        as that is read.
        """

        def work(folder: Path) -> Mapping[str, Any]:
            if isinstance(source, Path):
                images = read_calibration(source, dataset, self.progress)
            else:
                images = choose(dataset, source, preprocess=spec.preprocess, progress=self.progress)
            refuse_overlap(images, scored, self.progress)
            write_calibration_toml(images, folder / CALIBRATION)
            rare = () if isinstance(source, Path) else rare_classes(dataset.split("train"), dataset.classes)
            return {"sha256": images.sha256, "images": len(images.files), "rare": list(rare)}

        chosen_from: dict[str, Any]
        if isinstance(source, Path):
            chosen_from = {"set": self.sha256(source)}
        else:
            chosen_from = {"rule": asdict(source), "train": self.fingerprint(dataset.split("train"))}
        stage = self.run("calibrate", {**chosen_from, "scored": data, "preprocess": asdict(spec.preprocess)}, work)
        images = read_calibration(stage.path / CALIBRATION, dataset)
        return Calibrated(stage, images, Frames(images.sha256, lambda: self._frames(images, spec)))

    def plan(self, step: Quantize, graph: Stage, frames: Frames) -> Stage:
        """What every format of every layer would cost, in the file COSTS. Results: `layers`, their number."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.compress.quantization.mixed_precision import measure_costs

            self.progress.note("plan: measuring what each format of each layer costs ...")
            costs = measure_costs(graph.path / GRAPH, frames.read(), step)
            (folder / COSTS).write_bytes(canonical_json(costs.to_json()))
            return {"layers": len(costs.layers)}

        inputs = {"graph": graph.sha256, "frames": frames.sha256, "step": settings_of(step)}
        return self.run("plan", inputs | {"nvfp4": "nvfp4" in step.formats}, work)

    def quantize(
        self, step: Quantize, graph: Stage, frames: Frames, plan: Plan | None = None, tensorrt: str | None = None
    ) -> Stage:
        """The Q/DQ graph, its plan if it has one, and TensorRT's calibration cache for a version of it.

        Results: as `export`, `layers` (INT8, all), `forms`, `snr_db`, and `errors`: what each layer is thought to cost,
        by the plan, or else the noise at its own output relative to the signal; `calibration_cache`: as `write_cache`.
        """

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.compress.quantization.activation_scales import write_cache
            from edgekd.compress.quantization.plan import plan_toml
            from edgekd.compress.quantization.quantize import quantize

            done = quantize(graph.path / GRAPH, folder / GRAPH, frames.read(), step, plan.forms if plan else None)
            if plan:
                (folder / PLAN).write_text(plan_toml(plan), "utf-8")
            cache = write_cache(folder / GRAPH, folder / CACHE, frames.read, tensorrt) if tensorrt else None
            noises = {name: 10 ** (-done.snr_db[name] / 10) for name in done.int8}
            errors = {layer.name: layer.error for layer in plan.layers} if plan else noises
            return {
                "detector": graph.results["detector"],
                "opset": graph.results["opset"],
                "bytes": (folder / GRAPH).stat().st_size,
                "layers": [len(done.int8), done.layers],
                "forms": dict(done.forms),
                "snr_db": {name: round(ratio, 2) for name, ratio in done.snr_db.items()},
                "errors": {name: float(f"{error:.4g}") for name, error in errors.items()},
                "calibration_cache": cache,
            }

        inputs = {
            "graph": graph.sha256,
            "calibration": frames.sha256,
            "step": settings_of(step),
            "plan": asdict(plan) if plan else None,
            "tensorrt": tensorrt,
        }
        return self.run("quantize", inputs, work)

    def half(self, graph: Stage) -> Stage:
        """The graph with float16 in place of float32. Results: `detector`, `opset`, `bytes`."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.graph.fp16 import half

            opset = half(graph.path / GRAPH, folder / GRAPH)
            return {"detector": graph.results["detector"], "opset": opset, "bytes": (folder / GRAPH).stat().st_size}

        return self.run("half", {"graph": graph.sha256}, work)

    def encode(self, graph: Stage, precision: str) -> Stage:
        """The graph as it ships: packed, and proven to expand to itself. Results: `bytes`, `onnx_bytes`."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.core.formats.packed_graph import pack, unpack

            content = (graph.path / GRAPH).read_bytes()
            packed = pack(content)
            if unpack(packed) != content:
                raise CompressError("encode: the packed graph does not expand to the graph that was packed")
            (folder / PACKED).write_bytes(packed)
            return {"bytes": len(packed), "onnx_bytes": len(content)}

        return self.run(f"encode-{precision}", {"graph": graph.files[GRAPH].sha256}, work)

    def drift(self, graph: Stage, train: Split, thresholds: Thresholds) -> Stage:
        """How statistics of training images are spread, in DRIFT where there are enough. Results: `frames`."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.builds.stages.drift_reference import statistics
            from edgekd.core import drift

            found = statistics(graph.path / GRAPH, spec_of(graph), thresholds, train, self.progress)
            if len(found) >= drift.MIN_FRAMES:
                (folder / DRIFT).write_bytes(drift.to_json(drift.record_of(found)))
            return {"frames": len(found)}

        inputs = {"graph": graph.files[GRAPH].sha256, "train": self.fingerprint(train)}
        return self.run("drift", {**inputs, "thresholds": asdict(thresholds)}, work)

    def compile(self, graph: Stage, target: Target) -> Stage:
        """The engine where it can be made here, else the parser check. Results: `how`, `note`, `check`, `engine`."""
        from edgekd.builds.stages.compile import compile_graph

        def work(folder: Path) -> Mapping[str, Any]:
            return asdict(compile_graph(graph.path / GRAPH, target, folder))

        return self.run("compile", {"graph": graph.sha256, "target": to_dict(target)}, work)

    def benchmark(self, before: Stage, after: Stage, split: Split, data: str, device: LocalDevice, basis: str) -> Stage:
        """Latency of both graphs, interleaved in one run. Results: `host`, and a summary for each graph."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edgekd.evaluation.latency import time_graphs

            frames = [image for _, image in ReadableImages(split.samples[:TIMED_FRAMES], max_bad_share=0.5)]
            # A recipe without steps ships the graph as it is: timing it twice would only show the noise.
            stages = {"after": after} if before.key == after.key else {"before": before, "after": after}
            graphs = {label: stage.path / GRAPH for label, stage in stages.items()}
            self.progress.note(f"benchmark: timing on {device.engine.name} ...")
            specs = {label: spec_of(stage) for label, stage in stages.items()}
            timings = time_graphs(graphs, specs, frames, device, basis)
            timings = {"before": timings["after"], **timings}
            samples = {label: timing.total_ms.round(4).tolist() for label, timing in timings.items()}
            (folder / SAMPLES).write_text(json.dumps(samples), "ascii")
            return {"host": device.facts().as_json(), **{label: one.summary() for label, one in timings.items()}}

        facts = device.facts()
        inputs = {
            "before": before.sha256,
            "after": after.sha256,
            "data": data,
            "host": [facts.cpu, facts.threads, facts.engine, facts.libraries, basis],
        }
        return self.run("benchmark", inputs, work)

    def _frames(self, calibration: CalibrationSet, spec: DetectorSpec) -> Iterator[np.ndarray]:
        from edgekd.core.detection.preprocess import letterbox

        for image in self.progress.items(calibration.images, "calibrate"):
            yield letterbox(read_image(image), spec.preprocess)[0]


def settings_of(step: Quantize) -> dict[str, Any]:
    """What of a step changes a graph, its plan aside."""
    return {name: value for name, value in asdict(step).items() if name not in ("formats", "max_size", "bits", "plan")}


def tool_versions(*names: str) -> dict[str, str]:
    """Versions of these libraries, as far as they are installed."""
    return {name: found for name in sorted(names) if (found := library_version(name))}


def tools_of(stages: Iterable[Stage]) -> dict[str, str]:
    """Versions of the libraries that these stages used."""
    found = {name: version for stage in stages for name, version in stage.results["tools"].items()}
    return dict(sorted(found.items()))


def spec_of(graph: Stage) -> DetectorSpec:
    """What the graph of a stage takes and gives."""
    return spec_from_json(graph.results["detector"])


def stage_json(stage: Stage) -> dict[str, Any]:
    """A stage as commands print it: docs/json.md."""
    return {
        "name": stage.name,
        "seconds": round(stage.seconds, 3),
        "bytes": stage.results.get("bytes", stage.bytes),
        "map50_95": stage.results.get("map50_95"),
        "map50": stage.results.get("map50"),
        "cached": stage.cached,
    }


def local_device(name: str) -> LocalDevice:
    """`local`, with the fastest usable CPU engine, or `local:ENGINE`. Raises SpecError, DeviceError."""
    from edgekd.graph.runtimes import engine_named
    from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
    from edgekd.graph.runtimes.openvino import OPENVINO_CPU
    from edgekd.graph.runtimes.types import require

    place, _, engine = name.partition(":")
    if place != "local":
        fix = "edgekd engine BUNDLE --device measures a bundle on a camera" if place == "ssh" else None
        raise SpecError(f"--device {name}", expected="local, or local:ENGINE such as local:onnxruntime-cpu", fix=fix)
    if not engine:
        return LocalDevice(OPENVINO_CPU if OPENVINO_CPU.available().usable else ONNXRUNTIME_CPU)
    require(engine_named(engine))
    return LocalDevice(engine_named(engine))


def calibration_source(calibration: str | None, dataset: Dataset, searching: bool = False) -> CalibrationRule | Path:
    """The shipped rule, with N images where `calibration` is a number, or the set's file that it names.

    searching: leave at least half of the training split to judge plans on, unless a number is given.
    Raises SpecError where it is neither, DataError where there is no training split to choose from.
    """
    if calibration is None or (calibration.isdigit() and int(calibration) > 0):
        if "train" not in dataset.splits:
            raise DataError(
                f"{dataset.source} has no training split to calibrate on",
                expected="train",
                found=", ".join(dataset.splits),
                fix="add `train:` with images that are not scored, or pass --calibration SET.toml",
            )
        rule = load_rule()
        if calibration:
            return replace(rule, count=int(calibration))
        most = max(len(dataset.split("train")) // 2, 1) if searching else rule.count
        return replace(rule, count=min(rule.count, most))
    if not Path(calibration).is_file():
        raise SpecError(
            f"--calibration {calibration}",
            expected="a number of images, or a calibration set written by an earlier build (calibration.toml)",
            found="neither",
        )
    return Path(calibration)
