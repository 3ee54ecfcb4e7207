"""The main job: from a trained detector to a bundle for the camera, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgekd.builds.budget import judge, verdict
from edgekd.builds.latency import Measured, latency_on
from edgekd.builds.publish import (
    budget_bytes,
    bytes_beside_graph,
    on_target,
    pack_bundle,
    write_build_ledger,
    write_report,
)
from edgekd.builds.recipe import Distill, LowRank, Prune, QuantAwareDistill, Quantize, Resize, Step
from edgekd.builds.report_data import parts_of
from edgekd.builds.run import Job, Outcome, Run, TimedRun
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import low_rank, resize, train
from edgekd.builds.stages.analyse import analyse, findings_of
from edgekd.builds.stages.base import (
    CACHE,
    PLAN,
    Stages,
    calibration_source,
    local_device,
    spec_of,
)
from edgekd.builds.stages.plan import Limits, detector_trial, offered, refuse_recipe, room, searches, size_of
from edgekd.builds.stages.plan import quantized as quantize_stage
from edgekd.builds.stages.prune import ChannelPruner
from edgekd.commands import prune
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.types import Dataset
from edgekd.deploy.signing import Signer
from edgekd.detectors import load
from edgekd.hardware.target import Target, cache_version, opset_for

S = TypeVar("S", Distill, Prune)
SCORED = "val"
"""The split that is scored; nothing is chosen, calibrated or trained on it."""


def build(job: Job, progress: Progress = SILENT, signers: Sequence[Signer] = ()) -> Outcome:
    """Run every stage of a job that is not in its store yet, and leave bundle, report and ledger in `job.out`.

    The bundle is signed by all of `signers`.

    Raises SpecError, DataError, CompressError or DeviceError and leaves nothing half-written. A missed budget does
    not raise: `Outcome.require_met` does.
    """
    dataset = data_of(job)
    device = local_device(job.device)
    basis = "measured" if job.target.kind == "cpu" else "stand-in"
    stages = Stages.within(job.out, job.fresh, progress)
    run = watched(graphs(job, dataset, stages), dataset, stages)
    compiled = stages.compile(run.shipped, job.target)
    timing = stages.benchmark(run.before, run.after, run.scored, run.data_sha256, device, basis)
    parts = parts_of(run)
    findings = findings_of(parts)
    analysed = analyse(parts, findings, stages, timing)
    timed = TimedRun(**vars(run), compiled=compiled, timing=timing, findings=findings, analysed=analysed)
    return publish(timed, stages, signers)


def data_of(job: Job) -> Dataset:
    """The data of a job that is not impossible, from the looks of it. Raises SpecError, DataError."""
    refuse_impossible(job)
    dataset = load_dataset(job.data)
    dataset.split(SCORED)
    if job.recipe.quantize:
        calibration_source(job.calibration, dataset)  # a mistake in it should not cost an export first
    return dataset


def graphs(job: Job, dataset: Dataset, stages: Stages) -> Run:
    """What a job compresses and scores, without what this machine makes of it. Raises as `build` does."""
    scored = dataset.split(SCORED)
    detector = load(job.model, job.head, dataset.classes, job.trust_checkpoint)
    before = stages.export(detector, job.head, dataset.classes, opset_for(job.target))
    require_classes(spec_of(before), dataset)
    checked = stages.check(before, job.target, "fp32")
    data = stages.fingerprint(scored)
    score = stages.score(before, scored, data, "fp32")

    run = Run(
        job=job,
        model_sha256=stages.sha256(job.model),
        scored=scored,
        data_sha256=data,
        detector=detector,
        before=before,
        floating=before,
        after=before,
        shipped=before,
        encoded=stages.encode(before, "fp32"),
        scores=(score, score),
        calibrated=None,
        checked=checked,
    )
    for step in job.recipe.steps:
        run = compress(step, run, dataset, stages)
    run = replace(run, shipped=stages.half(run.after) if job.target.strongly_typed else run.after)
    return checked_and_scored(run, stages) if run.shipped.key != before.key else run


def compress(step: Step, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """One step of the recipe, from the graph that the one before left."""
    done = len(stages.done)
    if isinstance(step, Resize):
        run = resized(step, run, dataset, stages)
    elif isinstance(step, Prune):
        run = pruned(step, run, dataset, stages)
    elif isinstance(step, LowRank):
        run = factorized(step, run, dataset, stages)
    elif isinstance(step, Distill):
        run = distilled(step, run, dataset, stages)
    elif isinstance(step, QuantAwareDistill):
        run = trained(step, run, dataset, stages)
    else:
        run = quantized(step, run, dataset, stages)
    return replace(run, steps=(*run.steps, *stages.done[done:]))


def resized(step: Resize, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with the detector at another size of its input; `before` keeps its own."""
    done = resize.resize(stages, step, run.job.model, run.job.trust_checkpoint)
    return _with_detector(done.path / resize.resized_file(run.job.model), run, dataset, stages)


def quantized(step: Quantize, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with its float graph quantized."""
    job, step = run.job, offered(step, run.job.target)
    source = calibration_source(job.calibration, dataset, searching=searches(step, job.budget))
    calibrated = stages.calibrate(source, dataset, run.scored, run.data_sha256, spec_of(run.floating))
    run = replace(run, calibrated=calibrated)
    trial = partial(detector_trial, dataset, run.floating, calibrated, run.scored, stages)
    tensorrt = cache_version(job.target)
    after = quantize_stage(stages, step, run.floating, calibrated.frames, _limits(run, step, stages), trial, tensorrt)
    return replace(run, after=after)


def trained(step: QuantAwareDistill, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with its quantized graph trained: beside its float detector, or the given one if that is weakened."""
    job = run.job
    stages.refuse_shared(dataset.split("train"), run.scored)
    teacher = job.model if run.weakened else None
    tensorrt, calibrated = cache_version(job.target), run.calibrated
    request = train.CacheRequest(tensorrt, calibrated.frames) if tensorrt and calibrated else None
    after = train.quant_aware_distill(
        stages, step, run.detector, run.after, dataset, job.trust_checkpoint, request, teacher
    )
    return replace(run, after=after)


def pruned(step: Prune, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with the detector's narrower self in its place: if it is quantized, quantized by the same plan."""
    job = run.job
    stages.refuse_shared(dataset.split("train"), run.scored)
    measured = Measured(stages, run.scored, run.data_sha256, local_device(job.device))
    export = partial(_exported, target=job.target, dataset=dataset, stages=stages)
    latency = latency_on(job.target, measured)
    before = run.after if run.after.key != run.floating.key else None
    trust, checkpoint = job.trust_checkpoint, run.detector.path
    narrowing = ChannelPruner(stages, dataset, checkpoint, run.floating, export, latency, trust, before, job.train_on)
    found = narrowing.run(prune.for_target(_at_size(step, job), job.target))
    run = replace(_with_detector(found.checkpoint, run, dataset, stages), weakened=True)
    again = job.recipe.quantize
    if before is None or again is None:
        return run
    plan = before.path / PLAN
    return quantized(replace(again, plan=str(plan) if PLAN in before.files else None), run, dataset, stages)


def factorized(step: LowRank, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with products in place of some of the detector's layers."""
    job, checkpoint = run.job, run.detector.path
    stages.refuse_shared(dataset.split("train"), run.scored)
    latency = latency_on(job.target, Measured(stages, run.scored, run.data_sha256, local_device(job.device)))
    export = partial(_exported, target=job.target, dataset=dataset, stages=stages)
    trust = job.trust_checkpoint
    found = low_rank.factorize(stages, step, checkpoint, dataset, run.floating, export, latency, trust)
    return replace(_with_detector(found.checkpoint, run, dataset, stages), weakened=True)


def distilled(step: Distill, run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with a student in the detector's place: the one that the step names, or what pruning has left."""
    job = run.job
    stages.refuse_shared(dataset.split("train"), run.scored)
    step = replace(_at_size(step, job), student=step.student or str(run.detector.path))
    done = train.distill(stages, step, job.model, dataset, job.trust_checkpoint, job.train_on)
    return _with_detector(done.path / train.student_file(step), run, dataset, stages)


def _at_size(step: S, job: Job) -> S:
    """The step with its training at the size that the recipe gives the input, if it gives it one."""
    if (size := job.recipe.resize) is None:
        return step
    if isinstance(step, Distill):
        return replace(step, image_size=size.image_size)
    recovery = replace(step.recovery, image_size=size.image_size) if step.recovery else None
    return replace(step, recovery=recovery)


def _exported(checkpoint: Path, target: Target, dataset: Dataset, stages: Stages) -> Stage:
    """The float graph of a checkpoint that was written here."""
    return stages.export(load(checkpoint), None, dataset.classes, opset_for(target))


def _with_detector(checkpoint: Path, run: Run, dataset: Dataset, stages: Stages) -> Run:
    detector, graph = load(checkpoint), _exported(checkpoint, run.job.target, dataset, stages)
    encoded = stages.encode(graph, "fp32")
    return replace(run, detector=detector, floating=graph, after=graph, encoded=encoded, weakened=False)


def checked_and_scored(run: Run, stages: Stages) -> Run:
    """The run with the graph that ships checked for the target, scored, and packed."""
    recipe, halved = run.job.recipe, run.shipped.key != run.after.key
    precision = "fp16" if halved and not recipe.quantize else recipe.precision
    checked = stages.check(run.shipped, run.job.target, precision)
    score = stages.score(run.shipped, run.scored, run.data_sha256, precision)
    encoded = stages.encode(run.shipped, precision)
    return replace(run, checked=checked, scores=(run.scores[0], score), encoded=encoded)


def watched(run: Run, dataset: Dataset, stages: Stages) -> Run:
    """The run with a record of what its graph sees and finds in training images, by which a camera notices drift."""
    if "train" not in dataset.splits:
        return run
    return replace(run, watched=stages.drift(run.shipped, dataset.split("train"), run.thresholds))


def _limits(run: Run, step: Quantize, stages: Stages) -> Limits:
    """What a plan is for: its step's own size, or what the rest of the bundle leaves of the budget; and accuracy."""
    job = run.job
    own = size_of(step, run.floating) if step.planned else None
    if not step.planned or step.plan or own is not None or job.budget.max_bytes is None:
        return Limits(room(job.recipe, own), job.budget.min_retention)
    most = job.budget.max_bytes - bytes_beside_graph(run, stages)
    return Limits(room(job.recipe, most), job.budget.min_retention, beside=(CACHE, PLAN))


def publish(run: TimedRun, stages: Stages, signers: Sequence[Signer] = ()) -> Outcome:
    """Pack the bundle, judge the budget, and write what the user reads."""
    bundle = pack_bundle(run, stages, signers)
    before, after = (score.results["map50_95"] for score in run.scores)
    timed = run.timing.results["after"]
    lines = judge(
        run.job.budget,
        bundle_bytes=budget_bytes(bundle),
        retention=after / before if before else None,
        fps=timed["fps"],
        basis=timed["basis"],
        energy_mj=(on_target(run) or {}).get("energy_mj") if run.job.budget.max_energy_mj else None,
    )
    return Outcome(
        run=run,
        bundle=bundle,
        report=write_report(run, lines, bundle, stages.done),
        ledger=write_build_ledger(run, lines, bundle, stages.done),
        stages=tuple(stages.done),
        budget=tuple(lines),
        met=verdict(lines),
    )


def refuse_impossible(job: Job) -> None:
    """Refuse what the target cannot run, before anything is computed. Raises SpecError."""
    from edgekd.hardware.compatibility import check_request

    refuse_recipe(job.recipe, job.budget, job.model)
    step = job.recipe.quantize
    products = "nvfp4" if step and "nvfp4" in step.formats else None
    for finding in check_request(job.target, precision=job.recipe.precision, products=products):
        if finding.level == "impossible":
            raise SpecError(f"recipe {job.recipe.name} for {job.target.name}: {finding.what}", fix=finding.change)
