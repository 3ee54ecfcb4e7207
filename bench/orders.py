"""The order of the compressions: what a detector is worth after the same ones, run in different orders.

Half of the multiply-adds are pruned, weights go to INT8, and what is left trains for as many epochs beside the detector
that was given: before it is quantized, afterwards as it will run, or afterwards with the formats chosen before pruning.
Every row is one `edgekd build` with a recipe of its own; what is scored is the bundle, on a split that no build saw.

    python bench/orders.py [--model TRAINED.pt] [--epochs N] [--image-size N] [--seeds N ...]

A row that is finished is kept in `--work`, and `--out` is written again after each: what was cut goes on where it was.
The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, SPLITS, JobError, Resumable, conditions_lines, table, use_cores, write_pair
from distillation import sized

WHOLE = "as it was, INT8"
TRAINING = ("distill", "quant_aware_distill")
"""The stages that train."""
RATE = 1e-3
"""How far a quantized weight moves in a step at most: more than by default, as half of the channels are gone."""


def orders(given: argparse.Namespace, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The steps of each recipe, by its name."""
    size = {"image_size": given.image_size, "seed": seed}
    prune = {"kind": "prune", "ratio": given.ratio, "images": given.gradient_images, **size}
    train = {"epochs": given.epochs, "batch": given.batch, **size}
    quantize = {"kind": "quantize"}
    aware = {"kind": "quant_aware_distill", "learning_rate": RATE, **train}
    distill = {"kind": "distill", "warmup_epochs": min(1.0, given.epochs / 4), "close_mosaic": given.epochs // 4}
    return {
        "prune, distill, quantize": [prune, {**distill, **train}, quantize],
        "prune, quantize, train as it runs": [prune, quantize, aware],
        "quantize, prune, train as it runs": [quantize, prune, aware],
    }


@dataclass(frozen=True)
class Row:
    """One bundle. seconds: of training; predicted_ms: of a frame on the target."""

    method: str
    seed: int | None = None
    bundle_bytes: int | None = None
    seconds: float | None = None
    predicted_ms: float | None = None
    map50_95: Mapping[str, float] = field(default_factory=dict)
    map50: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


class Bench(Resumable[Row]):
    """One run: what was asked, the folder in which it goes on after a cut, and the rows it has."""

    asked = ("ratio", "epochs", "batch", "image_size", "images", "gradient_images", "target", "device")

    def run(self) -> Iterable[None]:
        """Every row that is not there yet; pauses after each."""
        if self.missing(WHOLE):
            self.add_made(WHOLE, None, partial(self._built, WHOLE, [{"kind": "quantize"}], None))
            yield
        for seed in self.given.seeds:
            for method, steps in orders(self.given, seed).items():
                if self.missing(method, seed):
                    self.add_made(method, seed, partial(self._built, method, steps, seed))
                    yield

    def _built(self, method: str, steps: Sequence[Mapping[str, Any]], seed: int | None) -> Row:
        name = "-".join(method.replace(",", "").split()) + ("" if seed is None else f"-{seed}")
        folder = self.given.work / name
        folder.mkdir(exist_ok=True)
        recipe, model = folder / "recipe.toml", folder / self.given.model.name
        recipe.write_text(recipe_toml(name, steps), "utf-8")
        sized(str(self.given.model), model, self.given.image_size)
        common = ("--data", self.data, "--json")
        # Its pickle was written anew here, by this script.
        asked = ("--target", self.given.target, "--recipe", recipe, "--out", folder / "build", "--trust-checkpoint")
        built = self._edgekd(name, "build", model, *asked, *common)
        bundle = Path(built["bundle"])
        scores = {split: self._edgekd(f"{name}-{split}", "eval", bundle, "--split", split, *common) for split in SPLITS}
        said = self._edgekd(f"{name}-predict", "predict", bundle, "--target", self.given.target, "--json")
        return Row(
            method,
            seed,
            bundle.stat().st_size,
            sum(stage["seconds"] for stage in built["stages"] if stage["name"] in TRAINING),
            said["latency_ms"],
            *({split: score[key] for split, score in scores.items()} for key in ("map50_95", "map50")),
        )

    def _edgekd(self, name: str, *arguments: object) -> dict[str, Any]:
        """What a command says. Raises JobError with its last line where it fails."""
        log = self.given.work / f"{name}.log"
        command = [sys.executable, "-m", "edgekd", *map(str, arguments)]
        with log.open("w", encoding="utf-8") as errors:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self._environment)
        if done.returncode:
            raise JobError(log.read_text("utf-8").strip().rsplit("\n", 1)[-1])
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def recipe_toml(name: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """A recipe as TOML: of the values that steps have here JSON's spelling is TOML's, too."""
    lines = [f'name = "{name}"']
    for step in steps:
        lines += ["[[steps]]", *(f"{key} = {json.dumps(value)}" for key, value in step.items())]
    return "\n".join(lines) + "\n"


def page(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    counts = found["images"]
    header = ["steps", "seeds", "bundle, MB", "training, s", *(f"{split} mAP50-95" for split in SPLITS)]
    header.append(f"{found['target']}, ms, predicted")
    cells = []
    for method in dict.fromkeys(row.method for row in rows if not row.error):
        mine = [row for row in rows if row.method == method and not row.error]
        line = [method, ", ".join(str(row.seed) for row in mine if row.seed is not None) or "–"]
        line += [_mean(mine, "bundle_bytes", 1e6), _mean(mine, "seconds")]
        cells.append([*line, *(_spread(mine, split) for split in SPLITS), _mean(mine, "predicted_ms")])
    return [
        *("# Orders of the compressions", "", f"`{found['command']}`", "", *_ABOUT, ""),
        f"{found['epochs']} epochs of {counts['train']} images of {found['image_size']} pixels; scored on "
        f"{counts['val']} (val) and {counts['test']} (test).",
        *("", *table(header, cells)),
        *(f"\n{row.method}, seed {row.seed}: {row.error}" for row in rows if row.error),
        *("", *conditions_lines(found)),
    ]


def _mean(rows: Sequence[Row], name: str, unit: float = 1.0) -> str:
    return f"{statistics.fmean(getattr(row, name) for row in rows) / unit:.3g}"


def _spread(rows: Sequence[Row], split: str) -> str:
    values = [row.map50_95[split] for row in rows]
    text = f"{statistics.fmean(values):.4f}"
    return text if len(values) < 2 else f"{text} ({min(values):.4f}..{max(values):.4f})"


_ABOUT = (
    "Each row is an `edgekd build`, and what is scored is its bundle. All train as many epochs on the same images,",
    "with the detector that was given as teacher; training a rounded network takes longer an epoch. Means over the",
    "seeds; in brackets the lowest and the highest. mAP: edgekd's scorer, ONNX Runtime's CPU provider.",
)


def write(bench: Bench, command: str) -> str:
    """Write what there is so far as JSON and Markdown; the page."""
    given = bench.given
    found = {
        "question": "in which order do pruning, quantization and training keep most?",
        "command": command,
        "images": {name: len(bench.split(name)) for name in ("train", *SPLITS)},
        **{name: getattr(given, name) for name in ("seeds", "target", "epochs", "image_size", "ratio")},
        **bench.conditions,
        "rows": [asdict(row) for row in bench.rows],
    }
    return write_pair(given.out, found, page(found, bench.rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="what is compressed")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the multiply-adds to remove")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="with splits train, val and test")
    parser.add_argument("--target", default="xavier")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--gradient-images", type=int, default=64, help="by which channels are chosen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--work", type=Path, default=Path("runs/orders"), help="logs and finished rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "orders.json")
    given = parser.parse_args()
    paths = {name: getattr(given, name).absolute() for name in ("model", "data", "work", "out")}
    return argparse.Namespace(**{**vars(given), **paths, "device": "cpu"})


def main() -> int:
    """0 when no row failed; else 1."""
    given = parse()
    use_cores(given.threads)
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    names = ("ratio", "target", "epochs", "batch", "image_size", "images", "gradient_images", "threads")
    asked = [f"--{n.replace('_', '-')} {value}" for n in names if (value := getattr(given, n)) is not None]
    command = (
        f"python bench/orders.py {' '.join(asked)} --model {given.model.name} --seeds {' '.join(map(str, given.seeds))}"
    )
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        bench = Bench(given, Path(scratch), Row)
        for _ in bench.run():
            page_so_far = write(bench, command)
        print(page_so_far)
    return 1 if any(row.error for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
