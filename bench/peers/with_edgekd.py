"""edgekd's own row: what the recipe `ptq` does to a graph."""

from __future__ import annotations

from adapter import Job, run

from edgekd.compress.quantize import quantize
from edgekd.spec import load_recipe


def edgekd(job: Job) -> None:
    """`--method`: how ranges are found, where it is not as the recipe says."""
    (step,) = load_recipe("ptq").steps
    quantize(job.model, job.out, job.batches(), job.method or step.ranges, step.min_snr_db)


if __name__ == "__main__":
    run(edgekd)
