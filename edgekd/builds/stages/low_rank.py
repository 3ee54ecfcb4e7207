"""Low-rank factorization: layers of a detector replaced by products of thinner ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.latency import Latency
from edgekd.builds.recipe import LowRank
from edgekd.builds.speedup import require_faster
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import Stages
from edgekd.data.types import Dataset
from edgekd.detectors.family import require_family


@dataclass(frozen=True)
class Factored:
    """A detector some layers of which are products now.

    checkpoint: its file; graph: its float graph; parameters, multiply_adds, latency_ms: before and after; layers: of
    each layer that is one no more, by its name, the `ranks` between its parts and the share `kept`.
    """

    checkpoint: Path
    graph: Stage
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    latency_ms: tuple[float, float]
    layers: Mapping[str, Mapping[str, Any]]


def factorize(
    stages: Stages,
    step: LowRank,
    checkpoint: Path,
    dataset: Dataset,
    before: Stage,
    export: Callable[[Path], Stage],
    latency: Latency,
    trust: bool = False,
) -> Factored:
    """The factorized detector. before: the float graph of what it is made of; export: a checkpoint's.

    Raises CompressError where no layer is worth it, or the detector is not faster.
    """

    def work(folder: Path) -> Mapping[str, Any]:
        factorize_detector = require_family(checkpoint).capability("factorize")
        out = folder / factorized_file(checkpoint)
        done = factorize_detector(checkpoint, out, dataset.source, step, trust, stages.progress, latency.cost)
        return {
            "bytes": out.stat().st_size,
            "parameters": list(done.parameters),
            "multiply_adds": list(done.multiply_adds),
            "layers": {
                name: {"ranks": [each.ranks.reading, each.ranks.writing], "kept": float(f"{each.kept:.6g}")}
                for name, each in done.layers.items()
            },
        }

    inputs = {
        "model": stages.sha256(checkpoint),
        "train": stages.fingerprint(dataset.split("train")),
        "step": asdict(step),
        "latency": latency.identity,
    }
    done = stages.run("factorize", inputs, work, require_family(checkpoint).libraries)
    factorized = done.path / factorized_file(checkpoint)
    graph = export(factorized)
    parameters, counts, layers = (done.results[name] for name in ("parameters", "multiply_adds", "layers"))
    times = latency.of_both(before, graph)
    found = Factored(factorized, graph, tuple(parameters), tuple(counts), times, layers)
    fix = "raise channels, so that fewer layers are replaced, lower energy, or leave the network as it is"
    require_faster("factorize: thinner layers", found, latency, f"{len(layers)} layers replaced", fix)
    return found


def factorized_file(checkpoint: Path) -> str:
    """Return the name of the file of a factorized detector."""
    return f"factorized{require_family(checkpoint).suffix}"
