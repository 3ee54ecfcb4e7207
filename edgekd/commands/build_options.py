"""Options of `edgekd build` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from edgekd.commands.options import Paths
from edgekd.commands.parameter import Option, OptionGroup

_SEARCH: OptionGroup = "Training and search"

Students = Annotated[
    Paths, Option("Detector to train in MODEL's place: a .pt, yolo11n.yaml.", group=_SEARCH, parse=str)
]
Searches = Annotated[bool, Option("Search for the recipe that meets the budget.", group=_SEARCH)]
SearchTime = Annotated[str | None, Option("Longest search, such as 8h.", group=_SEARCH)]
Trials = Annotated[int, Option("Most candidates that a search tries.", group=_SEARCH, minimum=1)]
Epochs = Annotated[int, Option("Epochs of a full training in a search; 0: no training.", group=_SEARCH, minimum=0)]
Workers = Annotated[int, Option("Processes that try candidates.", group=_SEARCH, minimum=1)]
Cluster = Annotated[str | None, Option("Try candidates on a Ray cluster: HOST:PORT, auto or local.", group=_SEARCH)]
Gpus = Annotated[
    int | None, Option("GPUs of a trial on the cluster. Default: one, if there are any.", group=_SEARCH, minimum=0)
]
Boards = Annotated[str | Path | None, Option("Boards on which a search times candidates: a .toml.", group=_SEARCH)]
Round = Annotated[int, Option("Candidates in a round of a search.", group=_SEARCH, flag="--round", minimum=1)]
ResultFolder = Annotated[str | Path | None, Option("Result folder. Default: runs/MODEL-TARGET.", group="Output")]
MaxSize = Annotated[str | int | None, Option("Largest bundle, such as 12MB.", group="Budget")]
MinFps = Annotated[float | None, Option("Fewest frames per second, frame by frame.", group="Budget", minimum=0)]
MaxEnergy = Annotated[str | None, Option("Most energy per frame, as predicted, such as 150mJ.", group="Budget")]
FirstCounter = Annotated[
    int, Option("Version counter: devices refuse a lower one than they have.", group="Security", minimum=0)
]
BundleReport = Annotated[bool, Option("Put the report into the bundle: it shows scored images.", group="Output")]
