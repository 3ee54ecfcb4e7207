"""`edgekd distill`, and distillation as the first step of a build."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from running import EdgeKD
from test_json_contract import assert_documented

from edgekd.builds.recipe import load_recipe, refuse_recipe
from edgekd.core.bundle.archive import verify
from edgekd.core.bundle.manifest import to_json
from edgekd.core.errors import SpecError
from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
from edgekd.hardware.budget import Budget

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

from rtdetr import write_rtdetr  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
STEP = """name = "small"
[[steps]]
kind = "distill"
student = "yolo11n.yaml"
width = 0.06
epochs = {epochs}
batch = 6
warmup_steps = 0
[[steps.stages]]
name = "all"
share = 1
weights = {{ classes = 1, features = 1 }}
adaptive = true
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    torch.manual_seed(0)
    network = student_network(Distill("yolo11n.yaml", width=0.1), ("red", "green"), trust=False)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": 64}}, path)
    return path


def recipe(folder: Path, epochs: int = 2, more: str = "") -> Path:
    (folder / "small.toml").write_text(STEP.format(epochs=epochs) + more, "utf-8")
    return folder / "small.toml"


def test_a_student_is_trained_and_scored_and_is_a_detector_like_any(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--recipe", recipe(tmp_path), "--out", out, "--device", "cpu")
    ran = edgekd("distill", teacher, "yolo11n.yaml", "--data", tiny_data, "--epochs", 1, *flags, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "distill")
    assert json.loads((out / "distill.json").read_bytes()) == ran.json
    progress = json.loads((out / "progress.json").read_bytes())
    assert_documented(progress, "progress")
    assert (progress["command"], progress["model"], progress["state"]) == ("distill", "yolo11n.yaml", "done")
    assert progress["epochs"] == {"distill": ran.json["losses"]}
    assert ran.json["epochs"] == len(ran.json["losses"]) == len(ran.json["weights"]) == 1
    assert ran.json["before"]["parameters"] > ran.json["after"]["parameters"] > 0
    assert next(stage["name"] for stage in ran.json["stages"]) == "distill"
    evaluated = edgekd("eval", out / "student.pt", "--data", tiny_data, "--json").json
    assert evaluated["map50_95"] == ran.json["after"]["map50_95"]
    again = edgekd("distill", teacher, "yolo11n.yaml", "--data", tiny_data, "--epochs", 1, *flags)
    assert "distill: found in the store" in again.err
    assert "student:" in again.out


@pytest.mark.release
def test_a_student_that_is_killed_goes_on(teacher: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgekd", "distill", str(teacher), "yolo11n.yaml", "--data", str(tiny_data)]
    command += ["--recipe", str(recipe(tmp_path, epochs=12)), "--out", str(out), "--device", "cpu", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (kept := list(out.glob("stages/*.training"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert kept
    before = torch.load(kept[0], weights_only=True)
    assert not before["finished"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["epochs"] == len(result["losses"]) == 12
    first = [{name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in before["losses"]]
    assert result["losses"][: len(first)] == first
    assert not list(out.glob("stages/*.training"))


@pytest.mark.slow
def test_a_build_ships_the_student_and_compares_it_with_its_teacher(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    more = '[[steps]]\nkind = "quantize"\n[[steps]]\nkind = "quant_aware_distill"\nepochs = 1\nbatch = 4\n'
    ran = edgekd(
        *("build", teacher, "--data", tiny_data, "--target", "cpu", "--recipe", recipe(tmp_path, more=more)),
        *("--out", tmp_path / "out", "--json"),
    )
    assert ran.code == 0, ran.err
    names = [stage["name"] for stage in ran.json["stages"]]
    order = ["score-fp32", "distill", "quantize", "quant_aware_distill", "score-int8", "pack"]
    assert [name for name in names if name in order] == order
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_bytes())
    assert_documented(ledger, "ledger")
    assert len(ledger["distillation"]["losses"]) == len(ledger["distillation"]["weights"]) == 2
    assert ledger["distillation"]["weights"][0]["classes"] > 0
    assert set(ledger["losses"][0]) == {"classes", "boxes", "distributions", "features"}
    manifest = json.loads(to_json(verify(tmp_path / "out" / "teacher-cpu.edgekd")))
    sizes = [manifest["evidence"][side]["bytes"] for side in ("before", "after")]
    assert sizes[1] < sizes[0] / 3, "before is the teacher, after the quantized student"
    assert manifest["detector"]["preprocess"]["height"] == 64, "as large as what was given"


def renamed(teacher: Path, classes: tuple[str, ...], folder: Path) -> Path:
    """The teacher with other names for its classes."""
    network = load_checkpoint(teacher).model
    network.names = dict(enumerate(classes))
    torch.save({"model": network.half(), "train_args": {"imgsz": 64}}, folder / "other.pt")
    return folder / "other.pt"


def test_a_teacher_of_other_classes_is_not_scored(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = renamed(teacher, ("Red", "blue"), tmp_path)
    (tmp_path / "data.yaml").write_text(f"path: {tiny_data}\ntrain: images/train\nnames: [red, green]\n")
    flags = ("--data", tmp_path, "--recipe", recipe(tmp_path, epochs=1), "--out", tmp_path / "out", "--device", "cpu")
    ran = edgekd("distill", other, "yolo11n", *flags, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "distill")
    assert ran.json["kept"] is ran.json["before"]["map50_95"] is ran.json["after"]["map50_95"] is None


@pytest.mark.slow
def test_a_teacher_with_other_names_is_not_scored_by_its_class_numbers(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    other = renamed(teacher, ("blue", "red"), tmp_path)
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path, epochs=1), "--out", tmp_path / "out", "--device", "cpu")
    ran = edgekd("distill", other, "yolo11n", *flags, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["kept"] is ran.json["before"]["map50_95"] is None
    assert ran.json["after"]["map50_95"] is not None


def test_a_transformer_labels_teaches_and_is_scored(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    frames, rtdetr = tmp_path / "frames", write_rtdetr(tmp_path / "rtdetr.pt", ("red", "green"), side=64)
    frames.mkdir()
    cv2.imwrite(str(frames / "0.png"), 255 - cv2.imread(str(next((tiny_data / "images" / "train").iterdir()))))
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path, epochs=1), "--device", "cpu", "--unlabelled", frames)
    ran = edgekd("distill", rtdetr, "yolo11n.yaml", *flags, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "distill")
    assert [stage["name"] for stage in ran.json["stages"]][:4] == ["export", "label", "distill", "score-fp32"]
    assert ran.json["before"]["map50"] == edgekd("eval", rtdetr, "--data", tiny_data, "--json").json["map50"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "gpu"), "device to train on"),
        (("--recipe", "ptq"), "has no step distill"),
        (("--time", "0"), "minutes"),
        (("--width", "-1"), "width"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = edgekd("distill", teacher, "yolo11n", "--data", tiny_data, "--out", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_further_steps_are_for_build_and_a_student_is_not_quantized_by_the_way(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    more = recipe(tmp_path, more='[[steps]]\nkind = "quantize"\n')
    flags = ("--data", tiny_data, "--recipe", more, "--out", tmp_path / "out")
    assert "edgekd build" in edgekd("distill", teacher, "yolo11n", *flags).err
    assert "trains a student" in edgekd("quantize", teacher, *flags).err
    with pytest.raises(SpecError, match="names none"):
        refuse_recipe(load_recipe("distill"), Budget(), teacher)


@pytest.mark.slow
def test_a_teacher_labels_frames_for_its_student(
    edgekd: EdgeKD, teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for at, image in enumerate(sorted((tiny_data / "images" / "train").iterdir())[:3]):
        pixels = cv2.imread(str(image))
        cv2.imwrite(str(frames / f"{at}.png"), 255 - pixels)
    flags = ("--data", tiny_data, "--recipe", recipe(tmp_path, epochs=1), "--device", "cpu", "--unlabelled", frames)
    out = ("--out", tmp_path / "out")
    ran = edgekd("distill", teacher, "yolo11n.yaml", *flags, *out, "--json")
    assert ran.code == 0, ran.err
    assert [stage["name"] for stage in ran.json["stages"]][:3] == ["export", "label", "distill"]
    rows = json.loads(next((tmp_path / "out" / "stages").glob("label-*/labels.json")).read_bytes())
    assert [at for at, _ in rows] == [0, 1, 2]
    shutil.copyfile(sorted((tiny_data / "images" / "val").iterdir())[0], frames / "scored.png")
    assert "scored in split 'val'" in edgekd("distill", teacher, "yolo11n.yaml", *flags, *out).err
    other = renamed(teacher, ("red", "blue"), tmp_path)
    (frames / "scored.png").unlink()
    ran = edgekd("distill", other, "yolo11n.yaml", *flags, "--out", tmp_path / "other")
    assert "labels them are not those of the data" in ran.err
