"""Commands that say how good and how fast something is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Artifact, Data, Head, Json, TargetName, Trust, new_progress
from edgekd.cli.printing import print_bench, print_json, print_predicted, print_report, print_scores, print_validation
from edgekd.commands.api import measuring as api


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
    found = api.score_model(
        artifact,
        data,
        split=split,
        tail=tail,
        head=head,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
    if as_json:
        print_json(found.document)
        return
    for image, reason in found.skipped:
        print(f"not scored: {image}: {reason}", file=sys.stderr)
    print_scores(found.document)


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
    found = api.bench(
        artifact,
        device=device,
        against=against,
        frames=frames,
        iterations=iterations,
        seconds=seconds,
        streams=streams,
        minutes=minutes,
        target=target,
        electricity_price=electricity_price,
        instance_price=instance_price,
        currency=currency,
        csv=csv,
        report=report,
        head=head,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
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
    found = api.predict_latency(
        model,
        target=target,
        precision=precision,
        table=table,
        report=report,
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    (print_json if as_json else print_predicted)(found.document)


def report(
    run: Annotated[Path, typer.Argument(help="Result folder of a build.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="What it was scored on. Default: where that was then.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page. Default: RUN/analysis.html.", show_default=False)] = None,
    images: Annotated[int, typer.Option(help="Scored images on which layers are compared.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Say why and where a build lost accuracy: detections, classes, layers, training, as a page for a browser."""
    found = api.analyse(run, data=data, out=out, images=images, progress=new_progress())
    (print_json if as_json else print_report)(found.document)


def validate_report(
    result: Annotated[Path, typer.Argument(help="A result.json of the validation kit.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The page. Default: RESULT.html.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Judge the evidence of a validation on hardware, and make a page of it."""
    from edgekd.commands import validate_report as validate_report_module

    found = validate_report_module.run(result, out)
    (print_json if as_json else print_validation)(found)
