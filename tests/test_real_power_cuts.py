"""The judge of `bench/real_power_cuts.py` and its page, without a virtual camera."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(name="bench", scope="module")
def bench_module() -> Iterator[ModuleType]:
    before = {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("real_power_cuts")
    for name in {*sys.modules} - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


def status(counter: int = 2, passed: bool = True) -> dict[str, Any]:
    engine = {"self_test": {"passed": passed}}
    return {"active": {"counter": counter, "engine": engine}, "counter": counter, "trust": {"version": 1}}


@pytest.mark.parametrize(
    ("changes", "detects", "fault"),
    [
        ({}, 2, ""),
        ({}, None, ""),
        ({}, 1, "detects by 1, in service is 2"),
        ({"active": None}, None, "in service is 0"),
        (status(3), 3, "in service is 3"),
        (status(passed=False), 2, "in service is an engine without a self-test"),
        ({"counter": 1}, 2, "the counter went back to 1"),
        ({"counter": None}, 2, "the counter went back to None"),
        ({"trust": None}, 2, "the trust file went back: None"),
    ],
)
def test_a_fault_is_found(bench: ModuleType, changes: dict[str, Any], detects: int | None, fault: str) -> None:
    sight = bench.Sight(detects, {**status(), **changes}, "A", "", ())
    assert sight.faults((1, 2), 2, 1)[:1] == ([fault] if fault else [])


def test_the_next_run_of_a_boot_ends_with_the_mark_of_the_slot(bench: ModuleType) -> None:
    """RAUC writes a file then, which is missing where nobody waits for it."""
    boots = [bench.next_run(each) for each in bench.OPERATIONS if each.script is None]
    assert len(boots) == 2
    for script in boots:
        assert script.startswith("systemctl start camera; detects; settle;")


def test_functions_of_the_cameras_shell_are_accepted_by_a_shell(bench: ModuleType) -> None:
    scripts = [each.script or ":" for each in bench.OPERATIONS]
    scripts += [part for each in bench.SCENARIOS for part in (each.trouble, each.repair)]
    scripts += [each.script for each in bench.SNAPSHOTS.values()]
    for script in scripts:
        subprocess.run(("sh", "-n"), input=f"{bench.SHELL}\n{script}\n", text=True, check=True)


def test_claims_count_rounds_with_faults(bench: ModuleType) -> None:
    frame = importlib.import_module("frame")
    good = {"operation": "install", "writes": 3, "of": 9, "share": 0.5, "in_operation": True, "unflushed": 7, "lost": 4}
    good |= {
        "cut_s": 1.0,
        "detects_s": 40.0,
        "counter": 1,
        "trial": False,
        "less_bytes": 512,
        "slot": "A",
        "faults": [],
        "seconds": 60.0,
        "ssh_cpu_s": 14.0,
        "cpu_s": 42.0,
    }
    bad = {**good, "faults": ["the counter went back to 0", "units failed: a.service", "next run: files left: ['x']"]}
    silent = {**good, "counter": None, "detects_s": None, "faults": ["RuntimeError: does not answer"]}
    rows = [frame.Document(each, seed=seed) for seed, each in enumerate((good, bad, silent))]
    found = bench.result(type("Kept", (), {"rows": rows, "conditions": {}}), [], 3)
    assert [each["found"] for each in found["claims"]] == [3, 1, 1, 1, 1]
    text = "\n".join(
        bench.page(frame.Document(found, command="c", claims=[frame.Document(c) for c in found["claims"]]))
    )
    assert "install | 3 | 3 | 21 | 12 | 0: 1, 1: 2 | 2 | 512 | 40 | 14 | 42" in text
    assert "0 | install | 3 of 9 | 4 of 7 | 1 | A | as undisturbed | 60" in text


def test_rows_of_the_last_result_count_where_the_software_is_the_same(bench: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "cuts.json"
    given = argparse.Namespace(only=[], out=out, threads=1)
    written = {"only": [], "software": bench.software(), "rows": [{"seed": 3}], "conditions": {"host": {"cpu": "any"}}}
    for software, seeds in ((written["software"], [3]), ("0" * 64, [])):
        out.write_text(json.dumps({**written, "software": software}), "utf-8")
        given.work = tmp_path / software
        assert [row.seed for row in bench.finished_rows(given).rows] == seeds
