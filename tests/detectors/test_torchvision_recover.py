"""Recovered detectors by torchvision: nearer to the original, without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_torchvision_detector import SIDE, SMALL
from test_torchvision_quant_aware import random_detector

from edgekd.compress.steps import Recover
from edgekd.core.errors import SpecError

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from edgekd.detectors.torchvision.network import TorchvisionNetwork, load_network, save_network  # noqa: E402
from edgekd.detectors.torchvision.recover import recover_detector  # noqa: E402

STEP = Recover(epochs=6, batch=6, learning_rate=1e-4, images=6)


@pytest.fixture(scope="module")
def original(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights."""
    path = tmp_path_factory.mktemp("original") / "original.tv.pt"
    random_detector(path, tiny_data)
    return path


def test_a_disturbed_detector_comes_nearer_to_the_original(original: Path, tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = load_network(original)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data += 0.1 * layer.weight.std() * torch.randn_like(layer.weight)
    student, out = tmp_path / "student.tv.pt", tmp_path / "out.tv.pt"
    save_network(network, student)
    done = recover_detector(
        student, original, out, tiny_data, STEP, tmp_path / "cache", tmp_path / "state", device="cpu"
    )
    assert (done.epochs, done.updates) == (6, 6)
    assert sum(done.losses[-1].values()) < sum(done.losses[0].values())
    before, after = network.model.state_dict(), load_network(out).model.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name for name in changed if "backbone" in name and name.endswith("weight")]
    assert not [name for name in changed if "running" in name], "batch norms keep their statistics"


@pytest.mark.parametrize(
    ("step", "classes", "message"),
    [
        (STEP, ("red", "blue"), "classes of the teacher"),
        (Recover(image_size=640), ("red", "green"), "its own, 64x64"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    step: Recover, classes: tuple[str, ...], message: str, original: Path, tiny_data: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student.tv.pt"
    save_network(TorchvisionNetwork(SMALL, classes, (SIDE, SIDE)), student)
    with pytest.raises(SpecError, match=message):
        recover_detector(
            student,
            original,
            tmp_path / "out.tv.pt",
            tiny_data,
            step,
            tmp_path / "cache",
            tmp_path / "state",
            device="cpu",
        )
