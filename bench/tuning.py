"""What `agent tune` gains: a network in float, in INT8 as shipped, and as tuned, with each runtime that this host has.

Takes folders of finished builds. Each bundle is unpacked, built and tuned as on a camera. Then the three engines are
measured again, in turns, in rounds that had no part in the choice, and the graph of each is scored on the data. Times
are the processor's (user and system time of the process, one thread on one core), so that other programs on this
machine count for little.

    edgekd build MODEL --data DATA --recipe ptq --out DIR
    python bench/tuning.py DIR ... --data DATA
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.agent import commands, tuning
from edgekd.agent.engines.camera import Camera
from edgekd.agent.engines.records import ALL_FLOAT, AS_SHIPPED, Form
from edgekd.agent.rebuild_engine import tested_engine
from edgekd.agent.runtimes.onnxruntime import OnnxRuntime
from edgekd.agent.runtimes.openvino import OpenVino
from edgekd.agent.state.slots import Slot, State
from edgekd.agent.tuning import Effort
from edgekd.core.progress import PlainProgress, Progress
from edgekd.core.statistics import SIGNIFICANT, compare
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Split
from edgekd.deploy.tuned_accuracy import accuracy

FLOAT, SHIPPED, TUNED = "float", "INT8 as shipped", "tuned"


class _CpuTimed:
    """A runtime whose runs are timed by what this process computes, and not by what others do meanwhile."""

    def clock(self) -> float:
        """Seconds of this process on processors."""
        return time.process_time()


class CpuTimedOnnxRuntime(_CpuTimed, OnnxRuntime):
    """ONNX Runtime by the processor's time."""


class CpuTimedOpenVino(_CpuTimed, OpenVino):
    """OpenVINO by the processor's time."""


RUNTIMES = (CpuTimedOnnxRuntime(), CpuTimedOpenVino())


def verdict(row: Mapping[str, Any]) -> str:
    """How the tuned engine does beside the controls that pass their self-test, by what is more than chance."""
    ratios = {name: found for name, found in row["ratio"].items() if row["passed"][name]}
    if any(_differs(found) and found["ratio"] > 1 for found in ratios.values()):
        return "loses"
    if SHIPPED not in ratios:
        return "shipped fails"
    return "wins" if _differs(ratios[SHIPPED]) else "ties"


def _differs(found: Mapping[str, Any]) -> bool:
    low, high = found["interval"]
    return bool(found["p"] < SIGNIFICANT and not low <= 1 <= high)


def row_of(
    bundle: Path, runtime: CpuTimedOnnxRuntime | CpuTimedOpenVino, split: Split, effort: Effort, progress: Progress
) -> dict[str, Any]:
    """One detector with one runtime."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        camera = Camera(State(Path(scratch, "state")), Path(scratch, "root"), runtime)
        commands.unpack(camera, bundle)
        slot = camera.chosen_slot()
        progress.note(f"{slot.manifest.name} with {runtime.name}: tuning ...")
        chosen = tuning.tune(camera, effort)
        tuned = chosen.form
        forms = {FLOAT: ALL_FLOAT, SHIPPED: AS_SHIPPED, TUNED: tuned}
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
            "layers": {"int8": len(tuning.layers_with_qdq(slot).names), "float_in_tuned": _float_count(slot, tuned)},
            "tuned": {"source": tuned.source, "float_layers": list(tuned.float_layers)},
            "candidates": chosen.candidates,
            "ms": {name: round(float(np.median(each)), 3) for name, each in rounds.items()},
            "ratio": {
                name: {"ratio": each.ratio, "interval": [each.interval.low, each.interval.high], "p": each.p_value}
                for name, each in ratios.items()
            },
            "rounds": len(rounds[TUNED]),
            "passed": {name: engine.passed for name, engine in engines.items()},
            "map50_95": {name: _score(slot, form, split, progress) for name, form in forms.items()},
        }


def _float_count(slot: Slot, form: Form) -> int:
    return len(tuning.layers_with_qdq(slot).names) if form == ALL_FLOAT else len(form.float_layers)


def _score(slot: Slot, form: Form, split: Split, progress: Progress) -> float:
    packed = slot.path / "bundle" / slot.manifest.graph.path
    asked = {"source": form.source, "float_layers": form.float_layers}
    return float(accuracy(packed, slot.manifest, asked, split, progress)["map50_95"])


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    header = ["detector", "runtime", *(f"{name}, ms" for name in (FLOAT, SHIPPED, TUNED)), "tuned / shipped"]
    header += ["layers in float", "self-test: float, shipped, tuned", "mAP50-95: the same", ""]
    verdicts = [verdict(row) for row in found["rows"]]
    counts = {name: verdicts.count(name) for name in ("wins", "ties", "loses", "shipped fails")}
    return [
        "# INT8 only where it pays",
        "",
        f"`{found['command']}`",
        "",
        f"The tuned engine beside the controls that pass their self-test: {counts['wins']} wins over INT8 as shipped, "
        f"{counts['ties']} ties with it, {counts['loses']} losses to either. Where INT8 as shipped fails its self-test "
        f"({counts['shipped fails']} of {len(verdicts)}) it is no choice. "
        "A tie with 0 layers in float is INT8 as shipped.",
        "",
        f"Medians of {found['iterations']} runs or more of each, in turns of 10, in rounds that had no part in the "
        "choice; the ratio with its interval of 95 %. Times are the processor's, of one thread.",
        "",
        *table(header, list(_rows(found["rows"]))),
        "",
        "Why ONNX Runtime gains nothing from the Q/DQ of these detectors: "
        "[agent.md](../../docs/agent.md#what-an-engine-really-computes-in).",
        "",
        *conditions_lines(found),
    ]


def _rows(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        low, high = row["ratio"][SHIPPED]["interval"]
        layers = row["layers"]
        yield [
            f"{row['detector']}, {row['side']} pixels",
            f"{row['runtime']['name']} {row['runtime']['version'].split('-')[0]}",
            *(f"{row['ms'][name]:.2f}" for name in (FLOAT, SHIPPED, TUNED)),
            f"{row['ratio'][SHIPPED]['ratio']:.3f} ({low:.3f} to {high:.3f})",
            f"{layers['float_in_tuned']} of {layers['int8']}",
            ", ".join("passed" if row["passed"][name] else "FAILED" for name in (FLOAT, SHIPPED, TUNED)),
            ", ".join(f"{row['map50_95'][name]:.4f}" for name in (FLOAT, SHIPPED, TUNED)),
            verdict(row),
        ]


def main() -> int:
    """0 where the tuned engine never loses, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", type=Path, metavar="DIR", help="where `edgekd build` left its results")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "coco256")
    parser.add_argument("--builds", type=int, default=tuning.BUILDS, dest="tries", help="of `agent tune`")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning.json")
    given = parser.parse_args()
    use_cores(1)
    now, progress = conditions(threads=1), PlainProgress(interval_s=30)
    split = load_dataset(given.data).split("val")
    effort = Effort(given.tries, given.iterations, seconds=0.0)
    bundles = [next(folder.glob("*.edgekd")) for folder in given.builds]
    rows = [row_of(bundle, runtime, split, effort, progress) for bundle in bundles for runtime in RUNTIMES]
    found = {
        "question": "is the tuned engine ever slower than INT8 as shipped, or than float?",
        "command": f"python bench/tuning.py DIR ... --builds {given.tries} --iterations {given.iterations}",
        "models": [json.loads((build / "ledger.json").read_bytes())["model"] for build in given.builds],
        "iterations": given.iterations,
        "rows": rows,
        **now,
    }
    write_results(given.out, found, page(found))
    return 1 if any(verdict(row) == "loses" for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
