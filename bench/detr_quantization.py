"""Compare INT8 of a trained DETR by edgekd and other tools: mAP and noise, for several calibration sets.

The detector is trained by `transformer_teacher.py`: an RT-DETR decoder on the feature maps of a YOLO. Every tool
quantizes convolutions and matrix products with constant weights, and leaves the last ones before the outputs in float.
Needs `edgekd[train]`; NNCF and ModelOpt run in their own environments.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import frame
import numpy as np
from common import OPSET, SHARED, VENVS, Detector
from frame import IMAGES, Blocks, Document, Given, Option, Result
from quantization_baselines import FRAMES as WRITTEN
from quantization_baselines import JUDGED, Bench, Method, row_of

from edgekd.graph.session import cpu_session

SPLITS = ("val", "test")
FRAMES = 64  # calibration frames, evenly spaced in the training split; each draw takes SHARE of them
SHARE = 0.75
MIN_SCORE = 0.1  # noise is measured over queries of the float graph with at least this score
KEEP = 0.985  # goal: share of the float graph's mAP50-95
MODEL = "detr.onnx"
PACKAGES = ("edgekd", "nncf", "nvidia-modelopt", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "ultralytics")
OURS = Method("edgekd, recipe `ptq`", "edgekd")
PEERS = (
    Method("ONNX Runtime, min-max", "onnxruntime", "products", None, "edgekd"),
    Method("NNCF, preset mixed, `model_type=TRANSFORMER`", "nncf", "transformer", "nncf", "edgekd"),
    Method("ModelOpt `entropy`", "modelopt", "entropy", "modelopt", "edgekd"),
)
METHODS = (OURS, Method("the same without smoothing", "edgekd", "unsmoothed"), *PEERS)


def export_job(checkpoint: str, graph: str, side: int) -> dict[str, Any]:
    """Export a checkpoint of Ultralytics' RTDETRDecoder with its raw outputs: logits and boxes as fractions."""
    import torch

    loaded = torch.load(checkpoint, map_location="cpu", weights_only=False)
    network = (loaded.get("ema") or loaded["model"]).float().eval()

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, (boxes, logits, *_) = self.network(images)
            return logits[-1], boxes[-1]

    names = {"input_names": ["images"], "output_names": ["logits", "pred_boxes"]}
    example = torch.zeros(1, 3, side, side)
    torch.onnx.export(Raw(), (example,), graph, opset_version=OPSET, dynamo=False, **names)
    trained = loaded["train_args"]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trained": {"epochs": loaded["epoch"] + 1, "of": trained["epochs"], "batch": trained["batch"]},
    }


class QueryReference:
    """The outputs of the float graph on frames float32 [1, 3, h, w].

    Small differences change which queries a DETR selects, and their order. So each query is compared with the closest
    query of the other graph.
    """

    def __init__(self, detector: Detector, frames: Sequence[np.ndarray]) -> None:
        self._spec, self._frames = detector.spec, frames
        outputs = [self._queries(each) for each in self._outputs(detector.graph)]
        self._wanted = [rows[rows[:, 4:].max(axis=1) >= MIN_SCORE] for rows in outputs]

    def noise(self, graph: Path) -> float:
        """Return the noise-to-signal ratio of another version of the graph, over queries of MIN_SCORE or more."""
        noise = signal = 0.0
        for wanted, found in zip(self._wanted, map(self._queries, self._outputs(graph)), strict=True):
            distances = np.square(wanted[:, None] - found[None]).sum(axis=2)
            noise += float(distances.min(axis=1).sum())
            signal += float(np.square(wanted).sum())
        return noise / signal

    def _outputs(self, graph: Path) -> Iterator[np.ndarray]:
        session = cpu_session(str(graph))
        source = session.get_inputs()[0].name
        return (session.run(None, {source: each})[0] for each in self._frames)

    def _queries(self, output: np.ndarray) -> np.ndarray:
        """Return an output [1, 4 + classes, n] as float64 [n, 4 + classes]: boxes as fractions of the frame, scores."""
        return output[0].T / np.array([*[self._spec.preprocess.width] * 4, *[1.0] * len(self._spec.classes)])


class Draws(Bench):
    """Runs all tools on several draws of the same calibration frames."""

    def drawn(self, graph: Path, draws: int) -> Iterator[Document]:
        """Yield the row of the float graph, with draw None, then a row of each tool for each draw."""
        self._models = graph.parent
        source, written, exclude = self.begun(graph.name)
        folder, frames = source.graph.parent, sorted(written.iterdir())[:: WRITTEN // FRAMES]
        judged = sorted(self._write_frames(folder / "judged", source, SPLITS[0], JUDGED).iterdir())
        reference = QueryReference(source, [np.load(file) for file in judged])
        row = row_of(MODEL, "float32", bytes=source.graph.stat().st_size, noise=reference.noise(source.graph))
        yield Document(draw=None, **self.scored(row, source))
        for draw in range(draws):
            chosen = folder / f"draw-{draw}"
            chosen.mkdir()
            for index in np.random.default_rng(draw).permutation(len(frames))[: round(len(frames) * SHARE)]:
                (chosen / frames[index].name).symlink_to(frames[index])
            for number, method in enumerate(self._methods):
                out = folder / f"{draw}-{number}.onnx"
                row = self.quantized(MODEL, method, source.graph, chosen, out, exclude)
                if row.error is None:
                    row = self.scored(Document(row, noise=reference.noise(out)), Detector(out, source.spec))
                yield Document(draw=draw, **row)


def claims(rows: Sequence[Document]) -> list[Result]:
    found = []
    (exact,) = (row for row in rows if row.draw is None)
    ours = _of(rows, OURS.name)
    if not ours:
        return []
    for split in SPLITS:
        kept = statistics.fmean(row.scores[split][0] for row in ours) / exact.scores[split][0]
        text = f"{split}: INT8 keeps at least {KEEP:.1%} of the float mAP50-95, mean of the draws"
        found.append(frame.claim(text, kept, kept >= KEEP))
    noise = statistics.fmean(row.noise for row in ours)
    for method in PEERS:
        if theirs := _of(rows, method.name):
            quieter = noise / statistics.fmean(row.noise for row in theirs)
            found.append(frame.claim(f"noise of the output by that of {method.name}, means", quieter, quieter < 1))
    return found


def _of(rows: Sequence[Document], method: str) -> list[Document]:
    return [row for row in rows if row.method == method and row.scores]


def page(found: Document) -> Blocks:
    yield from frame.head("INT8 of a trained DETR, edgekd beside its peers", found)
    yield f"""\
The detector: decoder, queries and deformable attention of an RT-DETR on the backbone and neck of a YOLO11n,
{found.parameters:,} parameters, trained on ppe by `bench/transformer_teacher.py`: {found.trained.epochs} epochs of
{found.trained.of} planned, in batches of {found.trained.batch}. Every tool gets the same float32 ONNX graph and the
same calibration frames; the last layers before the outputs stay float for every tool. Each draw is
{SHARE:.0%} of {found.images.calibration} training images. Noise: relative to the signal, of boxes (as fractions of the
frame) and scores, over the queries with a score of {MIN_SCORE} or more on {JUDGED} frames of `{SPLITS[0]}`, each beside
the closest query of the other graph. Symmetric: every zero point is 0, as TensorRT requires. mAP: edgekd's scorer, ONNX
Runtime's CPU provider,
{" and ".join(f"{found.images[split]} images of `{split}`" for split in SPLITS)}. In brackets: least, most."""
    (exact,) = (row for row in found.rows if row.draw is None)
    lines = []
    for method in dict.fromkeys(row.method for row in found.rows):
        mine = _of(found.rows, method)
        if mine:
            noise = _spread([row.noise for row in mine], ".5f")
            scores = " | ".join(_score(mine, exact, split) for split in SPLITS)
            symmetric = "–" if mine[0].symmetric is None else frame.yes(mine[0].symmetric)
            lines.append(f"{method} | {mine[0].bytes:,} | {symmetric} | {noise} | {scores}")
    header = " | ".join(f"{split} mAP50-95 | of float" for split in SPLITS)
    yield frame.table(f"how | bytes | symmetric | noise | {header}", lines)
    yield from (f"{row.method}, draw {row.draw}: {row.error}" for row in found.rows if row.error)
    yield "## Requirements"
    yield frame.claims_table(found.claims)
    yield "\n".join(
        f"- environment `{environment}`: {frame.versions_of(installed, PACKAGES)}"
        for environment, installed in found.packages.items()
    )


def _score(rows: Sequence[Document], exact: Document, split: str) -> str:
    scores = [row.scores[split][0] for row in rows]
    return f"{_spread(scores, '.4f')} | {statistics.fmean(scores) / exact.scores[split][0]:.1%}"


def _spread(values: Sequence[float], form: str) -> str:
    text = format(statistics.fmean(values), form)
    return text if len(values) < 2 else f"{text} ({min(values):{form}}..{max(values):{form}})"


def run(given: Given) -> Iterator[Result]:
    bench = Draws(given, given.data, SPLITS, METHODS, both=False)
    graph = given.scratch / "export" / MODEL
    graph.parent.mkdir()
    made = frame.done_in_process(export_job, checkpoint=given.checkpoint.absolute(), graph=graph, side=given.image_size)
    images = {name: len(bench.dataset.split(name)) for name in ("train", *SPLITS)} | {"calibration": FRAMES}
    rows: list[Document] = []
    for row in bench.drawn(graph, given.draws):
        rows.append(row)
        yield {"rows": rows, "images": images, **made, "claims": claims(rows), "packages": bench.packages}


if __name__ == "__main__":
    checkpoint = Option("--checkpoint", SHARED / "models" / "decoder-ppe.pt", "of `transformer_teacher.py`")
    size = Option("--image-size", 320)
    venvs = Option("--venvs", VENVS, "the peers' environments, kept from run to run")
    frame.main(run, page, venvs, IMAGES, Option("--data", "ppe"), checkpoint, size, Option("--draws", 3))
