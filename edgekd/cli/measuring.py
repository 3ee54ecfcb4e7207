"""Commands that say how good and how fast something is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Artifact, Data, Head, Json, TargetName, Trust, new_progress
from edgekd.printing import print_bench, print_json, print_predicted, print_scores


def evaluate(
    artifact: Annotated[
        Path,
        typer.Argument(help="A .pt, .onnx, .packed, .edgekd bundle or converted folder.", show_default=False),
    ],
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

    from edgekd.artifact import runnable
    from edgekd.data.dataset import load_dataset
    from edgekd.data.long_tail import rare_classes
    from edgekd.evaluate import evaluate, require_classes
    from edgekd.score import tail_score

    began = time.perf_counter()
    dataset = load_dataset(data)
    rare = () if tail is None else rare_classes(dataset.split("train"), dataset.classes, tail)
    with runnable(artifact, head, dataset.classes, trust_checkpoint) as (graph, spec, engine):
        require_classes(spec, dataset)
        found = evaluate(graph, spec, dataset.split(split), new_progress(), engine=engine)
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
    against: Annotated[Path | None, typer.Option(help="Another artifact, measured in turns with it.")] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Folder of images, or a video, to decode. Default: noise.")
    ] = None,
    iterations: Annotated[int, typer.Option(help="At least this many frames ...", min=1)] = 200,
    seconds: Annotated[float, typer.Option(help="... and at least this long, of each part.", min=0)] = 5.0,
    streams: Annotated[int, typer.Option(help="Streams at once, for throughput; 0: none.", min=0, max=64)] = 2,
    minutes: Annotated[float, typer.Option(help="Also a sustained run of this length.", min=0)] = 0.0,
    target: Annotated[
        str | None, typer.Option(help="What this machine is, or stands in for: `edgekd targets`.")
    ] = None,
    electricity_price: Annotated[float | None, typer.Option(help="Of a kWh, for cost.", min=0)] = None,
    instance_price: Annotated[float | None, typer.Option(help="Of this machine for an hour, for cost.", min=0)] = None,
    currency: Annotated[str | None, typer.Option(help="What the prices are in.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every sample there.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with charts there (.html).")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Time an artifact, engine alone and camera to detections: percentiles, throughput, energy, cost, how sure."""
    from edgekd import measuring
    from edgekd.cost import Prices
    from edgekd.measured import require_place, write_csv, write_page
    from edgekd.stages import local_device
    from edgekd.target import load_target

    require_place(csv, report)
    job = measuring.BenchJob(
        artifact=artifact,
        device=local_device(device),
        against=against,
        frames=frames,
        iterations=iterations,
        seconds=seconds,
        streams=streams,
        minutes=minutes,
        target=load_target(target) if target else None,
        prices=Prices(electricity_price, instance_price, currency),
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    found = measuring.run(job, new_progress())
    if csv:
        write_csv(csv, found)
    if report:
        write_page(report, artifact, found)
    (print_json if as_json else print_bench)(found.document)


def predict(
    model: Artifact,
    target: TargetName = "xavier",
    precision: Annotated[str | None, typer.Option(help="fp16, int8 or fp32. Default: the graph's own.")] = None,
    table: Annotated[Path | None, typer.Option(help="A .toml of times measured on the target itself.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with the roofline there (.html).")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Predict latency and energy of MODEL on a TARGET that is not at hand, and say how sure that is."""
    from edgekd import predicting
    from edgekd.measured import require_place, write_prediction
    from edgekd.target import load_target

    require_place(report)
    job = predicting.PredictJob(model, load_target(target), precision, table, head, trust_checkpoint)
    found = predicting.predict(job)
    if report:
        write_prediction(report, found)
    (print_json if as_json else print_predicted)(found.document)


def report(
    run: Annotated[Path, typer.Argument(help="Result folder of a build.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="What it was scored on. Default: where that was then.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page. Default: RUN/analysis.html.", show_default=False)] = None,
    images: Annotated[int, typer.Option(help="Scored images on which layers are compared.", min=1)] = 16,
    as_json: Json = False,
) -> None:
    """Say why and where a build lost accuracy: detections, classes, layers, training, as a page for a browser."""
    from edgekd import reporting
    from edgekd.measured import require_place
    from edgekd.printing import print_report

    require_place(out)
    found = reporting.run(reporting.ReportJob(run, data, out, images), new_progress())
    (print_json if as_json else print_report)(found)
