"""The readers of realized precision on layer lists and profiles of real engines, which lie beside the checkout.

Ten engines of TensorRT 8.x as NVIDIA's trt-engine-explorer examples have them: ResNet-18 on an A100, ResNet-50 on an
RTX 3090, MobileNetV2; in FP32, FP16 and trained with Q/DQ. The numbers in DUMPS were counted in the JSON by key, not
taken from the reader.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgekd.agent.runtimes import trtexec
from edgekd.agent.runtimes.precision import layers_of, realized
from edgekd.agent.runtimes.types import Layer

RESNET18 = {"convolutions": 21, "weights": 11_678_912, "biases": 5_800}
RESNET50 = {"convolutions": 54, "weights": 25_502_912, "biases": 27_560}
MOBILENET = {"convolutions": 53, "weights": 3_469_760, "biases": 18_056}
BYTES = {"int8": 1, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Dump:
    """One engine's files, and the facts in them.

    precision: type of every convolution's weights; without_work: NoOp layers; other: layers that are neither
    convolutions, reformats nor NoOps, by the type of their tensors; reformat_time: share of the profile's averageMs.
    """

    name: str
    precision: str
    convolutions: int
    weights: int
    biases: int
    reformats: int
    without_work: int
    reformat_time: float
    other: dict[str, int] = field(default_factory=dict)

    @property
    def expected_layers(self) -> dict[str, int]:
        counts = {**self.other, "reformat": self.reformats}
        counts[self.precision] = counts.get(self.precision, 0) + self.convolutions
        return counts

    @property
    def weight_bytes(self) -> int:
        """Biases are FP16 in FP16 engines, else FP32."""
        return self.weights * BYTES[self.precision] + self.biases * (2 if self.precision == "fp16" else 4)


A100, RTX = "pytorch__resnet__A100__", "tensorflow__resnet__RTX-3090__"
DUMPS = (
    Dump(
        f"{A100}fp32__resnet", "fp32", **RESNET18, reformats=1, without_work=8, reformat_time=0.0212, other={"fp32": 2}
    ),
    Dump(
        f"{A100}fp16__resnet", "fp16", **RESNET18, reformats=2, without_work=11, reformat_time=0.0866, other={"fp16": 2}
    ),
    Dump(
        f"{A100}qat__resnet-qat",
        "int8",
        **RESNET18,
        reformats=12,
        without_work=2,
        reformat_time=0.2542,
        other={"fp16": 1, "fp32": 1},
    ),
    Dump(
        f"{A100}qat-residual__resnet-qat-residual",
        "int8",
        **RESNET18,
        reformats=3,
        without_work=1,
        reformat_time=0.1583,
        other={"fp32": 1},
    ),
    Dump(
        f"{A100}qat-residual-qgap__resnet-qat-residual-qgap",
        "int8",
        **RESNET18,
        reformats=1,
        without_work=1,
        reformat_time=0.1416,
        other={"int8": 1},
    ),
    Dump(
        f"{RTX}fp32__resnet", "fp32", **RESNET50, reformats=13, without_work=31, reformat_time=0.0267, other={"fp32": 5}
    ),
    Dump(
        f"{RTX}fp16__resnet",
        "fp16",
        **RESNET50,
        reformats=2,
        without_work=25,
        reformat_time=0.0111,
        other={"fp16": 3, "fp32": 2},
    ),
    Dump(
        f"{RTX}qat__resnet-qat",
        "int8",
        **RESNET50,
        reformats=2,
        without_work=1,
        reformat_time=0.0163,
        other={"fp32": 2, "int8": 4},
    ),
    Dump(
        "tests__inputs__mobilenet.qat",
        "int8",
        **MOBILENET,
        reformats=18,
        without_work=1,
        reformat_time=0.1755,
        other={"fp16": 1},
    ),
    Dump(
        "tests__inputs__mobilenet_v2_residuals.qat",
        "int8",
        **MOBILENET,
        reformats=3,
        without_work=1,
        reformat_time=0.0364,
        other={"fp16": 1},
    ),
)
DUMP = pytest.mark.parametrize("dump", DUMPS, ids=[dump.name.replace("__", "-") for dump in DUMPS])
PROGRAM = """#!{python}
import shutil, sys
flags = dict(each.partition("=")[::2] for each in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v8401]")
if "--help" not in flags:
    shutil.copyfile(flags["--loadEngine"] + ".graph.json", flags["--exportLayerInfo"])
    shutil.copyfile(flags["--loadEngine"] + ".profile.json", flags["--exportProfile"])
"""


@pytest.fixture
def dumps(shared: Path) -> Path:
    return shared / "tensorrt_dumps"


@pytest.fixture
def exporting_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `trtexec` in PATH that exports, of the engine it is asked for, the files that lie beside it."""
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(trtexec, "FOLDERS", ())
    trtexec._version.cache_clear()


def read(dumps: Path, dump: Dump) -> list[Layer]:
    layers = trtexec.Trtexec().layers(dumps / f"{dump.name}.onnx.engine")
    assert layers is not None
    return list(layers)


def graph_of(dumps: Path, dump: Dump) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dumps / f"{dump.name}.onnx.engine.graph.json").read_text())
    return found


def profile_of(dumps: Path, dump: Dump) -> dict[str, float]:
    entries = json.loads((dumps / f"{dump.name}.onnx.engine.profile.json").read_text())
    return {entry["name"]: entry["averageMs"] for entry in entries if "name" in entry}


def is_convolution(kind: str) -> bool:
    return "Conv" in kind


def test_every_engine_beside_the_checkout_is_in_the_table(dumps: Path) -> None:
    assert {path.name for path in dumps.glob("*.graph.json")} == {
        f"{dump.name}.onnx.engine.graph.json" for dump in DUMPS
    }


@DUMP
@pytest.mark.usefixtures("exporting_program")
def test_layers_have_the_times_of_the_profile(dumps: Path, dump: Dump) -> None:
    layers, times = read(dumps, dump), profile_of(dumps, dump)
    assert {layer.name: layer.ms for layer in layers} == times
    assert len(layers) == len(times) == sum(dump.expected_layers.values()) + dump.without_work


@DUMP
@pytest.mark.usefixtures("exporting_program")
def test_convolutions_have_the_precision_of_the_engine(dumps: Path, dump: Dump) -> None:
    convolutions = [layer for layer in read(dumps, dump) if is_convolution(layer.kind)]
    assert [layer.precision for layer in convolutions] == [dump.precision] * dump.convolutions
    assert sum(layer.weight_bytes for layer in convolutions) == dump.weight_bytes
    assert all(layer.weight_bytes and layer.activation_bytes for layer in convolutions)


@DUMP
@pytest.mark.usefixtures("exporting_program")
def test_counts_and_shares_are_those_in_the_files(dumps: Path, dump: Dump) -> None:
    layers = read(dumps, dump)
    report = realized(layers)
    assert report.layers == dump.expected_layers
    assert sum(layer.precision == "none" for layer in layers) == dump.without_work
    for shares in (report.share.layers, report.share.bytes, report.share.time):
        assert "unknown" not in shares
        assert sum(shares.values()) == pytest.approx(1, abs=5e-5 * len(shares))  # each is rounded to 4 digits
    assert report.share_of("reformat") == ("time", pytest.approx(dump.reformat_time, abs=1e-4))


@DUMP
def test_names_of_kernels_say_the_same_as_the_weights(dumps: Path, dump: Dump) -> None:
    """Matrix products of activations have no weights, and kernels of the same families."""
    graph = graph_of(dumps, dump)
    entries = [entry for entry in graph["Layers"] if entry.pop("Weights", None) and "TacticName" in entry]
    for entry in entries:  # kernels alone are left to tell it
        entry["Inputs"], entry["Outputs"] = [], []
    layers = layers_of(json.dumps({"Layers": entries}))
    assert layers
    assert {layer.precision for layer in layers} == {dump.precision}
