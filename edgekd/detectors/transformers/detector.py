"""DETRs by transformers as detectors: a folder with `config.json`, `model.safetensors` and `preprocessor_config.json`.

No code in these files is executed, and nothing is downloaded: the architecture is one of HEADS, implemented in
transformers itself, and weights are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from edgekd.core.canonical import bounded_json, file_sha256
from edgekd.core.detection.checked_spec import checked_spec
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError, first_line
from edgekd.core.input_files import read_input, regular_file
from edgekd.detectors.checkpoint_scan import MAX_BYTES
from edgekd.detectors.described import DescribedTeacher, decoded, export_described
from edgekd.detectors.heads.description import HeadDescription, read_description
from edgekd.detectors.transformers.family import CONFIG, PREPROCESSOR
from edgekd.graph.rehearsal import rehearse_call

HEADS: Mapping[str, str] = {
    "d_fine": "rt-detr",
    "deimv2": "rt-detr",
    "rf_detr": "rf-detr",
    "rt_detr": "rt-detr",
    "rt_detr_v2": "rt-detr",
}
"""Shipped description of the head of each `model_type`."""
MAX_CONFIG_BYTES = 1 << 20
"""Largest size of a JSON file in bytes; the file of a model with 1,000 classes has 60 KB."""
MAX_CONFIG_VALUES = 50_000
"""Largest number of values and names in a JSON file."""
_SAVED = "a folder that save_pretrained of the model and of its image processor wrote"


class TransformersDetector:
    """The folder of a DETR, given by the file with its weights; nothing is read from it until `export`."""

    family = "transformers"
    libraries: tuple[str, ...] = ("torch", "transformers")

    def __init__(self, path: Path, **_: Any) -> None:
        """path: of the weights; the folder has head and classes; other arguments of `Family.load` are ignored."""
        self.path = path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        """Write the network as float32 ONNX, with decoding of boxes and scores. Raises SpecError, CompressError."""
        folder = _read(self.path)
        network = _RawOutputs(load_network(folder), folder.size)
        return folder.spec(export_described(network, folder.head, folder.size, graph, opset, str(self.path)))

    def reference(self, batch: np.ndarray) -> np.ndarray:
        """Return the decoded outputs of the folder's network, float32 [1, 4 + classes, n], for a batch [1, 3, h, w]."""
        folder = _read(self.path)
        network = _RawOutputs(load_network(folder), folder.size)
        return decoded(network, folder.head, folder.size, batch)


@dataclass(frozen=True)
class ModelFolder:
    """The files of a detector. weights: path; config, frames: contents of CONFIG and PREPROCESSOR.

    size: height and width of the input in pixels.
    """

    weights: Path
    config: Mapping[str, Any]
    frames: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def head(self) -> HeadDescription:
        """The complete description of the head. Unused class numbers, named N/A or not at all, are dropped."""
        names: Mapping[str, str] = self.config["id2label"]
        used = sorted(int(number) for number, name in names.items() if name != "N/A")
        return replace(
            read_description(HEADS[self.config["model_type"]]),
            boxes=("pred_boxes",),
            scores=("logits",),
            background="none",
            class_columns=tuple(used),
            classes=tuple(names[str(number)] for number in used),
        )

    @property
    def preprocess(self) -> Preprocess:
        """The image processor's preprocessing. Raises SpecError."""
        frames = self.frames
        scale = frames.get("rescale_factor", 1 / 255) if frames.get("do_rescale", True) else 1.0
        preprocess = Preprocess(*self.size, scale=scale, stretch=True)
        if frames.get("do_normalize"):
            preprocess = replace(preprocess, mean=self._three("image_mean"), std=self._three("image_std"))
        return preprocess

    def spec(self, head: Head) -> DetectorSpec:
        """Return the contract of the exported graph. head: head of its output. Raises SpecError."""
        return checked_spec(DetectorSpec(self.head.classes, self.preprocess, head), f"{self.weights.parent}: detector")

    def _three(self, key: str) -> tuple[float, float, float]:
        """Return a value of the image processor for each channel. Raises SpecError."""
        values = self.frames.get(key)
        if not isinstance(values, list) or [type(value) for value in values] != [float] * 3:
            raise _refusal(self.weights, PREPROCESSOR, f"{key}: three numbers", f"{values!r:.80}")
        return values[0], values[1], values[2]


def load_teacher(checkpoint: Path, trust: bool) -> DescribedTeacher:
    """Load a folder, given by the file with its weights, as a teacher. Raises SpecError."""
    folder = _read(checkpoint)
    return DescribedTeacher(_RawOutputs(load_network(folder), folder.size), folder.head, folder.preprocess)


def load_network(folder: ModelFolder) -> Any:
    """Load the network, float32 in evaluation mode, after a trial in a child process with limits.

    Raises SpecError.
    """
    config_sha256 = file_sha256(folder.weights.with_name(CONFIG))
    values = 3 * folder.size[0] * folder.size[1]
    rehearse_call(f"{__name__}:run_once", folder.weights, (config_sha256,), values, "torch,transformers")
    return _loaded(folder)


def run_once(path: str, config_sha256: str) -> None:
    """Load the network of a folder and run it on a frame of zeros, in the child process.

    config_sha256: not used; makes the result of the trial depend on the configuration.
    """
    folder = _read(Path(path))
    with torch.no_grad():
        _RawOutputs(_loaded(folder), folder.size)(torch.zeros(1, 3, *folder.size))


def _read(weights: Path) -> ModelFolder:
    """Read and check the JSON files of a model's folder. weights: path of its weights. Raises SpecError."""
    regular_file(weights, MAX_BYTES, SpecError)
    config, frames = _json_of(weights.with_name(CONFIG)), _json_of(weights.with_name(PREPROCESSOR))
    kind, backbone, names = config.get("model_type"), config.get("backbone_config"), config.get("id2label")
    if kind not in HEADS:
        raise _refusal(weights, CONFIG, "model_type " + ", ".join(HEADS), f"{kind!r:.80}")
    own_backbone = isinstance(backbone, dict) and not str(backbone.get("model_type")).startswith("timm")
    if not own_backbone or config.get("backbone"):  # other backbones would be downloaded
        found = f"{config.get('backbone') or backbone!r:.80}"
        raise _refusal(weights, CONFIG, "backbone_config of a backbone by transformers itself", found)
    if "quantization_config" in config:
        raise _refusal(weights, CONFIG, "float weights", "quantization_config")
    if not isinstance(names, dict) or not all(key.isdecimal() and isinstance(names[key], str) for key in names):
        raise _refusal(weights, CONFIG, "id2label: the name of each class by its number", f"{names!r:.80}")
    size = frames.get("size")
    sides = [size.get(side) for side in ("height", "width")] if isinstance(size, dict) else []
    match sides:
        case [int(height), int(width)] if height > 0 and width > 0:
            return ModelFolder(weights, config, frames, (height, width))
    raise _refusal(weights, PREPROCESSOR, "size: height and width in pixels", f"{size!r:.80}")


def _json_of(path: Path) -> dict[str, Any]:
    content = read_input(path, MAX_CONFIG_BYTES, SpecError)
    try:
        value = bounded_json(content, MAX_CONFIG_VALUES)
    except ValueError as error:
        raise _refusal(path, path.name, "JSON", first_line(error)) from error
    if not isinstance(value, dict):
        raise _refusal(path, path.name, "a JSON object", type(value).__name__)
    return value


def _loaded(folder: ModelFolder) -> Any:
    """Build the network and load its weights. Raises SpecError."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kind = folder.config["model_type"]
    content = {key: value for key, value in folder.config.items() if key not in ("auto_map", "dtype", "torch_dtype")}
    try:
        config = transformers.AutoConfig.for_model(**content)
        network, report = transformers.AutoModelForObjectDetection.from_pretrained(
            folder.weights.parent,
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # with an unknown config, transformers can raise anything
        found = first_line(error)
        raise _refusal(folder.weights, CONFIG, f"architecture and weights of {kind}", found) from error
    missing = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if missing:
        raise _refusal(folder.weights, folder.weights.name, f"the weights of this {kind}", ", ".join(missing)[:200])
    return network.eval()


def _refusal(path: Path, name: str, expected: str, found: str) -> SpecError:
    return SpecError(f"{path.with_name(name)}: not a detector", expected=expected, found=found, fix=f"pass {_SAVED}")


class _RawOutputs(nn.Module):  # type: ignore[misc]
    """A network from normalised frames to logits [1, n, classes] and boxes [1, n, 4] as fractions of the frame."""

    def __init__(self, network: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if hasattr(module, "interpolate_pos_encoding"):
                _fix_positions(module, size)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.network(pixel_values=frames)
        return outputs.logits, outputs.pred_boxes


def _fix_positions(embeddings: Any, size: tuple[int, int]) -> None:
    """Interpolate position embeddings before export: ONNX lacks antialiased bicubic interpolation before opset 18."""
    patches = (size[0] // embeddings.patch_size) * (size[1] // embeddings.patch_size)
    width = embeddings.position_embeddings.shape[2]
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(torch.zeros(1, patches + 1, width), *size)
    embeddings.interpolate_pos_encoding = lambda *_: positions
