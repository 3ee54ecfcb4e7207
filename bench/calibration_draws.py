"""How much of an INT8 score is chance: several draws of calibration images, edgekd's `ptq` beside ModelOpt `entropy`.

A score on 128 images moves by several thousandths when weights are rounded a little differently, whoever rounds them.
So both tools quantize several times, each time calibrated on another draw of three quarters of the training images, the
same draw for both. What is compared are means over the draws, and of each draw with its counterpart.

    python bench/calibration_draws.py [--models M ...] [--draws 4]

The environment needs `edgekd[train]`; ModelOpt is installed into an environment of its own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, conditions, conditions_lines, copy_data, table, use_cores, write_results
from quantization_baselines import MODELOPT, RECIPE, Bench, Row, parser_of

SHARE = 0.75
"""Of the calibration frames, in each draw."""
KEEP, QUARTER = 0.995, 0.25


@dataclass(frozen=True)
class Drawn:
    """A graph quantized on one draw; None for the float graph."""

    draw: int | None
    row: Row


class Draws(Bench):
    """The two tools on several draws of the same frames."""

    def drawn(self, model: str, draws: int) -> Iterator[Drawn]:
        """The float graph, and a graph of each tool for each draw."""
        source, spec, written, exclude = self.begun(model)
        folder, frames = source.parent, sorted(written.iterdir())
        yield Drawn(None, self._scored(Row(model, "float32"), source, spec))
        for draw in range(draws):
            chosen = folder / f"draw-{draw}"
            chosen.mkdir()
            for at in np.random.default_rng(draw).permutation(len(frames))[: round(len(frames) * SHARE)]:
                (chosen / frames[at].name).symlink_to(frames[at])
            for method in (RECIPE, MODELOPT):
                graph = folder / "int8.onnx"
                done = self._quantize(Row(model, method.name), method, source, chosen, graph, exclude)
                yield Drawn(draw, done if done.error else self._scored(done, graph, spec))


def claims(found: Sequence[Drawn], split: str) -> list[dict[str, Any]]:
    """What must hold of the means."""
    lines: list[tuple[str, float, bool]] = []
    for model in dict.fromkeys(each.row.model for each in found):
        reference, ours, theirs = (_of(found, model, name) for name in ("float32", RECIPE.name, MODELOPT.name))
        kept = _mean(ours, split) / _mean(reference, split)
        ahead = _mean(ours, split) - _mean(theirs, split)
        took = {each.draw: each.row.seconds or 1 for each in theirs}
        quicker = statistics.fmean((one.row.seconds or 0) / took[one.draw] for one in ours if one.draw in took)
        lines += [
            (f"{model}: INT8 keeps at least 99.5 % of the float mAP50-95, mean of the draws", kept, kept >= KEEP),
            (f"{model}: INT8 is not below ModelOpt entropy, mean of the draws", ahead, ahead >= 0),
            (f"{model}: at most a quarter of ModelOpt entropy's time, mean of the draws", quicker, quicker <= QUARTER),
        ]
    return [{"claim": text, "found": value, "holds": holds} for text, value, holds in lines]


def _of(found: Sequence[Drawn], model: str, method: str) -> list[Drawn]:
    return [each for each in found if each.row.model == model and each.row.method == method and each.row.scores]


def _mean(found: Sequence[Drawn], split: str) -> float:
    return statistics.fmean(each.row.scores[split][0] for each in found)


def page(result: dict[str, Any], found: Sequence[Drawn], split: str) -> list[str]:
    """The result as Markdown."""
    cells = []
    for model in dict.fromkeys(each.row.model for each in found):
        reference = _mean(_of(found, model, "float32"), split)
        for method in (RECIPE.name, MODELOPT.name):
            mine = _of(found, model, method)
            scores = [each.row.scores[split][0] for each in mine]
            mean, apart = statistics.fmean(scores), statistics.stdev(scores)
            seconds = statistics.fmean(each.row.seconds or 0 for each in mine)
            spread = f"{mean:.4f} ± {apart:.4f} ({min(scores):.4f}..{max(scores):.4f})"
            cells.append([model, method, f"{reference:.4f}", spread, f"{mean / reference:.1%}", f"{seconds:.1f}"])
    marks = {True: "yes", False: "**no**"}
    held = [[each["claim"], f"{each['found']:.4f}", marks[each["holds"]]] for each in result["claims"]]
    header = ["", "how", "float32", "mean ± standard deviation (least..most)", "of float", "seconds"]
    return [
        *("# INT8 on several draws of calibration images", "", f"`{result['command']}`", "", *_ABOUT, ""),
        *table(header, cells),
        *("", "## What must hold", "", *table(["", "found", "holds"], held), "", *conditions_lines(result)),
    ]


_ABOUT = (
    "mAP50-95 on the split `val` of coco256, 128 images. Each draw is three quarters of the 128 training images, the",
    "same for both tools. Seconds: mean wall time from the float file to the INT8 file, imports not counted. Both give",
    "the same graph for the same images: what differs is which images they see.",
)


def main() -> int:
    """0 when every claim holds, else 1."""
    parser = parser_of(__doc__, RESULTS / "calibration_draws.json")
    parser.add_argument("--draws", type=int, default=4)
    given = parser.parse_args()
    use_cores(given.threads)
    command = f"python bench/calibration_draws.py --models {' '.join(given.models)} --draws {given.draws}"
    command += f" --images {given.images}" if given.images else ""
    result: dict[str, Any] = {"command": command, **conditions(given.threads)}
    found: list[Drawn] = []
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        work = Path(folder)
        data = copy_data(given.shared.absolute() / "data" / "coco256", work / "data", given.images)
        models = given.shared.absolute() / "models"
        bench = Draws(work, given.venvs.absolute(), models, data, ["val"], (RECIPE, MODELOPT), both_scorers=False)
        for model in given.models:
            found += bench.drawn(model, given.draws)
    result["rows"] = [{"draw": each.draw, **asdict(each.row)} for each in found]
    result |= {"claims": claims(found, "val"), "packages": bench.packages}
    write_results(given.out, result, page(result, found, "val"))
    return 0 if all(each["holds"] for each in result["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
