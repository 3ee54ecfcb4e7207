"""What edgekd's benchmark harness adds to a bare `session.run` loop: at most 2 %.

Both run the same ONNX Runtime session on the same frames, in turns within one process, so that a busy machine slows
both alike. Each round gives one pair; the median over rounds is the answer, the 10th and 90th percentile its spread. A
second number needs no quiet machine: the harness around a session that does nothing, in microseconds per frame.

    python bench/harness_overhead.py [MODEL.onnx]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, conditions, conditions_lines, table, write_results

from edgekd.core.benchmark import Candidate, benchmark_interleaved, summarize
from edgekd.data.demo import DETECTOR
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU, OnnxRuntimeSession

LIMIT = 1.02
SEED = 0


@dataclass(frozen=True)
class Round:
    """One pair of turns. Milliseconds per frame: the bare loop's and the harness's wall time, and what it reports."""

    bare_ms: float
    harness_ms: float
    reported_ms: float


class Nothing:
    """A session that returns what it is given."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        return batch


def keep(frame: np.ndarray) -> tuple[np.ndarray, None]:
    """No preprocessing: the frame is the batch."""
    return frame, None


def drop(output: np.ndarray, context: None) -> None:
    """No postprocessing."""


def bare_ms(session: OnnxRuntimeSession, frames: list[np.ndarray]) -> float:
    """Milliseconds per frame of nothing but ONNX Runtime in a loop."""
    native, wanted, name = session.native, list(session.outputs), session.native.get_inputs()[0].name
    began = time.perf_counter()
    for frame in frames:
        native.run(wanted, {name: frame})
    return (time.perf_counter() - began) * 1000 / len(frames)


def harness_ms(session: Any, frames: list[np.ndarray]) -> tuple[float, float]:
    """Milliseconds per frame of the harness: its wall time from call to return, and the mean that it reports."""
    began = time.perf_counter()
    timing = benchmark_interleaved(
        {"": Candidate(session, keep, drop)}, frames, block=1, min_iterations=len(frames), min_seconds=0, warmup=0
    )[""]
    wall_ms = (time.perf_counter() - began) * 1000 / len(frames)
    return wall_ms, float(timing.total_ms.mean())


def play(session: OnnxRuntimeSession, frames: list[np.ndarray], rounds: int) -> list[Round]:
    """The rounds; which of the two goes first alternates. A first, uncounted round warms both up."""
    played = []
    for number in range(rounds + 1):
        if number % 2:
            bare = bare_ms(session, frames)
            wall, reported = harness_ms(session, frames)
        else:
            wall, reported = harness_ms(session, frames)
            bare = bare_ms(session, frames)
        played.append(Round(bare, wall, reported))
    return played[1:]


def ratios(values: list[float]) -> dict[str, float]:
    """Median and spread of the rounds' ratios."""
    p10, p50, p90 = np.percentile(values, (10, 50, 90)).round(5).tolist()
    return {"median": p50, "p10": p10, "p90": p90}


def report(model: Path, iterations: int, rounds: int, threads: int) -> dict[str, Any]:
    """Run everything; the document that is written."""
    now = conditions(threads)
    with ONNXRUNTIME_CPU.load(model, threads=threads) as session:
        shape = session.native.get_inputs()[0].shape
        generator = np.random.default_rng(SEED)
        frames = [generator.random(shape, dtype=np.float32) for _ in range(4)]
        played = play(session, [frames[index % len(frames)] for index in range(iterations)], rounds)
    alone_us = [harness_ms(Nothing(), [frames[0]] * 20_000)[0] * 1000 for _ in range(9)]
    return {
        "question": "what does the benchmark harness add to a bare session.run loop?",
        "command": f"python bench/harness_overhead.py {model.name} --iterations {iterations} --rounds {rounds} "
        f"--threads {threads}",
        "model": model.name,
        "input": shape,
        "seed": SEED,
        "rounds": rounds,
        "iterations_per_round": iterations,
        "bare_ms": summarize(np.array([each.bare_ms for each in played])).p50,
        "wall_ratio": ratios([each.harness_ms / each.bare_ms for each in played]),
        "reported_ratio": ratios([each.reported_ms / each.bare_ms for each in played]),
        "harness_alone_us_per_frame": round(float(np.median(alone_us)), 3),
        "limit": LIMIT,
        **now,
        "samples": [vars(each) for each in played],
    }


def page(found: dict[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        ("wall time, harness / bare loop", found["wall_ratio"]),
        ("latency the harness reports / bare loop", found["reported_ratio"]),
    ]
    numbers = [[name, *(f"{row[part]:.4f}" for part in ("median", "p10", "p90"))] for name, row in rows]
    alone = found["harness_alone_us_per_frame"]
    return [
        "# What the benchmark harness adds",
        "",
        f"`{found['command']}`",
        "",
        f"Model `{found['model']}`, input {found['input']}, {found['bare_ms']:.2f} ms per frame in the bare loop; "
        f"{found['rounds']} rounds of {found['iterations_per_round']} frames each, in turns in one process, "
        f"{found['host']['threads']} thread(s), seed {found['seed']}.",
        "",
        *table(["ratio", "median", "10th percentile", "90th percentile"], numbers),
        "",
        f"The harness around a session that does nothing takes {alone:.2f} µs per frame: "
        f"{alone / found['bare_ms'] / 10:.4f} % of this model's frame. Limit: {found['limit']:.2f}.",
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when the harness stays within the limit, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=DETECTOR, help="ONNX detector (default: the demo's)")
    parser.add_argument("--iterations", type=int, default=25, help="frames per turn")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "harness_overhead.json")
    arguments = parser.parse_args()
    found = report(arguments.model, arguments.iterations, arguments.rounds, arguments.threads)
    write_results(arguments.out, found, page(found))
    return 0 if max(found["wall_ratio"]["median"], found["reported_ratio"]["median"]) <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
