"""Count the candidates that a search trains until it finds the best under a budget, compared with random search.

Both search a table with the results of every candidate: output noise before training, and the score on held-out
training images after pruned networks were trained on cached predictions. `--record` makes the table or its missing
rows, which takes an hour on a core; an interrupted run continues. Searches then run on the table for several budgets
and many seeds.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from common import SHARED, copy_data
from frame import (
    IMAGES,
    Blocks,
    Document,
    FinishedRows,
    Given,
    Option,
    Result,
    cell,
    claim,
    claims_table,
    head,
    main,
    read,
    table,
)

from edgekd.builds.recipe import Recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.accuracy_model import AccuracyModel, rank_correlation
from edgekd.builds.search.cost_filter import BaseGraph, Cost, CostFilter
from edgekd.builds.search.loop import Search, StopLimits, TrialRequest
from edgekd.builds.search.optuna_sampler import OptunaSampler
from edgekd.builds.search.pareto import FULL, NOISE, Point, best, shortfalls
from edgekd.builds.search.setup import SearchContext, SearchJob
from edgekd.builds.search.space import BITS, FLOAT, RATIOS, Candidate, Space
from edgekd.builds.search.trials import run_trial
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import file_sha256
from edgekd.core.progress import PlainProgress
from edgekd.core.typed_values import from_plain
from edgekd.data.dataset import load_dataset
from edgekd.detectors.ultralytics.detector import resize_detector
from edgekd.hardware.budget import Budget
from edgekd.hardware.predict.work import Work
from edgekd.hardware.target import load_target

TABLE = "search_table.json"
"""File name of the table, in the result's folder."""
TARGET = "xavier"
NEAR = 0.99
"""Target accuracy, as a share of the best accuracy in the table under the budget."""
LEVELS = (0.4, 0.75)
"""Budgets: quantiles of the candidates' sizes and latencies, in every combination."""
SHARE = 1 / 3
"""Goal: number of full trials relative to random search, by medians."""


@dataclass(frozen=True)
class World:
    """A table with a budget. points: results of each candidate on both rungs."""

    space: Space
    points: Mapping[TrialRequest, Point]
    works: tuple[Work, ...]
    beside: int
    budget: Budget

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates of the table."""
        return [candidate for candidate, rung in self.points if rung == FULL]

    @property
    def goal(self) -> float:
        """The accuracy to reach: NEAR times the best under the budget."""
        found = best([self.points[each, FULL] for each in self.candidates], self.budget)
        assert found is not None
        return NEAR * found.kept

    def reached(self, candidate: Candidate) -> bool:
        """Return whether a candidate is within the budget and reaches the goal."""
        point = self.points[candidate, FULL]
        return not point.error and not shortfalls(point, self.budget) and point.kept >= self.goal

    def trials(self, order: Sequence[Candidate]) -> int:
        """Return the number of candidates tried in this order until one reaches the goal; if none does, all."""
        counts = (count for count, each in enumerate(order, start=1) if self.reached(each))
        return next(counts, len(self.candidates))

    def filter(self) -> CostFilter:
        """Return a new cost filter for this table."""
        return CostFilter(
            self.space, {None: BaseGraph(self.space.image_size[0], self.works)}, self.beside, load_target(TARGET)
        )


def by_chance(world: World, seed: int) -> Sequence[Candidate]:
    every = world.candidates
    return [every[at] for at in np.random.default_rng(seed).permutation(len(every))]


def by_chance_filtered(world: World, seed: int) -> Sequence[Candidate]:
    """Return the candidates in random order, without those that the cost filter rejects."""
    refusing = world.filter()
    return [each for each in by_chance(world, seed) if refusing.refusal(each, world.budget) is None]


def by_optuna(world: World, seed: int) -> Sequence[Candidate]:
    """Return candidates as Optuna's sampler draws them, without filter and estimates, until one reaches the goal."""
    study, order = OptunaSampler(world.space, seed), list[Candidate]()
    for _ in range(2 * len(world.candidates)):
        candidate = study.draw()
        if candidate in order:
            continue
        order.append(candidate)
        point = world.points[candidate, FULL]
        missed = {"error": 1.0} if point.error else shortfalls(point, world.budget)
        study.learn(candidate, (point.kept, point.cost.bytes, point.cost.latency_ms or 0.0), missed)
        if world.reached(candidate):
            break
    return order


def by_search(world: World, seed: int) -> Search:
    """Run the search of `edgekd build --search` on the table until it reaches the goal or ends."""
    ends = StopLimits(len(world.candidates), lambda: 1.0)
    study = OptunaSampler(world.space, seed)

    def run_trials(wanted: Sequence[TrialRequest]) -> list[Point]:
        return [world.points[each] for each in wanted]

    search = Search(world.space, world.filter(), world.budget, study, run_trials, ends)
    while not search.reason and not any(map(world.reached, tried_in_full(search))):
        search.step()
    return search


def tried_in_full(search: Search) -> list[Candidate]:
    return [each for each, point in search.points.items() if point.rung == FULL]


WAYS = {"random": by_chance, "random, filtered": by_chance_filtered, "Optuna's sampler alone": by_optuna}
OURS = "edgekd"


class Recording:
    """Records the table, one row per candidate."""

    def __init__(self, given: Given) -> None:
        self.given, work = given, given.work.absolute()
        self.progress = PlainProgress(interval_s=60)
        settings = {name: getattr(given, name) for name in ("image_size", "ratios", "bits", "epochs", "images")}
        settings["model"] = file_sha256(given.model)
        self.kept = FinishedRows(work / "rows.json", settings, given.threads)
        data, model = work / "data" / "data.yaml", work / "detector.pt"
        if not data.is_file():
            copy_data(given.data, data.parent, given.images)
        if not model.is_file():
            resize_detector(given.model, given.image_size, model)
        (work / "store" / "search").mkdir(parents=True, exist_ok=True)
        job = BuildRequest(model, data, load_target(TARGET), Recipe("", ()), work / "store")
        self.context = SearchContext(SearchJob(job, epochs=given.epochs), self.progress)
        space = self.context.space
        # Every other image size, because each needs its own trainings.
        sides, ratios, bits = space.image_size[::2], tuple(given.ratios), tuple(given.bits)
        self.context.space = replace(
            space, student=(None,), image_size=sides, ratio=ratios, bits=bits, quant_aware=(0,)
        )

    def run(self) -> None:
        """Run the missing trials and write the table."""
        done = [row.candidate for row in self.kept.rows]
        for candidate in self.context.space.candidates():
            if asdict(candidate) not in done:
                self.kept.add(self._row(candidate))
        network = self.context.networks[None]
        document = {
            "model": self.given.model.name,
            "data": self.given.data.name,
            "images": len(load_dataset(self.context.final).split("train")),
            "image_size": self.given.image_size,
            "epochs": self.given.epochs,
            "held_out": self.context.held_out,
            "target": TARGET,
            **self.kept.conditions,
            "beside": self.context.beside,
            "space": asdict(self.context.space),
            "works": [asdict(each) for each in network.works],
            "rows": self.kept.rows,
        }
        write_file(self.given.out.with_name(TABLE), (json.dumps(document, indent=0) + "\n").encode())

    def _row(self, candidate: Candidate) -> Document:
        rows = {}
        for name, rung in (("untrained", NOISE), ("full", FULL)):
            began = cpu_seconds()
            point = run_trial(self.context.task((candidate, rung)), self.context.request.job.out, self.progress)
            known = {"kept": point.kept, "noise": point.noise, "error": point.error, **asdict(point.cost)}
            rows[name] = {**known, "cpu_seconds": cpu_seconds() - began}
        self.progress.note(f"{candidate.text()}: {point.error or f'{point.kept:.1%}'}")
        return Document(candidate=asdict(candidate), error=point.error, **rows)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children."""
    return sum(os.times()[:4])


def worlds(recorded: Document) -> Iterator[World]:
    """Yield the table with each budget."""
    space = from_plain(Space, recorded.space, "space")
    points = {}
    for row in recorded.rows:
        candidate = from_plain(Candidate, row.candidate, "candidate")
        for rung, found in ((NOISE, row.untrained), (FULL, row.full)):
            cost = Cost(found.bytes, found.latency_ms, found.energy_mj)
            points[candidate, rung] = Point(candidate, rung, found.kept, cost, 1.0, found.error, found.noise)
    works = tuple(Work(**work) for work in recorded.works)
    made = [point for (_, rung), point in points.items() if rung == FULL and not point.error]
    for size, time in product(LEVELS, LEVELS):
        most = int(np.quantile([point.cost.bytes for point in made], size))
        fps = 1e3 / float(np.quantile([point.cost.latency_ms or 0.0 for point in made], time))
        yield World(space, points, works, recorded.beside, Budget(max_bytes=most, min_fps=fps))


def correlations(world: World) -> dict[str, float | None]:
    """Return rank correlations with the accuracy after training: of low noise, and of the accuracy model's estimate."""
    made = [each for each in world.candidates if not world.points[each, FULL].error]
    kept = {each: world.points[each, FULL].kept for each in made}
    noise = {each: float(world.points[each, NOISE].noise or 0.0) for each in made}
    model = AccuracyModel(world.space)
    model.fit({each.untrained: value for each, value in noise.items()}, [])
    found = {}
    for side in world.space.image_size:
        alike = [each for each in made if each.image_size == side]
        of_side = rank_correlation([-noise[each] for each in alike], [kept[each] for each in alike])
        found[f"less noise, {side} pixels"] = of_side
    found["less noise, all sides"] = rank_correlation([-noise[each] for each in made], list(kept.values()))
    found["estimate before any full trial"] = rank_correlation(list(map(model.kept, made)), list(kept.values()))
    return found


def replayed(world: World, seeds: int) -> Document:
    """Run every search method on a table with a budget, for all seeds. Return the row."""
    made = [world.points[each, FULL] for each in world.candidates if not world.points[each, FULL].error]
    fits = [point for point in made if not shortfalls(point, world.budget)]
    trials = {name: [world.trials(way(world, seed)) for seed in range(seeds)] for name, way in WAYS.items()}
    ours = [by_search(world, seed) for seed in range(seeds)]
    trials[OURS] = [
        len(tried_in_full(search)) if any(map(world.reached, tried_in_full(search))) else len(world.candidates)
        for search in ours
    ]
    return Document(
        max_bytes=world.budget.max_bytes,
        min_fps=world.budget.min_fps,
        fit=len(fits),
        near=sum(point.kept >= world.goal for point in fits),
        best=max(point.kept for point in fits),
        trials=trials,
        measured=[len(search.points) for search in ours],
    )


def run(given: Given) -> Result:
    if given.record:
        Recording(given).run()
    recorded = read(given.out.with_name(TABLE).read_text("utf-8"))
    every = list(worlds(recorded))
    rows = [replayed(world, given.seeds) for world in every]
    names = ("model", "data", "images", "image_size", "epochs", "held_out", "target", "date")
    seconds = {rung: [row[rung].cpu_seconds for row in recorded.rows] for rung in ("untrained", "full")}
    share = {name: median(_shares(rows, name)) for name in (*WAYS, OURS)}
    worst = {name: max(_shares(rows, name)) for name in (*WAYS, OURS)}
    return {
        "table": {name: recorded[name] for name in names},
        "candidates": len(recorded.rows),
        "trained": sum(row.candidate.recovery > 0 for row in recorded.rows),
        "failed": sum(row.error is not None for row in recorded.rows),
        "cpu_seconds": {rung: {"median": median(each), "sum": sum(each)} for rung, each in seconds.items()},
        "correlations": correlations(every[0]),
        "rows": rows,
        "share": share,
        "worst": worst,
        "claims": [
            claim(f"full trials by those of random search, {name}: at most {SHARE:.2f}", found, found <= SHARE)
            for name, found in (("the median of the budgets", share[OURS]), ("the largest", worst[OURS]))
        ],
    }


def _shares(rows: Sequence[Document], name: str) -> list[float]:
    return [median(row["trials"][name]) / median(row["trials"]["random"]) for row in rows]


def page(found: Document) -> Blocks:
    recorded, seconds = found.table, found.cpu_seconds
    yield from head("Full trials of a search", found)
    yield f"""\
The table: {found.candidates} candidates made of {recorded.model} at {recorded.image_size} pixels, {found.trained} of
them pruned and trained for {recorded.epochs} epochs beside cached predictions, on {recorded.images} images of
{recorded.data}; {found.failed} could not be made (pruned, and not faster). Scored on {recorded.held_out} held-out
training images; times are predicted for {recorded.target}. No rule of the search was settled on this table."""
    yield f"""\
CPU seconds of a candidate, where stages that it shares with others count for the first one: untrained, with its noise,
{seconds.untrained.median:.0f} in the median and {seconds.untrained.sum:.0f} for all; in full {seconds.full.median:.0f}
and {seconds.full.sum:.0f}."""
    yield "Rank correlation (Spearman) with the accuracy in full, over all candidates:"
    yield table(" | correlation", (f"{name} | {cell(value, '.3f')}" for name, value in found.correlations.items()))
    yield f"""\
Candidates that were tried in full until one keeps the budget and {NEAR:.0%} of the accuracy of the best one that does:
the median of {found.seeds} seeds, and the most. Of those that *fit* the budget, *near* are so good. A search that ends
without one counts as the whole table. *Measured*: candidates of which edgekd measured the noise until then."""
    names = (*WAYS, OURS)
    yield table(
        f"budget | fit | best keeps | near | {' | '.join(names)} | measured",
        (
            f"{row.max_bytes / 1e6:.2f} MB, {row.min_fps:.0f} FPS | {row.fit} | {row.best:.1%} | {row.near} | "
            + " | ".join(f"{median(row.trials[name]):g} ({max(row.trials[name])})" for name in names)
            + f" | {median(row.measured):g}"
            for row in found.rows
        ),
    )
    yield "Full trials by those of random search, by the medians over seeds: median and largest over the budgets."
    yield table(
        " | median | largest", (f"{name} | {found.share[name]:.2f} | {found.worst[name]:.2f}" for name in names)
    )
    yield "## Goals"
    yield claims_table(found.claims, ".2f")


if __name__ == "__main__":
    options = (
        Option("--record", False, "make the table, or the rows that it lacks"),
        Option("--model", SHARED / "models" / "yolo11n-ppe.pt", "what the table is made of"),
        Option("--data", SHARED / "data" / "ppe"),
        Option("--image-size", 320),
        Option("--ratios", [*RATIOS], "shares of the multiply-adds that pruning removes"),
        Option("--bits", [FLOAT, *BITS], "bits of a weight; 32: float"),
        Option("--epochs", 4, "of each training beside cached predictions"),
        IMAGES,
        Option("--work", Path("runs/search_table"), "rows and stages of the table"),
        Option("--seeds", 20),
    )
    main(run, page, *options, cores=1)
