"""Training quantized detectors by torchvision towards their float selves: the same graph, with better numbers in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from qdq_models import every_value
from running import EdgeKD
from test_torchvision_detector import NAMES, SIDE, SMALL, make

from edgekd.compress.quantization.half import as_short_half
from edgekd.compress.quantization.placement import place
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.quantization.quantize import prepared
from edgekd.compress.quantization.rewrite import apply, insert_activation_pairs, store_weights
from edgekd.compress.steps import QuantAwareDistill
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.formats.int8 import quantize_channels
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors.export import export
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torchvision.detector import TorchvisionDetector

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from killed import KilledError, kill_third_epoch  # noqa: E402

from edgekd.compress.distillation.recovery import total_loss  # noqa: E402
from edgekd.compress.quantization.fake_quant_network import trained_layers  # noqa: E402
from edgekd.detectors.channel_groups import renew_statistics  # noqa: E402
from edgekd.detectors.torchvision import quant_aware  # noqa: E402
from edgekd.detectors.torchvision.network import Dense, load_network, save_network  # noqa: E402
from edgekd.detectors.torchvision.quant_aware import (  # noqa: E402
    distill_quantized,
    float_network,
    module_of,
    quantized_network,
)
from edgekd.detectors.torchvision.recover import compressed  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's own
LARGE = (*(name for name in NAMES if name != SMALL), "retinanet_resnet50_fpn_v2")
BUILDERS = [SMALL, *(pytest.param(name, marks=pytest.mark.release) for name in LARGE)]
LAST_LAYER = re.compile(r"(cls_logits|bbox_reg|bbox_ctrness|module_list\.\d+\.1)$")
STEP = QuantAwareDistill(epochs=6, batch=4, learning_rate=1e-4)
IMAGES = 12


@dataclass(frozen=True)
class Made:
    """A detector with random weights, a frame as its graph takes it, and its Q/DQ graph, rounded to nearest."""

    checkpoint: Path
    frame: np.ndarray
    graph: Path


def frames_of(data: Path, preprocess: Preprocess) -> list[np.ndarray]:
    """The training images as a network takes them, float32 [1, 3, h, w] each."""
    samples = load_dataset(data).split("train").samples
    return [letterbox(read_image(each.image), preprocess)[0] for each in samples]


def random_detector(path: Path, data: Path, builder: str = SMALL) -> None:
    """Write a detector with random weights that is not chaotic: rounding changes its outputs by a share alone.

    Its norms shift activations to where they are nearly linear, on these images.
    """
    network, frames = make(builder), np.concatenate(frames_of(data, Preprocess(SIDE, SIDE)))
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.GroupNorm)):
            module.bias.data.fill_(1)
    renew_statistics(network, range(len(frames)), len(frames), lambda chosen: torch.from_numpy(frames[list(chosen)]))
    for name, layer in network.model.head.named_modules():
        if LAST_LAYER.search(name):
            layer.weight.data /= 10
    save_network(network, path)


def write(folder: Path, data: Path, builder: str = SMALL) -> Made:
    """Write a detector and its graphs; scales of activations follow from their largest values."""
    checkpoint, floating, out = folder / "model.tv.pt", folder / "float.onnx", folder / "int8.onnx"
    random_detector(checkpoint, data, builder)
    frames = frames_of(data, export(TorchvisionDetector(checkpoint), floating, 17).spec.preprocess)
    graph = prepared(floating)
    placement = place(graph)
    onnx.save(graph.model, floating)
    values = [every_value(floating, {"images": frame}) for frame in frames]
    scales: dict[str, float] = {}
    for group in placement.groups:
        reach = max(float(np.abs(each[name]).max()) for each in values for name in group)
        scales.update(dict.fromkeys(group, reach / 127))
    weights = {node.name: graph.constant(node.input[1]) for node in graph.nodes if node.name in placement.layers}
    stored = {name: quantize_channels(value) for name, value in weights.items() if value is not None}
    insert_activation_pairs(graph, placement, scales)
    store_weights(graph, stored)
    apply(graph)
    onnx.save(graph.model, out)
    return Made(checkpoint, frames[0], out)


@pytest.fixture(scope="module")
def made(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write(tmp_path_factory.mktemp("made"), tiny_data)


@pytest.fixture(scope="module")
def trained(made: Made, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRun, Any]:
    """A trained graph, the run, and the network that was trained."""
    out, students = tmp_path_factory.mktemp("trained") / "out.onnx", []

    def seen(student: Any, *known: Any) -> Any:
        students.append(student)
        return trained_layers(student, *known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant_aware, "trained_layers", seen)
        run = train(made, out, tiny_data)
    return out, run, students[0]


def train(
    made: Made, out: Path, data: Path, step: QuantAwareDistill = STEP, checkpoint: Path | None = None
) -> TrainingRun:
    """Train the graph beside the float detector that it was made from; checkpoint: another one in its place."""
    known = (step, out.with_suffix(".cache"), out.with_suffix(".training"), False, "cpu", SILENT)
    return distill_quantized(checkpoint or made.checkpoint, made.checkpoint, out, data, *known, made.graph)


def student_of(made: Made) -> Any:
    return quantized_network(float_network(made.checkpoint), read_layers(made.graph), False).eval()


def assert_computes(graph: Path, student: Any, frame: np.ndarray) -> None:
    """Assert that every convolution, and the whole, gives what the graph does.

    Each gets the graph's values: from layer to layer, values on the border between two codes would fall to either side.
    """
    network, layers = Dense(student), read_layers(graph)
    values, nodes = every_value(graph, {"images": frame}), {node.name: node for node in onnx.load(graph).graph.node}
    names = [module_of(student, layer) for layer in layers]
    assert len(set(names)) == len(names), "a module for each convolution"
    seen: list[str] = []

    def replaced(layer: QdqConvolution, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(layer.node)
        value = torch.from_numpy(values[nodes[layer.node].output[0]])
        assert_same(output, value, layer.node)
        return value.clone()  # activations are computed in place

    for layer, name in zip(layers, names, strict=True):
        student.get_submodule(name).register_forward_hook(partial(replaced, layer))
    with torch.no_grad():
        assert_same(network(torch.from_numpy(frame)), torch.from_numpy(values["output0"]), "output0")
    assert sorted(seen) == sorted(layer.node for layer in layers)


def assert_same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    assert float((found - wanted).abs().mean()) < 1e-4 * float(wanted.abs().mean()) + 1e-9, what


@pytest.mark.parametrize("builder", BUILDERS)
def test_it_computes_what_its_graph_computes(builder: str, made: Made, tiny_data: Path, tmp_path: Path) -> None:
    one = made if builder == SMALL else write(tmp_path, tiny_data, builder)
    assert_computes(one.graph, student_of(one), one.frame)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_float_network_for_training_computes_what_the_detector_does(builder: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tv.pt"
    save_network(make(builder), path)
    frame = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        found, wanted = (Dense(each)(frame) for each in (float_network(path), load_network(path)))
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_a_student_that_has_learned_nothing_gives_the_graph_back(made: Made, tmp_path: Path) -> None:
    layers, student = read_layers(made.graph), student_of(made)
    write_layers(made.graph, tmp_path / "same.onnx", trained_layers(student, layers, partial(module_of, student)))
    for before, after in zip(layers, read_layers(tmp_path / "same.onnx"), strict=True):
        assert np.array_equal(
            after.weights, before.weights if before.scales is not None else as_short_half(before.weights)
        )


def test_training_brings_the_student_nearer(trained: tuple[Path, TrainingRun, Any]) -> None:
    done = trained[1]
    assert (done.epochs, len(done.losses)) == (6, 6)
    assert done.updates == 6 * 3, "a weight update for each batch"
    assert set(done.losses[0]) == {"classes", "boxes", "features"}
    assert total_of(done.losses[-1]) < 0.9 * total_of(done.losses[0])


def total_of(losses: Mapping[str, float]) -> float:
    return float(total_loss({name: torch.tensor(value) for name, value in losses.items()}))


def test_what_ships_computes_what_was_trained(made: Made, trained: tuple[Path, TrainingRun, Any]) -> None:
    graph, _, student = trained
    for layer in read_layers(graph):  # those that stay float ship in half precision
        if layer.scales is None:
            student.get_submodule(module_of(student, layer)).weight.data = torch.tensor(layer.weights)
    assert_computes(graph, student, made.frame)


def test_training_changes_numbers_and_nothing_else(made: Made, trained: tuple[Path, TrainingRun, Any]) -> None:
    before, after = onnx.load(made.graph), onnx.load(trained[0])
    assert list(after.graph.node) == list(before.graph.node)
    assert [value.name for value in after.graph.initializer] == [value.name for value in before.graph.initializer]
    changed = 0
    for old, new in zip(read_layers(made.graph), read_layers(trained[0]), strict=True):
        assert (old.form, old.input_scale) == (new.form, new.input_scale)
        changed += not np.array_equal(old.weights, new.weights)
    assert changed > 0.9 * len(read_layers(made.graph))


@pytest.mark.release
def test_weights_of_group_norms_stay_as_the_graph_has_them(tiny_data: Path, tmp_path: Path) -> None:
    made = write(tmp_path, tiny_data, "fcos_resnet50_fpn")
    norms = [each for each in student_of(made).modules() if isinstance(each, torch.nn.GroupNorm)]
    assert len(norms) == 5 * 2 * 4, "each of five heads has its own"
    assert not any(each.weight.requires_grad for each in norms)
    done = train(made, tmp_path / "out.onnx", tiny_data, replace(STEP, epochs=2, images=6))
    assert total_of(done.losses[-1]) < total_of(done.losses[0])


def test_a_killed_training_goes_on_after_its_last_epoch(
    made: Made, trained: tuple[Path, TrainingRun, Any], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = kill_third_epoch(monkeypatch)
    with pytest.raises(KilledError):
        train(made, tmp_path / "out.onnx", tiny_data)
    done = train(made, tmp_path / "out.onnx", tiny_data)
    assert epochs == [0, 1, 2, 2, 3, 4, 5]
    assert (done.updates, done.losses) == (trained[1].updates, trained[1].losses)
    assert (tmp_path / "out.onnx").read_bytes() == trained[0].read_bytes()


def test_another_checkpoint_than_the_graphs_is_refused(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    save_network(make(SMALL, ("red", "green", "blue")), tmp_path / "other.tv.pt")
    with pytest.raises(CompressError, match="the checkpoint is not what the graph was made from"):
        train(made, tmp_path / "out.onnx", tiny_data, checkpoint=tmp_path / "other.tv.pt")


def test_images_of_another_size_are_refused(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="image_size of a detector by torchvision; expected its own, 64x64"):
        train(made, tmp_path / "out.onnx", tiny_data, replace(STEP, image_size=96))


RECIPE = """
name = "own"
[[steps]]
kind = "quantize"
formats = ["int8", "coded", "float16"]
bits = 6.0
frames = 4
[[steps]]
kind = "quant_aware_distill"
epochs = 2
batch = 4
"""


@pytest.mark.release
@pytest.mark.parametrize("command", ["build", "quantize"])
def test_a_recipe_trains_what_it_has_quantized(
    edgekd: EdgeKD, command: str, made: Made, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.toml").write_text(RECIPE, "ascii")
    target = ("--target", "cpu") if command == "build" else ()
    flags = ("--data", tiny_data, *target, "--recipe", tmp_path / "own.toml", "--out", tmp_path / "out", "--json")
    done = edgekd(command, made.checkpoint, *flags)
    assert done.code == 0, done.err
    (record,) = (tmp_path / "out" / "stages").glob("quant_aware_distill-*/stage.json")
    assert json.loads(record.read_bytes())["results"]["updates"] == 2 * IMAGES // 4


def test_a_cpu_trains_in_float32(made: Made) -> None:
    """In bfloat16 gradients of SSDlite's depthwise layers over maps of 1 x 1 were noise."""
    network = load_network(made.checkpoint)
    student = compressed(network, STEP, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        features = student.outputs(torch.from_numpy(made.frame))
    assert {each.scores.dtype for each in features.branches.values()} == {torch.float32}
