"""What answers a question and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.commands.api.arguments import names_of, path_or_none, target_of
from edgekd.commands.api.results import Checked, Compared, Verified

if TYPE_CHECKING:
    from edgekd.hardware.target import Target


def check_model(
    model: str | Path,
    *,
    target: str | Path | Target = "xavier",
    dla: bool = False,
    head: str | None = None,
    trust_checkpoint: bool = False,
) -> Checked:
    """What is impossible or slow for a model on a target, and what to change: from the graph alone, in a second.

    model: a `.pt`, which is exported first, or an `.onnx`. dla: the graph is meant for the DLA.

    Raises SpecError. The command: `edgekd check`. The rules are in `edgekd.hardware.compatibility`, each with its
    source.
    """
    from dataclasses import asdict

    from edgekd.deploy.artifact import graph_of
    from edgekd.hardware.compatibility import check_graph, check_request

    chosen = target_of(target)
    with graph_of(Path(model), head, trust_checkpoint, chosen) as graph:
        findings = (*check_request(chosen, dla=dla), *check_graph(graph, chosen, dla=dla))
    possible = not any(finding.level == "impossible" for finding in findings)
    document = {"target": chosen.name, "possible": possible, "findings": [asdict(each) for each in findings]}
    return Checked(document, findings)


def compare(first: str | Path, second: str | Path) -> Compared:
    """Two builds side by side, by their result folders: accuracy by class, sizes, times, what each stage took.

    Sizes are bytes, times milliseconds and seconds, scores 0 to 1. Raises SpecError where no build was finished in a
    folder, BundleError for a damaged one. The command: `edgekd compare`.
    """
    from edgekd.commands import compare as compare_module

    return Compared(compare_module.run(Path(first), Path(second)))


def verify(
    file: str | Path, *, trust: str | Path | None = None, keys: str | Path | Sequence[str | Path] = ()
) -> Verified:
    """Check a bundle or trust file from its first byte to its last, and who signed it.

    trust: the trust file that decides whom to believe. keys: `.pub` files, all of which must have signed it. Without
    either it is only said that the file is whole, and by which keys it is signed.

    Raises HashError for a damaged file, SignatureError for one that is not signed as it has to be, BundleError,
    SpecError. The command: `edgekd verify`. The format, and Ed25519 by RFC 8032: docs/formats/bundle.md.
    """
    from edgekd.deploy.signing import signed
    from edgekd.deploy.signing.key_files import read_public

    publics = {Path(name).name: read_public(Path(name)) for name in names_of(keys)}
    return Verified(signed.verify(Path(file), path_or_none(trust), publics))
