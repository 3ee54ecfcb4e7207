"""Compare the accuracy of a detector after the same compression steps in different orders.

Half of the multiply-adds are pruned, weights are quantized to INT8, and the network trains for the same number of
epochs on cached predictions of the original, without labels: before quantization; half before and half after;
after it, with quantization simulated; or after it, with the formats chosen before pruning. No build uses the split
`test`. Needs `edgekd[train]`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import training
from common import SPLITS
from frame import Blocks, Document, Given, Option, cell, head, main, table
from training import SEEDS, Trainings, Way

from edgekd.builds.recipe import Recipe
from edgekd.builds.recipe_toml import recipe_toml
from edgekd.compress.steps import Prune, QuantAwareDistill, Quantize, Recover, Step

WHOLE = "as it was, INT8"
RATE = 1e-3
"""Learning rate of quantization-aware training: above the default, as half of the multiply-adds are removed."""


def orders(given: Given, seed: int) -> dict[str, tuple[Step, ...]]:
    size = {"image_size": given.image_size, "seed": seed}
    train = {"epochs": given.epochs, "batch": given.batch, **size}
    prune = Prune(given.ratio, images=given.gradient_images, **size)
    recover, aware = Recover(**train), QuantAwareDistill(learning_rate=RATE, **train)
    half = {"epochs": max(1, given.epochs // 2)}
    return {
        "prune, recover, quantize": (prune, recover, Quantize()),
        "half of the training before quantize": (prune, replace(recover, **half), Quantize(), replace(aware, **half)),
        "prune, quantize, train as it runs": (prune, Quantize(), aware),
        "quantize, prune, train as it runs": (Quantize(), prune, aware),
    }


class Bench(Trainings):
    """Runs builds, each with its own recipe. seconds: training time; predicted_ms: latency per frame on the target."""

    asked = ("ratio", "epochs", "batch", "image_size", "images", "gradient_images", "target", "device")
    numbers = ("bundle_bytes", "seconds", "predicted_ms")

    def ways(self) -> Iterator[Way]:
        yield WHOLE, None, partial(self._built, WHOLE, (Quantize(),), None)
        for seed in self.given.seeds:
            for method, steps in orders(self.given, seed).items():
                yield method, seed, partial(self._built, method, steps, seed)

    def _built(self, method: str, steps: tuple[Step, ...], seed: int | None) -> Document:
        name = "-".join(method.replace(",", "").split()) + ("" if seed is None else f"-{seed}")
        folder = self.given.work / name
        folder.mkdir(exist_ok=True)
        recipe, model = folder / "recipe.toml", folder / self.given.model.name
        recipe.write_text(recipe_toml(Recipe(name, steps)), "utf-8")
        training.sized(self.given.model, model, self.given.image_size)
        # Trusted: this script wrote the pickle.
        build = ("build", model, "--data", self.data, "--recipe", recipe, "--out", folder / "build")
        built = self.edgekd(name, *build, "--target", self.given.target, "--trust-checkpoint")
        bundle = Path(built["bundle"])
        predicted = self.edgekd(f"{name}-predict", "predict", bundle, "--target", self.given.target)
        return self.row(
            method,
            seed,
            bundle_bytes=bundle.stat().st_size,
            seconds=training.seconds_of_training(built),
            predicted_ms=predicted["latency_ms"],
            **self.bundle_scores(name, bundle),
        )


def page(found: Document) -> Blocks:
    yield from head("Orders of the compressions", found)
    yield """\
Each row is an `edgekd build`, and what is scored is its bundle. All train as many epochs on the same images,
with the detector that was given as teacher; training a rounded network takes longer an epoch. Means over the
seeds; in brackets the lowest and the highest. mAP: edgekd's scorer, ONNX Runtime's CPU provider."""
    yield training.epochs_line(found)
    yield table(
        f"steps | seeds | bundle, MB | training, s | {' | '.join(f'{split} mAP50-95' for split in SPLITS)} | "
        f"{found.target}, ms, predicted",
        (
            f"{method} | {training.seeds_of(rows)} | {cell(training.mean(rows, 'bundle_bytes'), '.3g', unit=1e6)} | "
            f"{cell(training.mean(rows, 'seconds'), '.3g')} | {training.spreads(rows)} | "
            f"{cell(training.mean(rows, 'predicted_ms'), '.3g')}"
            for method, rows in training.by_method(found.rows).items()
        ),
    )
    yield from training.failures(found)


if __name__ == "__main__":
    options = (
        *training.options("orders", "what is compressed", epochs=5, batch=8),
        Option("--ratio", 0.5, "share of the multiply-adds to remove"),
        Option("--target", "xavier"),
        Option("--gradient-images", 64, "by which channels are chosen"),
        SEEDS,
    )
    main(Bench.run, page, *options, holds=training.none_failed)
