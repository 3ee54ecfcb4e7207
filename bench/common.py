"""Common parts of the benchmarks: the machine, models, data, and environments of other tools."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgekd.builds.recipe import load_recipe
from edgekd.compress.quantization.quantize import QuantizationResult, quantize
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import to_plain
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.demo import DETECTOR
from edgekd.data.images import read_image
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import Evaluation, evaluate
from edgekd.evaluation.latency import synthetic_frames, time_graphs
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import HostRuntime
from edgekd.graph.view import load_graph

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEERS = HERE / "peers"
SHARED = HERE.parent.parent / "shared"  # default of `--shared`: models and data
VENVS = Path.home() / ".cache" / "edgekd-bench"  # virtual environments of other tools
DEMO = DETECTOR
OPSET = 17  # ONNX opset of every exported graph
SPLITS = ("val", "test")  # splits that trained detectors are scored on
FRAMES = "frames"  # folder of `copy_data` for images without labels
CPU_ENGINES: dict[str, HostRuntime] = {"onnxruntime": ONNXRUNTIME_CPU, "openvino": OPENVINO_CPU}  # for timing


# The machine


def conditions(threads: int) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": to_plain(LocalDevice(ONNXRUNTIME_CPU, threads).facts()),
        "load_before": round(os.getloadavg()[0], 2),
    }


def host_line(host: Mapping[str, Any]) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in host["libraries"].items())
    return f"Host: {host['cpu']}, {host['cores']} usable cores, {host['os']}, Python {host['python']}; {libraries}."


def use_cores(count: int) -> None:
    """Pin this process and its children to `count` cores, so that every tool gets the same cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def peak_bytes() -> int:
    """Return the peak resident memory of this process. `getrusage` would include the parent's at the fork."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def durations(work: Callable[[], object], rounds: int) -> list[float]:
    """Return the wall seconds of each of `rounds` runs."""
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return samples


def summary_s(samples: list[float]) -> dict[str, float]:
    p50, p90 = np.percentile(samples, (50, 90)).round(4).tolist()
    return {"p50_s": p50, "p90_s": p90, "min_s": round(min(samples), 4)}


# Models and data


@dataclass(frozen=True)
class Detector:
    """An ONNX graph and its specification."""

    graph: Path
    spec: DetectorSpec

    def frames(self, images: Iterable[Path]) -> Iterator[np.ndarray]:
        """Yield images as network inputs float32 [1, 3, h, w], one in memory at a time."""
        return (letterbox(read_image(image), self.spec.preprocess)[0] for image in images)

    def evaluation(self, split: Split, label: str = "score", engine: HostRuntime = ONNXRUNTIME_CPU) -> Evaluation:
        return evaluate(self.graph, self.spec, split, PlainProgress(interval_s=30), label, engine)

    def map50_95(self, split: Split) -> float:
        return self.evaluation(split).score.map50_95

    def quantized(
        self,
        out: Path,
        frames: Iterable[np.ndarray],
        step: Quantize | None = None,
        plan: Mapping[str, WeightFormat] | None = None,
        coded_steps: Mapping[str, float] | None = None,
    ) -> QuantizationResult:
        """Quantize the graph to `out`; by default with the step `quantize` without settings."""
        return quantize(self.graph, out, frames, step or Quantize(), plan, coded_steps)


def exported(checkpoint: Path, graph: Path, opset: int = OPSET, **how: Any) -> Detector:
    """Export a checkpoint as a float32 graph. how: arguments of `load`."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    return Detector(graph, export(load(checkpoint, **how), graph, opset).spec)


def detector_in(graph: Path) -> Detector:
    """Return the detector in an ONNX file whose metadata hold its specification."""
    return Detector(graph, describe(load_graph(graph), graph))


def quantize_step(recipe: str) -> Quantize:
    """Return the step of a shipped recipe that has one step, `quantize`."""
    (step,) = load_recipe(recipe).steps
    assert isinstance(step, Quantize)
    return step


def images_of(split: Split, count: int | None = None) -> list[Path]:
    return [sample.image for sample in split.samples[:count]]


def split_of(shared: Path, data: str, name: str) -> Split:
    return load_dataset(shared / "data" / data).split(name)


def copy_data(source: Path, folder: Path, images: int | None, unlabelled: float = 0.0) -> Path:
    """Copy a data set in YOLO layout, because Ultralytics writes caches into it. Return the path of its YAML.

    Args:
        images: Number of images of each split, in the order of their names; None for all.
        unlabelled: Share of the training images that go into the folder FRAMES without labels, evenly spaced.
    """
    described = yaml.safe_load((source / "data.yaml").read_text("utf-8"))
    splits = [split for split in ("train", "val", "test") if split in described]
    (folder / FRAMES).mkdir(parents=True)
    for split in splits:
        images_in = Path(described[split])
        labels_in = Path("labels", *images_in.parts[1:])
        (folder / images_in).mkdir(parents=True)
        (folder / labels_in).mkdir(parents=True)
        for index, image in enumerate(sorted((source / images_in).iterdir())[:images]):
            # Evenly spaced: an image loses its label whenever (index + 1) * unlabelled reaches the next integer.
            if split == "train" and int((index + 1) * unlabelled) > int(index * unlabelled):
                shutil.copyfile(image, folder / FRAMES / image.name)
                continue
            shutil.copyfile(image, folder / images_in / image.name)
            label = labels_in / f"{image.stem}.txt"
            if (source / label).is_file():  # an image without objects may have no label file
                shutil.copyfile(source / label, folder / label)
    file = folder / "data.yaml"
    kept = {key: described[key] for key in (*splits, "names")}
    file.write_text(yaml.safe_dump({"path": str(folder), **kept}), "utf-8")
    return file


def median_ms(
    detectors: Mapping[str, Detector], threads: int, engines: Mapping[str, HostRuntime] = CPU_ENGINES
) -> dict[str, dict[str, float]]:
    """Return median milliseconds from frame to detections by engine and graph. Graphs are timed interleaved."""
    graphs = {name: each.graph for name, each in detectors.items()}
    specs = {name: each.spec for name, each in detectors.items()}
    frames, found = synthetic_frames(next(iter(specs.values()))), {}
    for name, engine in engines.items():
        timed = time_graphs(graphs, specs, frames, LocalDevice(engine, threads), "measured")
        found[name] = {graph: timing.summary().total_ms.p50 for graph, timing in timed.items()}
    return found


# Other tools


def ultralytics_environment(folder: Path) -> dict[str, str]:
    """Return environment variables that keep Ultralytics from installing, downloading and sending reports.

    folder: For its settings. Raises CalledProcessError.
    """
    settings = folder / "Ultralytics"
    settings.mkdir(parents=True)
    # Ultralytics downloads this font if the file is missing. It is not used.
    (settings / "Arial.ttf").touch()
    environment = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLCONFIGDIR": str(folder),
        "PYTHONHASHSEED": "0",
    }
    # The first start writes the settings, which must not happen while a tool is timed.
    yolo = Path(sys.executable).with_name("yolo")
    subprocess.run([yolo, "settings", "sync=False"], env=environment, check=True, capture_output=True)
    return environment


def peer_python(environment: str, venvs: Path) -> Path:
    """Return the interpreter of a tool's virtual environment, created if needed. Raises CalledProcessError."""
    requirements = PEERS / f"requirements-{environment}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = venvs / f"{environment}-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"{environment}: installing {requirements.name} ...", file=sys.stderr, flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "-q", "-r", requirements],
        ):
            subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        (folder / "complete").touch()
    return python


def without_folders(text: str, *folders: Path) -> str:
    """Return a program's message without paths of this machine's folders."""
    known = (*folders, HERE.parent, Path(sys.prefix), Path.home())
    for folder in sorted({str(path) for path in known}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text
