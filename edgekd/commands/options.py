"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds.recipe import Recipe
from edgekd.commands.parameter import Argument, Option
from edgekd.core.bundle.detector_rule import MAX_BATCH
from edgekd.hardware.target import Target

Paths = str | Path | Sequence[str | Path]

Model = Annotated[str | Path, Argument("Trained detector: .pt, .tv.pt, .onnx, or a folder by transformers.")]
Artifact = Annotated[str | Path, Argument("A .pt, .onnx, .packed or .edgekd bundle.")]
Bundle = Annotated[str | Path, Argument("A .edgekd bundle.")]
Data = Annotated[str | Path, Option("Data set: YOLO folder or YAML, COCO folder or JSON.")]
Split = Annotated[str, Option("Split to score.")]
TargetName = Annotated[str | Path | Target, Option("Shipped target (`edgekd targets`) or a .toml of your own.")]
MaybeTarget = Annotated[
    str | Path | Target | None, Option("What it is for, if not for this machine: `edgekd targets`.")
]
Head = Annotated[str | None, Option("Head of an ONNX model: a kind, a family of docs/heads.md, or a .toml.")]
RecipeName = Annotated[
    str | Path | Mapping[str, Any] | Recipe | None, Option("Shipped recipe or .toml of your own.", parse=str)
]
PlanFile = Annotated[str | Path | None, Option("Run this plan.toml as it is.")]
Keep = Annotated[str | float | None, Option("Least share of the mAP50-95 kept, such as 98%.")]
CalibrationSet = Annotated[str | int | Path | None, Option("Number of images, or a calibration set's .toml.")]
MeasuredOn = Annotated[str, Option("Where to measure: local, or local:ENGINE.")]
TimedOn = Annotated[str, Option("Where to time: local, or local:ENGINE.")]
Fresh = Annotated[bool, Option("Reuse stages done before, or do all anew.", inverse="--resume")]
Trust = Annotated[bool, Option("Execute whatever the .pt pickle says.")]
Runtime = Annotated[str | None, Option("What runs networks there. Default: the best it has.")]
State = Annotated[str | None, Option("Folder of the slots there. Default: /var/lib/edgekd.")]
Interpreter = Annotated[str | None, Option("Interpreter there. Default: python3.")]
AgentPath = Annotated[str | None, Option("Path there of an agent to use in place of the bundle's.")]
Iterations = Annotated[int, Option("Time at least this many runs ...", minimum=1)]
Seconds = Annotated[float, Option("... and at least this long.", minimum=0)]
StepTimeout = Annotated[float, Option("Seconds that one step may take.", minimum=1)]
Keys = Annotated[Paths, Option("Sign with this key: a file, or a pkcs11: address.", parse=str)]
TrustFile = Annotated[str | Path | None, Option("Trust file that decides.")]
PublicKeys = Annotated[Paths, Option("A .pub that must have signed it.", flag="--key")]
AllowUnsigned = Annotated[
    bool, Option("Run the bundle's own agent on a camera, though neither --trust nor --key vouches for it.")
]
InputName = Annotated[str, Option("What the network takes: float32, uint8, or nv12 frames.", flag="--input")]
MaxBatch = Annotated[int, Option("Most frames of one run of the engine.", flag="--batch", minimum=1, maximum=MAX_BATCH)]
Postprocess = Annotated[str, Option("Who selects the best candidates: host, or graph.")]
Licence = Annotated[str | None, Option("SPDX licence expression of the model.")]
SecretFile = Annotated[str | Path | None, Option("File with the passphrase or PIN.")]
Counter = Annotated[int | None, Option("No device goes back to a lower one.", minimum=0)]
