"""The command line: parses, calls, prints. The only place that exits; imports what a command needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd import __version__
from edgekd.errors import EdgeKDError
from edgekd.printing import (
    megabytes,
    outcome_json,
    print_budget,
    print_distilled,
    print_factorized,
    print_json,
    print_outcome,
    print_predicted,
    print_pruned,
    print_quantized,
    print_scores,
    print_table,
)

if TYPE_CHECKING:
    from edgekd.progress import Progress
    from edgekd.spec import Budget

INTERRUPTED = 130
"""What Typer exits with after Ctrl-C: 128 and the number of the signal, as shells count."""

app = typer.Typer(
    name="edgekd",
    help="From a trained detector to a bundle for camera firmware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[Path, typer.Argument(help="Trained detector: Ultralytics .pt, .tv.pt, .onnx.", show_default=False)]
Data = Annotated[Path, typer.Option(help="Data set: YOLO folder or YAML, COCO folder or JSON.", show_default=False)]
TargetName = Annotated[str, typer.Option(help="Shipped target (`edgekd targets`) or a .toml of your own.")]
Head = Annotated[str | None, typer.Option(help="ONNX head that is not recognised: yolo, yolox, end2end or a .toml.")]
RecipeName = Annotated[str | None, typer.Option(help="Shipped recipe or .toml of your own.")]
PlanFile = Annotated[Path | None, typer.Option(help="Run this plan.toml as it is.", show_default=False)]
Keep = Annotated[str | None, typer.Option(help="Least share of the mAP50-95 kept, such as 98%.")]
Trust = Annotated[bool, typer.Option("--trust-checkpoint", help="Execute whatever the .pt pickle says.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"edgekd {__version__}")
        raise typer.Exit()


@app.command()
def build(
    model: Model,
    data: Data,
    target: TargetName = "xavier",
    recipe: RecipeName = None,
    plan: PlanFile = None,
    device: Annotated[str, typer.Option(help="Where to time: local, or local:ENGINE.")] = "local",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-TARGET.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest bundle, such as 12MB.")] = None,
    keep: Keep = None,
    min_fps: Annotated[float | None, typer.Option(help="Least frames per second.", min=0)] = None,
    calibration: Annotated[str | None, typer.Option(help="Number of images, or a calibration set's .toml.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Reuse stages done before, or do all anew.")] = True,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Compress, score, compile, time and pack MODEL for TARGET."""
    from edgekd import pipeline
    from edgekd.spec import load_recipe
    from edgekd.target import load_target

    chosen = load_target(target)
    steps = load_recipe(recipe or ("mixed" if plan else chosen.recipe))
    job = pipeline.Job(
        model=model,
        data=data,
        target=chosen,
        recipe=steps.with_plan(plan) if plan else steps,
        out=out or Path("runs") / f"{model.stem}-{chosen.name}",
        budget=_budget(max_size, keep, min_fps, chosen.budget),
        device=device,
        head=head,
        calibration=calibration,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    outcome = pipeline.build(job, _progress())
    if as_json:
        print_json(outcome_json(outcome))
    else:
        print_outcome(outcome)
    pipeline.require_met(outcome)


@app.command()
def quantize(
    model: Model,
    data: Annotated[Path, typer.Option(help="Labelled data, or a folder of images or arrays.", show_default=False)],
    recipe: RecipeName = None,
    plan: PlanFile = None,
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-quantized.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest packed graph, such as 2MB.")] = None,
    keep: Annotated[str | None, typer.Option(help="Least share of the mAP50-95, or of the outputs, kept.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Number of images, or a calibration set's .toml.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Reuse stages done before, or do all anew.")] = True,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Quantize a detector or any other ONNX network, for no target: graph, packed graph, plan, and what it keeps."""
    from edgekd import gate, quantizing
    from edgekd.spec import Budget, load_recipe

    # Where there is something to plan for, every format is a choice; else INT8 costs nearly nothing.
    chosen = load_recipe(recipe or ("mixed" if max_size or keep or plan else "ptq"))
    job = quantizing.QuantizeJob(
        model=model,
        data=data,
        recipe=chosen.with_plan(plan) if plan else chosen,
        out=out or Path("runs") / f"{model.stem}-quantized",
        budget=_budget(max_size, keep, None, Budget()),
        head=head,
        calibration=calibration,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    outcome = quantizing.run(job, _progress())
    if as_json:
        print_json(outcome.result)
    else:
        print_quantized(outcome.result)
        print_budget(outcome.budget)
        print(f"results: {job.out}")
    gate.require_met(outcome.budget, job.recipe, outcome.stages, outcome)


@app.command()
def distill(
    teacher: Annotated[Path, typer.Argument(help="Trained .pt: YOLO, RT-DETR, torchvision.", show_default=False)],
    student: Annotated[str, typer.Argument(help="A .pt, yolo11n.yaml, or torchvision/NAME.", show_default=False)],
    data: Data,
    recipe: RecipeName = "distill",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/STUDENT-from-TEACHER.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor of the model's channels, such as 0.14.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    time: Annotated[float | None, typer.Option(help="Minutes to train for, in place of a number of epochs.")] = None,
    unlabelled: Annotated[Path | None, typer.Option(help="Folder of frames that TEACHER labels.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, 0, or 0,1 for two GPUs. Default: a GPU if any.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where it stopped, or begin anew.")] = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Train STUDENT on labels and beside TEACHER, and score both."""
    from edgekd import distilling
    from edgekd.spec import Distill, load_recipe

    given = {"student": student, "width": width, "epochs": epochs, "minutes": time}
    given["unlabelled"] = str(unlabelled) if unlabelled else None
    job = distilling.DistillJob(
        teacher=teacher,
        data=data,
        recipe=load_recipe(recipe or "distill").with_settings(Distill, **given),
        out=out or Path("runs") / "-from-".join(Path(name).stem.removesuffix(".tv") for name in (student, teacher)),
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    (print_json if as_json else print_distilled)(distilling.run(job, _progress()))


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="Trained .pt: YOLO, torchvision.", show_default=False)],
    data: Data,
    target: Annotated[
        str | None, typer.Option(help="What it is for, if not for this machine: `edgekd targets`.")
    ] = None,
    ratio: Annotated[str | None, typer.Option(help="Share of the multiply-adds to remove, such as 30%.")] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Remove until the checkpoint has this size, such as 3MB.")
    ] = None,
    min_fps: Annotated[float | None, typer.Option(help="Remove until it makes as many frames a second.")] = None,
    recipe: RecipeName = "prune",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-pruned.")] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Also write how sensitive each layer is: sensitivity.json.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to measure: local, or local:ENGINE.")] = "local",
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Reuse stages done before, or do all anew.")] = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Remove the channels MODEL can best do without, and make sure that it is faster. Train it afterwards."""
    from edgekd import pruning
    from edgekd.spec import Prune, load_recipe, parse_share
    from edgekd.target import load_target

    asked = {"ratio": parse_share(ratio, "--ratio") if ratio else None, "max_size": max_size, "min_fps": min_fps}
    job = pruning.PruneJob(
        model=model,
        data=data,
        recipe=load_recipe(recipe or "prune").with_settings(Prune, **asked),
        out=out or Path("runs") / f"{model.name.partition('.')[0]}-pruned",
        target=load_target(target) if target else None,
        scan=scan,
        device=device,
        trust_checkpoint=trust_checkpoint,
        fresh=not resume,
    )
    (print_json if as_json else print_pruned)(pruning.run(job, _progress()))


@app.command()
def factorize(
    model: Annotated[Path, typer.Argument(help="Trained Ultralytics .pt.", show_default=False)],
    data: Data,
    target: Annotated[
        str | None, typer.Option(help="What it is for, if not for this machine: `edgekd targets`.")
    ] = None,
    energy: Annotated[str | None, typer.Option(help="Share of each layer's output to keep, such as 97%.")] = None,
    recipe: RecipeName = "factorize",
    out: Annotated[Path | None, typer.Option(help="Result folder. Default: runs/MODEL-factorized.")] = None,
    device: Annotated[str, typer.Option(help="Where to measure: local, or local:ENGINE.")] = "local",
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Reuse stages done before, or do all anew.")] = True,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Replace layers of MODEL by products of thinner ones, where that is faster. Train it afterwards."""
    from edgekd import factorizing
    from edgekd.spec import LowRank, load_recipe, parse_share
    from edgekd.target import load_target

    asked = {"energy": parse_share(energy, "--energy") if energy else None}
    steps = load_recipe(recipe or "factorize").with_settings(LowRank, **asked)
    where, folder = load_target(target) if target else None, out or Path("runs") / f"{model.stem}-factorized"
    job = factorizing.FactorizeJob(model, data, steps, folder, where, device, trust_checkpoint, not resume)
    (print_json if as_json else print_factorized)(factorizing.run(job, _progress()))


@app.command("eval")
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="A .pt, .onnx, .packed or .edgekd bundle.", show_default=False)],
    data: Data,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    tail: Annotated[
        float | None, typer.Option(help="Also score the classes with less than this share of the training objects.")
    ] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Score an artifact on a labelled split, with COCO's metrics."""
    import time

    from edgekd.artifact import opened
    from edgekd.data.dataset import load_dataset
    from edgekd.data.long_tail import rare_classes
    from edgekd.evaluate import evaluate, require_classes
    from edgekd.score import tail_score

    began = time.perf_counter()
    dataset = load_dataset(data)
    rare = () if tail is None else rare_classes(dataset.split("train"), dataset.classes, tail)
    with opened(artifact, head, dataset.classes, trust_checkpoint) as (graph, spec):
        require_classes(spec, dataset)
        found = evaluate(graph, spec, dataset.split(split), _progress())
    tails = None if tail is None else tail_score(found.score.per_class, rare, tail)
    result = {**found.score.to_json(), "tail": tails, "seconds": time.perf_counter() - began}
    if as_json:
        result["skipped"] = [str(image) for image, _ in found.skipped]
        print_json(result)
        return
    for image, reason in found.skipped:
        print(f"not scored: {image}: {reason}", file=sys.stderr)
    print_scores(result)


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="A .pt, .onnx, .packed or .edgekd bundle.", show_default=False)],
    device: Annotated[str, typer.Option(help="Where to time: local, or local:ENGINE.")] = "local",
    iterations: Annotated[int, typer.Option(help="At least this many frames ...", min=1)] = 200,
    seconds: Annotated[float, typer.Option(help="... and at least this long.", min=0)] = 5.0,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Time an artifact from frame to detections: percentiles, not only a mean."""
    from edgekd.artifact import opened
    from edgekd.stages import local_device
    from edgekd.timing import synthetic_frames, time_graphs

    where = local_device(device)
    with opened(artifact, head, (), trust_checkpoint) as (graph, spec):
        frames = synthetic_frames(spec)
        limits = {"min_iterations": iterations, "min_seconds": seconds}
        timing = time_graphs({"": graph}, {"": spec}, frames, where, "measured", **limits)[""]
    result = {"host": where.facts().as_json(), **timing.summary()}
    if as_json:
        print_json(result)
        return
    parts = ("preprocess_ms", "inference_ms", "postprocess_ms", "total_ms")
    columns = ("p50", "p90", "p99", "mean")
    rows = [[part.removesuffix("_ms"), *(f"{result[part][column]:.2f}" for column in columns)] for part in parts]
    print_table(["ms", *columns], rows)
    host = result["host"]
    print(
        f"{timing.fps:.1f} FPS over {result['iterations']} frames, "
        f"{host['engine']}, {host['threads']} threads, {host['cpu']}"
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A .pt, .onnx, .packed or .edgekd bundle.", show_default=False)],
    target: TargetName = "xavier",
    precision: Annotated[str | None, typer.Option(help="fp16, int8 or fp32. Default: the graph's own.")] = None,
    table: Annotated[Path | None, typer.Option(help="A .toml of times measured on the target itself.")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict latency and energy of MODEL on a TARGET that is not at hand, and say how sure that is."""
    from edgekd import predicting
    from edgekd.target import load_target

    found = predicting.run(predicting.PredictJob(model, load_target(target), precision, table, head, trust_checkpoint))
    (print_json if as_json else print_predicted)(found)


@app.command()
def check(
    model: Model,
    target: TargetName = "xavier",
    dla: Annotated[bool, typer.Option("--dla", help="The graph is meant for the DLA.")] = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what is impossible or slow on a target, and what to change. ONNX answers in a second, without PyTorch."""
    from dataclasses import asdict

    from edgekd.artifact import graph_of
    from edgekd.check import check_graph, check_request
    from edgekd.target import load_target

    chosen = load_target(target)
    with graph_of(model, head, trust_checkpoint, chosen) as graph:
        findings = [*check_request(chosen, dla=dla), *check_graph(graph, chosen, dla=dla)]
    impossible = any(finding.level == "impossible" for finding in findings)
    if as_json:
        findings_json = [asdict(finding) for finding in findings]
        print_json({"target": chosen.name, "possible": not impossible, "findings": findings_json})
    else:
        for finding in findings:
            print(f"{finding.level}: {finding.what} ({finding.where})\n    {finding.change}")
        print(f"{model.name} on {chosen.title}: {'impossible as it is' if impossible else 'possible'}")
    if impossible:
        raise typer.Exit(1)


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="Target to explain; all are listed without.")] = None,
    as_json: Json = False,
) -> None:
    """List the targets, or explain one: every number with its source."""
    from edgekd.target import explain, load_target, target_names, to_dict

    if name is None:
        found = [load_target(each) for each in target_names()]
        if as_json:
            print_json([to_dict(target) for target in found])
        else:
            rows = [[t.name, t.title, ", ".join(t.precisions.conv.value), t.engine, t.recipe] for t in found]
            print_table(["target", "device", "convolutions in", "engine", "recipe"], rows)
        return
    target = load_target(name)
    if as_json:
        print_json(to_dict(target))
        return
    marks = {True: "yes", False: "no", None: ""}
    rows = [[fact.group, fact.name, fact.value, marks[fact.verified], fact.source] for fact in explain(target)]
    print_table(["", target.name, "value", "verified", "source"], rows)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which engines and devices work, and the one command that adds each missing thing."""
    from dataclasses import asdict

    from edgekd.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [[check.group, check.name, check.state, check.detail, check.fix or ""] for check in checks]
        print_table(["", "what", "state", "detail", "to add it"], rows)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A .edgekd bundle.", show_default=False)], as_json: Json = False
) -> None:
    """Verify a bundle and say what is in it."""
    from edgekd.bundle.archive import verify
    from edgekd.bundle.manifest import to_json

    manifest = verify(bundle)
    if as_json:
        sys.stdout.write(to_json(manifest).decode("utf-8"))
        return
    evidence, lineage = manifest.evidence, manifest.lineage
    how = manifest.detector["preprocess"]
    print(f"{bundle.name}: {manifest.name} for {manifest.target.name} ({manifest.target.compatible}), every hash right")
    print(f"made by {manifest.created_by}, recipe {lineage.recipe}")
    print(f"input {how['width']}x{how['height']} {how['color']}, {len(manifest.detector['classes'])} classes")
    print(f"TensorRT {' to '.join(manifest.tensorrt) if manifest.tensorrt else 'not used'}")
    print(
        f"mAP50-95 {evidence.before.map50_95:.4f} -> {evidence.after.map50_95:.4f} on {evidence.images} images, "
        f"graph {megabytes(evidence.before.bytes)} -> {megabytes(evidence.after.bytes)} packed"
    )
    rows = [[entry.path, entry.role, str(entry.length), entry.sha256[:16]] for entry in manifest.files]
    print_table(["file", "role", "bytes", "sha256"], rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for scenes and results.")] = Path("runs/demo"),
    target: TargetName = "xavier",
    as_json: Json = False,
) -> None:
    """Run the main job on rendered street scenes and the small detector that ships with edgekd."""
    from edgekd import pipeline
    from edgekd.demo import CALIBRATION_SCENES, SCORED_SCENES, demo_model
    from edgekd.demo.scenes import write_dataset
    from edgekd.spec import load_recipe
    from edgekd.target import load_target

    progress = _progress()
    chosen = load_target(target)
    with demo_model() as model:
        scenes = write_dataset(out / "scenes", CALIBRATION_SCENES, SCORED_SCENES, progress=progress)
        job = pipeline.Job(model, scenes, chosen, load_recipe(chosen.recipe), out)
        outcome = pipeline.build(job, progress)
    if as_json:
        print_json(outcome_json(outcome))
    else:
        print_outcome(outcome)


def main() -> None:
    """Run the command line. A user's mistake ends as one line on stderr and the error's exit code."""
    try:
        app()
    except EdgeKDError as error:
        print(f"edgekd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ImportError as error:
        print(f"edgekd: {error}; fix: `edgekd doctor` says what is missing and how to add it", file=sys.stderr)
        sys.exit(EdgeKDError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("edgekd: stopped; a build resumes when it is run again", file=sys.stderr)
        raise


def _progress() -> Progress:
    from edgekd.progress import for_stderr

    return for_stderr()


def _budget(max_size: str | None, keep: str | None, min_fps: float | None, usual: Budget) -> Budget:
    """What the flags ask for, and the target's own limits where they ask for nothing."""
    from edgekd.spec import Budget, parse_share, parse_size

    return Budget(
        max_bytes=usual.max_bytes if max_size is None else parse_size(max_size, "--max-size"),
        min_retention=usual.min_retention if keep is None else parse_share(keep, "--keep"),
        min_fps=usual.min_fps if min_fps is None else min_fps,
    )
