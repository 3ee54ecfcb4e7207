"""Measure quantization-aware training on cached predictions of the float detector, compared with Ultralytics'.

The detector is quantized like the recipe `mixed` to a fraction of its float file, and trained with quantization
simulated. With `--student` a detector pruned from `--model` is quantized, and `--model` is its teacher. CPU seconds
include all threads. With `--peers` Ultralytics trains `--model` with `quantize=8` on the same images; it cannot train
pruned detectors. Needs `edgekd[train]`; Ultralytics' training with ModelOpt runs in its own environment.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import training
from common import PEERS, SPLITS, VENVS, exported, peer_python, quantize_step
from frame import Blocks, Document, Option, cell, claim, claims_table, head, main, spread, table, versions_of
from training import DEVICE, SEEDS, JobError, Trainings, Way

from edgekd.builds.stages.plan import TRAINED_FILL, Attempt, fitted
from edgekd.compress.quantization.mixed_precision import measure_costs
from edgekd.compress.quantization.plan import Plan
from edgekd.compress.steps import QuantAwareDistill
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.core.toml import parse_table
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset

TEACHER, FLOAT, QUANTIZED, TRAINED = "the teacher", "float32", "quantized", "quantized, then trained"
GENTLE = {
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "warmup_bias_lr": 0.0,
    "cos_lr": True,
    "mosaic": 0.0,
    "scale": 0.25,
    "erasing": 0.0,
}
"""Settings that bring Ultralytics closer to edgekd: a smaller learning rate, and weaker augmentation."""


@dataclass(frozen=True)
class Peer:
    """A variant of Ultralytics' training. settings: further arguments of `train`.

    same_time: train for the time that edgekd took, not for the same epochs; distilled: the float detector is teacher.
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
METHODS = (TEACHER, FLOAT, QUANTIZED, TRAINED, *(peer.name for peer in ULTRALYTICS))


class Bench(Trainings):
    """Quantized and trained graphs.

    Numbers of a row: bytes: size of the shipped file: edgekd's packed graph, Ultralytics' ONNX file; zipped_bytes:
    Ultralytics' file after DEFLATE; packed_bytes: Ultralytics' graph with weights in INT8, packed by edgekd;
    cpu_seconds: of the quantization, or of the training and of predictions that are not cached yet; seconds: wall time
    of the training, for Ultralytics with the export.
    """

    asked = ("part", "epochs", "batch", "learning_rate", "image_size", "images", "student", "device")
    numbers = ("bytes", "zipped_bytes", "packed_bytes", "cpu_seconds", "seconds", "epochs", "updates")
    required = FLOAT

    def ways(self) -> Iterator[Way]:
        starts = self.given.seeds if self.given.student else [None]
        for seed in starts:
            yield FLOAT, seed, partial(self._float, seed)
        yield TEACHER, None, self._teacher
        for seed in starts:
            yield QUANTIZED, seed, partial(self._quantized, seed)
        for seed in self.given.seeds:
            yield TRAINED, seed, partial(self._trained, seed)
        for seed in self.given.seeds if self.given.peers else ():
            for peer in ULTRALYTICS:
                yield peer.name, seed, partial(self._trained_by_ultralytics, peer, seed)

    @property
    def _checkpoint(self) -> Path:
        return Path(self.given.work, "teacher.pt")

    def _path(self, name: str, seed: int | None) -> Path:
        """Return the path of a seed's file; None: of the file that all seeds share."""
        return Path(self.given.work, name if seed is None else f"{name}-{seed}")

    def _teacher(self) -> Document:
        training.sized(self.given.model, self._checkpoint, self.given.image_size)
        return self._exported(TEACHER, None, self._checkpoint)

    def _float(self, seed: int | None) -> Document:
        """Export and score the float detector that is quantized: the pruned student, or the teacher itself."""
        checkpoint = self._path("float", seed).with_suffix(".pt")
        given = self.given.student.format(seed=seed) if self.given.student else self.given.model
        training.sized(given, checkpoint, self.given.image_size)
        return self._exported(FLOAT, seed, checkpoint)

    def _exported(self, method: str, seed: int | None, checkpoint: Path) -> Document:
        graph = checkpoint.with_suffix(".onnx")
        exported(checkpoint, graph, trust_checkpoint=True)
        return self.with_scores(self.row(method, seed, bytes=graph.stat().st_size), graph)

    def _quantized(self, seed: int | None) -> Document:
        graph = self._path("quantized", seed).with_suffix(".onnx")
        files = {"checkpoint": self._path("float", seed).with_suffix(".pt"), "out": graph, "data": self.data}
        took = self.job(graph.stem, quantize_job, part=self.given.part, **files)
        return self.with_scores(self.row(QUANTIZED, seed, bytes=len(pack(graph.read_bytes())), **took), graph)

    def _trained(self, seed: int) -> Document:
        given, graph, start = self.given, self._path("trained", seed).with_suffix(".onnx"), seed
        if not given.student:
            start = None
        files = {
            "checkpoint": self._path("float", start).with_suffix(".pt"),
            "teacher": self._checkpoint,
            "graph": self._path("quantized", start).with_suffix(".onnx"),
            "out": graph,
            "data": self.data,
            "cache": given.work / "teacher.predictions",
        }
        step = QuantAwareDistill(given.epochs, given.batch, given.learning_rate, seed=seed)
        took = self.job(graph.stem, train_job, step=training.step_table(step), **files)
        row = self.row(TRAINED, seed, bytes=len(pack(graph.read_bytes())), epochs=given.epochs, **took)
        return self.with_scores(row, graph)

    def _trained_by_ultralytics(self, peer: Peer, seed: int) -> Document:
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
        python = given.peer or peer_python("ultralytics-qat", given.venvs.absolute())
        command = [python, PEERS / "train_ultralytics_qat.py", "--threads", given.threads, "--work", folder]
        command += ["--model", self._checkpoint, "--data", self.data, "--out", graph, "--folded", folded]
        took = self.process(folder.name, [*map(str, command), "--settings", json.dumps(settings)])
        self.packages["ultralytics-qat"] = took.pop("packages")
        took["seconds"] += took.pop("export_seconds")
        content = graph.read_bytes()
        sizes = {"bytes": len(content), "zipped_bytes": len(zlib.compress(content, 9))}
        sizes["packed_bytes"] = len(pack(folded.read_bytes()))
        return self.with_scores(self.row(peer.name, seed, **sizes, **took), graph)

    def result(self) -> dict[str, Any]:
        return {"gentle": GENTLE, "claims": claims(training.by_method(self.rows), self.given.part)}


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def quantize_job(checkpoint: str, out: str, data: str, part: float, threads: int, **_: Any) -> dict[str, Any]:
    """Quantize like the recipe `mixed` to 1/`part` of the float graph, times TRAINED_FILL as reserve for training."""
    exact = exported(Path(checkpoint), Path(out).with_suffix(".float.onnx"), trust_checkpoint=True)
    began, step = cpu_seconds(), quantize_step("mixed")
    images = choose(load_dataset(Path(data)), load_rule(), preprocess=exact.spec.preprocess).images

    def attempt(plan: Plan) -> Attempt[None]:
        exact.quantized(Path(out), exact.frames(images), step, plan.forms, plan.steps)
        return Attempt(None, Path(out), len(pack(Path(out).read_bytes())))

    costs = measure_costs(exact.graph, exact.frames(images), step)
    fitted(costs, int(exact.graph.stat().st_size / part * TRAINED_FILL), 0, attempt)
    return {"cpu_seconds": cpu_seconds() - began}


def train_job(
    checkpoint: str,
    teacher: str,
    graph: str,
    out: str,
    data: str,
    cache: str,
    step: Mapping[str, Any],
    device: str,
    threads: int,
) -> dict[str, Any]:
    import torch

    from edgekd.detectors.ultralytics.quant_aware import distill_quantized

    torch.set_num_threads(threads)
    state = Path(out).with_suffix(".training")
    state.unlink(missing_ok=True)
    began, settings = cpu_seconds(), parse_table(QuantAwareDistill, dict(step), "step")
    files = (Path(checkpoint), Path(teacher), Path(out), Path(data), settings, Path(cache), state)
    done = distill_quantized(*files, True, device, PlainProgress(interval_s=30), Path(graph))
    state.unlink()
    return {"updates": done.updates, "cpu_seconds": cpu_seconds() - began, "seconds": done.seconds}


def smaller_than(rows: Sequence[Document], base: Sequence[Document]) -> float:
    """Return the factor by which the files are smaller than the base's, by mean bytes."""
    return (training.mean(base, "bytes") or 0) / (training.mean(rows, "bytes") or 1)


def share(rows: Sequence[Document], base: Sequence[Document], split: str) -> float:
    """Return mean mAP50-95 as a share of the base's; 0 if that is 0."""
    whole = training.mean_score(base, split)
    return training.mean_score(rows, split) / whole if whole else 0.0


def claims(found: Mapping[str, Sequence[Document]], part: float) -> list[dict[str, Any]]:
    if not {FLOAT, QUANTIZED, TRAINED} <= found.keys():
        return []
    mine = found[TRAINED]
    ratio = smaller_than(mine, found[FLOAT])
    rows = [claim(f"the trained file is at most 1/{part:g} of float32's: 1/x", ratio, ratio >= part)]
    for name in (QUANTIZED, *(peer.name for peer in ULTRALYTICS)):
        if name in found:
            ahead = training.mean_score(mine, "test") - training.mean_score(found[name], "test")
            rows.append(claim(f"test mAP50-95 is higher than of: {name}", ahead, ahead > 0))
    return rows


def page(found: Document) -> Blocks:
    methods = training.by_method(found.rows)
    yield from head("Quantization-aware training without labels", found)
    yield """\
Means over the seeds; in brackets the lowest and the highest. Trained: beside cached predictions of the teacher, with
weights and activations rounded as on the camera. Bytes: of the float graph, and of packed quantized ones. CPU seconds:
of the quantization; of the training, and of the teacher's predictions where recovery has not left them."""
    if found.peers:
        yield f"""\
Ultralytics stores the weights of a trained graph as floats that are quantized when it is loaded; so there is also what
its file would be zipped, and with those weights stored as INT8 and packed by edgekd. Its seconds are of training and
export, with the validation after each epoch, by which it picks the epoch that it exports. As gently as edgekd:
{", ".join(f"`{name}={value}`" for name, value in found.gentle.items())}; the rest are Ultralytics' defaults."""
    yield training.epochs_line(found)
    columns = " | ".join(f"{split} mAP50-95 | share of float32" for split in SPLITS)
    packed = "zipped | INT8 weights, packed | seconds | " if found.peers else ""
    yield table(
        f"how | seeds | bytes | of float32 | {packed}updates | CPU seconds | {columns}",
        (_cells(name, methods[name], methods[FLOAT], bool(found.peers)) for name in METHODS if name in methods),
    )
    yield from training.failures(found)
    yield "## Goals"
    yield claims_table(found.claims)
    yield "\n".join(
        f"- environment `{environment}`: {versions_of(installed, _NAMED)}"
        for environment, installed in found.packages.items()
    )
    yield training.trained_on(found)


_NAMED = ("edgekd", "ultralytics", "nvidia-modelopt", "torch", "onnx", "onnxruntime")


def _cells(method: str, rows: Sequence[Document], base: Sequence[Document], peers: bool) -> str:
    more = [cell(training.mean(rows, name), ",.0f") for name in ("zipped_bytes", "packed_bytes", "seconds")]
    sizes = [cell(training.mean(rows, "bytes"), ",.0f"), f"1/{smaller_than(rows, base):.2f}", *(more if peers else ())]
    took = [cell(training.mean(rows, name), ".0f") for name in ("updates", "cpu_seconds")]
    scores = [f"{spread(training.scores(rows, name))} | {share(rows, base, name):.1%}" for name in SPLITS]
    return " | ".join([method, training.seeds_of(rows), *sizes, *took, *scores])


DEFAULT = QuantAwareDistill()

if __name__ == "__main__":
    options = (
        *training.options("quantization_aware", "the teacher", epochs=DEFAULT.epochs, batch=DEFAULT.batch),
        Option("--student", help="a checkpoint that was pruned from it, in place of it; {seed} in it is the seed"),
        Option("--part", 10.0, "how many times smaller than the float graph"),
        Option("--learning-rate", DEFAULT.learning_rate),
        SEEDS,
        DEVICE,
        Option("--peers", False, "beside Ultralytics"),
        Option("--venvs", VENVS, "where Ultralytics' environment is kept"),
        Option("--peer", help="an interpreter that has what peers/requirements-ultralytics-qat.txt lists"),
    )
    main(Bench.run, page, *options, holds=training.none_failed)
