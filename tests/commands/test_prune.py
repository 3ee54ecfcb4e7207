"""`edgekd prune`, and pruning as the first step of a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_detector import write_detector
from running import DEVICE, EdgeKD
from test_json_contract import assert_documented

from edgekd.builds.run_progress import read_progress
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import export as export_stage
from edgekd.builds.stages import train
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.prune import ChannelPruner, PruneResult
from edgekd.compress.steps import Distill, Prune
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.detectors import load
from edgekd.hardware.target import EXPORT_OPSET

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
STEP = 'name = "narrow"\n[[steps]]\nkind = "prune"\nratio = 0.6\nmultiple = 8\nimages = 4\n'


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So large that half of it takes less time, however busy the machine is."""
    return write_detector(tmp_path_factory.mktemp("detector"), "yolov8n.yaml", None, 320)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For where time is told or predicted."""
    return write_detector(tmp_path_factory.mktemp("small"), "yolov8n.yaml", 0.125, 64)


def recipe(folder: Path, more: str = "") -> Path:
    (folder / "narrow.toml").write_text(STEP + more, "utf-8")
    return folder / "narrow.toml"


@pytest.mark.slow
def test_a_detector_is_pruned_scored_and_timed(edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path), "--out", tmp_path / "out", *DEVICE)
    ran = edgekd("prune", detector, *flags, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "prune")
    assert json.loads((tmp_path / "out" / "prune.json").read_bytes()) == ran.json
    progress = read_progress(tmp_path / "out")
    assert (progress.command, progress.model, progress.target, progress.state) == ("prune", detector.name, None, "done")
    assert [stage.name for stage in progress.stages] == [stage["name"] for stage in ran.json["stages"]]
    before, after = ran.json["before"], ran.json["after"]
    assert after["multiply_adds"] <= 0.4 * before["multiply_adds"]
    assert after["parameters"] < before["parameters"]
    assert after["latency_ms"] < before["latency_ms"]
    evaluated = edgekd("eval", tmp_path / "out" / "pruned.pt", "--data", tiny_data, "--json").json
    assert evaluated["map50_95"] == after["map50_95"]
    again = edgekd("prune", detector, *flags)
    assert "prune: found in the store" in again.err
    assert "multiply-adds" in again.out


@pytest.mark.release
def test_a_build_prunes_and_trains_what_is_left(edgekd: EdgeKD, small: Path, tiny_data: Path, tmp_path: Path) -> None:
    more = '[[steps]]\nkind = "distill"\nepochs = 1\nbatch = 6\nwarmup_steps = 0\n'
    more += '[[steps]]\nkind = "quantize"\n'
    flags = ("--data", tiny_data, "--target", "xavier", "--recipe", recipe(tmp_path, more), "--out", tmp_path / "out")
    ran = edgekd("build", small, *flags, *DEVICE, "--json")
    assert ran.code == 0, ran.err
    sizes = {stage["name"]: stage["bytes"] for stage in ran.json["stages"]}
    order = [stage["name"] for stage in ran.json["stages"] if stage["name"] in ("prune", "distill", "quantize", "pack")]
    assert order == ["prune", "distill", "quantize", "pack"]
    assert sizes["distill"] == pytest.approx(sizes["prune"], rel=0.01), "the student is what pruning has left"


@pytest.mark.release
def test_a_build_trains_a_student_prunes_it_and_trains_it_again(
    edgekd: EdgeKD, small: Path, tiny_data: Path, tmp_path: Path
) -> None:
    trains = '[[steps]]\nkind = "distill"\nepochs = 1\nbatch = 6\nwarmup_steps = 0\n'
    steps = f'{trains}student = "yolo11n.yaml"\nwidth = 0.125\n{STEP.partition(chr(10))[2]}{trains}'
    (tmp_path / "student.toml").write_text(f'name = "student"\n{steps}', "utf-8")
    flags = (
        "--data",
        tiny_data,
        "--target",
        "xavier",
        "--out",
        tmp_path / "out",
        "--recipe",
        tmp_path / "student.toml",
    )
    ran = edgekd("build", small, *flags, *DEVICE, "--json")
    assert ran.code == 0, ran.err
    made = [stage for stage in ran.json["stages"] if stage["name"] in ("distill", "prune")]
    assert [stage["name"] for stage in made] == ["distill", "prune", "distill"]
    whole, narrow, again = (stage["bytes"] for stage in made)
    assert narrow < 0.8 * whole
    assert again == pytest.approx(narrow, rel=0.01), "the student is trained as pruning has left it"


@pytest.mark.release
def test_a_quantized_detector_is_pruned_as_one_and_trained_last(
    edgekd: EdgeKD, small: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The plan that was made first is run again on what is left, and what was given teaches it."""
    trains = '[[steps]]\nkind = "quant_aware_distill"\nepochs = 1\nbatch = 6\nimage_size = 64\n'
    steps = '[[steps]]\nkind = "quantize"\nformats = ["int8", "fp4x"]\nmax_size = "900kB"\nframes = 2\n'
    (tmp_path / "order.toml").write_text(f'name = "order"\n{steps}{STEP.partition(chr(10))[2]}{trains}', "utf-8")
    flags = ("--data", tiny_data, "--target", "xavier", "--out", tmp_path / "out", "--recipe", tmp_path / "order.toml")
    ran = edgekd("build", small, *flags, *DEVICE, "--json")
    assert ran.code == 0, ran.err
    made = [stage for stage in ran.json["stages"] if stage["name"] in ("quantize", "prune", "quant_aware_distill")]
    names = [stage["name"] for stage in made]
    assert names[-4:] == ["quantize", "prune", "quantize", "quant_aware_distill"]
    assert made[-2]["bytes"] < made[-4]["bytes"]
    found = sorted((tmp_path / "out" / "stages").glob("quantize-*/plan.toml"), key=lambda path: path.stat().st_mtime_ns)
    plans = [path.read_text("utf-8") for path in found[-2:]]
    forms = [sorted(line for line in plan.splitlines() if line.startswith("form = ")) for plan in plans]
    assert forms[0] == forms[1]


class Clock:
    """A latency that is told, before it is asked: milliseconds of what has so many parameters."""

    basis, where, identity, cost = "predicted", "a clock", None, None

    def __init__(self, at_start: float, by_graph: Callable[[GraphStage], float]) -> None:
        self._at_start, self._by_graph = at_start, by_graph

    def of_both(self, before: GraphStage, after: GraphStage) -> tuple[float, float]:
        return self._at_start, self._at_start if after is before else self._by_graph(after)


@pytest.fixture
def narrowing(small: Path, tiny_data: Path, tmp_path: Path) -> Callable[[Clock], ChannelPruner]:
    dataset = load_dataset(tiny_data)
    context = StageContext.within(tmp_path / "out", False, SILENT)

    def export(checkpoint: Path) -> GraphStage:
        return export_stage.run(context, load(checkpoint), None, dataset.classes, EXPORT_OPSET)

    return lambda clock: ChannelPruner(context, dataset, small, export(small), export, clock)


def test_what_is_narrower_and_not_faster_is_refused_with_its_widths(
    narrowing: Callable[[Clock], ChannelPruner],
) -> None:
    said = r"not faster.*10\.00 ms.*a clock \(predicted\).*10\.50 ms with model\..* \d+ -> \d+;"
    with pytest.raises(CompressError, match=said):
        narrowing(Clock(10.0, lambda graph: 10.5)).run(Prune(importance="magnitude", refit=False, multiple=8))


def test_it_is_pruned_until_it_is_fast_enough(narrowing: Callable[[Clock], ChannelPruner]) -> None:
    """Half of the bytes takes half of the time and a millisecond: the first guess is too slow."""
    size = narrowing(Clock(0, lambda graph: 0)).before.result.bytes
    clock = Clock(10.0, lambda graph: 1.0 + 9.0 * graph.result.bytes / size)
    step = Prune(min_fps=150, importance="magnitude", refit=False, multiple=8)
    found = narrowing(clock).run(step)
    assert found.latency_ms[1] <= 1000 / 150
    assert found.latency_ms[1] > 0.8 * 1000 / 150, "not much more than was asked for"
    with pytest.raises(CompressError, match=r"nothing to do, 100\.0 FPS \(predicted, a clock\)"):
        narrowing(clock).run(replace(step, min_fps=90))


@pytest.mark.release
def test_a_speed_that_no_width_reaches_is_refused_with_what_was_reached(
    narrowing: Callable[[Clock], ChannelPruner],
) -> None:
    step = Prune(min_fps=150, importance="magnitude", refit=False, multiple=8, most=0.95)
    with pytest.raises(CompressError, match=r"150 FPS not reached.*9\.00 ms \(predicted\), \d+% of the"):
        narrowing(Clock(10.0, lambda graph: 9.0)).run(step)


def test_a_size_and_a_speed_are_both_kept(narrowing: Callable[[Clock], ChannelPruner]) -> None:
    """What is fast enough may still be too large; what is small enough has nothing to lose."""
    clock = Clock(10.0, lambda graph: 9.0)
    step = Prune(min_fps=50, max_size="700kB", importance="magnitude", refit=False, multiple=8)
    found = narrowing(clock).run(step)
    assert 600_000 < found.checkpoint.stat().st_size <= 700_000
    with pytest.raises(CompressError, match=r"nothing to do.*more than 1GB in half precision"):
        narrowing(clock).run(replace(step, max_size="1GB", min_fps=None))


@pytest.mark.release
def test_rounds_take_as_much_together_and_train_in_between(
    narrowing: Callable[[Clock], ChannelPruner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another size than the detector's, which stays what it was."""
    trained: list[object] = []
    distill = train.distill

    def watched(*arguments: Any, **settings: Any) -> Stage[train.DistillResult]:
        trained.append(settings["device"])
        return distill(*arguments, **settings)

    monkeypatch.setattr(train, "distill", watched)
    recovery = Distill(epochs=1, batch=6, image_size=96, warmup_steps=0)
    step = Prune(ratio=0.4, rounds=2, multiple=8, images=4, image_size=60, recovery=recovery)
    made = replace(narrowing(Clock(10.0, lambda graph: 5.0)), train_on="cpu")
    found = made.run(step)
    assert trained == ["cpu"]
    assert found.graph.result.spec.preprocess.height == 64
    assert [stage.name for stage in made.context.done] == ["export", "prune", "distill", "prune", "export"]
    first, second = (stage.result for stage in made.context.done if isinstance(stage.result, PruneResult))
    shares = [after / before for before, after in (first.multiply_adds, second.multiply_adds)]
    assert shares == pytest.approx([0.6**0.5] * 2, abs=0.05)
    assert found.multiply_adds == (first.multiply_adds[0], second.multiply_adds[1])
    assert all(
        old == first.widths[name][0] and new == second.widths[name][1] for name, (old, new) in found.widths.items()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ratio", "0%"), "prune: ratio"),
        (("--ratio", "half"), "--ratio half"),
        (("--max-size", "small"), "max_size"),
        (("--min-fps", "0"), "prune: min_fps"),
        (("--target", "xavir"), "did you mean"),
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


def test_only_checkpoints_are_pruned(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--out", tmp_path / "out")
    assert "trains the detector" in edgekd("prune", tiny_model, *flags).err
    (tmp_path / "one.tv.pt").write_bytes(b"")
    assert "cannot be read as a checkpoint" in edgekd("prune", tmp_path / "one.tv.pt", *flags).err
    more = recipe(tmp_path, '[[steps]]\nkind = "quantize"\n')
    assert "edgekd build" in edgekd("prune", tmp_path / "one.pt", *flags, "--recipe", more).err


@pytest.mark.parametrize("more", ["", 'importance = "magnitude"\n'])
def test_what_is_scored_is_not_chosen_by(
    edgekd: EdgeKD, detector: Path, tiny_data: Path, tmp_path: Path, more: str
) -> None:
    """As for a student: gradients of images that are scored would choose for them, and weights are refitted to them."""
    (tmp_path / "data.yaml").write_text(
        f"path: {tiny_data}\ntrain: images/val\nval: images/val\nnames: [red, green]\n", "utf-8"
    )
    ran = edgekd("prune", detector, "--data", tmp_path, "--recipe", recipe(tmp_path, more), "--out", tmp_path / "out")
    assert ran.code == 2
    assert "expected training and scoring to share no image" in ran.err
    assert not (tmp_path / "out" / "pruned.pt").exists()


@pytest.mark.release
def test_what_a_target_is_predicted_to_take_decides_for_it(
    edgekd: EdgeKD, small: Path, tiny_data: Path, tmp_path: Path
) -> None:
    wanted = ("--ratio", "40%", *DEVICE)
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path), "--out", tmp_path / "out", *wanted)
    ran = edgekd("prune", small, *flags, "--target", "xavier", "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "prune")
    on = ran.json["target"]
    assert (on["name"], on["basis"], on["where"]) == ("xavier", "predicted", "Jetson AGX Xavier 32GB in int8")
    assert 0 < on["after_ms"] < on["before_ms"]
    again = edgekd("prune", small, *flags, "--target", "xavier", "--scan", "--ratio", "30%", "--json")
    assert again.json["after"]["multiply_adds"] > ran.json["after"]["multiply_adds"]
    found = json.loads((tmp_path / "out" / "sensitivity.json").read_bytes())
    assert set(found["units"]) == set(ran.json["widths"])
    assert {len(losses) for losses in found["units"].values()} == {len(found["shares"])}
    told = edgekd("predict", tmp_path / "out" / "pruned.pt", "--target", "xavier", "--precision", "int8", "--json").json
    assert told["latency_ms"] == pytest.approx(again.json["target"]["after_ms"], rel=1e-3)
    slower = ("--target", "xavier-nx", "--out", tmp_path / "slower")
    assert edgekd("prune", small, *flags[:4], *slower, *wanted, "--json").json["target"]["after_ms"] > on["after_ms"]
