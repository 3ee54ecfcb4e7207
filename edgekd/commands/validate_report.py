"""`edgekd validate-report`: judge the evidence of a validation on hardware, and write a page with the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from edgekd.agent.validation.evidence import MAX_BYTES, Problem, ValidationEvidence, loads
from edgekd.agent.validation.verdicts import Verdict, exit_code, verdicts
from edgekd.commands.arguments import path_or_none
from edgekd.commands.parameter import Argument, Option
from edgekd.core.atomic_files import write_file
from edgekd.core.documents import Result
from edgekd.core.errors import SpecError
from edgekd.core.input_files import read_input
from edgekd.evaluation.report.validation import render


@dataclass(frozen=True)
class JudgedEvidence(Result):
    """The verdicts on a validation on hardware, derived from its evidence again.

    Args:
        result: Path of the evidence.
        report: Path of the page.
        device: Name of the device, as it reports it.
        complete: True if the validation ended normally.
        problem: Why nothing, or not everything, was run; null if everything was.
        exit_code: Exit code of the kit for this evidence: 0 every claim that could be tested is confirmed, 1 one is
            refuted, 3 none could be tested, 4 cut short.
        verdicts: The verdict on each claim.
    """

    result: Path
    report: Path
    device: str
    complete: bool
    problem: Problem | None
    exit_code: int
    verdicts: tuple[Verdict, ...]


def validate_report(
    result: Annotated[str | Path, Argument("A result.json of the validation kit.")],
    *,
    out: Annotated[str | Path | None, Option("Page to write. Default: RESULT.html.", group="Output")] = None,
) -> JudgedEvidence:
    """Judge the evidence of a validation on hardware, and write a page with the verdicts.

    Verdicts are derived from the evidence again; those in the file are ignored. Raises SpecError. The command: `edgekd
    validate-report`.
    """
    path = Path(result)
    evidence = read_evidence(path)
    judged = verdicts(evidence)
    page = path_or_none(out) or path.with_suffix(".html")
    write_file(page, render(path.name, evidence, judged).encode("utf-8"))
    return JudgedEvidence(
        result=path,
        report=page,
        device=evidence.device,
        complete=evidence.complete,
        problem=evidence.problem,
        exit_code=exit_code(evidence, judged),
        verdicts=judged,
    )


def read_evidence(path: Path) -> ValidationEvidence:
    """Read and check a file from an unknown source. Raises SpecError that names the file."""
    content = read_input(path, MAX_BYTES, SpecError)
    try:
        return loads(content)
    except SpecError as error:
        raise SpecError(f"{path}: {error.what}", expected=error.expected, found=error.found) from error
