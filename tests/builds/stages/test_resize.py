"""The step `resize`: a detector at another size of its input, in a build and before other steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from random_detector import write_detector
from running import EdgeKD
from test_cli import assert_refused

from edgekd.builds.recipe import load_recipe, recipe_from, refuse_recipe
from edgekd.core.bundle.archive import verify
from edgekd.core.errors import SpecError
from edgekd.hardware.budget import Budget

pytest.importorskip("ultralytics")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
RESIZE = 'name = "small"\n[[steps]]\nkind = "resize"\nimage_size = {size}\n[[steps]]\nkind = "quantize"\n'


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"), "yolov3-tiny.yaml", 0.125, 64)


@pytest.mark.slow
def test_a_resized_detector_ships_at_its_size_and_is_compared_with_what_it_was(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(RESIZE.format(size=96), "utf-8")
    flags = ("--data", tiny_data, "--out", tmp_path / "out", "--recipe", tmp_path / "small.toml")
    ran = edgekd("build", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    names = [stage["name"] for stage in ran.json["stages"]]
    assert names.index("score-fp32") < names.index("resize") < names.index("quantize")
    assert names.count("export") == 2, "before, and at its new size"
    manifest = verify(tmp_path / "out" / "detector-xavier.edgekd")
    assert (manifest.detector["preprocess"]["height"], manifest.detector["preprocess"]["width"]) == (96, 96)
    (record,) = (tmp_path / "out").glob("stages/resize-*/stage.json")
    assert json.loads(record.read_bytes())["results"]["size"] == [[64, 64], [96, 96]]
    assert manifest.lineage.student_sha256 is not None


@pytest.mark.parametrize("model", ["detector.onnx", "detector.tv.pt"])
def test_what_has_one_size_is_not_resized(model: str) -> None:
    recipe = recipe_from({"name": "small", "steps": [{"kind": "resize", "image_size": 96}]}, "small.toml")
    with pytest.raises(SpecError, match="resizes the input"):
        refuse_recipe(recipe, Budget(), Path(model))


def test_a_size_is_above_nothing_and_comes_first() -> None:
    with pytest.raises(SpecError, match="image_size"):
        recipe_from({"name": "small", "steps": [{"kind": "resize", "image_size": 0}]}, "small.toml")
    steps = [{"kind": "quantize"}, {"kind": "resize", "image_size": 96}]
    with pytest.raises(SpecError, match="in this order"):
        recipe_from({"name": "small", "steps": steps}, "small.toml")


def test_quantize_alone_does_not_resize(edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(RESIZE.format(size=96), "utf-8")
    flags = ("--data", tiny_data, "--out", tmp_path / "out", "--recipe", tmp_path / "small.toml")
    assert_refused(edgekd("quantize", detector, *flags), "resizes the input", "edgekd build")


def test_the_recipes_that_train_a_student_or_what_pruning_left() -> None:
    distil, full = load_recipe("distil-qad"), load_recipe("full")
    assert [type(step).__name__ for step in distil.steps] == ["Distill", "Quantize", "QuantAwareDistill"]
    assert [type(step).__name__ for step in full.steps] == ["Prune", "Recover", "Quantize", "QuantAwareDistill"]
    refuse_recipe(full, Budget(min_retention=0.9), Path("detector.pt"))
    with pytest.raises(SpecError, match="names none"):
        refuse_recipe(distil, Budget(min_retention=0.9), Path("detector.pt"))


def test_a_student_is_named_on_the_command_line(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data, "--out", tmp_path / "out", "--keep", "90%")
    assert_refused(edgekd("build", detector, *flags, "--student", "yolo11n.yaml"), "no step distill")
    missing = ("--recipe", "distil-qad", "--student", tmp_path / "nowhere.pt")
    assert_refused(edgekd("build", detector, *flags, *missing), "nowhere.pt")
