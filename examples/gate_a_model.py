#!/usr/bin/env python3
"""Decide whether a new model may be deployed: build it, check its budget, and compare it with the old build by class.

    python examples/gate_a_model.py new.pt --data gate --max-size 12MB --keep 98% --before runs/old

For CI jobs: if the model is refused, the exit code is 1 and each reason is a line. A limit that cannot be checked on
this machine, such as a camera's frames per second, is printed as undecided and does not refuse the model.
`model-gate.yml` does the same without Python, and without the comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekd import EdgeKDError, build, compare


def worse_classes(before: str | Path, after: str | Path, loss: float) -> Iterator[str]:
    """Yield a line for each class whose mAP50-95 fell by more than `loss` between two builds, or is no longer known."""
    compared = compare(before, after)
    if not compared.same_data:
        print("the two builds were scored on different images or labels: a class may differ for that alone")
    for row in compared.classes:
        if row.a is not None and (row.b is None or row.a - row.b > loss):
            now = "is not known any more" if row.b is None else f"fell to {row.b:.4f}"
            yield f"class {row.name}: mAP50-95 was {row.a:.4f} and {now}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if the model may be deployed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the new detector")
    parser.add_argument("--data", required=True, help="labelled images, always the same")
    parser.add_argument("--target", default="xavier")
    parser.add_argument("--max-size", default="12MB", help="of the bundle")
    parser.add_argument("--keep", default="98%", help="share of its own mAP50-95 that the bundle must keep")
    parser.add_argument("--before", help="result folder of the build that is in service")
    parser.add_argument("--class-loss", type=float, default=0.02, help="mAP50-95 that a class may lose against it")
    parser.add_argument("--out", default="runs/gate")
    given = parser.parse_args(arguments)
    try:
        built = build(
            given.model, given.data, target=given.target, max_size=given.max_size, keep=given.keep, out=given.out
        )
        worse = list(worse_classes(given.before, given.out, given.class_loss)) if given.before else []
    except EdgeKDError as error:
        sys.exit(f"gate_a_model: {error}")
    for each in built.budget:
        state = {True: "kept", False: "missed", None: "undecided here"}[each.met]
        print(f"{each.label}: {each.text(each.value)}, limit {each.text(each.limit)}: {state}")
    print(
        "\n".join(worse) or "no class is worse than before" if given.before else "nothing to compare with: no --before"
    )
    refused = built.met is False or bool(worse)
    print("refused" if refused else f"may go: {built.bundle}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
