"""Work in a child process ends at its limits, and its result or error comes back."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.core import limited_process
from edgekd.core.errors import SpecError
from edgekd.core.limited_process import ProcessLimits, run_limited

LIMITS = ProcessLimits(memory_bytes=1 << 28, cpu_seconds=2)


def run(function: str, *arguments: Any) -> Any:
    return run_limited(function, arguments, LIMITS, "a file")


def test_the_result_comes_back_whatever_else_is_printed() -> None:
    assert run("math:sqrt", 4) == 2.0
    assert run("builtins:print", "noise") is None


@pytest.mark.parametrize(
    ("function", "arguments", "found"),
    [
        ("builtins:bytearray", [1 << 32], "MemoryError"),  # of memory
        ("statistics:fsum", [[1.0], "x"], "Error"),
        ("os:abort", [], "signal"),
        ("os:_exit", [0], "exit code 0"),
        ("builtins:pow", [3, 10**9], "signal"),  # of time
    ],
)
def test_a_limit_or_a_crash_ends_the_child_alone(function: str, arguments: list[Any], found: str) -> None:
    with pytest.raises(SpecError, match=found) as caught:
        run(function, *arguments)
    assert str(caught.value).startswith("a file: ")


def test_a_limit_is_at_most_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited_process, "_physical_memory", lambda: 1 << 20)
    with pytest.raises(SpecError, match="MemoryError"):
        run("builtins:bytearray", 1 << 27)


def test_an_error_of_edgekd_keeps_its_parts() -> None:
    with pytest.raises(SpecError, match="unknown kind of model") as caught:
        run("edgekd.detectors.family:require_family", "model.xyz")
    assert caught.value.found == ".xyz"
