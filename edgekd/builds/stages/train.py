"""The stages that train: a student beside its teacher, and a quantized graph beside its float detector."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.recipe import Distill, QuantAwareDistill
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import CACHE, GRAPH, LABELS, PLAN, TOOLS, VERSION, Frames, Stages, spec_of, tool_versions
from edgekd.core.canonical import canonical_json, json_sha256
from edgekd.core.errors import SpecError
from edgekd.data.dataset import unlabelled
from edgekd.data.labelling import Find, label, teacher_bands
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING
from edgekd.data.types import Dataset, Sample, Split
from edgekd.detectors import Detector, load
from edgekd.detectors.family import direct_detector, require_family, student_family
from edgekd.evaluation.evaluate import finder
from edgekd.hardware.target import EXPORT_OPSET


@dataclass(frozen=True)
class CacheRequest:
    """A calibration cache to write: for a version of TensorRT, measured on calibration frames."""

    tensorrt: str
    frames: Frames


def student_file(step: Distill) -> str:
    """The name of the file that a distillation leaves."""
    return f"student{student_family(step.student).suffix}"


def distill(
    stages: Stages, step: Distill, teacher: Path, dataset: Dataset, trust: bool = False, device: str | None = None
) -> Stage:
    """The student, in the file `student_file(step)`. A training that was killed goes on when it is asked for again.

    device: where it is trained, which is no input. Results: `epochs`, `losses` and `weights` of each epoch by name,
    `parameters`, `teacher_parameters`, `bytes`.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        out = folder / student_file(step)
        distill_student = student_family(step.student).capability("distill")
        done = distill_student(teacher, out, dataset.source, step, state, trust, device, stages.progress, frames)
        return {
            "bytes": out.stat().st_size,
            "epochs": done.epochs,
            "losses": _rounded(done.losses),
            "weights": _rounded(done.weights),
            "parameters": done.parameters,
            "teacher_parameters": done.teacher_parameters,
        }

    frames = teachers_labels(stages, step, teacher, dataset, trust) if step.unlabelled else ()
    inputs = {
        "teacher": stages.sha256(teacher),
        "student": step.student and stages.named(step.student),
        "train": stages.fingerprint(dataset.split("train")),
        "classes": list(dataset.classes),
        "unlabelled": stages.fingerprint(Split("unlabelled", frames)) if frames else None,
        "step": {name: value for name, value in asdict(step).items() if name not in ("student", "unlabelled")},
    }
    libraries = student_family(step.student).libraries
    known = [inputs, VERSION["distill"], tool_versions(*TOOLS["distill"], *libraries)]
    # Beside the stages, not in one: what a killed stage leaves is removed.
    state = stages.store.root / f"distill-{json_sha256(known)[:16]}.training"
    if stages.store.fresh:
        state.unlink(missing_ok=True)
    stage = stages.run("distill", inputs, work, libraries)
    state.unlink(missing_ok=True)
    return stage


def teachers_labels(
    stages: Stages, step: Distill, teacher: Path, dataset: Dataset, trust: bool = False
) -> tuple[Sample, ...]:
    """The readable frames of `unlabelled` with what the teacher sees in them, doubtful boxes as crowds.

    How sure it has to be is found on the training split. Raises SpecError for a teacher of other classes, DataError
    where a frame is also scored.
    """
    frames, train = unlabelled(Path(str(step.unlabelled))), dataset.split("train")
    for name in dataset.splits:
        if name != "train":
            stages.refuse_shared(frames, dataset.split(name))
    source, classes, finding = _labeller(stages, teacher, dataset, trust)
    _require_same_classes(dataset.classes, classes, step.same_classes)

    def work(folder: Path) -> Mapping[str, Any]:
        with finding as find:
            bands = teacher_bands(find, train, dataset.classes, step.keep, progress=stages.progress)
            found = {sample.image: sample.truth for sample in label(find, frames, bands, stages.progress).samples}
        rows = [[at, _told(found[s.image])] for at, s in enumerate(frames.samples) if s.image in found]
        (folder / LABELS).write_bytes(canonical_json(rows))
        scores = {"keep": bands.keep, "ignore": bands.ignore}
        finite = {name: [score if math.isfinite(score) else None for score in each] for name, each in scores.items()}
        return {"frames": len(rows), "objects": sum(int((~truth.crowd).sum()) for truth in found.values()), **finite}

    known = {"train": stages.fingerprint(train), "frames": stages.fingerprint(frames)}
    stage = stages.run("label", {**source, **known, "keep": step.keep}, work)
    rows = json.loads((stage.path / LABELS).read_bytes())
    return tuple(Sample(frames.samples[at].image, _truth(*told)) for at, told in rows)


def _labeller(
    stages: Stages, teacher: Path, dataset: Dataset, trust: bool
) -> tuple[dict[str, str], tuple[str, ...], AbstractContextManager[Find]]:
    """What a teacher is, by its hash, its classes, and what finds them in a frame: its float graph if it has one."""
    if (found := direct_detector(teacher, LABELLING, trust)) is not None:
        return {"checkpoint": stages.sha256(teacher)}, found.classes, nullcontext(found.find)
    graph = stages.export(load(teacher, trust_checkpoint=trust), None, dataset.classes, EXPORT_OPSET)
    spec = spec_of(graph)
    return {"graph": graph.sha256}, spec.classes, finder(graph.path / GRAPH, spec, LABELLING)


def _told(truth: Truth) -> list[Any]:
    return [truth.boxes.tolist(), truth.classes.tolist(), truth.crowd.tolist()]


def _truth(boxes: Any, classes: Any, crowd: Any) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), np.array(crowd, bool))


def same_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str]) -> bool:
    """Whether a teacher's class numbers mean those of the data; same: as of `shared_classes`. Raises SpecError."""
    from edgekd.compress.distillation.loss_terms import shared_classes

    return shared_classes(ours, theirs, same) == tuple((at, at) for at in range(max(len(ours), len(theirs))))


def _require_same_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str]) -> None:
    """A class that only one side knows would be held to be absent where nobody looked for it."""
    if not same_classes(ours, theirs, same):
        raise SpecError(
            "unlabelled frames: the teacher's classes are not those of the data",
            expected=", ".join(ours),
            found=", ".join(theirs),
            fix="pass a teacher of these classes in this order, or leave out unlabelled",
        )


def quant_aware_distill(
    stages: Stages,
    step: QuantAwareDistill,
    detector: Detector,
    graph: Stage,
    dataset: Dataset,
    trust: bool = False,
    cache_request: CacheRequest | None = None,
    teacher: Path | None = None,
) -> Stage:
    """The quantized graph with weights trained beside its float detector, or a teacher, on the training split.

    Results: as `quantize`, without what training changes; `epochs`, and `losses`: of each epoch, by name.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        from edgekd.compress.quantization.activation_scales import write_cache

        distill_quantized = require_family(detector.path).capability("quant_aware_distill")
        source, out = graph.path / GRAPH, folder / GRAPH
        done = distill_quantized(detector.path, source, out, dataset.source, step, trust, stages.progress, teacher)
        if PLAN in graph.files:
            shutil.copyfile(graph.path / PLAN, folder / PLAN)
        kept = {name: graph.results[name] for name in ("detector", "opset", "layers", "forms")}
        trained = {"epochs": done.epochs, "losses": _rounded(done.losses)}
        cache = None
        if cache_request:  # training moves activations, also those whose scales it keeps
            cache = write_cache(out, folder / CACHE, cache_request.frames.read, cache_request.tensorrt)
        return {**kept, "bytes": out.stat().st_size, **trained, "calibration_cache": cache}

    inputs = {
        "graph": graph.sha256,
        "checkpoint": stages.sha256(detector.path),
        "teacher": stages.sha256(teacher) if teacher else None,
        "train": stages.fingerprint(dataset.split("train")),
        "step": asdict(step),
        "cache": (cache_request.tensorrt, cache_request.frames.sha256) if cache_request else None,
    }
    return stages.run("quant_aware_distill", inputs, work, require_family(detector.path).libraries)


def _rounded(epochs: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in epochs]
