"""The page on extending edgekd: its diffs apply to the code as it is, its packages work once they are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from extending_page import SECTIONS, blocks, diff_of, file_of, install, install_from_page
from onnx import numpy_helper
from running import DEVICE, EdgeKD

from edgekd.builds.recipe import load_recipe
from edgekd.core.bundle.archive import verify
from edgekd.core.errors import SpecError
from edgekd.graph.runtimes import runtime_named
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.hardware.target import load_target

ROOT = Path(__file__).resolve().parents[1]
FLAG, FAMILY, STEP, RUNTIME, TARGET = SECTIONS
ADDED = {
    "edgekd/detectors/toy/family.py": (FAMILY, "toy_family.py"),
    "edgekd/builds/clip.py": (STEP, "toy_clip.py"),
    "edgekd/graph/runtimes/reference.py": (RUNTIME, "toy_runtime.py"),
}
"""Files that the page adds within edgekd."""
BUILD = """
import sys
import edgekd
from edgekd.builds.step_kinds import step_kinds
from edgekd.core.benchmark import benchmark_interleaved
from edgekd.detectors.family import families
from edgekd.graph.runtimes import runtime_named
assert [kind.name for kind in step_kinds()][-3] == "clip"
assert families()[-1].name == "toy" and runtime_named("onnx-reference").version()
benchmark_interleaved.__kwdefaults__["min_seconds"] = 0.2
model, data, out = sys.argv[1:]
done = edgekd.build(model, data, target="cpu", device="local:onnxruntime-cpu", out=out, analysis=False)
assert "pack" in [stage.name for stage in done.stages]
assert "analyse" not in [stage.name for stage in done.stages]
"""


@pytest.mark.parametrize(("section", "most"), [(FLAG, 4), (FAMILY, 4), (STEP, 5), (RUNTIME, 3)])
def test_an_addition_touches_few_files(section: str, most: int) -> None:
    added = [path for path, source in ADDED.items() if source[0] == section]
    assert 1 <= len(diff_of(section)) + len(added) <= most


def test_the_diffs_apply_to_the_package_which_then_has_all_that_they_add(
    tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "edgekd"
    shutil.copytree(ROOT / "edgekd", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "targets").symlink_to(ROOT / "targets")
    for section in (FLAG, FAMILY, STEP, RUNTIME):
        for path, hunks in diff_of(section).items():
            text = (tmp_path / path).read_text("utf-8")
            for before, after in hunks:
                assert text.count(before) == 1, f"{section}: {path} has other lines than\n{before}"
                text = text.replace(before, after)
            (tmp_path / path).write_text(text, "utf-8")
    for path, source in ADDED.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(file_of(*source), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", BUILD, str(tiny_model), str(tiny_data), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_step_and_a_family_of_other_packages_are_built_stored_and_reported(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_from_page(STEP, "toy_clip", tmp_path, monkeypatch)
    install_from_page(FAMILY, "toy_family", tmp_path, monkeypatch)
    model, recipe, out = tmp_path / "one.toy", tmp_path / "clipped.toml", tmp_path / "out"
    shutil.copyfile(tiny_model, model)
    recipe.write_text(blocks(STEP, "toml")[1], "utf-8")
    command = ("build", model, "--data", tiny_data, "--target", "cpu", "--recipe", recipe, "--out", out, *DEVICE)
    ran = edgekd(*command, "--json")
    assert ran.code == 0, ran.err
    names = [stage["name"] for stage in ran.json["stages"]]
    assert names.index("score-fp32") < names.index("clip") < names.index("quantize")

    (record,) = (json.loads(path.read_bytes()) for path in out.glob("stages/clip-*/stage.json"))
    assert record["inputs"]["step"] == {"limit": 8.0}
    assert record["results"]["clipped"] == 2
    graph = onnx.load(next(out.glob("stages/clip-*/graph.onnx")))
    weights = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    assert float(weights["p4.weight"].max()) == 8.0
    row = next(row for row in json.loads((out / "ledger.json").read_bytes())["stages"] if row["name"] == "clip")
    assert row["files"].keys() == {"graph.onnx"}
    manifest = verify(out / "one-cpu.edgekd")
    assert (manifest.lineage.recipe, row["key"]) == ("clipped", dict(manifest_stages(manifest))["clip"])
    assert "2 weights clipped" in (out / "report.html").read_text("utf-8")
    page = edgekd("report", out, "--json")
    assert page.code == 0, page.err
    assert len(page.json["layers"]) == 6
    again = edgekd(*command, "--json")
    assert all(stage["cached"] for stage in again.json["stages"]), "it is found in the store"


def manifest_stages(manifest: Any) -> list[tuple[str, str]]:
    """Names and keys of the stages that a bundle follows from."""
    return [(stage.name, stage.key) for stage in manifest.lineage.stages]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"kind": "clip", "limit": 0}], "clip: limit; expected more than 0"),
        ([{"kind": "clip", "limits": 1}], "did you mean 'limit'"),
        ([{"kind": "quantize"}, {"kind": "clip"}], "distill, clip, quantize"),
        ([{"kind": "clip"}, {"kind": "clip"}], "found clip, clip"),
        ([{"kind": "clap"}], "distill or clip or quantize"),
    ],
)
def test_a_mistake_in_the_settings_of_another_packages_step_is_named(
    steps: list[dict[str, Any]], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="resize or prune"):
        load_recipe({"name": "own", "steps": [{"kind": "clip"}]})
    install_from_page(STEP, "toy_clip", tmp_path, monkeypatch)
    with pytest.raises(SpecError, match=words):
        load_recipe({"name": "own", "steps": steps})


def test_quantize_alone_runs_no_step_of_another_package(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_from_page(STEP, "toy_clip", tmp_path, monkeypatch)
    recipe = tmp_path / "own.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "clip"\n[[steps]]\nkind = "quantize"\n', "utf-8")
    ran = edgekd("quantize", tiny_model, "--data", tiny_data, "--recipe", recipe, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "recipe own clips weights; fix: leave that to `edgekd build`" in ran.err


def test_a_step_that_two_packages_declare_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_from_page(STEP, "toy_clip", tmp_path, monkeypatch)
    files = {"other_clip.py": file_of(STEP, "toy_clip.py")}
    install(tmp_path / "other", monkeypatch, "other", files, {"edgekd.steps": "other_clip:STEP"})
    with pytest.raises(SpecError, match=r"step clip is declared twice; found .*other_clip"):
        load_recipe("ptq")


def test_a_runtime_of_another_package_runs_graphs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_from_page(RUNTIME, "toy_runtime", tmp_path, monkeypatch)
    batch = np.random.default_rng(0).uniform(0, 1, (1, 3, 64, 64)).astype(np.float32)
    outputs = []
    for engine in (runtime_named("onnx-reference"), ONNXRUNTIME_CPU):
        with engine.load(tiny_model) as session:
            assert session.outputs == ("output0",)
            outputs.append(session.run(batch))
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def test_the_target_of_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(file_of(TARGET, "gate.toml"), "utf-8")
    target = load_target(tmp_path / "gate.toml")
    assert (target.name, target.kind, target.budget.max_bytes) == ("gate", "cpu", 4_000_000)
