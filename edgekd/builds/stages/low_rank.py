"""Stage `factorize`: convolutions replaced by low-rank products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekd.builds.stage_store import StageKind, StageResult
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.derived import DerivedDetector, require_faster
from edgekd.builds.stages.latency import LatencySource
from edgekd.builds.stages.prune import multiply_adds_text
from edgekd.compress.steps import LowRank
from edgekd.data.types import Dataset
from edgekd.detectors.family import require_family


@dataclass(frozen=True)
class FactoredLayer:
    """A layer that was replaced by a low-rank product.

    Args:
        kept: Share of the variance of its output that is kept, on the images that were used.
        ranks: Channels that its first factor writes, and that its last factor reads.
    """

    kept: float
    ranks: tuple[int, int]


@dataclass(frozen=True)
class FactorizeResult(StageResult):
    """A checkpoint, in the file `factorized_file(detector)`; pairs are before and after.

    bytes: its length; multiply_adds: per frame; layers: the replaced ones by name.
    """

    bytes: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    layers: Mapping[str, FactoredLayer]

    @property
    def summary(self) -> str:
        """The multiply-adds."""
        return multiply_adds_text(self.multiply_adds)


FACTORIZE = StageKind("factorize", 3, FactorizeResult, ("numpy", "opencv-python-headless", "torch", "ultralytics"))


@dataclass(frozen=True)
class FactorizedDetector(DerivedDetector):
    """A detector with some layers replaced by low-rank products; layers: the replaced ones by name."""

    layers: Mapping[str, FactoredLayer]


def factorize(
    context: StageContext,
    step: LowRank,
    checkpoint: Path,
    dataset: Dataset,
    before: GraphStage,
    export: Callable[[Path], GraphStage],
    latency: LatencySource,
    *,
    trust: bool = False,
) -> FactorizedDetector:
    """Factorize a detector.

    Args:
        before: The float graph of the checkpoint.
        export: Exports the factorized checkpoint.

    Raises CompressError if no layer gains from it, or the detector is not faster.
    """

    def work(folder: Path) -> FactorizeResult:
        factorize_detector = require_family(checkpoint).capability("factorize")
        out = folder / factorized_file(checkpoint)
        done = factorize_detector(checkpoint, out, dataset.source, step, trust, context.progress, latency.cost)
        layers = {
            name: FactoredLayer(float(f"{layer.kept:.6g}"), (layer.ranks.reading, layer.ranks.writing))
            for name, layer in done.layers.items()
        }
        return FactorizeResult(out.stat().st_size, done.parameters, done.multiply_adds, layers)

    inputs = {
        "model": context.sha256(checkpoint),
        "train": context.fingerprint(dataset.split("train")),
        "step": asdict(step),
        "latency": latency.identity,
    }
    stage = context.run(FACTORIZE, inputs, work, libraries=require_family(checkpoint).libraries)
    factorized, result = stage.path / factorized_file(checkpoint), stage.result
    graph = export(factorized)
    times, layers = latency.of_both(before, graph), result.layers
    sizes = (result.parameters, result.multiply_adds)
    found = FactorizedDetector(factorized, graph, *sizes, times, layers)
    fix = "raise channels, so that fewer layers are replaced, lower energy, or leave the network as it is"
    require_faster("factorize: thinner layers", found, latency, f"{len(layers)} layers replaced", fix)
    return found


def factorized_file(checkpoint: Path) -> str:
    """Return the name of the file of a factorized detector."""
    return f"factorized{require_family(checkpoint).suffix}"
