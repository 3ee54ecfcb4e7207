"""Families of detectors: recognised by name, refused where they lack a capability, added from outside the package."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from extending_page import install_from_page
from tiny import write_model

from edgekd.builds.recipe import Recipe, refuse_recipe
from edgekd.builds.stages import resize
from edgekd.builds.stages.base import StageContext
from edgekd.compress.steps import Prune, QuantAwareDistill, Resize
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT
from edgekd.detectors import load
from edgekd.detectors.family import Family, Imported, families, family_of, require_family, student_family
from edgekd.hardware.budget import Budget


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector's file of a family in another installed package, the one of docs/guides/extend.md."""
    install_from_page("A detector family", "toy_family", tmp_path, monkeypatch)
    return write_model(tmp_path / "one.toy")


@pytest.mark.parametrize(
    ("name", "family"),
    [("a.pt", "ultralytics"), ("a.tv.pt", "torchvision"), ("b/a.onnx", "onnx"), ("a.toy", None), ("pt", None)],
)
def test_a_file_is_of_the_family_with_the_longest_suffix(name: str, family: str | None) -> None:
    found = family_of(Path(name))
    assert (found and found.name) == family


@pytest.mark.parametrize(
    ("student", "family"),
    [
        ("yolo11n.yaml", "ultralytics"),
        ("yolo11n", "ultralytics"),
        (None, "ultralytics"),
        ("own/student.pt", "ultralytics"),
        ("own/student.tv.pt", "torchvision"),
        ("torchvision/fcos_resnet50_fpn", "torchvision"),
        ("fcos_resnet50_fpn", "torchvision"),
    ],
)
def test_a_student_is_of_the_family_of_its_file_or_model(student: str | None, family: str) -> None:
    assert student_family(student).name == family


def test_a_missing_capability_names_the_families_that_have_it() -> None:
    with pytest.raises(SpecError, match="factorize: not for detectors by torchvision") as caught:
        require_family("a.tv.pt").capability("factorize")
    assert "a detector by Ultralytics" in str(caught.value)


@pytest.mark.parametrize("name", [entry.name for entry in fields(Family) if "Callable" in str(entry.type)])
def test_a_capability_takes_the_same_arguments_in_each_family(name: str) -> None:
    """Call sites pass them by position; those that a family does not list it must take as further keywords."""
    pytest.importorskip("ultralytics")
    pytest.importorskip("torch_pruning")
    orders = []
    for family in families():
        stand_in = getattr(family, name)
        if not isinstance(stand_in, Imported):
            continue
        if family.name in ("libreyolo", "rfdetr") and find_spec(family.name) is None:  # see `make test-release`
            continue
        module, _, function = stand_in.reference.partition(":")
        signature = inspect.signature(getattr(import_module(module), function))
        orders.append([each.name for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD])
    longest = max(orders, key=len)
    assert all(order == longest[: len(order)] or name == "load" for order in orders)


def test_a_missing_library_of_a_family_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "rfdetr", None)
    monkeypatch.delitem(sys.modules, "edgekd.detectors.rfdetr.detector", raising=False)
    (tmp_path / "best.pth").touch()
    with pytest.raises(SpecError, match=r"a checkpoint of RF-DETR, needs PyTorch and rfdetr.*edgekd\[rfdetr\]"):
        load(tmp_path / "best.pth")


def test_a_family_of_another_package_is_used_like_any(toy: Path, tmp_path: Path) -> None:
    detector = load(toy)
    assert detector.family == "toy"
    assert detector.export(tmp_path / "graph.onnx", 17).classes
    assert student_family("toy-small").name == "toy"
    context = StageContext.within(tmp_path / "out", False, SILENT)
    done = resize.run(context, Resize(96), toy)
    assert resize.resized_file(toy) == "resized.toy"
    assert (done.path / "resized.toy").read_bytes() == toy.read_bytes()
    assert done.result.size == ((64, 64), (96, 96))


def test_a_family_of_another_package_is_offered_what_it_has_alone(toy: Path) -> None:
    refuse_recipe(Recipe("own", (Resize(96),)), Budget(), toy)
    with pytest.raises(SpecError, match="removes channels; expected a detector by Ultralytics or torchvision"):
        refuse_recipe(Recipe("own", (Prune(),)), Budget(), toy)
    with pytest.raises(SpecError, match="a detector by Ultralytics or Toys"):
        refuse_recipe(Recipe("own", (Resize(96),)), Budget(), Path("a.tv.pt"))
    with pytest.raises(SpecError, match=r"expected \.pt or \.onnx or \.safetensors or \.pth or \.toy"):
        require_family("a.other")
    with pytest.raises(SpecError, match="a detector by Ultralytics or torchvision;"):
        refuse_recipe(Recipe("own", (QuantAwareDistill(),)), Budget(), toy)
