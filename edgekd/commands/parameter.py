"""Declarations of command parameters: each is stated once, in the signature of the command's function.

A parameter is annotated `Annotated[TYPE, Option(HELP)]` or `Annotated[TYPE, Argument(HELP)]`. Python callers see its
name, type and default; `edgekd.commands.cli.derive` derives the option of the command line from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

OptionGroup = Literal["Input", "Target and recipe", "Budget", "Training and search", "Device", "Security", "Output"]
OPTION_GROUPS: tuple[OptionGroup, ...] = get_args(OptionGroup)
"""Headings of options in help, in order; options without a group follow."""


@dataclass(frozen=True)
class Argument:
    """A positional argument. metavar: its name in help texts; parse: the type to read, see `Option`."""

    help: str
    metavar: str | None = None
    parse: type | None = None


@dataclass(frozen=True)
class Option:
    """A flag, by default `--` and the parameter's name.

    flag: another name for it, with `--`. inverse: for a boolean, the flag that switches it off; help names the default
    first. parse: the type to read on the command line, instead of the one derived from the annotation. minimum,
    maximum: range of allowed numbers, inclusive. group: heading under which help lists it.
    """

    help: str
    group: OptionGroup | None = None
    flag: str | None = None
    inverse: str | None = None
    parse: type | None = None
    minimum: float | None = None
    maximum: float | None = None
