"""`edgekd profile`: what a device took, as a table that predictions are corrected by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from install_reports import install_report
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.commands import profile
from edgekd.core.errors import SpecError
from edgekd.deploy.engine_report import InstallReport
from edgekd.hardware.predict.table import load_table
from edgekd.hardware.target import load_target

QUICK = ("--iterations", 3, "--seconds", 0)


def test_a_profile_of_this_machine_corrects_predictions(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    table = tmp_path / "new" / "table.toml"
    # Not ONNX Runtime, which computes no layer of the tiny network in INT8.
    flags = ("--device", "local", "--runtime", "openvino", "--state", tmp_path / "state", *QUICK)
    found = edgekd("profile", tiny_build.bundle, *flags, "--out", table, "--target", "xavier", "--json").json
    assert_documented(found, "profile")
    (network,) = found["networks"]
    read = load_table(table, load_target("xavier"))
    assert (read.precision, read.measured, read.layers) == ("int8", found["measured"], ())
    assert read.networks[0].latency_ms == network["inference_ms"]["p50"] > 0
    assert onnx.load(table.with_name(network["graph"])) == onnx.load(tiny_build.out / "graph.onnx")
    for words in (f"openvino {found['runtime']['version']}", "median of 3 runs", str(found["device"]["cpu"])):
        assert words in found["measured"]
    predicted = edgekd("predict", tiny_build.bundle, "--target", "xavier", "--table", table, "--json").json
    assert_documented(predicted, "predict")
    assert (predicted["measurements"], predicted["measured"]) == (1, found["measured"])
    assert predicted["latency_ms"] == pytest.approx(network["inference_ms"]["p50"], rel=0.001)
    told = edgekd("predict", tiny_build.bundle, "--target", "xavier", "--table", table).out
    assert f"Corrected by what was measured: {found['measured']}." in told


def test_a_device_that_does_not_say_what_it_is(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    flags = ("--device", "local", "--runtime", "onnxruntime", "--state", tmp_path / "state", *QUICK)
    ran = edgekd("profile", tiny_build.bundle, *flags, "--out", tmp_path / "table.toml")
    assert (ran.code, ran.out) == (2, "")
    assert "local: not confirmed to be a xavier" in ran.err
    assert "--target xavier" in ran.err
    assert not list(tmp_path.glob("table*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "null"), "nothing was computed there"),
        (("--device", "null", "--target", "nano"), "one table is of one target; expected one; found nano, xavier"),
        (("--device", "jetson"), "--device jetson"),
    ],
)
def test_what_makes_no_table(
    edgekd: EdgeKD, tiny_build: Built, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    ran = edgekd("profile", tiny_build.bundle, *QUICK, *flags, "--out", tmp_path / "table.toml")
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert not list(tmp_path.glob("table*"))


def test_a_place_that_cannot_be_written_is_noticed_first(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ("--device", "null", "--out", tmp_path / "file" / "table.toml")
    ran = edgekd("profile", tiny_build.bundle, *flags)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert "cannot write" in ran.err


@pytest.fixture
def profiled(tiny_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The result where a device answers that for each bundle."""

    def run(*answers: InstallReport) -> dict[str, Any]:
        left = iter(answers)
        monkeypatch.setattr(profile, "install", lambda job, parts, progress: next(left))
        bundles = [Path(shutil.copy(tiny_build.bundle, tmp_path / f"{i}.edgekd")) for i in range(len(answers))]
        document: dict[str, Any] = profile.profile(bundles, "null", tmp_path / "table.toml").document
        return document

    return run


def test_networks_of_several_bundles_are_in_one_table(profiled: Any, tmp_path: Path) -> None:
    found = profiled(install_report("a", {"int8": 60, "fp16": 3}), install_report("b", {"int8": 9, "fp32": 1}, p50=7.5))
    read = load_table(tmp_path / "table.toml", load_target("xavier"))
    assert [network.latency_ms for network in read.networks] == [4.0, 7.5]
    assert [network.graph for network in read.networks] == [each["graph"] for each in found["networks"]]
    for words in ("tensorrt 8.5.2.2", "200 runs", "NVIDIA Jetson AGX Xavier", "power mode MAXN", "L4T 35.4.1"):
        assert words in read.measured


@pytest.mark.parametrize(
    ("layers", "graph", "precision"),
    [
        ({"int8": 1, "fp16": 60}, "int8", "int8"),
        ({"fp16": 60, "fp32": 3, "reformat": 2}, "int8", "fp16"),
        ({"fp32": 60}, "float", "fp32"),
        (None, "int8", "int8"),
        (None, "float", "fp32"),
    ],
)
def test_the_precision_is_what_layers_really_compute_in(
    profiled: Any, layers: dict[str, int] | None, graph: str, precision: str
) -> None:
    if precision in load_target("xavier").precisions.conv.value:
        assert profiled(install_report("a", layers, graph))["precision"] == precision
    else:
        with pytest.raises(SpecError, match=f"no convolutions in {precision}"):
            profiled(install_report("a", layers, graph))


def test_networks_in_several_precisions_are_refused(profiled: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one table is of one precision; expected one; found fp16, int8"):
        profiled(install_report("a", {"int8": 60}), install_report("b", {"fp16": 9}))
    assert not list(tmp_path.glob("table*"))
