"""The command line, as people and scripts meet it: exit codes, the one line of an error, and a clean stdout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import tiny
from pythons import interpreter
from running import Built, EdgeKD, Ran, build_command

import edgekd as package
from edgekd.core.bundle.archive import verify

PACKAGE = Path(package.__file__).parent
COMMANDS = ("build", "quantize", "eval", "bench", "engine", "check", "targets", "doctor", "inspect", "demo")
COMMANDS += ("compare", "keygen", "trust", "sign", "verify", "pack")


def subprocess_of(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def assert_refused(ran: Ran, *words: str) -> None:
    """Exit code 2, nothing on stdout, and one line that says all of `words`."""
    said = [line for line in ran.err.splitlines() if line.startswith("edgekd: ")]
    assert ran.code == 2, ran
    assert ran.out == ""
    assert said == ran.err.splitlines()[-1:], "one line, and it is the last"
    assert "Traceback" not in ran.err
    for word in words:
        assert word in said[0]


def assert_nothing_left(out: Path) -> None:
    """No result, and no half-written file; stages that were complete, and how far it came, may stay."""
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    assert found <= {"stages", "progress.json", ".progress.lock"}
    assert not [path for path in out.rglob("*") if path.name.endswith("-tmp")]
    assert all((stage / "stage.json").is_file() for stage in out.glob("stages/[!.]*/"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may spoil."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def refuses(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., None]:
    """Build with something wrong, and see it refused with these words and nothing left behind."""

    def check(*words: str, model: Path = tiny_model, data: Path = tiny_data, flags: tuple[object, ...] = ()) -> None:
        ran = edgekd("build", model, "--data", data, "--out", tmp_path / "out", *flags)
        assert_refused(ran, *words)
        assert_nothing_left(tmp_path / "out")

    return check


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, edgekd: EdgeKD) -> None:
    ran = edgekd(command, "--help")
    assert ran.code == 0
    assert f"edgekd {command}" in ran.out


def test_help_lists_every_command_in_a_process_of_its_own() -> None:
    done = subprocess_of("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_edgekd_alone_names_the_three_first_steps(edgekd: EdgeKD) -> None:
    ran = edgekd()
    assert (ran.code, ran.err) == (0, "")
    calls = [line.split()[:2] for line in ran.out.splitlines() if line.startswith("  edgekd ")]
    assert calls == [["edgekd", "demo"], ["edgekd", "build"], ["edgekd", "doctor"]]
    assert len(ran.out.splitlines()) < 10


def test_version(edgekd: EdgeKD) -> None:
    from edgekd import __version__

    assert edgekd("--version").out == f"edgekd {__version__}\n"


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_an_old_python_prints_one_line(version: str) -> None:
    command = [interpreter(version), "-B", "-m", "edgekd", "targets"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    found = f"edgekd: this Python is too old; expected Python 3.10 or newer; found Python {version}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", found)


def test_a_checkout_without_its_dependencies_prints_one_line() -> None:
    command = [sys.executable, "-S", "-m", "edgekd", "targets"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("edgekd: No module named 'typer'; fix: ")


def test_an_unknown_flag_is_a_usage_error_on_stderr(edgekd: EdgeKD, tiny_model: Path) -> None:
    ran = edgekd("build", tiny_model, "--dta", "x")
    assert (ran.code, ran.out) == (2, "")
    assert "--dta" in ran.err
    assert "--data" in ran.err


# ---------------------------------------------------------------------------------------------- mistakes: arguments


def test_a_missing_model(refuses: Callable[..., None]) -> None:
    refuses("nope.onnx", "no such file", "fix: check the path", model=Path("nope.onnx"))


def test_an_unknown_kind_of_model(refuses: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(b"x")
    refuses("net.tflite", "expected .pt or .onnx", "found .tflite", model=tmp_path / "net.tflite")


def test_a_model_that_is_no_onnx(refuses: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model")
    refuses("net.onnx", "cannot be read as an ONNX model", model=tmp_path / "net.onnx")


def test_a_checkpoint_cut_short(refuses: Callable[..., None], shared: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes((shared / "models" / "yolo11n.pt").read_bytes()[:100_000])
    refuses("net.pt", "cannot be read as a checkpoint", "complete", model=tmp_path / "net.pt")


def test_missing_data(refuses: Callable[..., None]) -> None:
    refuses("nowhere", "expected a folder, a .yaml or a .json", data=Path("nowhere"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target", "xaviar"), ("xaviar", "did you mean 'xavier'?")),
        (("--target", "none.toml"), ("none.toml", "check the path")),
        (("--recipe", "ptk"), ("--recipe ptk", "did you mean 'ptq'?")),
        (("--recipe", "none.toml"), ("none.toml", "check the path")),
        (("--recipe", "ptq", "--target", "nano"), ("Jetson Nano", "int8", "fp16")),
        (("--max-size", "12XB"), ("--max-size 12XB", "MiB")),
        (("--max-size", ""), ("--max-size", "MiB")),
        (("--keep", "120%"), ("--keep 120%", "98%")),
        (("--keep", "most"), ("--keep most", "98%")),
        (("--device", "xavier-7"), ("--device xavier-7", "local:ENGINE")),
        (("--device", "local:openvno"), ("openvno", "did you mean 'openvino-cpu'?")),
        (("--device", "local:tensorrt"), ("tensorrt cannot be used here", "on the device")),
        (("--calibration", "0"), ("--calibration 0", "a number of images")),
        (("--calibration", "none.toml"), ("--calibration none.toml", "calibration.toml")),
        (("--head", "ssd"), ("--head", "yolo, yolox, end2end", "ssd")),
        (("--head", "none.toml"), ("none.toml", "check the path")),
        (("--head", "yolox"), ("tiny.onnx", "yolox", "expected [1, 84, 7]", "found [1, 6, 84]")),
    ],
)
def test_a_wrong_argument(refuses: Callable[..., None], flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    refuses(*words, flags=flags)


def test_an_unknown_key_in_a_recipe_suggests_the_nearest(refuses: Callable[..., None], tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "quantize"\nrange = "mse"\n', "utf-8")
    refuses("own.toml: step 1", "unknown key 'range'", "did you mean 'ranges'?", flags=("--recipe", recipe))


def test_wrong_onnx_outputs(refuses: Callable[..., None], tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 2, tiny.CELLS]))
    onnx.save(model, tmp_path / "two.onnx")
    refuses("two.onnx", "`boxes` and `scores`", "output0 [1, 6, 84], scores [1, 2, 84]", model=tmp_path / "two.onnx")


def test_an_output_that_is_no_known_head(refuses: Callable[..., None], tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 2, tiny.CELLS]))
    onnx.save(model, tmp_path / "odd.onnx")
    refuses("head is not recognised", "[1, 2, 84]", "--head", model=tmp_path / "odd.onnx")


# ------------------------------------------------------------------------------------------------- mistakes: the data


def test_more_classes_than_the_detector_has(refuses: Callable[..., None], data: Path) -> None:
    with (data / "data.yaml").open("a") as yaml:
        yaml.write("  2: blue\n")
    refuses("expected 2 classes", "found 3", data=data)


def test_classes_in_another_order(refuses: Callable[..., None], data: Path) -> None:
    yaml = data / "data.yaml"
    yaml.write_text(yaml.read_text().replace("red", "x").replace("green", "red").replace("x", "green"))
    refuses("another order", "class 0 to be red", data=data)


def test_a_label_out_of_range_names_file_and_line(refuses: Callable[..., None], data: Path) -> None:
    labels = data / "labels" / "val" / "003.txt"
    labels.write_text(labels.read_text() + "2 0.5 0.5 0.1 0.1\n")
    line = len(labels.read_text().splitlines())
    refuses(f"003.txt line {line}", "a class from 0 to 1", data=data)


def test_a_box_outside_the_image_names_file_and_line(refuses: Callable[..., None], data: Path) -> None:
    (data / "labels" / "val" / "000.txt").write_text("1 1.5 0.5 0.1 0.1\n")
    refuses("000.txt line 1", "between 0 and 1", "1 1.5 0.5 0.1 0.1", data=data)


def test_an_empty_split(refuses: Callable[..., None], data: Path) -> None:
    for image in (data / "images" / "val").iterdir():
        image.unlink()
    refuses("split 'val'", "is empty", data=data)


def test_too_many_broken_images(refuses: Callable[..., None], data: Path) -> None:
    (data / "images" / "val" / "001.png").write_bytes(b"no image")
    refuses("too many unreadable images", "001.png is no image", "at most 0 of 8", data=data)


def test_a_training_image_that_is_also_scored(refuses: Callable[..., None], data: Path) -> None:
    shutil.copy(data / "images" / "val" / "005.png", data / "images" / "train" / "002.png")
    refuses("train/002.png", "val/005.png", "to share no image", data=data)


def test_no_training_split_to_calibrate_on(refuses: Callable[..., None], data: Path) -> None:
    yaml = data / "data.yaml"
    yaml.write_text(yaml.read_text().replace("train: images/train\n", ""))
    refuses("no training split", "--calibration", data=data)


def test_a_changed_calibration_set(refuses: Callable[..., None], tiny_build: Built, tmp_path: Path) -> None:
    lines = (tiny_build.out / "calibration.toml").read_text("utf-8").splitlines(keepends=True)
    changed = tmp_path / "set.toml"
    changed.write_text("".join(lines[:-1]), "utf-8")
    refuses("set.toml was changed after it was written", flags=("--calibration", changed))


def test_a_few_broken_images_are_listed_and_left_out(edgekd: EdgeKD, tiny_model: Path, tmp_path: Path) -> None:
    data = tiny.write_data(tmp_path / "data", train=1, val=20)
    broken = data / "images" / "val" / "004.png"
    broken.write_bytes(broken.read_bytes()[:200])
    ran = edgekd("eval", tiny_model, "--data", data)
    assert ran.code == 0
    assert "not scored:" in ran.err
    assert "004.png is truncated" in ran.err
    scored = edgekd("eval", tiny_model, "--data", data, "--json").json
    assert scored["images"] == 19
    assert scored["skipped"] == [str(broken)]


# ------------------------------------------------------------------------------------------------ mistakes: the place


def test_an_out_folder_that_cannot_be_made(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", tmp_path / "file" / "out")
    assert_refused(ran, "cannot write", "Not a directory", "choose a place that you may write to")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", disk / "out")
        assert_refused(ran, "cannot write", "No space left", "free some space")
        assert_nothing_left(disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)


# ------------------------------------------------------------------------------------------ mistakes: other commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "none.onnx", "--data", "DATA"), ("none.onnx", "no such file")),
        (("eval", "MODEL", "--data", "DATA", "--split", "test"), ("no split 'test'", "train, val")),
        (("eval", "none.edgekd", "--data", "DATA"), ("none.edgekd", "check the path")),
        (("eval", "none.packed", "--data", "DATA"), ("none.packed", "check the path")),
        (("eval", "WRONG", "--data", "DATA"), ("wrong.packed", "cannot be read as a packed graph", "EDGEKDPG")),
        (("bench", "none.onnx"), ("none.onnx", "no such file")),
        (("bench", "MODEL", "--device", "local:tpu"), ("tpu", "onnxruntime-cpu")),
        (("check", "none.onnx"), ("none.onnx", "no such file")),
        (("check", "MODEL", "--target", "orin-nona"), ("did you mean 'orin-nano'?",)),
        (("targets", "xavir"), ("did you mean 'xavier'?",)),
        (("inspect", "none.edgekd"), ("none.edgekd", "check the path")),
        (("inspect", "MODEL"), ("not an edgekd bundle",)),
    ],
)
def test_a_mistake_in_another_command(
    edgekd: EdgeKD,
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    places = {"MODEL": tiny_model, "DATA": tiny_data, "WRONG": tmp_path / "wrong.packed"}
    places["WRONG"].write_bytes(b"no packed graph")
    assert_refused(edgekd(*(places.get(argument, argument) for argument in arguments)), *words)


def test_a_damaged_bundle(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    content = bytearray(tiny_build.bundle.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / "damaged.edgekd"
    damaged.write_bytes(content)
    assert_refused(edgekd("inspect", damaged), "damaged.edgekd", "is damaged", "SHA-256")


# --------------------------------------------------------------------------------------------------------- exit codes


def test_a_missed_budget_exits_with_3_and_everything_written(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--max-size", "100kB", "--json")
    assert ran.code == 3
    assert ran.err.splitlines()[-1].startswith("edgekd: budget missed: ")
    assert "--max-size" in ran.err.splitlines()[-1], "the fix"
    assert ran.json["met"] is False
    found, before = verify(out / "tiny-xavier.edgekd"), verify(tiny_build.bundle)
    assert found.limits.max_bytes is not None
    assert replace(found, limits=before.limits) == before, "only what was asked for is another"
    assert json.loads((out / "ledger.json").read_bytes())["budget"][0]["met"] is False


def test_frames_per_second_of_a_stand_in_decide_nothing(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--min-fps", "1e9", "--json")
    assert (ran.code, ran.json["met"]) == (0, None)
    assert ran.json["budget"][0]["basis"] == "stand-in"


def test_check_exits_with_1_where_the_target_cannot(edgekd: EdgeKD, tiny_build: Built) -> None:
    graph = tiny_build.out / "graph.onnx"
    ran = edgekd("check", graph, "--target", "nano")
    assert ran.code == 1
    assert "impossible" in ran.out
    assert edgekd("check", graph, "--target", "xavier").code == 0


def test_an_interrupt_exits_with_130_and_one_line(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    command = build_command(tiny_model, tiny_data, tmp_path / "out")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = next(line for line in process.stderr if line.startswith("benchmark"))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, said + err
    assert (out, err) == ("", "edgekd: stopped; builds, trainings and fleets go on when they are run again\n")
    assert_nothing_left(tmp_path / "out")


# -------------------------------------------------------------------------------------------------------- the streams


def test_json_is_all_there_is_on_stdout_and_progress_goes_to_stderr(tiny_model: Path, tiny_data: Path) -> None:
    done = subprocess_of("eval", tiny_model, "--data", tiny_data, "--json")
    assert json.loads(done.stdout)["images"] == 8
    assert "score: 8/8" in done.stderr


def test_build_with_json_says_nothing_else_on_stdout(tiny_build: Built) -> None:
    # `tiny_build` parsed all of stdout as one document already.
    assert tiny_build.json["bundle"] == str(tiny_build.bundle)
    assert Path(tiny_build.json["report"]).is_file()


def test_a_build_without_json_names_what_it_wrote(
    edgekd: EdgeKD, tiny_build: Built, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out)
    assert f"bundle: {out / 'tiny-xavier.edgekd'}\n" in ran.out
    assert f"report: {out / 'report.html'}\n" in ran.out
    assert "mAP50-95" in ran.out
    assert "stand-in" in ran.out
    assert "deferred to install" in ran.out
    assert ran.out.endswith(f"\nnext: edgekd engine {out / 'tiny-xavier.edgekd'} --device ssh://CAMERA\n")
    shown = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, "--max-size", "100kB")
    assert shown.code == 3
    assert "next:" not in shown.out, "a bundle that misses its budget is not for cameras"


def test_a_reader_that_stops_reading_is_no_crash() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "edgekd", "targets", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert "Traceback" not in done.stderr
