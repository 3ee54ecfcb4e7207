"""What the agent prints against its published schema, and its page against what it can do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cameras import Agent, repacked
from fake_tensorrt import installed
from signer import signed, trust_file
from test_device import XAVIER, planted
from test_json_contract import assert_documented

from edgekd.agent.cli import COMMANDS, main
from edgekd.agent.runtimes import AUTOMATIC, NAMED
from edgekd.core.bundle.archive import verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "agent.md"


def test_every_command_prints_what_the_schema_says(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    root = planted(tmp_path / "camera", {**XAVIER, "etc/edgekd/compatible": verify(bundle).target.compatible})
    calls: list[tuple[str, tuple[object, ...]]] = [("verify", (bundle,)), ("status", ()), ("unpack", (bundle,))]
    calls += [("build", ()), ("selftest", ()), ("bench", ("--iterations", 2, "--seconds", 0)), ("activate", ())]
    calls += [("unpack", (newer,)), ("build", ()), ("selftest", ()), ("activate", ()), ("status", ())]
    calls += [("rollback", ()), ("status", ()), ("renew", ()), ("build", ("--require", "int8=0.5"))]
    calls += [("tune", ("--iterations", 2, "--seconds", 0)), ("tune", ("--reset",))]
    calls += [("validate", (newer, "--out", tmp_path / "result.json", "--quick")), ("unpack", (newer,))]
    calls += [("install", (newer, "--window", 60, "--max-latency", 20)), ("status", ()), ("boot", ()), ("commit", ())]
    calls += [("install", (bundle, "--tries", 1)), ("boot", ()), ("status", ()), ("boot", ())]
    calls += [("trust", (trust_file(tmp_path / "trust.json"),)), ("status", ())]
    calls += [("verify", (signed(bundle, tmp_path / "signed.edgekd", 1),))]
    for command, arguments in calls:
        answer = agent(command, *arguments, root=root)
        assert answer.code == 0, answer.document
        assert_documented(answer.document, "agent")
        assert answer.document["command"] == command


@pytest.mark.parametrize("call", [("verify", "none.edgekd"), ("rollback",), ("build",), ("frobnicate",), ()])
def test_errors_are_as_the_schema_says(agent: Agent, call: tuple[str, ...]) -> None:
    answer = agent(*call) if call else agent("--nonsense")
    assert answer.error["what"]
    assert_documented(answer.document, "agent")
    assert answer.document["ok"] is False


def test_the_page_explains_every_command_flag_and_runtime() -> None:
    page = PAGE.read_text("utf-8")
    for command, (_, arguments) in COMMANDS.items():
        assert f"`{command}" in page, command
        (usage,) = re.findall(f"^agent.pyz {command} (.*)$", page, re.MULTILINE)
        words = {"bundle": "BUNDLE", "trust_files": "TRUST", "delta": "DELTA", "url": "URL"}
        assert re.findall(r"--[\w-]+|^BUNDLE|^TRUST|^DELTA|^URL", usage) == [
            words.get(name, name) for name in arguments
        ]
    for runtime in (*AUTOMATIC, *NAMED):
        assert f"`{runtime.name}`" in page


def test_a_validation_is_as_the_schemas_say(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert_documented(agent("validate", bundle, "--out", out, "--quick").document, "agent")
    assert_documented(json.loads(out.read_bytes()), "validation")
    (tmp_path / "bundle.edgekd").write_bytes(bundle.read_bytes()[:-1])
    answer = agent("validate", tmp_path / "bundle.edgekd", "--out", out)
    assert answer.code == 3, "nothing could be tested"
    assert answer.document["error"]["kind"] == "ValidationError"
    assert_documented(answer.document, "agent")
    assert_documented(json.loads(out.read_bytes()), "validation")


@pytest.mark.parametrize("version", ["8.5.2.2", "11.4.1"])
def test_what_tensorrt_adds_is_as_the_schema_says(
    agent: Agent, bundle: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, version, dla_cores=2)
    agent("unpack", bundle)
    for runtime in ("tensorrt", "tensorrt-dla0"):
        quick = ("--iterations", 2, "--seconds", 0)
        for call in (("build", "--require", "fp32=1"), ("build",), ("tune", *quick), ("activate",), ("renew",)):
            answer = agent(*call, runtime=runtime)
            assert answer.code == ("--require" in call), answer.document
            assert_documented(answer.document, "agent")


def test_status_and_renew_go_by_the_runtime_in_service(
    agent: Agent, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, "8.5.2.2", dla_cores=2)
    agent("unpack", bundle)
    for command in ("build", "selftest", "activate"):
        agent(command, runtime="tensorrt-dla0")

    def told(command: str) -> Any:
        capsys.readouterr()
        main([command, "--state", str(tmp_path / "state"), "--root", str(tmp_path / "root")])
        return json.loads(capsys.readouterr().out)["result"]

    assert told("status")["runtime"]["name"] == "tensorrt-dla0"
    assert told("status")["active"]["engine"]["stale"] == []
    assert told("renew")["changed"] is False
    monkeypatch.undo()
    assert told("status")["runtime"]["name"] == "onnxruntime", "what is left"


def test_an_installation_that_fails_is_as_the_schema_says(agent: Agent, bundle: Path) -> None:
    answer = agent("install", bundle, "--max-latency", 1)
    assert answer.document["result"]["latency"]["p50_ms"] == 10
    assert_documented(answer.document, "agent")
    assert agent("boot").code == 0
    assert_documented(agent("boot").document, "agent")


def test_what_is_required_of_an_engine_is_a_precision_and_a_share(agent: Agent) -> None:
    for told in ("int8", "int8=much", "int8=0", "int8=1.5", "=0.5"):
        assert agent("build", "--require", told).error["what"] == f"--require {told}"


def test_the_page_draws_the_state_folder_as_it_is(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    counted = signed(repacked(bundle, tmp_path / "counted", counter=1), tmp_path / "counted.edgekd", 1)
    first = ("trust", trust_file(tmp_path / "trust.json"))
    for call in (first, ("unpack", counted), ("build",), ("tune",), ("selftest",), ("activate",)):
        assert agent(*call).code == 0
    (tmp_path / "state" / "timings" / "tensorrt").mkdir(parents=True)
    (drawing,) = [block for block in PAGE.read_text("utf-8").split("```") if "slots/\n" in block]
    drawn = set(re.findall(r"^ +([\w.]+)(?:/| |$)", drawing, re.MULTILINE))
    found = {path.name for path in (tmp_path / "state").rglob("*") if "bundle" not in path.parent.name}
    assert {name for name in found if not re.fullmatch("[0-9a-f]{16}", name)} - drawn == set()
