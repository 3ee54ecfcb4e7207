"""Train the demo's detector on rendered scenes and export it: `train.py --out DIR [--seconds S] [--device cuda]`.

Writes DIR/detector.onnx and DIR/training.json. Training ends after --epochs or after --seconds, whichever comes first.
The learning rate follows the larger progress of the two, so that it always ends low.
"""

# The type checker follows no import of torch, so its classes and decorators have no type here.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import argparse
import copy
import json
import math
import mmap
import multiprocessing
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from demo_scenes.scenes import render, split_seeds
from demo_scenes.traffic import CLASSES
from network import BINS, Detector, Exported, cells, distances
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

HEIGHT, WIDTH, FRAME_HEIGHT = 256, 416, 234
"""The network's input, and the height of a 640x360 frame letterboxed into it."""
SMALL = (192, 320)  # input of the first epochs, which are nearly twice as fast
MAX_OBJECTS = 56
BOX_WEIGHT, CLASS_WEIGHT, SIDE_WEIGHT = 7.5, 0.6, 1.5
TOP_CELLS = 10
"""Largest number of cells assigned to one object."""


@dataclass(frozen=True)
class Scenes:
    """frames uint8 [n, 234, 416, 3] BGR; labels float32 [n, MAX_OBJECTS, 5]: class (-1: none), x1, y1, x2, y2."""

    frames: Tensor
    labels: Tensor


def render_scenes(count: int, workers: int) -> Scenes:
    """Render the detector's training scenes with several processes into shared memory."""
    frames = _shared((count, FRAME_HEIGHT, WIDTH, 3), np.uint8)
    labels = _shared((count, MAX_OBJECTS, 5), np.float32)
    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=_render_every, args=(frames, labels, k, workers)) for k in range(workers)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        if process.exitcode:
            raise SystemExit("a rendering process failed")
    return Scenes(torch.from_numpy(frames), torch.from_numpy(labels))


def _shared(shape: tuple[int, ...], kind: type) -> NDArray[np.generic]:
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * np.dtype(kind).itemsize), kind).reshape(shape)


def _render_every(frames: NDArray[np.uint8], labels: NDArray[np.float32], first: int, step: int) -> None:
    cv2.setNumThreads(1)
    for row, seed in list(enumerate(split_seeds("detector-train", len(frames))))[first::step]:
        scene = render(seed)
        frames[row] = cv2.resize(scene.image, (WIDTH, FRAME_HEIGHT), interpolation=cv2.INTER_LINEAR)
        labels[row, :, 0] = -1
        boxes = scene.boxes * (WIDTH / scene.image.shape[1])
        labels[row, : len(boxes)] = np.column_stack([scene.classes, boxes])


def batch_of(scenes: Scenes, rows: Tensor, device: torch.device, small: bool) -> tuple[Tensor, Tensor]:
    """Return input float32 [b, 3, 256, 416] and labels [b, m, 5] in its pixels, some mirrored, with colour jitter.

    `small` shrinks both to `SMALL`.
    """
    frames = scenes.frames[rows].to(device, non_blocking=True)
    labels = scenes.labels[rows].to(device, non_blocking=True)
    images = frames.flip(-1).permute(0, 3, 1, 2).float() / 255
    gain = torch.empty(len(rows), 3, 1, 1, device=device).uniform_(0.9, 1.1)
    gain *= torch.empty(len(rows), 1, 1, 1, device=device).uniform_(0.7, 1.3)
    images = (images * gain).clamp(0, 1)
    top = (HEIGHT - FRAME_HEIGHT) // 2
    images = functional.pad(images, (0, 0, top, top), value=114 / 255)
    labels = labels[:, : int((labels[..., 0] >= 0).sum(1).max().clamp(min=1))].clone()
    labels[..., 2::2] += top
    mirrored = torch.rand(len(rows), device=device) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    other = torch.stack(
        [labels[..., 0], WIDTH - labels[..., 3], labels[..., 2], WIDTH - labels[..., 1], labels[..., 4]], -1
    )
    labels = torch.where(mirrored[:, None, None], other, labels)
    if small:
        images = functional.interpolate(images, SMALL, mode="bilinear", antialias=True)
        labels[..., 1::2] *= SMALL[1] / WIDTH
        labels[..., 2::2] *= SMALL[0] / HEIGHT
    return images, labels


def complete_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and complete IoU (Zheng et al. 2020, arXiv:2005.03572) of boxes [..., 4] x1, y1, x2, y2."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    size_a, size_b = (a[..., 2:] - a[..., :2]).clamp(min=1e-3), (b[..., 2:] - b[..., :2]).clamp(min=1e-3)
    iou = shared / (size_a.prod(-1) + size_b.prod(-1) - shared + 1e-7)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    shape = (4 / math.pi**2) * (
        torch.atan(size_a[..., 0] / size_a[..., 1]) - torch.atan(size_b[..., 0] / size_b[..., 1])
    ) ** 2
    weight = (shape / (shape - iou + 1 + 1e-7)).detach()
    return iou, iou - apart / (hull.square().sum(-1) + 1e-7) - weight * shape


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, labels: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """Assign objects to cells by the quality of the cells' predictions (TOOD, Feng et al. 2021, arXiv:2108.07755).

    scores [b, c, n] probabilities; boxes [b, n, 4]; labels [b, m, 5]; middles [2, n] of the cells.
    Returns the object's row per cell int64 [b, n], and the target score [b, n], 0 for background.
    """
    real, kinds, truth = labels[..., 0] >= 0, labels[..., 0].clamp(min=0).long(), labels[..., 1:]
    centre = (truth[..., :2] + truth[..., 2:]) / 2
    # Objects smaller than a cell are still assigned to the nearest centres.
    reach = ((truth[..., 2:] - truth[..., :2]) / 2).clamp(min=5.0)
    inside = ((middles.T - centre[:, :, None]).abs() < reach[:, :, None]).all(-1) & real[..., None]
    iou, _ = complete_iou(truth[:, :, None], boxes[:, None])
    chance = scores.gather(1, kinds[..., None].expand(-1, -1, scores.shape[2]))
    merit = chance.sqrt() * iou.pow(6) * inside
    best = torch.zeros_like(inside).scatter_(2, merit.topk(TOP_CELLS, dim=2).indices, True) & inside
    claimed = torch.where(best, iou, torch.full_like(iou, -1.0))
    overlap, owner = claimed.max(1)
    mine = torch.zeros_like(best).scatter_(1, owner[:, None], True) & best
    merit = merit * mine
    scale = (iou * mine).amax(2, keepdim=True) / merit.amax(2, keepdim=True).clamp(min=1e-12)
    target = (merit * scale).amax(1) * (overlap >= 0)
    return owner, target


def loss_of(outputs: tuple[Tensor, Tensor], labels: Tensor, middles: Tensor, strides: Tensor) -> Tensor:
    """Classes by binary cross-entropy, boxes by complete IoU, sides by the two bins around the true distance."""
    sides, logits = outputs[0].float(), outputs[1].float()
    reach = distances(sides) * strides
    boxes = torch.cat([middles - reach[:, :2], middles + reach[:, 2:]], 1).transpose(1, 2)
    owner, target = assign(logits.detach().sigmoid(), boxes.detach(), labels, middles)
    chosen = labels.gather(1, owner[..., None].expand(-1, -1, 5))
    expected = functional.one_hot(chosen[..., 0].clamp(min=0).long(), logits.shape[1]).transpose(1, 2) * target[:, None]
    total = target.sum().clamp(min=1.0)
    class_loss = functional.binary_cross_entropy_with_logits(logits, expected, reduction="sum") / total
    own = target > 0
    weight = target[own]
    _, quality = complete_iou(boxes[own], chosen[own][:, 1:])
    box_loss = ((1 - quality) * weight).sum() / total
    middle, stride = middles.T.expand(*own.shape, 2)[own], strides.expand(own.shape)[own]
    true = torch.cat([middle - chosen[own][:, 1:3], chosen[own][:, 3:] - middle], 1) / stride[:, None]
    true = true.clamp(0, BINS - 1.01)
    bins = sides.unflatten(1, (4, BINS)).permute(0, 3, 1, 2)[own].log_softmax(-1)
    lower = true.long()
    share = true - lower
    picked = bins.gather(2, torch.stack([lower, lower + 1], -1))
    side_loss = -((picked[..., 0] * (1 - share) + picked[..., 1] * share).mean(1) * weight).sum() / total
    return BOX_WEIGHT * box_loss + CLASS_WEIGHT * class_loss + SIDE_WEIGHT * side_loss


def train(scenes: Scenes, args: argparse.Namespace) -> tuple[Detector, dict[str, float]]:
    """Train a detector. Return the moving average of its weights, and figures of the training.

    The first epochs use smaller frames. Now and then the current average is exported, and its weights saved for
    `--start`.
    """
    device = torch.device(args.device)
    model = Detector(len(CLASSES)).to(device, memory_format=torch.channels_last)
    if args.start:
        model.load_state_dict(torch.load(args.start, weights_only=True))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average), use_buffers=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}])
    grids = [tuple(x.to(device) for x in cells(*size)) for size in ((HEIGHT, WIDTH), SMALL)]
    per_epoch = max(1, len(scenes.frames) // args.batch)
    steps, began, step, done = per_epoch * args.epochs, time.monotonic(), 0, 0.0
    saved = 0.0
    order = torch.randperm(len(scenes.frames))
    while done < 1:
        if step % per_epoch == 0:
            order = torch.randperm(len(scenes.frames))
        rows = order[step % per_epoch * args.batch :][: args.batch].to(scenes.frames.device)
        small = done < args.small
        images, labels = batch_of(scenes, rows, device, small)
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16):
            outputs = model(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(outputs, labels, *grids[small])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        seconds = time.monotonic() - began
        done = max(step / steps, seconds / args.seconds)
        if step % 50 == 0 or done >= 1:
            print(
                f"step {step} epoch {step / per_epoch:.1f} loss {loss.item():.3f} rate {rate:.2e} {seconds:.0f} s",
                flush=True,
            )
        if done - saved > 0.05:
            saved = done
            torch.save(average.module.state_dict(), args.out / "weights.pt")
            export(copy.deepcopy(average.module), args.out / "detector.onnx", CLASSES)
    return average.module, {"epochs": round(step / per_epoch, 2), "steps": step, "seconds": round(seconds, 1)}


def export(detector: Detector, path: Path, classes: tuple[str, ...]) -> None:
    """Write the detector as ONNX with batch norms folded into convolutions, and the metadata that a loader needs."""
    detector = detector.cpu().float().eval()
    for module in detector.modules():
        for name, child in module.named_children():
            if (
                isinstance(child, torch.nn.Sequential)
                and len(child) == 3
                and isinstance(child[1], torch.nn.BatchNorm2d)
            ):
                fused = fuse_conv_bn_eval(child[0], child[1])
                setattr(module, name, torch.nn.Sequential(fused, child[2]))
    example = torch.zeros(1, 3, HEIGHT, WIDTH)
    torch.onnx.export(
        Exported(detector, HEIGHT, WIDTH), (example,), str(path), opset_version=13, dynamo=False,
        input_names=["images"], output_names=["output0"],
    )  # fmt: skip
    model = onnx.load(str(path))
    facts = {"names": json.dumps(list(classes)), "stride": "32", "edgekd.head": "yolo"}
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--small", type=float, default=0.3, help="share of the training on smaller frames")
    parser.add_argument("--start", type=Path, help="weights.pt of an earlier training to go on from")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the moving average per step")
    parser.add_argument("--threads", type=int, default=0, help="threads of the CPU's kernels; 0 leaves torch's default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    scenes = render_scenes(args.scenes, args.workers)
    rendering = time.monotonic() - began
    objects = [int((scenes.labels[..., 0] == k).sum()) for k in range(len(CLASSES))]
    print(f"rendered {args.scenes} scenes in {rendering:.0f} s: {dict(zip(CLASSES, objects, strict=True))}", flush=True)
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    if args.device == "cuda":
        scenes = Scenes(scenes.frames.cuda(), scenes.labels.cuda())
    detector, took = train(scenes, args)
    parameters = sum(p.numel() for p in detector.parameters())
    export(detector, args.out / "detector.onnx", CLASSES)
    on_gpu = args.device == "cuda"
    record = {
        "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "hardware": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "parameters": parameters, "objects": dict(zip(CLASSES, objects, strict=True)),
        "render_seconds": round(rendering, 1), "training": took,
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
