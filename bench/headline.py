"""From a large detector to a small bundle by one command, beside doing it by hand with Ultralytics alone.

`edgekd build` gets the large detector, a smaller one to begin with, and a limit in bytes: it trains the smaller one
beside the large one, quantizes it to INT8 and fp4x, trains it as that, and packs. By hand: Ultralytics trains the same
smaller detector for as many seconds, with the large one as `distill_model=` and without, and exports it with
`quantize=8`. Then the build is asked for half of the bytes that this has. What ships is scored on the splits `val` and
`test`, and predicted for the target; graphs take turns with the large one on this machine.

    python bench/headline.py --model LARGE.pt --student SMALL.pt [--data FOLDER] [--epochs N | --minutes M] [--device 0]

A row that is finished is kept in `--work`, and `--out` is written again after each: what was cut goes on where it was.
The environment needs `edgekd[train]`, and the library of `--engine`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, SPLITS, JobError, Resumable, answer, conditions_lines, table, use_cores, write_pair
from distillation import exported, ultralytics_job
from stand_in import cell, failed, rows_of

from edgekd.builds.recipe import Distill, QuantAwareDistill, Recipe, load_recipe
from edgekd.builds.recipe_toml import recipe_toml
from edgekd.commands.predict import predict_latency
from edgekd.deploy.artifact import opened

LARGE, START, OURS = "the large detector, float32", "its student as it was, float32", "`edgekd build`"
TAUGHT, ALONE = "Ultralytics by hand, `distill_model=`, `quantize=8`", "Ultralytics by hand, `quantize=8`"
HALF = "`edgekd build`, asked for half of the bytes by hand"
FASTER, ENERGY = 89 / 12, 0.4
MANY = 100
"""Epochs that Ultralytics assumes before it knows how many fit into its time."""
MISSED = 3
"""How a build ends whose budget is missed."""
TRAINED = ("distill", "quant_aware_distill")
"""Stages of a build whose time Ultralytics gets to train in."""


@dataclass(frozen=True)
class Row:
    """A detector. bytes: of what ships: the bundle without its agent, or the ONNX file; seconds: of training."""

    method: str
    seed: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    map50_95: Mapping[str, float] = field(default_factory=dict)
    map50: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


class Bench(Resumable[Row]):
    """One run: what was asked, the folder in which it goes on after a cut, and the rows it has."""

    asked = ("student", "epochs", "minutes", "quantized_epochs", "learning_rate", "batch", "images", "device")

    def run(self) -> Iterable[None]:
        """Every row that is not there yet; pauses after each. What was too large to be kept is exported again."""
        if not self.graph(LARGE).is_file():
            exported(str(self.given.model), self.graph(LARGE), self.given.image_size)
        ways: dict[str, Callable[[], Row]] = {
            LARGE: partial(self._float, LARGE, self.given.model),
            START: partial(self._float, START, Path(self.given.student)),
            OURS: partial(self._built, OURS, self.given.max_bytes),
            TAUGHT: partial(self._by_hand, TAUGHT, str(self.given.model)),
            ALONE: partial(self._by_hand, ALONE, None),
            HALF: self._built_half,
        }
        for method, make in ways.items():
            if self.missing(method):
                self.add_made(method, None, make)
                yield

    def graph(self, method: str) -> Path:
        """Where the graph of a row lies."""
        names = {LARGE: "large", START: "start", OURS: "built", HALF: "half", TAUGHT: "taught", ALONE: "alone"}
        return Path(self.given.work, f"{names[method]}.onnx")

    def recipe(self) -> Recipe:
        """The shipped recipe, for as long as was asked."""
        given = self.given
        whole = load_recipe("distil-qad")
        trained = {"batch": given.batch, "learning_rate": given.learning_rate, "seed": given.seed}
        asked = {"epochs": given.epochs, "minutes": given.minutes, "student": given.student}
        whole = whole.with_settings(Distill, **trained, **asked)
        steps = [
            replace(step, epochs=given.quantized_epochs, seed=given.seed)
            if isinstance(step, QuantAwareDistill)
            else step
            for step in whole.steps
        ]
        return replace(whole, steps=tuple(steps))

    def _float(self, method: str, checkpoint: Path) -> Row:
        graph = self.graph(method)
        if not graph.is_file():
            exported(str(checkpoint), graph, self.given.image_size)
        return self.with_scores(Row(method, bytes=graph.stat().st_size), graph)

    def _built_half(self) -> Row:
        least = min((row.bytes for row in self.rows if row.method in (TAUGHT, ALONE) and row.bytes), default=None)
        if least is None:
            raise JobError("Ultralytics made nothing that has a size")
        return self._built(HALF, least // 2)

    def _built(self, method: str, most: int) -> Row:
        given, folder = self.given, self.given.work / "build"
        recipe = given.work / "recipe.toml"
        recipe.write_text(recipe_toml(self.recipe()), "utf-8")
        command = [sys.executable, "-m", "edgekd", "build", given.model, "--data", self.data, "--target", given.target]
        command += ["--recipe", recipe, "--max-size", most, "--keep", "98%", "--out", folder, "--json"]
        job = {"do": "build", "command": [*map(str, command), "--trust-checkpoint"]}
        document = self.process(self.graph(method).stem, [*_MYSELF, json.dumps(job)])
        (limit,) = (one for one in document["budget"] if one["name"] == "max_bytes")
        took = sum(stage["seconds"] for stage in document["stages"] if stage["name"] in TRAINED)
        with opened(Path(document["bundle"]), None, (), False) as (graph, _):
            shutil.copyfile(graph, self.graph(method))
        return self.with_scores(Row(method, bytes=limit["value"], seconds=took), self.graph(method))

    def _by_hand(self, method: str, teacher: str | None) -> Row:
        given, graph = self.given, self.graph(method)
        ours = next((row.seconds for row in self.rows if row.method == OURS), None)
        if not ours:
            raise JobError("edgekd's build failed, so it took no time that could be given")
        settings = {"epochs": MANY, "batch": given.batch, "image_size": given.image_size, "seed": given.seed}
        job = {
            "do": "by hand",
            "start": given.student,
            "teacher": teacher,
            "out": graph.with_suffix(".pt"),
            "data": self.data,
        }
        job |= {"settings": settings, "minutes": ours / 60, "device": given.device, "threads": given.threads}
        took = self.process(graph.stem, [*_MYSELF, json.dumps({**job, "rate": given.learning_rate}, default=str)])
        self.packages["ultralytics"] = took["packages"]
        return self.with_scores(Row(method, bytes=graph.stat().st_size, seconds=took["seconds"]), graph)


_MYSELF = (sys.executable, str(Path(__file__).resolve()), "--do")


def build(command: Sequence[str]) -> dict[str, Any]:
    """What `edgekd build` prints; a missed budget is a result, too."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, MISSED):
        raise SystemExit(f"edgekd build ended with {done.returncode}")
    return dict(json.loads(done.stdout))


def by_hand(rate: float | None, **job: Any) -> dict[str, Any]:
    """Train with Ultralytics and export in INT8, calibrated on training images; what the training took."""
    from ultralytics import YOLO

    took = ultralytics_job(
        **job, more={} if rate is None else {"optimizer": "AdamW", "lr0": rate, "warmup_bias_lr": 0.0}
    )
    checkpoint = Path(job["out"])
    size = {"imgsz": job["settings"]["image_size"], "device": "cpu"}
    made = YOLO(checkpoint).export(format="onnx", quantize=8, data=job["data"], split="train", **size)
    graph = checkpoint.with_suffix(".onnx")
    if Path(made) != graph:
        Path(made).replace(graph)
    return took


_JOBS: dict[str, Callable[..., dict[str, Any]]] = {"build": build, "by hand": by_hand}


# ------------------------------------------------------------------------------------------------------- the result


def measured(bench: Bench, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The graphs of one build and of one way by hand, in turns with the large one, as they are and in float16."""
    given = bench.given
    after = [str(bench.graph(row.method)) for row in rows if row.method in (OURS, TAUGHT)]
    asked = {name: getattr(given, name) for name in ("engine", "iterations", "seconds", "streams")}
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        return rows_of(
            argparse.Namespace(before=str(bench.graph(LARGE)), after=after, frames=None, **asked), Path(folder)
        )


def prediction(graph: Path, target: str) -> dict[str, Any]:
    """What it is predicted to reach there: INT8 where the graph is quantized, else float16."""
    whole = "QuantizeLinear" not in {node.op_type for node in _nodes(graph)}
    found = predict_latency(graph, target=target, precision="fp16" if whole else "int8").document
    return {name: found[name] for name in ("precision", "latency_ms", "low_ms", "high_ms", "fps", "energy_mj")}


def _nodes(graph: Path) -> Iterable[Any]:
    import onnx

    return onnx.load(graph, load_external_data=False).graph.node


def claims(bench: Bench, rows: Mapping[str, Row], timed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is aimed at, of the bundle."""
    if not {LARGE, OURS} <= rows.keys():
        return []
    large, ours = rows[LARGE], rows[OURS]
    limit = bench.given.max_bytes
    found: list[tuple[str, float, bool]] = [
        (f"at most {limit:,} bytes ship", ours.bytes or 0, (ours.bytes or 0) <= limit)
    ]
    for split in SPLITS:
        kept = ours.map50_95[split] / large.map50_95[split]
        found.append((f"at least 98 % of the large detector's mAP50-95 on {split}", kept, kept >= 0.98))
    for mine, theirs in product((OURS, HALF), (TAUGHT, ALONE)):
        if {mine, theirs} <= rows.keys():
            ahead = rows[mine].map50_95["test"] - rows[theirs].map50_95["test"]
            found.append((f"test mAP50-95 of {mine} above that of {theirs}", ahead, ahead > 0))
    turns = [row for row in timed if row["artifact"] == bench.graph(OURS).name and "error" not in row]
    if turns:
        fast = max(row["engine_times_as_fast"]["ratio"] for row in turns)
        found.append((f"at least {FASTER:.1f} times as fast, the engine alone", fast, fast >= FASTER))
        shares = [row["energy_share"]["gross_mj"] for row in turns if row["energy_share"]]
        if shares:
            found.append((f"at most {ENERGY:.0%} of the energy of a frame", min(shares), min(shares) <= ENERGY))
    return [{"claim": text, "found": value, "holds": bool(holds)} for text, value, holds in found]


def page(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    good = {row.method: row for row in rows if not row.error}
    lines = ["# From a large detector to a small bundle", "", f"`{found['command']}`", "", *_ABOUT, ""]
    cells = []
    for row in good.values():
        shares = [
            f"{row.map50_95[split]:.4f}" + (f" ({row.map50_95[split] / good[LARGE].map50_95[split]:.1%})")
            for split in SPLITS
        ]
        told = found["predicted"].get(row.method)
        fps = f"{told['fps']:.0f} ({told['precision']})" if told else "–"
        energy = cell(told["energy_mj"] if told else None, ".0f")
        cells.append([row.method, f"{row.bytes:,}", cell(row.seconds, ",.0f"), *shares, fps, energy])
    header = ["", "bytes", "seconds of training", *(f"{split} mAP50-95" for split in SPLITS)]
    lines += table([*header, f"FPS, predicted, {found['target']}", "mJ a frame, predicted"], cells)
    lines += [f"\n{row.method}: {row.error}" for row in rows if row.error]
    if found["timed"]:
        lines += ["", f"## In turns with the large one, on {found['engine']}", "", *_timed_table(found["timed"])]
    held = [[one["claim"], f"{one['found']:,.4g}", "yes" if one["holds"] else "**no**"] for one in found["claims"]]
    lines += ["", "## What is aimed at", "", *table(["", "found", "holds"], held), ""]
    packages = found["packages"].get("ultralytics", {})
    lines += [
        "- " + ", ".join(f"{name} {packages[name]}" for name in ("edgekd", "ultralytics", "torch") if name in packages)
    ]
    gpus = ", ".join(gpu["name"] for gpu in found["host"]["gpus"])
    where = "the CPU" if found["device"] == "cpu" else gpus
    return [*lines, "", f"Trained on {where}.", "", *conditions_lines(found)]


def _timed_table(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for row in (row for row in timed if "error" not in row):
        fast, energy, share = row.get("engine_times_as_fast"), row["energy"], row.get("energy_share")
        ratio = f"{fast['ratio']:.2f} ({fast['interval'][0]:.2f} to {fast['interval'][1]:.2f})" if fast else "1"
        camera = f"{row['times_as_fast']['ratio']:.2f}" if fast else "1"
        mj = [cell(energy["gross_mj"] if energy else None, ".1f"), cell(share["gross_mj"] if share else None, ".2f")]
        cells.append([row["artifact"], row["precision"], f"{row['engine_ms']['p50']:.2f}", ratio, camera, *mj])
    header = ["graph", "precision", "engine p50, ms", "engine: times as fast", "camera: times as fast"]
    lines = table([*header, "mJ a frame", "share of its energy"], cells)
    return [*lines, *("", *failed(timed))] if failed(timed) else lines


_ABOUT = (
    "One seed. What ships: of `edgekd build` everything that a camera needs but engine and agent; of others the ONNX",
    "file. In brackets the share of the large detector's mAP50-95. Seconds: of training; by hand as many were given.",
    "mAP: edgekd's scorer, ONNX Runtime's CPU provider. Camera: from the frame to detections. The engine and its",
    "precision are this machine's, a stand-in; predicted figures are of the network alone.",
)


def write(out: Path, bench: Bench, command: str, timed: Sequence[Mapping[str, Any]] = ()) -> tuple[dict[str, Any], str]:
    """Write what there is so far as JSON and Markdown; both again."""
    given = bench.given
    good = {row.method: row for row in bench.rows if not row.error}
    found = {
        "question": "how much smaller and faster does one command make a large detector, beside doing it by hand?",
        "command": command,
        "images": {name: len(bench.split(name)) for name in ("train", *SPLITS)},
        **{name: getattr(given, name) for name in ("device", "target", "engine", "seed")},
        "recipe": recipe_toml(bench.recipe()).replace(given.student, Path(given.student).name),
        **bench.conditions,
        "rows": [asdict(row) for row in bench.rows],
        "predicted": {method: prediction(bench.graph(method), given.target) for method in good},
        "timed": list(timed),
        "claims": claims(bench, good, timed),
        "packages": bench.packages,
    }
    return found, write_pair(out, found, page(found, bench.rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("yolo11x-ppe.pt"), help="the large detector")
    parser.add_argument("--student", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="to begin with")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="with splits train, val and test")
    parser.add_argument("--target", default="xavier")
    parser.add_argument("--max-bytes", type=int, default=12_000_000)
    parser.add_argument("--epochs", type=int, default=40, help="of training beside the large detector")
    parser.add_argument("--minutes", type=float, help="the same by time, in place of a number of epochs")
    parser.add_argument("--quantized-epochs", type=int, default=10, help="of training the quantized detector")
    parser.add_argument("--learning-rate", type=float, help="of AdamW, for everybody; default: Ultralytics' choice")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where Ultralytics trains: cpu, or the number of a GPU")
    parser.add_argument("--engine", default="openvino-cpu", help="what runs the graphs to be timed")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--untimed", action="store_true", help="leave the timing to a later, quiet run")
    parser.add_argument("--work", type=Path, default=Path("runs/headline"), help="logs and finished rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "headline.json")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to do
    given = parser.parse_args()
    paths = {name: getattr(given, name).absolute() for name in ("model", "data", "work", "out")}
    return argparse.Namespace(**{**vars(given), **paths, "student": str(given.student.absolute())})


def main() -> int:
    """0 when no row failed; else 1."""
    given = parse()
    if given.do:
        return answer(_JOBS, given.do)
    use_cores(given.threads)
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    names = ("target", "max_bytes", "epochs", "minutes", "quantized_epochs", "learning_rate", "batch", "image_size")
    names += ("images", "seed", "device", "engine", "iterations", "threads")
    asked = [f"--{name.replace('_', '-')} {value}" for name in names if (value := getattr(given, name)) is not None]
    asked = [f"--model {given.model.name}", f"--student {Path(given.student).name}", *asked]
    command = f"python bench/headline.py {' '.join(asked)}"
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        bench = Bench(given, Path(scratch), Row)
        for _ in bench.run():
            write(given.out, bench, command)
        timed = () if given.untimed else measured(bench, [row for row in bench.rows if not row.error])
        _, text = write(given.out, bench, command, timed)
    print(text)
    return 1 if any(row.error for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
