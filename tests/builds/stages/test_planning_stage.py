"""Plans in a build: made for a bundle's size, run again from a file, and training after them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import EdgeKD
from small_graph import frames, small_model, write
from test_cli import assert_refused
from test_json_contract import assert_documented

from edgekd.builds.recipe import load_recipe
from edgekd.builds.search.space import PLANNED
from edgekd.builds.stage_store import FileHashes, Stage, Store
from edgekd.builds.stages.base import StageContext
from edgekd.builds.stages.calibrate import Calibrated, CalibrateResult, Frames, calibration_source
from edgekd.builds.stages.plan import Attempt, fitted, held_out, offered
from edgekd.compress.quantization.mixed_precision import measure_costs
from edgekd.compress.quantization.plan import Plan, load_plan
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.quantization.quantize import quantize
from edgekd.compress.steps import Distill, Quantize
from edgekd.core.bundle.archive import extract, verify
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import DataError, SpecError
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.formats.packed_graph import pack, unpack
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.core.progress import SILENT
from edgekd.data.calibration import choose, load_rule
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.hardware.target import load_target

SIDE = 64


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return StageContext(Store(tmp_path / "stages"), FileHashes(tmp_path / "hashes.json"), SILENT)


def results(out: Path, name: str) -> dict[str, Any]:
    """What the stage of this name gave, which a folder has one of."""
    (record,) = out.glob(f"stages/{name}-*/stage.json")
    found: dict[str, Any] = json.loads(record.read_bytes())["results"]
    return found


# ------------------------------------------------------------------------------------------------------------ recipes


def test_the_shipped_recipes_say_what_they_may_choose() -> None:
    assert load_recipe("ptq").quantize == Quantize()
    planned = [load_recipe(name).quantize for name in ("mixed", "qad", "distil-qad", "full")]
    for step in (*planned, PLANNED):
        assert step
        assert step.planned
        assert set(step.formats) == {"float16", "int8", "coded"}
    assert load_recipe("qad").trains
    assert not load_recipe("mixed").trains
    assert load_recipe("float").quantize is None


def test_nvfp4_is_offered_where_the_target_multiplies_in_it_and_four_bits_are_wanted() -> None:
    mixed, ptq = (load_recipe(name).quantize for name in ("mixed", "ptq"))
    assert mixed
    assert ptq
    for name in ("thor", "rtx-50", "gb10"):
        assert offered(mixed, load_target(name)).formats == (*mixed.formats, "nvfp4")
        assert offered(ptq, load_target(name)) == ptq
    for name in ("xavier", "agx-orin", "rtx-40", "h100", "cpu"):
        assert offered(mixed, load_target(name)) == mixed


def test_a_recipe_with_nvfp4_is_refused_for_a_target_without(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "quantize"\nformats = ["int8", "nvfp4"]\n', "utf-8")
    flags = ("--recipe", recipe, "--target", "agx-orin", "--max-size", "1MB", "--out", tmp_path / "out")
    assert_refused(edgekd("build", tiny_model, "--data", tiny_data, *flags), "NVFP4 needs sm 10.0")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ('formats = ["int4"]', ("formats[0]", "float16, int8, coded, fp4x")),
        ("formats = []", ("formats", "at least one")),
        ('max_size = "2 XB"', ("max_size 2 XB", "12MB")),
        ('[[steps]]\nkind = "quantize"', ("steps", "at most once each", "quantize, quantize")),
    ],
)
def test_a_wrong_step_is_refused(tmp_path: Path, step: str, words: tuple[str, ...]) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(f'name = "own"\n[[steps]]\nkind = "quantize"\n{step}\n', "utf-8")
    with pytest.raises(SpecError) as caught:
        load_recipe(str(recipe))
    assert all(word in str(caught.value) for word in words), caught.value


def test_training_before_quantizing_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('name = "own"\n[[steps]]\nkind = "quant_aware_distill"\n', "utf-8")
    with pytest.raises(SpecError, match="at most once each"):
        load_recipe(str(recipe))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--recipe", "mixed"), ("recipe mixed chooses formats under a limit", "--max-size or --keep")),
        (("--recipe", "qad", "--keep", "98%"), ("recipe qad trains the detector", "tiny.onnx")),
        (("--recipe", "float", "--plan", "p.toml"), ("recipe float quantizes nothing",)),
    ],
)
def test_a_recipe_without_what_it_needs_is_refused_before_anything_runs(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(edgekd("build", tiny_model, "--data", tiny_data, "--out", tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- builds


def test_a_build_for_a_size_carries_its_plan_and_can_be_repeated_from_it(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    command = ("build", tiny_model, "--data", tiny_data, "--recipe", "mixed")
    assert edgekd(*command, "--out", first, "--max-size", "550kB").code == 0
    bundle = first / "tiny-xavier.edgekd"
    assert bundle.stat().st_size <= 550_000
    manifest = extract(bundle, tmp_path / "unpacked")
    roles = {entry.path: entry.role for entry in manifest.files}
    assert (roles["plan.toml"], roles["graph.packed"]) == ("evidence", "graph")
    assert load_plan(tmp_path / "unpacked" / "plan.toml") == load_plan(first / "plan.toml")
    expanded = unpack((tmp_path / "unpacked" / "graph.packed").read_bytes())
    assert expanded == (first / "graph.onnx").read_bytes()

    ran = edgekd(*command, "--out", second, "--plan", first / "plan.toml", "--json")
    assert "plan" not in [stage["name"] for stage in ran.json["stages"]]
    for name in ("graph.onnx", "graph.packed", "plan.toml"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.slow
def test_what_is_beside_the_graph_is_foreseen(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The size that is left for the graph: a bundle never comes out larger than foreseen, nor much smaller."""
    ran = edgekd(
        "build", tiny_model, "--data", tiny_data, "--recipe", "mixed", "--max-size", "600kB", "--out", tmp_path
    )
    assert ran.code == 0
    foreseen = 600_000 - load_plan(tmp_path / "plan.toml").max_bytes  # type: ignore[operator]
    graph, plan = ((tmp_path / name).stat().st_size for name in ("graph.packed", "plan.toml"))
    beside = (tmp_path / "tiny-xavier.edgekd").stat().st_size - graph - plan
    assert beside - 4096 < foreseen
    assert foreseen < 1.02 * beside + 4096


@pytest.mark.slow
def test_a_size_below_the_rest_of_the_bundle_gives_the_smallest_and_misses(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "mixed", "--max-size", "100kB", "--out", tmp_path, "--json")
    ran = edgekd("build", tiny_model, "--data", tiny_data, *flags)
    assert (ran.code, ran.json["met"]) == (3, False)
    assert "a --max-size of at least 0.3" in ran.err
    assert verify(Path(ran.json["bundle"])).lineage.recipe == "mixed"


def test_a_size_is_kept_though_codes_take_more_bytes_than_predicted(tmp_path: Path) -> None:
    """A plan whose limit follows from predictions alone, three times, is 73 bytes too large."""
    source, step = write(small_model(), tmp_path), Quantize(min_snr_db=-1000, formats=("int8", "coded"))
    step = replace(step, int8_rounding="feedback")
    limit, sizes = 2714, []

    def attempt(plan: Plan) -> Attempt[int]:
        out = tmp_path / "quantized.onnx"
        quantize(source, out, frames(8), step, plan.forms, plan.steps)
        sizes.append(len(pack(out.read_bytes())))
        return Attempt(sizes[-1], out, sizes[-1])

    assert fitted(measure_costs(source, frames(8), step), limit, 0, attempt) == sizes[-1]
    assert sizes[0] > limit >= sizes[-1] > 0.95 * limit


def test_a_search_is_judged_on_training_images_that_were_not_calibrated_on(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    flags = ("--recipe", "mixed", "--keep", "90%", "--out", tmp_path, "--json")
    ran = edgekd("build", tiny_model, "--data", tiny_data, *flags)
    assert ran.code == 0
    found = results(tmp_path, "search")
    assert found["frames"] == "6 training images that were not calibrated on"
    assert found["tried"]
    assert all(set(each) == {"bytes", "kept"} for each in found["tried"])
    assert "6 training images that were not calibrated on" in (tmp_path / "report.html").read_text("utf-8")


# ----------------------------------------------------------------------------------------------------- held-out images


def calibrated(dataset: Any, count: int) -> Calibrated:
    rule = replace(load_rule(), count=count)
    stage = Stage("calibrate", 1, "", Path(), CalibrateResult("", 0, ()), {}, "", 0.0, False, {})
    return Calibrated(stage, choose(dataset, rule), Frames("", lambda: iter(())))


def test_no_copy_of_a_calibrated_or_scored_image_is_held_out(
    tiny_data: Path, context: StageContext, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    train = data / "images" / "train"
    shutil.copy(data / "images" / "val" / "003.png", train / "005.png")
    shutil.copy(train / "001.png", train / "000.png")
    dataset = load_dataset(data)
    scored = dataset.split("val")
    chosen = calibrated(dataset, 5)
    split = held_out(dataset, chosen, scored, context, "detect")
    seen = {read_image(image).tobytes() for image in (*chosen.images.images, *(s.image for s in scored.samples))}
    free = [read_image(sample.image).tobytes() for sample in split.samples]
    assert seen.isdisjoint(free)
    assert 4 <= len(free) <= 6
    again = held_out(dataset, chosen, scored, context, "detect")
    assert [sample.image for sample in again.samples] == [sample.image for sample in split.samples]


def test_half_of_a_small_training_split_is_left_to_a_search(tiny_data: Path, context: StageContext) -> None:
    dataset = load_dataset(tiny_data)
    assert calibration_source(None, dataset, searching=True).count == 6  # type: ignore[union-attr]
    assert calibration_source("11", dataset, searching=True).count == 11  # type: ignore[union-attr]
    with pytest.raises(DataError, match="every training image is calibrated on"):
        held_out(dataset, calibrated(dataset, 12), dataset.split("val"), context, "detect")


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def checkpoint(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained YOLO11 of half an n's width for the tiny classes, at 64 pixels."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ultralytics")
    from edgekd.detectors.ultralytics.distill import student_network

    torch.manual_seed(0)
    network = student_network(Distill("yolo11n.yaml", width=0.125), ("red", "green"), trust=False)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    samples = load_dataset(tiny_data).split("train").samples
    frames = np.stack([read_image(sample.image) for sample in samples]).transpose(0, 3, 1, 2)[:, ::-1] / 255
    with torch.no_grad():  # activations vary like a trained network's after one step of batch statistics
        network.train()(torch.from_numpy(frames.astype(np.float32)))
    path: Path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save({"model": network.eval(), "train_args": {"imgsz": SIDE}}, path)
    return path


@pytest.mark.release
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's and Ultralytics' own
def test_a_recipe_that_trains_ships_the_trained_graph(
    edgekd: EdgeKD, checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text(
        'name = "short"\n[[steps]]\nkind = "quantize"\nmin_snr_db = -100.0\nformats = ["coded", "fp4x", "int8"]\n'
        "frames = 2\n"
        'max_size = "600kB"\n[[steps]]\nkind = "quant_aware_distill"\nepochs = 2\nbatch = 4\nlearning_rate = 1e-3\n',
        "utf-8",
    )
    out = tmp_path / "out"
    ran = edgekd(
        "build", checkpoint, "--data", tiny_data, "--recipe", recipe, "--out", out, "--json", "--trust-checkpoint"
    )
    assert ran.code == 0, ran.err
    names = [stage["name"] for stage in ran.json["stages"]]
    assert names.index("quantize") < names.index("quant_aware_distill") < names.index("score-int8")
    found = results(out, "quant_aware_distill")
    assert (found["epochs"], len(found["losses"])) == (2, 2)
    assert all(loss > 0 for epoch in found["losses"] for loss in epoch.values())
    ledger = json.loads((out / "ledger.json").read_bytes())
    assert ledger["losses"] == found["losses"]
    assert_documented(ledger, "ledger")
    stages = {stage["name"]: stage["files"] for stage in ledger["stages"]}
    before, after = stages["quantize"], stages["quant_aware_distill"]
    assert before["graph.onnx"] != after["graph.onnx"] == file_sha256(out / "graph.onnx")
    assert before["calibration.cache"] != after["calibration.cache"], "what Q/DQ does not scale is measured again"
    assert found["calibration_cache"]["missing"] == 0
    extract(out / "tiny-xavier.edgekd", tmp_path / "bundle")
    scales = from_text((tmp_path / "bundle" / "calibration.cache").read_text("ascii"))
    plain = plain_graph((out / "graph.onnx").read_bytes())
    assert missing_scales(plain.onnx, scales) == ()
    assert plain.scales.items() <= scales.items()
    packed = {entry.path: entry for entry in verify(out / "tiny-xavier.edgekd").files}
    assert packed["graph.packed"].length <= 600_000
    assert {"plan.toml", "calibration.cache"} <= set(packed)
    forms = {layer.form for layer in read_layers(out / "graph.onnx")}
    assert "coded" in forms
    assert "in the last; epochs: 2" in (out / "report.html").read_text("utf-8")


def test_a_training_image_that_is_also_scored_is_refused(
    tiny_data: Path, context: StageContext, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    shutil.copy(data / "images" / "val" / "005.png", data / "images" / "train" / "002.png")
    dataset = load_dataset(data)
    with pytest.raises(DataError, match=r"002\.png is trained on and, as .*005\.png, scored"):
        context.refuse_shared(dataset.split("train"), dataset.split("val"))
