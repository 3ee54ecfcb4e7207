"""A torchvision detector that takes all memory is refused, and the process goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.core.errors import SpecError
from edgekd.core.limited_process import run_limited
from edgekd.graph import rehearsal

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from edgekd.detectors.torchvision.network import TorchvisionNetwork, load_network, save_network  # noqa: E402

SMALL = "ssdlite320_mobilenet_v3_large"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rehearsal, "run_limited", run_limited)
    monkeypatch.setattr(rehearsal, "_records", lambda: tmp_path / "rehearsed")
    save_network(TorchvisionNetwork(SMALL, ("red", "green"), (64, 64)), tmp_path / "small.tv.pt")
    return tmp_path / "small.tv.pt"


def test_layers_that_share_one_large_tensor_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets memory of its own when the network is built: 200 of 4 MB from one of 4 MB."""
    monkeypatch.setattr(rehearsal, "MEMORY_BYTES", 1 << 28)
    shared: Any = torch.zeros(1 << 20)
    content = torch.load(path, weights_only=True)
    for name, value in content["state_dict"].items():
        if value.ndim == 4:
            content["state_dict"][name] = shared.view(-1, 1, 1, 1)
    torch.save(content, path)
    with pytest.raises(SpecError, match="memory"):
        load_network(path)


@pytest.mark.slow
def test_an_ordinary_network_passes(path: Path) -> None:
    assert load_network(path).classes == ("red", "green")
