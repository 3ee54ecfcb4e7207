"""Measure the overhead of a cluster per search trial, and simulate how a search scales on it.

Measured: a Ray cluster of processes on this machine, with trials that sleep; tasks, queues, leases and the shared
folder are real. The overhead is the time of a round beyond its ideal schedule, per trial and worker. Simulated: a
search in rounds that trains the best third, on up to hundreds of GPUs and boards.
"""

import heapq
import json
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from common import conditions
from frame import Blocks, Document, Given, Option, Result, main, note, read, table

from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.cluster import LOCAL, Cluster, cluster_trials, joined_cluster
from edgekd.builds.search.cost_filter import Cost
from edgekd.builds.search.leases import leased
from edgekd.builds.search.loop import ETA
from edgekd.builds.search.pareto import Point
from edgekd.builds.search.setup import RUNGS
from edgekd.builds.search.space import Candidate
from edgekd.builds.search.trials import Task
from edgekd.core.progress import SILENT
from edgekd.deploy.fleet import Board
from edgekd.hardware.target import load_target

MAKE_S, BOARD_S = 0.5, 0.3  # durations of a null trial: making the candidate, timing it on a board
SIZES = ((6, 2, 6), (6, 2, 18), (16, 4, 48), (64, 4, 64), (64, 16, 64), (64, 16, 192), (256, 64, 256), (256, 64, 768))
"""GPUs, boards and candidates per round of the simulated searches."""
FULL_S, FIXED_S, BOARD_FULL_S = 3600.0, 180.0, 300.0
"""Seconds of a simulated trial: a full training on a GPU, the fixed part, and timing on a board."""
EPOCH_STATE = 80_000_000
"""Bytes that a training of 5 M parameters writes after every epoch: weights, moving average, AdamW's two moments."""
EPOCHS = 30
KEPT = 45_000_000
"""Bytes that a trial of such a detector keeps: a checkpoint, three float graphs, a quantized graph, a bundle."""


def null_made(task: Task, folder: Path) -> Point:
    """Sleep for MAKE_S in place of making a candidate."""
    began = time.time()
    time.sleep(MAKE_S)
    _write_note(folder, task, {"made": [began, time.time()]})
    return Point(task.candidate, task.rung, 1.0, Cost(1.0, 1.0, None), MAKE_S)


def null_timed(task: Task, point: Point, folder: Path) -> Point:
    """Sleep for BOARD_S in place of timing, while a board is leased."""
    with leased("bench-board", [board.name for board in task.boards]) as name:
        began = time.time()
        time.sleep(BOARD_S)
        _write_note(folder, task, {"timed": [began, time.time()], "board": name})
    return replace(point, seconds=point.seconds + BOARD_S)


def _write_note(folder: Path, task: Task, content: dict[str, Any]) -> None:
    with (folder / "notes.jsonl").open("a", encoding="utf-8") as notes:
        notes.write(json.dumps({"of": task.candidate.image_size, **content}) + "\n")


def null_task(at: int, boards: Sequence[Board], folder: Path) -> Task:
    """Return the description of a trial, of realistic size."""
    job = BuildRequest(
        Path("/data/yolo11s.pt"), Path("/data/street"), load_target("xavier"), load_recipe("full"), folder
    )
    return Task(job, Candidate(None, at), 0, 100_000, "0" * 64, tuple(boards))


def measured(workers: int, boards: int, each: int, folder: Path) -> list[Document]:
    """Measure a round without boards and one with boards, after a round that starts the worker processes."""
    (folder / "search").mkdir(parents=True)
    with joined_cluster(LOCAL, 0, workers, boards, cores=workers) as cluster:
        one_each = replace(cluster, cpus=1)
        took(one_each, 4 * workers, boards, folder)
        return [took(one_each, each * workers, some, folder) for some in (0, boards)]


def took(cluster: Cluster, trials: int, boards: int, folder: Path) -> Document:
    """Run a round and return its row. `busy`: share of the workers' time spent in trials.

    Raises SystemExit if results come back out of order, or two trials use a board at once.
    """
    rack, workers = tuple(Board(f"board{at}", "null") for at in range(boards)), cluster.slots
    notes_file = folder / "notes.jsonl"
    notes_file.unlink(missing_ok=True)

    def task(wanted: tuple[Candidate, int]) -> Task:
        return null_task(wanted[0].image_size, rack, folder)

    with cluster_trials(cluster, task, folder, SILENT, (null_made, null_timed)) as run_trials:
        began = time.monotonic()
        found = run_trials([(Candidate(None, at), 0) for at in range(trials)])
        wall = time.monotonic() - began
    if [point.candidate.image_size for point in found] != list(range(trials)):
        raise SystemExit("answers came back in another order")
    notes = [json.loads(line) for line in notes_file.read_text("utf-8").splitlines()]
    ends = {each["of"]: each["made"][1] for each in notes if "made" in each}
    waits = [each["timed"][0] - ends[each["of"]] for each in notes if "timed" in each]
    _require_one_at_a_time(notes)
    least = counted([MAKE_S] * trials, workers, boards, BOARD_S)[0]
    row = Document(workers=workers, boards=boards, trials=trials, wall_s=wall, least_s=least)
    row.update(overhead_s=(wall - least) * workers / trials, waited_s=sum(waits) / len(waits) if waits else 0.0)
    return Document(row, busy=trials * MAKE_S / (wall * workers))


def _require_one_at_a_time(notes: Sequence[dict[str, Any]]) -> None:
    """Raise SystemExit if two trials used a board at the same time."""
    for board in {each["board"] for each in notes if "board" in each}:
        turns = sorted(each["timed"] for each in notes if each.get("board") == board)
        if any(later[0] < earlier[1] for earlier, later in pairwise(turns)):
            raise SystemExit(f"{board}: two trials at a time")


def counted(seconds: Sequence[float], slots: int, boards: int, board_s: float) -> tuple[float, float, float]:
    """Simulate a round in which each trial takes the first free slot, and then the first free board.

    Returns the seconds of the round, and the total seconds that boards were busy and that trials waited for them.
    """
    free, racks = [0.0] * slots, [0.0] * boards
    ends, waited = [], 0.0
    for each in seconds:
        end = heapq.heappop(free) + each
        heapq.heappush(free, end)
        ends.append(end)
    if not boards:
        return max(ends), 0.0, 0.0
    last = 0.0
    for end in sorted(ends):
        begin = max(heapq.heappop(racks), end)
        waited += begin - end
        last = begin + board_s
        heapq.heappush(racks, last)
    return max(last, max(racks)), board_s * len(ends), waited


def grown(gpus: int, boards: int, batch: int, trials: int, overhead_s: float, ray_bytes: int) -> Document:
    """Simulate a search in rounds of `batch` candidates, the best of which are trained further.

    `gpu_busy` and `board_busy` are shares of the search's wall time.
    """
    wall = made = timed = waited = written = 0.0
    tries = 0
    for first in range(0, trials, batch):
        count = min(batch, trials - first)
        for rung in RUNGS:
            each = FIXED_S + rung.trained * FULL_S + overhead_s
            last, on_boards, queued = counted([each] * count, gpus, boards, BOARD_FULL_S)
            wall, made, timed = wall + last, made + each * count, timed + on_boards
            waited, tries = waited + queued, tries + count
            written += count * (KEPT + EPOCH_STATE * EPOCHS * rung.trained)
            count = ceil(count / ETA)
    row = Document(gpus=gpus, boards=boards, batch=batch, tries=tries, hours=wall / 3600, gpu_busy=made / (wall * gpus))
    row.update(board_busy=timed / (wall * boards), board_wait_s=waited / tries, shared_gb=written / 1e9)
    return Document(row, shared_mb_s=written / 1e6 / wall, ray_mb=tries * ray_bytes / 1e6)


def page(found: Document) -> Blocks:
    yield "# Trials on a cluster: overhead and scaling"
    yield (
        f"`python bench/cluster_scale.py`: null trials of {MAKE_S} s, and {BOARD_S} s on a board, on Ray "
        f"{found.ray} with a process for each worker, all on one machine."
    )
    yield table(
        "workers | boards | trials | took s | at least s | overhead a trial ms | waited for a board s | busy",
        (
            f"{row.workers} | {row.boards} | {row.trials} | {row.wall_s:.2f} | {row.least_s:.2f} | "
            f"{1000 * row.overhead_s:.0f} | {row.waited_s:.2f} | {row.busy:.0%}"
            for row in found.measured
        ),
    )
    yield (
        f"A trial moves {found.ray_bytes:,} bytes through Ray: its description, pickled, and its answer. No two "
        "trials were on a board at the same time: a run in which that happens ends with an error."
    )
    yield (
        f"Counted, not run: {found.trials} candidates; a full training of "
        f"{FULL_S / 60:.0f} minutes ({EPOCHS} epochs), {FIXED_S / 60:.0f} minutes that do not shrink with it, "
        f"{BOARD_FULL_S / 60:.0f} minutes on a board; {1000 * found.overhead_s:.0f} ms overhead, the largest of the "
        f"above; a trial keeps {KEPT / 1e6:.0f} MB and writes {EPOCH_STATE / 1e6:.0f} MB after every epoch."
    )
    yield table(
        "GPUs | boards | round | tries | hours | GPUs busy | boards busy | waited for a board s | written GB | MB/s | "
        "through Ray MB",
        (
            f"{row.gpus} | {row.boards} | {row.batch} | {row.tries} | {row.hours:.2f} | {row.gpu_busy:.0%} | "
            f"{row.board_busy:.0%} | {row.board_wait_s:.0f} | {row.shared_gb:.1f} | {row.shared_mb_s:.0f} | "
            f"{row.ray_mb:.2f}"
            for row in found.grown
        ),
    )
    yield (
        "GPUs rest while a third of the candidates of a round is trained, and while its last networks are on boards. "
        "Rounds of three times as many candidates as there are GPUs, and several searches on one cluster, fill the "
        "gaps."
    )


def run(given: Given) -> Result:
    names = ("ray", "conditions", "ray_bytes", "measured", "overhead_s")
    earlier = read(given.out.read_text("utf-8")) if given.recount else measured_here(given)
    counts = [grown(*size, given.trials, earlier.overhead_s, earlier.ray_bytes) for size in SIZES]
    return {**{name: earlier[name] for name in names}, "grown": counts}


def measured_here(given: Given) -> Document:
    """Measure null trials on Ray clusters on this machine."""
    import ray

    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # all cores: Ray starts a process per worker
    asked = null_task(0, (), Path("/data/out"))
    answer = Point(asked.candidate, 0, 1.0, Cost(1.0, 1.0, None), 1.0)
    ray_bytes = len(pickle.dumps(asked)) + len(pickle.dumps(answer))
    rows = []
    for workers in given.workers:
        rows += measured(workers, ceil(workers / 2), given.each, given.scratch / str(workers))
        note(*rows[-2:])
    overhead = max(row.overhead_s for row in rows)
    return Document(
        ray=ray.__version__, conditions=conditions(1), ray_bytes=ray_bytes, measured=rows, overhead_s=overhead
    )


if __name__ == "__main__":
    options = (
        Option("--workers", [1, 2, 4]),
        Option("--each", 6, "trials for each worker"),
        Option("--trials", 2304, "candidates of the search that is counted"),
        Option("--recount", False, "count on the measurements in --out, and measure nothing"),
    )
    main(run, page, *options, cores=1)
