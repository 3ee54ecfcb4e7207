"""Train a transformer that can teach: the decoder of an RT-DETR on the frozen backbone and neck of a trained YOLO.

Queries, deformable attention and loss are those of RT-DETR (arXiv 2304.08069). Its convolutions are those of the YOLO,
so that a CPU can train the rest. Needs `edgekd[train]`.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import yaml
from common import SHARED, copy_data, use_cores

DECODER = {"hidden": 128, "queries": 100, "points": 4, "heads": 4, "layers": 2, "feed_forward": 256}
"""What follows the number of classes among RTDETRDecoder's arguments."""


def described(model: Path, folder: Path) -> Path:
    """The YOLO's description with the decoder in the place of its head, as a file."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="a trained YOLO")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    use_cores(given.threads)
    out = given.out.absolute()
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        train(given, Path(scratch), out)


def train(given: argparse.Namespace, folder: Path, out: Path) -> None:
    """Train in `folder`; the checkpoint to `out`."""
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
