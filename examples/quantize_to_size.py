#!/usr/bin/env python3
"""Quantize a detector to several sizes, and choose the smallest that keeps enough accuracy.

    python examples/quantize_to_size.py yolo11n.onnx --data coco256 --sizes 3MB 2MB 1.5MB 1MB --keep 98%

All sizes share one folder, so work that does not depend on the size (export, calibration, each layer's cost in each
format) is done once, and the final call finds the chosen size in the store. Sizes are compared on the split `val`, so
the chosen one's score is slightly optimistic: before you publish it, score the file on images not used for any choice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgekd import EdgeKDError, quantize


def smallest(model: str, data: str, sizes: Sequence[str], keep: float, out: str) -> str | None:
    """Return the smallest of the sizes, given in descending order, that keeps a share `keep` (0 to 1) of mAP50-95."""
    found = None
    for size in sizes:
        made = quantize(model, data, max_size=size, out=out)
        kept = made.kept or 0.0
        print(f"{size:>8}: {made.graph_bytes[1]:>9} bytes, keeps {kept:.1%}", flush=True)
        if made.met and kept >= keep:
            found = size
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if a size was found, whose files are in the folder, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX detector, or a checkpoint")
    parser.add_argument("--data", required=True, help="labelled images")
    parser.add_argument("--sizes", nargs="+", required=True, metavar="SIZE", help="such as 3MB, the largest first")
    parser.add_argument("--keep", type=float, default=0.98, metavar="SHARE", help="of the mAP50-95, 0 to 1")
    parser.add_argument("--out", default="runs/to-size", help="folder for the results")
    given = parser.parse_args(arguments)
    try:
        size = smallest(given.model, given.data, given.sizes, given.keep, given.out)
        if size is None:
            print(f"no size keeps {given.keep:.1%}: allow more bytes, or train (recipe qad)")
            return 1
        made = quantize(given.model, given.data, max_size=size, out=given.out)
    except EdgeKDError as error:
        sys.exit(f"quantize_to_size: {error}")
    print(f"take {size}: {made.graph}, packed {made.packed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
