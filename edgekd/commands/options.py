"""Arguments and options of several commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds.recipe import Recipe
from edgekd.commands.parameter import Argument, Option
from edgekd.core.bundle.detector_rule import MAX_BATCH
from edgekd.hardware.target import Target

Paths = str | Path | Sequence[str | Path]

Model = Annotated[
    str | Path, Argument("Trained detector: .pt, .tv.pt, .onnx, RF-DETR's .pth, or a folder by transformers.")
]
Artifact = Annotated[str | Path, Argument("A .pt, .onnx, .packed or .edgekd bundle.")]
Bundle = Annotated[str | Path, Argument("A .edgekd bundle.")]
Data = Annotated[str | Path, Option("Data set: YOLO folder or YAML, COCO folder or JSON.", group="Input")]
MaybeData = Annotated[
    str | Path | None,
    Option("Data set, as a folder, YAML or JSON. Default: the YAML that a .pt was trained on.", group="Input"),
]
Split = Annotated[str, Option("Split to score.", group="Input")]
TargetName = Annotated[
    str | Path | Target,
    Option("Shipped target (`edgekd targets`) or a .toml of your own.", group="Target and recipe"),
]
MaybeTarget = Annotated[
    str | Path | Target | None,
    Option("Target (`edgekd targets`), if it is not this machine.", group="Target and recipe"),
]
Head = Annotated[
    str | None, Option("Head of an ONNX model: a kind, a family of docs/reference/heads.md, or a .toml.", group="Input")
]
RecipeName = Annotated[
    str | Path | Mapping[str, Any] | Recipe | None,
    Option("Shipped recipe or .toml of your own.", group="Target and recipe", parse=str),
]
PlanFile = Annotated[str | Path | None, Option("Run this plan.toml as it is.", group="Target and recipe")]
Keep = Annotated[str | float | None, Option("Least share of the mAP50-95 kept, such as 98%.", group="Budget")]
CalibrationSet = Annotated[
    str | int | Path | None, Option("Number of images to calibrate on, or a calibration set's .toml.", group="Input")
]
MeasuredOn = Annotated[str, Option("Where to measure: local, or local:ENGINE.", group="Device")]
TimedOn = Annotated[str, Option("Where to time: local, or local:ENGINE.", group="Device")]
Fresh = Annotated[bool, Option("Reuse stages done before, or do all anew.", group="Output", inverse="--resume")]
Trust = Annotated[bool, Option("Execute whatever the .pt pickle contains.", group="Security")]
Runtime = Annotated[str | None, Option("Runtime on the device. Default: the best there.", group="Device")]
State = Annotated[str | None, Option("Folder of the slots there. Default: /var/lib/edgekd.", group="Device")]
Interpreter = Annotated[str | None, Option("Python interpreter there. Default: python3.", group="Device")]
AgentPath = Annotated[str | None, Option("Path there of an agent to use in place of the bundle's.", group="Device")]
Iterations = Annotated[int, Option("Time at least this many runs ...", minimum=1)]
Seconds = Annotated[float, Option("... and at least this long.", minimum=0)]
StepTimeout = Annotated[float, Option("Seconds that one step may take.", group="Device", minimum=1)]
Keys = Annotated[Paths, Option("Sign with this key: a file, or a pkcs11: address.", group="Security", parse=str)]
TrustFile = Annotated[str | Path | None, Option("Trust file that decides which signatures count.", group="Security")]
PublicKeys = Annotated[Paths, Option("A .pub that must have signed it.", group="Security", flag="--key")]
AllowUnsigned = Annotated[
    bool,
    Option(
        "Run the bundle's own agent on a camera, though neither --trust nor --key vouches for it.", group="Security"
    ),
]
InputName = Annotated[
    str,
    Option("Frames that the network takes: float32, uint8 or nv12.", group="Target and recipe", flag="--input"),
]
MaxBatch = Annotated[
    int,
    Option(
        "Most frames of one run of the engine.", group="Target and recipe", flag="--batch", minimum=1, maximum=MAX_BATCH
    ),
]
Postprocess = Annotated[
    str, Option("Where the best candidates are selected: host, or graph.", group="Target and recipe")
]
Licence = Annotated[str | None, Option("SPDX licence expression of the model.", group="Output")]
SecretFile = Annotated[str | Path | None, Option("File with the passphrase or PIN.", group="Security")]
Counter = Annotated[
    int | None,
    Option("Version counter: devices refuse a lower one than they have.", group="Security", minimum=0),
]
