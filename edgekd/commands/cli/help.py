"""Help texts: commands and options in groups, and examples at the end."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from edgekd.commands.cli.tables import has_styles
from edgekd.commands.parameter import OPTION_GROUPS

Rows = list[tuple[str, str]]


class HelpCommand(TyperCommand):
    """A command whose help has options by `rich_help_panel`, and the lines of `epilog` as examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the arguments, the required options, and `[OPTIONS]` for all others."""
        pieces = []
        for each in self.get_params(ctx):
            if each.param_type_name == "argument":
                name = f"{each.metavar} ..." if each.nargs == -1 else str(each.metavar)
                pieces.append(name if each.required else f"[{name}]")
            elif each.required:
                pieces.append(f"{each.opts[0]} {each.metavar}")
        return [*pieces, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, Rows] = {heading: [] for heading in ("Arguments", *OPTION_GROUPS, "Options")}
        for each in self.get_params(ctx):
            if each.param_type_name == "argument":
                rows["Arguments"].append((str(each.metavar), str(getattr(each, "help", None) or "")))
            elif record := each.get_help_record(ctx):
                rows[getattr(each, "rich_help_panel", None) or "Options"].append(record)
        _write_sections(formatter, rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section(_styled("Examples", bold=True)):
            for example in (self.epilog or "").splitlines():
                formatter.write(f"  {example}\n")  # not folded, so that it can be copied


class HelpGroup(TyperGroup):
    """A group whose help has commands by `rich_help_panel`, before its own options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        commands = [command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        rows: dict[str, Rows] = {}
        width = max(len(str(command.name)) for command in commands)
        for command in commands:
            row = (str(command.name).ljust(width), command.help or "")
            rows.setdefault(str(getattr(command, "rich_help_panel", None)), []).append(row)
        rows["Options"] = [record for each in self.get_params(ctx) if (record := each.get_help_record(ctx))]
        _write_sections(formatter, rows)


def _write_sections(formatter: Any, rows: dict[str, Rows]) -> None:
    """Write the sections that have rows, each under its heading."""
    for heading, records in rows.items():
        if records:
            with formatter.section(_styled(heading, bold=True)):
                formatter.write_dl([(_styled(name, fg="cyan"), text) for name, text in records])


def _styled(text: str, **style: Any) -> str:
    """Return a text in a style, if stdout shows styles."""
    return typer.style(text, **style) if has_styles() else text
