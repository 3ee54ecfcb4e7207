"""Write docs/reference/results.md from bench/results/*.json: `make schemas`.

Every number is read from JSON, so the text follows a new run of a benchmark. `--check` writes nothing, and fails if the
file is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generated import write
from result_values import RESULTS, wrapped
from results_accuracy import quantization, training
from results_shipping import robustness, shipping, speed

PAGE = Path(__file__).parent / "reference" / "results.md"
HEAD = """\
# Results

<!-- Written by docs/results.py (`make schemas`) from bench/results/*.json: do not edit. -->

Each number is from the table beside it. A table names its command, machine and date, and has the rows in which
edgekd is behind. Nothing was measured on a Jetson: a time measured on another machine than the target is called a
*stand-in*, here and in every report. How it is measured: [benchmarks](../../bench/README.md)."""


def every_table() -> Iterator[str]:
    """Yield the list of all tables."""
    titles = {path: path.read_text("utf-8").splitlines()[0].removeprefix("# ") for path in sorted(RESULTS.glob("*.md"))}
    yield "## Every table"
    yield "\n".join(f"- [{title}](../../bench/results/{path.name}), `{path.stem}`" for path, title in titles.items())


def main() -> None:
    sections = (quantization, training, speed, shipping, robustness, every_table)
    blocks = [wrapped(block) for section in sections for block in section()]
    write({PAGE: "\n\n".join([HEAD, *blocks]) + "\n"})


if __name__ == "__main__":
    main()
