"""Compare the accuracy of a pruned detector before training: with new batch-norm statistics, and with refitted weights.

Both remove the same channels. Each seed draws other calibration images. Scored with ONNX Runtime. Needs
`edgekd[train]`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import training
from common import SHARED, SPLITS
from frame import IMAGES, Blocks, Document, Option, cell, claim, claims_table, head, main, table, versions_of
from training import MODEL, SEEDS, Trainings, Way

from edgekd.compress.steps import Prune

WHOLE = "whole"
STATISTICS, REFITTED = "new batch-norm statistics", "least squares"
GOAL = 0.20
"""Goal: mAP50-95 on the test split at half of the multiply-adds."""


def title(ratio: float, method: str) -> str:
    return f"{ratio * 100:g} % removed, {method}"


class Bench(Trainings):
    """The original detector and pruned ones. cpu_seconds: CPU time of pruning, including gradients and refit."""

    asked = ("ratios", "image_size", "images", "calibration_images")
    numbers = ("parameters", "multiply_adds", "cpu_seconds")
    required = WHOLE

    def ways(self) -> Iterator[Way]:
        yield WHOLE, None, self._whole
        for seed in self.given.seeds:
            for ratio in self.given.ratios:
                for method in (STATISTICS, REFITTED):
                    yield title(ratio, method), seed, partial(self._pruned, ratio, method, seed)

    def _whole(self) -> Document:
        graph = self.given.work / "whole.onnx"
        took = self.job("whole", whole_job, model=self.given.model, size=self.given.image_size, out=graph)
        return self.with_scores(self.row(WHOLE, **took), graph)

    def _pruned(self, ratio: float, method: str, seed: int) -> Document:
        given, refit = self.given, method == REFITTED
        size = {"images": given.calibration_images, "image_size": given.image_size}
        # `taylor` does not depend on the refit, so both methods remove the same channels.
        step = Prune(ratio, importance="taylor", refit=refit, seed=seed, **size)
        out = given.work / f"{ratio}-{refit}-{seed}.pt"
        settings = {name: value for name, value in asdict(step).items() if value is not None}
        took = self.job(
            out.stem, pruned_job, model=given.model, size=given.image_size, out=out, data=self.data, step=settings
        )
        return self.with_scores(self.row(title(ratio, method), seed, **took), out.with_suffix(".onnx"))

    def result(self) -> dict[str, Any]:
        rows = training.by_method(self.rows)
        return {"claims": list(claims(rows, self.given.ratios))}


def whole_job(model: str, out: str, size: int, **_: Any) -> dict[str, Any]:
    training.export_sized(model, Path(out), size)
    return {}


def pruned_job(
    step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int, **_: Any
) -> dict[str, Any]:
    """Prune for frames of this size and export. Return sizes and CPU seconds."""
    import torch

    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.prune import prune_detector

    torch.set_num_threads(threads)
    training.sized(model, Path(out), size)
    began = time.process_time()
    done = prune_detector(Path(out), Path(out), Path(data), parse_table(Prune, dict(step), "step"), trust=True)
    took = time.process_time() - began
    training.export_sized(out, Path(out).with_suffix(".onnx"), size)
    return {"parameters": done.parameters[1], "multiply_adds": done.multiply_adds[1], "cpu_seconds": took}


def claims(rows: Mapping[str, list[Document]], ratios: list[float]) -> Iterator[dict[str, Any]]:
    for ratio in ratios:
        plain, refitted = (rows.get(title(ratio, method), []) for method in (STATISTICS, REFITTED))
        if not plain or not refitted:
            continue
        least = min(training.scores(refitted, "test")) - max(training.scores(plain, "test"))
        yield claim(f"{ratio * 100:g} % removed: the refit's worst seed ahead of the other's best", least, least > 0)
        if ratio == 0.5:
            found = training.mean_score(refitted, "test")
            yield claim(f"half removed: at least {GOAL:.2f} without training", found, found >= GOAL)


def page(found: Document) -> Blocks:
    yield from head("Pruned detectors before any training", found)
    images = found.images
    yield f"""\
Means over the seeds, in brackets the lowest and the highest. Each seed draws {found.calibration_images}
calibration images of the training split. Their labels choose the channels, the same for both methods; the refit reads
none. Images of {found.image_size} pixels; scored on {images.val} (val) and {images.test} (test). CPU seconds: of
pruning in all; threads: {found.threads}."""
    lines = []
    for method, rows in training.by_method(found.rows).items():
        adds, took = training.mean(rows, "multiply_adds"), training.mean(rows, "cpu_seconds")
        numbers = [cell(adds, ".3g", unit=1e9), cell(took, ".3g"), training.spreads(rows)]
        lines.append(" | ".join([method, training.seeds_of(rows), *numbers]))
    columns = [f"{split} mAP50-95" for split in SPLITS]
    yield table(" | ".join(["how", "seeds", "G multiply-adds", "CPU seconds", *columns]), lines)
    yield from training.failures(found)
    yield "## Goals, on test"
    yield claims_table(found.claims)
    yield f"- {versions_of(found.packages.get('edgekd', {}), ('ultralytics', 'torch', 'torch-pruning'))}"


if __name__ == "__main__":
    main(
        Bench.run,
        page,
        Option("--model", MODEL, "what is pruned"),
        Option("--data", SHARED / "data" / "ppe", "with splits train, val and test"),
        Option("--ratios", [0.3, 0.5], "shares of the multiply-adds to remove"),
        Option("--image-size", 320, "of the calibration images, and of the graphs"),
        Option("--calibration-images", 128, "for gradients and the refit"),
        IMAGES,
        Option("--work", Path("runs") / "pruning-refit", "logs and finished rows"),
        SEEDS,
        holds=training.none_failed,
    )
