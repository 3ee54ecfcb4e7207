"""Quantization-aware training: edgekd's distillation beside Ultralytics' own, on the same images, with the same scorer.

edgekd quantizes a detector to INT8 and fp4x after training, and then trains it to do again what the float detector
does. Ultralytics trains with `quantize=8`, with and without `distill_model=`. Both start from the same checkpoint and
see the same images for as many epochs, in the same size and batch; one row of Ultralytics' has edgekd's time instead.
Every training is a process of its own. Every graph is scored on the splits `val` and `test` by edgekd's scorer.

    python bench/quantization_aware.py [--model FILE.pt] [--data FOLDER] [--epochs N] [--seeds N ...] [--device 0]

A row that is finished is kept in `--work`, and `--out` is written again after each: what was cut goes on where it was.
The environment needs `edgekd[train]`; Ultralytics' training with ModelOpt gets an environment of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    SHARED,
    SPLITS,
    JobError,
    Resumable,
    conditions_lines,
    table,
    use_cores,
    write_pair,
)

from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset

PEERS = Path(__file__).resolve().parent / "peers"
OPSET = 17
FLOAT, INT8, MIXED = "float32", "edgekd, INT8 after training", "edgekd, INT8 and fp4x after training"
TRAINED = "edgekd, the same, quantization-aware distillation"
GENTLE = {
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "warmup_bias_lr": 0.0,
    "cos_lr": True,
    "mosaic": 0.0,
    "scale": 0.25,
    "erasing": 0.0,
}
"""For Ultralytics, what edgekd does: a smaller learning rate, and images that are varied less."""


@dataclass(frozen=True)
class Peer:
    """A way to let Ultralytics train. settings: of `train`, beside those that all ways share.

    same_time: as many seconds as edgekd took, rather than as many epochs; distilled: the float detector is the teacher.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    same_time: bool = False
    distilled: bool = False


ULTRALYTICS = (
    Peer("Ultralytics, `quantize=8`, same epochs"),
    Peer("Ultralytics, `quantize=8`, same time", same_time=True),
    Peer("Ultralytics, `quantize=8` with `distill_model=`, same epochs", distilled=True),
    Peer("Ultralytics, `quantize=8`, same epochs, as gently as edgekd", GENTLE),
)


@dataclass(frozen=True)
class Row:
    """One graph: how it was made, what it takes, what it scores. What could not be had is None; `error` says why.

    bytes: of the file that ships: edgekd's packed, Ultralytics' ONNX; zipped_bytes: of Ultralytics' after DEFLATE;
    packed_bytes: of Ultralytics' if its weights were stored as INT8, and packed by edgekd, which Ultralytics does not.
    seconds: from the float checkpoint to the graph, the calibration included; step_seconds: the median of one step.
    """

    method: str
    seed: int | None = None
    bytes: int | None = None
    zipped_bytes: int | None = None
    packed_bytes: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    step_seconds: float | None = None
    peak_bytes: int | None = None
    map50_95: Mapping[str, float] = field(default_factory=dict)
    map50: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


class Bench(Resumable[Row]):
    """One run: what was asked, the folder in which it goes on after a cut, and the rows it has."""

    asked = ("epochs", "batch", "image_size", "images", "device")

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        self._checkpoint = given.work / "float.pt"
        super().__init__(given, scratch, Row)

    def run(self) -> Iterable[None]:
        """Every row that is not there yet; pauses after each."""
        if self.missing(MIXED) or not (self.given.work / "mixed.onnx").is_file():
            self._quantize_after_training()
            yield
        peers = {peer.name: partial(self._trained_by_ultralytics, peer) for peer in ULTRALYTICS}
        ways: list[tuple[str, Callable[[int], Row], int]] = []
        ways += [(TRAINED, self._trained_by_edgekd, seed) for seed in self.given.seeds]
        ways += [(name, train, seed) for seed in self.given.seeds for name, train in peers.items()]
        for method, train, seed in ways:
            if self.missing(method, seed):
                self.add_made(method, seed, partial(train, seed))
                yield

    def _quantize_after_training(self) -> None:
        """The rows before training: the float graph, and what edgekd makes of it."""
        folder = self.given.work
        job = {"do": "quantize", "model": self.given.model, "size": self.given.image_size, "data": self.data}
        took = self.process("quantize", [*_MYSELF, json.dumps({**job, "folder": folder}, default=str)])
        self.rows = [row for row in self.rows if row.seed is not None]
        for method, name in ((FLOAT, "float32"), (INT8, "int8"), (MIXED, "mixed")):
            graph = folder / f"{name}.onnx"
            row = Row(method, bytes=len(graph.read_bytes() if method == FLOAT else pack(graph.read_bytes())))
            self.add(self.with_scores(replace(row, **took[name]), graph))

    def _trained_by_edgekd(self, seed: int) -> Row:
        given = self.given
        graph = given.work / f"edgekd-{seed}.onnx"
        step = {"epochs": given.epochs, "batch": given.batch, "image_size": given.image_size, "seed": seed}
        job = {"do": "train", "model": self._checkpoint, "data": self.data, "step": step, "threads": given.threads}
        files = {"graph": given.work / "mixed.onnx", "out": graph}
        took = self.process(graph.stem, [*_MYSELF, json.dumps({**job, **files}, default=str)])
        self.packages["edgekd"] = took.pop("packages")
        took["seconds"] += sum(found.seconds or 0.0 for found in self.rows if found.method == MIXED)
        row = Row(TRAINED, seed, len(pack(graph.read_bytes())), epochs=given.epochs, **took)
        return self.with_scores(row, graph)

    def _trained_by_ultralytics(self, peer: Peer, seed: int) -> Row:
        given = self.given
        folder = given.work / f"ultralytics-{ULTRALYTICS.index(peer)}-{seed}"
        graph, folded = folder / "trained.onnx", folder / "int8_weights.onnx"
        folder.mkdir(exist_ok=True)
        settings = {"epochs": given.epochs, "batch": given.batch, "imgsz": given.image_size, "seed": seed}
        settings |= {"device": given.device, "workers": 0 if given.device == "cpu" else 8, "amp": False}
        settings |= peer.settings
        if peer.same_time:
            found = [row.seconds for row in self.rows if row.method == TRAINED and row.seed == seed and row.seconds]
            if not found:
                raise JobError("edgekd's own training failed, so it took no time that could be given")
            settings["time"] = found[0] / 3600
        if peer.distilled:
            settings["distill_model"] = str(self._checkpoint)
        command = [self._peer(), PEERS / "train_ultralytics_qat.py", "--threads", given.threads, "--work", folder]
        command += ["--model", self._checkpoint, "--data", self.data, "--out", graph, "--folded", folded]
        took = self.process(folder.name, [*map(str, command), "--settings", json.dumps(settings)])
        self.packages["ultralytics-qat"] = took.pop("packages")
        took["seconds"] += took.pop("export_seconds")
        shipped = graph.read_bytes()
        sizes = (len(shipped), len(zlib.compress(shipped, 9)), len(pack(folded.read_bytes())))
        return self.with_scores(Row(peer.name, seed, *sizes, **took), graph)

    def _peer(self) -> Path:
        """The interpreter of Ultralytics' environment with ModelOpt, made when there is none."""
        if self.given.peer:
            return Path(str(self.given.peer))
        requirements = PEERS / "requirements-ultralytics-qat.txt"
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
        folder = self.given.venvs / f"ultralytics-qat-py{sys.version_info.major}.{sys.version_info.minor}-{digest}"
        python: Path = folder / "bin" / "python"
        if not (folder / "complete").exists():
            self.progress.note(f"installing {requirements.name} ...")
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
            (folder / "complete").touch()
        return python


# ----------------------------------------------------------------------- what a process of its own does for edgekd


def quantize_job(model: str, data: str, size: int, folder: str) -> dict[str, Any]:
    """Write `float.pt`, `float32.onnx`, `int8.onnx` and `mixed.onnx` into a folder; what each took."""
    import torch

    from edgekd.builds.recipe import Quantize, load_recipe
    from edgekd.compress.quantization.quantize import Quantized, quantize
    from edgekd.compress.weight_formats import Form
    from edgekd.core.detection.preprocess import letterbox
    from edgekd.data.calibration import choose, load_rule
    from edgekd.data.images import read_image
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    graphs = {name: Path(folder, f"{name}.onnx") for name in ("float32", "int8", "mixed")}
    checkpoint = torch.load(model, map_location="cpu", weights_only=False)
    checkpoint["train_args"]["imgsz"] = size  # an exported graph takes frames as large as those in training
    torch.save(checkpoint, Path(folder, "float.pt"))
    spec = export(load(Path(folder, "float.pt"), trust_checkpoint=True), graphs["float32"], OPSET).spec
    began = time.perf_counter()
    images = choose(load_dataset(Path(data)), load_rule(), preprocess=spec.preprocess).images

    def quantized(name: str, plan: Mapping[str, Form] | None = None) -> Quantized:
        frames = (letterbox(read_image(image), spec.preprocess)[0] for image in images)
        (step,) = load_recipe("ptq" if plan is None else "mixed").steps
        assert isinstance(step, Quantize)
        return quantize(graphs["float32"], graphs[name], frames, step, plan)

    done = quantized("int8")
    int8 = time.perf_counter() - began
    # The first layers have few weights, and what they lose is lost for all.
    quantized("mixed", {name: "int8" if at < 2 else "fp4x" for at, name in enumerate(done.int8)})
    return {"float32": {}, "int8": {"seconds": int8}, "mixed": {"seconds": time.perf_counter() - began}}


def train_job(model: str, graph: str, out: str, data: str, step: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Train a quantized graph; what it took."""
    import torch

    from edgekd.builds.recipe import QuantAwareDistill
    from edgekd.detectors.ultralytics.quant_aware import distill_quantized

    sys.path.insert(0, str(PEERS))
    from adapter import peak_bytes

    torch.set_num_threads(threads)
    asked = QuantAwareDistill(**step)
    paths = (Path(model), Path(graph), Path(out), Path(data))
    done = distill_quantized(*paths, asked, trust=True, progress=PlainProgress(interval_s=30))
    packages = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {"seconds": done.seconds, "peak_bytes": peak_bytes(), "packages": packages}


_MYSELF = (sys.executable, str(Path(__file__).resolve()), "--do")
_JOBS: dict[str, Callable[..., dict[str, Any]]] = {"quantize": quantize_job, "train": train_job}


# ------------------------------------------------------------------------------------------------------- the result


@dataclass(frozen=True)
class Summary:
    """The rows of one method, one per seed, beside the float graph's."""

    method: str
    rows: tuple[Row, ...]
    float32: Row

    @property
    def smaller(self) -> float:
        """How many files of this one go into the float graph's."""
        return (self.float32.bytes or 0) / (self.mean("bytes") or 1)

    def mean(self, name: str) -> float | None:
        """The mean of a number over the seeds; None where there is none."""
        values = [value for row in self.rows if (value := getattr(row, name)) is not None]
        return statistics.fmean(values) if values else None

    def score(self, split: str) -> tuple[float, float, float]:
        """mAP50-95: the mean, the lowest and the highest."""
        values = [row.map50_95[split] for row in self.rows]
        return statistics.fmean(values), min(values), max(values)

    def share(self, split: str) -> float:
        """Of the float graph's mAP50-95; 0 where that is 0."""
        whole = self.float32.map50_95[split]
        return self.score(split)[0] / whole if whole else 0.0


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One per method that has a row; failed rows do not count."""
    good = [row for row in rows if not row.error]
    base = next((row for row in good if row.method == FLOAT), None)
    order = (FLOAT, INT8, MIXED, TRAINED, *(peer.name for peer in ULTRALYTICS))
    grouped = {name: tuple(row for row in good if row.method == name) for name in order}
    return [Summary(name, mine, base) for name, mine in grouped.items() if mine] if base else []


def claims(found: Sequence[Summary], smaller: float, keep: float, aim: float) -> list[dict[str, Any]]:
    """What must hold of edgekd's trained graphs, and what is aimed at; `must` tells them apart."""
    named = {one.method: one for one in found}
    if TRAINED not in named:
        return []
    mine = named[TRAINED]
    size = "the file that ships is at most 1/{:g} of float32's; found: 1/x"
    kept = f"on the split test it keeps at least {keep:.1%} of the float detector's mAP50-95, mean of the seeds"
    rows = [
        {"claim": size.format(smaller), "found": mine.smaller, "holds": mine.smaller >= smaller, "must": True},
        {"claim": kept, "found": mine.share("test"), "holds": mine.share("test") >= keep, "must": True},
        {"claim": size.format(aim), "found": mine.smaller, "holds": mine.smaller >= aim, "must": False},
    ]
    for peer in (named[peer.name] for peer in ULTRALYTICS if peer.name in named):
        ahead = mine.score("test")[0] - peer.score("test")[0]
        text = f"test mAP50-95 no lower than of: {peer.method}"
        rows.append({"claim": text, "found": ahead, "holds": ahead >= 0, "must": False})
    return rows


def page(found: Mapping[str, Any], rows: Sequence[Row], means: Sequence[Summary]) -> list[str]:
    """The result as Markdown."""
    lines = ["# Quantization-aware training, edgekd beside Ultralytics", "", f"`{found['command']}`", "", *_ABOUT, ""]
    counts = found["images"]
    lines.append(f"{counts['train']} images to train on; scored on {counts['val']} (val) and {counts['test']} (test).")
    lines += ["", *table(_HEADER, [_cells(one) for one in means])]
    lines += [f"\n{row.method}, seed {row.seed}: {row.error}" for row in rows if row.error]
    marks, kinds = {True: "yes", False: "**no**"}, {True: "must", False: "aim"}
    held = [[kinds[one["must"]], one["claim"], f"{one['found']:.4f}", marks[one["holds"]]] for one in found["claims"]]
    lines += ["", "## What must hold, and what is aimed at", "", *table(["", "", "found", "holds"], held)]
    lines.append("")
    for environment, installed in found["packages"].items():
        told = ", ".join(f"{name} {installed[name]}" for name in _TOLD if name in installed)
        lines.append(f"- environment `{environment}`: {told}")
    gpus = ", ".join(gpu["name"] for gpu in found["host"]["gpus"])
    where = "the CPU" if found["device"] == "cpu" else gpus
    return [*lines, "", f"Trained on {where}.", "", *conditions_lines(found)]


_HEADER = (
    *("how", "seeds", "bytes", "of float32", "zipped", "INT8 weights, packed", "epochs", "seconds"),
    *("val mAP50-95", "share of float", "test mAP50-95", "share of float"),
)
_TOLD = ("edgekd", "ultralytics", "nvidia-modelopt", "torch", "onnx", "onnxruntime")
_ABOUT = (
    "Means over the seeds; in brackets the lowest and the highest. Bytes: of the file that ships, which is ONNX for",
    "float32 and Ultralytics, and a packed graph for edgekd. Ultralytics stores the weights of a trained graph as",
    "floats that are quantized when it is loaded; so there is also what its file would be zipped, and with those",
    "weights stored as INT8 and packed by edgekd. Seconds: from the float checkpoint to the quantized graph, with the",
    "calibration, and for Ultralytics the validation after each epoch, by which it picks the epoch that it exports:",
    "it has looked at the split val. edgekd's defaults were compared on ppe's val, too: test is the split to compare.",
    "Both train in float32. As gently as edgekd:",
    f"{', '.join(f'`{name}={value}`' for name, value in GENTLE.items())}; the rest are Ultralytics' defaults.",
    "mAP: edgekd's scorer on ONNX Runtime's CPU provider.",
)


def _cells(one: Summary) -> list[str]:
    """One line of the table; what is not known is a dash."""
    spread = "{:.4f}" if len(one.rows) < 2 else "{:.4f} ({:.4f}..{:.4f})"
    seeds = ", ".join(str(row.seed) for row in one.rows if row.seed is not None)
    sizes = [one.mean(name) for name in ("bytes", "zipped_bytes", "packed_bytes")]
    shipped, zipped, packed = (None if size is None else f"{size:,.0f}" for size in sizes)
    took = [None if (value := one.mean(name)) is None else f"{value:.4g}" for name in ("epochs", "seconds")]
    scores = [text for name in SPLITS for text in (spread.format(*one.score(name)), f"{one.share(name):.1%}")]
    cells = [seeds, shipped, f"1/{one.smaller:.2f}", zipped, packed, *took, *scores]
    return [one.method, *(cell or "–" for cell in cells)]


def write(out: Path, bench: Bench, command: str) -> tuple[dict[str, Any], str]:
    """Write what there is so far as JSON and Markdown; both again."""
    given, means = bench.given, summaries(bench.rows)
    found = {
        "question": "how good and how small is a detector after quantization-aware training, beside Ultralytics' own?",
        "command": command,
        "images": {name: len(bench.split(name)) for name in ("train", *SPLITS)},
        "seeds": given.seeds,
        "device": given.device,
        **bench.conditions,
        "rows": [asdict(row) for row in bench.rows],
        "claims": claims(means, given.smaller, given.keep, given.aim),
        "packages": bench.packages,
    }
    return found, write_pair(out, found, page(found, bench.rows, means))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="the float detector")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="with splits train, val and test")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=640, help="of training, and of the graphs")
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="where to train: cpu, or the number of a GPU")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--smaller", type=float, default=7.0, help="how many times smaller the file must be")
    parser.add_argument("--keep", type=float, default=0.98, help="share of the float mAP50-95 that must be left")
    parser.add_argument("--aim", type=float, default=8.0, help="how many times smaller the file had better be")
    parser.add_argument("--work", type=Path, default=Path("runs/quantization_aware"), help="logs and finished rows")
    cache = Path.home() / ".cache" / "edgekd-bench"
    parser.add_argument("--venvs", type=Path, default=cache, help="where Ultralytics' environment is kept")
    parser.add_argument("--peer", help="an interpreter that has what peers/requirements-ultralytics-qat.txt lists")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantization_aware.json")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to do
    given = parser.parse_args()
    paths = ("model", "data", "work", "venvs", "out")
    return argparse.Namespace(**{**vars(given), **{name: getattr(given, name).absolute() for name in paths}})


def main() -> int:
    """0 when every claim that must hold does, and no row failed; else 1."""
    given = parse()
    if given.do:
        print("\n" + json.dumps(_JOBS[given.do.pop("do")](**given.do)))
        return 0
    use_cores(given.threads)
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    told = ("epochs", "batch", "image_size", "images", "device", "threads")
    asked = [f"--{name.replace('_', '-')} {value}" for name in told if (value := getattr(given, name)) is not None]
    asked += [f"--model {given.model.name}", "--seeds", *map(str, given.seeds)]
    command = f"python bench/quantization_aware.py {' '.join(asked)}"
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        bench = Bench(given, Path(scratch))
        for _ in bench.run():
            write(given.out, bench, command)
        found, text = write(given.out, bench, command)
    print(text)
    held = all(claim["holds"] for claim in found["claims"] if claim["must"])
    return 0 if held and not any(row.error for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
