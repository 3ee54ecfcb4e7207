"""Detectors by torchvision in edgekd's own file format, `*.tv.pt`: weights, builder, classes and input size.

Such a file is a dictionary written by `torch.save`:

    family      "torchvision"
    builder     one of `family.BUILDERS`: the function of torchvision.models.detection that builds the network
    classes     names of the classes, without the background, in the order of the labels 1, 2, ...
    image_size  [height, width] in pixels, whole multiples of 32: the letterboxed input
    state_dict  result of the network's `state_dict()`

It is read with PyTorch's weights-only loader, and only a builder in the list is called: no code in it runs, and nothing
is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.detectors.torch_support import requiring, write_onnx

if TYPE_CHECKING:
    from edgekd.detectors.torchvision.network import TorchvisionNetwork


class TorchvisionDetector:
    """A `.tv.pt` file; nothing is read from it until `export`."""

    family = "torchvision"
    libraries: tuple[str, ...] = ("torch", "torchvision")

    def __init__(self, path: Path, **_: Any) -> None:
        """path: of the file, which contains head and classes; other arguments of `Family.load` are ignored."""
        self.path = path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the detector as float32 ONNX with the dense output `[1, 4 + classes, n]`, one column per anchor.

        Normalisation is not in the graph, but in the returned contract. Raises SpecError, CompressError.
        """
        network = self.network()
        from edgekd.detectors.torchvision.network import Dense

        height, width = network.image_size
        spec = DetectorSpec(
            classes=network.classes,
            preprocess=Preprocess(height, width, mean=network.mean, std=network.std),
            head=Head("yolo", strides=tuple(round(stride) for stride in network.strides)),
        )
        write_onnx(Dense(network), height, width, graph, opset)
        return spec

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the network's own output in float32 for a normalised batch [1, 3, h, w]."""
        import torch

        from edgekd.detectors.torchvision.network import Dense

        with torch.no_grad():
            return np.asarray(Dense(self.network())(torch.from_numpy(batch)).numpy())

    def network(self) -> TorchvisionNetwork:
        """Return the network, in evaluation mode. Raises SpecError."""
        with requiring(f"{self.path}: reading it needs PyTorch and torchvision", "torchvision"):
            from edgekd.detectors.torchvision.network import load_network
        return load_network(self.path)


def load_teacher(checkpoint: Path, trust: bool) -> TorchvisionNetwork:
    """Return the network in a file as a teacher: in evaluation mode, without gradients. Raises SpecError."""
    network: TorchvisionNetwork = TorchvisionDetector(checkpoint).network().requires_grad_(False)
    return network
