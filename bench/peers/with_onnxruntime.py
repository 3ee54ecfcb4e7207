"""ONNX Runtime's static quantization: INT8 convolutions, min-max ranges, one weight scale per channel."""

from __future__ import annotations

import numpy as np
from adapter import Job, run
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static


class Frames(CalibrationDataReader):  # type: ignore[misc]
    """The job's frames, as ONNX Runtime asks for them."""

    def __init__(self, job: Job) -> None:
        self._batches = job.batches()
        self._input = job.input_name()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next frame; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {self._input: batch}


def onnxruntime(job: Job) -> None:
    """`--method`: activations `symmetric`, as TensorRT wants them, or `asymmetric`, ONNX Runtime's default."""
    quantize_static(
        job.model,
        job.out,
        Frames(job),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=job.excluded(),
        extra_options={"ActivationSymmetric": job.method == "symmetric"},
    )


if __name__ == "__main__":
    run(onnxruntime)
