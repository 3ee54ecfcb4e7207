#!/usr/bin/env python3
"""Which device for this detector? Ask all of them, and take the one that spends the least energy on a frame.

    python examples/choose_a_target.py yolo11n.onnx --fps 60
    python examples/choose_a_target.py yolo11n.onnx --fps 60 --targets xavier-nx orin-nano orin-nx

A device is in the running if nothing is known to keep it from running the graph, and if the whole interval of its
predicted latency is short enough. These are predictions of the network's time alone, without preprocessing, decoding
and copies: measure the winner with `edgekd engine` before you order a thousand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgekd import EdgeKDError, check_model, load_target, predict_latency, target_names


@dataclass(frozen=True)
class Candidate:
    """A device. low_ms, high_ms: of a frame; energy_mj: of a frame, None where unknown; why_not: what rules it out."""

    name: str
    title: str
    precision: str
    low_ms: float | None = None
    high_ms: float | None = None
    energy_mj: float | None = None
    why_not: str | None = None


def candidate(model: str, name: str) -> Candidate:
    """What is known of a model on a target, in INT8 where it has that."""
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
    """Whether it makes so many frames a second even where the prediction is at its worst."""
    return found.high_ms is not None and 1000 / found.high_ms >= fps


def best(candidates: Sequence[Candidate], fps: float) -> Candidate | None:
    """The one with the least energy a frame of those that are quick enough; unknown energies come last."""
    fit = [each for each in candidates if quick_enough(each, fps)]
    return min(fit, key=lambda each: each.energy_mj or float("inf"), default=None)


def line(found: Candidate, fps: float) -> str:
    """A candidate as a line of the table."""
    if found.low_ms is None or found.high_ms is None:
        return f"{found.name:16} {found.precision}  -  {found.why_not}"
    energy = "      -" if found.energy_mj is None else f"{found.energy_mj:7.1f}"
    verdict = "" if quick_enough(found, fps) else f"  below {fps:g} FPS, perhaps"
    return f"{found.name:16} {found.precision}  {found.low_ms:6.2f} to {found.high_ms:6.2f} ms {energy} mJ{verdict}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where a device was found."""
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
