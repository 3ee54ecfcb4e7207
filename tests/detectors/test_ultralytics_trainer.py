"""Training a quantized detector towards its float self: the same graph comes out, with better numbers in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from once import once
from qdq_models import every_value

from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import QuantAwareDistill, Quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError, DataError
from edgekd.core.formats import fp4x
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.detectors.export import export, probe
from edgekd.detectors.ultralytics.detector import UltralyticsDetector
from edgekd.graph.view import Graph

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

from edgekd.compress.distillation.recovery import total_loss  # noqa: E402
from edgekd.compress.quantization.fake_quant_network import trained_layers  # noqa: E402
from edgekd.detectors.results import TrainingRun  # noqa: E402
from edgekd.detectors.ultralytics.loop import ultralytics_label  # noqa: E402
from edgekd.detectors.ultralytics.quant_aware import (  # noqa: E402
    distill_quantized,
    float_network,
    module_of,
    quantized_network,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
STEP = QuantAwareDistill(epochs=4, batch=5, learning_rate=1e-3)


@dataclass(frozen=True)
class Made:
    """A checkpoint with random weights, its float graph, and that with most weights in fp4x."""

    checkpoint: Path
    float_graph: Path
    graph: Path


def made_in(folder: Path) -> Made:
    return Made(folder / "model.pt", folder / "float.onnx", folder / "fp4x.onnx")


def make(config: str, data: Path, folder: Path, end2end: bool = False) -> Made:
    torch.manual_seed(0)
    network = tasks.DetectionModel(config, nc=2, verbose=False)
    network.end2end = end2end
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    samples = load_dataset(data).split("train").samples
    frames = np.concatenate([read_image(sample.image)[None] for sample in samples]).transpose(0, 3, 1, 2)[:, ::-1] / 255
    with torch.no_grad():  # activations vary like a trained network's after one step of batch statistics
        network.train()(torch.from_numpy(frames.astype(np.float32)))
    network.names = {0: "red", 1: "green"}
    made = made_in(folder)
    torch.save({"model": network.eval(), "train_args": {"imgsz": SIDE}}, made.checkpoint)
    spec = export(UltralyticsDetector(made.checkpoint), made.float_graph, 17).spec
    inputs = [letterbox(read_image(sample.image), spec.preprocess)[0] for sample in samples[:4]]
    quantize(made.float_graph, made.graph, inputs, Quantize(min_snr_db=-1000, frames=2))
    write_layers(made.graph, made.graph, [_in_fp4x(layer) for layer in read_layers(made.graph)])
    return made


def _in_fp4x(layer: QdqConvolution) -> QdqConvolution:
    if layer.scales is None or layer.parameter.startswith(("model.0.", "model.23.")):
        return layer
    codes, scales = fp4x.quantize(layer.values)
    return replace(layer, weights=codes, scales=scales)


@pytest.fixture(scope="module")
def made(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_in(once(tmp_path_factory, "trainer-made", lambda folder: make("yolo11n.yaml", tiny_data, folder)))


@pytest.fixture(scope="module")
def trained(made: Made, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingRun]:
    def write(folder: Path) -> None:
        before = sorted(tiny_data.rglob("*"))
        run = train(made, folder / "out.onnx", tiny_data)
        assert sorted(tiny_data.rglob("*")) == before, "nothing may be written beside the data"
        (folder / "run.pickle").write_bytes(pickle.dumps(run))

    folder = once(tmp_path_factory, "trainer-trained", write)
    return folder / "out.onnx", pickle.loads((folder / "run.pickle").read_bytes())


def train(
    made: Made, out: Path, data: Path, step: QuantAwareDistill = STEP, checkpoint: Path | None = None
) -> TrainingRun:
    """Train the graph beside the float detector that it was made from; checkpoint: another one in its place."""
    known = (step, out.with_suffix(".cache"), out.with_suffix(".training"), True, "cpu", SILENT)
    return distill_quantized(checkpoint or made.checkpoint, made.checkpoint, out, data, *known, made.graph)


def student_of(made: Made, learned: bool = False) -> Any:
    network, _ = float_network(made.checkpoint, trust=True)
    return quantized_network(network, read_layers(made.graph), learned).eval()


@pytest.fixture(scope="module")
def computed(made: Made) -> tuple[Any, dict[str, np.ndarray]]:
    """The quantized graph, and every float value in it for one frame."""
    frame = np.random.default_rng(0).uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    return Graph(onnx.load(made.graph)), every_value(made.graph, {"images": frame})


def assert_same(layer: Any, given: np.ndarray, wanted: np.ndarray) -> None:
    with torch.no_grad():
        found = layer(torch.from_numpy(given)).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max() + 1e-6, layer


@pytest.mark.slow
def test_each_layer_computes_what_the_graph_computes(made: Made, computed: tuple[Any, dict[str, np.ndarray]]) -> None:
    """On the same inputs: from layer to layer, values on the border between two codes fall to either side."""
    student, (graph, values) = student_of(made), computed
    for layer in read_layers(made.graph):
        node = next(node for node in graph.nodes if node.name == layer.node)
        module = student.get_submodule(module_of(layer))
        assert_same(module, values[node.input[0]], values[node.output[0]])


@pytest.mark.parametrize(
    ("block", "first", "last"),
    [
        ("model.2.m.0", "/model.2/m.0/Add", "/model.2/m.0/Add"),
        ("model.10.m.0", "/model.10/m/m.0/Add", "/model.10/m/m.0/Add_1"),
    ],
)
def test_residual_sums_are_those_of_the_graph(
    made: Made, computed: tuple[Any, dict[str, np.ndarray]], block: str, first: str, last: str
) -> None:
    graph, values = computed
    nodes = {node.name: node for node in graph.nodes}
    skip = next(name for name in nodes[first].input if name.endswith("/dq"))
    given = values[skip.removesuffix("/dq")]
    assert_same(student_of(made).get_submodule(block), given, values[nodes[last].output[0]])


def test_the_whole_student_is_much_nearer_to_the_graph_than_the_float_network(made: Made) -> None:
    spec = UltralyticsDetector(made.checkpoint).export(made.float_graph.with_name("again.onnx"), 17)
    frame = probe(spec)
    session = onnxruntime.InferenceSession(str(made.graph), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"images": frame})[0]
    student, network = student_of(made), float_network(made.checkpoint, trust=True)[0]
    with torch.no_grad():
        errors = [np.abs(one(torch.from_numpy(frame))[0].numpy() - wanted).mean() for one in (student, network)]
    assert errors[0] < 0.3 * errors[1]


def test_a_student_that_has_learned_nothing_gives_the_graph_back(made: Made, tmp_path: Path) -> None:
    layers = read_layers(made.graph)
    write_layers(made.graph, tmp_path / "same.onnx", trained_layers(student_of(made), layers, module_of))
    for before, after in zip(layers, read_layers(tmp_path / "same.onnx"), strict=True):
        assert np.allclose(before.values, after.values, rtol=1e-3)  # float layers are stored in half precision
        assert before.scales is None or np.array_equal(before.weights, after.weights)


def test_training_brings_the_student_nearer(trained: tuple[Path, TrainingRun]) -> None:
    _, done = trained
    assert (done.epochs, len(done.losses)) == (4, 4)
    assert done.updates == 4 * 3, "a weight update for each batch"
    assert set(done.losses[0]) == {"classes", "boxes", "distributions", "features"}
    assert total_of(done.losses[-1]) < 0.8 * total_of(done.losses[0])


def total_of(losses: Mapping[str, float]) -> float:
    return float(total_loss({name: torch.tensor(value) for name, value in losses.items()}))


def test_training_changes_numbers_and_nothing_else(made: Made, trained: tuple[Path, TrainingRun]) -> None:
    before, after = onnx.load(made.graph), onnx.load(trained[0])
    assert list(after.graph.node) == list(before.graph.node)
    assert [value.name for value in after.graph.initializer] == [value.name for value in before.graph.initializer]
    assert after.metadata_props == before.metadata_props
    for old, new in zip(read_layers(made.graph), read_layers(trained[0]), strict=True):
        assert old.form == new.form
        assert old.input_scale == new.input_scale
        if old.scales is not None:
            assert np.array_equal(old.scales, new.scales)
        elif "dfl" in old.node:
            assert np.array_equal(old.weights, new.weights)
        else:
            assert np.array_equal(new.weights, new.weights.astype(np.float16))


def test_the_same_arguments_give_the_same_graph(
    made: Made, trained: tuple[Path, TrainingRun], tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(made, tmp_path / "out.onnx", tiny_data)
    assert (tmp_path / "out.onnx").read_bytes() == trained[0].read_bytes()
    assert capfd.readouterr().out == "", "stdout is for results"


def test_learned_ranges_change_together(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(STEP, epochs=1, ranges="learned")
    train(made, tmp_path / "out.onnx", tiny_data, step)
    pairs = list(zip(read_layers(made.graph), read_layers(tmp_path / "out.onnx"), strict=True))
    moved = {(old.input_scale, new.input_scale) for old, new in pairs if old.input_scale is not None}
    assert len(moved) == len({old for old, _ in moved}), "layers that shared a scale still do"
    assert all(old != new for old, new in moved)
    weights = [(old.scales, new.scales) for old, new in pairs if old.scales is not None]
    assert not any(np.array_equal(old, new) for old, new in weights)


@pytest.mark.slow
def test_a_head_with_one_box_per_object_learns_from_that_branch_of_the_teacher(tiny_data: Path, tmp_path: Path) -> None:
    made = make("yolo26n.yaml", tiny_data, tmp_path, end2end=True)
    done = train(made, tmp_path / "out.onnx", tiny_data)
    assert float_network(made.checkpoint, trust=True)[1]
    assert total_of(done.losses[-1]) < 0.8 * total_of(done.losses[0])


def test_another_checkpoint_than_the_graphs_is_refused(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    other = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    torch.save({"model": other, "train_args": {"imgsz": SIDE}}, tmp_path / "other.pt")
    with pytest.raises(CompressError, match="the checkpoint is not what the graph was made from"):
        train(made, tmp_path / "out.onnx", tiny_data, checkpoint=tmp_path / "other.pt")


def test_a_learning_rate_that_is_far_too_high_is_said_to_be(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(STEP, learning_rate=1e30)
    with pytest.raises(CompressError, match=r"diverged in epoch 1.*lower learning_rate"):
        train(made, tmp_path / "out.onnx", tiny_data, step)
    assert not (tmp_path / "out.onnx").exists()


def test_data_without_a_training_split_is_refused(made: Made, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"path: {tiny_data}\nval: images/val\nnames: [red, green]\n")
    with pytest.raises(DataError, match="no split 'train'"):
        train(made, tmp_path / "out.onnx", tmp_path / "data.yaml")


def test_a_label_is_a_box_by_its_middle_and_crowds_are_none() -> None:
    boxes = np.array([[0.1, 0.2, 0.3, 0.6], [0, 0, 1, 1]], np.float32)
    truth = Truth(boxes, np.array([1, 0]), np.array([False, True]))
    label = ultralytics_label(Sample(Path("a.png"), truth))
    assert label["cls"].tolist() == [[1]]
    assert np.allclose(label["bboxes"], [[0.2, 0.4, 0.2, 0.4]])
