"""Measure how much of an INT8 score is chance: edgekd's `ptq` and ModelOpt `entropy` on several calibration sets.

A score on 128 images moves by several thousandths when weights are rounded a little differently. Needs `edgekd[train]`;
ModelOpt gets an environment of its own.
"""

import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from common import Detector
from frame import Blocks, Document, Given, Option, Result, claim, claims_hold, claims_table, head, main, table
from quantization_baselines import MODELOPT, OPTIONS, RECIPE, Bench, row_of

SHARE = 0.75  # of the calibration frames, in each draw
KEEP, QUARTER = 0.995, 0.25
SPLIT = "val"


class Draws(Bench):
    """The two tools on several draws of the same frames."""

    def drawn(self, model: str, draws: int) -> Iterator[Document]:
        """Yield the float graph with the draw None, and a graph of each tool for each draw."""
        source, written, exclude = self.begun(model)
        folder, frames = source.graph.parent, sorted(written.iterdir())
        yield Document(draw=None, **self.scored(row_of(model, "float32"), source))
        for draw in range(draws):
            chosen = folder / f"draw-{draw}"
            chosen.mkdir()
            for at in np.random.default_rng(draw).permutation(len(frames))[: round(len(frames) * SHARE)]:
                (chosen / frames[at].name).symlink_to(frames[at])
            for method in (RECIPE, MODELOPT):
                graph = folder / "int8.onnx"
                row = self.quantized(model, method, source.graph, chosen, graph, exclude)
                yield Document(draw=draw, **(row if row.error else self.scored(row, Detector(graph, source.spec))))


def claims(rows: Sequence[Document]) -> list[Result]:
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        reference, ours, theirs = (_of(rows, model, name) for name in ("float32", RECIPE.name, MODELOPT.name))
        kept, ahead = _mean(ours) / _mean(reference), _mean(ours) - _mean(theirs)
        took = {row.draw: row.seconds or 1 for row in theirs}
        quicker = statistics.fmean((row.seconds or 0) / took[row.draw] for row in ours if row.draw in took)
        text = "at most a quarter of ModelOpt entropy's time, mean of the draws"
        found += [
            claim(f"{model}: INT8 keeps at least 99.5 % of the float mAP50-95, mean of the draws", kept, kept >= KEEP),
            claim(f"{model}: INT8 is not below ModelOpt entropy, mean of the draws", ahead, ahead >= 0),
            claim(f"{model}: {text}", quicker, quicker <= QUARTER),
        ]
    return found


def _of(rows: Sequence[Document], model: str, method: str) -> list[Document]:
    return [row for row in rows if row.model == model and row.method == method and row.scores]


def _scores(rows: Sequence[Document]) -> list[float]:
    return [row.scores[SPLIT][0] for row in rows]


def _mean(rows: Sequence[Document]) -> float:
    return statistics.fmean(_scores(rows))


def page(found: Document) -> Blocks:
    yield from head("INT8 on several draws of calibration images", found)
    yield """\
mAP50-95 on the split `val` of coco256, 128 images. Each draw is three quarters of the 128 training images, the
same for both tools. Seconds: mean wall time from the float file to the INT8 file, imports not counted. Both give
the same graph for the same images: what differs is which images they see."""
    lines = []
    for model in dict.fromkeys(row.model for row in found.rows):
        reference = _mean(_of(found.rows, model, "float32"))
        for method in (RECIPE.name, MODELOPT.name):
            mine = _of(found.rows, model, method)
            scores, seconds = _scores(mine), statistics.fmean(row.seconds or 0 for row in mine)
            mean, apart = statistics.fmean(scores), statistics.stdev(scores)
            spread = f"{mean:.4f} ± {apart:.4f} ({min(scores):.4f}..{max(scores):.4f})"
            lines.append(f"{model} | {method} | {reference:.4f} | {spread} | {mean / reference:.1%} | {seconds:.1f}")
    yield table(" | how | float32 | mean ± standard deviation (least..most) | of float | seconds", lines)
    yield "## Requirements"
    yield claims_table(found.claims)


def run(given: Given) -> Result:
    bench = Draws(given, "coco256", [SPLIT], (RECIPE, MODELOPT), both=False)
    rows = [row for model in given.models for row in bench.drawn(model, given.draws)]
    return {"rows": rows, "claims": claims(rows), "packages": bench.packages}


if __name__ == "__main__":
    main(run, page, *OPTIONS, Option("--draws", 4), holds=claims_hold)
