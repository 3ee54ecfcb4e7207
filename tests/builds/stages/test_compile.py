"""What TensorRT for RTX is asked about a graph, and what it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgekd.builds.stages import compile as compile_module
from edgekd.builds.stages.compile import compile_graph
from edgekd.graph.runtimes.types import Availability
from edgekd.hardware.target import load_target


class AskedError(Exception):
    """The parser was asked."""


class PresentCompiler:
    """TensorRT for RTX as if it were installed, which must not be asked."""

    def available(self) -> Availability:
        return Availability(True, "")

    def version(self) -> str:
        return "1.7.1"


@pytest.fixture
def graph(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_model, tmp_path / "graph.onnx"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AskedError

    monkeypatch.setattr(compile_module, "TENSORRT_RTX", PresentCompiler())
    monkeypatch.setattr(compile_module, "compile_ahead", ask)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "version"), [("nano", "8.2.1"), ("tx2", "8.2.1"), ("xavier", "8.5.2"), ("xavier-nx", "8.5.2")]
)
def test_it_has_no_say_about_graphs_for_tensorrt_8(graph: Path, tmp_path: Path, name: str, version: str) -> None:
    """It takes INT8 constants, for one, which TensorRT 8 refuses (NVIDIA/TensorRT issue 2163)."""
    target = load_target(name)
    made = compile_graph(graph, target, tmp_path)
    assert made.how == "deferred to install"
    assert made.check == f"not run: it says nothing of TensorRT before 10, and the {target.title} has {version}"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["agx-orin", "orin-nx", "orin-nano", "thor"])
def test_it_is_asked_about_graphs_for_tensorrt_10(graph: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(AskedError):
        compile_graph(graph, load_target(name), tmp_path)
