"""A validation runs each engine in a process of its own, goes on after a crash, and names no board.

Runs on cameras' Pythons, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, identity_of
from test_device import XAVIER, planted

from edgekd.agent.validation.coordinator import ValidationEffort, ValidationError, validate
from edgekd.agent.validation.evidence import Process, from_json, loads
from edgekd.agent.validation.machine import MachineMoment, anonymous, read_moment, read_versions
from edgekd.agent.validation.process import Job, perform
from edgekd.agent.validation.verdicts import INCOMPLETE, NONE_TESTED, SOME_REFUTED
from edgekd.core.errors import SpecError

SHORT = ValidationEffort(iterations=2, seconds=0, patience_s=60)
FORMS = ["float", "fp32-weights", "int8-constants"]


def result(out: Path) -> Any:
    """What was written; it must be what the verdicts can read."""
    loads(out.read_bytes())
    return json.loads(out.read_text("utf-8"))


def steps(attempt: Any) -> dict[str, str]:
    return {step["name"]: step["outcome"] for step in attempt["steps"]}


def planted_runtime(folder: Path, source: str) -> Path:
    """A package `onnxruntime` that does this when it is imported."""
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text(source, "utf-8")
    (folder / "onnxruntime-1.0.dist-info").mkdir()
    (folder / "onnxruntime-1.0.dist-info" / "METADATA").write_text("Name: onnxruntime\nVersion: 1.0\n", "utf-8")
    return folder


def in_process(job: Job, folder: Path, patience_s: float) -> tuple[Process, str]:
    """Run a job here, without a process of its own."""
    perform(job)
    return Process(0, None, False, 0.5), ""


def test_every_form_and_step_goes_into_one_file(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    summary = validate(bundle, out, tmp_path, runtimes=("null",), effort=SHORT)
    found = result(out)
    assert (found["format"], found["complete"], found["problem"]) == (1, True, None)
    assert found["preparation"]["steps"][0]["result"]["identity"] == identity_of(bundle)
    assert [each["form"] for each in found["attempts"]] == FORMS
    for attempt in found["attempts"]:
        assert steps(attempt) == {"build": "passed", "inspect": "not here", "selftest": "passed", "bench": "passed"}
        assert attempt["process"]["exit_code"] == 0
        assert set(attempt["steps"][0]["before"]) == {"temperatures_c", "clocks_mhz", "available_bytes"}
    record = found["attempts"][0]["steps"][0]["result"]
    assert (record["source"], record["realized"]["layers"]) == ("float", {"fp16": 1})
    assert found["attempts"][2]["steps"][0]["result"]["source"] == "graph"
    assert found["attempts"][1]["steps"][3]["result"]["inference_ms"]["p50"] == pytest.approx(10)
    confirmed = [each for each in found["verdicts"] if each["outcome"] == "confirmed"]
    assert summary.outcomes["confirmed"] == len(confirmed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"], "nothing else is left"


CRASHES = [
    ("import ctypes; ctypes.string_at(0)", "SIGSEGV", False, SOME_REFUTED),
    pytest.param("import os; os.kill(os.getpid(), 9)", "SIGKILL", False, INCOMPLETE, marks=pytest.mark.slow),
    pytest.param("import time; time.sleep(600)", "SIGKILL", True, INCOMPLETE, marks=pytest.mark.slow),
    ("import os; os._exit(7)", None, False, INCOMPLETE),
]


@pytest.mark.parametrize(("source", "signal", "timed_out", "code"), CRASHES, ids=["crash", "kill", "hang", "exit"])
def test_a_process_that_ends_ends_alone(
    source: str, signal: str, timed_out: bool, code: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(planted_runtime(tmp_path / "packages", source)), prepend=":")
    patience = ValidationEffort(2, 0, 4 if timed_out else 60)
    with pytest.raises(ValidationError) as caught:
        validate(bundle, tmp_path / "result.json", tmp_path, runtimes=("onnxruntime", "null"), effort=patience)
    found = result(tmp_path / "result.json")
    assert caught.value.agent_exit_code == code
    assert [each["runtime"] for each in found["attempts"]] == ["onnxruntime"] * 3 + ["null"] * 3
    for attempt in found["attempts"][:3]:
        ended = attempt["process"]
        assert (ended["signal"], ended["timed_out"]) == (signal, timed_out)
        assert ended["exit_code"] == (7 if signal is None else None)
        assert (attempt["running"], attempt["steps"]) == ("build", [])
    assert all(steps(each)["bench"] == "passed" for each in found["attempts"][3:]), "the others go on"
    outcome = "refuted" if code == SOME_REFUTED else "not tested"
    assert {each["outcome"] for each in found["verdicts"] if each["runtime"] == "onnxruntime"} == {outcome}


def test_what_a_library_raises_and_prints_is_evidence(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import sys; print('x' * 9000, file=sys.stderr); raise RuntimeError('CUDA driver version is insufficient')"
    monkeypatch.setenv("PYTHONPATH", str(planted_runtime(tmp_path / "packages", source)), prepend=":")
    with pytest.raises(ValidationError):
        validate(bundle, tmp_path / "result.json", tmp_path, runtimes=("onnxruntime",), effort=SHORT)
    attempt = result(tmp_path / "result.json")["attempts"][0]
    assert attempt["steps"][0]["error"] == "RuntimeError: CUDA driver version is insufficient"
    assert attempt["printed"] == "x" * 3999 + "\n", "the end of it"


def test_the_result_is_there_before_anything_runs(bundle: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "result.json", []

    def launch(job: Job, folder: Path, patience_s: float) -> tuple[Process, str]:
        seen.append(result(out))
        raise KeyboardInterrupt

    with pytest.raises(ValidationError) as caught:
        validate(bundle, out, tmp_path, runtimes=("null",), effort=SHORT, launch=launch)
    assert (seen[0]["complete"], seen[0]["attempts"]) == (False, [])
    found = result(out)
    assert (found["complete"], found["problem"]["kind"]) == (False, "interrupted")
    assert caught.value.agent_exit_code == INCOMPLETE
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_writes_the_result_needs_nothing_but_python() -> None:
    script = "import sys, edgekd.agent.validation.coordinator\nassert not {'numpy', 'tensorrt'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_bundle_that_is_damaged_ends_it(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edgekd"
    damaged.write_bytes(bundle.read_bytes()[:-512])
    with pytest.raises(ValidationError) as caught:
        validate(damaged, tmp_path / "result.json", tmp_path, runtimes=("null",), effort=SHORT)
    found = result(tmp_path / "result.json")
    assert (found["problem"]["kind"], found["attempts"]) == ("bundle", [])
    assert caught.value.agent_exit_code == NONE_TESTED
    assert caught.value.found == found["problem"]["message"]


def test_a_runtime_that_is_not_here_is_asked_once(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        validate(bundle, tmp_path / "result.json", tmp_path, runtimes=("trtexec",), effort=SHORT)
    found = result(tmp_path / "result.json")
    assert [each["problem"] is not None for each in found["attempts"]] == [True]
    assert [each["outcome"] for each in found["verdicts"]] == ["not tested", "not tested"]
    assert caught.value.agent_exit_code == NONE_TESTED


def test_a_self_test_that_fails_refutes_and_says_where(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.agent import runtimes
    from edgekd.agent.runtimes.null import NullRuntime

    monkeypatch.setattr(runtimes, "NAMED", (NullRuntime(error=0.5, float_error=0),))
    with pytest.raises(ValidationError) as caught:
        validate(bundle, tmp_path / "result.json", tmp_path, runtimes=("null",), effort=SHORT, launch=in_process)
    found = result(tmp_path / "result.json")
    assert caught.value.agent_exit_code == SOME_REFUTED
    tests = [each for each in found["attempts"][1]["steps"] if each["name"] == "selftest"]
    assert tests[0]["result"]["error"] == {"boxes": 0.5, "scores": 0.5}
    assert steps(found["attempts"][1])["departures"] == "not here"
    assert steps(found["attempts"][1])["bench"] == "passed", "how fast it is can still be said"
    golden = {each["form"]: each["outcome"] for each in found["verdicts"] if each["claim"] == "golden"}
    assert golden == {"float": "confirmed", "fp32-weights": "refuted", "int8-constants": "refuted"}


def test_it_names_the_device_and_neither_the_board_nor_a_person(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = planted(tmp_path / "camera", XAVIER), tmp_path / "result.json"
    source = "raise RuntimeError('/home/jane.doe/.cache/libfoo.so: cannot open')"
    monkeypatch.setenv("PYTHONPATH", str(planted_runtime(tmp_path / "packages", source)), prepend=":")
    with pytest.raises(ValidationError):
        validate(bundle, out, root, runtimes=("onnxruntime",), effort=SHORT)
    text, system = out.read_text("utf-8"), result(out)["system"]
    assert (system["device"]["model"], system["l4t"]) == ("Jetson-AGX", "35.4.1")
    assert system["power_mode"] == {"id": 2, "name": "MODE_15W"}
    for secret in (XAVIER["proc/device-tree/serial-number"].strip("\0"), "jane", str(tmp_path)):
        assert secret
        assert secret not in text


def test_predictions_of_the_kit_say_whether_they_are_of_this_device(bundle: Path, tmp_path: Path) -> None:
    root = planted(tmp_path / "camera", {**XAVIER, "etc/edgekd/compatible": "nvidia,jetson-agx-xavier"})
    known = {
        "target": "xavier",
        "precision": "int8",
        "latency_ms": 9,
        "low_ms": 5,
        "high_ms": 20,
        "power_mode": None,
        "doubts": [],
    }
    other = {**known, "compatible": "nvidia,jetson-nano"}
    kit = tmp_path / "kit.json"
    kit.write_text(json.dumps({"predictions": [other, {**known, "compatible": "nvidia,jetson-agx-xavier"}]}), "utf-8")
    validate(bundle, tmp_path / "result.json", root, kit=kit, runtimes=("null",), effort=SHORT)
    found = from_json(result(tmp_path / "result.json"))
    assert [each.fits for each in found.predictions] == [False, True]
    kit.write_text("[]", "utf-8")
    with pytest.raises(SpecError, match=r"kit.json: cannot be read"):
        validate(bundle, tmp_path / "other.json", root, kit=kit, runtimes=("null",), effort=SHORT)


def test_clocks_temperatures_and_versions_are_read_as_they_are(tmp_path: Path) -> None:
    root = planted(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
            "sys/class/thermal/thermal_zone0/temp": "41500\n",
            "sys/class/thermal/thermal_zone1/type": "PMIC-Die\n",
            "sys/class/thermal/thermal_zone1/temp": "100000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2265600\n",
            "sys/class/devfreq/15880000.nvdla0/cur_freq": "1395200000\n",
            "proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   80 kB\n",
            "usr/lib/aarch64-linux-gnu/libnvinfer.so.8": "",
            "usr/lib/aarch64-linux-gnu/libnvinfer.so.8.5.2": "",
            "usr/lib/aarch64-linux-gnu/libcudnn.so.8.6.0": "",
            "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK",\n "version" : "11.4.19"}}',
        },
    )
    assert read_moment(root) == MachineMoment(
        temperatures_c={"CPU-therm": 41.5, "PMIC-Die": 100.0},
        clocks_mhz={"cpu0": 2265.6, "15880000.nvdla0": 1395.2},
        available_bytes=80 * 1024,
    )
    versions = read_versions(root)
    assert (versions.tensorrt, versions.cudnn, versions.cuda) == ("8.5.2", "8.6.0", "11.4.19")


def test_folders_and_people_are_taken_out_of_any_text() -> None:
    raw = {"a": ["/home/jane/kit/state/x", "see '/home/joe'"], "b": 1, "c": "nvidia,tegra194"}
    assert anonymous(raw, [Path("/home/jane/kit")]) == {
        "a": ["state/x", "see '/home/USER'"],
        "b": 1,
        "c": "nvidia,tegra194",
    }


def test_the_command_answers_with_the_verdicts(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    answer = agent("validate", bundle, "--out", tmp_path / "result.json", "--quick", "--patience", 60)
    assert answer.result["complete"]
    assert {each["runtime"] for each in answer.result["verdicts"]} == {"null", None}


def test_a_misspelt_runtime_is_refused(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    answer = agent("validate", bundle, "--out", tmp_path / "result.json", runtime="tensort")
    assert answer.error["fix"] == "did you mean 'tensorrt'?"


def test_where_it_cannot_write_it_does_nothing(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    answer = agent("validate", bundle, "--out", tmp_path / "none" / "result.json")
    assert answer.error["kind"] == "SpecError"
