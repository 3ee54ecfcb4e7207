"""Factorized Ultralytics detectors: thinner layers that say nearly the same, and checkpoints like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.compress.pruning import Convolution
from edgekd.compress.steps import Distill, LowRank
from edgekd.core.errors import CompressError, SpecError
from edgekd.detectors.export import export
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics.detector import UltralyticsDetector

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from edgekd.detectors.results import FactorizationRecord  # noqa: E402
from edgekd.detectors.ultralytics.channels import convolutions_of  # noqa: E402
from edgekd.detectors.ultralytics.distill import distill_student, student_network  # noqa: E402
from edgekd.detectors.ultralytics.factorize import factorize_detector  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
STEP = LowRank(energy=0.9, channels=8, images=6)
FAMILIES = ("yolov8n", "yolo11n", "yolo26n")


def counted(layer: Convolution) -> float:
    """What networks as small as these are judged by: starting a kernel would cost more than anything in them."""
    return float(layer.multiply_adds)


def write_detector(path: Path, model: str = "yolo11n") -> Path:
    """A detector with random weights and batch norms that do something."""
    network = student_network(Distill(f"{model}.yaml", width=0.125), ("red", "green"), trust=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, path)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "detector.pt")


@pytest.fixture(scope="module")
def factorized(
    detector: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, FactorizationRecord]:
    path = tmp_path_factory.mktemp("factorized") / "factorized.pt"
    return path, factorize_detector(detector, path, tiny_data, STEP, cost=counted)


def raw(network: Any, frames: Any) -> Any:
    """What the head says before anything is decoded, [b, c, n]."""
    with torch.no_grad():
        said = network.eval()(frames)[1]
    said = said.get("one2many", said)
    return torch.cat([said["boxes"], said["scores"]], 1)


@pytest.mark.parametrize("model", FAMILIES)
def test_the_more_is_kept_the_nearer_is_what_the_network_says(model: str, tiny_data: Path, tmp_path: Path) -> None:
    from edgekd.core.detection.preprocess import letterbox
    from edgekd.core.detection.types import Preprocess
    from edgekd.data.dataset import load_dataset
    from edgekd.data.images import read_image

    detector = write_detector(tmp_path / "one.pt", model)
    samples = load_dataset(tiny_data).split("val").samples[:4]
    frames = np.concatenate([letterbox(read_image(each.image), Preprocess(SIDE, SIDE))[0] for each in samples])
    wanted = raw(load_checkpoint(detector).model, torch.from_numpy(frames))
    off, left = [], []
    for energy in (0.8, 0.99):
        done = factorize_detector(detector, tmp_path / "out.pt", tiny_data, replace(STEP, energy=energy), cost=counted)
        found = raw(load_checkpoint(tmp_path / "out.pt").model, torch.from_numpy(frames))
        assert found.shape == wanted.shape
        off.append(float((found - wanted).square().mean() / (wanted - wanted.mean()).square().mean()))
        left.append(done.multiply_adds[1] / done.multiply_adds[0])
        assert done.layers
        assert all(each.kept >= energy - 1e-3 for each in done.layers.values())
    assert off[1] < 0.1
    assert off[1] < off[0]
    assert left[0] < left[1] < 1


def test_a_refit_brings_the_outputs_nearer(
    factorized: tuple[Path, FactorizationRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    factorize_detector(detector, tmp_path / "plain.pt", tiny_data, replace(STEP, refit=False), cost=counted)
    frames = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    wanted, plain, refitted = (
        raw(load_checkpoint(path).model.float(), frames) for path in (detector, tmp_path / "plain.pt", factorized[0])
    )
    assert (refitted - wanted).square().mean() < 0.5 * (plain - wanted).square().mean()


def test_what_is_told_is_what_is_there(factorized: tuple[Path, FactorizationRecord], detector: Path) -> None:
    path, done = factorized
    before, after = (load_checkpoint(each).model for each in (detector, path))
    assert done.parameters == tuple(sum(each.numel() for each in one.parameters()) for one in (before, after))
    assert done.multiply_adds[1] == sum(each.multiply_adds for each in convolutions_of(after, (SIDE, SIDE)).values())
    for name, product in done.layers.items():
        whole, made = before.get_submodule(name), after.get_submodule(name)
        *firsts, last = made
        weights = [each.weight for each in firsts] + [last.conv.weight]
        assert weights[0].shape[1] == whole.conv.in_channels
        assert weights[-1].shape[0] == whole.conv.out_channels
        assert {each.shape[0] for each in weights[:-1]} <= {product.ranks.reading, product.ranks.writing}
        assert not any(each.bias is not None for each in firsts)
        assert torch.equal(last.bn.running_var.half(), whole.bn.running_var.half())
        assert last.bn.num_features == whole.bn.num_features


def test_what_must_not_change_is_left_alone(factorized: tuple[Path, FactorizationRecord], detector: Path) -> None:
    """Attention, what reads by groups, what writes the maps that the head reads, and the last layers of the head."""
    network = load_checkpoint(detector).model
    assert any(name.startswith("model.10.m.0.ffn") for name in factorized[1].layers), "beside attention"
    assert not any(".attn." in name for name in factorized[1].layers)
    assert network.model[-1].f == [16, 19, 22]
    assert not {f"model.{at}.cv2" for at in network.model[-1].f} & set(factorized[1].layers)
    assert any(name.startswith("model.19.") for name in factorized[1].layers), "others of these blocks"
    for name in factorized[1].layers:
        layer = network.get_submodule(name).conv
        assert layer.groups == 1
        assert min(layer.in_channels, layer.out_channels) >= STEP.channels
    head = load_checkpoint(factorized[0]).model.model[-1]
    assert all(isinstance(branch[-1], torch.nn.Conv2d) for branch in (*head.cv2, *head.cv3))


def test_a_factorized_detector_is_a_checkpoint_like_any(
    factorized: tuple[Path, FactorizationRecord], detector: Path, tmp_path: Path
) -> None:
    path, done = factorized
    assert any(name.count(".") == 1 for name in done.layers), "a layer that Ultralytics finds by its number"
    specs = [export(UltralyticsDetector(each), tmp_path / "one.onnx", 17).spec for each in (detector, path)]
    assert specs[0] == specs[1]
    network = load_checkpoint(path).model
    frames = torch.rand(2, 3, SIDE, SIDE)
    wanted = raw(network, frames)
    network.fuse(verbose=False)
    assert network.is_fused()
    assert torch.allclose(raw(network, frames), wanted, rtol=1e-3, atol=1e-3)
    from ultralytics import YOLO

    frame = (np.random.default_rng(0).uniform(size=(SIDE, SIDE, 3)) * 255).astype(np.uint8)
    threads = torch.get_num_threads()
    assert len(YOLO(path).predict(frame, imgsz=SIDE, verbose=False)) == 1
    torch.set_num_threads(threads)  # which it changes, and with it the order of sums


def test_a_factorized_detector_is_trained_on_beside_what_it_was(
    factorized: tuple[Path, FactorizationRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    step = Distill(student=str(factorized[0]), epochs=1, batch=6, image_size=SIDE, warmup_steps=0)
    done = distill_student(detector, tmp_path / "one.pt", tiny_data, step, tmp_path / "state")
    assert done.parameters == factorized[1].parameters[1]
    start, end = (load_checkpoint(path).model.state_dict() for path in (factorized[0], tmp_path / "one.pt"))
    assert {name: value.shape for name, value in start.items()} == {name: value.shape for name, value in end.items()}
    first = next(name for name in start if name.endswith(".0.weight") and "model.1." in name)
    assert not torch.equal(start[first], end[first])


def test_the_same_arguments_give_the_same_detector(
    factorized: tuple[Path, FactorizationRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    again = factorize_detector(detector, tmp_path / "again.pt", tiny_data, STEP, cost=counted)
    assert replace(again, seconds=0) == replace(factorized[1], seconds=0)
    one, other = (load_checkpoint(path).model.state_dict() for path in (factorized[0], tmp_path / "again.pt"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_a_layer_costs_decides_which_are_replaced(
    factorized: tuple[Path, FactorizationRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    network = load_checkpoint(detector).model

    def only_large_kernels(layer: Convolution) -> float:
        return layer.multiply_adds if layer.kernel > 1 else 1.0

    done = factorize_detector(detector, tmp_path / "one.pt", tiny_data, STEP, cost=only_large_kernels)
    assert {network.get_submodule(name).conv.kernel_size for name in done.layers} == {(3, 3)}
    assert {network.get_submodule(name).conv.kernel_size for name in factorized[1].layers} == {(1, 1), (3, 3)}


@pytest.mark.parametrize("one_to_one", [False, True])
def test_the_branch_that_does_not_ship_is_left_alone(one_to_one: bool, tiny_data: Path, tmp_path: Path) -> None:
    network = student_network(Distill("yolo26n.yaml", width=0.125), ("red",), trust=False)
    network.end2end = one_to_one
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, tmp_path / "one.pt")
    done = factorize_detector(tmp_path / "one.pt", tmp_path / "out.pt", tiny_data, STEP, cost=counted)
    heads = {name.split(".")[2] for name in done.layers if name.startswith("model.23.")}
    assert heads
    assert all(name.startswith("one2one_") == one_to_one for name in heads)


def test_where_nothing_pays_nothing_is_written(detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"no convolution is cheaper.*one of \d+ that keeps 90\.00%"):
        factorize_detector(detector, tmp_path / "one.pt", tiny_data, STEP, cost=lambda layer: 1.0)
    assert not (tmp_path / "one.pt").exists()


def test_what_half_precision_cannot_hold_is_refused(detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    """As checkpoints are written in it: weights below its smallest number."""
    network = load_checkpoint(detector).model
    network.model[1].conv.weight.data *= 1e-9
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, tmp_path / "faint.pt")
    with pytest.raises(CompressError, match=r"layer model\.1 does not keep what it should, in half precision"):
        factorize_detector(tmp_path / "faint.pt", tmp_path / "one.pt", tiny_data, STEP, cost=counted)
    assert not (tmp_path / "one.pt").exists()


def test_weights_that_are_no_numbers_are_refused(detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    network = load_checkpoint(detector).model
    network.model[1].conv.weight.data[0] = torch.nan
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, tmp_path / "broken.pt")
    with pytest.raises(CompressError, match=r"layer model\.1 cannot be factorized"):
        factorize_detector(tmp_path / "broken.pt", tmp_path / "one.pt", tiny_data, STEP, cost=counted)


@pytest.mark.parametrize(
    ("name", "value"), [("energy", 0.0), ("energy", 1.0), ("channels", 0), ("images", 0), ("image_size", 0)]
)
def test_a_setting_without_sense_is_refused(name: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"factorize: {name}"):
        LowRank(**{name: value})
