"""Kill searches at random moments, run the same command again, and check the result.

The search uses the tests' tiny detector and predicted latencies. It must find the winner of an undisturbed search with
the same trials, and must not repeat finished ones.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import HERE
from frame import Blocks, Document, Given, Option, Result, head, in_process, main, note, table, yes

sys.path.insert(0, str(HERE.parent / "tests"))
import tiny

from edgekd.builds.recipe import load_recipe
from edgekd.builds.run import BuildRequest
from edgekd.builds.search.setup import SearchJob
from edgekd.commands.search import run as run_search
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import load_target

SEED = 0
BUDGET = Budget(max_bytes=600_000, min_retention=0.999)


class Bench:
    """A model with its data, and the result of an undisturbed search."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.model = tiny.write_model(scratch / "tiny.onnx")
        self.data = tiny.write_data(scratch / "data", 24, 8)
        began = time.monotonic()
        self._run(scratch / "undisturbed", 1)
        self.seconds = time.monotonic() - began
        self.reference = outcome(scratch / "undisturbed")
        self.stages = stages(scratch / "undisturbed")

    def kill(self, index: int, rng: random.Random) -> Result:
        """Kill a search a random time after a random number of stages, and run it again. Return the row.

        `after`: number of stages; `delay_s`: seconds after them; `finished`: trials that were finished at the kill;
        `repeated`: how many of these ran again; `left`: unfinished stage folders after the second run; `same`: whether
        winner and trials equal those of an undisturbed search.
        """
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
        now = outcome(out)
        return {
            "after": after,
            "delay_s": round(delay_s, 3),
            "workers": workers,
            "finished": len(kept),
            "repeated": sum(path.read_bytes() != content for path, content in kept.items()),
            "left": sum(1 for path in out.rglob("*") if path.name.endswith("-tmp")),
            "same": now == self.reference,
            "winner": now["winner"]["text"],
        }

    def _run(self, out: Path, workers: int) -> None:
        with self._started(out, workers) as process:
            _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"the search failed: {errors.decode()[-500:]}")

    def _started(self, out: Path, workers: int) -> subprocess.Popen[bytes]:
        command = in_process(search, model=self.model, data=self.data, out=out, workers=workers)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def search(model: str, data: str, out: str, workers: int) -> Result:
    """Run the search of `edgekd build --search`, without the build of the winner."""
    recipe, target = load_recipe("ptq"), load_target("xavier")
    run_search(SearchJob(BuildRequest(Path(model), Path(data), target, recipe, Path(out), BUDGET), workers=workers))
    return {}


def stages(out: Path) -> int:
    return len(list(out.glob("stages/*/stage.json")))


def outcome(out: Path) -> Result:
    """Return the result of a search without its times."""
    found = json.loads((out / "search.json").read_bytes())
    for part in (found, found["winner"], *found["points"]):
        del part["seconds"]
    return dict(found)


def page(found: Document) -> Blocks:
    kills = found.kills
    yield from head("Searches that are killed", found)
    yield f"""\
An undisturbed search, without the build of its winner, takes {found.seconds:.1f} s: {found.stages}
stages, {found.trials} of them trials on three rungs of {found.candidates} candidates; winner:
{found.winner}. Killed without warning at a random moment, and run again to its end in the same way.
*Finished*: trials that were done when it was killed. *Left*: half-written stages in the end. *Same*: the
winner, and every trial with its result, are those of the undisturbed search."""
    yield table(
        "killed after | workers | finished | of these repeated | left | same",
        (
            f"{kill.after} stages and {kill.delay_s:.2f} s | {kill.workers} | {kill.finished} | {kill.repeated} | "
            f"{kill.left} | {yes(kill.same, '**NO**')}"
            for kill in kills
        ),
    )
    repeated = sum(kill.repeated for kill in kills)
    same = sum(kill.same for kill in kills)
    yield f"{same} of {len(kills)} found the same; {repeated} finished trials were repeated."


def run(given: Given) -> Result:
    rng, bench, kills = random.Random(SEED), Bench(given.scratch), []
    for index in range(given.kills):
        kills.append(bench.kill(index, rng))
        note(kills[-1])
    return {
        "seconds": round(bench.seconds, 2),
        "stages": bench.stages,
        "trials": len(list((given.scratch / "undisturbed").glob("stages/trial-*/"))),
        "candidates": bench.reference["candidates"],
        "winner": bench.reference["winner"]["text"],
        "kills": kills,
    }


if __name__ == "__main__":
    main(run, page, Option("--kills", 20))
