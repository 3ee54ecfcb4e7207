"""The command line of a function: its arguments and options follow from the function's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from edgekd.commands.cli.tables import print_json
from edgekd.commands.cli.tracking import tracked
from edgekd.commands.parameter import Argument, Option
from edgekd.core.progress import for_stderr

LOG = Annotated[
    str | None,
    typer.Option(
        help="Append numbers to a .jsonl file, or send them to MLflow: mlflow:URI.",
        metavar="TEXT",
        rich_help_panel="Output",
    ),
]
JSON = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.", rich_help_panel="Output")
]
_METAVARS = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}
"""Placeholders for values of options in help, by type; a flag has none."""


def callback(
    function: Callable[..., Any], show: Callable[[Any], None], run_name: str | None = None
) -> Callable[..., None]:
    """Return the function that Typer runs for a command. It calls `function`, then prints by `show` or as JSON.

    A parameter `progress` is supplied. Options that are not given have the function's defaults. The exit code is the
    result's `exit_status`, if it has one. run_name: name of the run in a log, a format string over the parameters; None
    for a command without `--log`.

    Raises TypeError, naming the parameter, if one is not declared.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = {name: each for name, each in signature.parameters.items() if name != "progress"}
    declared = {name: _declaration(function, each) for name, each in parameters.items()}
    inverted = {name for name, each in parameters.items() if each.default is False and _inverse(declared[name][1])}
    options = [_option(each, *declared[name]) for name, each in parameters.items()]
    options += [_keyword("log", LOG, None)] if run_name else []
    options += [_keyword("as_json", JSON, False)]

    def command(*, as_json: bool, log: str | None = None, **given: Any) -> None:
        arguments = {
            name: not value if name in inverted else value for name, value in given.items() if value is not None
        }
        if "progress" in signature.parameters:
            with tracked(log, for_stderr(), (run_name or "").format(**arguments)) as progress:
                result = function(**arguments, progress=progress)
        else:
            result = function(**arguments)
        (print_json(result.document) if as_json else show(result))
        if hasattr(result, "require_met"):
            result.require_met()
        if code := getattr(result, "exit_status", 0):
            raise typer.Exit(code)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _declaration(function: Callable[..., Any], parameter: inspect.Parameter) -> tuple[Any, Argument | Option]:
    """Return the type of a parameter and its declaration. Raises TypeError if it has none."""
    if get_origin(parameter.annotation) is Annotated:
        hint, *metadata = get_args(parameter.annotation)
        for each in metadata:
            if isinstance(each, (Argument, Option)):
                return hint, each
    where = f"{function.__module__}.{function.__qualname__}"
    raise TypeError(f"{where}: parameter {parameter.name!r} needs Annotated[TYPE, Option(HELP) or Argument(HELP)]")


def _option(parameter: inspect.Parameter, hint: Any, declaration: Argument | Option) -> inspect.Parameter:
    """Return the parameter as Typer reads it."""
    required = parameter.default is parameter.empty
    default = None if parameter.default == () else parameter.default
    kind: Any = command_line_type(hint, declaration.parse)
    info: Any
    if isinstance(declaration, Argument):
        metavar = declaration.metavar or parameter.name.upper()
        info = typer.Argument(help=declaration.help, metavar=metavar, show_default=not required)
    else:
        info = typer.Option(
            _flag(parameter, declaration),
            help=declaration.help,
            min=declaration.minimum,
            max=declaration.maximum,
            show_default=not required,
            metavar=_metavar(kind),
            rich_help_panel=declaration.group,
        )
    annotation = Annotated[kind | None, info] if default is None else Annotated[kind, info]
    # With two flags, that of the default is first, and Typer reads the first as True.
    return _keyword(parameter.name, annotation, True if _inverse(declaration) else default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(parameter: inspect.Parameter, option: Option) -> str:
    """Return the flag; for a boolean with two flags both, that of the default first."""
    flag = option.flag or f"--{parameter.name.replace('_', '-')}"
    if option.inverse is None:
        return flag
    return f"{flag}/{option.inverse}" if parameter.default else f"{option.inverse}/{flag}"


def _metavar(kind: Any) -> str | None:
    items = get_args(kind)
    return f"{_metavar(items[0])} ..." if items else _METAVARS.get(kind)


def _inverse(declaration: Argument | Option) -> str | None:
    return declaration.inverse if isinstance(declaration, Option) else None


def command_line_type(hint: Any, parse: type | None = None) -> Any:
    """Return the type to read for an annotation: a list for a sequence, Path for `str | Path`, str for other unions
    with it.

    parse: type of one value, used instead. Raises TypeError if it is ambiguous.
    """
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    for each in kinds:
        if get_origin(each) is Sequence:
            return list[command_line_type(get_args(each)[0], parse)]  # type: ignore[misc]
    kinds -= {NoneType}
    if parse is not None:
        return parse
    if kinds == {str, Path}:
        return Path
    if str not in kinds and len(kinds) > 1:
        raise TypeError(f"{hint}: several types; state the one to read by `parse`")
    return str if str in kinds else kinds.pop()
