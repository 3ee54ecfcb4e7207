"""Measure the gain of `agent tune`: a network in float, in INT8 as shipped, and tuned, with each runtime on this host.

Each bundle is unpacked, built and tuned as on a camera. DIR is the `--out` of `edgekd build MODEL --data DATA --recipe
ptq`.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import SHARED
from frame import Blocks, Document, Given, Option, Result, head, main, table

from edgekd.agent import commands, tuning
from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.records import ALL_FLOAT, AS_SHIPPED, Form
from edgekd.agent.rebuild_engine import tested_engine
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.runtimes.openvino import OpenVino
from edgekd.agent.state.slots import Slot, State
from edgekd.agent.tuning import TuningEffort
from edgekd.core.progress import PlainProgress, Progress
from edgekd.core.statistics import SIGNIFICANT, compare
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Split
from edgekd.deploy.tuned_accuracy import accuracy

FLOAT, SHIPPED, TUNED = FORMS = ("float", "INT8 as shipped", "tuned")


class _CpuTimed:
    """Mixin for runtimes: times runs in CPU seconds of this process, which do not depend on other programs."""

    def clock(self) -> float:
        """Return the CPU seconds of this process."""
        return time.process_time()


class CpuTimedOnnxRuntime(_CpuTimed, OnnxRuntime):
    """ONNX Runtime, timed in CPU seconds."""


class CpuTimedOpenVino(_CpuTimed, OpenVino):
    """OpenVINO, timed in CPU seconds."""


RUNTIMES = (CpuTimedOnnxRuntime(), CpuTimedOpenVino())


def verdict(row: Document) -> str:
    """Return `wins`, `ties`, `loses` or `shipped fails`, compared with the controls that pass the self-test."""
    ratios = {name: found for name, found in row.ratio.items() if row.passed[name]}
    if any(_differs(found) and found.ratio > 1 for found in ratios.values()):
        return "loses"
    if SHIPPED not in ratios:
        return "shipped fails"
    return "wins" if _differs(ratios[SHIPPED]) else "ties"


def _differs(found: Document) -> bool:
    low, high = found.interval
    return bool(found.p < SIGNIFICANT and not low <= 1 <= high)


def row_of(bundle: Path, runtime: CpuTimedOnnxRuntime | CpuTimedOpenVino, split: Split, given: Given) -> Result:
    """Tune one detector with one runtime, and compare its three forms. Return the row."""
    effort, progress = TuningEffort(given.tries, given.iterations, seconds=0.0), PlainProgress(interval_s=30)
    folder = Path(tempfile.mkdtemp(dir=given.scratch))
    camera = Camera(State(folder / "state"), folder / "root", runtime)
    commands.unpack(camera, bundle)
    slot = camera.chosen_slot()
    progress.note(f"{slot.manifest.name} with {runtime.name}: tuning ...")
    tuned = tuning.tune(camera, effort).form
    forms = {FLOAT: ALL_FLOAT, SHIPPED: AS_SHIPPED, TUNED: tuned}
    layers = tuning.layers_with_qdq(slot).names
    float_layers = layers if tuned == ALL_FLOAT else tuned.float_layers
    key = camera.engine_key(slot)
    engines = {name: tested_engine(camera, slot, key, form) for name, form in forms.items()}
    files = [engine.file for engine in engines.values()]
    progress.note(f"{slot.manifest.name} with {runtime.name}: measuring ...")
    rounds = dict(zip(engines, tuning.measure(slot, runtime, files, effort), strict=True))
    ratios = {name: compare(rounds[TUNED], rounds[name]) for name in (SHIPPED, FLOAT)}
    return {
        "detector": slot.manifest.name,
        "side": slot.manifest.detector["preprocess"]["width"],
        "runtime": {"name": runtime.name, "version": runtime.version()},
        "layers": {"int8": len(layers), "float_in_tuned": len(float_layers)},
        "ms": {name: round(float(np.median(each)), 3) for name, each in rounds.items()},
        "ratio": {
            name: {"ratio": each.ratio, "interval": [each.interval.low, each.interval.high], "p": each.p_value}
            for name, each in ratios.items()
        },
        "passed": {name: engine.passed for name, engine in engines.items()},
        "map50_95": {name: _score(slot, form, split, progress) for name, form in forms.items()},
    }


def _score(slot: Slot, form: Form, split: Split, progress: Progress) -> float:
    packed = slot.path / "bundle" / slot.manifest.graph.path
    return accuracy(packed, slot.manifest, form, split, progress).map50_95


def page(found: Document) -> Blocks:
    verdicts = Counter(map(verdict, found.rows))
    yield from head("INT8 only where it pays", found)
    yield (
        f"The tuned engine beside the controls that pass their self-test: {verdicts['wins']} wins over INT8 as "
        f"shipped, {verdicts['ties']} ties with it, {verdicts['loses']} losses to either. Where INT8 as shipped fails "
        f"its self-test ({verdicts['shipped fails']} of {len(found.rows)}) it is no choice. "
        "A tie with 0 layers in float is INT8 as shipped."
    )
    yield (
        f"Medians of {found.iterations} runs or more of each, interleaved 10 at a time, in rounds that had no part in "
        "the choice; the ratio with its interval of 95 %. Times are the processor's, of one thread."
    )
    yield table(
        f"detector | runtime | {' | '.join(f'{name}, ms' for name in FORMS)} | tuned / shipped | layers in float | "
        "self-test: float, shipped, tuned | mAP50-95: the same | ",
        map(_cells, found.rows),
    )
    yield (
        "Why ONNX Runtime gains nothing from the Q/DQ of these detectors: "
        "[engines.md](../../docs/concepts/engines.md#precision-of-an-engine)."
    )


def _cells(row: Document) -> str:
    ratio, times = row.ratio[SHIPPED], " | ".join(f"{row.ms[name]:.2f}" for name in FORMS)
    low, high = ratio.interval
    return (
        f"{row.detector}, {row.side} pixels | {row.runtime.name} {row.runtime.version.split('-')[0]} | {times} | "
        f"{ratio.ratio:.3f} ({low:.3f} to {high:.3f}) | {row.layers.float_in_tuned} of {row.layers.int8} | "
        f"{', '.join('passed' if row.passed[name] else 'FAILED' for name in FORMS)} | "
        f"{', '.join(f'{row.map50_95[name]:.4f}' for name in FORMS)} | {verdict(row)}"
    )


def run(given: Given) -> Result:
    split = load_dataset(given.data).split("val")
    bundles = [next(folder.glob("*.edgekd")) for folder in given.builds]
    return {"rows": [row_of(bundle, runtime, split, given) for bundle in bundles for runtime in RUNTIMES]}


if __name__ == "__main__":
    options = (
        Option("builds", nargs="+", type=Path, metavar="DIR", help="where `edgekd build` left its results"),
        Option("--data", SHARED / "data" / "coco256"),
        Option("--builds", tuning.MAX_BUILDS, "of `agent tune`", dest="tries"),
        Option("--iterations", 400),
    )
    main(run, page, *options, holds=lambda found: not any(verdict(row) == "loses" for row in found.rows), cores=1)
