"""What the benchmarks share: the machine that they run on, models, data, and what other tools need."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.data.dataset import load_dataset
from edgekd.data.demo import DETECTOR
from edgekd.data.images import read_image
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.latency import synthetic_frames, time_graphs
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import Engine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEERS = HERE / "peers"
SHARED = HERE.parent.parent / "shared"
"""Where models and data lie unless `--shared` says otherwise."""
VENVS = Path.home() / ".cache" / "edgekd-bench"
"""Where environments of other tools are kept."""
DEMO = DETECTOR
OPSET = 17
"""ONNX opset of every exported graph."""
SPLITS = ("val", "test")
"""What trained detectors are scored on."""
FRAMES = "frames"
"""Of copied data: the images whose labels nobody gets."""
CPU_ENGINES: dict[str, Engine] = {"onnxruntime": ONNXRUNTIME_CPU, "openvino": OPENVINO_CPU}
"""What graphs are timed on."""


# The machine


def conditions(threads: int) -> dict[str, Any]:
    """Return date, machine, and the load of the last minute."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": asdict(LocalDevice(ONNXRUNTIME_CPU, threads).facts()),
        "load_before": round(os.getloadavg()[0], 2),
    }


def host_line(host: Mapping[str, Any]) -> str:
    """Return the machine and its libraries in a sentence."""
    libraries = ", ".join(f"{name} {version}" for name, version in host["libraries"].items())
    return f"Host: {host['cpu']}, {host['cores']} usable cores, {host['os']}, Python {host['python']}; {libraries}."


def use_cores(count: int) -> None:
    """Keep this process and its children to `count` cores, so that every tool gets the same machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far; `getrusage` also counts the parent's at the fork."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def durations(work: Callable[[], object], rounds: int) -> list[float]:
    """Return the wall seconds of each of several runs."""
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return samples


def summary_s(samples: list[float]) -> dict[str, float]:
    """Return median, 90th percentile and minimum of durations in seconds."""
    p50, p90 = np.percentile(samples, (50, 90)).round(4).tolist()
    return {"p50_s": p50, "p90_s": p90, "min_s": round(min(samples), 4)}


# Models and data


def export_to(checkpoint: Path, graph: Path, opset: int = OPSET, **how: Any) -> DetectorSpec:
    """Export a detector as a float32 graph; its specification."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    return export(load(checkpoint, **how), graph, opset).spec


def frames_of(split: Split, spec: DetectorSpec, count: int | None = None) -> Iterator[np.ndarray]:
    """Return the first images of a split as the network takes them, float32 [1, 3, h, w], one in memory at a time."""
    return (letterbox(read_image(sample.image), spec.preprocess)[0] for sample in islice(split.samples, count))


def split_of(shared: Path, data: str, name: str) -> Split:
    """Return a split of a shared data set."""
    return load_dataset(shared / "data" / data).split(name)


def copy_data(source: Path, folder: Path, images: int | None, unlabelled: float = 0.0) -> Path:
    """Copy a data set in YOLO layout, because Ultralytics writes caches into it; the path of its YAML.

    Args:
        images: Number of images of each split, in the order of their names; None for all.
        unlabelled: Share of the training images that go into the folder FRAMES without labels, always the same ones.
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
            # Spread evenly: one more each time that the share of what has gone by is another whole number.
            if split == "train" and int((index + 1) * unlabelled) > int(index * unlabelled):
                shutil.copyfile(image, folder / FRAMES / image.name)
                continue
            shutil.copyfile(image, folder / images_in / image.name)
            label = labels_in / f"{image.stem}.txt"
            if (source / label).is_file():  # an image with nothing in it may have none
                shutil.copyfile(source / label, folder / label)
    file = folder / "data.yaml"
    kept = {key: described[key] for key in (*splits, "names")}
    file.write_text(yaml.safe_dump({"path": str(folder), **kept}), "utf-8")
    return file


def median_ms(
    graphs: Mapping[str, Path], specs: Mapping[str, DetectorSpec], threads: int
) -> dict[str, dict[str, float]]:
    """Return the median latency of graphs from frame to detections by engine and graph, measured interleaved."""
    frames, found = synthetic_frames(next(iter(specs.values()))), {}
    for name, engine in CPU_ENGINES.items():
        timed = time_graphs(graphs, specs, frames, LocalDevice(engine, threads), "measured")
        found[name] = {graph: timing.summary()["total_ms"]["p50"] for graph, timing in timed.items()}
    return found


# Other tools


def ultralytics_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which Ultralytics installs, downloads and reports nothing; settings go to `folder`."""
    settings = folder / "Ultralytics"
    settings.mkdir(parents=True)
    # A font that is there is not downloaded. Nothing is drawn with it.
    (settings / "Arial.ttf").touch()
    environment = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLCONFIGDIR": str(folder),
        "PYTHONHASHSEED": "0",
    }
    # Its first start writes its settings and prints it: that must not fall into anybody's measured time.
    yolo = Path(sys.executable).with_name("yolo")
    subprocess.run([yolo, "settings", "sync=False"], env=environment, check=True, capture_output=True)
    return environment


def peer_python(environment: str, venvs: Path) -> Path:
    """Return the interpreter of another tool's environment, made when there is none. Raises CalledProcessError."""
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
    """Return a message of another program without the folders of this machine."""
    known = (*folders, HERE.parent, Path(sys.prefix), Path.home())
    for folder in sorted({str(path) for path in known}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text
