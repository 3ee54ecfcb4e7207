"""Recovered Ultralytics detectors: nearer to the original, by an update for each batch and one pass of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.compress.steps import Distill, Recover
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import SpecError
from edgekd.core.progress import SilentProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

from killed import KilledError, kill_third_epoch  # noqa: E402

from edgekd.compress.distillation.anchors import Grid  # noqa: E402
from edgekd.compress.distillation.loss_terms import Predictions  # noqa: E402
from edgekd.compress.distillation.recovery import mirror  # noqa: E402
from edgekd.detectors import recovery  # noqa: E402
from edgekd.detectors.ultralytics.distill import student_network  # noqa: E402
from edgekd.detectors.ultralytics.features import UltralyticsTeacher  # noqa: E402
from edgekd.detectors.ultralytics.recover import recover_detector  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 64
IMAGES = 12
"""Training images of the tiny data set."""
STEP = Recover(epochs=4, batch=5, learning_rate=1e-3)
CLASSES = ("red", "green")


class EpochLosses(SilentProgress):
    """A progress that keeps what it is told of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[tuple[str, int, Mapping[str, float]]] = []

    def epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> None:
        self.epochs.append((name, epoch, values))

    def stage(self, name: str, results: Mapping[str, Any], seconds: float) -> None:
        raise AssertionError


def write_detector(
    path: Path, data: Path, model: str = "yolo11n", noise: float = 0.0, classes: tuple[str, ...] = CLASSES
) -> Path:
    """A detector with random weights that is sure of something; noise: share by which its weights are disturbed."""
    network = student_network(Distill(f"{model}.yaml", width=0.125, seed=5), classes, trust=False)
    head = network.model[-1]
    torch.manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # statistics of the next batch, so that maps differ from place to place
    samples = load_dataset(data).split("train").samples
    frames = [letterbox(read_image(sample.image), Preprocess(SIDE, SIDE))[0] for sample in samples]
    network.train()(torch.from_numpy(np.concatenate(frames)))
    for branch in filter(None, (head.cv3, getattr(head, "one2one_cv3", None))):
        for level in branch:
            level[-1].weight.data.normal_(0, 0.3)
            level[-1].bias.data.fill_(-1)
    for branch in filter(None, (head.cv2, getattr(head, "one2one_cv2", None))) if head.reg_max == 1 else ():
        for level in branch:
            level[-1].bias.data.fill_(2)  # sides in strides: a box without an area has nothing to learn from
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data += noise * layer.weight.std() * torch.randn_like(layer.weight)
    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, path)
    return path


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The records that each training reads."""
    found: list[Any] = []
    cached_predictions = recovery.cached_predictions

    def kept(*known: Any) -> Any:
        found.append(cached_predictions(*known))
        return found[-1]

    monkeypatch.setattr(recovery, "cached_predictions", kept)
    return found


@pytest.mark.parametrize(("model", "branches"), [("yolo11n", 1), ("yolo26n", 2)])
def test_a_disturbed_detector_comes_nearer_to_the_original(
    model: str, branches: int, tiny_data: Path, tmp_path: Path, cached: list[Any]
) -> None:
    teacher, student = (write_detector(tmp_path / f"{noise}.pt", tiny_data, model, noise) for noise in (0.0, 0.1))
    out, progress = tmp_path / "out.pt", EpochLosses()
    files = (student, teacher, out, tiny_data, STEP, tmp_path / "one.cache", tmp_path / "one.training")
    done = recover_detector(*files, device="cpu", progress=progress)
    assert (done.epochs, done.updates) == (4, 4 * 3)
    assert views_agree(cached[0]) == {"one2many": True, "one2one": False}
    assert all(done.losses[-1][name] < 0.9 * value for name, value in done.losses[0].items())
    assert "features" in done.losses[0]
    assert [(name, epoch) for name, epoch, _ in progress.epochs] == [("recover", epoch) for epoch in range(4)]
    assert [values for _, _, values in progress.epochs] == list(done.losses)
    before, after = (load_checkpoint(path).model.state_dict() for path in (student, out))
    # Checkpoints are in half precision.
    changed = {name for name in before if not torch.equal(before[name].half(), after[name].half())}
    assert {
        f"model.{len(load_checkpoint(out).model.model) - 1}.{name}.0.2.weight" for name in heads(branches)
    } <= changed
    assert not [name for name in changed if "running" in name], "batch norms keep their statistics"


def views_agree(records: Any) -> dict[str, bool]:
    """Whether the records of each branch have the same logits in both views, but mirrored; False without a branch."""
    found = {"one2many": False, "one2one": False}
    grid = Grid(((8, 8), (4, 4), (2, 2)), (8.0, 16.0, 32.0))
    for name in found.keys() & set(records.dtype.names):
        one, other = (torch.from_numpy(records[name]["scores"][:, view].astype(np.float32)) for view in (0, 1))
        found[name] = torch.allclose(mirror(Predictions(one, torch.zeros(len(one), 4, 84)), grid).scores, other)
    return found


def heads(branches: int) -> list[str]:
    names = ["cv2", "cv3"]
    return names + [f"one2one_{name}" for name in names] * (branches == 2)


@pytest.fixture(scope="module")
def pair(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A disturbed detector, and the original."""
    folder = tmp_path_factory.mktemp("pair")
    return write_detector(folder / "student.pt", tiny_data, noise=0.3), write_detector(folder / "teacher.pt", tiny_data)


def test_the_teacher_is_asked_once_for_all_trainings(
    pair: tuple[Path, Path], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = []
    forward = UltralyticsTeacher.forward

    def counted(teacher: Any, batch: Any) -> Any:
        frames.append(len(batch))
        return forward(teacher, batch)

    monkeypatch.setattr(UltralyticsTeacher, "forward", counted)
    step = replace(STEP, epochs=1)
    losses = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.pt"
        files = (*pair, out, tiny_data, step, tmp_path / "one.cache", tmp_path / f"{name}.training")
        losses.append(recover_detector(*files, device="cpu").losses)
        assert sum(frames) == 2 * IMAGES + len(losses), "each view, and a blank frame for each training"
    assert losses[0] == losses[1]
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_killed_training_goes_on_after_its_last_epoch(
    pair: tuple[Path, Path], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = kill_third_epoch(monkeypatch)
    shared = (tiny_data, STEP, tmp_path / "one.cache")
    with pytest.raises(KilledError):
        recover_detector(*pair, tmp_path / "one.pt", *shared, tmp_path / "one.training", device="cpu")
    done = recover_detector(*pair, tmp_path / "one.pt", *shared, tmp_path / "one.training", device="cpu")
    assert epochs == [0, 1, 2, 2, 3]
    whole = recover_detector(*pair, tmp_path / "two.pt", *shared, tmp_path / "two.training", device="cpu")
    assert (done.updates, done.losses) == (whole.updates, whole.losses)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_so_many_images_are_used_at_even_distances(
    pair: tuple[Path, Path], tiny_data: Path, tmp_path: Path, cached: list[Any]
) -> None:
    step = replace(STEP, epochs=1, images=4, image_size=96)
    files = (*pair, tmp_path / "out.pt", tiny_data, step, tmp_path / "one.cache", tmp_path / "one.training")
    done = recover_detector(*files, device="cpu")
    assert done.updates == 1
    (records,) = cached
    assert records["frame"].shape == (4, 96, 96, 3)
    samples = load_dataset(tiny_data).split("train").samples
    for place, sample in enumerate(samples[::3]):
        frame = np.rint(letterbox(read_image(sample.image), Preprocess(96, 96))[0][0] * 255).transpose(1, 2, 0)
        assert np.array_equal(records["frame"][place], frame)


def test_a_teacher_of_another_kind_is_refused(pair: tuple[Path, Path], tiny_data: Path, tmp_path: Path) -> None:
    teacher = write_detector(tmp_path / "other.pt", tiny_data, classes=("red", "blue"))
    out, cache, state = (tmp_path / name for name in ("out.pt", "one.cache", "one.training"))
    with pytest.raises(SpecError, match=r"recover: classes of the teacher; expected \('red', 'green'\)"):
        recover_detector(pair[0], teacher, out, tiny_data, STEP, cache, state, device="cpu")
