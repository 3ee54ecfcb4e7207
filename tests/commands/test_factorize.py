"""`edgekd factorize`, and factorization as a step of a build."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import DEVICE, EdgeKD
from test_json_contract import assert_documented

from edgekd.builds.recipe import Recipe, load_recipe, refuse_recipe
from edgekd.builds.run_progress import read_progress
from edgekd.builds.stages.derived import require_faster
from edgekd.compress.steps import LowRank
from edgekd.core.errors import CompressError, SpecError
from edgekd.hardware.budget import Budget

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
STEP = 'name = "thin"\n[[steps]]\nkind = "factorize"\nenergy = 0.3\nchannels = 32\nimages = 4\n'


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So large that a part of it takes less time, however busy the machine is."""
    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    network = student_network(Distill("yolov8n.yaml"), ("red", "green"), trust=False)
    path = tmp_path_factory.mktemp("detector") / "detector.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": 320}}, path)
    return path


def recipe(folder: Path, more: str = "") -> Path:
    (folder / "thin.toml").write_text(STEP + more, "utf-8")
    return folder / "thin.toml"


@pytest.mark.slow
def test_a_detector_is_factorized_scored_and_timed(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path), "--out", tmp_path / "out", *DEVICE)
    ran = edgekd("factorize", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "factorize")
    assert json.loads((tmp_path / "out" / "factorize.json").read_bytes()) == ran.json
    progress = read_progress(tmp_path / "out")
    assert (progress.command, progress.model, progress.target, progress.state) == (
        "factorize",
        detector.name,
        None,
        "done",
    )
    assert [stage.name for stage in progress.stages] == [stage["name"] for stage in ran.json["stages"]]
    before, after = ran.json["before"], ran.json["after"]
    assert after["multiply_adds"] < 0.8 * before["multiply_adds"]
    assert after["parameters"] < before["parameters"]
    assert after["latency_ms"] < before["latency_ms"]
    assert ran.json["target"] is None
    assert all(each["kept"] >= 0.3 - 1e-3 for each in ran.json["layers"].values())
    evaluated = edgekd("eval", tmp_path / "out" / "factorized.pt", "--data", tiny_data, "--json").json
    assert evaluated["map50_95"] == after["map50_95"]
    again = edgekd("factorize", detector, *flags)
    assert "factorize: found in the store" in again.err
    assert f"{len(ran.json['layers'])} layers replaced" in again.out


@pytest.mark.release
def test_for_a_target_what_it_is_predicted_to_take_decides(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """A small GPU multiplies so slowly that it pays; to a large one starting a layer is as dear as running it."""
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path), "--out", tmp_path / "out", *DEVICE)
    small = edgekd("factorize", detector, *flags, "--target", "nano", "--json")
    assert small.code == 0, small.err
    assert_documented(small.json, "factorize")
    assert small.json["target"]["basis"] == "predicted"
    assert small.json["target"]["after_ms"] < small.json["target"]["before_ms"]
    assert "ms on nano, predicted" in edgekd("factorize", detector, *flags, "--target", "nano").out
    large = edgekd("factorize", detector, *flags, "--target", "thor")
    assert large.code == 2
    assert "no convolution is cheaper as a product" in large.err


@pytest.mark.release
def test_a_build_prunes_factorizes_and_trains_what_is_left(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    first = '[[steps]]\nkind = "prune"\nratio = 0.3\nmultiple = 8\nimages = 4\n'
    head, step = STEP.split("[[steps]]")
    more = '[[steps]]\nkind = "distill"\nepochs = 1\nbatch = 6\nimage_size = 160\nwarmup_steps = 0\n'
    more += '[[steps]]\nkind = "quantize"\n[[steps]]\nkind = "quant_aware_distill"\nepochs = 1\nimage_size = 160\n'
    (tmp_path / "all.toml").write_text(f"{head}{first}[[steps]]{step}{more}", "utf-8")
    flags = ("--data", tiny_data, "--target", "cpu", "--recipe", tmp_path / "all.toml", "--out", tmp_path / "out")
    ran = edgekd("build", detector, *flags, *DEVICE, "--json")
    assert ran.code == 0, ran.err
    kinds = ("prune", "factorize", "distill", "quantize", "quant_aware_distill", "pack")
    sizes = {stage["name"]: stage["bytes"] for stage in ran.json["stages"]}
    assert [stage["name"] for stage in ran.json["stages"] if stage["name"] in kinds] == list(kinds)
    assert sizes["factorize"] < sizes["prune"]
    assert sizes["distill"] == pytest.approx(sizes["factorize"], rel=0.01), "the student is what is left"


def test_it_comes_after_pruning_and_before_training(tmp_path: Path) -> None:
    def steps(*kinds: str) -> Recipe:
        path = tmp_path / "own.toml"
        path.write_text('name = "own"\n' + "".join(f'[[steps]]\nkind = "{kind}"\n' for kind in kinds), "utf-8")
        return load_recipe(str(path))

    recipe = steps("prune", "factorize", "distill", "quantize")
    assert recipe.trains
    assert recipe.first(LowRank) == LowRank()
    refuse_recipe(recipe, Budget(), Path("one.pt"))  # the student is what is left
    refuse_recipe(steps("factorize", "distill"), Budget(), Path("one.pt"))
    for kinds in (
        ("distill", "factorize"),
        ("factorize", "prune"),
        ("factorize", "factorize"),
        ("quantize", "factorize"),
    ):
        with pytest.raises(SpecError, match="at most once each: resize, prune, factorize, recover, distill, quantize"):
            steps(*kinds)


@dataclass(frozen=True)
class Timed:
    """What was made, and what decides about it: times that somebody else has taken."""

    latency_ms: tuple[float, float]
    where: str = "a clock"
    basis: str = "measured"


def test_what_is_thinner_and_not_faster_is_refused() -> None:
    def judged(*times: float) -> None:
        timed: Any = Timed(times)  # type: ignore[arg-type]
        require_faster("thinner", timed, timed, "8 layers replaced", "leave it")

    judged(10.0, 9.0)
    with pytest.raises(CompressError, match=r"thinner, and not faster.*10\.00 ms.*a clock \(measured\).*10\.50 ms.*8"):
        judged(10.0, 10.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--energy", "0%"), "factorize: energy"),
        (("--energy", "most"), "--energy most"),
        (("--recipe", "ptq"), "has no step factorize"),
        (("--target", "moon"), "moon"),
    ],
)
def test_a_mistake_is_named(
    arguments: tuple[str, ...], said: str, edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path
) -> None:
    ran = edgekd("factorize", detector, "--data", tiny_data, "--out", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_only_checkpoints_by_ultralytics_are_factorized(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--data", tiny_data, "--out", tmp_path / "out")
    assert "trains the detector" in edgekd("factorize", tiny_model, *flags).err
    (tmp_path / "one.tv.pt").write_bytes(b"")
    assert "a detector by Ultralytics" in edgekd("factorize", tmp_path / "one.tv.pt", *flags).err
    more = recipe(tmp_path, '[[steps]]\nkind = "quantize"\n')
    assert "edgekd build" in edgekd("factorize", tmp_path / "one.pt", *flags, "--recipe", more).err


def test_what_is_scored_is_not_chosen_by(edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(
        f"path: {tiny_data}\ntrain: images/val\nval: images/val\nnames: [red, green]\n", "utf-8"
    )
    ran = edgekd("factorize", detector, "--data", tmp_path, "--recipe", recipe(tmp_path), "--out", tmp_path / "out")
    assert ran.code == 2
    assert "expected training and scoring to share no image" in ran.err
    assert not (tmp_path / "out" / "factorized.pt").exists()
