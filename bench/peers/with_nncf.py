"""NNCF's post-training quantization of an ONNX model, preset `mixed`: symmetric weights, asymmetric activations."""

from __future__ import annotations

import nncf
import numpy as np
import onnx
from adapter import Job, run


def with_nncf(job: Job) -> None:
    """All frames, everything else at its default."""
    name = job.input_name()
    frames = nncf.Dataset(job.frames, lambda file: {name: np.load(file)})
    quantized = nncf.quantize(
        onnx.load(job.model), frames, preset=nncf.QuantizationPreset.MIXED, subset_size=len(job.frames)
    )
    onnx.save(quantized, job.out)


if __name__ == "__main__":
    run(with_nncf)
