"""Compare quantization-aware training by edgekd and by Ultralytics on the same images, with the same scorer.

All start from the same checkpoint. edgekd quantizes to INT8 and fp4x after training, and then distils from the float
detector; Ultralytics trains with `quantize=8`. Needs `edgekd[train]`; Ultralytics' training with ModelOpt gets an
environment of its own.
"""

import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import training
from common import PEERS, SPLITS, VENVS, exported, peer_python, quantize_step
from frame import Blocks, Document, Option, cell, claim, head, main, spread, table, versions_of, yes
from training import DEVICE, SEEDS, JobError, Trainings, Way

from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.formats.packed_graph import pack
from edgekd.core.progress import PlainProgress
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset

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
METHODS = (FLOAT, INT8, MIXED, TRAINED, *(peer.name for peer in ULTRALYTICS))


class Bench(Trainings):
    """Quantized graphs.

    Numbers of a row: bytes: of the file that ships: edgekd's packed, Ultralytics' ONNX; zipped_bytes: of Ultralytics'
    after DEFLATE; packed_bytes: of Ultralytics' if its weights were stored as INT8, and packed by edgekd, which
    Ultralytics does not. seconds: from the float checkpoint to the graph, the calibration included; step_seconds: the
    median of one step.
    """

    asked = ("epochs", "batch", "image_size", "images", "device")
    numbers = ("bytes", "zipped_bytes", "packed_bytes", "seconds", "epochs")

    def ways(self) -> Iterator[Way]:
        if self.missing(MIXED) or not (self.given.work / "mixed.onnx").is_file():
            self._quantize_after_training()
        for seed in self.given.seeds:
            yield TRAINED, seed, partial(self._trained_by_edgekd, seed)
        for seed in self.given.seeds:
            for peer in ULTRALYTICS:
                yield peer.name, seed, partial(self._trained_by_ultralytics, peer, seed)

    @property
    def _checkpoint(self) -> Path:
        return Path(self.given.work, "float.pt")

    def _quantize_after_training(self) -> None:
        """Make the rows before training: the float graph, and what edgekd makes of it."""
        folder = self.given.work
        asked = {"model": self.given.model, "size": self.given.image_size, "data": self.data, "folder": folder}
        took = self.job("quantize", quantize_job, **asked)
        self.rows[:] = [row for row in self.rows if row.seed is not None]
        for method, name in ((FLOAT, "float32"), (INT8, "int8"), (MIXED, "mixed")):
            graph = folder / f"{name}.onnx"
            size = len(graph.read_bytes() if method == FLOAT else pack(graph.read_bytes()))
            self.add(self.with_scores(self.row(method, bytes=size, **took[name]), graph))

    def _trained_by_edgekd(self, seed: int) -> Document:
        given = self.given
        graph = given.work / f"edgekd-{seed}.onnx"
        files = {"model": self._checkpoint, "graph": given.work / "mixed.onnx", "out": graph, "data": self.data}
        took = self.job(graph.stem, train_job, step=training.settings_of(given, seed), **files)
        took["seconds"] += sum(row.seconds or 0.0 for row in self.rows if row.method == MIXED)
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
        given = self.given
        held = claims(training.by_method(self.rows), given.smaller, given.keep, given.aim)
        return {"gentle": GENTLE, "claims": held}


def quantize_job(model: str, data: str, size: int, folder: str, **_: Any) -> dict[str, Any]:
    """Write `float.pt`, `float32.onnx`, `int8.onnx` and `mixed.onnx` into a folder; what each took."""
    training.sized(model, Path(folder, "float.pt"), size)  # an exported graph takes frames as large as in training
    exact = exported(Path(folder, "float.pt"), Path(folder, "float32.onnx"), trust_checkpoint=True)
    began = time.perf_counter()
    images = choose(load_dataset(Path(data)), load_rule(), preprocess=exact.spec.preprocess).images
    done = exact.quantized(Path(folder, "int8.onnx"), exact.frames(images), quantize_step("ptq"))
    int8 = time.perf_counter() - began
    # The first layers have few weights, and what they lose is lost for all.
    plan: dict[str, WeightFormat] = {name: "int8" if at < 2 else "fp4x" for at, name in enumerate(done.int8)}
    exact.quantized(Path(folder, "mixed.onnx"), exact.frames(images), quantize_step("mixed"), plan)
    return {"float32": {}, "int8": {"seconds": int8}, "mixed": {"seconds": time.perf_counter() - began}}


def train_job(
    model: str, graph: str, out: str, data: str, step: Mapping[str, Any], threads: int, **_: Any
) -> dict[str, Any]:
    import torch

    from edgekd.compress.steps import QuantAwareDistill
    from edgekd.detectors.ultralytics.quant_aware import distill_quantized

    torch.set_num_threads(threads)
    paths = (Path(model), Path(graph), Path(out), Path(data))
    done = distill_quantized(*paths, QuantAwareDistill(**step), trust=True, progress=PlainProgress(interval_s=30))
    return {"seconds": done.seconds}


def smaller_than(rows: Sequence[Document], base: Sequence[Document]) -> float:
    """Return how many files of these go into the float graph's."""
    return (base[0].bytes or 0) / (training.mean(rows, "bytes") or 1)


def share(rows: Sequence[Document], base: Sequence[Document], split: str) -> float:
    """Return the share of the float graph's mAP50-95; 0 where that is 0."""
    whole = base[0].map50_95[split]
    return training.mean_score(rows, split) / whole if whole else 0.0


def claims(found: Mapping[str, Sequence[Document]], smaller: float, keep: float, aim: float) -> list[dict[str, Any]]:
    """Return what must hold of edgekd's trained graphs, and what is aimed at; `must` tells them apart."""
    if not {FLOAT, TRAINED} <= found.keys():
        return []
    base, mine = found[FLOAT], found[TRAINED]
    ratio, kept = smaller_than(mine, base), share(mine, base, "test")
    size = "the file that ships is at most 1/{:g} of float32's; found: 1/x"
    text = f"on the split test it keeps at least {keep:.1%} of the float detector's mAP50-95, mean of the seeds"
    rows = [
        claim(size.format(smaller), ratio, ratio >= smaller, must=True),
        claim(text, kept, kept >= keep, must=True),
        claim(size.format(aim), ratio, ratio >= aim, must=False),
    ]
    for peer in (peer.name for peer in ULTRALYTICS if peer.name in found):
        ahead = training.mean_score(mine, "test") - training.mean_score(found[peer], "test")
        rows.append(claim(f"test mAP50-95 no lower than of: {peer}", ahead, ahead >= 0, must=False))
    return rows


def page(found: Document) -> Blocks:
    counts, methods = found.images, training.by_method(found.rows)
    # older results do not name these settings; `warmup_bias_lr` was not among them.
    gentle = found.get("gentle", {name: value for name, value in GENTLE.items() if name != "warmup_bias_lr"})
    yield from head("Quantization-aware training, edgekd beside Ultralytics", found)
    yield f"""\
Means over the seeds; in brackets the lowest and the highest. Bytes: of the file that ships, which is ONNX for
float32 and Ultralytics, and a packed graph for edgekd. Ultralytics stores the weights of a trained graph as
floats that are quantized when it is loaded; so there is also what its file would be zipped, and with those
weights stored as INT8 and packed by edgekd. Seconds: from the float checkpoint to the quantized graph, with the
calibration, and for Ultralytics the validation after each epoch, by which it picks the epoch that it exports:
it has looked at the split val. edgekd's defaults were compared on ppe's val, too: test is the split to compare.
Both train in float32. As gently as edgekd:
{", ".join(f"`{name}={value}`" for name, value in gentle.items())}; the rest are Ultralytics' defaults.
mAP: edgekd's scorer on ONNX Runtime's CPU provider."""
    yield f"{counts.train} images to train on; scored on {counts.val} (val) and {counts.test} (test)."
    yield table(
        "how | seeds | bytes | of float32 | zipped | INT8 weights, packed | epochs | seconds | "
        "val mAP50-95 | share of float | test mAP50-95 | share of float",
        (_cells(method, methods[method], methods[FLOAT]) for method in METHODS if method in methods),
    )
    yield from training.failures(found)
    yield "## Requirements and goals"
    yield table(
        " |  | found | holds",
        (
            f"{'must' if each.must else 'aim'} | {each.claim} | {each.found:.4f} | {yes(each.holds, '**no**')}"
            for each in found.claims
        ),
    )
    yield "\n".join(
        f"- environment `{environment}`: {versions_of(installed, _NAMED)}"
        for environment, installed in found.packages.items()
    )
    yield training.trained_on(found)


_NAMED = ("edgekd", "ultralytics", "nvidia-modelopt", "torch", "onnx", "onnxruntime")


def _cells(method: str, rows: Sequence[Document], base: Sequence[Document]) -> str:
    sizes = [cell(training.mean(rows, name), ",.0f") for name in ("bytes", "zipped_bytes", "packed_bytes")]
    sizes.insert(1, f"1/{smaller_than(rows, base):.2f}")
    took = [cell(training.mean(rows, name), ".4g") for name in ("epochs", "seconds")]
    scores = [f"{spread(training.scores(rows, name))} | {share(rows, base, name):.1%}" for name in SPLITS]
    return " | ".join([method, training.seeds_of(rows), *sizes, *took, *scores])


if __name__ == "__main__":
    options = (
        *training.options("quantization_aware", "the float detector", epochs=10, batch=8),
        SEEDS,
        DEVICE,
        Option("--smaller", 7.0, "how many times smaller the file must be"),
        Option("--keep", 0.98, "share of the float mAP50-95 that must be left"),
        Option("--aim", 8.0, "how many times smaller the file had better be"),
        Option("--venvs", VENVS, "where Ultralytics' environment is kept"),
        Option("--peer", help="an interpreter that has what peers/requirements-ultralytics-qat.txt lists"),
    )
    main(
        Bench.run,
        page,
        *options,
        holds=lambda found: training.none_failed(found) and all(each.holds for each in found.claims if each.must),
    )
