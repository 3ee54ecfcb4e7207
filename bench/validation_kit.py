"""Does the validation kit leave a complete result whatever Python a bare system has?

Each row is `sh run.sh` in a freshly unpacked kit, with nothing on PATH but one Python and eight small programs, as of a
bare Debian: Python 3.6 alone, then with NumPy and ONNX Runtime in the newest wheels that each Python has.

    make kit && python bench/validation_kit.py [--kit build/edgekd-validation-kit.tar.gz] [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from common import HERE, RESULTS, conditions, conditions_lines, table, use_cores, write_results

from edgekd.agent.validation.verdicts import OUTCOMES, exit_code, verdicts
from edgekd.commands.validate_report import read_evidence

sys.path.insert(0, str(HERE.parent / "tests"))

from kit_runs import bare_path, run_kit
from pythons import find, install

LIMIT_S = 300.0
"""On two cores, with ONNX Runtime as the only runtime."""
VERSIONS = ("3.6", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
SHELLS = ("dash", "bash", "busybox")
OLDEST = (3, 8)
"""Older Pythons are run without packages: the kit refuses them."""


@dataclass(frozen=True)
class Row:
    """One run. problem: what the result says kept it from running; right: all that is asked of a run."""

    python: str
    shell: str
    numpy: str | None
    runtime: str | None
    code: int
    complete: bool
    outcomes: dict[str, int]
    problem: str | None
    seconds: float
    right: bool


def main() -> None:
    """Run all, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kit", type=Path, default=Path("build/edgekd-validation-kit.tar.gz"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--out", type=Path, default=RESULTS / "validation_kit.json")
    given = parser.parse_args()
    use_cores(2)
    found = conditions(2)
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgekd-kit-") as name:
        for version in given.versions:
            packages = packages_for(version, Path(name) / f"packages-{version}")
            for shell in SHELLS if version == given.versions[-1] else SHELLS[:1]:
                if shutil.which(shell):
                    rows.append(
                        run(given.kit, Path(name) / f"{version}-{shell}", version, shell, packages, given.quick)
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
    write_results(given.out, {"limit_s": LIMIT_S, "rows": [asdict(row) for row in rows], **found}, page(rows, found))
    sys.exit(0 if all(row.right for row in rows) else 1)


def packages_for(version: str, folder: Path) -> Path | None:
    """NumPy and ONNX Runtime for a Python; None for one that the kit refuses. Ends where they cannot be had."""
    if tuple(map(int, version.split("."))) < OLDEST:
        return None
    problem = install(version, folder, "numpy", "onnxruntime")
    if problem:
        raise SystemExit(f"Python {version}: {problem}")
    return folder


def run(archive: Path, folder: Path, version: str, shell: str, packages: Path | None, quick: bool) -> Row:
    """Unpack the kit, and run it with one Python."""
    python = find(version)
    if python is None:
        raise SystemExit(f"no Python {version} on this host")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    (kit,) = folder.iterdir()
    path = bare_path(folder / "bin", {"python3": python}, shell)
    began = time.monotonic()
    done = run_kit(kit, path, *(["--quick"] if quick else []), shell=shell, packages=packages)
    seconds = time.monotonic() - began
    evidence = read_evidence(kit / "result.json")
    judged = verdicts(evidence)
    clean = "Traceback" not in done.stderr and "SyntaxError" not in done.stderr
    wanted = 0 if packages else 3
    return Row(
        version,
        shell,
        evidence.system.get("numpy"),
        next((f"{each.runtime} {each.version}" for each in evidence.attempts if each.version), None),
        done.returncode,
        evidence.complete,
        dict(Counter(each.outcome for each in judged)),
        evidence.problem.message if evidence.problem else None,
        round(seconds, 1),
        clean and evidence.complete and done.returncode == wanted == exit_code(evidence, judged) and seconds <= LIMIT_S,
    )


def page(rows: list[Row], found: dict[str, object]) -> list[str]:
    """Return the page: the table and the conditions."""
    head = ("Python", "shell", "NumPy", "runtime", "exit code", "complete", *OUTCOMES, "seconds", "says")
    cells = [
        (
            row.python,
            row.shell,
            row.numpy or "-",
            row.runtime or "-",
            str(row.code),
            "yes" if row.complete else "no",
            *(str(row.outcomes.get(outcome, 0)) for outcome in OUTCOMES),
            f"{row.seconds:.0f}",
            row.problem or "",
        )
        for row in rows
    ]
    right = sum(row.right for row in rows)
    return [
        "# The validation kit on bare systems",
        "",
        f"{right} of {len(rows)} runs left a complete result, the exit code of its verdicts and no traceback within "
        f"{LIMIT_S:.0f} s on two cores.",
        "",
        *table(head, cells),
        "",
        *conditions_lines(found),
    ]


if __name__ == "__main__":
    main()
