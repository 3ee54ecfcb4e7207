"""INT8 after training: edgekd's beside its peers', on the same graph, the same frames, the same scorer, in one run.

Every tool gets the float32 ONNX graph that edgekd exports and the same calibration frames as edgekd's preprocessing
makes them, and runs in a process of its own. All graphs are scored on ONNX Runtime's CPU provider by edgekd's scorer;
with `--ultralytics-val` those of Ultralytics' models by Ultralytics' `val`, too, to compare the scorers.

    python bench/quantization_baselines.py [--models M ...] [--data coco256 | ppe] [--scored val test]

The environment needs `edgekd[train]`; NNCF and ModelOpt are installed into environments of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    RESULTS,
    SHARED,
    conditions,
    conditions_lines,
    copy_data,
    table,
    ultralytics_environment,
    use_cores,
    without_folders,
    write_results,
)
from fidelity import RESAMPLES, Difference, Reference, difference
from graphs import described, facts, float_head_patterns

from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import EdgeKDError
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset
from edgekd.evaluation.evaluate import Evaluation

PEERS = Path(__file__).resolve().parent / "peers"
MODELS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
FRAMES = 128
"""Calibration frames that every tool gets, evenly taken from the training split."""
JUDGED = 32
"""Frames of the first scored split on which noise is measured."""
OPSET = 17
AGREEMENT = 0.005
"""How far edgekd's mAP50-95 may be from Ultralytics'."""
ULTRALYTICS_FLOAT = (r".*\.2/Conv$", r".*/dfl/")
"""The nodes that Ultralytics 8.4.190 keeps from ModelOpt (`utils/export/engine.py`): last head convolutions and DFL."""


@dataclass(frozen=True)
class Method:
    """A way to quantize: the adapter, what it is told, and its environment (None: this one).

    float_head: which nodes stay in float: none, those edgekd leaves (`edgekd`), those Ultralytics does (`ultralytics`).
    """

    name: str
    adapter: str
    told: str = ""
    environment: str | None = None
    float_head: str | None = None


RECIPE = Method("edgekd, recipe `ptq`", "with_edgekd.py")
MIXED = {
    share: Method(f"edgekd, recipe `mixed`, packed into 1/{share} of the float file", "with_edgekd.py", str(share))
    for share in (5, 7)
}
MODELOPT = Method("ModelOpt `entropy`, same exclusions", "with_modelopt.py", "entropy", "modelopt", "ultralytics")
ONNXRUNTIME = Method("ONNX Runtime, min-max, all convolutions", "with_onnxruntime.py", "symmetric")
METHODS = (
    ONNXRUNTIME,
    Method("the same, last head convolutions and DFL float", "with_onnxruntime.py", "symmetric", None, "edgekd"),
    Method("the same, activations asymmetric", "with_onnxruntime.py", "asymmetric", None, "edgekd"),
    Method("Ultralytics, `format=onnx quantize=8`", "with_ultralytics.py"),
    Method("NNCF, preset mixed", "with_nncf.py", "", "nncf"),
    Method("ModelOpt `max`, excluding what Ultralytics does", "with_modelopt.py", "max", "modelopt", "ultralytics"),
    MODELOPT,
    RECIPE,
    *MIXED.values(),
)


@dataclass(frozen=True)
class Row:
    """One line of the table; what could not be had is None, and `error` says why.

    noise: relative to the float graph's signal, where its last convolutions end (`fidelity.Reference`);
    seconds: wall time to quantize, libraries imported, frames decoded; peak_bytes: largest resident memory of the
    quantizing process; int8_convolutions: how many have INT8 weights, of how many; symmetric: whether every zero point
    is 0, which TensorRT requires; packed_bytes: size in edgekd's lossless packed form; scores: mAP50-95 and mAP50 on
    each scored split.
    """

    model: str
    method: str
    bytes: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    int8_convolutions: tuple[int, int] | None = None
    symmetric: bool | None = None
    packed_bytes: int | None = None
    noise: float | None = None
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ultralytics_map50_95: float | None = None
    ultralytics_map50: float | None = None
    error: str | None = None

    @property
    def difference(self) -> float | None:
        """edgekd's mAP50-95 less Ultralytics', of the same graph."""
        if not self.scores or self.ultralytics_map50_95 is None:
            return None
        return next(iter(self.scores.values()))[0] - self.ultralytics_map50_95


class Bench:
    """One run: where its files lie, and what it has learnt."""

    def __init__(
        self,
        work: Path,
        venvs: Path,
        models: Path,
        data: Path,
        scored: Sequence[str],
        methods: Sequence[Method],
        both_scorers: bool,
    ) -> None:
        self.progress = PlainProgress(interval_s=30)
        self.packages: dict[str, dict[str, str]] = {}
        self._work, self._venvs, self._models = work, venvs, models
        self._data, self._scored_splits, self._methods, self._both = data, scored, methods, both_scorers
        self._dataset: Dataset = load_dataset(data)
        self._environment = ultralytics_environment(work / "ultralytics")
        self._pythons: dict[str, Path] = {}
        self._found: dict[tuple[str, str], Evaluation] = {}

    def differences(self, model: str) -> dict[str, dict[str, float]]:
        """On each scored split the mAP50-95 of recipe `ptq` less that of the float graph and of ModelOpt `entropy`."""
        found: dict[str, dict[str, float]] = {}
        for split in self._scored_splits:
            for name in ("float32", MODELOPT.name):
                ours, other = (self._found.get((method, split)) for method in (RECIPE.name, name))
                if ours and other:
                    self.progress.note(f"{model}: {split}: drawing images anew, against {name} ...")
                    apart = difference(ours, other, self._dataset.classes)
                    found[f"{model}, {split}: edgekd `ptq` less {name}"] = asdict(apart)
        return found

    def begun(self, model: str) -> tuple[Path, DetectorSpec, Path, Mapping[str, Sequence[str]]]:
        """One model's float graph and what it takes, the frames to calibrate on, and the layers that stay float."""
        folder = self._work / Path(model).stem
        folder.mkdir()
        source = folder / "float32.onnx"
        spec = self._export(model, source)
        frames = self._write_frames(folder / "frames", spec, "train", FRAMES)
        head = float_head_patterns(source)
        exclude = {"edgekd": head, "ultralytics": ULTRALYTICS_FLOAT if model.endswith(".pt") else head}
        return source, spec, frames, exclude

    def rows(self, model: str) -> list[Row]:
        """Everything about one model: a row for its float graph and one per method."""
        source, spec, frames, exclude = self.begun(model)
        folder = source.parent
        self._found.clear()
        judged = self._write_frames(folder / "judged", spec, self._scored_splits[0], JUDGED)
        reference = Reference(source, [np.load(frame) for frame in sorted(judged.iterdir())])
        rows = [self._scored(Row(model, "float32", source.stat().st_size), source, spec)]
        graphs = [source]
        for number, method in enumerate(self._methods, start=1):
            graph = folder / f"{number}.onnx"
            done = self._quantize(Row(model, method.name), method, source, frames, graph, exclude)
            if done.error is None:
                done = self._scored(replace(done, noise=reference.noise(graph)), graph, spec)
            rows.append(done)
            graphs.append(graph)
        for frame in frames.iterdir():
            frame.unlink()
        return self._scored_by_ultralytics(rows, graphs, spec) if self._both and model.endswith(".pt") else rows

    def _export(self, model: str, graph: Path) -> DetectorSpec:
        from edgekd.detectors import load
        from edgekd.detectors.export import export

        return export(load(self._models / model, classes=self._dataset.classes), graph, OPSET).spec

    def _write_frames(self, folder: Path, spec: DetectorSpec, split: str, most: int) -> Path:
        """Frames of a split, evenly taken: one `.npy` each. What every tool is calibrated on is written so."""
        from edgekd.core.detection.preprocess import letterbox
        from edgekd.data.images import ReadableImages

        folder.mkdir()
        samples = self._dataset.split(split).samples
        chosen = [samples[at] for at in np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int)]
        images = ReadableImages(chosen, self.progress, label=f"frames of {split}")
        for number, (_, image) in enumerate(images):
            np.save(folder / f"{number:05}.npy", letterbox(image, spec.preprocess)[0])
        return folder

    def _quantize(
        self, row: Row, method: Method, source: Path, frames: Path, graph: Path, exclude: Mapping[str, Sequence[str]]
    ) -> Row:
        """Run an adapter in its environment; the row with what it took, or with why it failed."""
        command = [str(PEERS / method.adapter), "--model", str(source), "--frames", str(frames), "--out", str(graph)]
        command += ["--method", method.told] if method.told else []
        command += [f"--exclude={pattern}" for pattern in exclude.get(method.float_head or "", ())]
        try:
            python = self._python(method.environment)
            done = subprocess.run([str(python), *command], env=self._environment, check=True, **_CAPTURED)
        except subprocess.CalledProcessError as error:
            killed = f"\nkilled by signal {-error.returncode}" if error.returncode < 0 else ""
            return self._failed(row, error.stdout + killed)
        took = _last_json(done.stdout)
        self.packages[method.environment or "this"] = dict(sorted(took["packages"].items()))
        self.progress.note(f"{row.model}: {method.name}: {took['seconds']:.1f} s")
        return replace(
            row,
            seconds=took["seconds"],
            peak_bytes=took["peak_bytes"],
            bytes=graph.stat().st_size,
            **facts(graph),
        )

    def _scored(self, row: Row, graph: Path, spec: DetectorSpec) -> Row:
        from edgekd.evaluation.evaluate import evaluate

        scores = {}
        for split in self._scored_splits:
            try:
                found = evaluate(graph, spec, self._dataset.split(split))
            except EdgeKDError as error:
                return self._failed(row, str(error))
            self._found[row.method, split], score = found, found.score
            scores[split] = (score.map50_95, score.map50)
            self.progress.note(f"{row.model}: {row.method}: {split}: mAP50-95 {score.map50_95:.4f}")
        return replace(row, scores=scores, packed_bytes=len(pack(graph.read_bytes())))

    def _scored_by_ultralytics(self, rows: list[Row], graphs: list[Path], spec: DetectorSpec) -> list[Row]:
        """The rows with what Ultralytics' `val` says of their graphs."""
        copies = {row.method: described(graph, spec) for row, graph in zip(rows, graphs, strict=True) if row.bytes}
        size = str(spec.preprocess.height)
        command = [sys.executable, str(PEERS / "ultralytics_val.py"), str(self._data), size]
        began = subprocess.Popen(
            [*command, *map(str, copies.values())], env=self._environment, cwd=self._work, **_PIPED
        )
        scores: dict[str, Any] = {}
        with began as process:
            answers = (json.loads(line) for line in process.stdout or () if line.startswith("{"))
            for name, answer in zip(copies, answers, strict=False):
                scores[name] = answer
                self.progress.note(f"{rows[0].model}: {name}: by Ultralytics {answer.get('map50_95', 0):.4f}")
        return [self._with_ultralytics(row, scores.get(row.method, {})) for row in rows]

    def _with_ultralytics(self, row: Row, answer: dict[str, Any]) -> Row:
        if "map50_95" in answer:
            return replace(row, ultralytics_map50_95=answer["map50_95"], ultralytics_map50=answer["map50"])
        missing = f"no score by Ultralytics' val: {answer.get('error', 'it gave none')}"
        return row if row.error else self._failed(row, missing)

    def _failed(self, row: Row, output: str) -> Row:
        """The row with the last line of what a tool said."""
        last = (output.strip() or "no output").splitlines()[-1]
        error = without_folders(last, self._work, self._venvs, self._models)[:300]
        self.progress.note(f"{row.model}: {row.method}: failed: {error}")
        return replace(row, error=error)

    def _python(self, environment: str | None) -> Path:
        """The interpreter of a peer's environment, made when it is first asked for. Raises CalledProcessError."""
        if environment is None:
            return Path(sys.executable)
        if environment not in self._pythons:
            self._pythons[environment] = self._install(environment)
        return self._pythons[environment]

    def _install(self, environment: str) -> Path:
        requirements = PEERS / f"requirements-{environment}.txt"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
        folder = self._venvs / f"{environment}-py{version}-{digest}"
        python = folder / "bin" / "python"
        complete = folder / "complete"
        if not complete.exists():
            self.progress.note(f"{environment}: installing {requirements.name} ...")
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, **_CAPTURED)
            subprocess.run([str(python), "-m", "pip", "install", "-r", str(requirements)], check=True, **_CAPTURED)
            complete.touch()
        return python


_CAPTURED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
_PIPED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}


def _last_json(output: str) -> dict[str, Any]:
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    return dict(json.loads(line))


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the rows must show, and whether they do."""
    apart = [abs(row.difference) for row in rows if row.difference is not None]
    found = []
    if apart:
        text = f"edgekd's scorer agrees with Ultralytics' val within {AGREEMENT} mAP50-95 on {len(apart)} graphs"
        found.append(_claim(text, max(apart), max(apart) <= AGREEMENT))
    for model in dict.fromkeys(row.model for row in rows):
        by_method = {row.method: row for row in rows if row.model == model}
        exact, ours, peer = (by_method.get(name) for name in ("float32", RECIPE.name, MODELOPT.name))
        if exact and ours and peer:
            for split in exact.scores:
                found += _claims_about(f"{model}, {split}", split, exact, ours, peer)
        for share, method in MIXED.items():
            if exact and method.name in by_method:
                found += _claims_about_size(model, share, exact, by_method[method.name])
        if ours and peer and ours.seconds and peer.seconds:
            quicker = ours.seconds / peer.seconds
            found.append(_claim(f"{model}: at most a quarter of ModelOpt entropy's time", quicker, quicker <= 0.25))
    return found


def _claims_about(where: str, split: str, exact: Row, ours: Row, peer: Row) -> list[dict[str, Any]]:
    score, reference = (row.scores.get(split, (0.0,))[0] for row in (ours, exact))
    kept, ahead = score / reference, score - peer.scores.get(split, (0.0,))[0]
    quieter = (ours.noise or np.inf) / (peer.noise or np.inf)
    return [
        _claim(f"{where}: INT8 noise by ModelOpt entropy's", quieter, quieter <= 1),
        _claim(f"{where}: INT8 keeps at least 99.5 % of the float mAP50-95", kept, kept >= 0.995),
        _claim(f"{where}: INT8 is not below ModelOpt entropy", ahead, ahead >= 0),
    ]


def _claims_about_size(model: str, share: int, exact: Row, row: Row) -> list[dict[str, Any]]:
    found = []
    for split, (reference, _) in exact.scores.items():
        smaller = (row.packed_bytes or 0) * share <= (exact.bytes or 0)
        kept = row.scores.get(split, (0.0,))[0] / reference
        text = f"{model}, {split}: 1/{share} of the float file keeps at least 97 %"
        found.append(_claim(text, kept, smaller and kept >= 0.97))
    return found


def _claim(text: str, found: float, holds: bool) -> dict[str, Any]:
    return {"claim": text, "found": found, "holds": holds}


def page(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    lines = ["# INT8 after training, edgekd beside its peers", "", f"`{found['command']}`", "", *_ABOUT, ""]
    told = ", ".join(f"{found['images'][split]} scored of `{split}`" for split in found["scored"])
    lines.append(f"Data: {found['data']}; {found['images']['calibration']} calibration images, {told}.")
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        lines += ["", f"## {model}", "", *table(_header(found["scored"]), [_cells(row, mine[0]) for row in mine])]
        lines += [f"\n{row.method}: {row.error}" for row in mine if row.error]
    marks = {True: "yes", False: "**no**"}
    held = [[claim["claim"], f"{claim['found']:.4f}", marks[claim["holds"]]] for claim in found["claims"]]
    lines += ["", "## What must hold", "", *table(["", "found", "holds"], held), "", *_ABOUT_DIFFERENCES, ""]
    apart = [[name, str(Difference(**each))] for name, each in found["differences"].items()]
    lines += [*table(["mAP50-95", "difference ± its standard error"], apart), ""]
    for environment, installed in found["packages"].items():
        told = ", ".join(f"{name} {installed[name]}" for name in _TOLD if name in installed)
        lines.append(f"- environment `{environment}`: {told}")
    return [*lines, "", f"{found['host']['threads']} threads; {found['seeds']}.", "", *conditions_lines(found)]


def _header(scored: Sequence[str]) -> list[str]:
    scores = [title for split in scored for title in (f"{split} mAP50-95", "of float", "mAP50")]
    columns = ["how", "bytes", "packed", "seconds", "peak MB", "INT8 convolutions", "symmetric", "noise"]
    return [*columns, *scores, "Ultralytics", "difference"]


_TOLD = (
    *("edgekd", "ultralytics", "nncf", "nvidia-modelopt", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("torch", "numpy", "faster-coco-eval"),
)
_ABOUT = (
    "Every tool gets the same float32 ONNX graph and the same calibration frames, already decoded and letterboxed, and",
    "runs in a process of its own. Seconds: wall time from the float file to the INT8 file, imports not counted. Peak:",
    "resident memory of that process. INT8 convolutions: those with INT8 weights. Symmetric: every zero point is 0,",
    "as TensorRT requires. Packed: the graph in edgekd's lossless packed form, whoever made it. Noise: relative to the",
    f"signal, where the float graph's last convolutions end, on {JUDGED} frames of the first split. mAP: edgekd's",
    "scorer, on ONNX Runtime's CPU provider. Ultralytics, where asked for: mAP50-95 of the same graph by its `val`",
    "(`rect=False`, batch 1) on the first split; difference: edgekd's less that.",
)


_ABOUT_DIFFERENCES = (
    f"How much of a difference is due to which images are scored: drawn anew {RESAMPLES} times, with repetition,",
    "the same for both graphs.",
)


def _cells(row: Row, exact: Row) -> list[str]:
    """One line of a table; what is not known is a dash."""
    scores = []
    for split, (reference, _) in exact.scores.items():
        found = row.scores.get(split)
        scores += [f"{found[0]:.4f}", f"{found[0] / reference:.1%}", f"{found[1]:.4f}"] if found else [None] * 3
    values = [
        None if row.bytes is None else f"{row.bytes:,}",
        None if row.packed_bytes is None else f"{row.packed_bytes:,}",
        None if row.seconds is None else f"{row.seconds:.1f}",
        None if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        None if row.int8_convolutions is None else "{} of {}".format(*row.int8_convolutions),
        None if row.symmetric is None else ("no", "yes")[row.symmetric],
        None if row.noise is None else f"{row.noise:.4f}",
        *scores,
        None if row.ultralytics_map50_95 is None else f"{row.ultralytics_map50_95:.4f}",
        None if row.difference is None else f"{row.difference:+.4f}",
    ]
    return [row.method, *(value or "–" for value in values)]


def parser_of(about: str | None, out: Path) -> argparse.ArgumentParser:
    """What every bench that quantizes beside peers can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/coco256")
    cache = Path.home() / ".cache" / "edgekd-bench"
    parser.add_argument("--venvs", type=Path, default=cache, help="the peers' environments, kept from run to run")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--threads", type=int, default=2, help="cores that every tool may use")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def main() -> int:
    """0 when every claim holds, else 1."""
    parser = parser_of(__doc__, RESULTS / "quantization_baselines.json")
    parser.add_argument("--data", default="coco256", help="data set beside the models")
    parser.add_argument("--scored", nargs="+", default=["val"], help="splits")
    parser.add_argument("--methods", nargs="+", default=[""], help="only those whose names have one of these in them")
    parser.add_argument("--ultralytics-val", action="store_true", help="score with Ultralytics' val, too")
    given = parser.parse_args()
    use_cores(given.threads)
    asked = [f"--images {given.images}"] if given.images else []
    asked += [f"--models {' '.join(given.models)}"] if given.models != list(MODELS) else []
    asked += [f"--methods {' '.join(map(repr, given.methods))}"] if given.methods != [""] else []
    asked += [f"--data {given.data} --scored {' '.join(given.scored)}"] if given.data != "coco256" else []
    found = {
        "question": "how good, how small and how quick is INT8 after training, beside other tools?",
        "command": " ".join(["python bench/quantization_baselines.py", *asked, f"--threads {given.threads}"]),
        "seeds": "no tool here draws random numbers; PYTHONHASHSEED=0",
        "data": given.data,
        "scored": given.scored,
        **conditions(given.threads),
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        work = Path(folder)
        data = copy_data(given.shared.absolute() / "data" / given.data, work / "data", given.images)
        models = given.shared.absolute() / "models"
        methods = [method for method in METHODS if any(part in method.name for part in given.methods)]
        bench = Bench(work, given.venvs.absolute(), models, data, given.scored, methods, given.ultralytics_val)
        sizes = {name: len(load_dataset(data).split(name)) for name in ("train", *given.scored)}
        found["images"] = {**sizes, "calibration": min(FRAMES, sizes["train"])}
        rows = []
        found["differences"] = {}
        for model in given.models:
            rows += bench.rows(model)
            found["differences"].update(bench.differences(model))
    found["rows"] = [{**asdict(row), "difference": row.difference} for row in rows]
    found["claims"] = claims(rows)
    found["packages"] = bench.packages
    write_results(given.out, found, page(found, rows))
    return 0 if all(claim["holds"] for claim in found["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
