"""Helpers of the agent's tests.

Tests that import only the agent, NumPy and pytest also run under the Python versions of cameras: `test_pythons.py`
starts them there, with the agent's archive as the only source of edgekd.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent import bench as bench_command
from edgekd.agent import commands, fetching, rebuild_engine, tuning
from edgekd.agent import status as status_command
from edgekd.agent.cli import COMMANDS, main
from edgekd.core.bundle.archive import extract, pack, read_head
from edgekd.core.documents import to_plain

BUNDLE = "EDGEKD_TEST_BUNDLE"
"""Environment variable with the path of the bundle to use where none can be built."""


@dataclass(frozen=True)
class Answer:
    """The agent's output and exit code."""

    code: int
    document: Any

    @property
    def result(self) -> Any:
        """The result of a successful command."""
        assert self.code == 0, self.document
        return self.document["result"]

    @property
    def error(self) -> Any:
        """The error of a failed command."""
        assert self.code == 1, self.document
        return self.document["error"]


Agent = Callable[..., Answer]


def as_printed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command whose result is the JSON object that the agent prints."""
    return lambda *arguments, **options: to_plain(command(*arguments, **options))


activate, bench, build, selftest, unpack = map(
    as_printed, (commands.activate, bench_command.bench, commands.build, commands.selftest, commands.unpack)
)
fetch, renew, status, tune = map(as_printed, (fetching.fetch, rebuild_engine.renew, status_command.status, tuning.tune))


def repacked(bundle: Path, folder: Path, **changed: Any) -> Path:
    """Return a bundle repacked in a folder with changed manifest fields. `files`: keep only these of its files."""
    folder.mkdir(exist_ok=True)
    new = replace(extract(bundle, folder / "files"), **changed)
    pack(new, {entry.path: folder / "files" / entry.path for entry in new.files}, folder / "bundle.edgekd")
    return folder / "bundle.edgekd"


def options(command: str, state: Path, root: Path, runtime: str = "null") -> list[str]:
    """Return as arguments those of these options that a command accepts."""
    told = {"--state": state, "--root": root, "--runtime": runtime}
    taken = COMMANDS[command][1] if command in COMMANDS else ()
    return [word for name, value in told.items() if name in taken for word in (name, str(value))]


def run(folder: Path, command: str, *arguments: object) -> int:
    """Run an agent command on a state folder, on an unknown device with the null runtime. Return its exit code."""
    return main([command, *map(str, arguments), *options(command, folder, folder.parent / "root")])


def install(folder: Path, bundle: Path) -> int:
    """Unpack, build, test and activate a bundle. Return 0 if all steps succeed."""
    return max(run(folder, "unpack", bundle), *(run(folder, command) for command in ("build", "selftest", "activate")))


def identity_of(bundle: Path) -> str:
    """Return a bundle's identity."""
    return read_head(bundle).identity
