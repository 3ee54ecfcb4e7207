"""Files of `edgekd bench` and `edgekd predict`: every sample as CSV, and pages with charts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.atomic_files import write_file
from edgekd.core.errors import SpecError
from edgekd.evaluation.report.bench_text import PARTS

if TYPE_CHECKING:
    from edgekd.core.benchmark import Timing
    from edgekd.evaluation.bench_result import BenchResult
    from edgekd.hardware.predict.result import PredictResult

    Timings = Mapping[tuple[str, str], Timing]

COLUMNS = ("side", "state", "frame", "start_s", *(f"{part}_ms" for part in PARTS), "total_ms")


def write_csv(file: Path, timings: Timings) -> None:
    """Write every sample as a line: seconds since the first, and milliseconds. Raises SpecError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (side, state), timing in timings.items():
        writer.writerows((side, state, frame, *row) for frame, row in enumerate(_rows(timing, state)))
    write_file(file, text.getvalue().encode("utf-8"))


def write_page(file: Path, title: str, bench: BenchResult) -> None:
    """Write a page with the numbers and their charts. Raises SpecError."""
    from edgekd.evaluation.report.bench import render

    write_file(file, render(title, bench).encode("utf-8"))


def write_prediction(file: Path, prediction: PredictResult) -> None:
    """Write a page with a prediction and its roofline. Raises SpecError."""
    from edgekd.evaluation.report.prediction import render

    write_file(file, render(prediction).encode("utf-8"))


def require_place(*files: Path | None) -> None:
    """Raise SpecError for a file that could not be written. Called before anything is measured."""
    for file in files:
        if file is not None and (not file.parent.is_dir() or file.is_dir()):
            found = "a folder" if file.is_dir() else "no such folder"
            raise SpecError(f"{file}: cannot be written", expected="a file in a folder that is there", found=found)


def _rows(timing: Timing, state: str) -> Iterator[list[str]]:
    parts = [timing.decode_ms, timing.preprocess_ms, timing.inference_ms, timing.postprocess_ms]
    if state == "engine":  # has no other parts
        parts = [None, None, timing.inference_ms, None]
    for frame in range(len(timing.total_ms)):
        values = [None if part is None else part[frame] for part in parts]
        start = f"{timing.starts_s[frame]:.6f}"
        yield [start, *("" if ms is None else f"{ms:.4f}" for ms in values), f"{timing.total_ms[frame]:.4f}"]
