"""The virtual camera driven as any camera is: a real ARM64 Linux in QEMU, with systemd, GRUB, RAUC and SSH.

One machine lives through the tests of this file in their order. `make test-camera` runs them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny
from cameras import BUNDLE
from machine import HOST_FOR_MACHINE, Image, Machine
from running import Built
from test_pythons import NAMES, PROCESSES

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "camera"
AGENT = ("python3", "/usr/lib/edgekd/agent.pyz")
DETECTIONS = "/run/edgekd/detections.jsonl"
GRUBENV = "/boot/efi/EFI/debian/grubenv"
LIBRARIES = "./usr/lib/aarch64-linux-gnu"
SWITCH = """
import json, sys
import numpy
from edgekd.agent.variants import Variants
found, frame = {}, numpy.load(sys.argv[1])
with Variants("/var/lib/edgekd", [None, "night"], automatic=False) as served:
    for label, name in ("day", None), ("night", "night"):
        served.use(name)
        model, objects = served.detect(frame)
        found[label] = {"model": model.identity, "objects": len(objects.scores)}
print(json.dumps(found))
"""
RECEIVED = "/tmp"
"""Folder on the camera for what tests send there: in its memory, and writable by every user of its own."""
ALONE = (
    *("camera_sources", "cpu_profiles", "cuda", "hostile_network", "hostile_server", "modules"),
    *("power_cuts", "records", "state_folder"),
)
"""Further tests that need of edgekd the agent alone, no ONNX, no right to mount, and no fast machine."""
PART_NUMBERS = ROOT / "docs" / "reference" / "agent.md"
pytestmark = pytest.mark.camera


@pytest.fixture(scope="module")
def image() -> Image:
    """The image that `make camera` made."""
    folder = os.environ.get("EDGEKD_CAMERA")
    if not folder:
        pytest.skip("no virtual camera: make test-camera")
    return Image(ROOT / folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for machines and models."""
    return tmp_path_factory.mktemp("virtual")


@pytest.fixture(scope="module")
def camera(image: Image, work: Path) -> Iterator[Machine]:
    """A machine fresh from the factory, which has been turned on."""
    with Machine(image, work / "machine") as machine:
        machine.wait_for_ssh()
        yield machine


@pytest.fixture(scope="module")
def model(image: Image, work: Path) -> Callable[..., Path]:
    """Make a signed model with a counter, from that of the first firmware."""

    def make(counter: int, key: str = "release", folder: Path = work, suffix: str = "edgekd", *more: str) -> Path:
        out = folder / f"model-{counter}-{key}.{suffix}"
        options = ("--version-counter", str(counter), "--sign", str(image.key(f"{key}.key")))
        edgekd("pack", str(image.folder / "model-1.edgekd"), "--out", str(out), *options, *more)
        return out

    return make


def edgekd(*arguments: str, home: Path | None = None) -> Any:
    """Run the command line here; return its JSON."""
    command = [sys.executable, "-m", "edgekd", *arguments, "--json"]
    variables = {**os.environ, **({"HOME": str(home)} if home else {})}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def agent(machine: Machine, *arguments: str) -> Any:
    """Run a command of the agent as the user that the models belong to; return its answer."""
    done = machine.run(*AGENT, *arguments, user="edgekd", check=False, timeout_s=1800)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def until(condition: Callable[[], Any], timeout_s: float = 900.0) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(2)
    return found


def detects_with(machine: Machine, counter: int) -> Any:
    """Wait until the camera detects objects with the model of this counter; return the line of a frame."""

    def last() -> Any:
        lines = machine.run("tail", "-n", "4", DETECTIONS, check=False).stdout.splitlines()
        frames = [json.loads(line) for line in lines[1:]]  # the first may be cut by the rotation of a restart
        return next((frame for frame in frames if frame["counter"] == counter and frame["objects"]), None)

    return until(last)


def committed(machine: Machine, counter: int) -> Any:
    """Wait until the model of this counter is in service without a trial; return the status."""

    def status() -> Any:
        found = agent(machine, "status")["result"]
        in_service = found and found["active"] and found["active"]["counter"] == counter and not found["trial"]
        return found if in_service else None

    return until(status)


def boot_state(machine: Machine) -> dict[str, str]:
    """Variables of the boot loader."""
    text = machine.run("grub-editenv", GRUBENV, "list", check=False).stdout
    return dict(line.split("=", 1) for line in text.splitlines())


def booted_slot(machine: Machine) -> str:
    """Name of the root slot that runs."""
    words = machine.run("cat", "/proc/cmdline").stdout.split()
    return next(word for word in words if word.startswith("rauc.slot=")).removeprefix("rauc.slot=")


@pytest.fixture
def server(work: Path) -> Iterator[str]:
    """A server for downloads; its address as the camera sees it."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(work))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST_FOR_MACHINE}:{server.server_port}"
        server.shutdown()


def test_from_the_factory_it_installs_its_model_and_detects(camera: Machine) -> None:
    frame = detects_with(camera, 1)
    assert {each["class"] for each in frame["objects"]} <= {"red", "green"}
    status = committed(camera, 1)
    assert status["active"]["engine"]["runtime"]["name"] == "onnxruntime"
    assert camera.run("uname", "-m").stdout.strip() == "aarch64"
    until(lambda: boot_state(camera)["A_TRY"] == "0")
    assert camera.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_the_host_installs_a_model_and_it_goes_into_service(
    camera: Machine, image: Image, model: Callable[..., Path]
) -> None:
    trust = ("--trust", str(image.key("trust.json")))
    short = ("--iterations", "5", "--seconds", "0.1")
    report = edgekd("engine", str(model(2)), "--device", "ssh://camera", "--activate", *trust, *short, home=camera.home)
    assert report["fits"] is True
    assert report["device"]["firmware"] == "edgekd,virtual-camera"
    detects_with(camera, 2)


def test_a_delta_from_a_server_is_on_trial_until_the_camera_works_with_it(
    camera: Machine, model: Callable[..., Path], work: Path, server: str
) -> None:
    new = model(3)
    edgekd("delta", str(work / "model-2-release.edgekd"), str(new), "--out", str(work / "model-3.delta"))
    assert agent(camera, "fetch", f"{server}/model-3.delta", "--out", f"{RECEIVED}/update")["result"]["kind"] == "delta"
    installed = agent(camera, "install", f"{RECEIVED}/update", "--tries", "3")["result"]
    assert installed["trial"]["tries_left"] == 3
    camera.run("systemctl", "restart", "camera")
    detects_with(camera, 3)
    committed(camera, 3)


def test_an_older_model_is_refused_and_a_rollback_leads_one_step_back(
    camera: Machine, model: Callable[..., Path], server: str
) -> None:
    agent(camera, "fetch", f"{server}/model-2-release.edgekd", "--out", f"{RECEIVED}/older")
    assert agent(camera, "install", f"{RECEIVED}/older")["error"]["kind"] == "RollbackError"
    agent(camera, "rollback")
    detects_with(camera, 2)


def test_a_model_that_is_never_committed_is_rolled_back_by_starts(
    camera: Machine, model: Callable[..., Path], server: str
) -> None:
    agent(camera, "fetch", f"{server}/{model(4).name}", "--out", f"{RECEIVED}/new")
    camera.run("systemctl", "mask", "--runtime", "edgekd-commit.service")
    assert agent(camera, "install", f"{RECEIVED}/new", "--tries", "2")["result"]["trial"]["tries_left"] == 2
    for _ in range(3):
        camera.run("systemctl", "restart", "camera")
    detects_with(camera, 2)
    assert agent(camera, "status")["result"]["rejected"]
    camera.run("systemctl", "unmask", "--runtime", "edgekd-commit.service")


def test_after_a_power_cut_it_detects_with_the_same_model(camera: Machine) -> None:
    camera.cut_power()
    camera.start()
    camera.wait_for_ssh()
    detects_with(camera, 2)
    assert agent(camera, "status")["result"]["counter"] == 3


def test_a_variant_arrives_by_delta_as_a_model_of_its_own(
    camera: Machine, image: Image, model: Callable[..., Path], work: Path, server: str
) -> None:
    in_service = until(lambda: agent(camera, "status")["result"]["active"])
    base = model(in_service["counter"])
    scenes = tiny.write_data(work / "scenes", train=48)
    (work / "night").mkdir()
    for path in (scenes / "images" / "train").iterdir():
        cv2.imwrite(str(work / "night" / path.name), cv2.imread(str(path)) // 5)
    variant, key = work / "night.edgekd", str(image.key("release.key"))
    flags = ("--frames", str(work / "night"), "--data", str(scenes), "--name", "night", "--sign", key)
    made = edgekd("adapt", str(base), *flags, "--out", str(variant))
    delta = Path(made["delta"])
    agent(camera, "fetch", f"{server}/{delta.name}", "--out", f"{RECEIVED}/delta")
    agent(camera, "install", f"{RECEIVED}/delta", "--model", "night", "--runtime", "onnxruntime")
    np.save(work / "frame.npy", cv2.imread(str(next((work / "night").iterdir()))))
    camera.send(work / "frame.npy", f"{RECEIVED}/frame.npy")
    program = ("env", f"PYTHONPATH={AGENT[1]}", "python3", "-c", SWITCH)
    found = json.loads(camera.run(*program, f"{RECEIVED}/frame.npy", user="edgekd", timeout_s=900).stdout)
    assert found["night"]["model"] == made["identity"] != found["day"]["model"]
    assert found["night"]["objects"] > found["day"]["objects"]


def test_a_model_arrives_as_an_update_by_swupdate(
    camera: Machine, image: Image, model: Callable[..., Path], work: Path
) -> None:
    """By Debian's program, which the system of the camera does not bring."""
    packages, programs = work / "packages.tar", work / "swupdate.tar"
    mmdebstrap = (
        "mmdebstrap",
        "--arch=arm64",
        "--variant=extract",
        "--include=swupdate",
        "--skip=output/dev",
        "trixie",
    )
    subprocess.run((*mmdebstrap, packages), check=True, capture_output=True)
    with tarfile.open(packages) as given, tarfile.open(programs, "w") as taken:
        for entry in given:
            folder, _, name = entry.name.rpartition("/")
            if entry.name == "./usr/bin/swupdate" or (folder == LIBRARIES and ".so" in name):
                taken.addfile(entry, given.extractfile(entry) if entry.isfile() else None)
    camera.run("sh", "-c", "mkdir -p /data/swupdate && tar -C /data/swupdate -xf -", stdin=programs.read_bytes())
    firmware = ("--firmware-key", str(image.key("rauc.key")), "--firmware-cert", str(image.key("rauc.pem")))
    camera.send(model(5, "release", work, "swu", *firmware), f"{RECEIVED}/model.swu")
    program = ("env", f"LD_LIBRARY_PATH=/data/swupdate/{LIBRARIES}", "/data/swupdate/usr/bin/swupdate")
    board = ("-H", "camera:edgekd,virtual-camera", "-k", "/etc/rauc/keyring.pem")
    camera.run(*program, *board, "-i", f"{RECEIVED}/model.swu", timeout_s=1800)
    detects_with(camera, 5)
    committed(camera, 5)


def test_after_a_rotation_of_keys_the_old_one_counts_no_more(
    camera: Machine, image: Image, model: Callable[..., Path], work: Path, server: str
) -> None:
    keys = image.folder / "keys"
    edgekd("keygen", "next", "--out", str(work))
    table = (keys / "trust.toml").read_text("utf-8").replace("version = 1", "version = 2")
    table = table.replace("release.pub", str(work / "next.pub")).replace("release", "next")
    table = table.replace('"trust.pub"', f'"{keys / "trust.pub"}"')
    (work / "trust.toml").write_text(table, "utf-8")
    signed = ("--previous", str(keys / "trust.json"), "--key", str(keys / "trust.key"))
    edgekd("trust", str(work / "trust.toml"), "--out", str(work / "trust-2.json"), *signed)
    camera.send(work / "trust-2.json", f"{RECEIVED}/trust-2.json")
    assert agent(camera, "trust", f"{RECEIVED}/trust-2.json")["result"]["version"] == 2
    old = model(6)
    fetched = agent(camera, "fetch", f"{server}/{old.name}", "--out", f"{RECEIVED}/old")
    assert fetched["error"]["kind"] == "SignatureError"


def test_a_model_arrives_as_an_update_by_rauc(camera: Machine, image: Image, work: Path) -> None:
    firmware = ("--firmware-key", str(image.key("rauc.key")), "--firmware-cert", str(image.key("rauc.pem")))
    options = ("--version-counter", "6", "--sign", str(work / "next.key"), *firmware)
    edgekd("pack", str(image.folder / "model-1.edgekd"), "--out", str(work / "model.raucb"), *options)
    camera.send(work / "model.raucb", f"{RECEIVED}/model.raucb")
    camera.run("rauc", "install", f"{RECEIVED}/model.raucb", timeout_s=1800)
    detects_with(camera, 6)
    committed(camera, 6)


def test_a_firmware_update_brings_a_new_model_and_is_kept_once_the_camera_works(
    camera: Machine, image: Image, work: Path
) -> None:
    options = ("--version-counter", "7", "--sign", str(work / "next.key"))
    edgekd("pack", str(image.folder / "model-1.edgekd"), "--out", str(work / "model-7.edgekd"), *options)
    update = (EXAMPLES / "make_update.sh", image.folder, "2", work / "model-7.edgekd")
    subprocess.run(update, check=True, capture_output=True)
    camera.send(image.folder / "firmware-2.raucb", "/data/firmware.raucb")
    camera.run("rauc", "install", "/data/firmware.raucb", timeout_s=1800)
    camera.shut_down()
    camera.start()
    camera.wait_for_ssh()
    assert booted_slot(camera) == "B"
    assert boot_state(camera)["B_TRY"] == "1"
    detects_with(camera, 7)
    committed(camera, 7)
    until(lambda: boot_state(camera)["B_TRY"] == "0")


def test_a_system_that_does_not_start_gives_way_to_the_other_slot(camera: Machine) -> None:
    """The second slot, which is in service, loses its kernel, as by a broken update."""
    camera.run("sh", "-c", "mount -o remount,rw / && mv /vmlinuz /gone && sync")
    camera.cut_power()
    camera.start()
    camera.wait_for_ssh()
    assert booted_slot(camera) == "A"
    detects_with(camera, 7)


def test_without_the_boot_loaders_variables_it_boots_and_makes_them_again(camera: Machine) -> None:
    """Their file is empty where the power goes while RAUC writes it."""
    camera.run("sh", "-c", f": >{GRUBENV} && sync")
    camera.cut_power()
    camera.start()
    camera.wait_for_ssh()
    assert booted_slot(camera) == "A"
    detects_with(camera, 7)
    until(lambda: boot_state(camera) == {"ORDER": "A B", "A_OK": "1", "A_TRY": "0", "B_OK": "1", "B_TRY": "0"})


def test_two_cameras_are_a_fleet(camera: Machine, image: Image, work: Path) -> None:
    with Machine(image, work / "second") as second:
        second.wait_for_ssh()
        committed(second, 1)
        boards = "\n".join(
            f'[[boards]]\nname = "camera-{number}"\ndevice = "ssh://edgekd@127.0.0.1:{machine.port}"\n'
            for number, machine in enumerate((camera, second))
        )
        (work / "fleet.toml").write_text(boards, "utf-8")
        known = "".join((each.ssh_config.parent / "known_hosts").read_text("ascii") for each in (camera, second))
        (camera.ssh_config.parent / "known_hosts").write_text(known, "ascii")
        options = ("--iterations", "5", "--seconds", "0.1", "--out", str(work / "fleet"))
        bundle, signed = str(work / "fleet.edgekd"), ("--sign", str(image.key("release.key")))  # by the keys of both
        signed = (*signed, "--sign", str(work / "next.key"), "--version-counter", "8")
        edgekd("pack", str(image.folder / "model-1.edgekd"), "--out", bundle, *signed)
        fleet = edgekd("engine", bundle, "--fleet", str(work / "fleet.toml"), *options, home=camera.home)
        assert [board["error"] for board in fleet["boards"]] == [None, None]


def test_the_agents_own_tests_pass_there(camera: Machine, tiny_build: Built, work: Path) -> None:
    """Those that a camera can run, with the agent's archive of the firmware as the only source of edgekd."""
    packages = ("_pytest", "iniconfig", "packaging", "pluggy", "py", "pygments", "pytest")
    with tarfile.open(work / "tests.tar", "w") as archive:
        for name in packages:
            file = Path(str(importlib.util.find_spec(name).origin))
            path = file.parent if file.stem == "__init__" else file
            archive.add(path, f"packages/{path.name}", filter=source)
        for path in (*(ROOT / "tests").glob("*.py"), ROOT / "tests" / "agent", ROOT / "targets", PART_NUMBERS):
            archive.add(path, path.relative_to(ROOT), filter=source)
        archive.add(tiny_build.bundle, "bundle.edgekd")
    camera.run("systemctl", "stop", "camera")  # it takes a large part of the emulated core
    camera.run("sh", "-c", "mkdir -p /data/suite && tar -C /data/suite -xf -", stdin=(work / "tests.tar").read_bytes())
    path = (AGENT[1], "/data/suite/packages", "/data/suite/tests")
    variables = (f"PYTHONPATH={':'.join(path)}", f"{BUNDLE}=/data/suite/bundle.edgekd", "PYTHONDONTWRITEBYTECODE=1")
    tests = [f"/data/suite/tests/agent/test_{name}.py" for name in (*NAMES, *PROCESSES, *ALONE)]
    flags = ("-q", "-m", "not slow and not release", "-p", "no:cacheprovider", "-o", "markers=slow\nrelease")
    flags = (*flags, "--confcutdir", "/data/suite/tests/agent")
    pytest_there = ("python3", "-W", "error", "-m", "pytest", *flags, "--basetemp", f"{RECEIVED}/suite", *tests)
    done = camera.run("env", *variables, *pytest_there, user="edgekd", timeout_s=7200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def source(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave bytecode, which is of this host's Python, out of an archive."""
    return None if "__pycache__" in entry.name else entry
