"""What a cluster adds to the trials of a search, and how a search grows on it: null trials, which take as long as told.

First on this machine: a Ray cluster of processes, and rounds of trials through
`edgekd.builds.search.cluster` that sleep in
place of making and timing a network. Everything else is as in a search: the tasks, Ray's queue for machines and for
boards, the leases, the shared folder. A trial's share of what a round took longer than it had to is the overhead.

Then with a clock that is only counted: a search of `--trials` candidates in rounds, early stopping as it is, on up to
hundreds of GPUs and boards, each trial with the overhead that was measured. Beside it the bytes that are moved: through
Ray, as a task and its answer are pickled; in the shared folder, by the sizes of what a trial of a detector keeps.

    python bench/cluster_scale.py
"""

from __future__ import annotations

import argparse
import heapq
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, write_results

from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import Job
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

MAKE_S, BOARD_S = 0.5, 0.3
"""What a null trial takes here: to be made, and to be timed on a board."""
FULL_S, FIXED_S, BOARD_FULL_S = 3600.0, 180.0, 300.0
"""What is counted of a trial: a full training on a GPU, what does not shrink with it, and a board's turn."""
EPOCH_STATE = 80_000_000
"""Bytes that a training writes after every epoch: weights, their average and AdamW's two moments, of 5 M parameters."""
EPOCHS = 30
KEPT = 45_000_000
"""Bytes that a trial of such a detector keeps: a checkpoint, three float graphs, a quantized one, a bundle."""


@dataclass(frozen=True)
class Row:
    """Trials of one round on real processes. Seconds; busy: the share of the workers' time that trials took."""

    workers: int
    boards: int
    trials: int
    wall_s: float
    least_s: float
    overhead_s: float
    waited_s: float
    busy: float


@dataclass(frozen=True)
class Grown:
    """A whole search as it is counted. gpu_busy, board_busy: shares of the time that the search took."""

    gpus: int
    boards: int
    batch: int
    tries: int
    hours: float
    gpu_busy: float
    board_busy: float
    board_wait_s: float
    shared_gb: float
    shared_mb_s: float
    ray_mb: float


def null_made(task: Task, folder: Path) -> Point:
    """A candidate that takes its time."""
    began = time.time()
    time.sleep(MAKE_S)
    _note(folder, task, {"made": [began, time.time()]})
    return Point(task.candidate, task.rung, 1.0, Cost(1.0, 1.0, None), MAKE_S)


def null_timed(task: Task, point: Point, folder: Path) -> Point:
    """A board that takes its time; nobody else gets it meanwhile."""
    with leased("bench-board", [board.name for board in task.boards]) as name:
        began = time.time()
        time.sleep(BOARD_S)
        _note(folder, task, {"timed": [began, time.time()], "board": name})
    return replace(point, seconds=point.seconds + BOARD_S)


def _note(folder: Path, task: Task, told: dict[str, Any]) -> None:
    with (folder / "notes.jsonl").open("a", encoding="utf-8") as notes:
        notes.write(json.dumps({"of": task.candidate.image_size, **told}) + "\n")


def null_task(at: int, boards: Sequence[Board], folder: Path) -> Task:
    """The description of a trial, as large as a real one."""
    job = Job(Path("/data/yolo11s.pt"), Path("/data/street"), load_target("xavier"), load_recipe("full"), folder)
    return Task(job, Candidate(None, at), 0, 100_000, "0" * 64, tuple(boards))


def measured(workers: int, boards: int, each: int) -> list[Row]:
    """Rounds on real processes, without boards and with some, after a round that only starts the processes."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch)
        (folder / "search").mkdir()
        with joined_cluster(LOCAL, 0, workers, boards, cores=workers) as cluster:
            one_each = replace(cluster, cpus=1)
            took(one_each, 4 * workers, boards, folder)
            return [took(one_each, each * workers, some, folder) for some in (0, boards)]


def took(cluster: Cluster, trials: int, boards: int, folder: Path) -> Row:
    """What a round took."""
    rack, workers = tuple(Board(f"board{at}", "null") for at in range(boards)), cluster.slots
    notes = folder / "notes.jsonl"
    notes.unlink(missing_ok=True)

    def task(wanted: tuple[Candidate, int]) -> Task:
        return null_task(wanted[0].image_size, rack, folder)

    with cluster_trials(cluster, task, folder, SILENT, (null_made, null_timed)) as run_trials:
        began = time.monotonic()
        found = run_trials([(Candidate(None, at), 0) for at in range(trials)])
        wall = time.monotonic() - began
    if [point.candidate.image_size for point in found] != list(range(trials)):
        raise SystemExit("answers came back in another order")
    told = [json.loads(line) for line in notes.read_text("utf-8").splitlines()]
    ends = {note["of"]: note["made"][1] for note in told if "made" in note}
    waits = [note["timed"][0] - ends[note["of"]] for note in told if "timed" in note]
    _require_one_at_a_time(told)
    least = counted([MAKE_S] * trials, workers, boards, BOARD_S)[0]
    overhead, waited = (wall - least) * workers / trials, sum(waits) / len(waits) if waits else 0.0
    return Row(workers, boards, trials, wall, least, overhead, waited, trials * MAKE_S / (wall * workers))


def _require_one_at_a_time(notes: Sequence[dict[str, Any]]) -> None:
    """Boards are for one trial at a time: a bench in which they were not has measured something else."""
    for board in {note["board"] for note in notes if "board" in note}:
        turns = sorted(note["timed"] for note in notes if note.get("board") == board)
        if any(later[0] < earlier[1] for earlier, later in pairwise(turns)):
            raise SystemExit(f"{board}: two trials at a time")


def counted(seconds: Sequence[float], slots: int, boards: int, board_s: float) -> tuple[float, float, float]:
    """A round in which each trial takes the first free slot, and then the first free board.

    The time of the last one to end, and in all what boards did and what was waited for them.
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


def grown(gpus: int, boards: int, batch: int, trials: int, overhead_s: float, ray_bytes: int) -> Grown:
    """A search of so many candidates in rounds of `batch`, the best of them tried further."""
    wall = made = timed = waited = written = 0.0
    tries = 0
    for first in range(0, trials, batch):
        count = min(batch, trials - first)
        for rung in RUNGS:
            each = FIXED_S + rung.share * FULL_S + overhead_s
            last, on_boards, queued = counted([each] * count, gpus, boards, BOARD_FULL_S)
            wall, made, timed = wall + last, made + each * count, timed + on_boards
            waited, tries = waited + queued, tries + count
            written += count * (KEPT + EPOCH_STATE * max(round(EPOCHS * rung.share), 1))
            count = ceil(count / ETA)
    return Grown(
        gpus,
        boards,
        batch,
        tries,
        wall / 3600,
        made / (wall * gpus),
        timed / (wall * boards),
        waited / tries,
        written / 1e9,
        written / 1e6 / wall,
        tries * ray_bytes / 1e6,
    )


def page(found: dict[str, Any]) -> list[str]:
    """The result as Markdown."""
    return [
        "# Trials on a cluster: what it adds, and how it grows",
        "",
        f"`python bench/cluster_scale.py`: null trials of {MAKE_S} s, and {BOARD_S} s on a board, on Ray "
        f"{found['ray']} with a process for each worker, all on one machine.",
        "",
        *table(
            [
                "workers",
                "boards",
                "trials",
                "took s",
                "at least s",
                "overhead a trial ms",
                "waited for a board s",
                "busy",
            ],
            [
                [
                    str(row["workers"]),
                    str(row["boards"]),
                    str(row["trials"]),
                    f"{row['wall_s']:.2f}",
                    f"{row['least_s']:.2f}",
                    f"{1000 * row['overhead_s']:.0f}",
                    f"{row['waited_s']:.2f}",
                    f"{row['busy']:.0%}",
                ]
                for row in found["measured"]
            ],
        ),
        "",
        f"A trial moves {found['ray_bytes']:,} bytes through Ray: its description, pickled, and its answer. No two "
        "trials were on a board at the same time: a run in which that happens ends with an error.",
        "",
        f"Counted, not run: {found['trials']} candidates; a full training of "
        f"{FULL_S / 60:.0f} minutes ({EPOCHS} epochs), {FIXED_S / 60:.0f} minutes that do not shrink with it, "
        f"{BOARD_FULL_S / 60:.0f} minutes on a board; {1000 * found['overhead_s']:.0f} ms overhead, the largest of the "
        f"above; a trial keeps {KEPT / 1e6:.0f} MB and writes {EPOCH_STATE / 1e6:.0f} MB after every epoch.",
        "",
        *table(
            [
                "GPUs",
                "boards",
                "round",
                "tries",
                "hours",
                "GPUs busy",
                "boards busy",
                "waited for a board s",
                "written GB",
                "MB/s",
                "through Ray MB",
            ],
            [
                [
                    str(row["gpus"]),
                    str(row["boards"]),
                    str(row["batch"]),
                    str(row["tries"]),
                    f"{row['hours']:.2f}",
                    f"{row['gpu_busy']:.0%}",
                    f"{row['board_busy']:.0%}",
                    f"{row['board_wait_s']:.0f}",
                    f"{row['shared_gb']:.1f}",
                    f"{row['shared_mb_s']:.0f}",
                    f"{row['ray_mb']:.2f}",
                ]
                for row in found["grown"]
            ],
        ),
        "",
        "GPUs rest while the best third, and the best ninth, of a round is tried more thoroughly, and while its last "
        "networks are on boards: the price of early stopping. Rounds of nine times as many candidates as there are "
        "GPUs, and several searches on one cluster, fill the gaps.",
        "",
        *conditions_lines(found["conditions"]),
    ]


def main() -> None:
    """Measure, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--each", type=int, default=6, help="trials for each worker")
    parser.add_argument("--trials", type=int, default=2304, help="candidates of the search that is counted")
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster_scale.json")
    given = parser.parse_args()
    import ray

    asked = null_task(0, (), Path("/data/out"))
    answer = Point(asked.candidate, 0, 1.0, Cost(1.0, 1.0, None), 1.0)
    found: dict[str, Any] = {
        "ray": ray.__version__,
        "conditions": conditions(1),
        "trials": given.trials,
        "ray_bytes": len(pickle.dumps(asked)) + len(pickle.dumps(answer)),
    }
    rows = []
    for workers in given.workers:
        rows += measured(workers, ceil(workers / 2), given.each)
        print(*rows[-2:], sep="\n", file=sys.stderr)
    found["measured"] = [asdict(row) for row in rows]
    found["overhead_s"] = max(row.overhead_s for row in rows)
    sizes = [
        (6, 2, 6),
        (6, 2, 54),
        (16, 4, 144),
        (64, 4, 64),
        (64, 16, 64),
        (64, 16, 576),
        (256, 64, 256),
        (256, 64, 2304),
    ]
    found["grown"] = [asdict(grown(*size, given.trials, found["overhead_s"], found["ray_bytes"])) for size in sizes]
    write_results(given.out, found, page(found))


if __name__ == "__main__":
    main()
