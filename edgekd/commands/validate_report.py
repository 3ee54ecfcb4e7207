"""`edgekd validate-report`: judge the evidence of a validation on hardware, and write it as a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from edgekd.agent.validation.evidence import MAX_BYTES, Evidence, loads
from edgekd.agent.validation.verdicts import Verdict, exit_code, verdicts
from edgekd.commands.arguments import path_or_none
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import UntypedResult
from edgekd.core.atomic_files import write_file
from edgekd.core.errors import SpecError
from edgekd.evaluation.report.validation import render


def validate_report(
    result: Annotated[str | Path, Argument("A result.json of the validation kit.")],
    *,
    out: Annotated[str | Path | None, Option("The page. Default: RESULT.html.")] = None,
) -> UntypedResult:
    """Judge the evidence of a validation on hardware, and write a page of it.

    Verdicts are derived from the evidence again; those in the file are ignored. Raises SpecError. The command: `edgekd
    validate-report`.
    """
    path = Path(result)
    evidence = read_evidence(path)
    judged = verdicts(evidence)
    page = path_or_none(out) or path.with_suffix(".html")
    write_file(page, render(path.name, evidence, judged).encode("utf-8"))
    return UntypedResult(document(path, page, evidence, judged))


def read_evidence(path: Path) -> Evidence:
    """Read and check a file from an unknown source. Raises SpecError that names the file."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        return loads(content)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read", found=error.strerror) from error
    except SpecError as error:
        raise SpecError(f"{path}: {error.what}", expected=error.expected, found=error.found) from error


def document(result: Path, page: Path, evidence: Evidence, judged: tuple[Verdict, ...]) -> dict[str, Any]:
    """Return the documented JSON result: docs/json.md."""
    return {
        "result": str(result),
        "report": str(page),
        "device": evidence.device,
        "complete": evidence.complete,
        "problem": evidence.problem and asdict(evidence.problem),
        "exit_code": exit_code(evidence, judged),
        "verdicts": [asdict(each) for each in judged],
    }
