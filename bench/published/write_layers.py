"""Write a layer table for every measured network, and compare its number of operations with published figures.

    python bench/published/write_layers.py [NAME-SIZE ...]

Ultralytics' networks are built from its YAML files with random weights, and exported like checkpoints. The others are
built by networks.py. Needs `edgekd[train]`.
"""

import csv
import sys
import tempfile
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from networks import NETWORKS
from rows import PUBLISHED, read_csv

from edgekd.graph.view import Graph
from edgekd.hardware.predict.graph import works_in, works_of
from edgekd.hardware.predict.work import Work, multiply_adds

LAYERS = PUBLISHED / "layers"
OPSET = 17


def layers_of(model: str, size: int) -> tuple[Work, ...]:
    if model in NETWORKS:
        return works_of(Graph(NETWORKS[model](size)), model)
    return exported(model, size)


def exported(model: str, size: int) -> tuple[Work, ...]:
    """Return the layers of one of Ultralytics' networks, with 80 classes."""
    import torch

    from edgekd.compress.steps import Distill
    from edgekd.detectors import load
    from edgekd.detectors.ultralytics.distill import student_network

    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, graph = Path(scratch) / "random.pt", Path(scratch) / "graph.onnx"
        network: Any = student_network(Distill(f"{model}.yaml"), tuple(f"class{at}" for at in range(80)), trust=False)
        torch.save({"model": network, "train_args": {"imgsz": size}}, checkpoint)
        load(checkpoint, trust_checkpoint=True).export(graph, OPSET)
        return works_in(graph)


def write(path: Path, works: tuple[Work, ...]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(field.name for field in fields(Work))
        table.writerows((int(value) if isinstance(value, bool) else value for value in astuple(work)) for work in works)


def main() -> int:
    """Return 1 if a network's operations differ by more than 2 % from the published figure, else 0."""
    wrong = 0
    for row in read_csv("networks.csv"):
        name = f"{row['model']}-{row['input']}"
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        works = layers_of(row["model"], int(row["input"]))
        write(LAYERS / f"{name}.csv", works)
        found, published = 2 * multiply_adds(works) / 1e9, row["gflops"]
        off = abs(found / float(published) - 1) if published else 0.0
        wrong += off > 0.02
        print(f"{name}: {len(works)} layers, {found:.2f} GFLOPs, published {published or 'none'}, {off:.1%} off")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
