"""The main job as a whole: what it leaves behind, what it does not do twice, and that nothing disturbs its bytes."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny
from running import BRIEFLY, Built, EdgeKD, build_command

from edgekd.builds import pipeline
from edgekd.core.bundle.archive import extract, verify
from edgekd.core.canonical import file_sha256
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.formats.packed_graph import unpack
from edgekd.core.formats.plain_graph import plain_graph

STAGES = [
    "export",
    "check-fp32",
    "score-fp32",
    "encode-fp32",
    "calibrate",
    "quantize",
    "check-int8",
    "score-int8",
    "encode-int8",
    "drift",
    "compile",
    "benchmark",
    "analyse",
    "pack",
]
ROOT = Path(__file__).resolve().parents[2]
DATA = {"BuildRecord", "BuildRequest", "BuildResult", "MachineRecord", "SpecError", "Dataset", "Signer", "Progress"}
"""Names in the pipeline that are no functions of other modules."""
RESULTS = {
    ".progress.lock",
    "calibration.toml",
    "graph.onnx",
    "graph.packed",
    "ledger.json",
    "progress.json",
    "report.html",
    "stages",
    "tiny-xavier.edgekd",
}


def calls_of(function: ast.FunctionDef, known: set[str]) -> list[str]:
    """The calls of known names in a function, in their order."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = [(node.end_lineno, node.end_col_offset, ast.unparse(node.func)) for node in calls]
    return [name for _, _, name in sorted(names) if name.split(".")[0] in known]


def module_of(package: str, name: str) -> str:
    """The module that is or holds an imported name."""
    return f"{package}.{name}" if (ROOT / package.replace(".", "/") / f"{name}.py").is_file() else package


def test_the_pipeline_calls_each_module_at_most_twice_in_the_documented_order() -> None:
    tree = ast.parse(Path(pipeline.__file__).read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgekd")
    ]
    modules = {
        alias.asname or alias.name: module_of(str(node.module), alias.name)
        for node in imports
        for alias in node.names
        if alias.name not in DATA
    }
    own = {function.name for function in functions}
    path = {function.name: calls_of(function, own | modules.keys()) for function in functions}
    page = (ROOT / "docs" / "concepts" / "build-stages.md").read_text("utf-8")
    listed = re.search(r"```text call-path\n(.*?)```", page, re.DOTALL)
    assert listed
    assert listed[1].splitlines() == [f"{name}: {', '.join(calls)}" for name, calls in path.items()]
    count = Counter(modules[name.split(".")[0]] for calls in path.values() for name in calls if name not in own)
    assert max(count.values()) == 2
    assert Counter(name for calls in path.values() for name in calls if name in own).most_common(1)[0][1] == 1
    loops = (ast.For, ast.While, ast.comprehension)
    repeated = [
        call
        for node in ast.walk(tree)
        if isinstance(node, loops)
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
    ]
    assert {ast.unparse(call.func) for call in repeated} <= {"check_request", "SpecError"}, "no stage runs in a loop"


def ledger(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "ledger.json").read_bytes())
    return document


def build_killed_after(words: str, delay_s: float, *arguments: object) -> None:
    """Start a build in a process of its own and kill it without warning, `delay_s` after its line with `words`."""
    command = [sys.executable, "-m", "edgekd", "build", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any(line.startswith(words) for line in process.stderr), f"no line with {words!r}"
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.stderr.read()
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"


# --------------------------------------------------------------------------------------------------- what it leaves


def test_a_build_leaves_bundle_report_ledger_graph_and_calibration_set(tiny_build: Built) -> None:
    assert {path.name for path in tiny_build.out.iterdir()} == RESULTS
    assert [stage["name"] for stage in tiny_build.json["stages"]] == STAGES


def test_the_ledger_says_what_every_stage_took_and_gave(tiny_build: Built, tiny_model: Path) -> None:
    document = ledger(tiny_build.out)
    stages = {stage["name"]: stage for stage in document["stages"]}
    assert list(stages) == STAGES
    assert (document["model"], document["target"], document["bundle"]) == ("tiny.onnx", "xavier", "tiny-xavier.edgekd")
    assert document["lineage"]["model_sha256"] == file_sha256(tiny_model)
    assert stages["benchmark"]["seconds"] > 0
    assert all(not stage["cached"] and len(stage["key"]) == 64 for stage in stages.values())
    assert stages["quantize"]["files"]["graph.onnx"] == file_sha256(tiny_build.out / "graph.onnx")
    assert stages["pack"]["files"]["bundle.edgekd"] == file_sha256(tiny_build.bundle)
    for label, name in (("fp32", "before"), ("int8", "after")):
        evidence = getattr(verify(tiny_build.bundle).evidence, name)
        assert stages[f"score-{label}"]["map50_95"] == evidence.map50_95
        assert stages[f"score-{label}"]["map50"] == evidence.map50


def test_the_graph_that_ships_is_int8_and_still_finds_the_squares(tiny_build: Built) -> None:
    model = onnx.load(tiny_build.out / "graph.onnx")
    stored = {initializer.name: initializer.data_type for initializer in model.graph.initializer}
    weights = [name for name, kind in stored.items() if kind == onnx.TensorProto.INT8 and name.endswith("/int8")]
    assert len(weights) == 3, "the three convolutions before the head"
    score = verify(tiny_build.bundle).evidence
    assert score.before.map50 == 1.0
    assert score.after.map50 > 0.99
    assert 0.6 < score.after.map50_95 < 0.9


def test_the_bundle_scores_what_its_evidence_says(edgekd: EdgeKD, tiny_build: Built, tiny_data: Path) -> None:
    found = edgekd("eval", tiny_build.bundle, "--data", tiny_data, "--split", "val", "--json").json
    said = verify(tiny_build.bundle).evidence
    assert (found["map50_95"], found["map50"]) == (said.after.map50_95, said.after.map50)
    assert found["images"] == said.images == 8


def test_the_bundle_carries_the_files_that_lie_beside_it(tiny_build: Built) -> None:
    packed = {entry.path: entry.sha256 for entry in verify(tiny_build.bundle).files}
    assert set(packed) == {
        "agent.pyz",
        "calibration.cache",
        "calibration.toml",
        "evidence.json",
        "golden.set",
        "graph.packed",
        "labels.txt",
        "sbom.cdx.json",
    }
    for name in ("graph.packed", "calibration.toml"):
        assert packed[name] == file_sha256(tiny_build.out / name)


def test_the_calibration_cache_has_a_scale_for_every_activation(tiny_build: Built, tmp_path: Path) -> None:
    extract(tiny_build.bundle, tmp_path / "bundle")
    scales = from_text((tmp_path / "bundle" / "calibration.cache").read_text("ascii"))
    plain = plain_graph((tiny_build.out / "graph.onnx").read_bytes())
    assert missing_scales(plain.onnx, scales) == ()
    assert plain.scales.items() <= scales.items()
    counts = {"activations": len(scales), "missing": 0}
    assert tiny_build.json["calibration_cache"] == counts
    assert json.loads((tiny_build.out / "ledger.json").read_bytes())["calibration_cache"] == counts
    assert f"scales of {len(scales)} activations, 0 missing" in (tiny_build.out / "report.html").read_text("utf-8")


def test_a_budget_counts_the_whole_bundle(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    size, out = tiny_build.bundle.stat().st_size, shutil.copytree(tiny_build.out, tmp_path / "out")
    for limit, met in ((size, True), (size - 1, False)):
        flags = ("--data", tiny_data, "--out", out, "--recipe", "ptq", "--max-size", limit)
        assert edgekd("build", tiny_model, *flags, "--json").json["met"] is met


def test_the_report_travels_only_where_it_is_asked_for(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--bundle-report", "--json")
    assert [stage["name"] for stage in ran.json["stages"] if not stage["cached"]] == ["report", "pack"]
    (report,) = [entry for entry in verify(Path(ran.json["bundle"])).files if entry.role == "report"]
    extract(Path(ran.json["bundle"]), tmp_path / "bundle")
    page = (tmp_path / "bundle" / report.path).read_text("utf-8")
    assert "<html" in page
    assert str(out) not in page


def test_the_graph_in_the_bundle_expands_to_the_one_that_was_scored(tiny_build: Built) -> None:
    (entry,) = [entry for entry in verify(tiny_build.bundle).files if entry.role == "graph"]
    packed = (tiny_build.out / entry.path).read_bytes()
    scored = ledger(tiny_build.out)["stages"][5]["files"]["graph.onnx"]
    assert hashlib.sha256(unpack(packed)).hexdigest() == scored == file_sha256(tiny_build.out / "graph.onnx")
    assert verify(tiny_build.bundle).evidence.after.bytes == len(packed) == entry.length


def test_a_packed_graph_is_scored_like_the_bundle_it_is_in(edgekd: EdgeKD, tiny_build: Built, tiny_data: Path) -> None:
    scores = [
        edgekd("eval", artifact, "--data", tiny_data, "--json").json["map50_95"]
        for artifact in (tiny_build.bundle, tiny_build.out / "graph.packed")
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("recipe", "precision"), [("ptq", "int8"), pytest.param("float", "fp16", marks=pytest.mark.slow)]
)
def test_what_is_not_quantized_ships_in_float16_where_the_builder_is_strongly_typed(
    edgekd: EdgeKD, recipe: str, precision: str, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("--target", "rtx-40", "--recipe", recipe, "--out", out)
    found = edgekd("build", tiny_model, "--data", tiny_data, *asked, "--json").json
    stages = {stage["name"]: stage for stage in ledger(out)["stages"]}
    assert {"half", f"check-{precision}", f"score-{precision}", f"encode-{precision}"} <= stages.keys()
    graph = unpack((out / "graph.packed").read_bytes())
    assert hashlib.sha256(graph).hexdigest() == stages["half"]["files"]["graph.onnx"]
    kinds = {each.data_type for each in onnx.load_from_string(graph).graph.initializer if each.dims}
    assert onnx.TensorProto.FLOAT16 in kinds
    again = edgekd("eval", out / "tiny-rtx-40.edgekd", "--data", tiny_data, "--json").json
    assert again["map50_95"] == stages[f"score-{precision}"]["map50_95"]
    assert found["stages"][-1]["name"] == "pack"


def test_the_bundle_says_nothing_of_the_machine_it_was_made_on(tiny_build: Built) -> None:
    host = ledger(tiny_build.out)["host"]
    content = tiny_build.bundle.read_bytes()
    for word in (str(tiny_build.out), str(Path.home()) + "/", host["cpu"], host["kernel"]):
        assert word.encode() not in content


# ------------------------------------------------------------------------------------------- nothing is done twice


def test_a_second_identical_build_does_no_work_and_leaves_the_same_bundle(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    (out / "plan.toml").write_text("of an earlier build by another recipe", "utf-8")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--json")
    assert all(stage["cached"] for stage in ran.json["stages"])
    assert not (out / "plan.toml").exists()
    assert (out / "tiny-xavier.edgekd").read_bytes() == tiny_build.bundle.read_bytes()
    kept = [[stage[key] for key in ("name", "seconds", "bytes", "map50")] for stage in ran.json["stages"]]
    assert kept == [
        [stage[key] for key in ("name", "seconds", "bytes", "map50")] for stage in tiny_build.json["stages"]
    ]


@pytest.mark.slow
def test_fresh_does_all_anew_and_gives_the_same_bundle_elsewhere(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = shutil.copy(tiny_model, tmp_path)
    data = shutil.copytree(tiny_data, tmp_path / "moved")
    out = shutil.copytree(tiny_build.out, tmp_path / "elsewhere" / "out")
    ran = edgekd("build", model, "--data", data, "--out", out, "--fresh", "--json")
    assert not any(stage["cached"] for stage in ran.json["stages"])
    assert (out / "tiny-xavier.edgekd").read_bytes() == tiny_build.bundle.read_bytes()


def test_a_changed_label_scores_again_and_exports_not(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    data = shutil.copytree(tiny_data, tmp_path / "data")
    labels = data / "labels" / "val" / "000.txt"
    labels.write_text("".join(labels.read_text("ascii").splitlines(keepends=True)[1:]), "ascii")
    ran = edgekd("build", tiny_model, "--data", data, "--out", out, "--json")
    cached = {stage["name"]: stage["cached"] for stage in ran.json["stages"]}
    assert cached["export"]
    assert cached["quantize"], "the calibration images are the same"
    assert not cached["score-fp32"]
    assert not cached["score-int8"]
    assert ran.json["stages"][2]["map50"] < 1, "a square that nobody labelled is a false alarm"


def test_a_damaged_stage_is_done_again(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    graph = next(out.glob("stages/quantize-*/graph.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--json")
    cached = {stage["name"]: stage["cached"] for stage in ran.json["stages"]}
    assert not cached["quantize"]
    assert cached["score-int8"], "the same graph came out"
    assert (out / "tiny-xavier.edgekd").read_bytes() == tiny_build.bundle.read_bytes()


# ------------------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(
            [("export: ", 0.0), ("score-fp32", 0.01), ("quantize: ", 0.02), ("benchmark: timing", 0.0)],
            marks=pytest.mark.slow,
            id="four",
        ),
        pytest.param(
            [("hash val", 0.0), ("calibrate: ", 0.0), ("score-int8", 0.0), ("benchmark: timing", 1.5)],
            marks=pytest.mark.release,
            id="four-others",
        ),
    ],
)
def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bundle(
    edgekd: EdgeKD,
    tiny_build: Built,
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    moments: list[tuple[str, float]],
) -> None:
    out = tmp_path / "out"
    job = (tiny_model, "--data", tiny_data, "--out", out)
    for words, delay_s in moments:
        build_killed_after(words, delay_s, *job)
        assert not (out / "tiny-xavier.edgekd").exists()
        for stage in out.glob("stages/[!.]*/"):
            assert (stage / "stage.json").is_file(), "a stage is there complete or not at all"
    ran = edgekd("build", *job, "--json")
    assert ran.code == 0
    assert ran.json["stages"][0]["cached"], "it resumed"
    assert (out / "tiny-xavier.edgekd").read_bytes() == tiny_build.bundle.read_bytes()
    assert {path.name for path in out.iterdir()} == RESULTS
    assert not list(out.rglob("*-tmp"))


@pytest.mark.slow
def test_two_builds_at_once_share_the_work(
    tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = build_command(tiny_model, tiny_data, out, "--json")
    environment = {**os.environ, **BRIEFLY, "PYTHONHASHSEED": "2"}
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) for _ in range(2)
    ]
    stages = [json.loads(process.communicate(timeout=300)[0])["stages"] for process in pair]
    for one, other in zip(*stages, strict=True):
        assert one["cached"] != other["cached"], f"{one['name']} was done once"
    assert (out / "tiny-xavier.edgekd").read_bytes() == tiny_build.bundle.read_bytes()


# ----------------------------------------------------------------------------------------------------- other choices


def test_the_calibration_set_of_one_build_serves_another(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    again = tmp_path / "set.toml"
    shutil.copy(tiny_build.out / "calibration.toml", again)
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--calibration", again, "--json")
    cached = {stage["name"]: stage["cached"] for stage in ran.json["stages"]}
    assert not cached["calibrate"]
    assert cached["quantize"], "the same images give the same graph"
    assert (out / "calibration.toml").read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_a_number_of_calibration_images(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tiny_build: Built, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--calibration", 4)
    assert ran.code == 0
    chosen = (out / "calibration.toml").read_text("utf-8").split("[files]")[1].split()
    assert sum(word.endswith('.png"') for word in chosen) == 4


def test_a_target_without_int8_gets_the_float_graph_and_no_calibration(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", tmp_path, "--target", "nano", "--json")
    names = [stage["name"] for stage in ran.json["stages"]]
    assert "quantize" not in names
    assert "calibrate" not in names
    manifest = verify(tmp_path / "tiny-nano.edgekd")
    assert manifest.lineage.recipe == "float"
    assert manifest.lineage.calibration_sha256 is None
    assert manifest.evidence.retention == 1.0
    own = {"agent.pyz", "golden.set"}
    shown = {"evidence.json", "graph.packed", "labels.txt", "sbom.cdx.json"}
    assert {entry.path for entry in manifest.files} == own | shown
    opsets = onnx.load(tmp_path / "graph.onnx").opset_import
    assert [entry.version for entry in opsets if not entry.domain] == [13]


def test_an_own_target_and_an_own_recipe(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "targets" / "cpu.toml"
    target = tmp_path / "gate.toml"
    target.write_text(source.read_text("utf-8").replace('name = "cpu"', 'name = "gate-7"'), "utf-8")
    recipe = tmp_path / "sharp.toml"
    recipe.write_text('name = "sharp"\n[[steps]]\nkind = "quantize"\nranges = "entropy"\n', "utf-8")
    out = tmp_path / "out"
    ran = edgekd(
        "build", tiny_model, "--data", tiny_data, "--target", target, "--recipe", recipe, "--out", out, "--json"
    )
    assert ran.json["target"] == "gate-7"
    manifest = verify(out / "tiny-gate-7.edgekd")
    assert (manifest.target.name, manifest.lineage.recipe, manifest.tensorrt) == ("gate-7", "sharp", None)


def test_a_target_edited_under_its_name_gives_a_new_bundle(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    target, out = tmp_path / "gate.toml", tmp_path / "out"
    text = (Path(__file__).resolve().parents[2] / "targets" / "agx-orin.toml").read_text("utf-8")
    command = ("build", tiny_model, "--data", tiny_data, "--target", target, "--recipe", "float", "--out", out)
    seen = []
    shipped = '["10.3.0", "10.16.2"]'
    assert shipped in text
    for newest in ("10.3.0", "10.7.0"):
        target.write_text(text.replace(shipped, f'["10.3.0", "{newest}"]'), "utf-8")
        assert edgekd(*command).code == 0
        seen.append(verify(out / "tiny-agx-orin.edgekd").tensorrt)
    assert seen == [("10.3.0", "10.3.0"), ("10.3.0", "10.7.0")]


def test_a_detector_without_class_names_takes_those_of_the_data(
    edgekd: EdgeKD, tiny_data: Path, tmp_path: Path
) -> None:
    model = tiny.write_model(tmp_path / "unnamed.onnx", classes=())
    found = edgekd("eval", model, "--data", tiny_data, "--json").json
    assert list(found["per_class"]) == ["red", "green"]
    assert found["map50"] == 1.0


# ------------------------------------------------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def coco8(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of COCO to calibrate on and eight others to score, and their labels."""
    source, folder = shared / "data" / "coco256", tmp_path_factory.mktemp("coco8")
    for split in ("train2017", "val2017"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for image in sorted((source / "images" / split).iterdir())[:8]:
            (folder / "images" / split / image.name).symlink_to(image)
            labels = source / "labels" / split / f"{image.stem}.txt"
            if labels.is_file():
                shutil.copyfile(labels, folder / "labels" / split / labels.name)
    shutil.copyfile(source / "data.yaml", folder / "data.yaml")
    return folder


@pytest.mark.slow
@pytest.mark.family("YOLO26", "eval", "INT8", "bundle", package="Ultralytics")
def test_a_real_detector_end_to_end(edgekd: EdgeKD, shared: Path, coco8: Path, tmp_path: Path) -> None:
    """A YOLO with two branches; the tutorial builds a YOLOX."""
    model, flags = shared / "models" / "yolo26n.pt", ("--data", coco8, "--target", "xavier", "--out", tmp_path)
    ran = edgekd("build", model, *flags, "--keep", 0.93, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["met"] is True
    bundle = Path(ran.json["bundle"])
    manifest = verify(bundle)
    assert manifest.evidence.before.map50_95 > 0.25, "it is a working detector to begin with"
    assert manifest.evidence.after.bytes < 0.45 * manifest.evidence.before.bytes
    found = edgekd("eval", bundle, "--data", coco8, "--json").json
    assert found["map50_95"] == manifest.evidence.after.map50_95
    again = edgekd("build", model, *flags, "--json")
    # What was asked for is written into the bundle.
    assert [stage["name"] for stage in again.json["stages"] if not stage["cached"]] == ["pack"]
