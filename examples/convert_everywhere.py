#!/usr/bin/env python3
"""Convert a detector to each format of a product line's runtimes, and score the results.

    python examples/convert_everywhere.py runs/quantized/graph.onnx --data data --out runs/everywhere

Each result is compared with its source, on frames and by mAP50-95, before it is written. If it differs, or if the
format's converter is not installed, it is not written and its line says why. `edgekd doctor` says how to install a
converter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekd import EdgeKDError, convert

FORMATS = {"onnx": ".onnx", "openvino": "-openvino", "ncnn": "-ncnn"}
"""Ending of the result's file or folder name, by format."""


def line(artifact: Path, data: str, to: str, out: Path) -> tuple[bool, str]:
    """Convert to a format. Return whether that worked, and a line for the user."""
    try:
        made = convert(artifact, to, data=data, out=out)
    except EdgeKDError as error:
        return False, f"{to:10} not written: {error}"
    source, converted = made.map50_95 or (float("nan"), float("nan"))
    int8 = made.int8
    layers = f", {int8.carried} of {int8.source} layers in INT8" if int8.source else ""
    return True, f"{to:10} {made.bytes:>9} bytes, mAP50-95 {source:.4f} -> {converted:.4f}{layers}: {made.path}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every requested format was written, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="a .pt, .onnx, .packed or bundle")
    parser.add_argument("--data", required=True, help="labelled images, whose split `val` is scored")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--out", type=Path, default=Path("runs/everywhere"))
    given = parser.parse_args(arguments)
    name = given.artifact.name.partition(".")[0]
    written = True
    for to in given.formats:
        done, said = line(given.artifact, given.data, to, given.out / f"{name}{FORMATS[to]}")
        print(said, flush=True)
        written = written and done
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
