"""Benchmarks: every page in `bench/results` is rendered from the JSON beside it, and the frame runs a script."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

from edgekd.data.demo import DETECTOR, SCENES
from edgekd.data.images import read_image

BENCH = Path(__file__).resolve().parents[1] / "bench"
PAGES = sorted((BENCH / "results").glob("*.md"))


@pytest.fixture(scope="module", autouse=True)
def bench_modules() -> object:
    """Import from `bench/`, and forget what was imported."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield
    own = {file.stem for file in BENCH.rglob("*.py")}
    for name in (set(sys.modules) - before) & own:
        del sys.modules[name]


def script_of(command: str, page: Path) -> ModuleType:
    """Return the script that a result's command names; without one its page has the script's name."""
    return importlib.import_module(Path(command.split()[1]).stem if command else page.stem)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_made_of_its_result(page: Path) -> None:
    frame = importlib.import_module("frame")
    found = frame.read(page.with_suffix(".json").read_text("utf-8"))
    script = script_of(found.get("command", ""), page)
    assert frame.render(script.page, found) == page.read_text("utf-8")


@pytest.mark.parametrize("script", sorted(BENCH.rglob("*.py")), ids=lambda script: script.stem)
def test_what_a_script_imports_of_the_package_is_there(script: Path) -> None:
    """Also within functions, which run in processes of their own after hours."""
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgekd":
            package = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(package, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_there_are_pages() -> None:
    assert PAGES


def run(given: Any) -> dict[str, Any]:
    assert given.scratch.is_dir()
    return {"rows": [{"name": "a", "error": None}] * given.count}


def page(found: Any) -> Iterator[str]:
    yield f"{len(found.rows)} of {found.count}: `{found.command}`"


@pytest.fixture
def frame(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The frame, which leaves this process its cores."""
    found = importlib.import_module("frame")
    monkeypatch.setattr(found, "use_cores", lambda count: None)
    return found


def test_a_run_is_recorded_with_its_settings_and_its_page_can_be_written_again(
    frame: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "result.json"
    options = (frame.Option("builds", nargs="*", type=Path), frame.Option("--count", 1), frame.Option("--only", []))
    monkeypatch.setattr(sys, "argv", ["bench", "here/a", "b", "--count", "3", "--out", str(out)])
    with pytest.raises(SystemExit, match="0"):
        frame.main(run, page, *options)
    found = json.loads(out.read_bytes())
    assert found["command"] == "python bench/test_bench_pages.py a b --count 3 --threads 2"
    assert (found["count"], found["only"], "builds" in found) == (3, [], False), "paths are no settings"
    written = out.with_suffix(".md").read_text("utf-8")
    assert written.startswith(f"3 of 3: `{found['command']}`")
    out.with_suffix(".md").unlink()
    monkeypatch.setattr(sys, "argv", ["bench", "--page", "--out", str(out)])
    with pytest.raises(SystemExit, match="0"):
        frame.main(run, page, *options, holds=lambda found: len(found.rows) == 3)
    assert out.with_suffix(".md").read_text("utf-8") == written
    with pytest.raises(SystemExit, match="1"):
        frame.main(run, page, *options, holds=lambda found: False)


def test_a_cut_run_goes_on_after_its_finished_rows(frame: ModuleType, tmp_path: Path) -> None:
    first = frame.FinishedRows(tmp_path / "work" / "rows.json", {"size": 64}, 1)
    first.add(frame.Document(name="a", error=None))
    first.add(frame.Document(name="b", error="out of memory"))
    again = frame.FinishedRows(tmp_path / "work" / "rows.json", {"size": 64}, 1)
    assert [row.name for row in again.rows] == ["a"], "what failed is measured again"
    assert again.conditions["date"] == first.conditions["date"]
    with pytest.raises(SystemExit, match="another run"):
        frame.FinishedRows(tmp_path / "work" / "rows.json", {"size": 32}, 1)


def test_a_job_runs_in_a_process_of_its_own(frame: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("def job(numbers, out):\n    return {'sum': sum(numbers), 'out': out}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setenv("PYTHONPATH", f"{tmp_path}:{BENCH.parent}")
        job = importlib.import_module("script").job
        done = subprocess.run(frame.in_process(job, numbers=[1, 2], out=tmp_path), capture_output=True, text=True)
    del sys.modules["script"]
    found = frame.last_json(done.stdout)
    assert (found["sum"], found["out"]) == (3, str(tmp_path)), done.stderr
    assert "numpy" in {name.lower() for name in found["packages"]}


def test_a_session_of_a_peer_has_no_more_threads_than_its_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", onnxruntime.InferenceSession)  # restored at the end
    importlib.import_module("own_cores").keep_to_own_cores()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    greedy = onnxruntime.SessionOptions()
    greedy.intra_op_num_threads = 3
    for options in (None, greedy):
        session = onnxruntime.InferenceSession(str(DETECTOR), options, providers=["CPUExecutionProvider"])
        assert session.get_session_options().intra_op_num_threads == 1


def test_loops_of_tools_find_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    tools = importlib.import_module("frame_times")
    image = read_image(min((SCENES / "images").rglob("*.jpg")))
    by_hand = tools.opencv(DETECTOR, "").timed(image)
    own = tools.edgekd(DETECTOR, "uint8-graph").timed(image)
    assert own[3] == by_hand[3] > 0
    assert all(ms >= 0 for ms in (*own[:3], *by_hand[:3]))
