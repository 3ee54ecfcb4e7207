"""The programs in `examples/`, each run at a small scale."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import Built

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run an example in this process: what it returns, and what it prints on stdout."""

    def run(name: str, *arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = loaded(name).main([str(argument) for argument in arguments])
        return code, capsys.readouterr().out

    return run


def loaded(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_example_is_listed() -> None:
    page = (ROOT / "docs" / "guides" / "python.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        if path.name != "__pycache__":
            link = f"{path.name}/README.md" if path.is_dir() else path.name
            assert f"(../../examples/{link})" in page, path.name


def test_quantize_to_size(
    example: Callable[..., tuple[int, str]], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    wanted = ("--data", tiny_data, "--keep", 0.9, "--out", tmp_path / "out", "--sizes")
    code, out = example("quantize_to_size", tiny_model, *wanted, "3kB", "2kB", "100B")
    assert code == 0
    assert len([line for line in out.splitlines() if "keeps" in line]) == 3
    assert "take 2kB" in out, "100 bytes is less than any plan takes"
    assert (tmp_path / "out" / "graph.packed").stat().st_size <= 2000
    code, out = example("quantize_to_size", tiny_model, *wanted, "100B")
    assert code == 1
    assert "no size keeps 90.0%" in out


def test_choose_a_target(example: Callable[..., tuple[int, str]], tiny_model: Path) -> None:
    code, out = example("choose_a_target", tiny_model, "--fps", 60, "--targets", "xavier", "orin-nano", "cpu")
    assert code == 0
    assert "take " in out
    assert "cannot be predicted" in next(line for line in out.splitlines() if line.startswith("cpu"))
    code, out = example("choose_a_target", tiny_model, "--fps", 1e9, "--targets", "xavier")
    assert code == 1
    assert "none makes" in out


def test_the_target_with_the_least_energy_is_chosen_of_those_that_are_quick_enough() -> None:
    module = loaded("choose_a_target")

    def device(name: str, high_ms: float | None, energy_mj: float | None) -> Any:
        return module.Candidate(name, name, "int8", high_ms and high_ms / 2, high_ms, energy_mj)

    devices = [device("hot", 1, 50), device("cool", 10, 5), device("slow", 20, 1), device("dark", None, None)]
    assert module.best(devices, 60).name == "cool"
    assert module.best(devices, 200).name == "hot"
    assert module.best(devices, 2000) is None
    assert module.best([device("unknown", 1, None), device("hot", 1, 50)], 60).name == "hot"


def test_gate_a_model(
    example: Callable[..., tuple[int, str]], tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_build.out, tmp_path / "out")  # so that its stages need not be done again
    wanted = (tiny_model, "--data", tiny_data, "--before", tiny_build.out, "--out", tmp_path / "out")
    code, out = example("gate_a_model", *wanted)
    assert code == 0, out
    assert "no class is worse than before" in out
    assert "may go: " in out
    code, out = example("gate_a_model", *wanted, "--max-size", "1kB", "--class-loss", -0.01)
    assert code == 1
    assert "bundle size: " in out
    assert "missed" in out
    assert "class red: mAP50-95 was" in out
    assert "refused" in out


def test_convert_everywhere(
    example: Callable[..., tuple[int, str]], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    code, out = example("convert_everywhere", tiny_model, "--data", tiny_data, "--out", tmp_path)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["onnx", "openvino", "ncnn"]
    assert code == 0, out
    assert (tmp_path / "tiny.onnx").is_file()
    assert (tmp_path / "tiny-openvino" / "edgekd.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_smaller_detector(example: Callable[..., tuple[int, str]], tiny_data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    torch.manual_seed(0)
    network = student_network(Distill("yolov3-tiny.yaml", width=0.125), ("red", "green"), trust=False)
    torch.save({"model": network.half(), "train_args": {"imgsz": 64}}, tmp_path / "detector.pt")
    (tmp_path / "quick.toml").write_text(
        'name = "quick"\n[[steps]]\nkind = "distill"\nbatch = 6\nimage_size = 64\nwarmup_steps = 0\n'
        '[[steps.stages]]\nname = "all"\nshare = 1\nweights = { classes = 1 }\n'
    )
    wanted = ("--data", tiny_data, "--out", tmp_path / "out", "--target", "xavier", "--ratios", 0.3)
    code, out = example(
        "smaller_detector", tmp_path / "detector.pt", *wanted, "--epochs", 1, "--recipe", tmp_path / "quick.toml"
    )
    assert code == 0
    assert out.splitlines()[-1].startswith("30%: ")
    assert (tmp_path / "out" / "0.3" / "int8" / "graph.packed").is_file()
