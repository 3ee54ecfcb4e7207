"""An RT-DETR by Ultralytics as a student: recovered, distilled and pruned, it is a checkpoint like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edgekd.compress.steps import Distill, DistillStage, Prune, Recover, Weights
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.deploy.artifact import opened
from edgekd.detectors.export import export
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.detectors.ultralytics.detector import UltralyticsDetector

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from random_detector import write_detector  # noqa: E402
from rtdetr import BLOCKS, write_sure  # noqa: E402
from test_ultralytics_prune import silence  # noqa: E402

from edgekd.detectors import recovery  # noqa: E402
from edgekd.detectors.cached_teacher import cached_objects  # noqa: E402
from edgekd.detectors.family import load_teacher  # noqa: E402
from edgekd.detectors.ultralytics.channels import channels_of, in_halves  # noqa: E402
from edgekd.detectors.ultralytics.distill import distill_student, student_network  # noqa: E402
from edgekd.detectors.ultralytics.features import UltralyticsTeacher  # noqa: E402
from edgekd.detectors.ultralytics.prune import _batch, prune_detector, scan_detector  # noqa: E402
from edgekd.detectors.ultralytics.recover import recover_detector  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
CLASSES = ("red", "green")
RECOVER = Recover(epochs=6, batch=5, learning_rate=3e-4)
MAPS = Weights(neurons=1, attention=1, features=1, classes=1, boxes=1)
PRUNE = Prune(ratio=0.3, multiple=4, images=6, batch=4)
DISTILL = Distill(epochs=2, batch=6, image_size=SIDE, warmup_steps=0, learning_rate=1e-3)


@pytest.fixture(scope="module")
def frames(tiny_data: Path) -> Any:
    samples = load_dataset(tiny_data).split("train").samples
    images = [letterbox(read_image(each.image), Preprocess(SIDE, SIDE, stretch=True))[0] for each in samples]
    return torch.from_numpy(np.concatenate(images))


@pytest.fixture(scope="module")
def original(frames: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sure(tmp_path_factory.mktemp("original") / "original.pt", frames)


@pytest.fixture(scope="module")
def disturbed(frames: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sure(tmp_path_factory.mktemp("disturbed") / "disturbed.pt", frames, noise=0.1)


@pytest.fixture(scope="module")
def wide_data(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with images that are twice as wide as high."""
    folder = tmp_path_factory.mktemp("wide") / "data"
    shutil.copytree(tiny_data, folder)
    for image in folder.rglob("*.png"):
        cv2.imwrite(str(image), cv2.resize(cv2.imread(str(image)), (2 * SIDE, SIDE)))
    return folder


def stretched(data: Path, side: int) -> list[Any]:
    """The images for training as uint8 [side, side, 3] RGB."""
    samples, preprocess = load_dataset(data).split("train").samples, Preprocess(side, side, stretch=True)
    images = (letterbox(read_image(each.image), preprocess)[0][0] for each in samples)
    return [np.rint(each * 255).astype(np.uint8).transpose(1, 2, 0) for each in images]


def changed(before: Path, after: Path) -> set[str]:
    """The weights in which two checkpoints differ, in half precision."""
    one, other = (load_checkpoint(path).model.state_dict() for path in (before, after))
    return {name for name in one if not torch.equal(one[name].half(), other[name].half())}


def require_checkpoint(path: Path, folder: Path) -> None:
    """Fail where Ultralytics or edgekd does not take a checkpoint."""
    from ultralytics import RTDETR

    spec = export(UltralyticsDetector(path), folder / "graph.onnx", 17).spec
    assert (spec.classes, spec.preprocess.stretch) == (CLASSES, True)
    frame = (np.random.default_rng(0).uniform(size=(SIDE, SIDE, 3)) * 255).astype(np.uint8)
    threads = torch.get_num_threads()
    assert len(RTDETR(path).predict(frame, imgsz=SIDE, verbose=False)) == 1
    torch.set_num_threads(threads)  # which it changes


def test_a_disturbed_rtdetr_comes_nearer_to_the_original(
    original: Path, disturbed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.pt"
    files = (disturbed, original, out, tiny_data, RECOVER, tmp_path / "one.cache", tmp_path / "one.training")
    done = recover_detector(*files, device="cpu")
    assert (done.epochs, done.updates) == (6, 6 * 3)
    assert done.losses[0].keys() == {"classes", "boxes", "features"}
    assert all(done.losses[-1][name] < 0.9 * value for name, value in done.losses[0].items())
    names = changed(disturbed, out)
    last = f"model.{len(load_checkpoint(out).model.model) - 1}"
    heads = ("enc_score_head.weight", "dec_score_head.0.weight", "dec_bbox_head.0.layers.0.weight")
    assert {"model.0.conv.weight", *(f"{last}.{name}" for name in heads)} <= names
    assert not [name for name in names if "running" in name or "denoising" in name]
    require_checkpoint(out, tmp_path)


def test_an_rtdetr_that_is_its_teacher_has_nothing_to_learn(original: Path, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(RECOVER, epochs=1, batch=12, learning_rate=1e-9)
    files = (original, original, tmp_path / "out.pt", tiny_data, step, tmp_path / "cache", tmp_path / "training")
    (losses,) = recover_detector(*files, device="cpu").losses
    assert all(value < 0.02 for value in losses.values())


def test_images_are_stretched_as_the_camera_stretches_them(
    original: Path, wide_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    cached_predictions = recovery.cached_predictions

    def noted(*known: Any) -> Any:
        kept.append(cached_predictions(*known))
        return kept[-1]

    monkeypatch.setattr(recovery, "cached_predictions", noted)
    step = replace(RECOVER, epochs=1, images=1)
    files = (original, original, tmp_path / "out.pt", wide_data, step, tmp_path / "cache", tmp_path / "training")
    recover_detector(*files, device="cpu")
    assert np.array_equal(kept[0]["frame"][0], stretched(wide_data, SIDE)[0])


def test_a_cached_teacher_sees_images_stretched_as_it_was_trained_on_them(
    original: Path, wide_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[Any] = []
    forward = UltralyticsTeacher.forward
    monkeypatch.setattr(UltralyticsTeacher, "forward", lambda one, batch: frames.append(batch) or forward(one, batch))
    samples = load_dataset(wide_data).split("train").samples
    records = cached_objects(load_teacher(original), samples, tmp_path / "one.predictions", 1 << 20, SILENT)
    seen = (torch.cat(frames) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(seen, np.stack(stretched(wide_data, SIDE)))
    assert records["count"].max() > 0


@pytest.mark.parametrize("swapped", [False, True])
def test_a_teacher_with_another_head_is_refused(original: Path, swapped: bool, tiny_data: Path, tmp_path: Path) -> None:
    yolo = write_detector(tmp_path, "yolo11n", 0.125, SIDE)
    pair = (yolo, original) if swapped else (original, yolo)
    files = (*pair, tmp_path / "out.pt", tiny_data, RECOVER, tmp_path / "one.cache", tmp_path / "one.training")
    with pytest.raises(SpecError, match="recover: the teacher has another head") as refused:
        recover_detector(*files, device="cpu")
    assert "train it by a step distill" in str(refused.value)


@pytest.mark.family("RT-DETR", "distill", package="Ultralytics")
def test_it_learns_from_another_rtdetr(original: Path, disturbed: Path, tiny_data: Path, tmp_path: Path) -> None:
    """By cached objects, as by default: a weight update for each batch, and all layers are trained."""
    stages = (DistillStage("teacher", 1.0, Weights(classes=20.0, boxes=20.0)),)
    step = replace(DISTILL, student=str(disturbed), epochs=4, mosaic=0.0, balance_every=0, stages=stages)
    done = distill_student(original, tmp_path / "out.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert (done.epochs, done.updates) == (4, 4 * 2)
    assert done.losses[0].keys() == {"giou_loss", "cls_loss", "l1_loss", *vars(Weights())}
    assert all(done.losses[-1][name] < done.losses[0][name] for name in ("classes", "cls_loss", "giou_loss"))
    names = changed(disturbed, tmp_path / "out.pt")
    last = f"model.{len(load_checkpoint(disturbed).model.model) - 1}"
    assert {"model.0.conv.weight", f"{last}.enc_score_head.weight", f"{last}.denoising_class_embed.weight"} <= names
    require_checkpoint(tmp_path / "out.pt", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_it_learns_from_a_yolo(teacher: Any, disturbed: Path, tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("test_ultralytics_distill")
    yolo = distill.write_checkpoint(tmp_path / "yolo.pt", "yolo11n.yaml", 0.1, dict(enumerate(("green", "red"))))
    step = replace(DISTILL, student=str(disturbed), epochs=1, teacher=teacher)
    done = distill_student(yolo, tmp_path / "out.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert done.losses[0]["classes"] > 0
    assert done.losses[0]["boxes"] > 0
    assert done.weights[0]["classes"] > 0


@pytest.mark.slow
def test_feature_maps_of_a_yolo_are_compared_at_its_neck(disturbed: Path, tiny_data: Path, tmp_path: Path) -> None:
    yolo = write_detector(tmp_path, "yolo11n", 0.125, SIDE)
    stages = (DistillStage("maps", 1.0, MAPS, adaptive=True),)
    step = replace(DISTILL, student=str(disturbed), epochs=1, stages=stages, features="correlation")
    done = distill_student(yolo, tmp_path / "out.pt", tiny_data, step, tmp_path / "state", device="cpu")
    assert all(done.losses[0][name] > 0 for name in ("neurons", "attention", "features"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stages": (DistillStage("one", 1.0, Weights(relations=1.0)),)}, "relations"),
        ({"stages": (DistillStage("one", 1.0, Weights(features=1.0)),)}, 'features = "weighted"'),
        ({"text": 0.5}, "text"),
        ({"unlabelled": "frames"}, "unlabelled"),
    ],
)
def test_what_is_taken_at_anchors_is_refused(
    change: dict[str, Any], named: str, original: Path, tiny_data: Path, tmp_path: Path
) -> None:
    step = replace(DISTILL, student=str(original), **change)
    with pytest.raises(SpecError, match=f"distill: {named}; expected a student with anchors"):
        distill_student(original, tmp_path / "out.pt", tiny_data, step, tmp_path / "state", device="cpu")


def test_training_frames_are_stretched(
    original: Path, wide_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.detectors.ultralytics import loop

    sizes = []
    load_image = loop.StretchedImages.load_image

    def noted(dataset: Any, *known: Any, **named: Any) -> Any:
        found = load_image(dataset, *known, **named)
        sizes.append(found[2])
        return found

    monkeypatch.setattr(loop.StretchedImages, "load_image", noted)
    step = replace(DISTILL, student=str(original), epochs=1, image_size=96)
    distill_student(original, tmp_path / "out.pt", wide_data, step, tmp_path / "state", device="cpu")
    assert set(sizes) == {(96, 96)}


def test_gradients_are_of_stretched_images(wide_data: Path) -> None:
    sample = load_dataset(wide_data).split("train").samples[0]
    batch = _batch([(sample, read_image(sample.image))], (SIDE, SIDE), stretch=True)
    assert np.array_equal((batch["img"][0] * 255).round().permute(1, 2, 0).numpy(), stretched(wide_data, SIDE)[0])
    low, high = sample.truth.boxes[:, :2], sample.truth.boxes[:, 2:]
    wanted = np.concatenate([(low + high) / 2, high - low], axis=1)
    assert np.allclose(batch["bboxes"].numpy(), wanted, atol=1e-6)


def test_a_description_gives_one_with_random_weights() -> None:
    network = student_network(Distill("rtdetr-l.yaml", width=0.25), ("a", "b", "c"), trust=False)
    assert type(network).__name__ == "RTDETRDetectionModel"
    assert network.model[-1].dec_score_head[0].out_features == 3


def test_classes_of_the_same_name_keep_their_weights(original: Path) -> None:
    before = load_checkpoint(original).model.model[-1]
    network = student_network(Distill(str(original)), ("blue", "red"), trust=False)
    after = network.model[-1]
    for name in ("enc_score_head.weight", "dec_score_head.0.bias", "denoising_class_embed.weight"):
        old, new = (head.get_parameter(name) for head in (before, after))
        assert torch.equal(new[1], old[0])
        assert len(new) == 2
    assert float(after.enc_score_head.bias[0]) == pytest.approx(-4.6)
    assert after.nc == 2


@pytest.fixture(scope="module")
def blocks(frames: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the blocks of the real ones: HGStem, HGBlock, AIFI and RepC3."""
    return write_sure(tmp_path_factory.mktemp("blocks") / "blocks.pt", frames, BLOCKS)


@pytest.mark.family("RT-DETR", "prune", package="Ultralytics")
def test_channels_that_do_nothing_go_without_a_trace(blocks: Path) -> None:
    """What writes zeros and is read with zeros has no importance: without it the outputs are the same."""
    network = load_checkpoint(blocks).model
    with in_halves(network):
        traced = channels_of(network, (SIDE, SIDE), "magnitude")
        layers = dict(network.named_modules())
        gone = {}
        for name, groups in traced._groups.items():
            gone[name] = groups[0].channels // 4
            for group in groups:
                silence(group, gone[name], layers)
        frames = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = network(frames)[1][:2]
            traced.remove(gone)
            found = network(frames)[1][:2]
    assert sum(gone.values()) > 50
    assert {name.split(".")[1] for name in gone} >= {"0", "1", "5", "6", "16", "26"}, "of stem, stages and neck"
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_attention_and_decoder_keep_their_widths(blocks: Path, tiny_data: Path, tmp_path: Path) -> None:
    done = prune_detector(blocks, tmp_path / "out.pt", tiny_data, PRUNE)
    assert done.multiply_adds[1] <= 0.7 * done.multiply_adds[0]
    before, after = (load_checkpoint(path).model for path in (blocks, tmp_path / "out.pt"))
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (before, after)]
    narrower = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    kept = {name for name in shapes[0] if name.startswith(("model.10.", "model.27.")) and "input_proj" not in name}
    assert kept
    assert not kept & narrower
    assert narrower
    assert done.parameters == tuple(sum(each.numel() for each in one.parameters()) for one in (before, after))
    require_checkpoint(tmp_path / "out.pt", tmp_path)


@pytest.mark.slow
def test_a_refit_keeps_the_neck_nearer_than_new_statistics_do(original: Path, tiny_data: Path, tmp_path: Path) -> None:
    frames = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    errors = []
    for refit in (True, False):
        prune_detector(original, tmp_path / "out.pt", tiny_data, replace(PRUNE, refit=refit))
        with torch.no_grad():
            ours, theirs = (
                load_checkpoint(path).model.float().model[-1]._get_encoder_input(maps_of(path, frames))[0]
                for path in (tmp_path / "out.pt", original)
            )
        errors.append(float((ours - theirs).square().sum() / theirs.square().sum()))
    assert errors[0] < errors[1]


def maps_of(path: Path, frames: Any) -> Any:
    """The maps that the head of a network reads."""
    seen: list[Any] = []
    network = load_checkpoint(path).model.float()
    network.model[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(frames)
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
def test_each_importance_prunes(importance: Any, blocks: Path, tiny_data: Path, tmp_path: Path) -> None:
    step = replace(PRUNE, importance=importance, refit=False)
    done = prune_detector(blocks, tmp_path / "out.pt", tiny_data, step)
    assert done.multiply_adds[1] <= 0.7 * done.multiply_adds[0]


@pytest.mark.slow
def test_a_teachers_queries_count_in_the_gradients(
    original: Path, disturbed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    widths = [
        prune_detector(disturbed, tmp_path / "out.pt", tiny_data, PRUNE, teacher=teacher).importance
        for teacher in (None, original)
    ]
    assert widths[0] != widths[1]


@pytest.mark.slow
def test_a_scan_measures_each_unit(original: Path, tiny_data: Path) -> None:
    found = scan_detector(original, tiny_data, PRUNE)
    assert found.units
    assert any(loss != found.loss for losses in found.units.values() for loss in losses)


@pytest.mark.slow
def test_a_pruned_one_is_recovered_and_distilled(original: Path, tiny_data: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.pt"
    prune_detector(original, pruned, tiny_data, PRUNE)
    step = replace(RECOVER, epochs=3)
    files = (pruned, original, tmp_path / "out.pt", tiny_data, step, tmp_path / "cache", tmp_path / "training")
    losses = recover_detector(*files, device="cpu").losses
    assert losses[-1]["features"] < losses[0]["features"]
    before, after = (load_checkpoint(path).model.state_dict() for path in (pruned, tmp_path / "out.pt"))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    distill = replace(DISTILL, student=str(tmp_path / "out.pt"), epochs=1)
    distill_student(original, tmp_path / "d.pt", tiny_data, distill, tmp_path / "state", device="cpu")
    require_checkpoint(tmp_path / "d.pt", tmp_path)


RECIPE = """
name = "own"
[[steps]]
kind = "distill"
student = "{student}"
epochs = 1
batch = 6
image_size = 64
[[steps]]
kind = "prune"
images = 6
ratio = 0.2
multiple = 4
[[steps]]
kind = "recover"
epochs = 2
batch = 5
[[steps]]
kind = "quantize"
"""


@pytest.mark.slow
def test_a_build_distils_prunes_recovers_and_quantizes(
    original: Path, disturbed: Path, tiny_data: Path, tmp_path: Path
) -> None:
    import edgekd as api

    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE.format(student=disturbed), "utf-8")
    given = {"target": "cpu", "recipe": str(recipe), "device": "local:onnxruntime-cpu"}
    bundle = api.build(original, tiny_data, out=tmp_path / "out", **given).bundle
    with opened(bundle, None, (), False) as (graph, spec):
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(graph).graph.node}
        assert spec.preprocess.stretch
    stages = {each["name"] for each in json.loads((tmp_path / "out" / "ledger.json").read_bytes())["stages"]}
    assert {"distill", "prune", "recover", "quantize"} <= stages
