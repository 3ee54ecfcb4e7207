"""Commands that say how good and how fast something is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Artifact, Data, Head, Json, TargetName, Trust, new_progress
from edgekd.printing import print_json, print_predicted, print_refused, print_scores, print_table, rate_text


def evaluate(
    artifact: Artifact,
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
        found = evaluate(graph, spec, dataset.split(split), new_progress())
    tails = None if tail is None else tail_score(found.score.per_class, rare, tail)
    result = {**found.score.to_json(), "tail": tails, "seconds": time.perf_counter() - began}
    if as_json:
        result["skipped"] = [str(image) for image, _ in found.skipped]
        print_json(result)
        return
    for image, reason in found.skipped:
        print(f"not scored: {image}: {reason}", file=sys.stderr)
    print_scores(result)


def bench(
    artifact: Artifact,
    device: Annotated[str, typer.Option(help="Where to time: local, or local:ENGINE.")] = "local",
    iterations: Annotated[int, typer.Option(help="At least this many frames ...", min=1)] = 200,
    seconds: Annotated[float, typer.Option(help="... and at least this long.", min=0)] = 5.0,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Time an artifact from frame to detections: percentiles, not only a mean."""
    from edgekd.artifact import opened
    from edgekd.benchmark import why_no_rate
    from edgekd.stages import local_device
    from edgekd.timing import synthetic_frames, time_graphs

    where = local_device(device)
    with opened(artifact, head, (), trust_checkpoint) as (graph, spec):
        frames = synthetic_frames(spec)
        limits = {"min_iterations": iterations, "min_seconds": seconds}
        timing = time_graphs({"": graph}, {"": spec}, frames, where, "measured", **limits)[""]
    told = timing.summary()
    unsure = why_no_rate(timing.inference_ms, timing.starts_s)
    told["refused"] += [f"engine_fps: {unsure}"] if unsure else []
    told["engine_fps"] = None if unsure else 1000 / told["inference_ms"]["mean"]
    result = {"host": where.facts().as_json(), **told}
    if as_json:
        print_json(result)
        return
    parts = ("preprocess_ms", "inference_ms", "postprocess_ms", "total_ms")
    columns = ("p50", "p90", "p99", "mean")
    rows = [[part.removesuffix("_ms"), *(f"{result[part][column]:.2f}" for column in columns)] for part in parts]
    print_table(["ms", *columns], rows)
    host = result["host"]
    print(
        f"{rate_text(result['fps'])} over {result['iterations']} frames, "
        f"{host['engine']}, {host['threads']} threads, {host['cpu']}"
    )
    print_refused(result["refused"])


def predict(
    model: Artifact,
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
