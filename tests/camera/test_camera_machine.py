"""The virtual camera's host side: its machine, its SSH settings and the film of its sensor. QEMU does not run here."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from film import write_film
from machine import Image, Machine, Options, greets, qemu_command, write_ssh_settings

from edgekd.agent.cameras.sources import y4m_frames

EXAMPLES = Path(__file__).parents[2] / "examples"
OVERLAY = EXAMPLES / "camera" / "overlay"
PROGRAMS = OVERLAY / "usr" / "lib" / "camera"
SENSOR = PROGRAMS / "sensor.sh"
SCRIPTS = [
    *sorted((EXAMPLES / "camera").glob("*.sh")),
    EXAMPLES / "camera" / "initramfs" / "init",
    *sorted(PROGRAMS.glob("*.sh")),
]
DEBIAN_UNITS = {"emergency.service", "systemd-networkd", "systemd-udev-trigger.service", "ssh"}


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image whose files are empty, and whose keys are words."""
    image = Image(tmp_path / "image")
    (image.folder / "keys").mkdir(parents=True)
    image.disk.touch()
    for name in ("ssh", "host.pub"):
        image.key(name).write_text(f"{name}-key", "ascii")
    return image


@contextmanager
def greeting(text: bytes) -> Iterator[int]:
    """A server that sends a text to whoever connects, and closes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(text)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.mark.parametrize(("text", "is_up"), [(b"SSH-2.0-OpenSSH_10.0\r\n", True), (b"", False), (b"HTTP/1.1", False)])
def test_only_an_ssh_server_greets(text: bytes, is_up: bool) -> None:
    with greeting(text) as port:
        assert greets(port) is is_up


def test_nobody_greets_at_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not greets(port)


@pytest.mark.parametrize("name", ["home", "new home"])
def test_ssh_knows_the_machine_by_its_key_alone(image: Image, tmp_path: Path, name: str) -> None:
    write_ssh_settings(image, tmp_path / name, 2200)
    folder = tmp_path / name / ".ssh"
    shown = subprocess.run(["ssh", "-G", "-F", folder / "config", "camera"], capture_output=True, text=True, check=True)
    settings = dict(line.split(" ", 1) for line in shown.stdout.splitlines())
    assert {name: settings[name] for name in ("hostname", "port", "user")} == {
        "hostname": "127.0.0.1",
        "port": "2200",
        "user": "edgekd",
    }
    assert settings["userknownhostsfile"] == str(folder / "known_hosts")
    assert (folder / "known_hosts").read_text("ascii") == "[127.0.0.1]:2200 host.pub-key"
    assert (folder / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_a_machine_listens_on_this_host_alone_and_writes_its_own_disk(image: Image, tmp_path: Path) -> None:
    command = qemu_command(image, tmp_path / "own.qcow2", 2200, Options(drive="cache=none", more=("-snapshot",)))
    assert "user,id=net,hostfwd=tcp:127.0.0.1:2200-:22" in command
    assert f"if=none,id=disk,format=qcow2,file={tmp_path / 'own.qcow2'},cache=none" in command
    assert command[-1] == "-snapshot"


def test_a_machine_that_ends_is_an_error_with_the_end_of_its_console(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {
        "qemu-img": "touch last",
        "qemu-system-aarch64": "echo no such CPU; exec sleep $SECONDS_ON",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n", "ascii")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECONDS_ON", "0")
    machine = Machine(image, tmp_path / "machine")
    machine.start()
    with pytest.raises(RuntimeError, match=r"(?s)has turned itself off.*no such CPU"):
        machine.wait_for_ssh(20)
    monkeypatch.setenv("SECONDS_ON", "60")
    with machine:
        assert machine.is_on
        with pytest.raises(RuntimeError, match="is on"):
            machine.start()
        with pytest.raises(RuntimeError, match="does not answer"):
            machine.wait_for_ssh(0)
    assert not machine.is_on


def test_an_overlay_of_an_older_image_is_refused(image: Image, tmp_path: Path) -> None:
    overlay = tmp_path / "machine" / "disk.qcow2"
    overlay.parent.mkdir()
    overlay.touch()
    os.utime(image.disk, (2e9, 2e9))
    with pytest.raises(RuntimeError, match="older image"):
        Machine(image, overlay.parent)
    os.utime(overlay, (2e9, 2e9))
    assert Machine(image, overlay.parent).overlay == overlay


@pytest.mark.skipif(shutil.which("tail") is None, reason="no tail")
def test_the_sensor_shows_its_film_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for shade in (40, 200):
        cv2.imwrite(str(tmp_path / "pictures" / f"{shade:03}.png"), np.full((33, 48, 3), shade, np.uint8))
    write_film(tmp_path / "pictures", tmp_path / "film.y4m")
    sensor = subprocess.Popen([SENSOR, tmp_path / "film.y4m"], stdout=subprocess.PIPE)
    assert sensor.stdout is not None
    with sensor:
        frames = list(itertools.islice(y4m_frames(sensor.stdout), 5))
        sensor.kill()
        sensor.stdout.close()
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 5
    assert [round(float(frame.mean()) / 40) for frame in frames] == [1, 5, 1, 5, 1]


EDITENV = """#!/bin/sh
file=$1 command=$2
shift 2
case $command in
    list) [ -s "$file" ] ;;
    create) echo new >"$file" ;;
    set) echo "$*" >>"$file" ;;
esac
"""
"""In place of `grub-editenv`, which writes a binary file."""


@pytest.mark.parametrize(
    ("before", "slot", "after"),
    [("ORDER=A B\n", "B", "ORDER=A B\n"), ("", "A", "new\nORDER=A B {}\n"), ("", "B", "new\nORDER=B A {}\n")],
)
def test_boot_variables_that_a_power_cut_has_emptied_are_made_again(
    tmp_path: Path, before: str, slot: str, after: str
) -> None:
    editenv, variables, cmdline = (tmp_path / name for name in ("grub-editenv", "grubenv", "cmdline"))
    editenv.write_text(EDITENV, "ascii")
    editenv.chmod(0o755)
    variables.write_text(before, "ascii")
    cmdline.write_text(f"root=PARTLABEL=root-{slot} rauc.slot={slot} ro\n", "ascii")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", PROGRAMS / "repair_grubenv.sh", variables, cmdline], env=environment, check=True)
    assert variables.read_text("ascii") == after.format("A_OK=1 A_TRY=0 B_OK=1 B_TRY=0")


@pytest.mark.parametrize(
    ("rules", "folder"),
    [
        (OVERLAY / "usr" / "lib" / "tmpfiles.d" / "rauc.conf", "data/rauc"),
        (EXAMPLES / "firmware" / "rauc" / "tmpfiles.conf", "var/lib/rauc"),
    ],
)
def test_a_file_that_rauc_left_at_a_power_cut_is_removed_by_the_next_boot(
    rules: Path, folder: str, tmp_path: Path
) -> None:
    """GLib writes `central.raucs` to a file with six more letters in its name, and renames it."""
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("not installed: systemd-tmpfiles")
    for name in ("central.raucs", "central.raucs.CFVDZ3", "slot.raucs"):
        (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).touch()
    subprocess.run(["systemd-tmpfiles", "--remove", "--boot", f"--root={tmp_path}", rules], check=True)
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["central.raucs", "slot.raucs"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    done = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_enables_and_changes_units_that_exist() -> None:
    own = OVERLAY / "etc" / "systemd" / "system"
    units = {
        unit.name for folder in (own, EXAMPLES / "firmware" / "systemd") for unit in folder.iterdir()
    } | DEBIAN_UNITS
    recipe = (EXAMPLES / "camera" / "make_image.sh").read_text("utf-8").replace("\\\n", " ")
    enabled = next(line.split(" enable ")[1].split() for line in recipe.splitlines() if " enable " in line)
    changed = [folder.name.removesuffix(".d") for folder in own.glob("*.d")]
    assert "camera" in enabled
    assert [name for name in (*enabled, *changed) if not {name, f"{name}.service"} & units] == []
