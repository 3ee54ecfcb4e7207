"""The stages that train: a student beside its teacher, and a quantized graph beside its float detector."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekd.canonical import json_sha256
from edgekd.data.dataset import Dataset
from edgekd.detectors import Detector
from edgekd.spec import Distill, QuantAwareDistill
from edgekd.stages import CACHE, GRAPH, PLAN, STUDENT, TOOLS, VERSION, Stages, tool_versions
from edgekd.store import Stage


def distill(
    stages: Stages, step: Distill, teacher: Path, dataset: Dataset, trust: bool = False, device: str | None = None
) -> Stage:
    """The student, in the checkpoint STUDENT. A training that was killed goes on when it is asked for again.

    device: where it is trained, which is no input. Results: `epochs`, `losses` and `weights` of each epoch by name,
    `parameters`, `teacher_parameters`, `bytes`.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        from edgekd.detectors.ultralytics_distill import distill_student

        out = folder / STUDENT
        done = distill_student(teacher, out, dataset.source, step, state, trust, device, stages.progress)
        return {
            "bytes": out.stat().st_size,
            "epochs": done.epochs,
            "losses": _rounded(done.losses),
            "weights": _rounded(done.weights),
            "parameters": done.parameters,
            "teacher_parameters": done.teacher_parameters,
        }

    named = Path(step.student or "")
    inputs = {
        "teacher": stages.sha256(teacher),
        "student": stages.sha256(named) if named.is_file() else step.student,
        "train": stages.fingerprint(dataset.split("train")),
        "classes": list(dataset.classes),
        "step": {name: value for name, value in asdict(step).items() if name != "student"},
    }
    known = [inputs, VERSION["distill"], tool_versions(*TOOLS["distill"])]
    # Beside the stages, not in one: what a killed stage leaves is removed.
    state = stages.store.root / f"distill-{json_sha256(known)[:16]}.training"
    if stages.store.fresh:
        state.unlink(missing_ok=True)
    stage = stages.run("distill", inputs, work)
    state.unlink(missing_ok=True)
    return stage


def quant_aware_distill(
    stages: Stages,
    step: QuantAwareDistill,
    detector: Detector,
    graph: Stage,
    dataset: Dataset,
    trust: bool = False,
    tensorrt: str | None = None,
) -> Stage:
    """The quantized graph with weights trained beside its float detector, on the training split.

    Results: as `quantize`, without what training changes; `epochs`, and `losses`: of each epoch, by name.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        from edgekd.compress.qdq import read_layers
        from edgekd.detectors.ultralytics_trainer import distill_quantized
        from edgekd.formats.calibration_cache import from_text, to_text

        source, out = graph.path / GRAPH, folder / GRAPH
        done = distill_quantized(detector.path, source, out, dataset.source, step, trust, stages.progress)
        if tensorrt:
            pairs = zip(read_layers(source), read_layers(out), strict=True)
            # Tensors that share a scale have one number, before as after.
            changed = {old.input_scale: new.input_scale for old, new in pairs}
            scales = from_text((graph.path / CACHE).read_text("ascii"))
            trained = {name: changed.get(scale) or scale for name, scale in scales.items()}
            (folder / CACHE).write_text(to_text(trained, tensorrt), "ascii")
        if PLAN in graph.files:
            shutil.copyfile(graph.path / PLAN, folder / PLAN)
        kept = {name: graph.results[name] for name in ("detector", "opset", "layers", "forms")}
        return {**kept, "bytes": out.stat().st_size, "epochs": done.epochs, "losses": _rounded(done.losses)}

    inputs = {
        "graph": graph.sha256,
        "checkpoint": stages.sha256(detector.path),
        "train": stages.fingerprint(dataset.split("train")),
        "step": asdict(step),
        "tensorrt": tensorrt,
    }
    return stages.run("quant_aware_distill", inputs, work)


def _rounded(epochs: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in epochs]
