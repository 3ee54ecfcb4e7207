"""Training and compression of torchvision's detectors without any package under the AGPL."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import distributions, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import build_command

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("torch_pruning")

REFUSAL = """
import importlib
import runpy
import sys

class Refusal:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ImportError(f"{{name}} is under the AGPL")

def run_here(function, arguments, *_, **__):
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)(*arguments)

sys.meta_path.insert(0, Refusal)
from edgekd.core import limited_process
limited_process.run_limited = run_here
runpy.run_path({briefly!r})
"""
"""Content of a module that Python imports first.

Children with limits start isolated, without this module: what they do is done in the process of the build.
"""
RECIPE = """
name = "all"
[[steps]]
kind = "prune"
ratio = 0.3
images = 4
batch = 2
[[steps]]
kind = "recover"
epochs = 1
images = 4
[[steps]]
kind = "distill"
epochs = 1
batch = 4
[[steps]]
kind = "quantize"
[[steps]]
kind = "quant_aware_distill"
epochs = 1
batch = 4
"""


def agpl_packages() -> set[str]:
    """Return the installed packages that say that they are under the AGPL."""
    names = set()
    for each in distributions():
        fields = ("License", "License-Expression", "Classifier")
        licences = [str(value) for field in fields for value in each.metadata.get_all(field) or ()]
        # A long text is that of all licences of bundled libraries.
        if any("AGPL" in text or "Affero" in text for text in licences if len(text) < 200):
            names.add(each.metadata["Name"])
    return names


def agpl_modules() -> list[str]:
    """Return the modules of these packages."""
    names = agpl_packages()
    return sorted(module for module, owners in packages_distributions().items() if names & {*owners})


def installed_with(extra: str) -> set[str]:
    """Return the packages that `pip install edgekd[extra]` installs, as far as they are installed here."""
    here = {canonicalize_name(each.metadata["Name"]) for each in distributions()}
    pending, seen = [("edgekd", extra)], set[tuple[str, str]]()
    while pending:
        package = pending.pop()
        if package in seen or package[0] not in here:
            continue
        seen.add(package)
        for each in map(Requirement, requires(package[0]) or ()):
            if not each.marker or each.marker.evaluate({"extra": package[1]}):
                pending += [(canonicalize_name(each.name), name) for name in ("", *each.extras)]
    return {name for name, _ in seen}


def test_the_extra_for_torchvision_installs_no_agpl_package() -> None:
    licensed = {canonicalize_name(name) for name in agpl_packages()}
    assert {"torch", "torch-pruning", "torchvision"} <= installed_with("torchvision")
    assert not installed_with("torchvision") & licensed
    assert "ultralytics" in installed_with("train") & licensed or not find_spec("ultralytics")


@pytest.mark.slow
def test_no_agpl_package_is_needed_to_compress_and_train_a_detector(tiny_data: Path, tmp_path: Path) -> None:
    from edgekd.detectors.torchvision.network import TorchvisionNetwork, save_network

    torch.manual_seed(0)
    model, recipe = tmp_path / "small.tv.pt", tmp_path / "all.toml"
    save_network(TorchvisionNetwork("ssdlite320_mobilenet_v3_large", ("red", "green"), (64, 64)), model)
    recipe.write_text(RECIPE, "ascii")
    modules = agpl_modules()
    assert "ultralytics" in modules or not find_spec("ultralytics")
    briefly = str(Path(__file__).parent / "timed_briefly" / "sitecustomize.py")
    (tmp_path / "sitecustomize.py").write_text(REFUSAL.format(modules=modules, briefly=briefly), "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = build_command(model, tiny_data, tmp_path / "out", "--recipe", str(recipe), "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_bytes())
    steps = {"prune", "recover", "distill", "quantize", "quant_aware_distill"}
    assert steps <= {stage["name"] for stage in ledger["stages"]}
