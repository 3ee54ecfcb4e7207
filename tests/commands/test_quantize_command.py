"""`edgekd quantize`: any ONNX network, judged by its labels or by its outputs, in a size or to an accuracy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import small_graph
import tiny
from running import EdgeKD
from test_cli import assert_refused
from test_json_contract import assert_documented

from edgekd.builds.run_progress import read_progress
from edgekd.core.formats.packed_graph import sections, unpack

FRAMES = 16


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose output is no known head."""
    return small_graph.write(small_graph.small_model(), tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of frames for it, some with and some without the batch."""
    folder = tmp_path_factory.mktemp("arrays")
    for index, frame in enumerate(small_graph.frames(FRAMES)):
        np.save(folder / f"{index:02}.npy", frame if index % 2 else frame[0])
    return folder


@pytest.fixture(scope="module")
def free(network: Path, arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it gives without a limit: INT8 everywhere but in the head."""
    out = tmp_path_factory.mktemp("free") / "out"
    done = run_alone("quantize", network, "--data", arrays, "--out", out, "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process that may not import PyTorch."""
    script = (
        "import sys; sys.modules['torch'] = None; from edgekd.commands.cli import main; sys.argv[0] = 'edgekd'; main()"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def outputs(graph: Path, frames: list[np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"images": frame})[0] for frame in frames])


# ----------------------------------------------------------------------------------------------------- what it leaves


def test_a_detector_is_judged_by_its_labels(edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    ran = edgekd("quantize", tiny_model, "--data", tiny_data, "--out", tmp_path / "out", "--json")
    assert ran.code == 0
    assert_documented(ran.json, "quantize")
    assert json.loads((tmp_path / "out" / "quantize.json").read_bytes()) == ran.json
    names = {path.name for path in (tmp_path / "out").iterdir()}
    progress_files = {"progress.json", ".progress.lock"}
    assert names == {"graph.onnx", "graph.packed", "calibration.toml", "quantize.json", "stages"} | progress_files
    progress = read_progress(tmp_path / "out")
    assert (progress.command, progress.model, progress.state) == ("quantize", tiny_model.name, "done")
    assert [stage.name for stage in progress.stages] == [stage["name"] for stage in ran.json["stages"]]
    assert (ran.json["metric"], ran.json["frames"], ran.json["plan"]) == ("map50_95", 8, None)
    assert ran.json["kept"] == ran.json["after"]["map50_95"] / ran.json["before"]["map50_95"] > 0.95
    assert ran.json["forms"] == {"float16": 3, "int8": 3, "coded": 0, "fp4x": 0, "nvfp4": 0}
    found = edgekd("eval", ran.json["packed"], "--data", tiny_data, "--json").json
    assert found["map50_95"] == ran.json["after"]["map50_95"]


def test_another_network_is_judged_by_its_outputs(free: dict[str, Any], network: Path) -> None:
    assert_documented(free, "quantize")
    assert (free["metric"], free["frames"], free["recipe"]) == ("output", FRAMES // 2, "ptq")
    (output,) = free["outputs"]
    assert free["kept"] == pytest.approx(1 - output["relative_error"])
    assert output["snr_db"] == pytest.approx(-20 * np.log10(output["relative_error"]))
    fresh = small_graph.frames(32, seed=7)
    wanted, found = (outputs(graph, fresh).astype(float) for graph in (network, Path(free["graph"])))
    error = np.sqrt(np.square(wanted - found).sum() / np.square(wanted).sum())
    assert output["relative_error"] == pytest.approx(error, rel=0.2)
    assert Path(free["graph"]).read_bytes() == unpack(Path(free["packed"]).read_bytes())
    assert free["after"]["bytes"] == Path(free["packed"]).stat().st_size < free["before"]["bytes"] / 2


def test_a_folder_of_images_serves_a_network_and_a_detector_without_labels(
    edgekd: EdgeKD, network: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    for model in (network, tiny_model):
        out = tmp_path / model.stem
        ran = edgekd("quantize", model, "--data", tiny_data / "images" / "train", "--out", out, "--json")
        assert (ran.json["metric"], ran.json["frames"], ran.json["calibration"]) == ("output", 6, None)
        assert ran.json["kept"] > 0.9


def test_without_json_it_prints_what_it_kept(edgekd: EdgeKD, network: Path, arrays: Path, tmp_path: Path) -> None:
    ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path)
    assert "output output0: relative error 0.0" in ran.out
    assert re.search(r"layers: 2 in float16, 3 in int8", ran.out)
    assert f"results: {tmp_path}" in ran.out


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network of products, and a folder of frames for it."""
    pytest.importorskip("torch")
    from transformer import pictures, write_transformer

    folder = tmp_path_factory.mktemp("transformer")
    (folder / "frames").mkdir()
    for index, frame in enumerate(pictures(48)):
        np.save(folder / "frames" / f"{index:02}.npy", frame)
    return write_transformer(folder / "transformer.onnx"), folder / "frames"


def test_a_transformer_is_quantized_like_any_network(
    edgekd: EdgeKD, transformer: tuple[Path, Path], tmp_path: Path
) -> None:
    network, frames = transformer
    ran = edgekd("quantize", network, "--data", frames, "--out", tmp_path / "a", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["forms"] == {"float16": 1, "int8": 9, "coded": 0, "fp4x": 0, "nvfp4": 0}
    assert ran.json["kept"] > 0.98
    assert ran.json["after"]["bytes"] < ran.json["before"]["bytes"] / 3
    limit = int(0.75 * ran.json["after"]["bytes"])
    flags = ("--max-size", limit, "--keep", "95%", "--json")
    smaller = edgekd("quantize", network, "--data", frames, "--out", tmp_path / "b", *flags)
    assert smaller.code == 0, smaller.err
    assert smaller.json["after"]["bytes"] <= limit
    assert smaller.json["forms"]["coded"] >= 3
    missed = edgekd(
        "quantize", network, "--data", frames, "--out", tmp_path / "c", "--max-size", "1B", "--keep", "99.9%"
    )
    assert missed.code == 3
    assert re.search(r"most is lost in /blocks/\S+ \(\d+%\)", missed.err)


def test_nvfp4_is_used_where_a_recipe_names_it(edgekd: EdgeKD, transformer: tuple[Path, Path], tmp_path: Path) -> None:
    network, frames = transformer
    recipe = tmp_path / "own.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "quantize"\nformats = ["int8", "nvfp4"]\n', "utf-8")
    flags = ("--recipe", recipe, "--max-size", "1B", "--json")
    ran = edgekd("quantize", network, "--data", frames, "--out", tmp_path / "out", *flags)
    assert ran.code == 3, "the smallest, but not of one byte"
    assert_documented(ran.json, "quantize")
    assert ran.json["forms"] == {"float16": 1, "int8": 1, "coded": 0, "fp4x": 0, "nvfp4": 8}
    assert ran.json["kept"] > 0.95
    plan = (tmp_path / "out" / "plan.toml").read_text("utf-8")
    assert plan.count('form = "nvfp4"') == 8
    flags = ("--plan", tmp_path / "out" / "plan.toml", "--out", tmp_path / "again", "--json")
    again = edgekd("quantize", network, "--data", frames, *flags)
    assert again.json["forms"] == ran.json["forms"]


def test_a_network_of_one_product_says_why_nothing_is_left(edgekd: EdgeKD, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w"], ["y"], "only", transB=1)],
        "one",
        [value("x", onnx.TensorProto.FLOAT, [1, 64])],
        [value("y", onnx.TensorProto.FLOAT, [1, 16])],
        [onnx.numpy_helper.from_array(np.ones((16, 64), "f4"), "w")],
    )
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "one.onnx")
    (tmp_path / "frames").mkdir()
    for index in range(4):
        np.save(tmp_path / "frames" / f"{index}.npy", np.full((1, 64), index, "f4"))
    ran = edgekd("quantize", tmp_path / "one.onnx", "--data", tmp_path / "frames", "--out", tmp_path / "out")
    assert_refused(ran, "nothing to quantize", "before the last", "found 1, with none before")


# ------------------------------------------------------------------------------------------------------- size and plan


def test_a_size_is_kept_with_coded_layers_and_the_plan_gives_the_same_bytes_again(
    edgekd: EdgeKD, network: Path, arrays: Path, free: dict[str, Any], tmp_path: Path
) -> None:
    limit = free["after"]["bytes"] - 300
    ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "a", "--max-size", limit, "--json")
    assert ran.code == 0, ran.err
    assert_documented(ran.json, "quantize")
    assert ran.json["after"]["bytes"] <= limit
    assert ran.json["forms"]["coded"] >= 1
    assert any(section.encoding == "coded-int8" for section in sections(Path(ran.json["packed"]).read_bytes()))
    plan = tmp_path / "a" / "plan.toml"
    again = edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "b", "--plan", plan, "--json")
    for name in ("graph.onnx", "graph.packed", "plan.toml"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert "plan" not in [stage["name"] for stage in again.json["stages"]], "nothing is planned anew"

    edited = tmp_path / "edited.toml"
    edited.write_text(plan.read_text("utf-8").replace('"coded"', '"int8"'), "utf-8")
    ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "c", "--plan", edited, "--json")
    assert ran.json["forms"] == free["forms"]


def test_a_plan_in_a_recipe_is_found_beside_it(edgekd: EdgeKD, network: Path, arrays: Path, tmp_path: Path) -> None:
    edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "a", "--max-size", "1B")
    (tmp_path / "own").mkdir()
    (tmp_path / "a" / "plan.toml").rename(tmp_path / "own" / "p.toml")
    recipe = tmp_path / "own" / "recipe.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "quantize"\nplan = "p.toml"\n', "utf-8")
    ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "b", "--recipe", recipe, "--json")
    assert (tmp_path / "b" / "graph.onnx").read_bytes() == (tmp_path / "a" / "graph.onnx").read_bytes()
    assert ran.json["forms"]["coded"] == 3


def test_a_search_takes_the_smallest_plan_that_keeps_enough(
    edgekd: EdgeKD, network: Path, arrays: Path, free: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {}
    for keep in ("50%", "99.9%"):
        ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path / keep, "--keep", keep, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["kept"] >= float(keep[:-1]) / 100
        sizes[keep] = ran.json["after"]["bytes"]
        record = json.loads(next((tmp_path / keep).glob("stages/search-*/stage.json")).read_bytes())
        assert 3 <= len(record["results"]["tried"]) <= 5
        assert record["results"]["frames"] == "4 frames that were not calibrated on"
    assert sizes["50%"] < sizes["99.9%"] <= free["after"]["bytes"] + 50


def test_no_frame_is_in_two_shares(network: Path, arrays: Path, tmp_path: Path) -> None:
    from edgekd.builds.recipe import load_recipe
    from edgekd.commands.quantize import QuantizeJob, _shares

    job = QuantizeJob(network, arrays, load_recipe("mixed"), tmp_path)
    shares = _shares(job, 3)
    assert [len(share) for share in shares] == [8, 4, 4]
    assert len({path for share in shares for path in share}) == FRAMES
    assert shares == _shares(job, 3), "the same each time"


# ------------------------------------------------------------------------------------------------------------ the gate


def test_a_missed_share_names_layers_and_levers(edgekd: EdgeKD, network: Path, arrays: Path, tmp_path: Path) -> None:
    flags = ("--max-size", "1B", "--keep", "99.9%", "--json")
    ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path, *flags)
    assert (ran.code, ran.json["met"]) == (3, False)
    assert_documented(ran.json, "quantize")
    said = ran.err.splitlines()[-1]
    assert re.search(r"packed graph is \d+ bytes, limit 1 bytes; output kept is \d\d\.\d%, limit 99\.9%", said)
    first = ran.json["costliest"][0]
    assert f"most is lost in {first['layer']} ({first['share']:.0%})" in said
    assert "a --max-size of at least" in said
    assert (tmp_path / "graph.packed").is_file(), "everything is written all the same"


def test_a_missed_share_says_how_much_larger_a_plan_would_do(
    edgekd: EdgeKD, network: Path, arrays: Path, free: dict[str, Any], tmp_path: Path
) -> None:
    smallest = edgekd("quantize", network, "--data", arrays, "--out", tmp_path, "--max-size", "1B", "--json").json
    keep = (smallest["kept"] + free["kept"]) / 2
    size, codes = smallest["after"]["bytes"], []
    for _ in range(7):  # of a network of 3 kB sizes are predicted to a few percent
        flags = ("--max-size", size, "--keep", f"{keep:.4f}")
        ran = edgekd("quantize", network, "--data", arrays, "--out", tmp_path, *flags)
        codes.append(ran.code)
        more = re.search(r"fix: a --max-size larger by about (\d+) bytes", ran.err)
        if more is None:
            break
        size += int(more[1]) + 60
    assert (codes[0], codes[-1]) == (3, 0)
    assert size < free["after"]["bytes"]


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--recipe", "float"), ("recipe float quantizes nothing", "--recipe ptq or mixed")),
        (("--recipe", "mixed"), ("recipe mixed chooses formats under a limit", "--max-size or --keep")),
        (("--recipe", "qad", "--keep", "98%"), ("recipe qad trains the detector", ".pt checkpoint", "small.onnx")),
        (("--calibration", "16"), ("too few frames", "found 16")),
        (("--calibration", "set.toml"), ("--calibration set.toml", "a number of frames")),
        (("--plan", "none.toml"), ("none.toml", "check the path")),
    ],
)
def test_a_wrong_argument(
    edgekd: EdgeKD, network: Path, arrays: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(edgekd("quantize", network, "--data", arrays, "--out", tmp_path / "out", *flags), *words)


@pytest.mark.parametrize(("kind", "fix"), [("prune", "edgekd prune"), ("factorize", "edgekd factorize")])
def test_a_step_that_another_command_does(
    edgekd: EdgeKD, network: Path, arrays: Path, tmp_path: Path, kind: str, fix: str
) -> None:
    (tmp_path / "own.toml").write_text(f'name = "own"\n[[steps]]\nkind = "{kind}"\n[[steps]]\nkind = "quantize"\n')
    flags = ("--data", arrays, "--out", tmp_path / "out", "--recipe", tmp_path / "own.toml")
    assert_refused(edgekd("quantize", network, *flags), "recipe own", fix)


def test_the_plan_of_another_network(
    edgekd: EdgeKD, network: Path, arrays: Path, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    edgekd("quantize", tiny_model, "--data", tiny_data, "--out", tmp_path / "a", "--max-size", "1MB")
    flags = ("--out", tmp_path / "b", "--plan", tmp_path / "a" / "plan.toml")
    assert_refused(edgekd("quantize", network, "--data", arrays, *flags), "cells8", "make a plan for this graph")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.npy", np.zeros((3, 32, 31), "f4"), ("x.npy", "[1, 3, 32, 32]", "[3, 32, 31]")),
        ("x.npy", np.full((3, 32, 32), "a"), ("x.npy", "numbers of shape")),
        ("x.npz", {"a": np.zeros(1), "b": np.zeros(1)}, ("x.npz", "one named images")),
        ("x.npy", b"no array", ("x.npy cannot be read as an array",)),
    ],
)
def test_a_wrong_frame(
    edgekd: EdgeKD, network: Path, tmp_path: Path, name: str, content: Any, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    np.save(folder / "good.npy", small_graph.frames(1)[0])
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif isinstance(content, dict):
        np.savez(folder / name, **content)
    else:
        np.save(folder / name, content)
    assert_refused(edgekd("quantize", network, "--data", folder, "--out", tmp_path / "out"), *words)


def test_a_network_without_frames(edgekd: EdgeKD, network: Path, tiny_data: Path, tmp_path: Path) -> None:
    ran = edgekd("quantize", network, "--data", tiny_data, "--out", tmp_path / "out")
    assert_refused(ran, "no detector that edgekd knows", "a folder with images", "head is not recognised")


def test_wrong_inputs(edgekd: EdgeKD, arrays: Path, tmp_path: Path) -> None:
    model = small_graph.small_model()
    model.graph.input[0].type.tensor_type.shape.dim[3].ClearField("dim_value")
    onnx.save(model, tmp_path / "dynamic.onnx")
    ran = edgekd("quantize", tmp_path / "dynamic.onnx", "--data", arrays, "--out", tmp_path / "out")
    assert_refused(ran, "input images", "a fixed shape", "[1, 3, 32, 0]")
    model = small_graph.small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "two.onnx")
    ran = edgekd("quantize", tmp_path / "two.onnx", "--data", arrays, "--out", tmp_path / "out")
    assert_refused(ran, "one input, float32", "images, other")


def test_an_image_for_a_network_that_takes_none(edgekd: EdgeKD, tiny_data: Path, tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((2, 2, 3, 3), "f4"), "w")
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("Conv", ["x", "w"], ["m"], "first"), node("Conv", ["m", "w"], ["y"], "last")],
        "two channels",
        [value("x", onnx.TensorProto.FLOAT, [1, 2, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [weights],
    )
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    ran = edgekd("quantize", tmp_path / "m.onnx", "--data", tiny_data / "images" / "val", "--out", tmp_path / "out")
    assert_refused(ran, "an image does not fit the input x", "arrays of shape [1, 2, 8, 8]")


def test_a_detector_without_class_names_takes_those_of_the_data(
    edgekd: EdgeKD, tiny_data: Path, tmp_path: Path
) -> None:
    model = tiny.write_model(tmp_path / "unnamed.onnx", classes=())
    ran = edgekd("quantize", model, "--data", tiny_data, "--out", tmp_path / "out", "--json")
    assert ran.json["metric"] == "map50_95"
