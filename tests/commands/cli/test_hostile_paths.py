"""A path that no file system takes ends every command with one line."""

from __future__ import annotations

import pytest
from running import EdgeKD

LONG = "a" * 5_000
COMMANDS = [
    ("build", f"{LONG}.pt", "--data", "data", "--target", "cpu"),
    ("build", f"{LONG}.onnx", "--data", LONG, "--target", "cpu"),
    ("quantize", f"{LONG}.onnx", "--data", LONG),
    ("convert", f"{LONG}.onnx", "--to", "openvino"),
    ("convert", f"{LONG}.edgekd", "--to", "openvino"),
    ("eval", f"{LONG}.onnx", "--data", LONG),
    ("eval", f"{LONG}.packed", "--data", LONG),
    ("bench", f"{LONG}.onnx", "--data", LONG),
    ("check", f"{LONG}.onnx", "--target", "xavier"),
    ("check", f"{LONG}.pt", "--target", "xavier"),
    ("check", "model.onnx", "--target", f"{LONG}.toml"),
    ("predict", f"{LONG}.onnx", "--target", "xavier"),
    ("prune", f"{LONG}.pt", "--data", LONG),
    ("distill", f"{LONG}.pt", f"{LONG}.pt", "--data", LONG),
    ("inspect", f"{LONG}.edgekd"),
    ("verify", f"{LONG}.edgekd"),
    ("compare", LONG, LONG),
    ("report", LONG),
    ("delta", f"{LONG}.edgekd", f"{LONG}.edgekd"),
    ("adapt", f"{LONG}.edgekd", "--frames", LONG),
    ("pack", f"{LONG}.edgekd"),
    ("targets", f"{LONG}.toml"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: f"{arguments[0]}-{len(arguments)}")
def test_a_long_path_is_an_error_of_one_line(edgekd: EdgeKD, arguments: tuple[str, ...]) -> None:
    ran = edgekd(*arguments)
    assert ran.code == 2
    assert "Traceback" not in ran.err
