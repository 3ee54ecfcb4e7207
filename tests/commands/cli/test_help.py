"""Help texts: groups, sentences that fit their line, examples that parse; shell completion."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
from running import EdgeKD
from typer import Context

from edgekd.commands.cli import parser
from edgekd.commands.cli.command_table import COMMANDS, GROUPS
from edgekd.commands.cli.tables import has_styles
from edgekd.commands.parameter import OPTION_GROUPS

SUMMARY_CHARACTERS = 60
"""Longest summary, so that it fits a terminal of 80 columns beside the longest name."""


def sections(text: str) -> dict[str, list[str]]:
    """The headings of a help text, and the first words of the lines under each."""
    parts = re.split(r"^([A-Z][\w ]+):$", text, flags=re.MULTILINE)
    return {
        heading: re.findall(r"^  (\S+)", body, re.MULTILINE)
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_commands_are_listed_in_groups_and_none_is_cut(edgekd: EdgeKD) -> None:
    text = edgekd("--help").out
    found = sections(text)
    assert list(found) == [*GROUPS, "Options"]
    for group in GROUPS:
        assert found[group] == [name for name, command in COMMANDS.items() if command.group == group]
    for command in COMMANDS.values():
        assert f" {command.summary}\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_one_short_sentence(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.summary) <= SUMMARY_CHARACTERS
    for text in filter(None, (command.summary, command.details)):
        assert re.fullmatch(r"[A-Z].*\.", text)
    assert not re.search(r"[.!?] ", command.summary)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name: str) -> None:
    assert 2 <= len(COMMANDS[name].examples) <= 4
    command = parser(name)
    for example in COMMANDS[name].examples:
        program, called, *arguments = shlex.split(example)
        assert (program, called) == ("edgekd", name)
        command.make_context(name, arguments).close()


def test_the_check_of_examples_refuses_an_unknown_flag() -> None:
    with pytest.raises(Exception, match="--nmae"):
        parser("keygen").make_context("keygen", ["release", "--nmae", "x"])


def test_options_of_build_are_listed_once_in_groups_and_examples_last(edgekd: EdgeKD) -> None:
    text = edgekd("build", "--help").out
    found = sections(text)
    assert list(found) == ["Arguments", *OPTION_GROUPS, "Options", "Examples"]
    listed = [flag for heading in OPTION_GROUPS for flag in found[heading]]
    assert sorted(listed) == sorted(each.opts[0] for each in parser("build").params if each.opts[0].startswith("--"))
    assert found["Options"] == ["--help"]
    assert text.rstrip().endswith("\n  " + "\n  ".join(COMMANDS["build"].examples))


def test_usage_names_what_a_command_requires() -> None:
    command = parser("profile")
    usage = command.collect_usage_pieces(Context(command, info_name="profile"))
    assert usage == ["BUNDLES ...", "--device TEXT", "--out PATH", "[OPTIONS]"]


@pytest.mark.parametrize(
    ("terminal", "environment", "styled"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_styles_are_for_terminals_without_no_color(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], styled: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    assert has_styles() == styled


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    def completed(*words: str) -> str:
        monkeypatch.setenv("_EDGEKD_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", " ".join(["edgekd", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", " ".join(["edgekd", *words]))
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        return edgekd().out

    assert "keygen" in completed("key")
    assert "build" not in completed("key")
    assert "--encrypt" in completed("keygen", "--enc")
    assert "--out" not in completed("keygen", "--enc")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_edgekd(edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert f"_EDGEKD_COMPLETE=complete_{shell}" in edgekd("--show-completion", shell).out
