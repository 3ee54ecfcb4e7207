"""`edgekd prune`, and pruning as the first step of a build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import EdgeKD
from test_json_contract import assert_documented

from edgekd.errors import CompressError
from edgekd.pruning import require_faster
from edgekd.store import Stage

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
STEP = 'name = "narrow"\n[[steps]]\nkind = "prune"\nratio = 0.6\nmultiple = 8\nimages = 4\n'


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So large that half of it takes less time, however busy the machine is."""
    from edgekd.detectors.ultralytics_distill import student_network
    from edgekd.spec import Distill

    network = student_network(Distill("yolov8n.yaml"), ("red", "green"), trust=False)
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": 320}}, path)
    return path


def recipe(folder: Path, more: str = "") -> Path:
    (folder / "narrow.toml").write_text(STEP + more, "utf-8")
    return folder / "narrow.toml"


def test_a_detector_is_pruned_scored_and_timed(edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path), "--out", tmp_path / "out")
    ran = edgekd("prune", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "prune")
    assert json.loads((tmp_path / "out" / "prune.json").read_bytes()) == ran.json
    before, after = ran.json["before"], ran.json["after"]
    assert after["multiply_adds"] <= 0.4 * before["multiply_adds"]
    assert after["parameters"] < before["parameters"]
    assert after["latency_ms"] < before["latency_ms"]
    evaluated = edgekd("eval", tmp_path / "out" / "pruned.pt", "--data", tiny_data, "--json").json
    assert evaluated["map50_95"] == after["map50_95"]
    again = edgekd("prune", detector, *flags)
    assert "prune: found in the store" in again.err
    assert "multiply-adds" in again.out
    other = edgekd("prune", detector, *flags, "--ratio", "30%", "--json")
    assert other.json["after"]["multiply_adds"] > after["multiply_adds"]


def test_a_build_prunes_and_trains_what_is_left(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    more = '[[steps]]\nkind = "distill"\nepochs = 1\nbatch = 6\nimage_size = 160\nwarmup_epochs = 0.0\n'
    more += '[[steps]]\nkind = "quantize"\n'
    flags = ("--data", tiny_data, "--target", "cpu", "--recipe", recipe(tmp_path, more), "--out", tmp_path / "out")
    ran = edgekd("build", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    sizes = {stage["name"]: stage["bytes"] for stage in ran.json["stages"]}
    order = [stage["name"] for stage in ran.json["stages"] if stage["name"] in ("prune", "distill", "quantize", "pack")]
    assert order == ["prune", "distill", "quantize", "pack"]
    assert sizes["distill"] == pytest.approx(sizes["prune"], rel=0.01), "the student is what pruning has left"


def test_what_is_narrower_and_not_faster_is_refused(tmp_path: Path) -> None:
    def timed(before: float, after: float) -> Stage:
        sides = {"before": {"total_ms": {"p50": before}}, "after": {"total_ms": {"p50": after}}}
        return Stage("benchmark", 1, "", tmp_path, {**sides, "host": {"engine": "onnxruntime-cpu"}}, 0.0, False, {})

    require_faster(timed(10.0, 9.0))
    with pytest.raises(CompressError, match=r"not faster.*10\.00 ms.*onnxruntime-cpu.*10\.50 ms"):
        require_faster(timed(10.0, 10.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ratio", "0%"), "prune: ratio"),
        (("--ratio", "half"), "--ratio half"),
        (("--recipe", "ptq"), "has no step prune"),
        (("--recipe", "distill"), "has no step prune"),
    ],
)
def test_a_mistake_is_named(
    arguments: tuple[str, ...], said: str, edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    ran = edgekd("prune", detector, "--data", tiny_data, "--out", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_only_checkpoints_by_ultralytics_are_pruned(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data, "--out", tmp_path / "out")
    assert "trains the detector" in edgekd("prune", tiny_model, *flags).err
    (tmp_path / "one.tv.pt").write_bytes(b"")
    assert "a detector by Ultralytics" in edgekd("prune", tmp_path / "one.tv.pt", *flags).err
    more = recipe(tmp_path, '[[steps]]\nkind = "quantize"\n')
    assert "edgekd build" in edgekd("prune", tmp_path / "one.pt", *flags, "--recipe", more).err


def test_what_is_scored_is_not_chosen_by(edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    """As for a student: gradients of images that are scored would choose for them."""
    (tmp_path / "data.yaml").write_text(
        f"path: {tiny_data}\ntrain: images/val\nval: images/val\nnames: [red, green]\n", "utf-8"
    )
    ran = edgekd("prune", detector, "--data", tmp_path, "--recipe", recipe(tmp_path), "--out", tmp_path / "out")
    assert ran.code == 2
    assert "expected training and scoring to share no image" in ran.err
    assert not (tmp_path / "out" / "pruned.pt").exists()
