"""The command line follows from a function: a parameter that is added there is an option here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from edgekd.commands.cli.derive import callback
from edgekd.commands.parameter import Argument, Option
from edgekd.core.errors import BudgetError
from edgekd.core.progress import SILENT, Progress


@dataclass(frozen=True)
class Answer:
    """The result of a command."""

    document: Any


def toast(
    bread: Annotated[str | Path, Argument("What to toast.", metavar="BREAD")],
    out: Annotated[str | Path, Option("The plate.")],
    *,
    level: Annotated[int, Option("How brown.", minimum=1, maximum=9)] = 3,
    name: Annotated[str | Mapping[str, Any] | None, Option("A recipe.")] = None,
    keys: Annotated[str | Path | Sequence[str | Path], Option("One of several.", flag="--key")] = (),
    labels: Annotated[str | Sequence[str], Option("As they are.")] = (),
    dry: Annotated[bool, Option("Without butter.")] = False,
    fresh: Annotated[bool, Option("Use old bread, or not.", inverse="--stale")] = False,
    score: Annotated[bool, Option("Taste it.", inverse="--no-score")] = True,
    progress: Progress = SILENT,
) -> Answer:
    """Toast."""
    return Answer({each: repr(value) for each, value in locals().items()})


def run(function: Callable[..., Any], *arguments: object, run_name: str | None = None, **show: Any) -> Any:
    """Call the command of a function. show: what prints its result."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command("toast")(callback(function, show.get("show", lambda result: print("shown")), run_name))
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "160", "TERMINAL_WIDTH": "160"})


def given(*arguments: object) -> dict[str, str]:
    """The arguments that the function gets."""
    ran = run(toast, *arguments, "--json")
    assert ran.exit_code == 0, ran.output
    found: dict[str, str] = json.loads(ran.stdout)
    return found


def test_the_defaults_are_those_of_the_function() -> None:
    found = given("rye", "--out", "plate")
    assert found.pop("progress") != repr(SILENT)
    assert found == {
        "bread": "PosixPath('rye')",
        "out": "PosixPath('plate')",
        "level": "3",
        "name": "None",
        "keys": "()",
        "labels": "()",
        "dry": "False",
        "fresh": "False",
        "score": "True",
    }


def test_every_flag_reaches_the_parameter_in_its_type() -> None:
    flags = "--level 9 --name rye --key a --key b --labels x --labels y --dry --fresh --no-score".split()
    found = given("rye", "--out", "plate", *flags)
    assert (found["level"], found["name"], found["labels"]) == ("9", "'rye'", "['x', 'y']")
    assert found["keys"] == "[PosixPath('a'), PosixPath('b')]"
    assert (found["dry"], found["fresh"], found["score"]) == ("True", "True", "False")
    assert given("rye", "--out", "plate", "--stale")["fresh"] == "False"


def test_help_has_the_texts_types_limits_and_defaults() -> None:
    text = " ".join(run(toast, "--help").output.split())
    for part in (
        "What to toast.",
        "The plate. [required]",
        "How brown. [default: 3; 1<=x<=9]",
        "--stale / --fresh Use old bread, or not. [default: stale]",
        "--score / --no-score Taste it. [default: score]",
        "--dry Without butter.",
    ):
        assert part in text
    assert "--no-dry" not in text
    assert "--log" not in text


@pytest.mark.parametrize(
    "arguments", [["rye"], ["rye", "--out", "p", "--level", "10"], ["rye", "--out", "p", "--log", "x"]]
)
def test_what_is_missing_too_large_or_unknown_is_refused(arguments: list[str]) -> None:
    assert run(toast, *arguments).exit_code == 2


def test_a_parameter_that_is_added_is_an_option() -> None:
    def butter(*, grams: Annotated[float, Option("How much butter.", minimum=0)] = 2.5) -> Answer:
        """Spread."""
        return Answer(grams)

    assert run(butter, "--json").stdout == "2.5\n"
    assert run(butter, "--grams", "4", "--json").stdout == "4.0\n"
    text = " ".join(run(butter, "--help").output.split())
    assert "How much butter. [default: 2.5; x>=0.0]" in text or "How much butter. [default: 2.5; x>=0]" in text


def test_a_parameter_that_is_not_declared_is_named() -> None:
    def butter(*, grams: float = 2.5) -> Answer:
        """Spread."""
        return Answer(grams)

    with pytest.raises(TypeError, match=r"butter: parameter 'grams' needs Annotated"):
        callback(butter, print)


def test_the_result_is_shown_unless_json_is_asked_for() -> None:
    assert run(toast, "rye", "--out", "p").stdout == "shown\n"
    assert "shown" not in run(toast, "rye", "--out", "p", "--json").stdout


def test_a_log_is_kept_where_runs_have_a_name(tmp_path: Path) -> None:
    def bake(loaf: Annotated[str | Path, Argument("A loaf.")], *, progress: Progress = SILENT) -> Answer:
        """Bake."""
        progress.stage("oven", {"degrees": 220}, 1.5)  # type: ignore[attr-defined]
        return Answer({})

    log = tmp_path / "log.jsonl"
    assert run(bake, "rye", "--log", log, run_name="bake {loaf.name}").exit_code == 0
    assert json.loads(log.read_text("utf-8"))["values"] == {"seconds": 1.5, "degrees": 220}


def test_the_result_says_the_exit_code_after_it_is_printed() -> None:
    @dataclass(frozen=True)
    class Burnt(Answer):
        @property
        def exit_status(self) -> int:
            return 1

    @dataclass(frozen=True)
    class Missed(Answer):
        def require_met(self) -> None:
            raise BudgetError("too brown")

    ran = run(lambda: Burnt({"brown": True}), "--json")
    assert (ran.exit_code, json.loads(ran.stdout)) == (1, {"brown": True})
    ran = run(lambda: Missed({"brown": True}), "--json")
    assert isinstance(ran.exception, BudgetError)
    assert json.loads(ran.stdout) == {"brown": True}
