"""Ultralytics' own INT8 for `format=onnx`: the function behind `yolo export format=onnx quantize=8`."""

from __future__ import annotations

from adapter import Job, run
from ultralytics.utils.export.onnx import onnx_int8_quantize


def ultralytics(job: Job) -> None:
    """As it comes: it takes batches, which are the job's frames already."""
    onnx_int8_quantize(job.model, job.out, job.batches(), lambda batch: batch, job.input_name())


if __name__ == "__main__":
    run(ultralytics)
