"""Quantize one model with one tool, in the tool's own environment, and print time and memory.

    python adapter.py TOOL --model float.onnx --frames FOLDER --out int8.onnx [--method NAME] [--exclude NODE ...]

FOLDER holds the calibration frames, one float32 [1, 3, h, w] `.npy` each. The last line on stdout is a JSON object:
`seconds` (of the processor, from the float file to the quantized file, libraries already imported), `peak_bytes`
(largest resident memory of the process) and `packages` (version of everything installed beside the tool). An
environment has NumPy and its tool, neither edgekd nor PyTorch.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from own_cores import keep_to_own_cores


@dataclass(frozen=True)
class Job:
    """A model to quantize. `exclude`: regular expressions that match the names of nodes to leave in float."""

    model: Path
    frames: tuple[Path, ...]
    out: Path
    method: str
    exclude: tuple[str, ...]

    def batches(self) -> Iterator[np.ndarray]:
        """Return the calibration frames in order, float32 [1, 3, h, w], one in memory at a time."""
        return (np.load(frame) for frame in self.frames)

    def input_name(self) -> str:
        return str(onnx.load(self.model).graph.input[0].name)

    def excluded(self) -> list[str]:
        names = [node.name for node in onnx.load(self.model).graph.node]
        return [name for name in names if any(re.search(pattern, name) for pattern in self.exclude)]


Quantize = Callable[[Job], None]


def edgekd() -> Quantize:
    """edgekd's recipes `ptq` and `mixed`.

    `--method`: none for `ptq`; `unsmoothed` for `ptq` without smoothing of normalizations; a number for `mixed`, the
    factor by which the packed file is smaller than the float file.
    """
    # edgekd imports these on first use; no tool's imports are timed.
    import onnxruntime  # noqa: F401
    import scipy.linalg  # noqa: F401

    from edgekd.builds.recipe import load_recipe
    from edgekd.compress.quantization import smoothing
    from edgekd.compress.quantization.mixed_precision import measure_costs, plan_for
    from edgekd.compress.quantization.quantize import quantize
    from edgekd.compress.steps import Quantize as Step
    from edgekd.core.formats.packed_graph import pack

    def work(job: Job) -> None:
        (step,) = load_recipe("mixed" if job.method.isdigit() else "ptq").steps
        assert isinstance(step, Step)
        if not job.method.isdigit():
            smoothing.MAX_ERROR = 0.0 if job.method == "unsmoothed" else smoothing.MAX_ERROR
            quantize(job.model, job.out, job.batches(), step)
            return
        most = limit = job.model.stat().st_size // int(job.method)
        costs = measure_costs(job.model, list(job.batches()), step)
        while True:
            plan = plan_for(costs, limit)
            quantize(job.model, job.out, job.batches(), step, plan.forms, plan.steps)
            over = len(pack(job.out.read_bytes())) - most
            if over <= 0:
                return
            limit -= over

    return work


def modelopt() -> Quantize:
    """NVIDIA ModelOpt's INT8 for ONNX, called as Ultralytics calls it for TensorRT 11. All frames are in memory.

    `--method`: `max` (what Ultralytics asks for) or `entropy` (ModelOpt's default).
    """
    from modelopt.onnx.quantization import quantize

    return lambda job: quantize(
        str(job.model),
        quantize_mode="int8",
        calibration_data={job.input_name(): np.concatenate(list(job.batches()))},
        calibration_method=job.method,
        calibration_eps=["cpu"],
        nodes_to_exclude=list(job.exclude),
        output_path=str(job.out),
    )


def nncf() -> Quantize:
    """NNCF's preset `mixed`: symmetric weights, asymmetric activations; all frames, other settings at their default.

    `--method`: none, or `transformer` for the model type with which NNCF smooths activations.
    """
    import nncf

    def work(job: Job) -> None:
        name, count = job.input_name(), len(job.frames)
        frames = nncf.Dataset(job.frames, lambda file: {name: np.load(file)})
        options = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": count,
            "model_type": nncf.ModelType.TRANSFORMER if job.method else None,
            "ignored_scope": nncf.IgnoredScope(names=job.excluded()),
        }
        onnx.save(nncf.quantize(onnx.load(job.model), frames, **options), job.out)

    return work


def onnxruntime() -> Quantize:
    """ONNX Runtime's static quantization: INT8 convolutions, min-max ranges, one weight scale per channel.

    `--method`: activations `symmetric`, as TensorRT requires, or `asymmetric`, ONNX Runtime's default; `products`:
    symmetric, with matrix products in INT8, too.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, job: Job) -> None:
            self._batches, self._input = job.batches(), job.input_name()

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {self._input: batch}

    return lambda job: quantize_static(
        job.model,
        job.out,
        Frames(job),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"] if job.method == "products" else ["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=job.excluded(),
        extra_options={"ActivationSymmetric": job.method != "asymmetric"},
    )


def ultralytics() -> Quantize:
    """Ultralytics' own INT8 for `format=onnx`: the function behind `yolo export format=onnx quantize=8`."""
    from ultralytics.utils.export.onnx import onnx_int8_quantize

    # It expects batches; the job's frames are batches of one.
    return lambda job: onnx_int8_quantize(job.model, job.out, job.batches(), lambda batch: batch, job.input_name())


TOOLS = {tool.__name__: tool for tool in (edgekd, modelopt, nncf, onnxruntime, ultralytics)}


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Read from /proc: `getrusage` also counts the parent's memory at the fork.
    """
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=TOOLS)
    for name in ("--model", "--frames", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--method", default="")
    parser.add_argument("--exclude", action="append", default=[])
    given = parser.parse_args()
    keep_to_own_cores()
    quantize = TOOLS[given.tool]()
    frames = tuple(sorted(given.frames.glob("*.npy")))
    job = Job(given.model, frames, given.out, given.method, tuple(given.exclude))
    began = time.process_time()
    quantize(job)
    seconds = time.process_time() - began
    packages = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    print("\n" + json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "packages": packages}))


if __name__ == "__main__":
    main()
