"""Fixtures of report tests: a full report with synthetic numbers and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekd.builds.analyse import analysis_from
from edgekd.core.detection.types import Detections
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.evaluation.analysis.matching import Frame, compare
from edgekd.evaluation.analysis.times import LayerTimes
from edgekd.evaluation.analysis.types import Analysis, FrameAttention, GraphSimilarity, LayerAnalysis, LayerAttention
from edgekd.evaluation.report.html import render
from edgekd.evaluation.report.types import (
    BeforeAfter,
    BudgetRow,
    ClassRow,
    FrameLatency,
    LayerRow,
    Report,
    SamplePicture,
    SizeRow,
    StageRow,
    Training,
)

NAMES = ("helmet", "no-helmet", "no-vest", "person", "vest")


def latency(
    label: str, median: float, engine: str = "ONNX Runtime 1.23, 2 threads", basis: str = "stand-in"
) -> FrameLatency:
    """Return 1000 timings with a long tail, as on a busy host."""
    samples = median * np.random.default_rng(7).gamma(40.0, 1 / 40.0, 1000)
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    parts = (0.12 * median, 0.8 * median, 0.08 * median)
    return FrameLatency(
        label, engine, basis, tuple(samples), *parts, p50, p90, p99, samples.mean(), 1000 / samples.mean()
    )  # type: ignore[arg-type]


def picture(title: str, seed: int) -> SamplePicture:
    """Return a noisy gradient at 1280 x 720 with a dozen boxes, some at the edge of the frame."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(40, 200, 1280, dtype=np.float32)
    image = np.clip(slope[None, :, None] + rng.normal(0, 12, (720, 1280, 3)), 0, 255).astype(np.uint8)
    corner = rng.uniform((0, 0), (1100, 600), (12, 2))
    truth = np.hstack([corner, corner + rng.uniform(40, 180, (12, 2))]).astype(np.float32)
    truth[0] = (0, 0, 120, 90)
    scores = np.linspace(0.96, 0.1, 12, dtype=np.float32)
    classes = rng.integers(0, len(NAMES), 12)
    moved = (truth + rng.normal(0, 6, truth.shape)).astype(np.float32)
    return SamplePicture(
        title, image, truth, Detections(truth, scores, classes), Detections(moved, scores - 0.03, classes)
    )


@pytest.fixture(scope="session")
def full_report() -> Report:
    """A report with every section, and two pictures."""
    layers = tuple(
        LayerRow(
            f"/model.{i}/cv{i % 3}/conv/Conv",
            "Conv",
            (16 * (i + 1), 16, 3, 3),
            *stored,
            9216 * (i + 1),
            9216 * (i + 1) // d,
            error_share=None if stored == ("float32",) else 0.02 if i else 0.5,
        )
        for i in range(30)
        for stored, d in [((("int8",), 4) if i < 26 else (("float32",), 1))]
    )
    return Report(
        title="yolo11n for Jetson AGX Xavier",
        model="yolo11n.pt",
        target="Jetson AGX Xavier 32 GB (JetPack 5.1, TensorRT 8.5)",
        recipe="ptq",
        map50_95=BeforeAfter(0.4512, 0.4463),
        map50=BeforeAfter(0.6034, 0.6011),
        bytes=BeforeAfter(10_742_103, 2_914_220),
        bundle_bytes=3_405_120,
        bundle_limit=12_000_000,
        images=128,
        stages=(
            StageRow("load", 1.84, 5_613_764, None, None, cached=True),
            StageRow("export", 6.2, 10_742_103, 0.4512, 0.6034, note="opset 17, 640 × 640, checked against the source"),
            StageRow("calibrate", 41.3, None, None, None, note="128 training images, entropy"),
            StageRow("quantize", 3.1, 2_914_220, 0.4463, 0.6011, note="INT8 in Q/DQ; 9 layers kept in float"),
            StageRow("compile", None, None, None, None, note="deferred to install: the engine is made on the camera"),
            StageRow("benchmark", 22.0, None, None, None),
            StageRow("pack", 0.08, 3_405_120, None, None),
        ),
        budget=(
            BudgetRow("bundle size", "at most 12 MB", "3.41 MB", True, "measured"),
            BudgetRow("accuracy kept", "at least 98 %", "98.9 %", True, "measured"),
            BudgetRow("frame rate", "at least 60 FPS", "47.1 FPS", None, "stand-in", timed=True),
        ),
        classes=tuple(ClassRow(n, 40 + 97 * i, 0.62 - 0.07 * i, 0.60 - 0.06 * i) for i, n in enumerate(NAMES)),
        sizes=(SizeRow("small", 0.211, 0.198), SizeRow("medium", 0.482, 0.479), SizeRow("large", 0.641, 0.643)),
        layers=layers,
        latencies=(latency("before", 38.2), latency("after", 21.1)),
        class_names=NAMES,
        pictures=(picture("Frame 1", 1), picture("Frame 2", 2)),
        provenance={
            "command": "edgekd build yolo11n.pt --data site.yaml --target xavier",
            "model sha256": "9f2b" * 16,
            "calibration set sha256": "07ac" * 16,
            "seed": "0",
            "edgekd": "0.1.0",
        },
        notes=("2 of 128 images could not be read and were skipped: yard_0031.jpg, yard_0077.jpg",),
    )


def changed_frames(folder: Path, count: int = 8) -> tuple[list[Frame], list[Sample]]:
    """Return noisy frames in files, with detections of two networks: objects lost, gained, confused, imagined."""
    rng = np.random.default_rng(3)
    frames, samples = [], []
    for at in range(count):
        shown = picture(f"frame {at}", at)
        keep = rng.random(12) > 0.25
        truth = Truth(shown.truth, shown.before.classes, np.zeros(12, bool))
        kinds = np.where(rng.random(12) > 0.9, 0, shown.before.classes)
        scores = np.sort(np.clip(shown.before.scores + rng.normal(0, 0.2, 12), 0.02, 1))[::-1].astype(np.float32)
        before = Detections(shown.truth[keep], shown.before.scores[keep], shown.before.classes[keep])
        frames.append(Frame(truth, before, Detections(shown.after.boxes, scores, kinds)))
        samples.append(Sample(folder / f"frame-{at:02}.jpg", truth))
        cv2.imwrite(str(samples[-1].image), shown.image)
    return frames, samples


@pytest.fixture(scope="session")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """An analysis of detections in a few compared frames."""
    frames, samples = changed_frames(tmp_path_factory.mktemp("frames"))
    thresholds = (0.3,) * len(NAMES)
    return analysis_from(compare(frames, thresholds), samples, NAMES, thresholds)


def inside_of(layers: Sequence[LayerRow]) -> LayerAnalysis:
    """Return a plausible analysis of these layers."""
    rng = np.random.default_rng(5)
    us = {row.name: 10 + 90 * float(rng.random()) for row in layers}
    alike = {row.output: 1 - float(rng.random()) ** 4 for row in layers[1:]}
    shade = np.tile(np.linspace(0, 255, 240, dtype=np.uint8)[None, :, None], (135, 1, 3))
    shown = (
        LayerAttention("/model.16/cv2/conv/Conv_output_0", shade, shade[:, ::-1], -1.0),
        LayerAttention("neck", shade, None, None),
    )
    return LayerAnalysis(
        frames=16,
        compared=(GraphSimilarity("given", "float", alike), GraphSimilarity("float", "shipped", alike)),
        times=tuple(LayerTimes("predicted", f"Jetson AGX Xavier, {word}", us, 41.5) for word in ("fp16", "int8")),  # type: ignore[arg-type]
        attention=(FrameAttention("frame-03.jpg", shade, shown),),
    )


@pytest.fixture(scope="session")
def analysed_report(full_report: Report, analysis: Analysis) -> Report:
    """The full report with every section of an analysis, and a training of five epochs."""
    layers = tuple(replace(row, output=f"{row.name}_output_0") for row in full_report.layers)
    losses = tuple({"box_loss": 3.0 / (at + 1), "features": 0.9 - 0.1 * at} for at in range(5))
    weights = tuple({"features": 0.4 + 0.1 * at, "teacher": 1 - 0.2 * at} for at in range(5))
    training = (Training("distill", losses, weights), Training("quant_aware_distill", ({"boxes": 0.5},)))
    inside = inside_of(layers)
    return replace(
        full_report, layers=layers, analysis=analysis, inside=inside, training=training, missing=("the weather",)
    )


@pytest.fixture(scope="session")
def analysed_html(analysed_report: Report) -> str:
    """The HTML page of that report, cached because drawing its pictures takes long."""
    return render(analysed_report)
