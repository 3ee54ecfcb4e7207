"""Build the table of all contributed results of the validation kit: one row for each, evaluated anew.

python bench/validation/collect.py
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgekd.agent.validation.evidence import ValidationEvidence
from edgekd.agent.validation.verdicts import OUTCOMES, Verdict, verdicts
from edgekd.commands.validate_report import read_evidence

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from frame import table  # noqa: E402 beside this folder

HEAD = (
    f"file | device | system | runtimes | {' | '.join(OUTCOMES)} | frames per second | INT8 on a DLA | "
    "latency as predicted"
)
STAND_IN = "stand-in"  # label of results from machines other than a Jetson


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of all contributed results.")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "table.md")
    given = parser.parse_args()
    text = page(sorted(given.results.glob("*.json")))
    given.out.write_text(text, "utf-8")
    print(text)


def page(files: Sequence[Path]) -> str:
    """Return the table as Markdown. Raises SpecError, with the file's name, if a file is not a result."""
    rows = [row(file.name, read_evidence(file)) for file in files]
    note = f"A *{STAND_IN}* is no Jetson: its times say nothing of one. Made by `bench/validation/collect.py`."
    return "\n\n".join(["# Results of the validation kit", table(HEAD, rows), note]) + "\n"


def row(name: str, evidence: ValidationEvidence) -> str:
    found = verdicts(evidence)
    counts = Counter(each.outcome for each in found)
    jetson = "l4t" in evidence.system
    system = f"L4T {evidence.system['l4t']}" if jetson else f"{evidence.system.get('os', 'unknown')}, {STAND_IN}"
    runtimes = dict.fromkeys(f"{each.runtime} {each.version}" for each in evidence.attempts if each.version)
    cells = [
        name,
        evidence.device,
        system,
        ", ".join(runtimes) or "none",
        *(str(counts[outcome]) for outcome in OUTCOMES),
        outcomes_of(found, "fps"),
        outcomes_of(found, "dla-int8"),
        outcomes_of(found, "prediction"),
    ]
    return " | ".join(re.sub(r"([\\|<>`*_\[\]])", r"\\\1", cell) for cell in cells)  # untrusted text is not markup


def outcomes_of(found: Iterable[Verdict], claim: str) -> str:
    """Return the outcome of a claim for each runtime that it was tested with, as text."""
    looked = [each for each in found if each.claim == claim and each.number is not None]
    return "; ".join(f"{each.runtime}: {each.outcome}, {each.number:.3g}" for each in looked) or "not tested"


if __name__ == "__main__":
    main()
