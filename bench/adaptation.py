"""Measure how much of the accuracy lost to fog, noise, low light and blur a variant regains (`edgekd adapt`).

The scored split is not used for any choice. Finished rows are kept in `--work`. Needs `edgekd[train]`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
from common import HERE, Detector, exported
from corruptions import CORRUPTIONS, SEVERITIES, corrupted
from frame import IMAGES, Blocks, Document, FinishedRows, Given, Option, Result, cell, head, main, note, table

from edgekd import commands
from edgekd.commands.adapt import FITTED, JUDGED, LOOKED, adapt_graph
from edgekd.compress import quantization
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import CompressError
from edgekd.data import domain_shift
from edgekd.data.dataset import load_dataset
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.detectors.ultralytics.detector import resize_detector

MODELS = ("yolo11n-ppe.pt=ppe=val", "yolo11n.pt=coco256=val")
CALIBRATED = 64  # images that the detector is calibrated on
WANTED = 0.5  # goal: mean share of the lost mAP50-95 that is regained at severity WANTED_AT
WANTED_AT = 3
CLEAN_LOSS = 0.005  # goal: largest loss of mAP50-95 on clean images
SOURCES = (commands.adapt, quantization.adapt, quantization.reconstruct, quantization.quantize, domain_shift)
"""Modules that determine the results. If one of them changes, finished rows are not reused."""


@dataclass(frozen=True)
class Case:
    """A quantized detector with its known images, the frames to adapt to, and the scored split."""

    name: str
    detector: Detector
    known: Split
    frames: Split
    scored: Split


def case_of(given: Given, name: str) -> Case:
    """Return the detector and data of `FILE.pt=DATA=SPLIT`. An existing INT8 graph in `--work` is reused."""
    model, data, split = name.split("=")
    dataset = load_dataset(given.shared / "data" / data)
    train = dataset.split("train").samples
    half = min(len(train) // 2, FITTED + JUDGED)
    step = len(train) // (2 * half)  # evenly spaced: neighbours in the split may be of one scene
    known, frames = train[::step][0 : 2 * half : 2], train[::step][1 : 2 * half : 2][:LOOKED]
    folder = given.work / name.replace("=", "-")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, floating, graph = folder / model, folder / "float.onnx", folder / "int8.onnx"
    resize_detector(given.shared / "models" / model, given.size, checkpoint)
    exact = exported(checkpoint, floating)
    if not graph.is_file():
        exact.quantized(graph, exact.frames(sample.image for sample in known[:CALIBRATED]))
    scored = Split(split, dataset.split(split).samples[: given.images])
    return Case(name, Detector(graph, exact.spec), Split("known", known), Split("frames", frames), scored)


def seen(split: Split, folder: Path, kind: str, severity: int, seed: int) -> Split:
    """Return the split with its images corrupted. Images that already exist in `folder` are not written again."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, (sample, image) in enumerate(ReadableImages(split.samples)):
        file = folder / f"{number:04}.png"
        if not file.is_file():
            write_file(file, cv2.imencode(".png", corrupted(image, kind, severity, seed + number))[1].tobytes())
        samples.append(replace(sample, image=file))
    return Split(split.name, tuple(samples))


def row_of(case: Case, clean: float, kind: str, severity: int, work: Path) -> Document:
    """Return a row with mAP50-95 on clean and corrupted images, without and with the variant."""
    folder = work / f"{case.name.replace('=', '-')}-{kind.replace(' ', '-')}-{severity}"
    frames = seen(case.frames, folder / "frames", kind, severity, 0)
    scored = seen(case.scored, folder / "scored", kind, severity, 1_000_000)
    row = Document(case=case.name, corruption=kind, severity=severity, images=len(scored.samples), clean=clean)
    row.update(corrupted=case.detector.map50_95(scored))
    row.update(dict.fromkeys(("variant", "variant_clean", "seconds", "refused")))
    began = time.perf_counter()
    try:
        made = adapt_graph(case.detector.graph, folder / "variant.onnx", case.detector.spec, case.known, frames)
    except CompressError as error:
        return Document(row, refused=str(error))
    row.update(seconds=round(time.perf_counter() - began, 1))
    variant = Detector(made.graph, case.detector.spec)
    return Document(row, variant=variant.map50_95(scored), variant_clean=variant.map50_95(case.scored))


def rows_of(given: Given, kept: FinishedRows) -> Iterator[Document]:
    finished = {(row.case, row.corruption, row.severity): row for row in kept.rows}
    for name in given.models:
        keys = [(name, kind, severity) for severity in given.severities for kind in given.corruptions]
        if any(key not in finished for key in keys):
            case = case_of(given, name)
            clean = case.detector.map50_95(case.scored)
        for key in keys:
            if key not in finished:
                row = row_of(case, clean, *key[1:], given.work)
                kept.add(row)
                finished[key] = row
                note(key, row.refused or f"{row.corrupted:.4f} to {row.variant:.4f}, {share(row) or 0:+.0%} regained")
            yield finished[key]


def share(row: Document) -> float | None:
    """Return the regained share of the lost mAP50-95: 0 if no variant was made, None if nothing was lost."""
    lost = row.clean - row.corrupted
    if lost <= 0:
        return None
    return 0.0 if row.variant is None else float((row.variant - row.corrupted) / lost)


def mean_share(rows: Sequence[Document], severity: int) -> float | None:
    """Return the mean of `share` over the rows of a severity that lost accuracy; None if there are none."""
    found = [value for row in rows if row.severity == severity and (value := share(row)) is not None]
    return sum(found) / len(found) if found else None


def page(found: Document) -> Blocks:
    yield from head("Accuracy that variants for other conditions regain", found)
    yield f"""\
mAP50-95 in INT8 at {found.size} pixels. Clean, corrupted: of the detector as it was; variant: made of
{LOOKED} unlabelled frames under the corruption and {FITTED + JUDGED} training images (half of the split,
where it has fewer), on the corrupted split, and on the split as it is. In fine weather a camera runs the
detector as it was, so what switching loses there is 0."""
    yield table(
        "detector | corruption | clean | corrupted | variant | regained | variant, clean | seconds",
        (
            f"{row.case.replace('=', ', ')} | {row.corruption}, {row.severity} | {row.clean:.4f} | "
            f"{row.corrupted:.4f} | {cell(row.variant, '.4f', 'refused')} | {cell(share(row), '+.0%', '-')} | "
            f"{cell(row.variant_clean, '.4f', '-')} | {cell(row.seconds, '.0f', '-')}"
            for row in found.rows
        ),
    )
    yield "\n".join(
        f"Severity {severity}: {value:.0%} of what was lost is regained, mean of the rows in which something was."
        for severity in found.severities
        if (value := mean_share(found.rows, severity)) is not None
    )
    yield f"Goals: {WANTED:.0%} at severity {WANTED_AT} on average, and clean accuracy within {CLEAN_LOSS:.1%}."


def run(given: Given) -> Result:
    sources = [file_sha256(Path(str(module.__file__)))[:16] for module in SOURCES]
    settings = {"size": given.size, "images": given.images, "edgekd": sources}
    rows = list(rows_of(given, FinishedRows(given.work / "rows.json", settings, given.threads)))
    return {"rows": rows}


if __name__ == "__main__":
    options = (
        Option("--models", MODELS, metavar="FILE.pt=DATA=SPLIT"),
        Option("--severities", SEVERITIES),
        Option("--corruptions", tuple(CORRUPTIONS)),
        Option("--size", 640, "side of the input in pixels"),
        IMAGES,
        Option("--work", HERE.parent / "runs" / "adaptation"),
    )
    main(run, page, *options, holds=lambda found: (mean_share(found.rows, WANTED_AT) or 0.0) >= WANTED)
