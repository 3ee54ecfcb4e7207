#!/usr/bin/env python3
"""How small may a detector get? Quantize it to several sizes, and take the smallest file that keeps enough.

    python examples/quantize_to_size.py yolo11n.onnx --data coco256 --sizes 3MB 2MB 1.5MB 1MB --keep 98%

All sizes share one folder: what does not depend on the size (export, calibration, what each layer costs in each format)
is done once, and the winner, asked for again at the end, is found in the store. Sizes are compared on the split `val`,
so the winner's score flatters it a little: score it on images that nothing was chosen by before you print it anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgekd import EdgeKDError, quantize


def smallest(model: str, data: str, sizes: Sequence[str], keep: float, out: str) -> str | None:
    """The smallest of the sizes at which at least a share `keep`, 0 to 1, of the mAP50-95 is left."""
    found = None
    for size in sizes:
        made = quantize(model, data, max_size=size, out=out)
        kept = made.kept or 0.0
        print(f"{size:>8}: {made.graph_bytes[1]:>9} bytes, keeps {kept:.1%}", flush=True)
        if made.met and kept >= keep:
            found = size
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where a size was found; its files lie in the folder."""
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
