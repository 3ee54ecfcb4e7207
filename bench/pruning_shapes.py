"""Measure pruned detectors: sizes, output shapes, time of pruning, and latency.

`--trained` adds a checkpoint that is pruned with training images. Nothing is trained afterwards, so accuracy is not
scored. Needs `edgekd[train,openvino]`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import CPU_ENGINES, SHARED, exported, median_ms
from frame import Blocks, Document, Given, Option, Result, claim, claims_table, head, main, note, table

from edgekd.compress.steps import Distill, Prune
from edgekd.core.progress import PlainProgress

MODELS = ("yolo11n", "yolo11s", "yolo11m", "yolo11x", "yolo26n", "yolo26s", "yolov8n", "yolov8s")
MOST_SECONDS = 300.0  # goal: time for a trained detector of 57 M parameters on two cores


def prune(model: str, checkpoint: Path, step: Prune, given: Given) -> Document:
    """Prune a detector and time it. Return its row; pairs are values before and after.

    `split_difference`: see `split_difference`; `shapes`: shape of the output; `latency_ms`: median from frame to
    detections, by engine; `seconds`: time of pruning.
    """
    from edgekd.detectors.ultralytics.prune import prune_detector

    out = given.scratch / "pruned.pt"
    done = prune_detector(checkpoint, out, given.data, step, trust=True, progress=PlainProgress(interval_s=30))
    row = Document(model=model, trained=step.importance != "magnitude", ratio=step.ratio, parameters=done.parameters)
    row.update(multiply_adds=done.multiply_adds, split_difference=split_difference(checkpoint))
    row.update(shapes=(shape(checkpoint), shape(out)), seconds=done.seconds)
    detectors = {
        side: exported(file, given.scratch / f"{side}.onnx", trust_checkpoint=True)
        for side, file in (("before", checkpoint), ("after", out))
    }
    times = median_ms(detectors, given.threads)
    return Document(row, latency_ms={name: (each["before"], each["after"]) for name, each in times.items()})


def network_in(checkpoint: Path) -> Any:
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint, trust=True).model


def shape(checkpoint: Path) -> list[int]:
    import torch

    with torch.no_grad():
        return list(network_in(checkpoint)(torch.zeros(1, 3, 640, 640))[0].shape)


def split_difference(checkpoint: Path) -> float:
    """Return the largest output change if split convolutions are replaced by two halves, on a frame of noise."""
    import torch

    from edgekd.detectors.ultralytics.channels import in_halves

    network, frame = network_in(checkpoint), torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(frame)[0]
        with in_halves(network):
            return float((network.eval()(frame)[0] - whole).abs().max())


def rows_of(given: Given) -> Iterator[Document]:
    import torch

    from edgekd.detectors.ultralytics.distill import student_network

    for model in given.models:
        network = student_network(Distill(f"{model}.yaml"), ("a", "b", "c", "d", "e"), trust=False)
        torch.save({"model": network, "train_args": {"imgsz": 640}}, given.scratch / "random.pt")
        for ratio in given.ratios:
            step = Prune(ratio, importance="magnitude", ranking="isomorphic", refit=False)
            yield prune(model, given.scratch / "random.pt", step, given)
    for ratio in given.ratios if given.trained else ():
        yield prune(given.trained.name, given.trained, Prune(ratio, images=given.images, batch=1), given)


def claims(rows: Sequence[Document]) -> list[dict[str, Any]]:
    least = min(before / after for row in rows for before, after in row.latency_ms.values())
    over = max(row.multiply_adds[1] / row.multiply_adds[0] - (1 - row.ratio) for row in rows)
    apart, other = sum(row.split_difference for row in rows), sum(row.shapes[0] != row.shapes[1] for row in rows)
    found = [
        claim("a split block computes the same to the bit; largest difference", float(apart), apart == 0),
        claim("the output has the shape it had; rows where not", float(other), other == 0),
        claim("as many multiply-adds go as were asked for; share too many left", over, over <= 0),
        claim("every one is faster on every engine; least speed-up", least, least > 1),
    ]
    trained = [row.seconds for row in rows if row.trained]
    if trained:
        found.append(claim("a trained one is pruned in 300 s; longest", max(trained), max(trained) <= MOST_SECONDS))
    return found


def sizes_cells(row: Document) -> str:
    (p0, p1), (m0, m1) = row.parameters, row.multiply_adds
    return f"{p0 / 1e6:.2f} -> {p1 / 1e6:.2f} M | {m0 / 1e9:.2f} -> {m1 / 1e9:.2f} G ({m1 / m0 - 1:.0%})"


def times_cells(row: Document) -> str:
    times = [f"{before:.1f}, {after:.1f} ({before / after:.2f}x)" for before, after in row.latency_ms.values()]
    return " | ".join(times or [""] * len(CPU_ENGINES))


TIMES_HEADER = " | ".join(f"{name}, ms: before, after" for name in CPU_ENGINES)


def page(found: Document) -> Blocks:
    yield from head("Pruned detectors: shapes and time", found)
    yield """\
Random weights by magnitude among layers built alike, without a refit; trained ones as `edgekd prune` does by default,
by training images. 640 x 640 pixels, 5 classes, widths in multiples of 16. Seconds: of pruning, from file to file.
Milliseconds: median of a frame from letterbox to boxes, both graphs interleaved, on this machine's CPU."""
    yield table(
        f"detector | goal | parameters | multiply-adds | seconds | {TIMES_HEADER}",
        (
            f"{row.model}{', trained' if row.trained else ''} | -{row.ratio:.0%} | {sizes_cells(row)} | "
            f"{row.seconds:.1f} | {times_cells(row)}"
            for row in found.rows
        ),
    )
    yield "## Requirements"
    yield claims_table(found.claims, ".4g")


def run(given: Given) -> Result:
    rows = []
    for row in rows_of(given):
        note(row.model, row.ratio, row.latency_ms, f"{row.seconds:.1f} s")
        rows.append(row)
    return {"rows": rows, "claims": claims(rows)}


if __name__ == "__main__":
    options = (
        Option("--models", MODELS, "models by Ultralytics, with random weights", nargs="*"),
        Option("--ratios", [0.3, 0.5]),
        Option("--trained", type=Path, help="a checkpoint that is pruned by training images"),
        Option("--images", 16, "number of these images"),
        Option("--data", SHARED / "data" / "ppe", "where these images are"),
    )
    main(run, page, *options)
