"""Setup of a search: held-out images, facts of the detector, search space, costs, identity of all trials."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd.builds.pipeline import compressed, data_of
from edgekd.builds.publish import bytes_beside_graph
from edgekd.builds.run import SEARCH, BuildRequest
from edgekd.builds.search.boards import rehearsed
from edgekd.builds.search.cost_filter import BaseGraph, CostFilter
from edgekd.builds.search.explain import search_result
from edgekd.builds.search.loop import ROUND_SIZE, Search, StopLimits, TrialRequest
from edgekd.builds.search.optuna_sampler import OptunaSampler
from edgekd.builds.search.pareto import FULL, NOISE
from edgekd.builds.search.space import INT8, Candidate, DetectorFacts, Space, recipe_of, space_for
from edgekd.builds.search.trials import Task, time_of, with_recipe
from edgekd.builds.search.workers import Clock, RunTrials
from edgekd.builds.stage_store import StageResult, readable_json
from edgekd.builds.stages import export
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.builds.stages.plan import HELD_OUT
from edgekd.builds.stages.score import SCORED
from edgekd.builds.stages.trial import STUDENT
from edgekd.compress.steps import Distill
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import json_sha256
from edgekd.core.errors import DataError, SpecError
from edgekd.core.progress import Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.subset import SplitPart, write_subset
from edgekd.data.types import Dataset
from edgekd.deploy.fleet import Board
from edgekd.detectors import load
from edgekd.detectors.family import family_of, student_family
from edgekd.detectors.interface import Interface
from edgekd.evaluation.search_result import Rung, SearchResult, SearchSetup
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.target import opset_for, to_dict

RUNGS = (Rung(16, trained=False), Rung(HELD_OUT, trained=True))
"""The rungs NOISE, on a few held-out images, because noise hardly depends on their choice, and FULL, on all of them."""
_FAMILY = re.compile(r"(?P<name>.*\d)(?P<size>[nsmlx])(?P<rest>[-_.].*)?", re.ASCII)
_SIZES = "nsmlx"


@dataclass(frozen=True)
class SearchJob:
    """Request of a search. job: the build, whose recipe is to be found.

    seconds: time limit, None for none; trials: maximum number of candidates; epochs: of a full training, 0 to train
    nothing; students: smaller detectors to consider, besides those beside the model; workers: processes that run
    trials, or slots of the cluster; boards: to time candidates on; batch: new candidates of a round; cluster: its
    address, None for this machine alone; gpus: of each trial on the cluster, None for one if there are any.
    """

    job: BuildRequest
    seconds: float | None = None
    trials: int = 60
    epochs: int = 30
    students: tuple[str, ...] = ()
    workers: int = 1
    boards: tuple[Board, ...] = ()
    batch: int = ROUND_SIZE
    cluster: str | None = None
    gpus: int | None = None


class SearchContext:
    """Everything a search needs before the first trial: held-out images, facts of the detector, search space.

    The constructor exports the detector and its students, and runs a first trial. It raises as `pipeline.build`.
    """

    def __init__(self, request: SearchJob, progress: Progress) -> None:
        job = request.job
        self.request, self.progress = request, progress
        self.context = StageContext.within(job.out, job.fresh, progress)
        self.folder = job.out / "search"
        dataset = load_dataset(job.data)
        self.held_out = _divide(dataset, self.folder, self.context)
        self.final = self.folder / "final.yaml"
        detector = load(job.model, job.head, dataset.classes, job.trust_checkpoint)
        before = export.run(self.context, detector, job.head, dataset.classes, opset_for(job.target))
        students = tuple(dict.fromkeys((*request.students, *siblings(job.model))))
        self.facts = detector_facts(job.model, before, students)
        self.space = space_for(self.facts, job.target, request.epochs)
        _refuse_unused_students(request, self.space)
        self.networks: dict[str | None, BaseGraph] = {
            None: BaseGraph(self.facts.image_size, works_in(before.path / GRAPH))
        }
        self.students = tuple(filter(None, self.space.student))
        for name in self.students:
            self.networks[name] = BaseGraph(self.facts.image_size, works_in(self._student(name, dataset)))
        first = Candidate(None, self.facts.image_size, bits=INT8 if INT8 in self.space.bits else self.space.bits[0])
        trial = with_recipe(job, recipe_of(first, self.space), self.rung(FULL))
        record = compressed(trial, data_of(trial), self.context)
        if not record.scores[0].result.map50_95:
            raise DataError(f"{job.model}: finds nothing on {self.held_out} training images", fix="train it first")
        _refuse_unpredicted(job, time_of(record, self.context), bool(request.boards))
        self.beside = bytes_beside_graph(record)
        self.identity = self._identity(record.data_sha256, dataset)
        self.clock = Clock(request.seconds, request.workers)

    def rung(self, at: int) -> Path:
        """Return the path of the data set of a rung."""
        return self.folder / f"rung{at}.yaml"

    def search(self, run_trials: RunTrials) -> Search:
        """Return the search. run_trials: runs its trials; their time is counted."""
        job = self.request.job
        return Search(
            space=self.space,
            filter=CostFilter(self.space, self.networks, self.beside, job.target),
            budget=job.budget,
            study=OptunaSampler(self.space, journal=self.folder / "study.log"),
            run_trials=self.clock.timed(run_trials),
            ends=StopLimits(self.request.trials, self.clock.left_s),
            note=self.note,
            batch=self.request.batch,
        )

    def task(self, wanted: TrialRequest) -> Task:
        """Return the task of a trial; on the rung NOISE its recipe has no trainings."""
        candidate, rung = wanted
        recipe = recipe_of(candidate.untrained if rung == NOISE else candidate, self.space)
        job = with_recipe(self.request.job, recipe, self.rung(rung))
        return Task(job, candidate, rung, self.beside, self.identity, self.request.boards)

    def result(self, search: Search) -> SearchResult:
        """Return the result of a search so far."""
        job = self.request.job
        rungs = tuple(replace(each, images=min(each.images, self.held_out)) for each in RUNGS)
        known = (self.identity, job.model.name, job.target.name, job.budget, self._basis, self.held_out, rungs)
        return search_result(search, SearchSetup(*known), self.clock.spent_s)

    @property
    def _basis(self) -> Literal["measured", "rehearsed", "predicted"]:
        """Source of times: `measured`, `predicted`, or `rehearsed` on a null device."""
        if self.request.boards:
            return "rehearsed" if rehearsed(self.request.boards) else "measured"
        return "measured" if self.request.job.target.kind == "cpu" else "predicted"

    def note(self, search: Search) -> None:
        """Report the state of the search, and write it to `search.json`."""
        write_file(self.request.job.out / SEARCH, readable_json(self.result(search).document))
        winner = search.winner
        if winner:
            estimated = "" if winner.rung == FULL else " (estimated)"
            kept = f"keeps {winner.kept:.1%}{estimated} in {winner.cost.bytes / 1e6:.2f} MB"
            self.progress.note(f"search: {len(search.points)} tried; best: {winner.candidate.text()}, {kept}")

    def _student(self, name: str, dataset: Dataset) -> Path:
        """Return the path of a student's float graph before training, from which its cost is estimated."""
        family = student_family(name)
        file = f"student{family.suffix}"

        def work(folder: Path) -> StageResult:
            step = Distill(name, image_size=self.facts.image_size)
            initialize = family.capability("initialize_student")
            initialize(step, dataset.classes, folder / file, self.request.job.trust_checkpoint)
            return StageResult()

        inputs = {
            "student": self.context.identity_of(name),
            "classes": list(dataset.classes),
            "image_size": self.facts.image_size,
        }
        made = self.context.run(STUDENT, inputs, work, libraries=family.libraries)
        opset, trust = opset_for(self.request.job.target), self.request.job.trust_checkpoint
        detector = load(made.path / file, trust_checkpoint=trust)
        return export.run(self.context, detector, None, dataset.classes, opset).path / GRAPH

    def _identity(self, data: str, dataset: Dataset) -> str:
        """Return the SHA-256 of everything that trials depend on, besides the candidate."""
        job = self.request.job
        known = {
            "model": self.context.sha256(job.model),
            "data": [data, self.context.fingerprint(load_dataset(self.final).split("train"))],
            "held_out": self.context.fingerprint(load_dataset(self.rung(FULL)).split(SCORED)),
            "classes": list(dataset.classes),
            "students": {name: self.context.identity_of(name) for name in self.students},
            "beside": self.beside,
        }
        return json_sha256({**known, **settings_of(job)})


def settings_of(job: BuildRequest) -> dict[str, Any]:
    """Return the settings of a request that its trials depend on, except files and settings that candidates change.

    Raises SpecError if the description of the head cannot be read.
    """
    settings = {
        "head": export.head_inputs(job.head),
        "calibration": job.calibration,
        "target": to_dict(job.target),
        "device": job.device if job.target.kind == "cpu" else None,
    }
    # Included only if it is not the default, so that trials in existing stores keep their keys.
    return settings if job.interface == Interface() else {**settings, "interface": asdict(job.interface)}


def detector_facts(model: Path, graph: GraphStage, students: tuple[str, ...]) -> DetectorFacts:
    """Return the properties of a detector that determine its choices."""
    spec = graph.result.spec
    size = (spec.preprocess.height, spec.preprocess.width)
    family = None if spec.head.beside_boxes else family_of(model)  # others are only quantized
    return DetectorFacts(
        image_size=max(size),
        stride=max((32, *spec.head.strides)),
        trains=bool(family and family.trains),
        resizes=bool(family and family.resize) and size[0] == size[1],
        recovers=bool(family and family.recover),
        quant_aware=bool(family and family.quant_aware_distill),
        students=students if family and family.initialize_student else (),
    )


def siblings(model: Path) -> tuple[str, ...]:
    """Return smaller checkpoints of a model's family beside it, the largest first, such as yolo11s.pt of yolo11x.pt."""
    found = _FAMILY.fullmatch(model.stem)
    family = family_of(model)
    if family is None or family.initialize_student is None or found is None:
        return ()
    smaller = reversed(_SIZES[: _SIZES.index(found["size"])])
    paths = [model.with_name(f"{found['name']}{size}{found['rest'] or ''}{family.suffix}") for size in smaller]
    return tuple(str(path) for path in paths if path.is_file())


def _refuse_unused_students(request: SearchJob, space: Space) -> None:
    """Raise SpecError for students that no candidate trains."""
    if request.students and space.student == (None,):
        raise SpecError(
            f"--student {request.students[0]}: this search trains no student",
            expected="a detector of boxes alone that can be trained, and --epochs above 0",
            found=f"{request.job.model.name}, --epochs {request.epochs}",
            fix="leave out --student, or pass the checkpoint",
        )


def _refuse_unpredicted(job: BuildRequest, found: tuple[float | None, float | None], timed: bool) -> None:
    """Raise SpecError for limits on quantities that are neither measured nor predicted.

    found: milliseconds and millijoules of a frame, None if unknown; timed: whether boards will measure the former.
    """
    for flag, request, value in (
        ("--min-fps", None if timed else job.budget.min_fps, found[0]),
        ("--max-energy", job.budget.max_energy_mj, found[1]),
    ):
        if request is not None and value is None:
            raise SpecError(
                f"{flag}: {job.target.title} cannot be predicted",
                expected="a target with the figures for it: `edgekd predict` says which",
                fix=f"leave out {flag}",
            )


def _divide(dataset: Dataset, folder: Path, context: StageContext) -> int:
    """Write the data sets of the rungs and of the final build into a folder; return the number of held-out images.

    At most a quarter of the training images are held out, none of them a copy of a scored one. Copies of held-out
    images are not trained on. Raises DataError if none can be held out.
    """
    train, scored = dataset.split("train").samples, dataset.split(SCORED).samples
    seen = {context.sha256(sample.image) for sample in scored}
    hashes = [context.sha256(sample.image) for sample in train]
    free = [int(at) for at in np.random.default_rng(0).permutation(len(train)) if hashes[at] not in seen]
    held = free[: min(HELD_OUT, len(free) // 4)]
    if not held:
        raise DataError(
            f"{dataset.source}: too few training images",
            expected="at least four that are not scored",
            found=str(len(free)),
        )
    known = {hashes[at] for at in held}
    rest = SplitPart("train", without=tuple(at for at, digest in enumerate(hashes) if digest in known))
    for at, rung in enumerate(RUNGS):
        parts = {"train": rest, SCORED: SplitPart("train", only=tuple(held[: rung.images]))}
        write_subset(folder / f"rung{at}.yaml", dataset.source, parts)
    write_subset(folder / "final.yaml", dataset.source, {"train": rest, SCORED: SplitPart(SCORED)})
    return len(held)
