"""Compare post-training INT8 quantization by edgekd and other tools: same graph, same frames, same scorer, one run.

With `--ultralytics-val` Ultralytics' `val` scores the graphs of its models, too. Needs `edgekd[train]`; NNCF and
ModelOpt run in their own environments.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import frame
import numpy as np
from common import PEERS, VENVS, Detector, copy_data, exported, peer_python, ultralytics_environment, without_folders
from frame import IMAGES, Blocks, Document, Given, Option, Result, cell
from graphs import RESAMPLES, Difference, Reference, described, difference, facts, float_head_patterns

from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import EdgeKDError
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset
from edgekd.evaluation.evaluate import Evaluation

MODELS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
FRAMES = 128  # calibration frames for every tool, evenly spaced in the training split
JUDGED = 32  # frames of the first scored split for measuring output noise
AGREEMENT = 0.005  # goal: largest difference between edgekd's and Ultralytics' mAP50-95
ULTRALYTICS_FLOAT = (r".*\.2/Conv$", r".*/dfl/")
"""Nodes that Ultralytics 8.4.190 excludes from ModelOpt (`utils/export/engine.py`): last head convolutions and DFL."""


@dataclass(frozen=True)
class Method:
    """A quantization method: the tool of `peers/adapter.py`, its `--method`, and its environment (None: this one).

    float_head: which nodes stay in float: None for none, `edgekd` or `ultralytics` for those that this tool excludes.
    """

    name: str
    tool: str
    argument: str = ""
    environment: str | None = None
    float_head: str | None = None


RECIPE = Method("edgekd, recipe `ptq`", "edgekd")
MIXED = {
    share: Method(f"edgekd, recipe `mixed`, packed into 1/{share} of the float file", "edgekd", str(share))
    for share in (5, 7)
}
MODELOPT = Method("ModelOpt `entropy`, same exclusions", "modelopt", "entropy", "modelopt", "ultralytics")
NNCF = Method("NNCF, preset mixed", "nncf", "", "nncf")
ONNXRUNTIME = Method("ONNX Runtime, min-max, all convolutions", "onnxruntime", "symmetric")
METHODS = (
    ONNXRUNTIME,
    Method("the same, last head convolutions and DFL float", "onnxruntime", "symmetric", None, "edgekd"),
    Method("the same, activations asymmetric", "onnxruntime", "asymmetric", None, "edgekd"),
    Method("Ultralytics, `format=onnx quantize=8`", "ultralytics"),
    NNCF,
    Method("ModelOpt `max`, excluding what Ultralytics does", "modelopt", "max", "modelopt", "ultralytics"),
    MODELOPT,
    RECIPE,
    *MIXED.values(),
)


MEASURED = ("bytes", "seconds", "peak_bytes", "int8_convolutions", "symmetric", "packed_bytes", "noise")
"""Measured properties of a graph, None if unknown.

seconds: CPU time of the quantization, without imports and decoding of frames; peak_bytes: peak resident memory of the
quantizing process; int8_convolutions: number with INT8 weights, and of all; symmetric: whether every zero point is 0,
as TensorRT requires; packed_bytes: size in edgekd's lossless packed format; noise: noise-to-signal ratio at the last
convolutions, relative to the float graph (`edgekd.evaluation.output_noise`).
"""
UNKNOWN = ("ultralytics_map50_95", "ultralytics_map50", "error", "difference")


def row_of(model: str, method: str, **known: Any) -> Document:
    """Return a row. scores: mAP50-95 and mAP50 by split; difference: edgekd's mAP50-95 minus Ultralytics'."""
    return Document(
        {"model": model, "method": method, **dict.fromkeys(MEASURED), "scores": {}, **dict.fromkeys(UNKNOWN)}, **known
    )


class Bench:
    """One run: its folders and evaluations."""

    def __init__(self, given: Given, data: str, scored: Sequence[str], methods: Sequence[Method], both: bool) -> None:
        shared, self._work, self._venvs = given.shared.absolute(), given.scratch, given.venvs.absolute()
        self.progress = PlainProgress(interval_s=30)
        self.packages: dict[str, dict[str, str]] = {}
        self._models, self._scored_splits, self._methods, self._both = shared / "models", scored, methods, both
        self._data = copy_data(shared / "data" / data, self._work / "data", given.images)
        self.dataset: Dataset = load_dataset(self._data)
        self._environment = ultralytics_environment(self._work / "ultralytics")
        self._found: dict[tuple[str, str], Evaluation] = {}

    def differences(self, model: str) -> dict[str, dict[str, float]]:
        """Return by split the mAP50-95 of recipe `ptq` minus that of the float graph and of ModelOpt `entropy`."""
        found: dict[str, dict[str, float]] = {}
        for split in self._scored_splits:
            for name in ("float32", MODELOPT.name):
                ours, other = (self._found.get((method, split)) for method in (RECIPE.name, name))
                if ours and other:
                    self.progress.note(f"{model}: {split}: drawing images anew, against {name} ...")
                    apart = difference(ours, other, self.dataset.classes)
                    found[f"{model}, {split}: edgekd `ptq` less {name}"] = asdict(apart)
        return found

    def begun(self, model: str) -> tuple[Detector, Path, Mapping[str, Sequence[str]]]:
        """Return a model's float graph, its calibration frames, and patterns of layers that stay float by tool."""
        folder = self._work / Path(model).stem
        folder.mkdir()
        source = exported(self._models / model, folder / "float32.onnx", classes=self.dataset.classes)
        frames = self._write_frames(folder / "frames", source, "train", FRAMES)
        head = float_head_patterns(source.graph)
        exclude = {"edgekd": head, "ultralytics": ULTRALYTICS_FLOAT if model.endswith(".pt") else head}
        return source, frames, exclude

    def rows(self, model: str) -> list[Document]:
        """Measure a model. Return a row for its float graph and one per method."""
        source, frames, exclude = self.begun(model)
        folder = source.graph.parent
        self._found.clear()
        judged = self._write_frames(folder / "judged", source, self._scored_splits[0], JUDGED)
        reference = Reference(source.graph, [np.load(file) for file in sorted(judged.iterdir())])
        rows = [self.scored(row_of(model, "float32", bytes=source.graph.stat().st_size), source)]
        graphs = [source.graph]
        for number, method in enumerate(self._methods, start=1):
            graph = folder / f"{number}.onnx"
            row = self.quantized(model, method, source.graph, frames, graph, exclude)
            if row.error is None:
                row = self.scored(Document(row, noise=reference.noise(graph)), Detector(graph, source.spec))
            rows.append(row)
            graphs.append(graph)
        for file in frames.iterdir():
            file.unlink()
        return self._scored_by_ultralytics(rows, graphs, source.spec) if self._both and model.endswith(".pt") else rows

    def _write_frames(self, folder: Path, detector: Detector, split: str, most: int) -> Path:
        """Write at most `most` evenly spaced frames of a split, float32 [1, 3, h, w], as one `.npy` each."""
        folder.mkdir()
        samples = self.dataset.split(split).samples
        chosen = np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int)
        for number, frame_of_image in enumerate(detector.frames(samples[at].image for at in chosen)):
            np.save(folder / f"{number:05}.npy", frame_of_image)
        return folder

    def quantized(
        self, model: str, method: Method, source: Path, frames: Path, graph: Path, exclude: Mapping[str, Sequence[str]]
    ) -> Document:
        """Quantize in its own process. Return the row without scores; with `error` if the tool failed."""
        row = row_of(model, method.name)
        command = [str(PEERS / "adapter.py"), method.tool, "--model", str(source), "--frames", str(frames)]
        command += ["--out", str(graph)]
        command += ["--method", method.argument] if method.argument else []
        command += [f"--exclude={pattern}" for pattern in exclude.get(method.float_head or "", ())]
        try:
            python = peer_python(method.environment, self._venvs) if method.environment else Path(sys.executable)
            done = subprocess.run([str(python), *command], env=self._environment, check=True, **_CAPTURED)
        except subprocess.CalledProcessError as error:
            killed = f"\nkilled by signal {-error.returncode}" if error.returncode < 0 else ""
            return self._failed(row, error.stdout + killed)
        took = frame.last_json(done.stdout)
        self.packages[method.environment or "this"] = dict(sorted(took.pop("packages").items()))
        self.progress.note(f"{model}: {method.name}: {took['seconds']:.1f} s")
        return Document(row, **took, bytes=graph.stat().st_size, **facts(graph))

    def scored(self, row: Document, detector: Detector) -> Document:
        scores = {}
        for split in self._scored_splits:
            try:
                found = detector.evaluation(self.dataset.split(split))
            except EdgeKDError as error:
                return self._failed(row, str(error))
            self._found[row.method, split], score = found, found.score
            scores[split] = (score.map50_95, score.map50)
            self.progress.note(f"{row.model}: {row.method}: {split}: mAP50-95 {score.map50_95:.4f}")
        return Document(row, scores=scores, packed_bytes=len(pack(detector.graph.read_bytes())))

    def _scored_by_ultralytics(self, rows: list[Document], graphs: list[Path], spec: DetectorSpec) -> list[Document]:
        """Return the rows with scores by Ultralytics' `val`."""
        copies = {row.method: described(graph, spec) for row, graph in zip(rows, graphs, strict=True) if row.bytes}
        command = [sys.executable, PEERS / "ultralytics_val.py", self._data, str(spec.preprocess.height)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        scores: dict[str, Any] = {}
        with subprocess.Popen([*command, *copies.values()], env=self._environment, cwd=self._work, **pipes) as process:
            answers = (json.loads(line) for line in process.stdout or () if line.startswith("{"))
            for name, answer in zip(copies, answers, strict=False):
                scores[name] = answer
                self.progress.note(f"{rows[0].model}: {name}: by Ultralytics {answer.get('map50_95', 0):.4f}")
        return [self._with_ultralytics(row, scores.get(row.method, {})) for row in rows]

    def _with_ultralytics(self, row: Document, answer: dict[str, Any]) -> Document:
        if "map50_95" in answer:
            apart = next(iter(row.scores.values()))[0] - answer["map50_95"] if row.scores else None
            return Document(
                row, **{f"ultralytics_{name}": answer[name] for name in ("map50_95", "map50")}, difference=apart
            )
        missing = f"no score by Ultralytics' val: {answer.get('error', 'it gave none')}"
        return row if row.error else self._failed(row, missing)

    def _failed(self, row: Document, output: str) -> Document:
        """Return the row with the last line of a tool's output as its error."""
        last = (output.strip() or "no output").splitlines()[-1]
        error = without_folders(last, self._work, self._venvs, self._models)[:300]
        self.progress.note(f"{row.model}: {row.method}: failed: {error}")
        return Document(row, error=error)


_CAPTURED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def claims(rows: Sequence[Document]) -> list[dict[str, Any]]:
    apart = [abs(row.difference) for row in rows if row.difference is not None]
    found = []
    if apart:
        text = f"edgekd's scorer agrees with Ultralytics' val within {AGREEMENT} mAP50-95 on {len(apart)} graphs"
        found.append(frame.claim(text, max(apart), max(apart) <= AGREEMENT))
    for model in dict.fromkeys(row.model for row in rows):
        by_method = {row.method: row for row in rows if row.model == model}
        exact, ours, peer = (by_method.get(name) for name in ("float32", RECIPE.name, MODELOPT.name))
        if exact and ours and peer:
            for split in exact.scores:
                found += _claims_about(f"{model}, {split}", split, exact, ours, peer)
        for share, method in MIXED.items():
            if exact and method.name in by_method:
                found += _claims_about_size(model, share, exact, by_method[method.name])
        found += _claims_about_time(model, ours, peer, "at most a quarter of ModelOpt entropy's time", 0.25)
        nncf = by_method.get(NNCF.name)
        found += _claims_about_time(model, ours, nncf, "at most NNCF's time", 1.0)
        if ours and nncf and ours.noise and nncf.noise:
            quieter = ours.noise / nncf.noise
            found.append(frame.claim(f"{model}: INT8 noise by NNCF's", quieter, quieter <= 1))
    return found


def _claims_about(where: str, split: str, exact: Document, ours: Document, peer: Document) -> list[dict[str, Any]]:
    score, reference = (row.scores.get(split, (0.0,))[0] for row in (ours, exact))
    kept, ahead = score / reference, score - peer.scores.get(split, (0.0,))[0]
    quieter = (ours.noise or np.inf) / (peer.noise or np.inf)
    return [
        frame.claim(f"{where}: INT8 noise by ModelOpt entropy's", quieter, quieter <= 1),
        frame.claim(f"{where}: INT8 keeps at least 99.5 % of the float mAP50-95", kept, kept >= 0.995),
        frame.claim(f"{where}: INT8 is not below ModelOpt entropy", ahead, ahead >= 0),
    ]


def _claims_about_time(
    model: str, ours: Document | None, peer: Document | None, text: str, most: float
) -> list[dict[str, Any]]:
    if not (ours and peer and ours.seconds and peer.seconds):
        return []
    share = ours.seconds / peer.seconds
    return [frame.claim(f"{model}: {text}", share, share <= most)]


def _claims_about_size(model: str, share: int, exact: Document, row: Document) -> list[dict[str, Any]]:
    found = []
    for split, (reference, _) in exact.scores.items():
        smaller = (row.packed_bytes or 0) * share <= (exact.bytes or 0)
        kept = row.scores.get(split, (0.0,))[0] / reference
        text = f"{model}, {split}: 1/{share} of the float file keeps at least 97 %"
        found.append(frame.claim(text, kept, smaller and kept >= 0.97))
    return found


def page(found: Document) -> Blocks:
    yield from frame.head("INT8 after training, edgekd beside its peers", found)
    yield f"""\
Every tool gets the same float32 ONNX graph and the same calibration frames, already decoded and letterboxed, and
runs in a process of its own. Seconds: of the processor, from the float file to the INT8 file, imports not counted.
Peak: resident memory of that process. INT8 convolutions: those with INT8 weights. Symmetric: every zero point is 0,
as TensorRT requires. Packed: the graph in edgekd's lossless packed form, for every tool. Noise: relative to the
signal, where the float graph's last convolutions end, on {JUDGED} frames of the first split. mAP: edgekd's
scorer, on ONNX Runtime's CPU provider. Ultralytics, with `--ultralytics-val`: mAP50-95 of the same graph by its `val`
(`rect=False`, batch 1) on the first split; difference: edgekd's less that."""
    counts = ", ".join(f"{found.images[split]} scored of `{split}`" for split in found.scored)
    yield f"Data: {found.data}; {found.images.calibration} calibration images, {counts}."
    scores = " | ".join(f"{split} mAP50-95 | of float | mAP50" for split in found.scored)
    header = "how | bytes | packed | seconds | peak MB | INT8 convolutions | symmetric | noise"
    for model in dict.fromkeys(row.model for row in found.rows):
        mine = [row for row in found.rows if row.model == model]
        yield f"## {model}"
        yield frame.table(f"{header} | {scores} | Ultralytics | difference", (_cells(row, mine[0]) for row in mine))
        yield from (f"{row.method}: {row.error}" for row in mine if row.error)
    yield "## Requirements"
    yield frame.claims_table(found.claims)
    yield f"""\
How much of a difference is due to which images are scored: drawn anew {RESAMPLES} times, with repetition,
the same for both graphs."""
    yield frame.table(
        "mAP50-95 | difference ± its standard error",
        (f"{name} | {Difference(**each)}" for name, each in found.differences.items()),
    )
    yield "\n".join(
        f"- environment `{environment}`: {frame.versions_of(installed, _NAMED)}"
        for environment, installed in found.packages.items()
    )
    yield f"{frame.counted(found.host.threads, 'thread')}; {found.seeds}."
    if "own_cores" not in found:
        yield """\
In this run ONNX Runtime had a thread on each core of the machine in every process that quantizes; seconds count them
all."""


_NAMED = (
    *("edgekd", "ultralytics", "nncf", "nvidia-modelopt", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("torch", "numpy", "faster-coco-eval"),
)


def _cells(row: Document, exact: Document) -> str:
    scores = []
    for split, (reference, _) in exact.scores.items():
        found = row.scores.get(split)
        scores.append(f"{found[0]:.4f} | {found[0] / reference:.1%} | {found[1]:.4f}" if found else "– | – | –")
    layers = "{} of {}".format(*row.int8_convolutions) if row.int8_convolutions else "–"
    symmetric = "–" if row.symmetric is None else frame.yes(row.symmetric)
    return (
        f"{row.method} | {cell(row.bytes, ',')} | {cell(row.packed_bytes, ',')} | {cell(row.seconds, '.1f')} | "
        f"{cell(row.peak_bytes, '.0f', unit=1e6)} | {layers} | {symmetric} | {cell(row.noise, '.4f')} | "
        f"{' | '.join(scores)} | {cell(row.ultralytics_map50_95, '.4f')} | {cell(row.difference, '+.4f')}"
    )


OPTIONS = (
    Option("--venvs", VENVS, "the peers' environments, kept from run to run"),
    Option("--models", MODELS),
    IMAGES,
)
"""Options of benchmarks that compare quantization with other tools."""


def run(given: Given) -> Result:
    methods = [method for method in METHODS if any(part in method.name for part in given.methods)]
    bench = Bench(given, given.data, given.scored, methods, given.ultralytics_val)
    sizes = {name: len(bench.dataset.split(name)) for name in ("train", *given.scored)}
    rows: list[Document] = []
    differences = {}
    for model in given.models:
        rows += bench.rows(model)
        differences.update(bench.differences(model))
    return {
        "own_cores": True,
        "seeds": "no tool here draws random numbers; PYTHONHASHSEED=0",
        "images": {**sizes, "calibration": min(FRAMES, sizes["train"])},
        "differences": differences,
        "rows": rows,
        "claims": claims(rows),
        "packages": bench.packages,
    }


if __name__ == "__main__":
    more = (
        Option("--data", "coco256", "data set beside the models"),
        Option("--scored", ["val"], "splits"),
        Option("--methods", [""], "only those whose names have one of these in them"),
        Option("--ultralytics-val", False, "score with Ultralytics' val, too"),
    )
    frame.main(run, page, *OPTIONS, *more, holds=frame.claims_hold)
