#!/usr/bin/env python3
"""Choose a device for a detector: of all that are fast enough, the one with the least energy per frame.

    python examples/choose_a_target.py yolo11n.onnx --fps 60
    python examples/choose_a_target.py yolo11n.onnx --fps 60 --targets xavier-nx orin-nano orin-nx

A device qualifies if no reason is known why it could not run the graph, and if the upper end of its predicted latency
is short enough. The predictions are of the network alone, without preprocessing, decoding and copies: measure the
chosen device with `edgekd engine` before you buy many.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd import EdgeKDError, check_model, load_target, predict_latency, target_names


@dataclass(frozen=True)
class Candidate:
    """A device. low_ms, high_ms, energy_mj: predicted per frame, None if unknown; why_not: why it is ruled out."""

    name: str
    title: str
    precision: str
    low_ms: float | None = None
    high_ms: float | None = None
    energy_mj: float | None = None
    why_not: str | None = None


def candidate(model: str, name: str) -> Candidate:
    """Check a model and predict its latency on a target, in INT8 if the target supports it, else in float16."""
    target = load_target(name)
    precision = "int8" if "int8" in target.precisions.conv.value else "fp16"
    checked = check_model(model, target=target)
    if not checked.possible:
        return Candidate(name, target.title, precision, why_not=checked.findings[0].what)
    try:
        found = predict_latency(model, target=target, precision=precision)
    except EdgeKDError as error:
        return Candidate(name, target.title, precision, why_not=error.what)
    return Candidate(name, target.title, precision, *found.interval_ms, found.energy_mj)


def quick_enough(found: Candidate, fps: float) -> bool:
    """Return whether it reaches this frame rate even at the upper end of its predicted latency."""
    return found.high_ms is not None and 1000 / found.high_ms >= fps


def best(candidates: Sequence[Candidate], fps: float) -> Candidate | None:
    """Return the candidate with the least energy per frame that is quick enough, if any. Unknown energies come last."""
    fit = [each for each in candidates if quick_enough(each, fps)]
    return min(fit, key=lambda each: each.energy_mj or float("inf"), default=None)


def line(found: Candidate, fps: float) -> str:
    """Return a candidate as a line of the table."""
    if found.low_ms is None or found.high_ms is None:
        return f"{found.name:16} {found.precision}  -  {found.why_not}"
    energy = "      -" if found.energy_mj is None else f"{found.energy_mj:7.1f}"
    verdict = "" if quick_enough(found, fps) else f"  below {fps:g} FPS, perhaps"
    return f"{found.name:16} {found.precision}  {found.low_ms:6.2f} to {found.high_ms:6.2f} ms {energy} mJ{verdict}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if a device was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an ONNX detector, or a checkpoint")
    parser.add_argument("--fps", type=float, required=True, help="frames a second that it must make")
    parser.add_argument("--targets", nargs="+", default=target_names(), metavar="NAME", help="default: all")
    given = parser.parse_args(arguments)
    try:
        candidates = [candidate(given.model, name) for name in given.targets]
    except EdgeKDError as error:
        sys.exit(f"choose_a_target: {error}")
    for each in candidates:
        print(line(each, given.fps))
    winner = best(candidates, given.fps)
    print(f"take {winner.name} ({winner.title})" if winner else f"none makes {given.fps:g} FPS for sure")
    return 0 if winner else 1


if __name__ == "__main__":
    sys.exit(main())
