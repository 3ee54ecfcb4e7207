"""Commands that answer a question and change nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.options import Bundle, Head, Json, Model, TargetName, Trust
from edgekd.cli.printing import megabytes, print_json, print_table
from edgekd.commands.api import query as api


def check(
    model: Model,
    target: TargetName = "xavier",
    dla: Annotated[bool, typer.Option("--dla", help="The graph is meant for the DLA.")] = False,
    head: Head = None,
    trust_checkpoint: Trust = False,
    as_json: Json = False,
) -> None:
    """Say what is impossible or slow on a target, and what to change. ONNX answers in a second, without PyTorch."""
    from edgekd.hardware.target import load_target

    chosen = load_target(target)
    found = api.check_model(model, target=chosen, dla=dla, head=head, trust_checkpoint=trust_checkpoint)
    if as_json:
        print_json(found.document)
    else:
        for finding in found.findings:
            print(f"{finding.level}: {finding.what} ({finding.where})\n    {finding.change}")
        print(f"{model.name} on {chosen.title}: {'possible' if found.possible else 'impossible as it is'}")
    if not found.possible:
        raise typer.Exit(1)


def targets(
    name: Annotated[str | None, typer.Argument(help="Target to explain; all are listed without.")] = None,
    as_json: Json = False,
) -> None:
    """List the targets, or explain one: every number with its source."""
    from edgekd.hardware.target import explain, load_target, target_names, to_dict

    if name is None:
        found = [load_target(each) for each in target_names()]
        if as_json:
            print_json([to_dict(target) for target in found])
        else:
            rows = [[t.name, t.title, ", ".join(t.precisions.conv.value), t.engine, t.recipe] for t in found]
            print_table(["target", "device", "convolutions in", "engine", "recipe"], rows)
        return
    target = load_target(name)
    if as_json:
        print_json(to_dict(target))
        return
    marks = {True: "yes", False: "no", None: ""}
    rows = [[fact.group, fact.name, fact.value, marks[fact.verified], fact.source] for fact in explain(target)]
    print_table(["", target.name, "value", "verified", "source"], rows)


def doctor(as_json: Json = False) -> None:
    """Say what is installed, which engines and devices work, and the one command that adds each missing thing."""
    from dataclasses import asdict

    from edgekd.commands.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [[check.group, check.name, check.state, check.detail, check.fix or ""] for check in checks]
        print_table(["", "what", "state", "detail", "to add it"], rows)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Result folder of a build.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="That of another.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Put two builds side by side: accuracy by class, sizes, times, and what each stage took."""
    from edgekd.cli.printing import print_compared

    (print_json if as_json else print_compared)(api.compare(first, second).document)


def inspect(bundle: Bundle, as_json: Json = False) -> None:
    """Verify a bundle and say what is in it."""
    from edgekd.core.bundle.archive import read_head, verify
    from edgekd.core.bundle.manifest import to_json

    manifest, signatures = verify(bundle), read_head(bundle).seal.signatures
    if as_json:
        sys.stdout.write(to_json(manifest).decode("utf-8"))
        return
    evidence, lineage = manifest.evidence, manifest.lineage
    how = manifest.detector["preprocess"]
    print(f"{bundle.name}: {manifest.name} for {manifest.target.name} ({manifest.target.compatible}), every hash right")
    print(f"made by {manifest.created_by}, recipe {lineage.recipe}, counter {manifest.counter}")
    print(f"{len(signatures) or 'no'} signatures; `edgekd verify` says whose")
    print(f"input {how['width']}x{how['height']} {how['color']}, {len(manifest.detector['classes'])} classes")
    print(f"TensorRT {' to '.join(manifest.tensorrt) if manifest.tensorrt else 'not used'}")
    print(
        f"mAP50-95 {evidence.before.map50_95:.4f} -> {evidence.after.map50_95:.4f} on {evidence.images} images, "
        f"graph {megabytes(evidence.before.bytes)} -> {megabytes(evidence.after.bytes)} packed"
    )
    rows = [[entry.path, entry.role, str(entry.length), entry.sha256[:16]] for entry in manifest.files]
    print_table(["file", "role", "bytes", "sha256"], rows)
