"""The documentation against the program: links, flags, commands, examples."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator
from running import BRIEFLY, Built, EdgeKD
from test_json_contract import SCHEMAS, schema_of

from edgekd.agent.cli import COMMANDS as AGENT
from edgekd.builds.step_kinds import step_kinds
from edgekd.commands.cli import COMMANDS, parser
from edgekd.compress.steps import DistillStage, Weights
from edgekd.core.toml import read_toml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "docker/**/*.md", "bench/**/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
    if "node_modules" not in page.parts
)
DOCS = ROOT / "docs"
MOST_WORDS = 1500  # of a page outside the reference
GUIDES = sorted(page for folder in ("getting-started", "guides") for page in (DOCS / folder).glob("*.md"))
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
ALONE = re.compile(r"^edgekd ([^|<>&;\n]*)\n", re.MULTILINE)
"""A line that is one call of `edgekd`, with its arguments."""
IN_ORDER = (
    "getting-started/install.md",
    "getting-started/your-own-model.md",
    "guides/report.md",
    "guides/benchmark.md",
    "guides/budget.md",
    "guides/quantize.md",
    "guides/calibration.md",
    "guides/model-formats.md",
    "guides/predict.md",
    "guides/recipes.md",
)
"""Pages whose commands are run, each after those that make what it takes."""
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<to>[^)\s]+)\)")


def blocks(page: Path, info: str) -> list[str]:
    """The bodies of the fenced blocks whose opening line says exactly `info`."""
    return [found["body"] for found in BLOCK.finditer(page.read_text("utf-8")) if found["info"] == info]


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by, made as GitHub makes it."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@cache
def commands() -> dict[str, set[str]]:
    """Every command of the program, and its flags."""
    return {
        name: {flag for each in parser(name).params for flag in (*each.opts, *each.secondary_opts) if flag[:2] == "--"}
        for name in COMMANDS
    }


def calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every `edgekd COMMAND ...` on a page, in its blocks and its text, with the flags it uses."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"(?:^|[`\s/])edgekd ((?:[a-z]+|--\w+)[^`\n|]*)", text):
        words = line.split()
        if words[0] in commands():
            yield words[0], [word.split("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.finditer(BLOCK.sub("", page.read_text("utf-8"))):
        path, _, anchor = link["to"].partition("#")
        if "://" in path:  # asked of nobody: tests have no network
            address = urlsplit(path)
            assert address.scheme == "https", f"{page.name}: {path}"
            assert re.fullmatch(r"([a-z\d-]+\.)+[a-z]{2,}", address.netloc), f"{page.name}: {path}"
            continue
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name}: {link['to']}"
        if anchor:
            assert anchor in anchors(goal), f"{page.name}: {link['to']}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_call_uses_flags_that_exist(page: Path) -> None:
    known = commands()
    for command, flags in calls(page):
        for flag in flags:
            assert flag in known[command] | {"--help"}, f"{page.name}: edgekd {command} {flag}"


def test_the_workflow_for_ci_uses_commands_and_flags_that_exist_and_fails_with_them() -> None:
    workflow = ROOT / "examples" / "model-gate.yml"
    used = dict(calls(workflow))
    assert used == {"check": ["--target"], "build": ["--data", "--target", "--max-size", "--keep", "--out", "--json"]}
    for command, flags in used.items():
        assert set(flags) <= commands()[command]
    steps = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]["gate"]["steps"]
    for step in steps:
        assert "continue-on-error" not in step
        assert "|| true" not in step.get("run", "")
    kept = steps[-1]["with"]["path"].split()
    assert {"runs/gate/report.html", "runs/gate/ledger.json"} < set(kept)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if ROOT / "bench" not in page.parents], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_flag_in_the_text_is_one_of_some_command(page: Path) -> None:
    agents = {argument for _, arguments in AGENT.values() for argument in arguments}
    completion = {"--install-completion", "--show-completion"}
    known = set().union(*commands().values(), {"--help", "--version"}, completion, agents)
    for flag in re.findall(r"`(--[a-z][\w-]*)", BLOCK.sub("", page.read_text("utf-8"))):
        assert flag in known | {"--platform"}, f"{page.name}: {flag}"


def test_guides_name_every_command_and_every_option_of_a_build() -> None:
    pages = "".join(page.read_text("utf-8") for page in [*GUIDES, DOCS / "reference" / "json.md"])
    for command, flags in commands().items():
        assert f"edgekd {command}" in pages
        if command == "build":
            missing = [flag for flag in flags if flag not in pages and flag != "--resume"]
            assert not missing, f"edgekd {command}: {missing}"


def test_the_changelog_and_the_json_page_name_every_command() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    contract = (DOCS / "reference" / "json.md").read_text("utf-8")
    for command in commands():
        assert f"`{command}`" in changes or f"`edgekd {command}`" in changes
        assert f"edgekd {command}" in contract


@pytest.mark.parametrize(
    "name",
    [
        "build",
        "quantize",
        "distill",
        "prune",
        "factorize",
        "convert",
        "eval",
        "engine",
        "check",
        "doctor",
        "compare",
        "report",
        "validate_report",
        "signed",
        "keygen",
        "delta",
        "adapt",
        "ui",
    ],
)
def test_examples_of_json_fit_their_schema(name: str) -> None:
    examples = blocks(DOCS / "reference" / "json.md", f"json {name}")
    assert examples
    for example in examples:
        Draft202012Validator(schema_of(name)).validate(json.loads(example))


def test_the_page_of_json_keys_links_every_schema() -> None:
    page = (DOCS / "reference" / "json-keys.md").read_text("utf-8")
    assert {path.stem for path in SCHEMAS.glob("*.json")} == set(re.findall(r"\(\.\./schemas/(\w+)\.json\)", page))


def test_the_targets_page_explains_every_key_of_a_target() -> None:
    from edgekd.hardware.target import Dla, Memory, Peaks, Power, Software, Target

    page = (DOCS / "reference" / "target-files.md").read_text("utf-8")
    for kind in (Target, Software, Dla, Memory, Peaks, Power):
        for entry in fields(kind):
            assert f"`{entry.name}`" in page or f"power.{entry.name}" in page, entry.name


def test_the_page_of_installation_has_every_extra() -> None:
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    page = (DOCS / "getting-started" / "install.md").read_text("utf-8")
    table = page.partition("\n## Extras\n")[2].partition("\n## ")[0]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(listed) == sorted(extras)


def test_the_page_of_the_source_layout_names_every_folder_of_the_package() -> None:
    page = (DOCS / "concepts" / "source-layout.md").read_text("utf-8")
    for module in (ROOT / "edgekd").rglob("__init__.py"):
        folder = module.parent.relative_to(ROOT / "edgekd")
        assert folder == Path() or f"{folder.name}/" in page or f"`{folder.name}`" in page, folder


def test_modules_that_pages_name_are_there() -> None:
    """A path of Python in code marks is one of the package, of the repository, or of an example on that page."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        for named in re.findall(r"`([\w/]+/\w+\.py)`", page.read_text("utf-8")):
            places = (ROOT / named, ROOT / "edgekd" / named)
            assert named.startswith("toy_") or any(place.is_file() for place in places), (page.name, named)


def test_the_design_page_draws_the_rooms_as_the_contract_has_them() -> None:
    """Each line of the picture that begins with two spaces and a name is a room, the highest first."""
    page = (DOCS / "concepts" / "design.md").read_text("utf-8")
    picture = page.partition("```text rooms")[2].partition("```")[0]
    drawn = re.findall(r"^  (\w+)  ", picture, re.MULTILINE)
    contract = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"][0]
    assert drawn == [layer for layer in contract["layers"] if layer != "agent"]
    assert contract["layers"][-2:] == ["agent", "core"]
    folders = {path.parent.name for path in (ROOT / "edgekd").glob("*/__init__.py")}
    assert folders == set(contract["layers"])


def test_the_design_page_draws_the_error_tree_as_it_is() -> None:
    from edgekd.core import errors

    page = (DOCS / "concepts" / "design.md").read_text("utf-8")
    for name in [name for name in vars(errors) if name.endswith("Error")]:
        assert name in page


def test_the_quantization_page_states_the_numbers_of_the_code() -> None:
    from edgekd.compress.quantization.quantize import PROBES
    from edgekd.compress.quantization.ranges import BINS
    from edgekd.compress.steps import Quantize

    page = (DOCS / "concepts" / "quantization.md").read_text("utf-8")
    assert f"{BINS} equal bins" in page
    assert f"first {PROBES} calibration images" in page
    assert f"`min_snr_db` ({Quantize().min_snr_db:g} by default)" in page
    assert f"**`{Quantize().ranges}`** (the default)" in page


def test_the_page_of_settings_has_every_setting_of_a_step_with_its_default() -> None:
    page = (DOCS / "reference" / "recipe-settings.md").read_text("utf-8")
    kinds = {f"`{kind.settings.kind}`": kind.settings for kind in step_kinds()}
    for title, settings in {**kinds, "Stages of `distill`": DistillStage}.items():
        section = page.partition(f"# {title}\n")[2].partition("\n#")[0]
        listed = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", section, re.MULTILINE))
        for entry in fields(settings):
            default = "none" if entry.default is None else json.dumps(entry.default, default=str).strip('"')
            if entry.default is not MISSING and not isinstance(entry.default, tuple):
                assert listed[entry.name] == default, (title, entry.name)
        assert listed.keys() == {entry.name for entry in fields(settings)}, title
    assert all(f"`{entry.name}`" in page for entry in fields(Weights))


def test_pages_are_short_but_for_the_reference() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        if DOCS / "reference" not in page.parents:
            assert len(page.read_text("utf-8").split()) <= MOST_WORDS, page


def write_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write `edgekd` and `python3` into a folder, where shells find them from now on."""
    for name, arguments in (("edgekd", "-m edgekd "), ("python3", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), os.pathsep)
    monkeypatch.setenv(*next(iter(BRIEFLY.items())))


def run_commands(page: Path, edgekd: EdgeKD) -> str:
    """Run the blocks `sh run` of a page in their order in the working directory, and return what was printed.

    Lines that call `edgekd` alone run in this process, all others in a shell: a process takes seconds to start.
    """
    printed = []
    for index, part in enumerate(ALONE.split("".join(blocks(page, "sh run")).replace("\\\n", " "))):
        if index % 2:
            ran = edgekd(*shlex.split(part))
            assert ran.code == 0, f"edgekd {part}: {ran.err[-3000:]}"
            printed.append(ran.out)
        elif part:
            done = subprocess.run(["bash", "-euxc", part], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-3000:]
            printed.append(done.stdout)
    return "".join(printed)


@pytest.fixture
def workplace(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A folder in which the commands of a page find what they speak of."""
    shutil.copy(tiny_model, tmp_path / "detector.onnx")
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "targets").symlink_to(ROOT / "targets")
    return tmp_path


def run_pages(pages: Sequence[str], workplace: Path, edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of pages one after the other in one folder, as somebody does who reads them in that order."""
    write_programs(workplace, monkeypatch)
    monkeypatch.chdir(workplace)
    for page in pages:
        assert run_commands(DOCS / page, edgekd), page


@pytest.mark.slow
def test_the_commands_of_guides_work_in_their_order(
    workplace: Path, edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pages(IN_ORDER, workplace, edgekd, monkeypatch)


def test_every_guide_with_commands_is_run() -> None:
    run = {page.relative_to(DOCS).as_posix() for page in GUIDES if blocks(page, "sh run")}
    assert run - {"getting-started/first-bundle.md"} == set(IN_ORDER)


def test_the_commands_of_the_page_of_targets_work(
    workplace: Path, edgekd: EdgeKD, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pages(["reference/target-files.md"], workplace, edgekd, monkeypatch)


def test_the_programs_of_the_python_page_work(workplace: Path) -> None:
    programs = blocks(DOCS / "guides" / "python.md", "python run")
    assert programs
    command = [sys.executable, "-c", "\n".join(programs)]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "a library call says nothing"
    assert "budget met: True" in done.stdout
    assert "too large by" in done.stdout


def test_the_guide_explains_every_file_that_a_build_leaves(tiny_build: Built) -> None:
    page = (DOCS / "getting-started" / "your-own-model.md").read_text("utf-8")
    for path in tiny_build.out.iterdir():
        assert f"`{path.name.replace('tiny-', 'detector-')}" in page
