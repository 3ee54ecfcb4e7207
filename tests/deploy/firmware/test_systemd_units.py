"""systemd units and their programs: valid, sandboxed, as the documentation quotes them."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from firmware import OnCamera, need, run
from signer import public, signed, trust_file

from edgekd.core.bundle.archive import read_head
from edgekd.core.bundle.signatures import key_id

ROOT = Path(__file__).resolve().parents[3]
FIRMWARE = ROOT / "examples" / "firmware"
UNITS = sorted(path for path in (FIRMWARE / "systemd").iterdir() if path.suffix in (".service", ".timer"))
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
AGENT, AGENT_ON_DATA = "/usr/lib/edgekd/agent.pyz", "/var/lib/edgekd-agent/agent.pyz"
BLOCK = re.compile(r"^```ini\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"^# (\S+\.(?:service|timer|conf))\n(.*?)(?=^# |\Z)", re.MULTILINE | re.DOTALL)
MAX_EXPOSURE = 25
"""Of `systemd-analyze security`, in tenths: the best score is 0."""


def unit_of(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path, "utf-8")
    return parser


@pytest.mark.parametrize("agent", ["of the firmware", "on the data partition"])
def test_systemd_accepts_all_units(tmp_path: Path, agent: str) -> None:
    need("systemd-analyze")
    for unit in UNITS:
        shutil.copy(unit, tmp_path)
    if agent == "on the data partition":
        for name in ("edgekd-.service.d", "camera.service.d"):
            (tmp_path / name).mkdir()
            shutil.copy(FIRMWARE / "systemd" / "agent-on-data.conf", tmp_path / name)
    units = [tmp_path / unit.name for unit in UNITS]
    done = run("systemd-analyze", "verify", "--man=no", *units, environment={"SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
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


def test_units_of_the_agent_that_a_boot_starts_take_turns() -> None:
    """The agent refuses a second operation at the same time, and a start that it refuses is not counted."""
    units = {name: unit_of(FIRMWARE / "systemd" / f"edgekd-{name}.service")["Unit"] for name in ("install", "renew")}
    assert "edgekd-boot.service" in units["install"]["Before"].split()
    assert {"edgekd-install.service", "edgekd-boot.service"} <= {*units["renew"]["After"].split()}


def test_no_command_hides_its_failure() -> None:
    for unit in SERVICES:
        assert not re.search(r"^Exec\w+=[@:+!]*-", unit.read_text("utf-8"), re.MULTILINE), unit.name


def test_the_agent_has_one_path_everywhere() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *FIRMWARE.rglob("*.*"), *ROOT.glob("examples/*.py")]
    pages += (ROOT / "edgekd" / "deploy" / "firmware" / "camera").iterdir()
    found = {path for page in pages for path in re.findall(r"(?<![\w$}])/[\w./-]*agent\.pyz", page.read_text("utf-8"))}
    assert found == {AGENT, AGENT_ON_DATA}


@pytest.mark.parametrize("page", ["agent.md", "firmware.md"])
def test_pages_quote_units_and_settings(page: str) -> None:
    """Each quoted line is in the section of its file; what a page leaves out, it leaves out."""
    blocks = BLOCK.findall((ROOT / "docs" / "guides" / page).read_text("utf-8"))
    quotes = [quote for block in blocks for quote in QUOTED.findall(block)]
    assert quotes
    for name, quoted in quotes:
        quote = ConfigParser(interpolation=None)
        quote.optionxform = str  # type: ignore[assignment,method-assign]
        quote.read_string(quoted)
        file = unit_of(next(FIRMWARE.rglob(name)))
        for section in quote.sections():
            assert dict(quote[section]).items() <= dict(file[section]).items(), name


# ------------------------------------------------------------------------------------------------ started by systemd

PROGRAMS = {
    "camera.service": "if [ $(grep -c camera log) = 1 ]; then sleep 0.2; exit 1; fi; exec sleep 60",
    "edgekd-boot.service": "exit 1",
    "edgekd-commit.service": "case $(grep -c commit log) in 1) exec sleep 60 ;; 2) exit 1 ;; *) echo end >>log ;; esac",
}
"""In place of the programs: a camera that crashes once, an agent that cannot write, a check that fails once."""
MANAGER = """mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/systemd/system || exit 77
mount -t cgroup2 none /sys/fs/cgroup || exit 77
exec timeout 120 /usr/lib/systemd/systemd --user --unit=camera.service
"""
"""A manager of its own, in a view of the file system in which the machine seems to be booted by systemd."""


def stub(folder: Path, unit: Path) -> None:
    """Write a unit whose dependencies are the real ones, and whose program only writes that it was started."""
    text, name = unit.read_text("utf-8"), unit.stem.replace("edgekd-", "")
    head = text[text.index("[Unit]") : text.index("[Service]")]
    kept = re.findall(r"^(?:Type|Restart|SuccessExitStatus)=.*", text, re.MULTILINE)
    program = PROGRAMS.get(unit.name, "exec systemctl --user --no-block restart camera.service")
    start = f"""ExecStart=/bin/sh -c 'cd {folder}; echo {name} >>log; {program.replace("$", "$$")}'"""
    (folder / unit.name).write_text("\n".join([head, "[Service]", *kept, "RestartSec=100ms", start, ""]), "utf-8")


def test_every_start_is_counted_and_a_model_that_is_not_committed_is_started_again(tmp_path: Path) -> None:
    need("unshare", "systemctl")
    for name in ("camera", "edgekd-boot", "edgekd-commit", "edgekd-retry"):
        stub(tmp_path, FIRMWARE / "systemd" / f"{name}.service")
    log, runtime = tmp_path / "log", tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    with subprocess.Popen(["unshare", "--mount", "--cgroup", "sh", "-c", MANAGER], env=environment) as manager:
        while manager.poll() is None and not (log.exists() and "end" in log.read_text("utf-8")):
            time.sleep(0.05)
        manager.terminate()
    if not log.exists():
        pytest.skip("no right to start a manager of services here")
    start = ["boot", "camera", "commit"]
    assert log.read_text("utf-8").split() == [*start, *start, "retry", *start, "end"]


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


def test_an_image_with_an_older_model_is_no_failure_while_a_newer_one_is_on_trial(
    in_service: OnCamera, bundle: Path, newer: Path
) -> None:
    """As where the boot loader goes back to the old system during the first start of a new one."""
    assert in_service.agent("install", newer, "--runtime", "null")["trial"]
    done = install_image(in_service, bundle)
    assert (done.returncode, "is newer, and trusted" in done.stderr) == (0, True), done.stderr
    assert in_service.serves(newer)


@pytest.mark.parametrize("case", ["newer and trusted", "revoked", "older", "nothing"])
def test_an_image_whose_key_was_replaced_is_no_failure_if_a_newer_model_is_in_service_and_trusted(
    on_camera: OnCamera, bundle: Path, newer: Path, tmp_path: Path, case: str
) -> None:
    image, in_service = signed(bundle, tmp_path / "image", 1), signed(newer, tmp_path / "sent", 2)
    revoked = (read_head(newer).identity,) if case == "revoked" else ()
    if case == "older":
        image, in_service = signed(newer, tmp_path / "image", 1), signed(bundle, tmp_path / "sent", 2)
    if case != "nothing":
        on_camera.agent("install", in_service, "--runtime", "null")
    trust = {"bundle": (2,), "revoked_keys": (key_id(public(1)),), "revoked_bundles": revoked}
    trust_file(on_camera.folder / "root" / "etc" / "edgekd" / "trust.json", **trust)
    done = install_image(on_camera, image)
    assert "revoked-key" in done.stderr
    is_fine = case == "newer and trusted"
    assert (done.returncode, "is newer, and trusted" in done.stderr) == (not is_fine, is_fine), done.stderr
    if is_fine:
        assert on_camera.serves(newer)
        assert install_image(on_camera, image).stderr == "", "once for each image"


# --------------------------------------------------------------------------------------------------- the watchdog


def status_of(taken: int, detected: int) -> Any:
    frames = SimpleNamespace(captured=taken + 1, rejected=1, detected=detected)
    return SimpleNamespace(cameras=[SimpleNamespace(frames=frames)])


def test_the_watchdog_is_served_unless_frames_arrive_and_none_is_detected(tmp_path: Path) -> None:
    watchdog_type = runpy.run_path(str(ROOT / "examples" / "camera_service.py"))["Watchdog"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        watchdog = watchdog_type(str(tmp_path / "notify"))
        for taken, detected, served in ((5, 4, True), (9, 4, False), (12, 5, True), (12, 5, True), (13, 5, False)):
            watchdog.report(status_of(taken, detected))
            if served:
                assert systemd.recv(100) == b"WATCHDOG=1"
            else:
                with pytest.raises(BlockingIOError):
                    systemd.recv(100)
        watchdog_type(None).report(status_of(1, 1))


# ----------------------------------------------------------------------------------------------------- the commit

STUB = """import json, sys
print(json.dumps({answer} if sys.argv[1] == "status" else {{"ok": {ok}, "error": {{"what": "in use"}}}}))
open({log!r}, "a").write(sys.argv[1] + "\\n")
"""


def commit(
    folder: Path, *, trial: bool, counts: list[int], model: str = "new", ok: bool = True, seconds: float = 60
) -> Any:
    """Run the program against an agent that only answers, while the camera's status goes through some counts."""
    log, agent, status = folder / "log", folder / "agent.py", folder / "status.json"
    service = {"trial": {} if trial else None, "active": {"identity": "new"}}
    agent.write_text(STUB.format(answer={"ok": True, "result": service}, ok=ok, log=str(log)), "utf-8")
    program = (FIRMWARE / "commit_when_healthy.py").read_text("utf-8")
    options = ("--agent", agent, "--status", status, "--frames", 10, "--seconds", seconds)
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
    done, called = commit(tmp_path, trial=True, counts=counts, model=model, seconds=0.3)
    assert (done.returncode, called) == (1, ["status"])
    assert words in done.stderr


def test_a_commit_that_the_agent_refuses_is_a_failure(tmp_path: Path) -> None:
    done, called = commit(tmp_path, trial=True, counts=[3, 13], ok=False, seconds=0.3)
    assert (done.returncode, "in use" in done.stderr) == (1, True)
    assert called.count("commit") >= 1
