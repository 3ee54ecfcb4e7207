"""Conversion of the values that callers pass into the types of the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from edgekd.builds.recipe import Recipe, load_recipe
from edgekd.core.detection.types import InputFormat
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.units import parse_energy, parse_share, parse_size
from edgekd.deploy.signing import Signer, load_signers
from edgekd.deploy.signing.key_files import read_public
from edgekd.deploy.signing.signed import RequiredSignatures
from edgekd.detectors.interface import Interface, Postprocess
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import Target, load_target, takes_bytes


def path_or_none(path: str | Path | None) -> Path | None:
    """Return a path; None for None."""
    return None if path is None else Path(path)


def short_name(detector: str | Path) -> str:
    """Return the name of a detector in result folders: its file name without suffix, for `.tv.pt` without both."""
    return Path(detector).stem.removesuffix(".tv")


def names_of(names: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return one name or several as a tuple of text."""
    return (str(names),) if isinstance(names, (str, Path)) else tuple(map(str, names))


def paths_of(paths: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """Return one path or several as a tuple."""
    return tuple(map(Path, names_of(paths)))


def target_of(target: str | Path | Target) -> Target:
    """Return a target, loaded if it is a name or a file. Raises SpecError."""
    return target if isinstance(target, Target) else load_target(target)


def target_or_none(target: str | Path | Target | None) -> Target | None:
    """Return a target, loaded if it is a name or a file; None for None. Raises SpecError."""
    return None if target is None else target_of(target)


def recipe_of(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Return a recipe, loaded if it is a name, a file or a table. Raises SpecError."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def signers_of(keys: str | Path | Sequence[str | Path], secret_file: str | Path | None) -> tuple[Signer, ...]:
    """Return the signers of private keys. Raises SpecError, SignatureError."""
    return load_signers(names_of(keys), path_or_none(secret_file))


def required_signatures(trust: str | Path | None, keys: str | Path | Sequence[str | Path]) -> RequiredSignatures:
    """Return the signatures that a trust file and files of public keys require. Raises SpecError."""
    return RequiredSignatures(path_or_none(trust), {path.name: read_public(path) for path in paths_of(keys)})


def interface_of(input_format: str, postprocess: str, target: Target, batch: int = 1) -> Interface:
    """Return the interface of a graph for a target. Raises SpecError."""
    formats = {name: name for name in get_args(InputFormat)}
    places = {name: name for name in get_args(Postprocess)}
    for flag, name, choices in (("--input", input_format, formats), ("--postprocess", postprocess, places)):
        if name not in choices:
            raise SpecError(flag, expected=", ".join(choices), found=name, fix=did_you_mean(name, choices))
    raw = input_format != "float32"
    return Interface(
        input=formats[input_format],
        postprocess=places[postprocess],
        float_bytes=raw and not takes_bytes(target),
        batch=batch,
    )


def limits(
    max_size: str | int | None,
    keep: str | float | None,
    min_fps: float | None,
    usual: Budget,
    max_energy: str | None = None,
) -> Budget:
    """Return the given limits, and those of `usual` in place of None. Raises SpecError."""
    if min_fps is not None and not 0 <= min_fps < math.inf:
        raise SpecError(f"--min-fps {min_fps}", expected="a number from 0")
    budget = Budget(
        max_bytes=usual.max_bytes if max_size is None else parse_size(max_size, "--max-size"),
        min_retention=usual.min_retention if keep is None else parse_share(keep, "--keep"),
        min_fps=usual.min_fps if min_fps is None else min_fps,
        max_energy_mj=usual.max_energy_mj if max_energy is None else parse_energy(max_energy, "--max-energy"),
    )
    if budget.max_bytes == 0:
        raise SpecError(f"--max-size {max_size}", expected="more than 0 bytes")
    return budget
