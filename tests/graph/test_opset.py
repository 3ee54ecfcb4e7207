"""Opsets are converted in a child process with limits; what ends it is an error of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from normalized_graph import normalized_model, pictures
from onnx import helper
from untrusted_graphs import model_of

import edgekd
from edgekd.core.errors import SpecError
from edgekd.core.limited_process import ProcessLimits, run_limited
from edgekd.graph import opset
from edgekd.graph.session import cpu_session
from edgekd.graph.view import opset_of


@pytest.fixture
def in_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert in a child, as no other test does."""
    monkeypatch.setattr(opset, "run_limited", run_limited)


def model(operator: str = "Relu") -> Any:
    return model_of([helper.make_node(operator, ["x"], ["y"])])


@pytest.mark.parametrize("version", [13, 19])
def test_a_model_is_converted_in_a_child(version: int, in_child: None) -> None:
    converted = opset.to_opset(model(), version, "a.onnx")
    assert (opset_of(converted), opset_of(model())) == (version, 17)
    assert [node.op_type for node in converted.graph.node] == ["Relu"]


def test_the_result_is_the_same_as_in_this_process(in_child: None) -> None:
    converted = opset.to_opset(model(), 19, "a.onnx")
    assert converted == onnx.version_converter.convert_version(model(), 19)


def test_a_conversion_that_fails_is_an_error_with_the_name_of_the_file(in_child: None) -> None:
    with pytest.raises(SpecError, match=r"a\.onnx: opset 17 cannot be converted"):
        opset.to_opset(model("Unknown"), 19, "a.onnx")


def test_a_conversion_that_takes_all_memory_or_time_ends_the_child_alone(
    in_child: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opset, "limits_for", lambda *_, **__: ProcessLimits(memory_bytes=1 << 24, cpu_seconds=5))
    nodes = [helper.make_node("Relu", ["x" if not n else f"t{n - 1}"], [f"t{n}"]) for n in range(30_000)]
    with pytest.raises(SpecError, match="too much memory or time"):
        opset.to_opset(model_of(nodes), 19, "a.onnx")


def test_no_other_module_converts_in_this_process() -> None:
    package = Path(edgekd.__file__).parent
    users = [path.name for path in package.rglob("*.py") if "version_converter" in path.read_text("utf-8")]
    assert sorted(users) == ["compatibility_rules.py", "opset.py"]  # the first names it in an advice


@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_norm_is_written_with_older_operators(residual: bool) -> None:
    lowered = opset.to_opset(normalized_model(residual=residual), 16, "a.onnx")
    assert "LayerNormalization" not in {node.op_type for node in lowered.graph.node}
    (frame,) = pictures(1)
    models = (lowered, normalized_model(residual=residual))
    found, wanted = (cpu_session(each).run(None, {"images": frame})[0] for each in models)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_layer_norm_with_further_outputs_is_not_lowered() -> None:
    given = normalized_model()
    next(node for node in given.graph.node if node.op_type == "LayerNormalization").output.append("deviations")
    with pytest.raises(SpecError, match="opset 19 cannot be converted"):
        opset.to_opset(given, 16, "a.onnx")
