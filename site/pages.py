"""Hooks of mkdocs: pages of the documentation site that are generated at build time, and links adapted to the site.

mkdocs calls `on_config`, `on_files`, `on_page_markdown` and `on_post_page`. The pages in `docs/` are written for the
repository; files elsewhere in it that they link become pages of the site under the names in `moved`. Pages about
targets, commands and the Python interface are generated from the code.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer import Context

import edgekd
from edgekd.commands.cli import parser
from edgekd.commands.cli.command_table import COMMANDS, GROUPS
from edgekd.commands.parameter import OPTION_GROUPS, Argument, Option
from edgekd.core.progress import SILENT
from edgekd.hardware.target import Target, explain, load_target, target_names

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\[[^\[\]]*\])\((?P<to>[^)\s]+)\)")
IMAGE = re.compile(r'\b(?P<kind>src|srcset)="(?P<to>[^"]+)"')
PAGE = re.compile(r"docs/([\w/-]+\.md)")
ITEM = re.compile(r" *(?:[-*]|\d+\.) ")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)
ASSETS = ("iframe-worker.js", "site.css")
LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".yml": "yaml"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the ids of headings as in the repository, and add a page for each target, result and example to nav."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    lists = {"@targets": target_pages(), "@measured": measured_pages(), "@examples": example_pages()}
    config.nav = filled(config.nav, lists)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files in `docs/` and the generated ones."""
    for source, place in moved().items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, place, content=as_page(source, text)))
    for source, place in kept().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    made = {
        "reference/cli.md": cli_page(),
        "reference/python.md": python_page(),
        "reference/targets.md": targets_page(),
    }
    made.update({f"reference/targets/{name}.md": target_page(load_target(name)) for name in target_names()})
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return a page of the repository as one of the site: with adapted links, and code blocks with a language alone."""
    place = page.file.src_uri
    origin = {there: source for source, there in moved().items()}.get(place, f"docs/{place}")
    if not (ROOT / origin).is_file():
        return markdown
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: relinked(found, origin, place), spaced(part)) for part in parts[::2]]
    parts[::2] = [IMAGE.sub(lambda found: image(found, origin, place), part) for part in parts[::2]]
    parts[1::2] = [re.sub(r"\A```(\w+) .*", r"```\1", part) for part in parts[1::2]]
    return "".join(parts)


def on_post_page(output: str, **_: Any) -> str:
    """Return a page with accessible tables, and a label for the search, for screen readers and keyboards."""
    output = output.replace('="search" role="dialog"', '="search" role="dialog" aria-label="Search"')
    return re.sub(r"<table>.*?</table>", accessible, output, flags=re.DOTALL)


def accessible(table: re.Match[str]) -> str:
    """Return a table without empty headings, focusable (to scroll by keyboard) if it has no links."""
    text = re.sub(r"<th( [^>]*)?></th>", r"<td\1></td>", table[0])
    return text if "<a " in text else text.replace("<table>", '<table tabindex="0">', 1)


def spaced(text: str) -> str:
    """Return Markdown with lists for mkdocs: an empty line before them, and items' content indented by four spaces."""
    lines: list[str] = []
    inside = loose = False
    for line in text.split("\n"):
        item, depth = ITEM.match(line), len(line) - len(line.lstrip(" "))
        after_text = bool(lines and lines[-1].strip() and not lines[-1].startswith(("|", "#")))
        if item and after_text and (not inside or (loose and not depth)):
            lines.append("")
        if not line.strip():
            loose = inside
        elif item:
            inside, loose = True, loose and depth > 0
        elif not depth and not after_text:
            inside = loose = False
        lines.append(" " * (4 if depth < 4 else 8) + line.lstrip(" ") if inside and 1 < depth < 7 else line)
    return "\n".join(lines)


# Links


@cache
def moved() -> dict[str, str]:
    """Return files outside `docs/` that become pages: path on the site by path in the repository."""
    pages = {
        "README.md": "index.md",
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "SECURITY.md": "security-policy.md",
        "docker/jetson/README.md": "guides/docker.md",
        "bench/README.md": "measured/index.md",
        "bench/validation/README.md": "measured/validation.md",
        "bench/validation/table.md": "measured/validation-table.md",
        "calibration/cover.toml": "reference/formats/cover.toml.md",
        "examples/camera/README.md": "examples/camera.md",
        "examples/demo_detector/README.md": "examples/demo_detector.md",
        "examples/firmware/README.md": "examples/firmware.md",
        "examples/meta-edgekd/README.md": "examples/meta-edgekd.md",
        "examples/tour/README.md": "examples/tour.md",
    }
    pages.update({f"bench/results/{path.name}": f"measured/{path.name}" for path in sorted(_results("*.md"))})
    pages.update({f"examples/{path.name}": f"examples/{path.name}.md" for path in sorted(_examples())})
    return pages


@cache
def kept() -> dict[str, str]:
    """Return files outside `docs/` that are copied to the site: path there by path in the repository."""
    results = {f"bench/results/{path.name}": f"measured/{path.name}" for path in sorted(_results("*.json"))}
    return {**results, "CITATION.cff": "CITATION.cff", **{f"site/{name}": name for name in ASSETS}}


def _results(pattern: str) -> Iterator[Path]:
    return (ROOT / "bench" / "results").glob(pattern)


def _examples() -> Iterator[Path]:
    return (path for path in (ROOT / "examples").iterdir() if path.suffix in LANGUAGES)


def relinked(found: re.Match[str], origin: str, place: str) -> str:
    """Return a link in a file of the repository for its page on the site; a broken one stays, and fails the build."""
    path, mark, anchor = found["to"].partition("#")
    if "://" in path or not path:
        return found[0]
    return f"{found[1]}({destination(path, origin, place)}{mark}{anchor})"


def image(found: re.Match[str], origin: str, place: str) -> str:
    """Return the source attribute of an image in a file of the repository for its page on the site."""
    return f'{found["kind"]}="{destination(found["to"], origin, place)}"'


def destination(path: str, origin: str, place: str) -> str:
    """Return the path from a page of the site to the target of a link in a file of the repository."""
    goal = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    there = "reference/targets.md" if goal == "targets" else moved().get(goal) or kept().get(goal)
    there = there or (goal.removeprefix("docs/") if goal.startswith("docs/") else goal)
    return posixpath.relpath(there, posixpath.dirname(place) or ".")


def slug(title: str, separator: str) -> str:
    """Return the id of a heading, as the repository's host forms it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", separator)


def as_page(source: str, text: str) -> str:
    """Return a file as Markdown; a program or TOML file becomes a code block under its name."""
    language = LANGUAGES.get(Path(source).suffix)
    return f"# {Path(source).name}\n\n```{language}\n{text}```\n" if language else text


# Navigation


def filled(nav: Any, lists: dict[str, list[Any]]) -> Any:
    """Return a navigation with the names of lists replaced by their pages."""
    if isinstance(nav, list):
        return [filled(each, lists) for each in nav]
    if isinstance(nav, dict):
        return {name: filled(value, lists) for name, value in nav.items()}
    return lists.get(nav, nav)


def target_pages() -> list[Any]:
    """Return the navigation of targets: the overview, and each target."""
    return ["reference/targets.md", *({name: f"reference/targets/{name}.md"} for name in target_names())]


def measured_pages() -> list[Any]:
    """Return the navigation of results: the method, and each table."""
    tables = [place for source, place in moved().items() if source.startswith("bench/results/")]
    hardware = {"from hardware": ["measured/validation.md", "measured/validation-table.md"]}
    return ["measured/index.md", hardware, *({Path(place).stem.replace("_", " "): place} for place in tables)]


def example_pages() -> list[Any]:
    """Return the navigation of examples."""
    return [{Path(place).stem: place} for source, place in moved().items() if source.startswith("examples/")]


# Targets


def targets_page() -> str:
    """Return the page with all targets in a table."""
    rows = [
        (f"[{name}](targets/{name}.md)", target.title, ", ".join(target.precisions.conv.value), target.engine)
        for name, target in ((name, load_target(name)) for name in target_names())
    ]
    intro = "Made from `targets/*.toml` when this page was built. What the keys mean: [target files](target-files.md)."
    return f"# Targets\n\n{intro}\n\n{table(('target', 'device', 'convolutions in', 'engine'), rows)}"


def target_page(target: Target) -> str:
    """Return the page of a target: every fact with its source, as in `edgekd targets NAME`."""
    parts = [f"# {target.title}\n\n`--target {target.name}`. Verified: somebody read the place that is named.\n"]
    marks = {True: "yes", False: "no", None: ""}
    facts = explain(target)
    for group in dict.fromkeys(fact.group for fact in facts):
        rows = [(f"`{f.name}`", f.value, marks[f.verified], f.source) for f in facts if f.group == group]
        parts.append(f"## {group}\n\n{table(('', 'value', 'verified', 'source'), rows)}")
    return "\n".join(parts)


# Commands


def cli_page() -> str:
    """Return the page of all commands with their arguments and options, in the groups of help."""
    intro = "Made from the program when this page was built; `edgekd COMMAND --help` says the same."
    parts = [f"# Command line\n\n{intro} Exit codes: [JSON](json.md#exit-codes).\n"]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        parts += [command_section(name) for name, command in COMMANDS.items() if command.group == group]
    return "\n".join(parts)


def command_section(name: str) -> str:
    """Return the section of a command: usage, description, examples, arguments and options."""
    command = parser(name)
    usage = command.collect_usage_pieces(Context(command, info_name=name))
    rows = [(f"`{each.metavar}`", "", "", each.help or "") for each in command.params if _is_argument(each)]
    options = [each for each in command.params if not _is_argument(each)]
    for group in (*OPTION_GROUPS, None):
        listed = [each for each in options if each.rich_help_panel == group]
        rows += [(f"**{group or 'Options'}**", "", "", "")] if listed else []
        for each in listed:
            names = ", ".join(f"`{flag}`{{ .whole }}" for flag in (*each.opts, *each.secondary_opts))
            rows.append((names, "" if each.is_flag else f"`{each.metavar}`", _default(each), each.help or ""))
    heads = ("", "value", "default", "")
    call = f"```sh\n{' '.join(['edgekd', name, *usage])}\n```"
    examples = f"```sh\n{command.epilog}\n```"
    return f"### `edgekd {name}`\n\n{call}\n\n{command.help.strip()}\n\n{examples}\n\n{table(heads, rows)}"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        flags = option.opts if option.default else option.secondary_opts
        return f"`{flags[0]}`" if option.secondary_opts else ""
    return "" if option.default is None else f"`{option.default}`"


# Python


def python_page() -> str:
    """Return the page of all public names with signatures and docstrings."""
    intro = "Made from the code when this page was built. How they go together: [Python](../guides/python.md)."
    return "\n".join([f"# Python reference\n\n{intro}\n", *(name_section(name) for name in edgekd.__all__)])


def name_section(name: str) -> str:
    """Return the section of a function, class or error."""
    found = getattr(edgekd, name)
    text = PAGE.sub(r"[\g<0>](../\1)", inspect.cleandoc(found.__doc__ or ""))
    if inspect.isclass(found):
        return f"## `{name}`\n\n```python\nclass edgekd.{name}\n```\n\n{text}\n\n{_attributes(found)}"
    hints = get_type_hints(found, include_extras=True)
    parameters = list(inspect.signature(found).parameters.values())
    lines = [f"    {_parameter(each, hints[each.name])},\n" for each in parameters]
    named = [at for at, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY]
    if named:
        lines.insert(named[0], "    *,\n")
    body = "\n" + "".join(lines) if lines else ""
    code = f"```python\nedgekd.{name}({body}) -> {_type(hints['return'])}\n```"
    declared = [(each.name, _help(hints[each.name])) for each in parameters]
    rows = [(f"`{parameter}`", help_text) for parameter, help_text in declared if help_text]
    return "\n\n".join([f"## `{name}`", code, text, *([table(("", ""), rows)] if rows else [])]) + "\n"


def _parameter(each: inspect.Parameter, hint: Any) -> str:
    default = "SILENT" if each.default is SILENT else repr(each.default)
    return f"{each.name}: {_type(hint)}" + ("" if each.default is each.empty else f" = {default}")


def _type(hint: Any) -> str:
    """Return a type as it is written in code, without module names."""
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(plain, type) and not get_args(plain):
        return plain.__name__
    return re.sub(r"\b[a-z_]\w*\.", "", str(plain)).replace("NoneType", "None")


def _help(hint: Any) -> str:
    """Return the help of a declared parameter; empty without a declaration."""
    metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((each.help for each in metadata if isinstance(each, (Argument, Option))), "")


def _attributes(found: type[Any]) -> str:
    """Return a table of the fields and properties of a dataclass; empty for other classes."""
    if not is_dataclass(found):
        return ""
    rows = [(f"`{entry.name}`", f"`{entry.type}`", "") for entry in fields(found)]
    for name, value in vars(found).items():
        if isinstance(value, property):
            rows.append((f"`{name}`", "", inspect.cleandoc(value.__doc__ or "").partition("\n")[0]))
    return table(("", "type", ""), rows)


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ("---",) * len(heads), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
