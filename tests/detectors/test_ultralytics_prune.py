"""Pruned Ultralytics detectors: narrower, computing with what is left what they did, and checkpoints like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_marks import of_families
from random_detector import GENERATIONS, WIDTHS

from edgekd.compress.steps import Distill, LowRank, Prune
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.images import draw_images
from edgekd.detectors.export import export
from edgekd.detectors.ultralytics.checkpoint import checkpoint_bytes, load_checkpoint
from edgekd.detectors.ultralytics.detector import UltralyticsDetector

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from edgekd.compress.pruning import least_important  # noqa: E402
from edgekd.detectors.channel_groups import _ChannelGroup, accumulate_gradients, in_batches  # noqa: E402
from edgekd.detectors.results import PruningRecord  # noqa: E402
from edgekd.detectors.ultralytics.channels import channels_of, convolutions_of, in_halves  # noqa: E402
from edgekd.detectors.ultralytics.distill import distill_student, student_network  # noqa: E402
from edgekd.detectors.ultralytics.factorize import factorize_detector  # noqa: E402
from edgekd.detectors.ultralytics.prune import _batch, prune_detector, scan_detector  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
STEP = Prune(ratio=0.4, multiple=4, images=6, batch=4)
PRUNED = ("yolov8n", "yolo11n", "yolo26n")
PRUNABLE = {model: name for model, name in GENERATIONS.items() if model != "yolov9t"}
"""All but YOLOv9: how its blocks couple channels cannot be followed, and it is refused."""


def write_detector(path: Path, model: str = "yolo11n", width: float | None = 0.125) -> Path:
    """A detector with random weights and batch norms that do something."""
    network = student_network(Distill(f"{model}.yaml", width=width), ("red", "green"), trust=False)
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
def pruned(detector: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PruningRecord]:
    path = tmp_path_factory.mktemp("pruned") / "pruned.pt"
    return path, prune_detector(detector, path, tiny_data, STEP)


def output(network: Any, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(frames)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", PRUNED)
def test_blocks_in_halves_compute_the_same_to_the_bit_and_are_whole_afterwards(model: str, tmp_path: Path) -> None:
    network = load_checkpoint(write_detector(tmp_path / "one.pt", model)).model
    state = {name: value.clone() for name, value in network.state_dict().items()}
    frames = torch.rand(2, 3, SIDE, SIDE)
    wanted = output(network, frames)
    with in_halves(network):
        assert any(".halves." in name for name, _ in network.named_modules())
        assert torch.equal(output(network, frames), wanted)
    after = network.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in after.items())


@pytest.mark.parametrize("model", of_families("Ultralytics", PRUNABLE, "prune", fast=PRUNED, release=PRUNABLE))
def test_channels_that_do_nothing_go_without_a_trace(model: str, tmp_path: Path) -> None:
    """What writes zeros and is read with zeros has no importance: without it the outputs are the same."""
    network = load_checkpoint(write_detector(tmp_path / "one.pt", model, WIDTHS[model])).model
    with in_halves(network):
        traced = channels_of(network, (SIDE, SIDE), "magnitude")
        layers = dict(network.named_modules())
        gone = {}
        for name, groups in traced._groups.items():
            gone[name] = groups[0].channels // 4
            for group in groups:
                silence(group, gone[name], layers)
        frames = torch.rand(2, 3, SIDE, SIDE)
        wanted = output(network, frames)
        traced.remove(gone)
    assert sum(gone.values()) > 50
    found = output(network, frames)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def silence(group: Any, count: int, layers: dict[str, Any]) -> None:
    """The first channels of a group read with weights of zero, and written with zeros, batch norm included."""
    for name, writes, own, roots in group.parts:
        silent = [channel for channel, root in zip(own, roots, strict=True) if root < count]
        weight = layers[name].weight.data
        (weight if writes else weight.transpose(0, 1))[silent] = 0
        norm = layers.get(name.removesuffix("conv") + "bn")
        if writes and norm is not None:
            for values in (norm.weight.data, norm.bias.data, norm.running_mean):
                values[silent] = 0
    group.importance[:count] = 0


def test_as_much_goes_as_was_asked_for(pruned: tuple[Path, PruningRecord], detector: Path) -> None:
    path, done = pruned
    before, after = (load_checkpoint(each).model for each in (detector, path))
    assert done.multiply_adds[1] <= 0.6 * done.multiply_adds[0]
    assert done.multiply_adds[1] > 0.5 * done.multiply_adds[0]
    assert done.parameters == tuple(sum(each.numel() for each in one.parameters()) for one in (before, after))
    assert all(old >= new > 0 and (new == old or new % 4 == 0) for old, new in done.widths.values())
    assert set(done.importance) == set(done.widths)
    assert all(
        (share < 1) == (new < old)
        for share, (old, new) in zip(done.importance.values(), done.widths.values(), strict=True)
    )


def test_a_pruned_detector_is_a_checkpoint_like_any(
    pruned: tuple[Path, PruningRecord], detector: Path, tmp_path: Path
) -> None:
    path, _ = pruned
    old, new = (load_checkpoint(each).model for each in (detector, path))
    assert [type(each) for each in new.modules()] == [type(each) for each in old.modules()], "no layer of another kind"
    assert not any(each.grad is not None for each in new.parameters())
    specs = [export(UltralyticsDetector(each), tmp_path / "one.onnx", 17).spec for each in (detector, path)]
    assert specs[0] == specs[1]
    from ultralytics import YOLO

    frame = (np.random.default_rng(0).uniform(size=(SIDE, SIDE, 3)) * 255).astype(np.uint8)
    threads = torch.get_num_threads()
    assert len(YOLO(path).predict(frame, imgsz=SIDE, verbose=False)) == 1
    torch.set_num_threads(threads)  # which it changes, and with it the order of sums


def test_a_pruned_detector_is_trained_on_beside_what_it_was(
    pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    step = Distill(student=str(pruned[0]), epochs=1, batch=6, image_size=SIDE, warmup_steps=0)
    done = distill_student(detector, tmp_path / "one.pt", tiny_data, step, tmp_path / "state")
    assert done.parameters == pruned[1].parameters[1]
    start, end = (load_checkpoint(path).model.state_dict() for path in (pruned[0], tmp_path / "one.pt"))
    assert {name: value.shape for name, value in start.items()} == {name: value.shape for name, value in end.items()}
    assert not torch.equal(start["model.0.conv.weight"], end["model.0.conv.weight"])


def test_the_same_arguments_give_the_same_detector(
    pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    again = prune_detector(detector, tmp_path / "again.pt", tiny_data, STEP)
    assert replace(again, seconds=0) == replace(pruned[1], seconds=0)
    one, other = (load_checkpoint(path).model.state_dict() for path in (pruned[0], tmp_path / "again.pt"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "change",
    [{"importance": "taylor"}, {"importance": "gradient"}, {"importance": "magnitude"}, {"ranking": "isomorphic"}],
    ids=str,
)
def test_each_way_to_choose_chooses_otherwise(
    change: dict[str, Any], pruned: tuple[Path, PruningRecord], detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    done = prune_detector(detector, tmp_path / "one.pt", tiny_data, replace(STEP, **change))
    assert done.widths != pruned[1].widths
    assert done.multiply_adds[1] <= 0.6 * done.multiply_adds[0]


def test_without_a_refit_batch_norms_know_what_their_layers_write_now(
    detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Of the images that channels were chosen by: the mean of what the first one reads is what it holds."""
    prune_detector(detector, tmp_path / "pruned.pt", tiny_data, replace(STEP, refit=False))
    network = load_checkpoint(tmp_path / "pruned.pt").model.float()
    samples = draw_images(load_dataset(tiny_data).split("train").samples, STEP.images, STEP.seed)
    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    held = first.running_mean.clone()
    seen = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for some in in_batches(samples, STEP.batch):
            network(_batch(some, (SIDE, SIDE))["img"])
    assert torch.allclose(held, torch.stack(seen).mean(0), atol=2e-3)


def test_a_refit_keeps_the_outputs_nearer_than_new_statistics_do(
    detector: Path, pruned: tuple[Path, PruningRecord], tiny_data: Path, tmp_path: Path
) -> None:
    prune_detector(detector, tmp_path / "plain.pt", tiny_data, replace(STEP, refit=False))
    assert error(pruned[0], detector, tiny_data, SIDE) < 0.5 * error(tmp_path / "plain.pt", detector, tiny_data, SIDE)


@pytest.mark.slow
def test_a_refit_keeps_the_outputs_of_a_trained_detector(shared: Path, tmp_path: Path) -> None:
    model, data, side = shared / "models" / "yolo11n-ppe.pt", shared / "data" / "ppe", 160
    step = Prune(ratio=0.3, images=32, image_size=side)
    for name, refit in (("plain", False), ("refitted", True)):
        prune_detector(model, tmp_path / f"{name}.pt", data, replace(step, refit=refit), trust=True)
    errors = {name: error(tmp_path / f"{name}.pt", model, data, side) for name in ("plain", "refitted")}
    assert errors["refitted"] < 0.5 * errors["plain"]


def error(changed: Path, original: Path, data: Path, side: int) -> float:
    """Return how far class probabilities are off on images of the split `val`: error power over power."""
    frames = _batch(draw_images(load_dataset(data).split("val").samples, 8, 0), (side, side))["img"]
    found = [
        output(load_checkpoint(path, trust=True).model.float(), frames)[:, 4:].double() for path in (changed, original)
    ]
    return float((found[0] - found[1]).square().sum() / found[1].square().sum())


def test_by_magnitude_and_without_a_refit_no_image_is_read(detector: Path, tmp_path: Path) -> None:
    step = replace(STEP, importance="magnitude", refit=False)
    assert prune_detector(detector, tmp_path / "one.pt", tmp_path / "nowhere", step).parameters[1] > 0


def test_gradients_are_those_of_the_loss_on_the_labels(detector: Path, tiny_data: Path) -> None:
    """Images without objects leave the boxes' branch nothing to learn."""
    from edgekd.data.dataset import load_dataset
    from edgekd.data.images import read_image
    from edgekd.detectors.ultralytics.prune import _accumulate, _loss

    sample = load_dataset(tiny_data).split("train").samples[0]
    empty = replace(sample, truth=replace(sample.truth, crowd=np.ones(len(sample.truth), bool)))
    found = []
    for each in (sample, empty):
        network = load_checkpoint(detector).model
        loss = _loss(network, ("red", "green"), None, False)
        _accumulate(network, loss, [(each, read_image(each.image))], (SIDE, SIDE), SILENT, of_weights=True)
        found.append(float(network.model[-1].cv2[0][-1].weight.grad.abs().sum()))
        assert not network.training
        assert torch.equal(network.model[0].bn.running_mean, load_checkpoint(detector).model.model[0].bn.running_mean)
    assert found[0] > 0
    assert found[1] == 0


def test_gradients_of_images_do_not_cancel_out() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    unused = torch.nn.Parameter(torch.zeros(1))
    network = torch.nn.ParameterList([weight, unused])
    accumulate_gradients(network, [3.0, -3.0, 1.0], lambda sample: sample * weight[0], SILENT)
    assert weight.grad.tolist() == [7, 0]
    assert unused.grad is None


@pytest.mark.parametrize("one_to_one", [False, True])
def test_the_branch_that_ships_is_the_one_that_a_quantized_network_speaks_for(one_to_one: bool, tmp_path: Path) -> None:
    from edgekd.detectors.ultralytics.prune import _copy_gradients
    from edgekd.detectors.ultralytics.quant_aware import float_network

    path = write_detector(tmp_path / "one.pt", "yolo26n")
    network = load_checkpoint(path).model
    network.end2end = one_to_one
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, path)
    quantized, shipped = float_network(path, trust=False)
    assert shipped is one_to_one
    for weight in quantized.requires_grad_(True).parameters():
        weight.grad = torch.ones_like(weight)
    with in_halves(network):
        _copy_gradients(quantized, network)
    head = network.model[-1]
    spoken = [float(branch[0][0].conv.weight.grad.abs().sum()) > 0 for branch in (head.cv2, head.one2one_cv2)]
    assert spoken == [not one_to_one, one_to_one]


@pytest.mark.parametrize("one_to_one", [False, True])
def test_readers_of_a_quantized_network_get_the_names_of_the_whole_one(one_to_one: bool) -> None:
    from edgekd.detectors.ultralytics.prune import _renamed

    network = student_network(Distill("yolo26n.yaml", width=0.125), ("red",), trust=False)
    network.end2end = one_to_one
    fused = ["model.2.cv1.conv", "model.2.cv2.conv", "model.23.cv2.0.0.conv"]
    with in_halves(network):
        found = _renamed(dict.fromkeys(fused), network)
        layers = dict(network.named_modules())
    branch = "one2one_cv2" if one_to_one else "cv2"
    named = {"model.2.halves.0.conv", "model.2.cv2.conv", f"model.23.{branch}.0.0.conv"}
    assert {name for name in found if name in layers} == named


def test_a_teacher_that_says_the_same_adds_nothing_and_another_does(
    detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    from edgekd.data.dataset import load_dataset
    from edgekd.data.images import draw_images
    from edgekd.detectors.ultralytics.prune import _accumulate, _loss

    images = draw_images(load_dataset(tiny_data).split("train").samples, 2, 0)
    other = load_checkpoint(detector).model
    for branch in other.model[-1].cv3:
        branch[-1].bias.data += 5  # it is sure of something everywhere
    torch.save({"model": other, "train_args": {"imgsz": SIDE}}, tmp_path / "other.pt")

    def gradient(teacher: Path | None) -> torch.Tensor:
        network = load_checkpoint(detector).model
        loss = _loss(network, ("red", "green"), teacher, False)
        _accumulate(network, loss, images, (SIDE, SIDE), SILENT, of_weights=True)
        assert not any(layer._forward_hooks for layer in network.modules())
        assert "aids" not in dict(network.named_children())
        return network.model[-1].cv3[0][-1].weight.grad

    alone = gradient(None)
    assert torch.allclose(gradient(detector), alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))
    assert not torch.allclose(gradient(tmp_path / "other.pt"), alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))


@pytest.mark.slow
def test_a_size_is_kept_in_one_round_or_on_the_way_in_several(detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    whole = prune_detector(
        detector, tmp_path / "whole.pt", tiny_data, replace(STEP, importance="magnitude", ratio=0.01)
    )
    size = (tmp_path / "whole.pt").stat().st_size
    step = Prune(max_size=f"{size * 0.8:.0f}B", importance="magnitude", multiple=4)
    sizes = []
    for rounds in (1, 2):
        done = prune_detector(detector, tmp_path / "one.pt", tiny_data, step, rounds=rounds)
        assert done.parameters[0] == whole.parameters[0]
        sizes.append((tmp_path / "one.pt").stat().st_size)
    assert 0.7 * size < sizes[0] <= 0.8 * size < sizes[1] < 0.97 * size


@pytest.mark.slow
def test_a_scan_finds_what_each_unit_bears_and_changes_nothing(
    detector: Path, pruned: tuple[Path, PruningRecord], tiny_data: Path
) -> None:
    from edgekd.detectors.results import SCANNED_SHARES

    step = Prune(images=2, batch=2)
    found = scan_detector(detector, tiny_data, step)
    assert found == scan_detector(detector, tiny_data, step)
    assert set(found.units) == set(pruned[1].widths)
    assert all(len(losses) == len(SCANNED_SHARES) for losses in found.units.values())
    assert any(losses[0] != found.loss for losses in found.units.values())
    network = load_checkpoint(detector).model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with in_halves(network):
        channels = channels_of(network, (SIDE, SIDE), "magnitude")
        frames = torch.rand(1, 3, SIDE, SIDE)
        wanted = output(network, frames)
        for unit in channels.units:
            with channels.masked(unit.name, unit.channels // 2):
                assert not torch.equal(output(network, frames), wanted), unit.name
        assert torch.equal(output(network, frames), wanted)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(KeyboardInterrupt), in_halves(network):
        raise KeyboardInterrupt
    assert network.state_dict().keys() == before.keys(), "joined, however the work ends"


def test_a_size_is_kept_also_where_little_has_to_go(detector: Path, tmp_path: Path) -> None:
    """And where what is told of the training takes much of the file."""
    network = load_checkpoint(detector).model
    told = {"imgsz": SIDE, "name": "a" * 30_000}
    torch.save({"model": network, "train_args": told}, tmp_path / "one.pt")
    size = len(checkpoint_bytes(network, told))
    step = Prune(max_size=f"{size - 3000}B", importance="magnitude", refit=False, multiple=4)
    prune_detector(tmp_path / "one.pt", tmp_path / "out.pt", tmp_path, step)
    assert (tmp_path / "out.pt").stat().st_size <= size - 3000


def test_what_cannot_be_followed_is_refused(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of another kind that split what they write, and channels that something still reads."""
    step = replace(STEP, importance="magnitude", refit=False)
    write_detector(tmp_path / "p6.pt", "yolov8n-p6")
    with pytest.raises(CompressError, match=r"cannot be followed.*has no channel"):
        prune_detector(tmp_path / "p6.pt", tmp_path / "out.pt", tmp_path, step)

    def remove_others(group: Any, count: int) -> None:
        group._group.prune(least_important(-group.importance, count))

    monkeypatch.setattr(_ChannelGroup, "remove", remove_others)
    with pytest.raises(CompressError, match=r"cannot be followed.*outputs that are off by"):
        prune_detector(detector, tmp_path / "out.pt", tmp_path, step)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("one_to_one", [False, True])
def test_the_branch_that_does_not_ship_costs_nothing(one_to_one: bool) -> None:
    network = student_network(Distill("yolo26n.yaml", width=0.125), ("red",), trust=False)
    network.end2end = one_to_one
    found = convolutions_of(network, (SIDE, SIDE))
    names = ["model.23.cv2.0.0.conv", "model.23.one2one_cv2.0.0.conv"]
    assert [found[name].positions for name in names[:: 1 - 2 * one_to_one]] == [(SIDE // 8) ** 2, 0]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"ratio": 0.99}, CompressError, "so many channels cannot be removed.* 1% of the multiply-adds"),
        ({"ratio": 0.5, "most": 0.01}, CompressError, "no less than 100% of the multiply-adds"),
        ({"ratio": None, "max_size": "1kB"}, CompressError, "found 0% of the weights"),
        ({"caps": {"modle.2.*": 0.5}}, SpecError, r"caps: modle\.2\.\* matches no unit.*model\."),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    change: dict[str, Any], error: type[Exception], said: str, detector: Path, tmp_path: Path
) -> None:
    step = replace(STEP, importance="magnitude", refit=False, **change)
    with pytest.raises(error, match=said):
        prune_detector(detector, tmp_path / "one.pt", tmp_path, step)
    assert not (tmp_path / "one.pt").exists()


@pytest.mark.parametrize(("change", "step"), [(prune_detector, STEP), (factorize_detector, LowRank())])
def test_a_detector_with_its_norms_folded_in_is_refused(
    change: Callable[..., Any], step: Any, detector: Path, tmp_path: Path
) -> None:
    network = load_checkpoint(detector).model
    torch.save({"model": network.fuse(verbose=False), "train_args": {}}, tmp_path / "fused.pt")
    with pytest.raises(SpecError, match="folded in"):
        change(tmp_path / "fused.pt", tmp_path / "one.pt", tmp_path, step, trust=True)


def test_a_factorized_detector_is_refused(detector: Path, tmp_path: Path) -> None:
    network = load_checkpoint(detector).model
    block = network.model[2]
    block.cv1 = torch.nn.Sequential(torch.nn.Conv2d(block.cv1.conv.in_channels, 4, 1), block.cv1)
    torch.save({"model": network, "train_args": {}}, tmp_path / "thin.pt")
    with pytest.raises(SpecError, match="factorized layers; fix: prune first"):
        prune_detector(tmp_path / "thin.pt", tmp_path / "one.pt", tmp_path, STEP)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", 0.0),
        ("ratio", 1.0),
        ("most", 1.5),
        ("multiple", 0),
        ("images", 0),
        ("batch", 0),
        ("image_size", 0),
        ("recovery", Distill()),
    ],
)
def test_a_setting_without_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"prune: {name}"):
        Prune(**{name: value})
