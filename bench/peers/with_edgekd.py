"""edgekd's own rows: what its recipes `ptq` and `mixed` do to a graph."""

from __future__ import annotations

# edgekd imports these when it needs them; nobody's imports are counted.
import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import scipy.linalg  # noqa: F401
from adapter import Job, run

from edgekd.builds.recipe import Quantize, load_recipe
from edgekd.compress.quantization.mixed_precision import measure_costs, plan_for
from edgekd.compress.quantization.quantize import quantize
from edgekd.core.formats.packed_graph import pack


def edgekd(job: Job) -> None:
    """`--method`: nothing for `ptq`, or how often the packed graph of `mixed` must go into the float file."""
    (step,) = load_recipe("mixed" if job.method else "ptq").steps
    assert isinstance(step, Quantize)
    if not job.method:
        quantize(job.model, job.out, job.batches(), step)
        return
    most = limit = job.model.stat().st_size // int(job.method)
    costs = measure_costs(job.model, list(job.batches()), step)
    while True:
        quantize(job.model, job.out, job.batches(), step, plan_for(costs, limit).forms)
        over = len(pack(job.out.read_bytes())) - most
        if over <= 0:
            return
        limit -= over


if __name__ == "__main__":
    run(edgekd)
