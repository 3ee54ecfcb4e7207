"""The shipped targets, and what is said about a target file that is wrong."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from edgekd.core.errors import SpecError
from edgekd.hardware.target import (
    EXPORT_OPSET,
    cache_version,
    explain,
    load_target,
    opset_for,
    target_names,
    to_dict,
    version,
)

NAMES = (
    "a100 agx-orin cpu gb10 h100 nano orin-nano orin-nano-super orin-nx"
    " rtx-30 rtx-40 rtx-50 t4 thor tx2 xavier xavier-nx"
).split()
DOUBTS = ("computed", "inferred", "unverified")


def shipped_text(name: str) -> str:
    return (resources.files("edgekd.targets") / f"{name}.toml").read_text("utf-8")


def test_the_shipped_targets_are_the_promised_ones() -> None:
    assert list(target_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_target_is_named_as_its_file(name: str) -> None:
    assert load_target(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_has_a_source_and_an_unverified_one_says_why(name: str) -> None:
    claims = [fact for fact in explain(load_target(name)) if fact.verified is not None]
    assert claims
    for fact in claims:
        assert len(fact.source) > 10, fact
        assert fact.verified or any(doubt in fact.source for doubt in DOUBTS), fact
        assert not fact.verified or not fact.source.startswith(DOUBTS), fact


@pytest.mark.parametrize("name", NAMES)
def test_every_number_in_a_shipped_file_is_a_claim(name: str) -> None:
    for line in shipped_text(name).splitlines():
        key, _, value = line.partition(" = ")
        is_number = re.fullmatch(r"-?[0-9.]+", value)
        assert not is_number, f"{key} states a number without a source"


@pytest.mark.parametrize("name", NAMES)
def test_computed_peaks_follow_from_their_formula(name: str) -> None:
    pattern = re.compile(r"computed: (\d+) tensor cores x (\d+) \w+ multiply-adds per clock x 2 x ([0-9.]+) GHz")
    for fact in explain(load_target(name)):
        if found := pattern.match(fact.source):
            cores, per_clock, ghz = map(float, found.groups())
            assert float(fact.value) == pytest.approx(cores * per_clock * 2 * ghz / 1000, rel=0.01), fact


def test_xavier_is_the_device_of_the_data_sheet() -> None:
    facts = {(fact.group, fact.name): fact.value for fact in explain(load_target("xavier"))}
    expected = {
        ("target", "kind"): "jetson",
        ("target", "engine"): "deferred",
        ("target", "packager"): "rauc",
        ("target", "sm"): "7.2",
        ("target", "max_opset"): "17",
        ("target", "nms"): "native",
        ("software", "tensorrt"): "8.5.2, 8.5.2",
        ("software", "python"): "3.8",
        ("precisions", "conv"): "fp32, fp16, int8",
        ("dla", "count"): "2",
        ("dla", "int8_tops"): "11.4",
        ("dla", "quantization"): "calibration-cache",
        ("memory", "bandwidth_gbs"): "136.5",
        ("peaks", "int8_tops"): "22.6",
        ("power", "total"): "sum",
        ("power", "30W nvpmodel"): "3",
    }
    assert facts | expected == facts


def test_no_target_computes_convolutions_in_fp4() -> None:
    assert not [name for name in NAMES if "nvfp4" in load_target(name).precisions.conv.value]


def test_a_target_without_int8_does_not_default_to_quantization() -> None:
    for name in NAMES:
        target = load_target(name)
        assert target.recipe == ("ptq" if "int8" in target.precisions.conv.value else "float")


def test_an_explanation_groups_facts_and_is_serializable() -> None:
    facts = explain(load_target("agx-orin"))
    groups = [fact.group for fact in facts]
    assert groups == sorted(groups, key=groups.index), "the facts of a group are together"
    assert ("peaks", "int8_tops", "85") in [fact[:3] for fact in facts]
    assert json.loads(json.dumps(to_dict(load_target("agx-orin"))))["dla"]["count"]["value"] == 2


def test_a_users_target_is_read_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "camera.toml"
    mine.write_text(shipped_text("xavier").replace('name = "xavier"', 'name = "camera"') + "\n[budget]\nmin_fps = 60\n")
    target = load_target(str(mine))
    assert (target.name, target.budget.min_fps) == ("camera", 60.0)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown target 'xaver'.*fix: did you mean 'xavier'\?"):
        load_target("xaver")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.toml"):
        load_target(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'kind = "jetson"',
            'kind = "jetsn"',
            r"kind; expected one of jetson, gpu, cpu; found 'jetsn'; fix: .*'jetson'",
        ),
        ('recipe = "ptq"', "recipe = 3", r"recipe; expected a string; found 3"),
        ('recipe = "ptq"', "", r"key 'recipe' is missing"),
        ('recipe = "ptq"', 'recipe = "ptq"\nrecpie = "x"', r"unknown key 'recpie'.*did you mean 'recipe'"),
        ("[peaks]", "[peaks]\nfp16_tflop = 3", r"peaks: unknown key 'fp16_tflop'.*did you mean 'fp16_tflops'"),
        ("sm = { value = 7.2,", 'sm = { value = "7.2",', r"sm: value; expected a number; found '7\.2'"),
        ("sm = { value = 7.2,", "sm = {", r"sm: key 'value' is missing"),
        ('["8.5.2", "8.5.2"]', '["8.6", "8.5.2"]', r"software\.tensorrt: expected two versions, the lower one first"),
        ('["8.5.2", "8.5.2"]', '["8.x", "8.5.2"]', r"software\.tensorrt: expected two versions"),
        ('["8.5.2", "8.5.2"]', '["8.5.2"]', r"software: tensorrt: value; expected 2 values; found \['8\.5\.2'\]"),
        ("tensorrt = {", "tensorrt_rtx = {", r'engine = "deferred": expected software\.tensorrt'),
        ('engine = "deferred"', 'engine = "rtx"', r'engine = "rtx": expected software\.tensorrt_rtx'),
        ('value = "sum"', 'value = "all"', r'power\.total: expected "sum" or one of power\.rails; found "all"'),
        ('default_mode = "MAXN"', 'default_mode = "45W"', r'power\.default_mode: .*found "45W"'),
        ("[memory]", "[memory", r"cannot be read as TOML"),
        ("[[power.modes]]", "[power.modes]", r"cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_file_key_and_reason(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = shipped_text("xavier")
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(SpecError, match=message) as caught:
        load_target(str(file))
    assert "mine.toml" in str(caught.value)


def test_versions_compare_by_number() -> None:
    assert version("10.3") > version("8.6.1") > version("8.5")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("xavier", "8.5.2"),
        ("agx-orin", "10.3.0"),
        ("nano", "8.2.1"),
        ("orin-nano", None),
        ("thor", None),
        ("rtx-40", None),
    ],
)
def test_a_calibration_cache_is_for_dlas_without_qdq_and_for_tensorrt_8(target: str, expected: str | None) -> None:
    assert cache_version(load_target(target)) == expected


@pytest.mark.parametrize(("target", "opset"), [("nano", 13), ("xavier", 16), ("thor", EXPORT_OPSET)])
def test_a_graph_is_exported_with_an_opset_that_the_parser_of_the_target_reads(target: str, opset: int) -> None:
    assert opset_for(load_target(target)) == opset
