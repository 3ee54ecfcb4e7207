"""Pruned detectors by torchvision: narrower, computing with what is left what they did, in files like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from family_marks import of_families
from test_torchvision_detector import NAMES, SIDE, SMALL, make

from edgekd.compress.steps import Distill, Prune
from edgekd.core.errors import CompressError, SpecError
from edgekd.detectors.export import export

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("torch_pruning")

from edgekd.detectors.channel_groups import Channels, convolutions_run  # noqa: E402
from edgekd.detectors.results import PruningRecord  # noqa: E402
from edgekd.detectors.torchvision.detector import TorchvisionDetector  # noqa: E402
from edgekd.detectors.torchvision.distill import distill_student  # noqa: E402
from edgekd.detectors.torchvision.network import TorchvisionNetwork, load_network, save_network  # noqa: E402
from edgekd.detectors.torchvision.prune import _Dense, _fixed_outputs, prune_detector, scan_detector  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's own
CLASSES = ("red", "green")
STEP = Prune(ratio=0.3, multiple=8, images=4, batch=2)


def write_detector(path: Path, builder: str = SMALL) -> Path:
    """A detector with random weights and batch norms that do something."""
    network = make(builder, CLASSES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_network(network, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "detector.tv.pt")


@pytest.fixture(scope="module")
def pruned(detector: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PruningRecord]:
    path = tmp_path_factory.mktemp("pruned") / "pruned.tv.pt"
    return path, prune_detector(detector, path, tiny_data, STEP)


def dense(network: TorchvisionNetwork, frames: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return _Dense(network.eval())(frames)  # type: ignore[no-any-return]


@pytest.mark.parametrize("builder", of_families("torchvision", NAMES, "prune"))
def test_channels_that_do_nothing_go_without_a_trace(builder: str, tmp_path: Path) -> None:
    """What is read with zeros has no importance: without it the outputs are the same."""
    network = load_network(write_detector(tmp_path / "one.tv.pt", builder))
    module, frame = _Dense(network), torch.rand(1, 3, SIDE, SIDE)
    network.requires_grad_(True)
    found = convolutions_run(module, lambda: module(frame))
    channels = Channels(module, frame, found, _fixed_outputs(network), "magnitude")
    layers, gone = dict(module.named_modules()), {}
    for name, groups in channels._groups.items():
        gone[name] = groups[0].channels // 4
        for group in groups:
            for layer, writes, own, roots in group.parts:
                silent = [channel for channel, root in zip(own, roots, strict=True) if root < gone[name]]
                weight = layers[layer].weight.data
                if weight.shape[1] == 1 or writes:
                    weight[silent] = 0
                else:
                    weight[:, silent] = 0
            group.importance[: gone[name]] = 0
    for layer in layers.values():  # a norm of nothing is nothing
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.bias.data.zero_()
            layer.running_mean.zero_()
    wanted = dense(network, frame)
    before = {name: layer.out_channels for name, layer in layers.items() if isinstance(layer, torch.nn.Conv2d)}
    channels.remove(gone)
    after = {name: layer.out_channels for name, layer in layers.items() if isinstance(layer, torch.nn.Conv2d)}
    assert sum(before.values()) - sum(after.values()) > 100
    for one, other in zip(dense(network, frame), wanted, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_as_much_goes_as_was_asked_for_and_the_file_is_like_any(
    pruned: tuple[Path, PruningRecord], detector: Path, tmp_path: Path
) -> None:
    path, done = pruned
    old, new = (load_network(each) for each in (detector, path))
    assert 0.6 * done.multiply_adds[0] < done.multiply_adds[1] <= 0.7 * done.multiply_adds[0]
    assert done.parameters == tuple(sum(each.numel() for each in one.parameters()) for one in (old, new))
    assert new.strides == old.strides
    frame = torch.rand(1, 3, SIDE, SIDE)
    assert [each.shape for each in dense(new, frame)] == [each.shape for each in dense(old, frame)]
    specs = [export(TorchvisionDetector(each), tmp_path / "one.onnx", 17).spec for each in (detector, path)]
    assert specs[0] == specs[1]


@pytest.mark.slow
def test_a_size_is_kept(detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    size = detector.stat().st_size
    step = Prune(max_size=f"{size * 0.8:.0f}B", importance="magnitude", multiple=8)
    prune_detector(detector, tmp_path / "one.tv.pt", tiny_data, step)
    assert 0.7 * size < (tmp_path / "one.tv.pt").stat().st_size <= 0.8 * size


@pytest.mark.slow
def test_images_change_the_choice_and_a_teacher_can_have_its_say(
    pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    by_size = prune_detector(detector, tmp_path / "one.tv.pt", tiny_data, replace(STEP, importance="magnitude"))
    assert by_size.widths != pruned[1].widths
    again = prune_detector(pruned[0], tmp_path / "two.tv.pt", tiny_data, STEP, teacher=detector)
    assert again.multiply_adds[0] == pruned[1].multiply_adds[1]
    with pytest.raises(SpecError, match=f"image_size.*expected its own, {SIDE}x{SIDE} pixels.*found 32"):
        scan_detector(detector, tiny_data, replace(STEP, image_size=32))
    with pytest.raises(CompressError, match="so many channels cannot be removed"):
        prune_detector(detector, tmp_path / "three.tv.pt", tiny_data, replace(STEP, ratio=0.99, importance="magnitude"))


@pytest.mark.release
def test_a_scan_finds_what_each_unit_bears(pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path) -> None:
    found = scan_detector(detector, tiny_data, Prune(images=2, batch=2))
    assert set(found.units) == set(pruned[1].widths)
    assert any(abs(losses[2] - found.loss) > 1e-3 * found.loss for losses in found.units.values())


@pytest.mark.slow
def test_what_is_left_is_trained_and_gets_other_classes(
    pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    step = Distill(student=str(pruned[0]), epochs=1, batch=6, image_size=SIDE, warmup_steps=0)
    done = distill_student(detector, tmp_path / "out.tv.pt", tiny_data, step, tmp_path / "state")
    assert done.parameters == pruned[1].parameters[1]
    assert load_network(tmp_path / "out.tv.pt").widths == load_network(pruned[0]).widths
    from edgekd.detectors.torchvision.network import with_classes

    other = with_classes(load_network(pruned[0]), ("green", "blue", "red"), (SIDE, SIDE))
    assert other.widths == load_network(pruned[0]).widths
    assert len(other.classes) == 3
