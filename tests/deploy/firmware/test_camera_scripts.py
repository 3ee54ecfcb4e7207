"""What runs on the camera, as each firmware system calls it: with its arguments, its variables, its folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from firmware import OnCamera, flipped, new_camera, run

from edgekd.agent.state.trial import TRIES
from edgekd.core.bundle.archive import read_head
from edgekd.deploy.agent_zipapp import agent_archive
from edgekd.deploy.delta import run as make_delta
from edgekd.deploy.firmware.types import camera_script

SYSTEMS = ("mender", "rauc", "swupdate")


def written(folder: Path, name: str, **settings: str) -> Path:
    """A system's script, as a file that can be run."""
    path = folder / f"{name}.sh"
    path.write_bytes(camera_script(name, **settings))
    path.chmod(0o755)
    return path


def as_rauc(
    on_camera: OnCamera, content: Path, *, file: str = "bundle.edgekd", model: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """RAUC's call of its custom handler: the bundle is mounted read-only somewhere, and a variable says where."""
    mounted = on_camera.folder / "mounted"
    mounted.mkdir(exist_ok=True)
    shutil.copy(content, mounted / file)
    script = written(on_camera.folder, "rauc", state=str(on_camera.state), file=file, model=model)
    return run(script, environment={**on_camera.environment, "RAUC_BUNDLE_MOUNT_POINT": str(mounted), **more})


def mender_folder(on_camera: OnCamera, content: Path, *, file: str = "bundle.edgekd", model: str = "") -> Path:
    """What Mender prepares for an update module: its file API."""
    folder = on_camera.folder / "payload"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("header", "files", "tmp"):
        (folder / name).mkdir(parents=True)
    settings = {"state": str(on_camera.state), "file": file, "model": model}
    (folder / "header" / "meta-data").write_text(json.dumps(settings), "utf-8")
    shutil.copy(content, folder / "files" / file)
    return folder


def as_mender(on_camera: OnCamera, folder: Path, state: str) -> subprocess.CompletedProcess[str]:
    """Mender's call of the update module in one of its states."""
    return run(written(on_camera.folder, "mender"), state, folder, environment=on_camera.environment)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("shell", ["sh", "dash", "busybox sh", "bash --posix"])
def test_scripts_are_posix_shell(tmp_path: Path, name: str, shell: str) -> None:
    program, *flags = shell.split()
    if shutil.which(program) is None:
        pytest.skip(f"not installed: {program}")
    done = run(program, *flags, "-n", written(tmp_path, name, state="/var/lib/edgekd", file="bundle.edgekd", model=""))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SYSTEMS)
def test_shellcheck_finds_nothing(tmp_path: Path, name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    # 1090: the settings are the camera's; 2034: `state` is used where the other part is; 2154: settings come first.
    done = run(
        "shellcheck",
        "-e",
        "SC1090,SC2034",
        written(tmp_path, name, state="/var/lib/edgekd", file="bundle.edgekd", model=""),
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_settings_are_quoted(tmp_path: Path) -> None:
    state = '/srv/it\'s $(touch evil) `touch evil` "x"'
    script = camera_script("mender", state=state).decode().split("\nset -u")[0]
    done = subprocess.run(["sh", "-c", f'{script}\nprintf %s "$state"'], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == state
    assert not (tmp_path / "evil").exists()


# --------------------------------------------------------------------------------------------------------------- RAUC


def test_rauc_installs_and_again(on_camera: OnCamera, bundle: Path, newer: Path) -> None:
    for _ in range(2):
        done = as_rauc(on_camera, bundle)
        assert done.returncode == 0, done.stderr
        assert on_camera.serves(bundle)
    assert as_rauc(on_camera, newer).returncode == 0
    assert on_camera.serves(newer)
    assert on_camera.status()["previous"]["identity"] == read_head(bundle).identity


def test_a_damaged_bundle_fails_and_what_was_in_service_stays(
    in_service: OnCamera, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    bad = flipped(newer, tmp_path / "bad.edgekd", -3000)
    done = as_rauc(in_service, bad)
    assert done.returncode == 1
    assert "install failed" in done.stderr
    assert in_service.serves(bundle)


def test_a_bundle_for_another_device_fails(on_camera: OnCamera, bundle: Path) -> None:
    on_camera.become_another()
    done = as_rauc(on_camera, bundle)
    assert done.returncode == 1
    assert "for another device" in done.stderr
    assert on_camera.status()["active"] is None


def test_an_older_bundle_fails(on_camera: OnCamera, bundle: Path, newer: Path) -> None:
    assert as_rauc(on_camera, newer).returncode == 0
    done = as_rauc(on_camera, bundle)
    assert done.returncode == 1
    assert "RollbackError" in done.stderr
    assert on_camera.serves(newer)


def test_a_bundle_that_waits_elsewhere_is_not_taken_for_it(
    in_service: OnCamera, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    """One that was unpacked and never activated is in the other slot, and is not what is being installed again."""
    in_service.agent("unpack", newer)
    assert in_service.status()["candidate"]
    assert as_rauc(in_service, bundle).returncode == 0
    assert in_service.serves(bundle)


def test_the_service_is_told_once(on_camera: OnCamera, bundle: Path) -> None:
    told = on_camera.folder / "told"
    on_camera.settle(restart=f"echo again >>{told}")
    for _ in range(2):
        assert as_rauc(on_camera, bundle).returncode == 0
    assert told.read_text("utf-8") == "again\n"


def test_a_service_that_does_not_come_up_goes_back(in_service: OnCamera, bundle: Path, newer: Path) -> None:
    told = in_service.folder / "told"
    in_service.settle(restart=f"echo again >>{told}; [ $(wc -l <{told}) -gt 1 ]")
    done = as_rauc(in_service, newer)
    assert done.returncode == 1, done.stderr
    assert "did not come up" in done.stderr
    assert in_service.serves(bundle)
    assert told.read_text("utf-8") == "again\nagain\n", "also told of the bundle that came back"


def test_the_first_bundle_cannot_go_back(on_camera: OnCamera, bundle: Path) -> None:
    on_camera.settle(restart="false")
    done = as_rauc(on_camera, bundle)
    assert done.returncode == 1
    assert "nothing to go back to" in done.stderr
    assert on_camera.serves(bundle)


def test_a_camera_without_an_agent_takes_the_bundles(on_camera: OnCamera, bundle: Path) -> None:
    on_camera.settle(agent=on_camera.folder / "none.pyz")
    done = as_rauc(on_camera, bundle, TMPDIR=str(on_camera.folder))
    assert done.returncode == 0, done.stderr
    assert on_camera.serves(bundle)
    assert not list(on_camera.folder.glob("tmp.*")), "it is removed afterwards"


def test_a_handler_that_nobody_called_says_so(on_camera: OnCamera) -> None:
    done = run(
        written(on_camera.folder, "rauc", state=str(on_camera.state), file="x", model=""),
        environment=on_camera.environment,
    )
    assert done.returncode != 0
    assert "called by RAUC only" in done.stderr


@pytest.mark.parametrize("at", [2, 3, 4])
def test_cut_off_anywhere_and_called_again(in_service: OnCamera, bundle: Path, newer: Path, at: int) -> None:
    """The interpreter dies at its call number `at`; what is in service is whole, and the next call finishes."""
    count, dying = in_service.folder / "count", in_service.folder / "dying"
    counted = f"echo x >>'{count}'\n[ $(wc -l <'{count}') -ne {at} ] || exit 137"
    dying.write_text(f"#!/bin/sh\n{counted}\nexec '{sys.executable}' \"$@\"\n", "utf-8")
    dying.chmod(0o755)
    in_service.settle(python=dying)
    assert as_rauc(in_service, newer).returncode != 0
    assert in_service.serves(bundle if at < 4 else newer)
    assert as_rauc(in_service, newer).returncode == 0
    assert in_service.serves(newer)


def test_a_bundle_of_one_of_several_models_is_installed_as_that_model(
    in_service: OnCamera, bundle: Path, newer: Path
) -> None:
    in_service.settle(restart="true")
    assert as_rauc(in_service, newer, model="night").returncode == 0
    assert in_service.serves(bundle), "the model without a name stays"
    night = in_service.agent("status", "--runtime", "null", "--model", "night")
    assert night["active"]["identity"] == read_head(newer).identity


def test_a_delta_is_installed(in_service: OnCamera, bundle: Path, newer: Path, tmp_path: Path) -> None:
    delta = tmp_path / "newer.edgekd-delta"
    make_delta(bundle, newer, delta)
    done = as_rauc(in_service, delta, file="bundle.edgekd-delta")
    assert done.returncode == 0, done.stderr
    assert in_service.serves(newer)


def test_a_trust_file_is_taken(in_service: OnCamera, bundle: Path, trust: Path) -> None:
    for _ in range(2):
        done = as_rauc(in_service, trust, file="trust.json")
        assert done.returncode == 0, done.stderr
    assert in_service.status()["trust"]["version"] == 1
    folder = mender_folder(in_service, trust, file="trust.json")
    for state in ("ArtifactInstall", "ArtifactCommit"):
        done = as_mender(in_service, folder, state)
        assert done.returncode == 0, done.stderr
    assert in_service.serves(bundle)


def test_a_new_bundle_is_on_trial_as_by_the_agents_own_command(in_service: OnCamera, newer: Path) -> None:
    assert as_rauc(in_service, newer).returncode == 0
    assert in_service.status()["trial"]["tries_left"] == TRIES


def test_an_engine_that_is_too_slow_is_a_failed_update(in_service: OnCamera, bundle: Path, newer: Path) -> None:
    in_service.settle(max_latency=1)  # the null runtime takes 10 ms
    done = as_rauc(in_service, newer)
    assert (done.returncode, "max" in done.stderr or "slow" in done.stderr) == (1, True), done.stderr
    assert in_service.serves(bundle)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("runuser") or not Path("/usr/bin/python3").exists(),
    reason="needs root, runuser, and a Python that everybody may run",
)
def test_with_a_user_of_its_own_the_agent_is_not_root(trust: Path) -> None:
    """The user can neither enter the folder of the file nor make a state folder. A trust file needs no NumPy."""
    with tempfile.TemporaryDirectory() as name:
        on_camera = new_camera(Path(name, "camera"))
        Path(name).chmod(0o755)
        (on_camera.folder / "agent.pyz").write_bytes(agent_archive())
        on_camera.settle(user="nobody", python="/usr/bin/python3")
        (on_camera.folder / "mounted").mkdir(mode=0o700)
        done = as_rauc(on_camera, trust, file="trust.json")
        assert done.returncode == 0, done.stdout + done.stderr
        kept = on_camera.state / "trust.json"
        assert (kept.read_bytes(), kept.owner(), on_camera.state.owner()) == (trust.read_bytes(), "nobody", "nobody")


# ----------------------------------------------------------------------------------------------------------- SWUpdate


def test_swupdate_calls_before_and_after(on_camera: OnCamera, bundle: Path) -> None:
    script = written(on_camera.folder, "swupdate", state=str(on_camera.state), file="bundle.edgekd", model="")
    assert run(script, "preinst", environment=on_camera.environment).returncode == 0
    assert on_camera.status()["active"] is None
    incoming = on_camera.state / "incoming" / "bundle.edgekd"
    incoming.parent.mkdir(parents=True)
    shutil.copy(bundle, incoming)
    done = run(script, "postinst", environment=on_camera.environment)
    assert done.returncode == 0, done.stderr
    assert on_camera.serves(bundle)
    assert not incoming.exists()


def test_swupdate_is_told_of_failure_and_nothing_is_left(on_camera: OnCamera, bundle: Path) -> None:
    script = written(on_camera.folder, "swupdate", state=str(on_camera.state), file="bundle.edgekd", model="")
    incoming = on_camera.state / "incoming" / "bundle.edgekd"
    incoming.parent.mkdir(parents=True)
    flipped(bundle, incoming, 700)
    assert run(script, "postinst", environment=on_camera.environment).returncode == 1
    assert on_camera.status()["active"] is None
    assert not incoming.exists()


# ------------------------------------------------------------------------------------------------------------- Mender


def test_mender_is_told_what_the_module_can(on_camera: OnCamera, bundle: Path) -> None:
    folder = mender_folder(on_camera, bundle)
    answers = {
        "SupportsRollback": "Yes\n",
        "NeedsArtifactReboot": "No\n",
        "Download": "",
        "ArtifactVerifyReboot": "",
        "SomethingNew": "",
    }
    for state, answer in answers.items():
        done = as_mender(on_camera, folder, state)
        assert (done.returncode, done.stdout) == (0, answer), state


def test_mender_installs_and_commits(on_camera: OnCamera, bundle: Path, newer: Path) -> None:
    for each in (bundle, newer):
        folder = mender_folder(on_camera, each)
        for state in ("Download", "ArtifactInstall", "ArtifactCommit", "Cleanup"):
            done = as_mender(on_camera, folder, state)
            assert done.returncode == 0, f"{state}: {done.stderr}"
        assert on_camera.serves(each)


def test_mender_ends_a_trial(in_service: OnCamera, bundle: Path, newer: Path) -> None:
    in_service.settle(tries=2)
    folder = mender_folder(in_service, newer)
    assert as_mender(in_service, folder, "ArtifactInstall").returncode == 0
    assert in_service.status()["trial"]
    assert as_mender(in_service, folder, "ArtifactCommit").returncode == 0
    assert in_service.serves(newer)
    assert in_service.status()["trial"] is None


def test_a_trial_that_nobody_ends_leads_back(in_service: OnCamera, bundle: Path, newer: Path) -> None:
    in_service.settle(tries=1)
    assert as_rauc(in_service, newer).returncode == 0
    for expected in (newer, bundle):
        in_service.agent("boot")
        assert in_service.serves(expected)


def test_mender_rolls_back(in_service: OnCamera, bundle: Path, newer: Path) -> None:
    """It asks for each twice, as after a power cut."""
    folder = mender_folder(in_service, newer)
    for _ in range(2):
        assert as_mender(in_service, folder, "ArtifactInstall").returncode == 0
    assert in_service.serves(newer)
    for _ in range(2):
        assert as_mender(in_service, folder, "ArtifactRollback").returncode == 0
        assert in_service.serves(bundle)
    assert as_mender(in_service, folder, "ArtifactFailure").returncode == 0
    assert in_service.status()["rejected"] == read_head(newer).identity


def test_mender_rolls_back_nothing_where_the_installation_failed(
    in_service: OnCamera, bundle: Path, newer: Path, tmp_path: Path
) -> None:
    folder = mender_folder(in_service, flipped(newer, tmp_path / "bad.edgekd", 700))
    assert as_mender(in_service, folder, "ArtifactInstall").returncode == 1
    assert as_mender(in_service, folder, "ArtifactRollback").returncode == 0
    assert in_service.serves(bundle)


def test_mender_rolls_back_nothing_that_was_not_begun(in_service: OnCamera, bundle: Path) -> None:
    assert as_mender(in_service, mender_folder(in_service, bundle), "ArtifactRollback").returncode == 0
    assert in_service.serves(bundle)


def test_mender_is_told_that_the_first_bundle_cannot_go(on_camera: OnCamera, bundle: Path) -> None:
    folder = mender_folder(on_camera, bundle)
    assert as_mender(on_camera, folder, "ArtifactInstall").returncode == 0
    done = as_mender(on_camera, folder, "ArtifactRollback")
    assert done.returncode == 1
    assert "nothing to go back to" in done.stderr


def test_menders_module_does_not_run_the_bundles_agent(on_camera: OnCamera, bundle: Path) -> None:
    """It lies on the camera, and nobody has said that the artifact is to be trusted."""
    on_camera.settle(agent=on_camera.folder / "none.pyz")
    done = as_mender(on_camera, mender_folder(on_camera, bundle), "ArtifactInstall")
    assert done.returncode == 1


def test_mender_without_settings(on_camera: OnCamera, bundle: Path) -> None:
    folder = mender_folder(on_camera, bundle)
    (folder / "header" / "meta-data").write_text("{}", "utf-8")
    found: Any = as_mender(on_camera, folder, "ArtifactInstall")
    assert found.returncode == 1
