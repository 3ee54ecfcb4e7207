"""Coverage-guided search for bytes at which reading a bundle, its signatures or a trust file fails in another way than
with a clean `BundleError`, or that are taken although nobody signed them.

    pip install atheris; python bench/fuzz_bundle.py [--seconds S]

Each of three readers gets its share of the time, in a process of its own, beginning with what edgekd writes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import RESULTS, conditions, conditions_lines, table, write_results

READERS = ("archive", "signatures", "trust")


def run(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, and read what it says."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        command = [sys.executable, str(Path(__file__).with_name("fuzz_target.py")), name, str(seconds), scratch]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, errors="replace")
    tried = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"\bcov: (\d+)", done.stderr)
    return {
        "reader": name,
        "seconds": seconds,
        "inputs": int(tried[1]) if tried else None,
        "covered": [int(covered[0]), int(covered[-1])] if covered else None,
        "found": None if done.returncode == 0 else done.stderr[-2000:],
    }


def page(found: Mapping[str, Any]) -> list[str]:
    """The document as a page."""
    rows = [
        [
            row["reader"],
            str(row["seconds"]),
            f"{row['inputs']:,}" if row["inputs"] else "unknown",
            " to ".join(map(str, row["covered"])) if row["covered"] else "unknown",
            "nothing" if row["found"] is None else "a failure: see the JSON",
        ]
        for row in found["rows"]
    ]
    return [
        "# Coverage-guided fuzzing of what reads bundles",
        "",
        f"`{found['command']}`, Atheris {found['atheris']}",
        "",
        *table(["reader", "seconds", "inputs", "places covered, first to last", "found"], rows),
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when nothing was found, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300, help="for each reader (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz_bundle.json")
    given = parser.parse_args()
    now = conditions(threads=1)
    rows = [run(name, given.seconds) for name in READERS]
    found = {
        "question": "are there bytes at which reading a bundle fails, or that are taken and nobody signed?",
        "command": f"python bench/fuzz_bundle.py --seconds {given.seconds}",
        "atheris": version("atheris"),
        "rows": rows,
        **now,
    }
    write_results(given.out, found, page(found))
    return 0 if all(row["found"] is None and row["inputs"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
