"""Train a transformer as teacher: an RT-DETR decoder on the frozen backbone and neck of a trained YOLO.

Queries, deformable attention and loss are RT-DETR's (arXiv 2304.08069). The convolutions are the YOLO's and are not
trained, so training is feasible on a CPU. Needs `edgekd[train]`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import training
import yaml
from common import copy_data, use_cores
from frame import Given, Option, parser_of
from training import DEVICE

DECODER = {"hidden": 128, "queries": 100, "points": 4, "heads": 4, "layers": 2, "feed_forward": 256}
"""Arguments of RTDETRDecoder after the number of classes."""


def described(model: Path, folder: Path) -> Path:
    """Write the YOLO's YAML with the decoder in place of its head. Return the file."""
    from ultralytics import YOLO

    network = YOLO(model).model
    layers = network.yaml["head"]
    reads = layers[-1][0]
    layers[-1] = [reads, 1, "RTDETRDecoder", ["nc", *DECODER.values()]]
    # Ultralytics reads the scale from the file's name.
    file = folder / f"yolo11{network.yaml['scale']}-decoder.yaml"
    file.write_text(yaml.safe_dump(network.yaml), "utf-8")
    return file


def main() -> None:
    out = Option("checkpoint", type=Path, help="to be written")
    options = (out, *training.options("", "a trained YOLO", epochs=30, batch=16), DEVICE)
    given = parser_of(sys.modules[__name__], options, None).parse_args()
    use_cores(given.threads)
    checkpoint = given.checkpoint.absolute()
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        train(given, Path(scratch), checkpoint)


def train(given: Given, folder: Path, out: Path) -> None:
    """Train in `folder`, and write the last checkpoint to `out`."""
    import torch
    from ultralytics import RTDETR

    data = copy_data(given.data.absolute(), folder / "data", given.images)
    frozen = len(torch.load(given.model, map_location="cpu", weights_only=False)["model"].model) - 1
    detector = RTDETR(described(given.model, folder)).load(given.model)
    detector.add_callback("on_train_start", lambda trainer: torch.set_num_threads(given.threads))
    detector.train(
        data=data,
        epochs=given.epochs,
        batch=given.batch,
        nbs=given.batch,  # update weights after every batch; the default accumulates gradients over 64 images
        imgsz=given.image_size,
        device=given.device,
        freeze=frozen,
        optimizer="AdamW",
        lr0=1e-3,
        amp=False,
        workers=0 if given.device == "cpu" else 8,
        cache="ram",
        val=False,
        plots=False,
        seed=0,
        deterministic=False,
        project=str(folder),
        name="training",
    )
    shutil.copyfile(folder / "training" / "weights" / "last.pt", out)


if __name__ == "__main__":
    main()
