"""Common frame of the benchmarks: options, result as JSON, page as Markdown, exit code.

A benchmark has a function `run`, which measures, and a function `page`, which yields paragraphs and tables about the
result. `main` does the rest. The page depends on the JSON document alone, so `--page` can write it again at any time.
"""

import argparse
import importlib
import inspect
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from common import RESULTS, SHARED, conditions, host_line, use_cores

from edgekd.core.atomic_files import write_file

Given = argparse.Namespace  # parsed command line; `scratch` is a folder that is removed at the end
Result = Mapping[str, Any]  # result of a measurement, serializable as JSON
Blocks = Iterator[str]  # paragraphs and tables of a page
Run = Callable[[Given], "Result | Iterator[Result]"]
"""Measures; returns the result, or yields the result so far after each row."""
Page = Callable[["Document"], Iterable[str]]  # yields the blocks of the page about a result
Job = Callable[..., Mapping[str, Any]]
"""Function of a script that runs in its own process. Its keyword arguments and result must be serializable as JSON."""
PLACES = {"help", "out", "again", "page", "work", "shared", "venvs", "peer", "note", "python", "packages"}
"""Options that are not part of the recorded command: they say where things are, not what is measured."""


class Document(dict[str, Any]):
    """A JSON object whose keys are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Option:
    """A command-line option. Type and number of values follow from the default, unless `more` sets them."""

    def __init__(self, name: str, default: Any = None, help: str | None = None, **more: Any) -> None:  # noqa: A002
        self.name, self.more = name, {"default": default, "help": help, **more}
        several = isinstance(default, (list, tuple))
        one = next(iter(default), None) if several else default
        if default is False:
            self.more["action"] = "store_true"
        elif several and "action" not in more:
            self.more.setdefault("nargs", "+")
        if one is not None and "action" not in self.more:
            self.more.setdefault("type", Path if isinstance(one, Path) else type(one))


def main(
    run: Run, page: Page, *options: Option, holds: Callable[[Document], bool] | None = None, cores: int | None = None
) -> None:
    """Run the benchmark of the script that defines `page`, and exit with 0 if its claims hold, else 1.

    Args:
        options: Options of this benchmark alone.
        holds: Returns whether the result is as claimed. Default: every claim in it holds and no row has an error.
        cores: Number of cores for this process and its children; None adds the option `--threads`.
    """
    script = sys.modules[page.__module__]
    parser = parser_of(script, options, cores)
    given = parser.parse_args()
    if given.page:
        found = read(given.out.read_text("utf-8"))
    else:
        found = measured(run, given, command_of(script, parser, given), page)
    text = render(page, found)
    write_file(given.out.with_suffix(".md"), text.encode())
    print(text)
    sys.exit(0 if (holds or as_claimed)(found) else 1)


def parser_of(script: ModuleType, options: Iterable[Option], cores: int | None) -> argparse.ArgumentParser:
    """Return the argument parser with the common options and those of this benchmark."""
    parser = argparse.ArgumentParser(description=script.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in options:
        parser.add_argument(each.name, **each.more)
    if cores is None and not any(action.dest == "threads" for action in parser._actions):
        parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/")
    default = RESULTS / f"{Path(str(script.__file__)).stem}.json"
    parser.add_argument("--out", type=Path, default=default, help="the result; its page is written beside it")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page of --out again")
    parser.set_defaults(**({} if cores is None else {"threads": cores}))
    return parser


def measured(run: Run, given: argparse.Namespace, command: str, page: Page) -> Document:
    """Run the benchmark with a scratch folder. Write each result and its page; return the last result."""
    given.out = given.out.absolute()
    given.out.parent.mkdir(parents=True, exist_ok=True)  # fail early, before hours of work
    use_cores(given.threads)
    first = {"command": command, **settings_in(given), **conditions(given.threads)}
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        given.scratch = Path(scratch)
        results = run(given)
        found = Document()
        for result in [results] if isinstance(results, Mapping) else results:
            content = json.dumps({**first, **result}, indent=1) + "\n"
            found = read(content)
            write_file(given.out, content.encode())
            write_file(given.out.with_suffix(".md"), render(page, found).encode())
    return found


def settings_in(given: Given) -> dict[str, Any]:
    """Return the options that are recorded in the result: all except PLACES and those whose values contain paths."""
    settings = {name: value for name, value in vars(given).items() if name not in PLACES}
    return {name: value for name, value in settings.items() if "/" not in str(value) and "Path(" not in repr(value)}


def command_of(script: ModuleType, parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """Return the command line to record: every option that is not in PLACES, defaults included, without folders."""
    words = [f"python bench/{Path(str(script.__file__)).name}"]
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if action.dest in PLACES or value is None or value is False or value == []:
            continue
        groups = value if isinstance(action, argparse._AppendAction) else [value]
        for group in groups:
            parts = group if isinstance(group, (list, tuple)) else [] if group is True else [group]
            texts = [f"{part:g}" if isinstance(part, float) else str(part) for part in parts]
            words += [*action.option_strings[-1:], *(shlex.quote(re.sub(r"[^\s=]*/", "", text)) for text in texts)]
    return " ".join(words)


def read(text: str) -> Document:
    """Parse JSON into Documents at every level."""
    found: Document = json.loads(text, object_hook=Document)
    return found


def claims_hold(found: Document) -> bool:
    return all(claim.holds for claim in found.get("claims", ()))


def as_claimed(found: Document) -> bool:
    return claims_hold(found) and not any(row.get("error") for row in found.get("rows", ()))


def note(*parts: object) -> None:
    """Print progress to stderr."""
    print(*parts, file=sys.stderr, flush=True)


IMAGES = Option("--images", type=int, help="of each split; default: all")


class FinishedRows:
    """Finished rows of a run, kept in a file so that the same command can continue after an interruption.

    Rows that failed are measured again. Raises SystemExit if the file is of a run with other settings.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], threads: int) -> None:
        self.conditions: dict[str, Any] = conditions(threads)
        self.packages: dict[str, dict[str, str]] = {}
        self.rows: list[Document] = []
        self._file = file
        self._settings = json.loads(json.dumps(settings, default=str))
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            return
        kept = read(file.read_text("utf-8"))
        if kept.settings != self._settings:
            raise SystemExit(f"{file} is of another run ({kept.settings}): remove it, or pass another --work")
        self.take_over(kept)

    def take_over(self, kept: Document) -> None:
        """Continue from the rows, packages and conditions of an earlier run."""
        self.rows = [row for row in kept.rows if not row.get("error")]
        cpu, self.conditions, self.packages = self.conditions["host"]["cpu"], kept.conditions, kept.get("packages", {})
        cpus = [self.conditions["host"]["cpu"], *self.conditions.get("taken_up_on", ())]
        if cpu not in cpus:
            self.conditions["taken_up_on"] = [*cpus[1:], cpu]
        note(f"{len(self.rows)} rows are there already")

    def add(self, row: Document) -> None:
        self.rows.append(row)
        kept = {name: getattr(self, name) for name in ("conditions", "packages", "rows")}
        write_file(self._file, json.dumps({"settings": self._settings, **kept}, indent=1).encode())


# Processes


def in_process(job: Job, **arguments: Any) -> list[str]:
    """Return the command that runs a job in its own process and prints its result as JSON."""
    name = f"{Path(inspect.getfile(job)).stem}:{job.__name__}"
    return [sys.executable, str(Path(__file__).resolve()), name, json.dumps(arguments, default=str)]


def do_job(name: str, arguments: str) -> None:
    module, function = name.split(":")
    job: Job = getattr(importlib.import_module(module), function)
    print("\n" + json.dumps({**job(**json.loads(arguments)), "packages": installed()}))


def last_json(output: str) -> dict[str, Any]:
    return dict(json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{"))))


def done_in_process(job: Job, **arguments: Any) -> dict[str, Any]:
    """Run a job in its own process and return its result. Raises CalledProcessError."""
    done = subprocess.run(in_process(job, **arguments), check=True, capture_output=True, text=True)
    return {name: value for name, value in last_json(done.stdout).items() if name != "packages"}


def installed() -> dict[str, str]:
    """Return the version of every package in this environment, by name."""
    return {found.metadata["Name"]: found.version for found in metadata.distributions()}


# Pages


def render(page: Page, found: Document) -> str:
    """Return the page of a document as Markdown: its blocks, then date, load and machine."""
    where = found.get("conditions", found)
    return "\n\n".join([*page(found), *(conditions_lines(where) if "host" in where else ())]) + "\n"


def head(title: str, found: Mapping[str, Any]) -> list[str]:
    return [f"# {title}", f"`{found['command']}`"]


def table(header: str, rows: Iterable[str]) -> str:
    """Return a Markdown table from a header and rows with cells separated by ` | `."""
    dashes = " | ".join(["---"] * (header.count(" | ") + 1))
    return "\n".join(f"| {row} |" for row in (header, dashes, *rows))


def conditions_lines(found: Mapping[str, Any]) -> list[str]:
    """Return date, load and machine as the last blocks of a page."""
    load = f"{found['load_before']:.2f} processes were running on average in the minute before the first row"
    blocks = [f"{found['date']}; {load} (0 is an idle machine).", host_line(found["host"])]
    if also := found.get("taken_up_on"):
        blocks.append(f"Cut, and taken up on another machine: {', '.join(also)}; times of rows differ by it.")
    return blocks


def cell(value: Any, form: str = "", none: str = "–", unit: float = 1) -> str:
    """Return a number divided by `unit`, in a format; `none` if the value is None."""
    return none if value is None else format(value / unit if unit != 1 else value, form)


def yes(value: bool, no: str = "no") -> str:
    """Return `yes` for True, the other word for False."""
    return "yes" if value else no


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 thread`, `2 threads`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return the mean as text, with the lowest and highest value in brackets if there are several."""
    text = f"{statistics.fmean(values):{sign}.4f}"
    return text if len(values) < 2 else f"{text} ({min(values):{sign}.4f}..{max(values):{sign}.4f})"


def versions_of(packages: Mapping[str, str], names: Iterable[str]) -> str:
    """Return the names and versions of those of `names` that are in `packages`, as text."""
    return ", ".join(f"{name} {packages[name]}" for name in names if name in packages)


def claim(text: str, found: float, holds: bool, **more: Any) -> dict[str, Any]:
    """Return a claim about a result for the document: its text, the measured value, and whether it holds."""
    return {"claim": text, "found": found, "holds": bool(holds), **more}


def claims_table(claims: Iterable[Document], form: str = ".4f", header: str = " | found | holds") -> str:
    return table(header, (f"{each.claim} | {each.found:{form}} | {yes(each.holds, '**no**')}" for each in claims))


if __name__ == "__main__":
    do_job(*sys.argv[1:])
