"""systemd units and their programs: valid, sandboxed, as the documentation quotes them."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from firmware import OnCamera, need, run

ROOT = Path(__file__).resolve().parents[3]
FIRMWARE = ROOT / "examples" / "firmware"
UNITS = sorted(path for path in (FIRMWARE / "systemd").iterdir() if path.suffix in (".service", ".timer"))
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
AGENT = "/usr/lib/edgekd/agent.pyz"
BLOCK = re.compile(r"^```ini\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED_UNIT = re.compile(r"^# (\S+\.(?:service|timer))\n(.*?)(?=^# |\Z)", re.MULTILINE | re.DOTALL)
MAX_EXPOSURE = 25
"""Of `systemd-analyze security`, in tenths: the best score is 0."""


def unit_of(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, "utf-8")
    return parser


def test_systemd_accepts_all_units() -> None:
    need("systemd-analyze")
    done = run("systemd-analyze", "verify", "--man=no", *UNITS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_services_are_sandboxed_and_limited(unit: Path) -> None:
    need("systemd-analyze")
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", unit)
    assert done.returncode == 0, done.stdout[-200:]
    service = unit_of(unit)["Service"]
    assert service["Type"] == "exec" or "TimeoutStartSec" in service
    assert service.get("User") == "edgekd" or unit.name == "edgekd-retry.service"


def test_every_unit_is_enabled_or_pulled_in_by_another() -> None:
    texts = {unit.name: unit.read_text("utf-8") for unit in UNITS}
    for unit in UNITS:
        pulled_in = any(
            re.search(rf"^(Wants|OnFailure)=.*\b{unit.name}\b", text, re.MULTILINE) for text in texts.values()
        )
        timed = unit.with_suffix(".timer") in UNITS
        assert "Install" in unit_of(unit) or pulled_in or timed, unit.name


def test_no_command_hides_its_failure() -> None:
    for unit in SERVICES:
        assert not re.search(r"^Exec\w+=[@:+!]*-", unit.read_text("utf-8"), re.MULTILINE), unit.name


def test_the_agent_has_one_path_everywhere() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *FIRMWARE.rglob("*.*"), *ROOT.glob("examples/*.py")]
    pages += (ROOT / "edgekd" / "deploy" / "firmware" / "camera").iterdir()
    found = {path for page in pages for path in re.findall(r"(?<![\w$}])/[\w./-]*agent\.pyz", page.read_text("utf-8"))}
    assert found == {AGENT}


@pytest.mark.parametrize("page", ["agent.md", "firmware.md"])
def test_pages_quote_the_units(page: str) -> None:
    """Each quoted line is in the section of its unit; what a page leaves out, it leaves out."""
    for block in BLOCK.findall((ROOT / "docs" / page).read_text("utf-8")):
        for name, quoted in QUOTED_UNIT.findall(block):
            quote = ConfigParser(interpolation=None)
            quote.optionxform = str  # type: ignore[assignment,method-assign]
            quote.read_string(quoted)
            unit = unit_of(FIRMWARE / "systemd" / name)
            for section in quote.sections():
                assert dict(quote[section]).items() <= dict(unit[section]).items(), name


# ------------------------------------------------------------------------------------------- the model of the image


def install_image(on_camera: OnCamera, image: Path) -> subprocess.CompletedProcess[str]:
    on_camera.settle(state=on_camera.state, image=image)
    return run("sh", FIRMWARE / "install_image.sh", environment=on_camera.environment)


def test_the_model_of_an_image_is_installed_once(on_camera: OnCamera, bundle: Path, newer: Path) -> None:
    assert install_image(on_camera, bundle).returncode == 0
    assert on_camera.serves(bundle)
    on_camera.agent("install", newer, "--runtime", "null", "--tries", "0")
    assert install_image(on_camera, bundle).returncode == 0
    assert on_camera.serves(newer), "what was sent to the camera stays at the next boot"


def test_an_image_with_an_older_model_changes_nothing(on_camera: OnCamera, bundle: Path, newer: Path) -> None:
    on_camera.agent("install", newer, "--runtime", "null")
    done = install_image(on_camera, bundle)
    assert (done.returncode, "a newer model already" in done.stderr) == (0, True), done.stderr
    assert on_camera.serves(newer)


def test_a_model_that_cannot_be_installed_is_a_failure_and_tried_again(on_camera: OnCamera, bundle: Path) -> None:
    on_camera.become_another()
    for _ in range(2):
        done = install_image(on_camera, bundle)
        assert (done.returncode, "for another device" in done.stderr) == (1, True), done.stderr


# ----------------------------------------------------------------------------------------------------- the commit

STUB = """import json, sys
print(json.dumps({answer} if sys.argv[1] == "status" else {{"ok": {ok}, "error": {{"what": "in use"}}}}))
open({log!r}, "a").write(sys.argv[1] + "\\n")
"""


def commit(folder: Path, *, trial: bool, counts: list[int], model: str = "new", ok: bool = True) -> Any:
    """Run the program against an agent that only answers, while the camera's status goes through some counts."""
    log, agent, status = folder / "log", folder / "agent.py", folder / "status.json"
    service = {"trial": {} if trial else None, "active": {"identity": "new"}}
    agent.write_text(STUB.format(answer={"ok": True, "result": service}, ok=ok, log=str(log)), "utf-8")
    program = (FIRMWARE / "commit_when_healthy.py").read_text("utf-8")
    options = ("--agent", agent, "--status", status, "--frames", 10, "--seconds", 0.5)
    script = f"""import json, sys, time
counts = {counts}
def sleep(_):
    if counts:
        text = json.dumps({{"model": {model!r}, "cameras": [{{"name": "door", "detected": counts.pop(0)}}]}})
        open({str(status)!r}, "w").write(text)
    else:
        real(0.05)
real, time.sleep = time.sleep, sleep
sys.argv[1:] = {[str(word) for word in options]}
exec(compile({program!r}, "commit_when_healthy", "exec"))
"""
    done = run(sys.executable, "-c", script)
    return done, log.read_text("utf-8").split()


def test_a_model_that_works_is_committed(tmp_path: Path) -> None:
    done, called = commit(tmp_path, trial=True, counts=[3, 9, 13])
    assert (done.returncode, called) == (0, ["status", "commit"]), done.stderr


def test_without_a_trial_there_is_nothing_to_commit(tmp_path: Path) -> None:
    done, called = commit(tmp_path, trial=False, counts=[])
    assert (done.returncode, called) == (0, ["status"])


@pytest.mark.parametrize(
    ("counts", "model", "words"),
    [
        ([3, 3, 12], "new", "less than 10 frames of door"),
        ([3, 30], "old", "does not run this model"),
        ([], "new", "does not run this model"),
    ],
)
def test_a_model_that_does_not_work_is_not_committed(tmp_path: Path, counts: list[int], model: str, words: str) -> None:
    done, called = commit(tmp_path, trial=True, counts=counts, model=model)
    assert (done.returncode, called) == (1, ["status"])
    assert words in done.stderr


def test_a_commit_that_the_agent_refuses_is_a_failure(tmp_path: Path) -> None:
    done, called = commit(tmp_path, trial=True, counts=[3, 13], ok=False)
    assert (done.returncode, "in use" in done.stderr) == (1, True)
    assert called.count("commit") >= 1
