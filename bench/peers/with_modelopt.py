"""NVIDIA ModelOpt's INT8 for ONNX, called as Ultralytics calls it for TensorRT 11."""

from __future__ import annotations

import numpy as np
from adapter import Job, run
from modelopt.onnx.quantization import quantize


def modelopt(job: Job) -> None:
    """`--method`: `max` (what Ultralytics asks for) or `entropy` (ModelOpt's default). All frames lie in memory."""
    quantize(
        str(job.model),
        quantize_mode="int8",
        calibration_data={job.input_name(): np.concatenate(list(job.batches()))},
        calibration_method=job.method,
        calibration_eps=["cpu"],
        nodes_to_exclude=list(job.exclude),
        output_path=str(job.out),
    )


if __name__ == "__main__":
    run(modelopt)
