"""`--log`: every number once, live or later, in a file or on a server that may fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from running import EdgeKD
from test_cli import assert_refused

from edgekd.commands.cli.tracking import JsonLines, Tracked, numbers, tracked
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Listener, SilentProgress

RESULTS = {"map50_95": 0.5, "ok": True, "tools": {"x": 1}, "after": {"total_ms": {"p50": 2}, "host": {"cores": 2}}}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class Failing:
    """A server that is gone after one write."""

    def __init__(self) -> None:
        self.left, self.closed = 1, False

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("nobody there")

    def close(self, ended: bool) -> None:
        self.closed = True


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_numbers_of_a_stage_are_named_by_where_they_are() -> None:
    assert dict(numbers(RESULTS)) == {"map50_95": 0.5, "after.total_ms.p50": 2.0}


def test_epochs_are_told_live_or_when_their_stage_is_found_but_once(tmp_path: Path) -> None:
    with tracked(str(tmp_path / "new" / "log.jsonl"), SILENT, "test") as progress:
        assert isinstance(progress, Listener)
        progress.epoch("distill", 1, {"box": 2.0})
        progress.stage("distill", {"losses": [{"box": 3.0}, {"box": 2.0}], "bytes": 7}, 1.5)
        progress.stage("distill", {"losses": [{"box": 1.0, "nan": float("nan")}]}, 0.5)
    told = [(line["name"], line["step"], line["values"]) for line in lines(tmp_path / "new" / "log.jsonl")]
    assert told == [
        ("distill", 1, {"box": 2.0}),
        ("distill", 0, {"box": 3.0}),
        ("distill", 0, {"seconds": 1.5, "bytes": 7.0}),
        ("distill", 0, {"box": 1.0}),
        ("distill", 1, {"seconds": 0.5}),
    ]
    assert not isinstance(SILENT, Listener)


def test_a_sink_that_fails_is_said_once_and_costs_nothing() -> None:
    sink, notes = Failing(), Notes()
    listener = Tracked(notes, sink)
    for _ in range(4):
        listener.epoch("distill", 0, {"box": 1.0})
    listener.close(True)
    assert notes.said == ["--log: no more numbers are kept: nobody there"]
    assert not sink.closed


def test_a_build_appends_every_stage_and_again_what_it_finds(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        flags = ("--data", tiny_data, "--out", tmp_path / "out", "--log", log)
        assert edgekd("build", tiny_model, *flags).code == 0
    told = lines(log)
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_bytes())
    first, second = ([line for line in told if line["run"] == run] for run in sorted({each["run"] for each in told}))
    names = [stage["name"] for stage in ledger["stages"]]
    assert [line["name"] for line in first] == [line["name"] for line in second] == names
    scored = next(line for line in first if line["name"] == "score-int8")
    assert scored["values"]["map50_95"] == next(s["map50_95"] for s in ledger["stages"] if s["name"] == "score-int8")
    timed = next(line for line in first if line["name"] == "benchmark")
    assert timed["values"]["after.total_ms.p50"] > 0


def test_where_nothing_can_be_logged_is_said_before_anything_runs(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    flags = ("--data", tiny_data, "--out", tmp_path / "out", "--log")
    assert_refused(edgekd("build", tiny_model, *flags, tmp_path / "file" / "log.jsonl"), "cannot write")
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    assert_refused(edgekd("build", tiny_model, *flags, "mlflow:http://server"), "needs MLflow", "edgekd[mlflow]")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="cannot write"):
        JsonLines(tmp_path / "file" / "log.jsonl")


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "runs").as_uri()
    with suppress(ZeroDivisionError), tracked(f"mlflow:{uri}", SILENT, "test") as progress:
        assert isinstance(progress, Listener)
        progress.epoch("distill", 3, {"box (mean)": 2.0})
        progress.stage("score-int8", RESULTS, 1.5)
        raise ZeroDivisionError
    client = tracking.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("edgekd").experiment_id])
    assert run.info.run_name == "test"
    assert run.info.status == "FAILED"
    assert run.data.metrics["distill/box _mean_"] == 2.0
    assert run.data.metrics["score-int8/after.total_ms.p50"] == 2.0
    assert [each.step for each in client.get_metric_history(run.info.run_id, "distill/box _mean_")] == [3]
