"""Compare one `edgekd build`, from a large detector to a small bundle, with the same work by hand with Ultralytics.

`edgekd build` gets the large detector, a smaller student and a limit in bytes. By hand: Ultralytics trains the same
student for the same time, with the large detector as `distill_model=` and without, and exports it with `quantize=8`.
Then a second build gets half of that file's bytes as its limit. Needs `edgekd[train]`, and the library of `--engine`.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import training
from common import SHARED, SPLITS
from frame import Blocks, Document, Given, Option, Result, cell, claim, claims_table, head, main, table, versions_of
from stand_in import failed, ratio_of, rows_of
from training import DEVICE, JobError, Trainings, Way

from edgekd.builds.recipe import Recipe, load_recipe
from edgekd.builds.recipe_toml import recipe_toml
from edgekd.commands.predict import predict_latency
from edgekd.compress.steps import Distill, QuantAwareDistill
from edgekd.deploy.artifact import opened

LARGE, START, OURS = "the large detector, float32", "its student as it was, float32", "`edgekd build`"
TAUGHT, ALONE = "Ultralytics by hand, `distill_model=`, `quantize=8`", "Ultralytics by hand, `quantize=8`"
HALF = "`edgekd build`, asked for half of the bytes by hand"
FASTER, ENERGY = 89 / 12, 0.4  # goals: speed-up, and share of the energy per frame
MANY = 100  # epochs that Ultralytics plans before it knows how many fit into its time
MISSED = 3  # exit code of a build that misses its budget


class Bench(Trainings):
    """Detectors of all ways. bytes: of the bundle without its agent, or of the ONNX file; seconds: of training."""

    asked = ("student", "epochs", "minutes", "quantized_epochs", "learning_rate", "batch", "images", "device")
    numbers = ("bytes", "seconds")
    timed: Sequence[Document] = ()

    def ways(self) -> Iterator[Way]:
        """Yield the function that makes each row. The large detector's graph is exported again if it was not kept."""
        if not self.graph(LARGE).is_file():
            training.export_sized(self.given.model, self.graph(LARGE), self.given.image_size)
        yield LARGE, None, partial(self._float, LARGE, self.given.model)
        yield START, None, partial(self._float, START, Path(self.given.student))
        yield OURS, None, partial(self._built, OURS, self.given.max_bytes)
        yield TAUGHT, None, partial(self._by_hand, TAUGHT, str(self.given.model))
        yield ALONE, None, partial(self._by_hand, ALONE, None)
        yield HALF, None, self._built_half

    def graph(self, method: str) -> Path:
        names = {LARGE: "large", START: "start", OURS: "built", HALF: "half", TAUGHT: "taught", ALONE: "alone"}
        return Path(self.given.work, f"{names[method]}.onnx")

    def recipe(self) -> Recipe:
        given = self.given
        settings = {"batch": given.batch, "learning_rate": given.learning_rate, "seed": given.seed}
        settings |= {"epochs": given.epochs, "minutes": given.minutes, "student": given.student}
        whole = load_recipe("distil-qad").with_settings(Distill, **settings)
        return whole.with_settings(QuantAwareDistill, epochs=given.quantized_epochs, seed=given.seed)

    def _float(self, method: str, checkpoint: Path) -> Document:
        graph = self.graph(method)
        if not graph.is_file():
            training.export_sized(checkpoint, graph, self.given.image_size)
        return self.with_scores(self.row(method, bytes=graph.stat().st_size), graph)

    def _built_half(self) -> Document:
        least = min((row.bytes for row in self.rows if row.method in (TAUGHT, ALONE) and row.bytes), default=None)
        if least is None:
            raise JobError("Ultralytics made nothing that has a size")
        return self._built(HALF, least // 2)

    def _built(self, method: str, most: int) -> Document:
        given, folder = self.given, self.given.work / "build"
        recipe = given.work / "recipe.toml"
        recipe.write_text(recipe_toml(self.recipe()), "utf-8")
        build = (
            "build",
            given.model,
            "--data",
            self.data,
            "--target",
            given.target,
            "--recipe",
            recipe,
            "--out",
            folder,
        )
        more = ("--max-size", most, "--keep", "98%", "--trust-checkpoint")
        document = self.edgekd(self.graph(method).stem, *build, *more, accepted=(0, MISSED))
        (limit,) = (one for one in document["budget"] if one["name"] == "max_bytes")
        took = training.seconds_of_training(document)
        with opened(Path(document["bundle"]), None, (), False) as (graph, _):
            shutil.copyfile(graph, self.graph(method))
        return self.with_scores(self.row(method, bytes=limit["value"], seconds=took), self.graph(method))

    def _by_hand(self, method: str, teacher: str | None) -> Document:
        given, graph = self.given, self.graph(method)
        ours = next((row.seconds for row in self.rows if row.method == OURS), None)
        if not ours:
            raise JobError("edgekd's build failed, so it took no time that could be given")
        settings = {**training.settings_of(given, given.seed), "epochs": MANY}
        files = {"start": given.student, "teacher": teacher, "out": graph.with_suffix(".pt"), "data": self.data}
        length = {"settings": settings, "minutes": ours / 60, "rate": given.learning_rate}
        took = self.job(graph.stem, by_hand, "ultralytics", **files, **length)
        return self.with_scores(self.row(method, bytes=graph.stat().st_size, seconds=took["seconds"]), graph)

    def finish(self) -> None:
        """Time a build's graph and one made by hand, each also in float16, interleaved with the large detector's."""
        given = self.given
        if not given.untimed:
            made = [row.method for row in self.rows if row.method in (OURS, TAUGHT) and not row.error]
            given.frames, given.before = None, str(self.graph(LARGE))
            given.after = [str(self.graph(method)) for method in made]
            self.timed = list(map(Document, rows_of(given, given.scratch)))

    def result(self) -> dict[str, Any]:
        given, good = self.given, {row.method: row for row in self.rows if not row.error}
        return {
            "recipe": recipe_toml(self.recipe()).replace(given.student, Path(given.student).name),
            "predicted": {method: prediction(self.graph(method), given.target) for method in good},
            "timed": self.timed,
            "claims": claims(self, good),
        }


def by_hand(rate: float | None, **job: Any) -> dict[str, Any]:
    """Train with Ultralytics and export in INT8, calibrated on training images. Return `ultralytics_job`'s result."""
    from ultralytics import YOLO

    more = {} if rate is None else {"optimizer": "AdamW", "lr0": rate, "warmup_bias_lr": 0.0}
    took = training.ultralytics_job(**job, more=more)
    checkpoint = Path(job["out"])
    size = {"imgsz": job["settings"]["image_size"], "device": "cpu"}
    made = YOLO(checkpoint).export(format="onnx", quantize=8, data=job["data"], split="train", **size)
    graph = checkpoint.with_suffix(".onnx")
    if Path(made) != graph:
        Path(made).replace(graph)
    return took


def prediction(graph: Path, target: str) -> dict[str, Any]:
    """Return the predicted latency and energy of a graph on a target: in INT8 if it is quantized, else in float16."""
    import onnx

    kinds = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    found = predict_latency(graph, target=target, precision="int8" if "QuantizeLinear" in kinds else "fp16").document
    return {name: found[name] for name in ("precision", "latency_ms", "low_ms", "high_ms", "fps", "energy_mj")}


def claims(bench: Bench, rows: Mapping[str, Document]) -> list[dict[str, Any]]:
    if not {LARGE, OURS} <= rows.keys():
        return []
    large, ours, limit = rows[LARGE], rows[OURS], bench.given.max_bytes
    size = ours.bytes or 0
    found = [claim(f"at most {limit:,} bytes ship", size, size <= limit)]
    for split in SPLITS:
        kept = ours.map50_95[split] / large.map50_95[split]
        found.append(claim(f"at least 98 % of the large detector's mAP50-95 on {split}", kept, kept >= 0.98))
    for mine, theirs in product((OURS, HALF), (TAUGHT, ALONE)):
        if {mine, theirs} <= rows.keys():
            ahead = rows[mine].map50_95["test"] - rows[theirs].map50_95["test"]
            found.append(claim(f"test mAP50-95 of {mine} above that of {theirs}", ahead, ahead > 0))
    turns = [row for row in bench.timed if row.artifact == bench.graph(OURS).name and "error" not in row]
    if turns:
        fast = max(row.engine_times_as_fast["ratio"] for row in turns)
        found.append(claim(f"at least {FASTER:.1f} times as fast, the engine alone", fast, fast >= FASTER))
        shares = [row.energy_share["gross_mj"] for row in turns if row.energy_share]
        if shares:
            text = f"at most {ENERGY:.0%} of the energy of a frame"
            found.append(claim(text, min(shares), min(shares) <= ENERGY))
    return found


def page(found: Document) -> Blocks:
    rows = [row for row in found.rows if not row.error]
    whole = next((row.map50_95 for row in rows if row.method == LARGE), None)
    yield from head("From a large detector to a small bundle", found)
    yield """\
One seed. What ships: of `edgekd build` everything that a camera needs but engine and agent; of others the ONNX
file. In brackets the share of the large detector's mAP50-95. Seconds: of training; by hand as many were given.
mAP: edgekd's scorer, ONNX Runtime's CPU provider. Camera: from the frame to detections. The engine and its
precision are this machine's, a stand-in; predicted figures are of the network alone."""
    lines = []
    for row in rows:
        shares = [f"{row.map50_95[split]:.4f} ({row.map50_95[split] / whole[split]:.1%})" for split in SPLITS]
        there = found.predicted.get(row.method)
        fps = f"{there.fps:.0f} ({there.precision})" if there else "–"
        energy = cell(there.energy_mj if there else None, ".0f", "-")
        line = [row.method, f"{row.bytes:,}", cell(row.seconds, ",.0f", "-"), *shares, fps, energy]
        lines.append(" | ".join(line))
    yield table(
        f" | bytes | seconds of training | {' | '.join(f'{split} mAP50-95' for split in SPLITS)} | "
        f"FPS, predicted, {found.target} | mJ a frame, predicted",
        lines,
    )
    yield from (f"{row.method}: {row.error}" for row in found.rows if row.error)
    if found.timed:
        yield f"## Interleaved with the large detector, on {found.engine}"
        yield table(
            "graph | precision | engine p50, ms | engine: times as fast | camera: times as fast | mJ a frame | "
            "share of its energy",
            (_timed_cells(row) for row in found.timed if "error" not in row),
        )
        yield from ["\n".join(failed(found.timed))] if failed(found.timed) else []
    yield "## Goals"
    yield claims_table(found.claims, ",.4g")
    yield f"- {versions_of(found.packages.get('ultralytics', {}), ('edgekd', 'ultralytics', 'torch'))}"
    yield training.trained_on(found)


def _timed_cells(row: Document) -> str:
    ratio, share = row.get("times_as_fast"), row.get("energy_share")
    return (
        f"{row.artifact} | {row.precision} | {row.engine_ms.p50:.2f} | {ratio_of(row)} | "
        f"{f'{ratio.ratio:.2f}' if ratio else '1'} | {cell(row.energy.gross_mj if row.energy else None, '.1f', '-')} | "
        f"{cell(share.gross_mj if share else None, '.2f', '-')}"
    )


def run(given: Given) -> Iterator[Result]:
    given.student = str(given.student.absolute())
    return Bench(given).documents()


if __name__ == "__main__":
    options = (
        *training.options("headline", "the large detector", epochs=40, batch=16, default=Path("yolo11x-ppe.pt")),
        Option("--student", SHARED / "models" / "yolo11n-ppe.pt", "to begin with"),
        Option("--target", "xavier"),
        Option("--max-bytes", 12_000_000),
        Option("--minutes", type=float, help="of training beside the large detector, in place of a number of epochs"),
        Option("--quantized-epochs", 10, "of training the quantized detector"),
        Option("--learning-rate", type=float, help="of AdamW, for all; default: Ultralytics' choice"),
        Option("--seed", 0),
        DEVICE,
        Option("--engine", "openvino-cpu", "what runs the graphs to be timed"),
        Option("--iterations", 60),
        Option("--seconds", 6.0),
        Option("--streams", 2),
        Option("--untimed", False, "leave the timing to a later, quiet run"),
    )
    main(run, page, *options, holds=training.none_failed)
