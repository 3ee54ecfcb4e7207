"""What the benchmarks share: the machine they run on, the data they run on, and how a result is written."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from edgekd.core.atomic_files import write_file
from edgekd.core.errors import EdgeKDError
from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset, Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.coco import Score
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

R = TypeVar("R", bound=Any)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parent.parent / "shared"
"""Where models and data lie unless `--shared` says otherwise."""
SPLITS = ("val", "test")
"""What trained detectors are scored on."""
FRAMES = "frames"
"""Of copied data: the images whose labels nobody gets."""


def conditions(threads: int) -> dict[str, Any]:
    """What a result must say about where and when: the clock's date, the machine, and how busy it was before."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": LocalDevice(ONNXRUNTIME_CPU, threads).facts().as_json(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def host_line(host: Mapping[str, Any]) -> str:
    """The machine and its libraries in a sentence."""
    libraries = ", ".join(f"{name} {version}" for name, version in host["libraries"].items())
    return f"Host: {host['cpu']}, {host['cores']} usable cores, {host['os']}, Python {host['python']}; {libraries}."


def conditions_lines(found: Mapping[str, Any]) -> list[str]:
    """Date, load and machine, for the foot of a page."""
    load = f"{found['load_before']:.2f} processes were running on average in the minute before the first row"
    lines = [f"{found['date']}; {load} (0 is an idle machine).", "", host_line(found["host"])]
    if also := found.get("taken_up_on"):
        lines += ["", f"Cut, and taken up on another machine: {', '.join(also)}; times of rows differ by it."]
    return lines


def use_cores(count: int) -> None:
    """Keep this process and all it starts to `count` cores: every tool then sees the same machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def write_results(out: Path, found: Mapping[str, Any], page: Sequence[str]) -> None:
    """Write a result as JSON and, beside it, as Markdown; print the page."""
    print(write_pair(out, found, page))


def write_pair(out: Path, found: Mapping[str, Any], page: Sequence[str]) -> str:
    """Write a result as JSON and, beside it, as Markdown; the page as one text."""
    text = "\n".join(page) + "\n"
    write_file(out, (json.dumps(found, indent=1) + "\n").encode())
    write_file(out.with_suffix(".md"), text.encode())
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def copy_data(source: Path, folder: Path, images: int | None, unlabelled: float = 0.0) -> Path:
    """A data set in YOLO layout, copied, because Ultralytics writes caches into it. Returns its YAML.

    images: of each split, in the order of their names; None for all. unlabelled: the share of the training images that
    go into the folder FRAMES instead, without their labels, always the same ones.
    """
    described = yaml.safe_load((source / "data.yaml").read_text("utf-8"))
    splits = [split for split in ("train", "val", "test") if split in described]
    (folder / FRAMES).mkdir(parents=True)
    for split in splits:
        shown = Path(described[split])
        told = Path("labels", *shown.parts[1:])
        (folder / shown).mkdir(parents=True)
        (folder / told).mkdir(parents=True)
        found = sorted((source / shown).iterdir())[:images]
        for at, image in enumerate(found):
            # Spread evenly: one more each time that the share of what has gone by is another whole number.
            if split == "train" and int((at + 1) * unlabelled) > int(at * unlabelled):
                shutil.copyfile(image, folder / FRAMES / image.name)
                continue
            shutil.copyfile(image, folder / shown / image.name)
            label = told / f"{image.stem}.txt"
            if (source / label).is_file():  # an image with nothing in it may have none
                shutil.copyfile(source / label, folder / label)
    file = folder / "data.yaml"
    kept = {key: described[key] for key in (*splits, "names")}
    file.write_text(yaml.safe_dump({"path": str(folder), **kept}), "utf-8")
    return file


def ultralytics_environment(folder: Path) -> dict[str, str]:
    """The environment in which Ultralytics installs, downloads and reports nothing; its settings go to `folder`."""
    settings = folder / "Ultralytics"
    settings.mkdir(parents=True)
    # A font that is there is not downloaded. Nothing is drawn with it.
    (settings / "Arial.ttf").touch()
    environment = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "True",
        "YOLO_AUTOINSTALL": "False",
        "MPLCONFIGDIR": str(folder),
        "PYTHONHASHSEED": "0",
    }
    # Its first start writes its settings, and says so on stdout: not in anybody's measured time.
    yolo = Path(sys.executable).with_name("yolo")
    subprocess.run([yolo, "settings", "sync=False"], env=environment, check=True, capture_output=True)
    return environment


def without_folders(text: str, *folders: Path) -> str:
    """A message of somebody else's without the folders of this machine."""
    known = (*folders, HERE.parent, Path(sys.prefix), Path.home())
    for folder in sorted({str(path) for path in known}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def answer(jobs: Mapping[str, Callable[..., dict[str, Any]]], asked: Mapping[str, Any]) -> int:
    """What a process of its own does: the job named by `do`; prints what came of it, and what is installed. Gives 0."""
    packages = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    took = jobs[asked["do"]](**{name: value for name, value in asked.items() if name != "do"})
    print("\n" + json.dumps({**took, "packages": packages}))
    return 0


class JobError(Exception):
    """A process made nothing; the last line of what it said."""


class Resumable(Generic[R]):
    """A bench of trainings, each a process of its own. Finished rows are kept in `--work`, where a cut run goes on.

    Rows are dataclasses with `method`, `seed`, `map50_95`, `map50` by split, and `error`. asked: names of the arguments
    that a run must share with the one whose rows it takes over; `model` is always among them.
    """

    asked: tuple[str, ...] = ()

    def __init__(self, given: argparse.Namespace, scratch: Path, row: Callable[..., R]) -> None:
        self.given = given
        self.progress = PlainProgress(interval_s=30)
        self.rows: list[R] = []
        self.packages: dict[str, dict[str, str]] = {}
        self.conditions = conditions(given.threads)
        self._row = row
        self._state = given.work / "rows.json"
        self._asked = {name: getattr(given, name) for name in self.asked}
        self._asked["model"] = hashlib.sha256(given.model.read_bytes()).hexdigest()
        self._take_up()
        self._scored: Dataset = load_dataset(given.data)
        self.data = given.work / "data" / "data.yaml"
        if not self.data.is_file():  # it is written last
            shutil.rmtree(self.data.parent, ignore_errors=True)
            copy_data(given.data, self.data.parent, given.images, getattr(given, "unlabelled", 0.0))
        hidden = {} if given.device != "cpu" else {"CUDA_VISIBLE_DEVICES": ""}
        threads = {"OMP_NUM_THREADS": str(given.threads)}  # Ultralytics sets it to 1 unless somebody has set it
        self._environment = {**ultralytics_environment(scratch), **hidden, **threads}

    def split(self, name: str) -> Split:
        """A split as it is scored: as many of its images as were asked for."""
        whole = self._scored.split(name)
        return replace(whole, samples=whole.samples[: self.given.images])

    def add(self, row: R) -> None:
        """Keep a finished row."""
        self.rows.append(row)
        rows = [asdict(row) for row in self.rows]
        state = {"asked": self._asked, "conditions": self.conditions, "packages": self.packages, "rows": rows}
        write_file(self._state, json.dumps(state, indent=1).encode())
        what = row.error or ", ".join(f"{split} {score:.4f}" for split, score in row.map50_95.items())
        self.progress.note(f"{row.method}, seed {row.seed}: {what}")

    def add_made(self, method: str, seed: int | None, make: Callable[[], R]) -> None:
        """Make a row and keep it; one that fails says why."""
        try:
            row = make()
        except (JobError, EdgeKDError) as error:
            told = [value for value in vars(self.given).values() if isinstance(value, Path)]
            said = without_folders(str(error), *told)
            row = self._row(method, seed, error=said[:300])
        self.add(row)

    def missing(self, method: str, seed: int | None = None) -> bool:
        """Whether a row is still to be made."""
        return not any(row.method == method and row.seed == seed for row in self.rows)

    def with_scores(self, row: R, graph: Path) -> R:
        """The row with what its graph scores on every split."""
        from edgekd.detectors.onnx import describe
        from edgekd.evaluation.evaluate import evaluate
        from edgekd.graph.view import load_graph

        spec = describe(load_graph(graph), graph)
        scores = {name: evaluate(graph, spec, self.split(name)).score for name in SPLITS}
        return replace(row, **self.noted(scores))

    def noted(self, scores: Mapping[str, Score]) -> dict[str, Any]:
        """What a row keeps of the scores of its splits."""
        return {
            name: {split: getattr(score, name) for split, score in scores.items()} for name in ("map50_95", "map50")
        }

    def process(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        """Run a command with its output in a log of that name; the JSON object on its last line. Raises JobError."""
        log = self.given.work / f"{name}.log"
        self.progress.note(f"{name}: running, see {log} ...")
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, env=self._environment, cwd=self.given.work, stdout=output, stderr=output)
        said = log.read_text("utf-8")
        if done.returncode:
            killed = f"\nkilled by signal {-done.returncode}" if done.returncode < 0 else ""
            raise JobError(((said + killed).strip() or "no output").splitlines()[-1])
        return dict(json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{"))))

    def _take_up(self) -> None:
        """Take over what an earlier run has finished; refuse another run's folder."""
        if not self._state.is_file():
            return
        state = json.loads(self._state.read_text("utf-8"))
        if state["asked"] != self._asked:
            raise SystemExit(f"{self._state} is of another run ({state['asked']}): remove it, or pass another --work")
        self.rows = [self._row(**row) for row in state["rows"] if row["error"] is None]
        here, self.conditions = self.conditions["host"]["cpu"], state["conditions"]
        self.packages = state["packages"]
        cpus = [self.conditions["host"]["cpu"], *self.conditions.get("taken_up_on", ())]
        if here not in cpus:
            self.conditions["taken_up_on"] = [*cpus[1:], here]
        self.progress.note(f"{len(self.rows)} rows are there already")
