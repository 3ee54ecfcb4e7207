"""Versions of TensorRT, and the recorded interface of each version's bindings and trtexec."""

from __future__ import annotations

import json
import re
from pathlib import Path

RECORDED: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).with_name("tensorrt_names.json")).read_text("utf-8")
)
"""Members by version and class, and flags of trtexec, as record_tensorrt_names.py writes them."""
VERSIONS = ("8.2.1", "8.4.1", "8.5.2.2", "8.6.1", "10.3.0", "10.16.0", "11.4.1")
"""The versions that tests use: those of JetPack 4.6.1, 5.0, 5.1, 6.0, 6.1 and 7.2, and the newest for Jetson.

The bindings 11.4.0.106 have the recorded names of 11.1 and one more, Runtime.dla_workspace_allocation_strategy.
"""


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, for comparison."""
    return tuple(map(int, re.findall(r"\d+", version)))


def recorded(version: str) -> dict[str, list[str]]:
    """Return the interface of the newest recorded version that is not newer than this one."""
    return RECORDED[max((each for each in RECORDED if numbers(each) <= numbers(version)), key=numbers)]


def names_of(version: str) -> dict[str, set[str]]:
    """Return the names of each class's members."""
    table = recorded(version)
    return {kind: {re.split(r"[(=]", each)[0] for each in members} for kind, members in table.items()}


def arguments_of(version: str, kind: str, method: str) -> list[list[str]]:
    """Return the arguments of a method, once for each overload; `=` ends those with a default."""
    found = (re.fullmatch(rf"{method}\((.*)\)", member) for member in recorded(version)[kind])
    return [[part for part in each[1].split(", ") if part and part != "..."] for each in found if each]


def trtexec_flags(version: str) -> set[str]:
    """Return the flags that trtexec takes."""
    return set(recorded(version)["trtexec"])
