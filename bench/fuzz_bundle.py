"""Search, guided by coverage, for bytes at which reading a bundle, its signatures or a trust file fails other than with
a clean `BundleError`, or that are accepted although nobody signed them. Needs `pip install atheris`.

Each of three readers gets its share of the time, in a process of its own, beginning with what edgekd writes.
"""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from common import HERE
from frame import Blocks, Document, Given, Option, Result, cell, main, table

READERS = ("archive", "signatures", "trust")


def fuzzed(name: str, seconds: int, scratch: Path) -> Result:
    folder = scratch / name
    folder.mkdir()
    command = [sys.executable, str(HERE / "fuzz_target.py"), name, str(seconds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, errors="replace")
    tried = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    return {
        "reader": name,
        "seconds": seconds,
        "inputs": int(tried[1]) if tried else None,
        "covered": [int(covered[0]), int(covered[-1])] if covered else None,
        "found": None if done.returncode == 0 else done.stderr[-2000:],
    }


def run(given: Given) -> Result:
    return {"atheris": version("atheris"), "rows": [fuzzed(name, given.seconds, given.scratch) for name in READERS]}


def page(found: Document) -> Blocks:
    yield "# Coverage-guided fuzzing of the bundle readers"
    yield f"`{found.command}`, Atheris {found.atheris}"
    yield table(
        "reader | seconds | inputs | places covered, first to last | found",
        (
            f"{row.reader} | {row.seconds} | {cell(row.inputs, ',', 'unknown')} | "
            f"{' to '.join(map(str, row.covered)) if row.covered else 'unknown'} | "
            f"{'nothing' if row.found is None else 'a failure: see the JSON'}"
            for row in found.rows
        ),
    )


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--seconds", 300, "for each reader (%(default)s)"),
        holds=lambda found: all(row.found is None and row.inputs for row in found.rows),
        cores=1,
    )
