"""Arguments and options that several commands take, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgekd.core.progress import Progress

Model = Annotated[Path, typer.Argument(help="Trained detector: Ultralytics .pt, .tv.pt, .onnx.", show_default=False)]
Artifact = Annotated[Path, typer.Argument(help="A .pt, .onnx, .packed or .edgekd bundle.", show_default=False)]
Bundle = Annotated[Path, typer.Argument(help="A .edgekd bundle.", show_default=False)]
Bundles = Annotated[list[Path], typer.Argument(help="Bundles for one target.", show_default=False)]
Data = Annotated[Path, typer.Option(help="Data set: YOLO folder or YAML, COCO folder or JSON.", show_default=False)]
TargetName = Annotated[str, typer.Option(help="Shipped target (`edgekd targets`) or a .toml of your own.")]
MaybeTarget = Annotated[str | None, typer.Option(help="What it is for, if not for this machine: `edgekd targets`.")]
Head = Annotated[str | None, typer.Option(help="ONNX head that is not recognised: yolo, yolox, end2end or a .toml.")]
RecipeName = Annotated[str | None, typer.Option(help="Shipped recipe or .toml of your own.")]
PlanFile = Annotated[Path | None, typer.Option(help="Run this plan.toml as it is.", show_default=False)]
Students = Annotated[list[str] | None, typer.Option(help="What is trained in MODEL's place: a .pt, yolo11n.yaml.")]
Keep = Annotated[str | None, typer.Option(help="Least share of the mAP50-95 kept, such as 98%.")]
CalibrationSet = Annotated[str | None, typer.Option(help="Number of images, or a calibration set's .toml.")]
MeasuredOn = Annotated[str, typer.Option(help="Where to measure: local, or local:ENGINE.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Reuse stages done before, or do all anew.")]
Trust = Annotated[bool, typer.Option("--trust-checkpoint", help="Execute whatever the .pt pickle says.")]
RuntimeThere = Annotated[str | None, typer.Option(help="What runs networks there. Default: the best it has.")]
StateThere = Annotated[str | None, typer.Option(help="Folder of the slots there. Default: /var/lib/edgekd.")]
PythonThere = Annotated[str | None, typer.Option(help="Interpreter there. Default: python3.")]
AgentThere = Annotated[str | None, typer.Option(help="Path there of an agent to use in place of the bundle's.")]
Iterations = Annotated[int, typer.Option(help="Time at least this many runs ...", min=1)]
Seconds = Annotated[float, typer.Option(help="... and at least this long.", min=0)]
StepTimeout = Annotated[float, typer.Option(help="Seconds that one step may take.", min=1)]
Keys = Annotated[list[str] | None, typer.Option(help="Sign with this key: a file, or a pkcs11: address.")]
Licence = Annotated[str | None, typer.Option(help="SPDX licence expression of the model.", show_default=False)]
SecretFile = Annotated[Path | None, typer.Option(help="File with the passphrase or PIN.", show_default=False)]
Log = Annotated[str | None, typer.Option(help="Append numbers to a .jsonl file, or send them: mlflow:URI.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def new_progress() -> Progress:
    """A bar on a terminal, lines elsewhere."""
    from edgekd.core.progress import for_stderr

    return for_stderr()
