"""edgekd's own row: what the recipe `ptq` does to a graph."""

from __future__ import annotations

from adapter import Job, run

from edgekd.compress.quantize import quantize


def edgekd(job: Job) -> None:
    """`--method`: how ranges are found, `mse` (the recipe's) or `entropy`."""
    quantize(job.model, job.out, job.batches(), job.method)


if __name__ == "__main__":
    run(edgekd)
