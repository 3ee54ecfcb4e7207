"""Test whether the validation kit writes a complete result with each Python version on a minimal system.

Each row is `sh run.sh` in a fresh kit (`make kit`) with only one Python and eight small programs on PATH: Python 3.6
alone, then each newer one with NumPy and ONNX Runtime in the newest wheels for it.
"""

import shutil
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

from common import HERE
from frame import Blocks, Document, Given, Option, Result, main, note, table, yes

from edgekd.agent.validation.verdicts import OUTCOMES, exit_code, verdicts
from edgekd.commands.validate_report import read_evidence

sys.path.insert(0, str(HERE.parent / "tests"))

from kit_runs import bare_path, run_kit
from pythons import UnavailableError, find, install

LIMIT_S = 300.0  # goal: time on two cores, with ONNX Runtime as the only runtime
VERSIONS = ("3.6", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
SHELLS = ("dash", "bash", "busybox")
OLDEST = (3, 8)  # oldest Python that the kit supports; older ones run without packages


def run(given: Given) -> Result:
    rows = []
    for version in given.versions:
        packages = packages_for(version, given.scratch / f"packages-{version}")
        for shell in SHELLS if version == given.versions[-1] else SHELLS[:1]:
            if shutil.which(shell):
                rows.append(row_of(given, version, shell, packages))
                note(rows[-1])
    return {"rows": rows}


def packages_for(version: str, folder: Path) -> Path | None:
    """Install NumPy and ONNX Runtime for a Python. Return the folder, None for an unsupported Python."""
    if tuple(map(int, version.split("."))) < OLDEST:
        return None
    try:
        install(version, folder, "numpy", "onnxruntime")
    except UnavailableError as error:
        raise SystemExit(str(error)) from error
    return folder


def row_of(given: Given, version: str, shell: str, packages: Path | None) -> Document:
    """Unpack the kit, run it with one Python, and return the row.

    `problem`: the reason in the result why the kit could not run; `right`: whether the run met all requirements.
    """
    python, folder = find(version), given.scratch / f"{version}-{shell}"
    if python is None:
        raise SystemExit(f"no Python {version} on this host")
    with tarfile.open(given.kit) as content:
        content.extractall(folder, filter="data")
    (kit,) = folder.iterdir()
    path = bare_path(folder / "bin", {"python3": python}, shell)
    began = time.monotonic()
    done = run_kit(kit, path, *(["--quick"] if given.quick else []), shell=shell, packages=packages)
    seconds = time.monotonic() - began
    evidence = read_evidence(kit / "result.json")
    judged = verdicts(evidence)
    clean = "Traceback" not in done.stderr and "SyntaxError" not in done.stderr
    expected = 0 if packages else 3
    runtime = next((f"{each.runtime} {each.version}" for each in evidence.attempts if each.version), None)
    row = Document(python=version, shell=shell, numpy=evidence.system.get("numpy"), runtime=runtime)
    row.update(code=done.returncode, complete=evidence.complete, outcomes=Counter(each.outcome for each in judged))
    row.update(problem=evidence.problem.message if evidence.problem else None, seconds=round(seconds, 1))
    right_code = done.returncode == expected == exit_code(evidence, judged)
    return Document(row, right=clean and evidence.complete and right_code and seconds <= LIMIT_S)


def page(found: Document) -> Blocks:
    rows = found.rows
    yield "# The validation kit on bare systems"
    yield (
        f"{sum(row.right for row in rows)} of {len(rows)} runs left a complete result, the exit code of its verdicts "
        f"and no traceback within {LIMIT_S:.0f} s on two cores."
    )
    yield table(
        f"Python | shell | NumPy | runtime | exit code | complete | {' | '.join(OUTCOMES)} | seconds | problem",
        (
            f"{row.python} | {row.shell} | {row.numpy or '-'} | {row.runtime or '-'} | {row.code} | "
            f"{yes(row.complete)} | {' | '.join(str(row.outcomes.get(outcome, 0)) for outcome in OUTCOMES)} | "
            f"{row.seconds:.0f} | {row.problem or ''}"
            for row in rows
        ),
    )


if __name__ == "__main__":
    options = (
        Option("--kit", Path("build/edgekd-validation-kit.tar.gz")),
        Option("--quick", False),
        Option("--versions", VERSIONS),
    )
    main(run, page, *options, holds=lambda found: all(row.right for row in found.rows), cores=2)
