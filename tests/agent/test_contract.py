"""What the agent prints against its published schema, and its page against what it can do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cameras import Agent, repacked
from signer import signed, trust_file
from test_device import XAVIER, planted
from test_json_contract import assert_documented, objects, schema_of

from edgekd.agent.cli import COMMANDS
from edgekd.agent.runtimes import AUTOMATIC
from edgekd.bundle.archive import verify

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agent.md"


def test_every_command_prints_what_the_schema_says(agent: Agent, bundle: Path, newer: Path, tmp_path: Path) -> None:
    root = planted(tmp_path / "camera", {**XAVIER, "etc/edgekd/compatible": verify(bundle).target.compatible})
    calls: list[tuple[str, tuple[object, ...]]] = [("verify", (bundle,)), ("status", ()), ("unpack", (bundle,))]
    calls += [("build", ()), ("selftest", ()), ("bench", ("--iterations", 2, "--seconds", 0)), ("activate", ())]
    calls += [("unpack", (newer,)), ("build", ()), ("selftest", ()), ("activate", ()), ("status", ())]
    calls += [("rollback", ()), ("status", ()), ("trust", (trust_file(tmp_path / "trust.json"),)), ("status", ())]
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


def test_the_page_explains_every_command_flag_runtime_and_key() -> None:
    page = PAGE.read_text("utf-8")
    for command, (_, arguments) in COMMANDS.items():
        assert f"`{command}" in page, command
        (usage,) = re.findall(f"^agent.pyz {command} (.*)$", page, re.MULTILINE)
        words = {"bundle": "BUNDLE", "trust_files": "TRUST"}
        assert re.findall(r"--\w+|^BUNDLE|^TRUST", usage) == [words.get(name, name) for name in arguments]
    for runtime in AUTOMATIC:
        assert f"`{runtime.name}`" in page
    missing = {key for each in objects(schema_of("agent")) for key in each["properties"] if f"`{key}`" not in page}
    assert not missing


def test_the_page_draws_the_state_folder_as_it_is(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    counted = signed(repacked(bundle, tmp_path / "counted", counter=1), tmp_path / "counted.edgekd", 1)
    first = ("trust", trust_file(tmp_path / "trust.json"))
    for call in (first, ("unpack", counted), ("build",), ("selftest",), ("activate",)):
        assert agent(*call).code == 0
    (drawing,) = [block for block in PAGE.read_text("utf-8").split("```") if "slots/\n" in block]
    drawn = set(re.findall(r"^ +([\w.]+)(?:/| |$)", drawing, re.MULTILINE))
    found = {path.name for path in (tmp_path / "state").rglob("*") if "bundle" not in path.parent.name}
    assert {name for name in found if not re.fullmatch("[0-9a-f]{16}", name)} - drawn == set()
