"""RAUC's own program takes our bundles, refuses them changed, and its service installs them on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from firmware import COMPATIBLE, OnCamera, accepted, flipped, need, place_in, run
from running import EdgeKD

from edgekd.core.bundle.archive import read_head

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
SYSTEM = Path(__file__).resolve().parents[3] / "examples" / "firmware" / "rauc" / "system.conf"
Pack = Callable[..., Path]


@pytest.fixture
def pack(edgekd: EdgeKD, bundle: Path, keys: Path, on_camera: OnCamera, tmp_path: Path) -> Pack:
    """Make a RAUC bundle, signed by our key."""
    need("rauc", "mksquashfs")

    def make(*flags: object, source: Path = bundle, name: str = "model.raucb") -> Path:
        told = ("--firmware-key", keys / "ours.key", "--firmware-cert", keys / "ours.pem")
        ran = edgekd("pack", source, "--out", tmp_path / name, *told, "--state", on_camera.state, *flags)
        assert ran.code == 0, ran.err
        return tmp_path / name

    return make


def info(keyring: Path, made: Path) -> subprocess.CompletedProcess[str]:
    return run("rauc", "info", "--keyring", keyring, "--output-format=json", made)


@pytest.mark.parametrize("form", ["verity", "plain"])
def test_it_is_accepted_and_says_what_it_is(pack: Pack, bundle: Path, keys: Path, form: str) -> None:
    made = pack(*(["--rauc-plain"] if form == "plain" else []))
    done = info(keys / "ours.pem", made)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["compatible"], told["version"], told["description"]) == (COMPATIBLE, "0", "tiny")
    assert told["build"] == read_head(bundle).identity
    assert told["format"] == form


def test_another_keyring_is_refused(pack: Pack, keys: Path) -> None:
    assert info(keys / "theirs.pem", pack()).returncode != 0


def test_a_certificate_between_is_in_the_signature(edgekd: EdgeKD, bundle: Path, chain: Path, tmp_path: Path) -> None:
    need("rauc", "mksquashfs")
    told = ("--firmware-key", chain / "leaf.key", "--firmware-cert", chain / "leaf.pem")
    between = ("--firmware-intermediate", chain / "middle.pem")
    for name, more, code in (("without.raucb", (), 1), ("with.raucb", between, 0)):
        assert edgekd("pack", bundle, "--out", tmp_path / name, *told, *more).code == 0
        assert info(chain / "root.pem", tmp_path / name).returncode == code


@pytest.mark.parametrize("form", ["verity", "plain"])
def test_changed_ones_are_refused(pack: Pack, keys: Path, tmp_path: Path, form: str) -> None:
    """Of a verity bundle the signature covers the hashes, by which the kernel, or `extract`, checks what it reads."""
    made = pack(*(["--rauc-plain"] if form == "plain" else []))
    size = made.stat().st_size
    for number, at in enumerate((size // 5, size // 2, -9, -300)):
        bad = flipped(made, tmp_path / "bad.raucb", at)
        out = tmp_path / f"out{number}"
        assert run("rauc", "extract", "--keyring", keys / "ours.pem", bad, out).returncode != 0, at
        if form == "plain":
            assert info(keys / "ours.pem", bad).returncode != 0, at


def test_what_is_in_it(pack: Pack, bundle: Path, keys: Path, tmp_path: Path) -> None:
    accepted("rauc", "extract", "--keyring", keys / "ours.pem", pack(), tmp_path / "out")
    assert (tmp_path / "out" / "bundle.edgekd").read_bytes() == bundle.read_bytes()
    assert os.access(tmp_path / "out" / "install.sh", os.X_OK)


def test_awkward_names(pack: Pack, keys: Path) -> None:
    made = pack("--name", ' a\\b; "c"', "--compatible", " Our Camera\\2")
    told = json.loads(info(keys / "ours.pem", made).stdout)
    assert (told["compatible"], told["description"]) == (" Our Camera\\2", ' a\\b; "c"')


# --------------------------------------------------------------------------------------------------------- the service


@contextmanager
def started(*command: object, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command], env={**os.environ, **environment}, stdout=out, stderr=out
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def until(holds: Callable[[], bool], log: Path) -> None:
    """Wait for what a process of ours does at its start."""
    for _ in range(1200):  # at most a minute: the machine may be busy
        if holds():
            return
        time.sleep(0.05)
    pytest.fail(log.read_text("utf-8", "replace")[-2000:])


def on_this_machine(text: str, folder: Path, keyring: Path) -> str:
    """The example of a camera's system.conf, with files in place of its devices, and no boot loader."""
    assert f"compatible={COMPATIBLE}\n" in text
    text = text.replace("/dev/disk/by-partlabel/system-", f"{folder}/").replace("type=ext4", "type=raw")
    text = text.replace("/etc/rauc/keyring.pem", str(keyring)).replace("/var/lib/rauc", f"{folder}/data")
    more = f"bootloader=noop\nmountprefix={folder}/mnt\nbundle-formats=plain verity"
    assert "bootloader=uboot" in text
    return text.replace("bootloader=uboot", more)


@pytest.fixture
def service(on_camera: OnCamera, keys: Path) -> Iterator[dict[str, str]]:
    """RAUC's service on a bus of its own; the environment in which `rauc install` finds it."""
    need("rauc", "dbus-daemon")
    folder = on_camera.folder / "rauc"
    for name in ("data", "mnt"):
        (folder / name).mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_bytes(bytes(4096))
    conf, bus, socket = folder / "system.conf", folder / "bus.conf", folder / "bus"
    conf.write_text(on_this_machine(SYSTEM.read_text("utf-8"), folder, keys / "ours.pem"), "utf-8")
    bus.write_text(BUS.format(socket=socket), "utf-8")
    environment = {**on_camera.environment, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={socket}"}
    daemon = ("dbus-daemon", f"--config-file={bus}", "--nofork", "--nopidfile")
    rauc = ("rauc", f"--conf={conf}", "--override-boot-slot=A", "service")
    logs = folder / "bus.log", folder / "service.log"
    with (
        started(*daemon, environment=environment, log=logs[0]),
        started(*rauc, environment=environment, log=logs[1]),
    ):
        until(lambda: run("rauc", "status", environment=environment).returncode == 0, logs[1])
        yield {**environment, "LOG": str(logs[1])}


def install(service: dict[str, str], made: Path) -> tuple[int, str]:
    done = run("rauc", "install", made, environment=service)
    said = done.stdout + done.stderr + Path(service["LOG"]).read_text("utf-8", "replace")
    if "mount" in said and ("failed to setup loop" in said or "Operation not permitted" in said):
        pytest.skip("no right to mount here: " + said[-200:])
    return done.returncode, said


def test_the_service_installs_and_again(
    service: dict[str, str], pack: Pack, bundle: Path, newer: Path, on_camera: OnCamera
) -> None:
    made = pack("--rauc-plain")
    for _ in range(2):
        code, said = install(service, made)
        assert code == 0, said
        assert on_camera.serves(bundle)
    code, said = install(service, pack("--rauc-plain", source=newer, name="newer.raucb"))
    assert code == 0, said
    assert on_camera.serves(newer)
    on_camera.agent("commit")
    code, said = install(service, made)
    assert code != 0, "older than what was in service"
    assert "RollbackError" in said
    assert on_camera.serves(newer)


def test_the_service_refuses_changed_ones_and_other_devices(
    service: dict[str, str], pack: Pack, on_camera: OnCamera, tmp_path: Path
) -> None:
    made = pack("--rauc-plain")
    bad = flipped(made, tmp_path / "bad.raucb", place_in(made, b"hsqs") + made.stat().st_size // 2)
    assert install(service, bad)[0] != 0
    assert install(service, pack("--rauc-plain", "--compatible", "another", name="other.raucb"))[0] != 0
    assert on_camera.status()["active"] is None
