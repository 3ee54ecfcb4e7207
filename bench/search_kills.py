"""What a search that is killed at a random moment leaves, and what the same command makes of it.

The search is of the tests' tiny detector: five candidates, each made, scored and timed by prediction as any. It is
killed without warning `--kills` times, each time in an empty folder, after a number of stages and a time that are drawn
with a seed, half of the time with two workers; then the same command is run to its end. It has to find the winner of a
search that nobody disturbed, after the same trials, and must not repeat one that was finished.

    python bench/search_kills.py
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import HERE, RESULTS, conditions, conditions_lines, table, use_cores, write_results

sys.path.insert(0, str(HERE.parent / "tests"))
import tiny

from edgekd.builds.recipe import Budget, load_recipe
from edgekd.builds.run import Job
from edgekd.builds.search.setup import SearchJob
from edgekd.commands.search import run
from edgekd.hardware.target import load_target

SEED = 0
BUDGET = Budget(max_bytes=600_000, min_retention=0.999)


@dataclass(frozen=True)
class Kill:
    """One killed search.

    after: so many stages were done, and delay_s: so many seconds later, it was killed; finished: trials that were done
    by then; repeated: how many of them were done again; left: half-written stages after the next run; same: winner and
    trials are those of an undisturbed search.
    """

    after: int
    delay_s: float
    workers: int
    finished: int
    repeated: int
    left: int
    same: bool
    winner: str


class Bench:
    """The pair, and what an undisturbed search makes of it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.model = tiny.write_model(scratch / "tiny.onnx")
        self.data = tiny.write_data(scratch / "data", 24, 8)
        began = time.monotonic()
        self._run(scratch / "undisturbed", 1)
        self.seconds = time.monotonic() - began
        self.reference = told(scratch / "undisturbed")
        self.stages = stages(scratch / "undisturbed")

    def kill(self, index: int, rng: random.Random) -> Kill:
        """Kill one search, and run it again."""
        out, workers = self.scratch / f"kill{index}", 1 + index % 2
        after, delay_s = rng.randrange(self.stages), rng.uniform(0, self.seconds / self.stages)
        with self._started(out, workers) as process:
            while stages(out) < after and process.poll() is None:
                time.sleep(0.01)
            try:
                process.wait(delay_s)
                raise SystemExit(f"kill {index}: it was done before it was killed")
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        kept = {path: path.read_bytes() for path in out.glob("stages/trial-*/stage.json")}
        self._run(out, workers)
        now = told(out)
        return Kill(
            after=after,
            delay_s=round(delay_s, 3),
            workers=workers,
            finished=len(kept),
            repeated=sum(path.read_bytes() != content for path, content in kept.items()),
            left=sum(1 for path in out.rglob("*") if path.name.endswith("-tmp")),
            same=now == self.reference,
            winner=now["winner"]["text"],
        )

    def _run(self, out: Path, workers: int) -> None:
        with self._started(out, workers) as process:
            _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"the search failed: {said.decode()[-500:]}")

    def _started(self, out: Path, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--search", str(self.model), str(self.data), str(out), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def search(model: str, data: str, out: str, workers: str) -> None:
    """What `edgekd build --search` does before it builds the winner."""
    recipe, target = load_recipe("ptq"), load_target("xavier")
    run(SearchJob(Job(Path(model), Path(data), target, recipe, Path(out), BUDGET), workers=int(workers)))


def stages(out: Path) -> int:
    """How many stages are done."""
    return len(list(out.glob("stages/*/stage.json")))


def told(out: Path) -> dict[str, Any]:
    """What a search found, but for how long it took."""
    found = json.loads((out / "search.json").read_bytes())
    points = [found["winner"], *found["points"]]
    for point in points:
        del point["seconds"]
    del found["seconds"]
    return dict(found)


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            f"{kill['after']} stages and {kill['delay_s']:.2f} s",
            str(kill["workers"]),
            str(kill["finished"]),
            str(kill["repeated"]),
            str(kill["left"]),
            "yes" if kill["same"] else "**NO**",
        ]
        for kill in found["kills"]
    ]
    kills = found["kills"]
    same, repeated = sum(kill["same"] for kill in kills), sum(kill["repeated"] for kill in kills)
    return [
        "# Searches that are killed",
        "",
        f"`{found['command']}`",
        "",
        f"An undisturbed search, without the build of its winner, takes {found['seconds']:.1f} s: {found['stages']}",
        f"stages, {found['trials']} of them trials on three rungs of {found['candidates']} candidates; winner:",
        f"{found['winner']}. Killed without warning at a random moment, and run again to its end in the same way.",
        "*Finished*: trials that were done when it was killed. *Left*: half-written stages in the end. *Same*: the",
        "winner, and every trial with its result, are those of the undisturbed search.",
        "",
        *table(["killed after", "workers", "finished", "of these repeated", "left", "same"], rows),
        "",
        f"{same} of {len(kills)} found the same; {repeated} finished trials were repeated.",
        "",
        *conditions_lines(found),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "search_kills.json")
    parser.add_argument("--search", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        search(*given.search)
        return
    use_cores(given.threads)
    found = conditions(given.threads)
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        bench = Bench(Path(scratch))
        kills = []
        for index in range(given.kills):
            kills.append(bench.kill(index, rng))
            print(kills[-1], file=sys.stderr, flush=True)
        trials = len(list((Path(scratch) / "undisturbed").glob("stages/trial-*/")))
    document = {
        "command": f"python bench/search_kills.py --kills {given.kills}",
        **found,
        "seconds": round(bench.seconds, 2),
        "stages": bench.stages,
        "trials": trials,
        "candidates": bench.reference["candidates"],
        "winner": bench.reference["winner"]["text"],
        "kills": [asdict(kill) for kill in kills],
    }
    write_results(given.out, document, page(document))


if __name__ == "__main__":
    main()
