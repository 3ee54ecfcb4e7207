"""The command that writes a detector in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Artifact, Head, Json, Trust, new_progress
from edgekd.cli.printing import print_converted, print_json
from edgekd.commands.api import converting as api


def convert(
    artifact: Artifact,
    to: Annotated[str, typer.Option(help="onnx, openvino, ncnn, tensorrt-rtx or deepstream.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to. Default: in runs, named after both.")] = None,
    precision: Annotated[
        str, typer.Option(help="as-is; fp16 for what is not INT8; fp32 for everything, INT8 taken out.")
    ] = "as-is",
    opset: Annotated[int | None, typer.Option(help="Of an ONNX file. Default: the artifact's.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="GPUs of a TensorRT for RTX engine; the Jetson that reads an ONNX or DeepStream result."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled data on which to score both, too.")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Write ARTIFACT in another format, and make sure that it computes the same. INT8 is carried over as it is."""
    found = api.convert(
        artifact,
        to,
        out=out,
        precision=precision,
        opset=opset,
        target=target or (),
        data=data,
        split=split,
        head=head,
        trust_checkpoint=trust_checkpoint,
        progress=new_progress(),
    )
    (print_json if as_json else print_converted)(found.document)
