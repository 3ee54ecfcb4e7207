"""Ultralytics' open-vocabulary detectors (YOLO-World, YOLOE), whose classes are given as text embeddings.

They need no training on the classes, and so can label frames for a detector that will be small and quick
(`edgekd/data/pseudo_labels.py`). edgekd runs such a checkpoint where the user has one; it brings and downloads none.

The words have to be encoded by the checkpoint's own text encoder: CLIP ViT-B/32 for YOLO-World, MobileCLIP for YOLOE.
Ultralytics downloads these where they are first needed, and edgekd never asks for that. So the vectors come either from
the checkpoint, which holds those of its classes when it is saved after Ultralytics' `set_classes`; or from a file, made
where the encoder is, with `numpy.save("words.npy", network.get_text_pe(classes)[0].numpy())`, `network` being the
`model` of Ultralytics' YOLOWorld or YOLOE (for YOLOE also `without_reprta=True`). Those of another encoder, such as
`compress.text.minilm`, are of no use: they have another length, and directions that mean nothing to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError
from edgekd.data.images import Image
from edgekd.data.pseudo_labels import LABELLING
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics.detector import class_names, input_size, model_classes, rehearse_network, strides_of


def open_vocabulary(
    checkpoint: Path,
    classes: Sequence[str],
    embeddings: np.ndarray | None = None,
    thresholds: Thresholds = LABELLING,
    trust: bool = False,
) -> Callable[[Image], Detections]:
    """Return a function that detects these classes in a frame uint8 [h, w, 3] BGR: `find` for `labelling.label`.

    embeddings: of the classes' words by the checkpoint's own text encoder, float32 [classes, d]; None for those that it
    was saved with. It runs on the CPU. Masks that it also finds are left out.
    Raises SpecError for a checkpoint of another kind, and for words that are not there or do not fit.
    """
    network, train_args = _network(checkpoint, trust)
    head = network.model[-1]
    if embeddings is None:
        _require_words(checkpoint, network, classes)
    else:
        _set_words(checkpoint, network, classes, embeddings)
    if head.end2end:
        head.end2end = False  # its other branch, with NMS, is the one that all of them have
    height, width = input_size(train_args, max(strides_of(head)))
    spec = DetectorSpec(tuple(classes), Preprocess(height, width), Head("yolo"))

    def find(frame: Image) -> Detections:
        import torch

        batch, placement = letterbox(frame, spec.preprocess)
        with torch.no_grad():
            output = network(torch.from_numpy(batch))
        while isinstance(output, (tuple, list)):
            output = output[0]
        return decode(output[:, : 4 + len(classes)].numpy(), spec, placement, thresholds)

    return find


def _network(checkpoint: Path, trust: bool) -> tuple[Any, Any]:
    models = model_classes(checkpoint)
    loaded = load_checkpoint(checkpoint, trust)
    if not isinstance(loaded.model, (models.WorldModel, models.YOLOEModel)):
        raise SpecError(
            f"{checkpoint}: not an open-vocabulary detector",
            expected="an Ultralytics WorldModel or YOLOEModel",
            found=type(loaded.model).__name__,
        )
    if not trust:
        rehearse_network(loaded, checkpoint)
    return loaded.model.requires_grad_(False), loaded.train_args


def _require_words(checkpoint: Path, network: Any, classes: Sequence[str]) -> None:
    own = list(class_names(network) if isinstance(network.names, dict) else network.names)
    vectors = getattr(network, "txt_feats", getattr(network, "pe", None))
    if own != list(classes) or vectors is None or vectors.shape[1] != len(classes):
        raise SpecError(
            f"{checkpoint}: has no words for these classes",
            expected=", ".join(classes),
            found=f"{len(own)} classes ({', '.join(own[:4])}, ...)",
            fix="save it after Ultralytics' set_classes, or pass the embeddings",
        )


def _set_words(checkpoint: Path, network: Any, classes: Sequence[str], embeddings: np.ndarray) -> None:
    import torch

    head = network.model[-1]
    shape = [len(classes), head.cv3[0][-1].out_channels]
    if list(embeddings.shape) != shape or not np.isfinite(embeddings).all():
        raise SpecError(
            f"{checkpoint}: the embeddings do not fit",
            expected=f"finite numbers of shape {shape}: a vector of its text encoder for each class",
            found=f"shape {list(embeddings.shape)}",
            fix="encode the classes with the text encoder that the checkpoint was trained with",
        )
    vectors = torch.nn.functional.normalize(torch.tensor(embeddings, dtype=torch.float32), dim=1)[None]
    if hasattr(network, "txt_feats"):
        network.txt_feats = vectors
    else:
        network.set_classes(list(classes), head.get_tpe(vectors))
    head.nc = len(classes)
