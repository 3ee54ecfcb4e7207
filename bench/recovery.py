"""Prune a detector and recover it on cached predictions of the original: accuracy, updates and CPU seconds.

Each seed prunes and trains anew, with the steps' default settings unless options change them. The scored splits are not
used for any choice. Predictions are computed once for all seeds, and their time counts for each. CPU seconds include
all threads and child processes. Needs `edgekd[train]`.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import training
from common import SPLITS
from frame import Blocks, Document, Option, cell, claim, claims_table, head, main, table, versions_of
from training import DEVICE, SEEDS, Trainings, Way

from edgekd.compress.steps import Prune, Recover

WHOLE, PRUNED, RECOVERED = "as it was", "pruned", "pruned, then recovered"
MOST_CPU_SECONDS = 240.0
"""Goal: CPU seconds of a recovery, including the teacher's predictions."""
LEAST_SHARES = {0.3: 0.97, 0.5: 0.92}
"""Goals: share of the original's mAP50-95 on the test split, by the share of the multiply-adds that is removed."""


class Bench(Trainings):
    """The original detector, pruned, and recovered.

    cpu_seconds: original: of its predictions; pruned: of pruning; recovered: of the predictions and the training.
    """

    asked = ("ratio", "epochs", "batch", "learning_rate", "image_size", "images", "device")
    numbers = ("parameters", "multiply_adds", "updates", "cpu_seconds")
    required = WHOLE

    def ways(self) -> Iterator[Way]:
        yield WHOLE, None, self._whole
        for seed in self.given.seeds:
            yield PRUNED, seed, partial(self._pruned, seed)
            yield RECOVERED, seed, partial(self._recovered, seed)

    def _path(self, method: str, seed: int | None = None) -> Path:
        name = {WHOLE: "whole", PRUNED: "pruned", RECOVERED: "recovered"}[method]
        return Path(self.given.work, name if seed is None else f"{name}-{seed}").with_suffix(".pt")

    @property
    def _cache(self) -> Path:
        return Path(self.given.work, "teacher.predictions")

    def _whole(self) -> Document:
        out = self._path(WHOLE)
        files = {"model": self.given.model, "out": out, "data": self.data, "cache": self._cache}
        took = self.job("whole", whole_job, size=self.given.image_size, **files)
        return self.with_scores(self.row(WHOLE, **took), out.with_suffix(".onnx"))

    def _pruned(self, seed: int) -> Document:
        out, step = self._path(PRUNED, seed), Prune(self.given.ratio, image_size=self.given.image_size, seed=seed)
        files = {"model": self._path(WHOLE), "out": out, "data": self.data, "size": self.given.image_size}
        sizes = self.job(out.stem, prune_job, step=training.step_table(step), **files)
        return self.with_scores(self.row(PRUNED, seed, **sizes), out.with_suffix(".onnx"))

    def _recovered(self, seed: int) -> Document:
        given, out = self.given, self._path(RECOVERED, seed)
        step = Recover(given.epochs, given.batch, given.learning_rate, seed=seed)
        files = {"teacher": self._path(WHOLE), "checkpoint": self._path(PRUNED, seed), "out": out, "data": self.data}
        known = {"step": training.step_table(step), "cache": self._cache, "size": given.image_size}
        took = self.job(out.stem, recover_job, **known, **files)
        whole, pruned = (
            next(row for row in self.rows if (row.method, row.seed) == each) for each in ((WHOLE, None), (PRUNED, seed))
        )
        took["cpu_seconds"] += whole.cpu_seconds
        sizes = {name: pruned[name] for name in ("parameters", "multiply_adds")}
        return self.with_scores(self.row(RECOVERED, seed, **sizes, **took), out.with_suffix(".onnx"))

    def result(self) -> dict[str, Any]:
        rows = training.by_method(self.rows)
        return {"claims": claims(rows, self.given.ratio) if RECOVERED in rows else []}


def cpu_seconds() -> float:
    return sum(os.times()[:4])


def whole_job(
    model: str, out: str, data: str, cache: str, size: int, device: str, threads: int, **_: Any
) -> dict[str, Any]:
    import torch
    from pruning import network_in, sizes_of

    from edgekd.core.progress import PlainProgress
    from edgekd.data.dataset import load_dataset
    from edgekd.detectors.cached_teacher import cached_predictions
    from edgekd.detectors.family import load_teacher
    from edgekd.detectors.torch_support import one_device

    torch.set_num_threads(threads)
    training.sized(model, Path(out), size)
    Path(cache).unlink(missing_ok=True)
    began = cpu_seconds()
    teacher, samples = (
        load_teacher(Path(out), True).to(one_device(device)),
        load_dataset(Path(data)).split("train").samples,
    )
    progress = PlainProgress(interval_s=30)
    cached_predictions(teacher, samples, (size, size), Path(cache), Recover().max_cache_bytes, progress)
    took = cpu_seconds() - began
    training.export_sized(out, Path(out).with_suffix(".onnx"), size)
    return {**sizes_of(network_in(out), size), "cpu_seconds": took}


def prune_job(
    step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int, **_: Any
) -> dict[str, Any]:
    import torch

    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.prune import prune_detector

    torch.set_num_threads(threads)
    began = cpu_seconds()
    done = prune_detector(Path(model), Path(out), Path(data), parse_table(Prune, dict(step), "step"), trust=True)
    took = cpu_seconds() - began
    training.export_sized(out, Path(out).with_suffix(".onnx"), size)
    return {"parameters": done.parameters[1], "multiply_adds": done.multiply_adds[1], "cpu_seconds": took}


def recover_job(
    step: Mapping[str, Any],
    teacher: str,
    checkpoint: str,
    out: str,
    data: str,
    cache: str,
    size: int,
    device: str,
    threads: int,
    **_: Any,
) -> dict[str, Any]:
    import torch

    from edgekd.core.progress import PlainProgress
    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.recover import recover_detector

    torch.set_num_threads(threads)
    state = Path(out).with_suffix(".training")
    state.unlink(missing_ok=True)
    began = cpu_seconds()
    settings = parse_table(Recover, dict(step), "step")
    progress = PlainProgress(interval_s=30)
    files = (Path(checkpoint), Path(teacher), Path(out), Path(data), settings, Path(cache), state)
    done = recover_detector(*files, trust=True, device=device, progress=progress)
    took = cpu_seconds() - began
    state.unlink()
    training.export_sized(out, Path(out).with_suffix(".onnx"), size)
    return {"updates": done.updates, "cpu_seconds": took}


def claims(rows: Mapping[str, list[Document]], ratio: float) -> list[dict[str, Any]]:
    share = training.mean_score(rows[RECOVERED], "test") / training.mean_score(rows[WHOLE], "test")
    seconds = training.mean(rows[RECOVERED], "cpu_seconds") or 0.0
    most = f"at most {MOST_CPU_SECONDS:.0f} CPU seconds for predictions and training"
    found = [claim(most, seconds, seconds <= MOST_CPU_SECONDS)]
    if least := LEAST_SHARES.get(ratio):
        text = f"at least {least:.0%} of the whole detector's mAP50-95 on test"
        found.insert(0, claim(text, share, share >= least))
    return found


def page(found: Document) -> Blocks:
    yield from head("Recovery of a pruned detector without labels", found)
    yield """\
Means over the seeds; in brackets the lowest and the highest. Recovered: trained beside cached predictions of the
detector as it was. CPU seconds: of those predictions, computed once for all seeds; of pruning; of the predictions and
the training together."""
    yield training.epochs_line(found)
    columns = " | ".join(f"{split} mAP50-95" for split in SPLITS)
    lines = []
    for method, rows in training.by_method(found.rows).items():
        sizes = [cell(training.mean(rows, name), ".3g", unit=10**power) for name, power in SIZES]
        counted = [cell(training.mean(rows, name), form) for name, form in (("updates", ".0f"), ("cpu_seconds", ".0f"))]
        lines.append(" | ".join([method, training.seeds_of(rows), *sizes, *counted, training.spreads(rows)]))
    yield table(f"how | seeds | M parameters | G multiply-adds | updates | CPU seconds | {columns}", lines)
    yield from training.failures(found)
    yield "## Goals"
    yield claims_table(found.claims)
    yield f"- {versions_of(found.packages.get('edgekd', {}), ('ultralytics', 'torch', 'torch-pruning'))}"


SIZES = (("parameters", 6), ("multiply_adds", 9))
"""Sizes of a network, and the power of ten of the unit that the page uses."""
DEFAULT = Recover()

if __name__ == "__main__":
    options = (
        *training.options("recovery", "what is pruned", epochs=DEFAULT.epochs, batch=DEFAULT.batch),
        Option("--learning-rate", DEFAULT.learning_rate),
        Option("--ratio", 0.5, "share of the multiply-adds to remove"),
        SEEDS,
        DEVICE,
    )
    main(Bench.run, page, *options, holds=training.none_failed)
