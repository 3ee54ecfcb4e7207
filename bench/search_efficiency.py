"""Count the trials of a search until it finds the best under a budget, beside random search, on a recorded table.

With `--record` every candidate of a small space (input side, share pruned, bits a weight) is made of a small detector,
trained here on scenes of the tests, and scored. Searches then run on the table for several budgets and many seeds.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from common import HERE, RESULTS, conditions
from frame import Blocks, Document, Given, Option, Result, head, main, read, table, yes

sys.path.insert(0, str(HERE.parent / "tests"))
import tiny

from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.cost_filter import BaseGraph, Cost, CostFilter
from edgekd.builds.search.loop import Search, StopLimits, TrialRequest
from edgekd.builds.search.optuna_sampler import OptunaSampler
from edgekd.builds.search.pareto import Point, best, shortfalls
from edgekd.builds.search.space import FLOAT, INT8, Candidate, Space, candidate_json, recipe_of
from edgekd.builds.search.trials import Task, run_trial, with_recipe
from edgekd.compress.steps import Distill, DistillStage, Weights
from edgekd.core.atomic_files import write_file
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.detector import resize_detector
from edgekd.detectors.ultralytics.distill import distill_student, student_network
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import Target, load_target

TABLE = RESULTS / "search_table.json"
TARGET = "xavier"
EPOCHS = 30
IMAGES = 48  # scenes in each split, all of which are scored
CALIBRATION = 8  # images
LABELS = (DistillStage("labels", 1.0, Weights()),)
SPACE = Space((None,), (128, 96, 64), (0.0, 0.2, 0.35, 0.5, 0.65), (FLOAT, INT8, 5.5, 4.75), (0,), ("all",), (0,))
SIDE = SPACE.image_size[0]
NEAR = 0.99  # of the best known accuracy under a budget: who reaches it has found it
LEVELS = (0.4, 0.75)  # budgets: size and time that such shares of the candidates keep, in every combination
SHARE = 1 / 3  # goal: of the trials of random search, by the medians
Way = Callable[["World", int], Sequence[Candidate]]


@dataclass(frozen=True)
class World:
    """A table under a budget. goal: the accuracy to be reached."""

    points: Mapping[Candidate, Point]
    works: tuple[Work, ...]
    budget: Budget

    @property
    def goal(self) -> float:
        found = best(list(self.points.values()), self.budget)
        assert found is not None
        return NEAR * found.kept

    def trials(self, order: Sequence[Candidate]) -> int:
        """Return how many candidates, in this order, are tried until the goal; all of them where it is not reached."""
        for count, candidate in enumerate(order, start=1):
            point = self.points[candidate]
            if not point.error and not shortfalls(point, self.budget) and point.kept >= self.goal:
                return count
        return len(self.points)


def by_chance(world: World, seed: int) -> Sequence[Candidate]:
    every = list(world.points)
    return [every[at] for at in np.random.default_rng(seed).permutation(len(every))]


def by_chance_filtered(world: World, seed: int) -> Sequence[Candidate]:
    """Return the same without those that the filter refuses before anything is made."""
    found = _filter(world)
    return [each for each in by_chance(world, seed) if found.refusal(each, world.budget) is None]


def by_search(world: World, seed: int) -> Sequence[Candidate]:
    """Return candidates in the order in which `edgekd build --search` tries them."""
    order: list[Candidate] = []

    def run_trials(wanted: Sequence[TrialRequest]) -> list[Point]:
        order.extend(candidate for candidate, rung in wanted if rung == 0)
        return [replace(world.points[candidate], rung=rung) for candidate, rung in wanted]

    ends = StopLimits(len(world.points), lambda: 1.0)
    search = Search(SPACE, _filter(world), world.budget, OptunaSampler(SPACE, seed), run_trials, 3, ends)
    while not search.reason and world.trials(order) >= len(world.points):
        search.step()
    return order


def by_optuna(world: World, seed: int) -> Sequence[Candidate]:
    """Return candidates as Optuna's sampler draws them, without filter and without estimates."""
    study, order = OptunaSampler(SPACE, seed), list[Candidate]()
    for _ in range(2 * len(world.points)):
        number, candidate = study.ask()
        if candidate in order:
            study.drop(number)
            continue
        order.append(candidate)
        point = world.points[candidate]
        missed = {"error": 1.0} if point.error else shortfalls(point, world.budget)
        study.tell(number, (point.kept, point.cost.bytes, point.cost.latency_ms or 0.0), missed)
        if world.trials(order) < len(world.points):
            break
    return order


WAYS: Mapping[str, Way] = {
    "random": by_chance,
    "random, filtered": by_chance_filtered,
    "Optuna's sampler alone": by_optuna,
    "edgekd": by_search,
}


def _filter(world: World) -> CostFilter:
    networks = {None: BaseGraph(SPACE.image_size[0], world.works)}
    return CostFilter(SPACE, networks, 0, target())


def record(given: Given) -> None:
    """Make and score every candidate; what was made before is found in the store."""
    work, progress, found = given.work, PlainProgress(interval_s=60), conditions(1)
    work.mkdir(parents=True, exist_ok=True)
    data, checkpoint = own_pair(work)
    model = work / "detector.pt"
    resize_detector(checkpoint, SIDE, model)
    job = BuildRequest(model, data, target(), Recipe("", ()), work / "store", calibration=str(CALIBRATION))
    rows = []
    for candidate in progress.items(SPACE.candidates(), "candidates"):
        task = Task(with_recipe(job, recipe_of(candidate, SPACE), job.data), candidate, 0, 0, "table")
        point = run_trial(task, job.out)
        result = {"kept": point.kept, **asdict(point.cost), "seconds": point.seconds, "error": point.error}
        rows.append({**candidate_json(candidate), **result})
        progress.note(f"{candidate.text()}: {point.error or f'{point.kept:.1%}'}")
    works = [asdict(each) for each in works_in(_whole(job.out / "stages"))]
    document = {"model": "a YOLOv8, width 0.125", "data": "scenes", "target": TARGET, "images": IMAGES}
    document |= {"calibration": CALIBRATION, **found, "works": works, "rows": rows}
    write_file(TABLE, (json.dumps(document, indent=0) + "\n").encode())


def own_pair(work: Path) -> tuple[Path, Path]:
    """Train a small detector on the tests' scenes; its data and its checkpoint."""
    data, start, out = work / "data", work / "start.pt", work / "trained.pt"
    if not data.is_dir():
        tiny.write_data(data, IMAGES, IMAGES)
    if not out.is_file():
        step = Distill("yolov8n.yaml", 0.125, epochs=EPOCHS, batch=6, image_size=SIDE, stages=LABELS)
        step = replace(step, warmup_steps=0, mosaic=0.0, learning_rate=0.01, final_rate=0.1, amp=False)
        network = student_network(step, load_dataset(data).classes, False)
        write_checkpoint(network, {"task": "detect", "imgsz": SIDE}, start)
        distill_student(start, out, data, replace(step, student=str(start), width=None), work / "state")
    return data, out


def target() -> Target:
    """Return Xavier without its preferred widths: so small a detector has no layer as wide."""
    found = load_target(TARGET)
    return replace(found, precisions=replace(found.precisions, multiple=None))


def _whole(stages: Path) -> Path:
    """Return the graph of the original checkpoint: of those with this side, the one with most weights."""
    records = {
        path: json.loads((path.parent / "stage.json").read_bytes()) for path in stages.glob("export-*/graph.onnx")
    }
    full = [path for path, stage in records.items() if stage["results"]["detector"]["preprocess"]["height"] == SIDE]
    return max(full, key=lambda path: path.stat().st_size)


def worlds(recorded: Document) -> Iterator[World]:
    points = {}
    for row in recorded.rows:
        candidate = Candidate(**{name: row[name] for name in candidate_json(Candidate(None, 1))})
        cost = Cost(row.bytes, row.latency_ms, row.energy_mj)
        points[candidate] = Point(candidate, 0, row.kept, cost, row.seconds, row.error)
    made = [point for point in points.values() if not point.error]
    works = tuple(Work(**work) for work in recorded.works)
    for size, time in product(LEVELS, LEVELS):
        most = int(np.quantile([point.cost.bytes for point in made], size))
        fps = 1e3 / float(np.quantile([point.cost.latency_ms or 0.0 for point in made], time))
        yield World(points, works, Budget(max_bytes=most, min_fps=fps))


def run(given: Given) -> Result:
    if given.record:
        record(given)
        raise SystemExit(0)
    recorded, rows = read(TABLE.read_text("utf-8")), []
    for world in worlds(recorded):
        fits = [p for p in world.points.values() if not p.error and not shortfalls(p, world.budget)]
        trials = {name: [world.trials(way(world, seed)) for seed in range(given.seeds)] for name, way in WAYS.items()}
        row = Document(max_bytes=world.budget.max_bytes, min_fps=world.budget.min_fps, fit=len(fits))
        row.update(near=sum(point.kept >= world.goal for point in fits), best=max(point.kept for point in fits))
        rows.append(Document(row, trials=trials))
    return {
        "table": {name: recorded[name] for name in ("model", "data", "images", "target", "date")},
        "candidates": len(recorded.rows),
        "failed": sum(row.error is not None for row in recorded.rows),
        "rows": rows,
        "share": {name: median(_shares(rows, name)) for name in WAYS},
        "worst": {name: max(_shares(rows, name)) for name in WAYS},
    }


def _shares(rows: Sequence[Document], name: str) -> list[float]:
    return [median(row.trials[name]) / median(row.trials["random"]) for row in rows]


def page(found: Document) -> Blocks:
    recorded = found.table
    yield from head("Trials of a search", found)
    yield f"""\
The table: {found.candidates} candidates made of {recorded.model} without training, {found.failed} of
which could not be made (pruned, and not faster), scored on {recorded.images} images of {recorded.data};
their times are predicted for {recorded.target}. Median trials of {found.seeds} seeds, and the most,
until one is found that keeps the budget and {NEAR:.0%} of the accuracy of the best one that does. Of those
that fit, *near* are so good. Candidates that arithmetic or prediction refuses are not made and do not count.
The margins of estimates and the order of proposals were tuned on this table: on another one a search may
need more."""
    yield table(
        f"budget | fit | best keeps | near | {' | '.join(WAYS)}",
        (
            f"{row.max_bytes / 1e6:.2f} MB, {row.min_fps:.0f} FPS | {row.fit} | {row.best:.1%} | {row.near} | "
            + " | ".join(f"{median(row.trials[name]):g} ({max(row.trials[name])})" for name in WAYS)
            for row in found.rows
        ),
    )
    yield "Trials by those of random search, by the medians over seeds: the median and the largest over the budgets."
    yield table(" | median | largest", (f"{name} | {found.share[name]:.2f} | {found.worst[name]:.2f}" for name in WAYS))
    holds, every = (yes(found[part].edgekd <= SHARE, "**no**") for part in ("share", "worst"))
    yield f"Goal: at most {SHARE:.2f}. By the median: {holds}; with every budget: {every}."


if __name__ == "__main__":
    options = (
        Option("--record", False, "make the table anew"),
        Option("--work", Path("runs/search_table"), "where its candidates are kept"),
        Option("--seeds", 20),
    )
    main(run, page, *options, cores=1)
