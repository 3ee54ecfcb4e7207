"""Measure the overhead of edgekd's benchmark harness over a bare `session.run` loop. Goal: at most 2 %.

Each round times both. A second number does not depend on other load: the microseconds per frame of the harness around
a session that does nothing.
"""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import DEMO
from frame import Blocks, Document, Given, Option, Result, head, main, table

from edgekd.core.benchmark import FramePipeline, benchmark_interleaved, summarize
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, OnnxRuntimeSession

LIMIT = 1.02
SEED = 0


NOTHING = SimpleNamespace(run=lambda batch: batch)  # a session that returns its input


def bare_ms(session: OnnxRuntimeSession, frames: list[np.ndarray]) -> float:
    """Return the milliseconds per frame of ONNX Runtime in a bare loop."""
    native, outputs, name = session.native, list(session.outputs), session.native.get_inputs()[0].name
    began = time.perf_counter()
    for frame in frames:
        native.run(outputs, {name: frame})
    return (time.perf_counter() - began) * 1000 / len(frames)


def harness_ms(session: Any, frames: list[np.ndarray]) -> tuple[float, float]:
    """Return the harness's milliseconds per frame: by wall time around the call, and the mean that it reports."""
    began = time.perf_counter()
    alone = FramePipeline(session, lambda frame: (frame, None), lambda output, context: None)  # no other work
    limits = {"block": 1, "min_iterations": len(frames), "min_seconds": 0, "warmup": 0}
    timing = benchmark_interleaved({"": alone}, frames, **limits)[""]
    wall_ms = (time.perf_counter() - began) * 1000 / len(frames)
    return wall_ms, float(timing.total_ms.mean())


def play(session: OnnxRuntimeSession, frames: list[np.ndarray], rounds: int) -> list[dict[str, float]]:
    """Time both loops per round, in alternating order. The first round is a warm-up and not returned."""
    played = []
    for number in range(rounds + 1):
        if number % 2:
            bare = bare_ms(session, frames)
            wall, reported = harness_ms(session, frames)
        else:
            wall, reported = harness_ms(session, frames)
            bare = bare_ms(session, frames)
        played.append({"bare_ms": bare, "harness_ms": wall, "reported_ms": reported})
    return played[1:]


def ratios(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    """Return median, p10 and p90 over the rounds of a time relative to the bare loop's."""
    p10, p50, p90 = np.percentile([each[name] / each["bare_ms"] for each in samples], (10, 50, 90)).round(5).tolist()
    return {"median": p50, "p10": p10, "p90": p90}


def run(given: Given) -> Result:
    with ONNXRUNTIME_CPU.load(given.model, threads=given.threads) as session:
        shape = session.native.get_inputs()[0].shape
        generator = np.random.default_rng(SEED)
        frames = [generator.random(shape, dtype=np.float32) for _ in range(4)]
        samples = play(session, [frames[index % len(frames)] for index in range(given.iterations)], given.rounds)
    alone_us = [harness_ms(NOTHING, [frames[0]] * 20_000)[0] * 1000 for _ in range(9)]
    return {
        "model": given.model.name,
        "input": shape,
        "seed": SEED,
        "iterations_per_round": given.iterations,
        "bare_ms": summarize(np.array([each["bare_ms"] for each in samples])).p50,
        "wall_ratio": ratios(samples, "harness_ms"),
        "reported_ratio": ratios(samples, "reported_ms"),
        "harness_alone_us_per_frame": round(float(np.median(alone_us)), 3),
        "limit": LIMIT,
        "samples": samples,
    }


def page(found: Document) -> Blocks:
    yield from head("Overhead of the benchmark harness", found)
    yield (
        f"Model `{found.model}`, input {found.input}, {found.bare_ms:.2f} ms per frame in the bare loop; "
        f"{found.rounds} rounds of {found.iterations_per_round} frames each, interleaved in one process, "
        f"{found.host.threads} thread(s), seed {found.seed}."
    )
    rows = {
        "wall time, harness / bare loop": found.wall_ratio,
        "latency the harness reports / bare loop": found.reported_ratio,
    }
    yield table(
        "ratio | median | 10th percentile | 90th percentile",
        (f"{name} | {row.median:.4f} | {row.p10:.4f} | {row.p90:.4f}" for name, row in rows.items()),
    )
    alone = found.harness_alone_us_per_frame
    yield (
        f"The harness around a session that does nothing takes {alone:.2f} µs per frame: "
        f"{alone / found.bare_ms / 10:.4f} % of this model's frame. Limit: {found.limit:.2f}."
    )


def within(found: Document) -> bool:
    return max(found.wall_ratio.median, found.reported_ratio.median) <= LIMIT


if __name__ == "__main__":
    options = (
        Option("model", DEMO, "ONNX detector (default: the demo's)", nargs="?"),
        Option("--iterations", 25, "frames per turn"),
        Option("--rounds", 30),
        Option("--threads", 1),
    )
    main(run, page, *options, holds=within)
