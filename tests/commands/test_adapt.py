"""A variant for other conditions: better there, the same graph with other numbers, and on a camera by a small delta."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import tiny
from once import once
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.commands import adapt as adapt_module
from edgekd.commands.adapt import FEWEST, VARIANT, adapt, adapt_graph
from edgekd.commands.cli.printing import print_adapted
from edgekd.core.bundle.archive import extract, read_head, read_manifest
from edgekd.core.drift import MIN_FRAMES, from_json
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.formats.activations import missing_scales
from edgekd.core.formats.calibration_cache import from_text
from edgekd.core.formats.packed_graph import unpack
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.core.typed_values import from_plain
from edgekd.data.dataset import load_dataset
from edgekd.data.demo import DETECTOR, SCENES
from edgekd.data.images import read_image
from edgekd.data.types import Split
from edgekd.deploy.artifact import opened
from edgekd.deploy.variant import Variant
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.view import load_graph

FRAMES = MIN_FRAMES
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def dark(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Little light, counted in few photons."""
    return np.clip(rng.poisson((image / 255.0) * 6) / 6 * 45, 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 40, image.shape), 0, 255).astype(np.uint8)


def changed(split: Split, folder: Path, change: Change) -> Split:
    """The split as the conditions show it, written to a folder."""
    folder.mkdir(parents=True)
    samples = []
    for number, sample in enumerate(split.samples):
        image = folder / f"{number:03}.png"
        cv2.imwrite(str(image), change(read_image(sample.image), np.random.default_rng(number)))
        samples.append(replace(sample, image=image))
    return Split(split.name, tuple(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "adapt-known", lambda folder: tiny.write_data(folder, train=24))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of other scenes in the dark; nobody labelled them."""

    def write(folder: Path) -> None:
        scenes = load_dataset(tiny.write_data(folder / "scenes", train=24 + FRAMES)).split("train")
        changed(Split("frames", scenes.samples[24:]), folder / "dark", dark)

    return once(tmp_path_factory, "adapt-frames", write) / "dark"


@pytest.fixture(scope="module")
def made(tiny_build: Built, data: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny bundle's variant for the dark, and what was told of it."""

    def write(folder: Path) -> None:
        places = {"out": folder / "night.edgekd", "twins": folder / "twins"}
        found = adapt(tiny_build.bundle, frames, data, name="night", version_counter=3, **places)
        (folder / "adapt.json").write_text(json.dumps(found.document), "utf-8")

    return json.loads((once(tmp_path_factory, "adapt-night", write) / "adapt.json").read_bytes())


def graph_of(bundle: Path) -> Any:
    with opened(bundle, None, (), False) as (graph, _):
        return onnx.load(graph)


def test_it_finds_again_what_the_bundle_no_longer_finds(
    made: Any, tiny_build: Built, data: Path, tmp_path: Path
) -> None:
    night = changed(load_dataset(data).split("val"), tmp_path / "night", dark)
    found = []
    for bundle in (tiny_build.bundle, Path(made["bundle"])):
        with opened(bundle, None, (), False) as (graph, spec):
            score = evaluate(graph, spec, night)
        found.append(sum(np.count_nonzero(each.scores >= 0.25) for each in score.detections))
    things = sum(len(sample.truth.boxes) for sample in night.samples)
    assert found[0] < 0.2 * things
    assert 0.8 * things < found[1] < 1.2 * things
    assert score.score.map50 > 0.9
    assert made["error"]["after"] < 0.5 * made["error"]["before"]


def test_what_is_told(made: Any, tiny_build: Built) -> None:
    assert_documented(made, "adapt")
    base, variant = tiny_build.bundle, Path(made["bundle"])
    assert (made["base"], made["identity"]) == (read_head(base).identity, read_head(variant).identity)
    assert (made["bytes"], made["delta_bytes"]) == (variant.stat().st_size, Path(made["delta"]).stat().st_size)
    assert made["delta_bytes"] < 0.1 * made["bytes"]
    assert (made["pictures"], made["frames"], made["drift_frames"]) == (24, FRAMES, FRAMES)
    assert made["look"]["brightness"][1] < made["look"]["brightness"][0]
    assert made["shown"]["images"] == made["clean"]["images"] == 8
    assert made["clean"]["before"] == pytest.approx(read_manifest(base).evidence.after.map50_95)


def test_the_data_as_the_frames_would_show_it(made: Any, data: Path) -> None:
    """To be trained on: labels are where they were, pictures are as dark as the frames."""
    known, twins = load_dataset(data), load_dataset(Path(made["twins"]))
    assert twins.classes == known.classes
    for name in ("train", "val"):
        pairs = list(zip(known.split(name).samples, twins.split(name).samples, strict=True))
        for sample, twin in pairs:
            np.testing.assert_allclose(twin.truth.boxes, sample.truth.boxes, atol=2e-6)
            np.testing.assert_array_equal(twin.truth.classes, sample.truth.classes)
        before, after = (np.mean([read_image(each.image).mean() for each in side]) for side in zip(*pairs, strict=True))
        assert after < 0.5 * before


def test_only_numbers_of_the_graph_are_others(made: Any, tiny_build: Built) -> None:
    before, after = graph_of(tiny_build.bundle), graph_of(Path(made["bundle"]))
    differ = []
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert (old.name, old.dims, old.data_type) == (new.name, new.dims, new.data_type)
        if old != new:
            differ.append(old.name)
            new.CopyFrom(old)
    assert before == after
    assert any("int8" in name for name in differ)
    assert any("scale" in name for name in differ)


def test_the_manifest_says_what_it_is(made: Any, tiny_build: Built, tmp_path: Path) -> None:
    base, manifest = read_manifest(tiny_build.bundle), extract(Path(made["bundle"]), tmp_path / "files")
    assert (manifest.name, manifest.counter, manifest.target) == (f"{base.name}-night", 3, base.target)
    told = manifest.extensions[VARIANT]
    assert (told["name"], told["of"], told["frames"]) == ("night", made["base"], FRAMES)
    assert manifest.evidence.before == base.evidence.before
    assert manifest.evidence.after.map50_95 == made["clean"]["after"]
    assert manifest.lineage.stages[:-1] == base.lineage.stages
    assert manifest.lineage.stages[-1].name == "adapt"
    evidence = json.loads((tmp_path / "files" / "evidence.json").read_bytes())
    assert evidence["after"]["map50_95"] == made["clean"]["after"]
    record = from_json((tmp_path / "files" / "drift.json").read_bytes())
    assert (record.frames, record.knots[0][-1] < 40) == (FRAMES, True), "it is of frames in the dark"
    extract(tiny_build.bundle, tmp_path / "old")
    old, new = (from_text((tmp_path / name / "calibration.cache").read_text("ascii")) for name in ("old", "files"))
    assert old.keys() == new.keys()
    plain = plain_graph(unpack((tmp_path / "files" / manifest.graph.path).read_bytes()))
    assert missing_scales(plain.onnx, new) == ()
    assert plain.scales.items() <= new.items()
    assert old != new


def test_the_same_inputs_give_the_same_bytes(
    made: Any, tiny_build: Built, data: Path, frames: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(frames, tmp_path / "frames")
    adapt(tiny_build.bundle, elsewhere, data, name="night", out=tmp_path / "again.edgekd", version_counter=3)
    assert (tmp_path / "again.edgekd").read_bytes() == Path(made["bundle"]).read_bytes()
    assert (tmp_path / "again.edgekd-delta").read_bytes() == Path(made["delta"]).read_bytes()


def test_a_camera_installs_it_by_its_delta(made: Any, tiny_build: Built, tmp_path: Path) -> None:
    from edgekd.agent.cli import main
    from edgekd.agent.variants import Variants

    where = ["--state", str(tmp_path / "state"), "--root", str(tmp_path), "--runtime", "onnxruntime"]
    assert main(["install", str(tiny_build.bundle), *where]) == 0
    assert main(["install", made["delta"], "--model", "night", *where]) == 0, "its self-test has passed"
    with Variants(tmp_path / "state", [None, "night"]) as served:
        served.use("night")
        assert served.detect(np.zeros((48, 64, 3), np.uint8))[0].identity == made["identity"]


def test_without_labels_with_few_frames_and_of_a_bundle_with_a_role(
    edgekd: EdgeKD, tiny_build: Built, data: Path, frames: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(frames.iterdir())[:FEWEST]:
        shutil.copyfile(file, few / file.name)
    day = tmp_path / "day.edgekd"
    assert edgekd("pack", tiny_build.bundle, "--out", day, "--role", "day").code == 0
    flags = ("--frames", few, "--data", data, "--no-score", "--out", tmp_path / "v.edgekd")
    ran = edgekd("adapt", day, *flags, "--json")
    assert "its delta carries no signature" in ran.err
    found = ran.json
    assert_documented(found, "adapt")
    assert (found["clean"], found["shown"], found["drift_frames"], found["twins"]) == (None,) * 4
    assert found["variant"] == "variant"
    manifest, base = read_manifest(tmp_path / "v.edgekd"), read_manifest(tiny_build.bundle)
    assert manifest.evidence.after.map50_95 == base.evidence.after.map50_95
    assert not any(entry.role == "drift" for entry in manifest.files)
    assert manifest.role == "variant", "that is as which cameras install it"
    print_adapted(from_plain(Variant, found, "adapt"))
    assert "error of scores under these conditions" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("what", "flags", "said"),
    [
        ("name", ["--name", "../up"], "--name ../up"),
        ("out", ["--out", "x.bin"], "ends in .edgekd"),
        ("itself", [], "another file"),
        ("few", [], f"expected at least {FEWEST}"),
        ("none", [], "no image in"),
        ("twins", ["--twins", "."], "is there already"),
        ("scored", [], "adapting and scoring to share no image"),
        ("bundle", [], "not an edgekd bundle"),
        ("data", ["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    edgekd: EdgeKD, tiny_build: Built, data: Path, frames: Path, tmp_path: Path, what: str, flags: list[str], said: str
) -> None:
    bundle, shown, out = tiny_build.bundle, tmp_path / "frames", tmp_path / "v.edgekd"
    shown.mkdir()
    for file in [] if what == "none" else sorted(frames.iterdir())[: FEWEST - (what == "few")]:
        shutil.copyfile(file, shown / file.name)
    if what == "scored":
        shutil.copyfile(data / "images" / "val" / "000.png", shown / "x.png")
    if what == "bundle":
        bundle = tmp_path / "bad.edgekd"
        bundle.write_bytes(b"nothing" * 200)
    if what == "itself":
        out = bundle
    before = tiny_build.bundle.read_bytes()
    ran = edgekd("adapt", bundle, "--frames", shown, "--data", data, "--out", out, *flags)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err.strip().splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not (tmp_path / "v.edgekd").exists()
    assert tiny_build.bundle.read_bytes() == before


@pytest.mark.parametrize("fails", ["night.edgekd-delta", "night.edgekd"])
def test_a_disk_that_fails_leaves_no_half_of_it(
    tiny_build: Built, data: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    copying = adapt_module.copy_file

    def copy(source: Path, path: Path) -> None:
        if path.name == fails:
            raise SpecError(f"{path}: cannot write", found="No space left on device")
        copying(source, path)

    monkeypatch.setattr(adapt_module, "copy_file", copy)
    out = tmp_path / "new" / "night.edgekd"
    with pytest.raises(SpecError, match="No space left"):
        adapt(tiny_build.bundle, frames, data, name="night", out=out, score=False)
    assert not out.exists()


def test_where_it_does_not_help_nothing_is_written(tiny_build: Built, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.edgekd"
    with pytest.raises(CompressError, match="does not help"):
        adapt(tiny_build.bundle, data / "images" / "train", data, name="same", out=out, score=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_rendered_street_in_noise(tmp_path: Path) -> None:
    """A real detector, in float: more than a third of what noise took is there again. Without noise it is another."""
    dataset = load_dataset(SCENES)
    train, val = dataset.split("train"), Split("val", dataset.split("val").samples[:10])
    new = changed(Split("frames", train.samples[:FEWEST]), tmp_path / "frames", noisy)
    night = changed(val, tmp_path / "val", noisy)
    spec = describe(load_graph(DETECTOR), DETECTOR)
    adapt_graph(DETECTOR, tmp_path / "v.onnx", spec, Split("known", train.samples[FEWEST : 2 * FEWEST]), new)
    clean, lost = (evaluate(DETECTOR, spec, split).score.map50_95 for split in (val, night))
    found = evaluate(tmp_path / "v.onnx", spec, night).score.map50_95
    assert lost < 0.5 * clean
    assert found - lost > (clean - lost) / 3
