"""A network that computes as its Q/DQ graph does, and the layers that go back into the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq_models import CHANNELS, conv_pair, run

from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.core.errors import CompressError

torch = pytest.importorskip("torch")

from edgekd.compress.quantization.fake_quant import FakeQuantConv2d  # noqa: E402
from edgekd.compress.quantization.fake_quant_network import (  # noqa: E402
    fake_quantized,
    input_range,
    quantize_input,
    trained_layers,
)


class Pair(torch.nn.Module):  # type: ignore[misc]
    """The network of `conv_pair`, which scales its output, too; `skips`: its input is added to it."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.skips = False

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        inside = self.second(self.first(frames).relu()) * self.scale
        return inside + frames if self.skips else inside


def node_of(layer: QdqConvolution) -> str:
    return layer.node


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "pair.onnx"
    onnx.save(conv_pair(), path)
    return path


def student_of(graph: Path, *, learned: bool = False) -> Pair:
    student: Pair = fake_quantized(Pair(), read_layers(graph), node_of, learned=learned)
    return student


def frames() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(0, 1, [1, CHANNELS, 6, 6]).astype(np.float32))


def test_it_computes_what_the_graph_computes(graph: Path) -> None:
    with torch.no_grad():
        found = student_of(graph)(frames()).numpy()
    assert np.allclose(found, run(onnx.load(graph)), atol=1e-4)


def test_only_what_the_graph_gets_back_is_trained(graph: Path) -> None:
    names = {name for name, each in student_of(graph, learned=True).named_parameters() if each.requires_grad}
    assert {"first.weight", "second.weight", "first.growth", "second.growth"} < names
    assert "scale" not in names
    floating = [replace(layer, weights=layer.values, scales=None) for layer in read_layers(graph)]
    student = fake_quantized(Pair(), floating, node_of, learned=False)
    assert {name for name, each in student.named_parameters() if each.requires_grad} == {
        "first.weight",
        "second.weight",
    }


def test_the_given_network_stays_as_it_is(graph: Path) -> None:
    network = Pair()
    before = network.first.weight.clone()
    fake_quantized(network, read_layers(graph), node_of, learned=True)
    assert torch.equal(network.first.weight, before)
    assert isinstance(network.first, torch.nn.Conv2d)
    assert network.scale.requires_grad


def test_what_was_not_trained_gives_the_graph_back(graph: Path, tmp_path: Path) -> None:
    layers = read_layers(graph)
    write_layers(graph, tmp_path / "same.onnx", trained_layers(student_of(graph), layers, node_of))
    assert (tmp_path / "same.onnx").read_bytes() == graph.read_bytes()


def test_a_trained_weight_is_in_the_graph_as_it_was_computed_with(graph: Path, tmp_path: Path) -> None:
    layers, student = read_layers(graph), student_of(graph, learned=True)
    optimizer = torch.optim.Adam([each for each in student.parameters() if each.requires_grad], 0.02)
    for _ in range(3):
        optimizer.zero_grad()
        student(frames()).square().mean().backward()
        optimizer.step()
    trained = trained_layers(student, layers, node_of)
    assert all((old.weights != new.weights).any() for old, new in zip(layers, trained, strict=True))
    write_layers(graph, tmp_path / "trained.onnx", trained)
    with torch.no_grad():
        found = student(frames()).numpy()
    assert np.allclose(found, run(onnx.load(tmp_path / "trained.onnx")), atol=1e-4)


def test_layers_of_another_network_are_refused(graph: Path) -> None:
    layers = read_layers(graph)
    for network, found in ((Pair(4), r"\[4, 4, 3, 3\]"), (torch.nn.Sequential(), "none")):
        with pytest.raises(CompressError, match=f"not what the graph was made from.*{found}"):
            fake_quantized(network, layers, node_of, learned=False)


def test_a_residual_block_adds_the_input_that_its_first_convolution_reads(graph: Path) -> None:
    student, plain = student_of(graph), student_of(graph)
    student.skips = True
    quantize_input(student)
    assert isinstance(plain.first, FakeQuantConv2d)
    with torch.no_grad():
        assert torch.equal(student(frames()), plain(frames()) + plain.first.entry(frames()))
    network = Pair()
    before = network(frames())
    assert input_range(network) is None
    quantize_input(network)
    assert torch.equal(network(frames()), before), "a block that reads floats stays as it is"
