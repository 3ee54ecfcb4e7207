#!/usr/bin/env python3
"""Make a detector faster: prune channels, train with the original as teacher, quantize, and print the accuracy kept.

    python examples/smaller_detector.py yolo11s.pt --data data --ratios 0.3 0.5 --epochs 60 --target orin-nano

Removing more multiply-adds makes the detector faster and less accurate; the table shows the accuracy for each ratio.
Training is slow without a GPU. You can stop at any moment: the same command continues after the last complete epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekd import EdgeKDError, distill, prune, quantize
from edgekd.core.progress import for_stderr


def smaller(model: str, data: str, ratio: float, epochs: int, target: str | None, recipe: str, out: Path) -> str:
    """Remove `ratio` of the multiply-adds, train and quantize. Return a line of the table."""
    progress = for_stderr()
    narrow = prune(model, data, ratio=ratio, target=target, out=out / "pruned", progress=progress)
    trained = distill(
        model, narrow.checkpoint, data, recipe=recipe, epochs=epochs, out=out / "trained", progress=progress
    )
    packed = quantize(trained.checkpoint, data, out=out / "int8", progress=progress)
    adds = [count / 1e9 for count in narrow.multiply_adds]
    scores = [narrow.map50_95[0], narrow.map50_95[1], trained.map50_95[1], packed.after.map50_95]
    told = " -> ".join("-" if score is None else f"{score:.4f}" for score in scores)
    return f"{ratio:.0%}: {adds[0]:.2f} -> {adds[1]:.2f} G multiply-adds; {told}; {packed.graph_bytes[1]} bytes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all detectors were made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint")
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5], help="of the multiply-adds that go, 0 to 1")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--target", help="whose predicted latency decides; this machine's measured one without")
    parser.add_argument("--recipe", default="distill", help="how it is trained: a name, or a .toml")
    parser.add_argument("--out", type=Path, default=Path("runs/smaller"))
    given = parser.parse_args(arguments)
    print("mAP50-95: as given -> pruned -> trained -> INT8")
    for ratio in given.ratios:
        folder = given.out / f"{ratio:g}"
        try:
            row = smaller(given.model, given.data, ratio, given.epochs, given.target, given.recipe, folder)
        except EdgeKDError as error:
            sys.exit(f"smaller_detector: {error}")
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
