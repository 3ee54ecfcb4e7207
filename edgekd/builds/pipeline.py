"""The main job: from a trained detector to a bundle for the camera, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from edgekd.builds.compression import compress
from edgekd.builds.publish import publish
from edgekd.builds.recipe import refuse_recipe, refuse_task
from edgekd.builds.run import BuildRecord, BuildRequest, BuildResult, MachineRecord
from edgekd.builds.stages import benchmark, check, drift_reference, encode, export, half, interface, score
from edgekd.builds.stages import compile as compile_stage
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.calibrate import calibration_source
from edgekd.builds.stages.score import SCORED
from edgekd.compress.steps import Resize
from edgekd.core.benchmark import Basis
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset
from edgekd.deploy.devices.local import local_device
from edgekd.deploy.signing import Signer
from edgekd.hardware.compatibility import check_request
from edgekd.hardware.target import opset_for


def build(request: BuildRequest, progress: Progress = SILENT, signers: Sequence[Signer] = ()) -> BuildResult:
    """Run every stage that is not in the store yet, and write bundle, report and ledger to `request.out`.

    The bundle is signed by all of `signers`.

    Raises SpecError, DataError, CompressError, DeviceError or SignatureError, and leaves no partial files. A missed
    budget raises nothing here: `BuildResult.require_met` does.
    """
    dataset, device, target = data_of(request), local_device(request.device), request.target
    context = StageContext.within(request.out, request.fresh, progress)
    record = compressed(request, dataset, context)
    if "train" in dataset.splits:
        train, thresholds = dataset.split("train"), record.thresholds
        record = replace(record, drift=drift_reference.run(context, record.shipped, train, thresholds))
    compiled = compile_stage.run(context, record.shipped, target)
    basis: Basis = "measured" if target.kind == "cpu" else "stand-in"
    graphs, scored = (record.before, record.timed), (record.scored, record.data_sha256)
    timing = benchmark.run(context, *graphs, *scored, device, basis)
    return publish(context, record, MachineRecord(compiled, timing), signers)


def data_of(request: BuildRequest) -> Dataset:
    """Check a request without computing anything, and return its data set. Raises SpecError, DataError."""
    refuse_impossible(request)
    dataset = load_dataset(request.data)
    dataset.split(SCORED)
    if request.recipe.quantize:
        calibration_source(request.calibration, dataset)  # raises before the export
    return dataset


def compressed(request: BuildRequest, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Run the stages that are the same on every machine: export, compress, check and score. Raises as `build`."""
    target, model, head, trust = request.target, request.model, request.head, request.trust_checkpoint
    detector, before = export.run_model(context, model, head, dataset, opset_for(target), trust=trust)
    refuse_task(request.recipe, before.result.spec, request.interface.postprocess)
    if request.recipe.first(Resize) is None:
        interface.run(context, before, request.interface)  # raises before any training
    checked = check.run(context, before, target, "fp32")
    scored = dataset.split(SCORED, before.result.spec.head.task)
    data = context.fingerprint(scored)
    first_score = score.run(context, before, scored, data, "fp32")
    record = BuildRecord(
        request=request,
        model_sha256=context.sha256(model),
        scored=scored,
        data_sha256=data,
        detector=detector,
        before=before,
        floating=before,
        after=before,
        shipped=before,
        timed=before,
        reference=before,
        encoded=encode.run(context, before, "fp32"),
        scores=(first_score, first_score),
        checked=checked,
    )
    record = compress(record, dataset, context)
    shipped: GraphStage = half.run(context, record.after) if target.strongly_typed else record.after
    wrapped = partial(interface.run, context, interface=request.interface)
    shipped, timed, reference = map(wrapped, (shipped, record.after, record.floating))
    record = replace(record, shipped=shipped, timed=timed, reference=reference)
    return checked_and_scored(record, context) if shipped.key != before.key else record


def checked_and_scored(record: BuildRecord, context: StageContext) -> BuildRecord:
    """Return the record with the graph that ships checked for the target, scored, and packed."""
    recipe, target, shipped = record.request.recipe, record.request.target, record.shipped
    precision = "fp16" if target.strongly_typed and not recipe.quantize else recipe.precision
    checked = check.run(context, shipped, target, precision)
    last_score = score.run(context, shipped, record.scored, record.data_sha256, precision)
    encoded = encode.run(context, shipped, precision)
    return replace(record, checked=checked, scores=(record.scores[0], last_score), encoded=encoded)


def refuse_impossible(request: BuildRequest) -> None:
    """Raise SpecError if the target or the model does not support the recipe, before anything is computed."""
    recipe, target = request.recipe, request.target
    refuse_recipe(recipe, request.budget, request.model)
    products = "nvfp4" if recipe.quantize and "nvfp4" in recipe.quantize.formats else None
    for finding in check_request(target, precision=recipe.precision, products=products):
        if finding.level == "impossible":
            raise SpecError(f"recipe {recipe.name} for {target.name}: {finding.what}", fix=finding.change)
