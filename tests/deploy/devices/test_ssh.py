"""Cameras over SSH, on a real server: what is refused, what a broken connection leaves, and what goes on from there."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pythons
from loopback import loopback
from over_ssh import Camera
from wire import Wire, wire_to

from edgekd.core.canonical import file_sha256
from edgekd.core.errors import DeviceError, HashError, SpecError
from edgekd.core.progress import SilentProgress
from edgekd.deploy.devices import connection
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.devices.ssh import SshAddress, SshDevice, parse
from edgekd.deploy.engine import UPLOAD, EngineJob, run

SSH = Path(".ssh")
GONE = r"the connection is lost|connection closed during|cannot be reached"


@pytest.fixture
def wire(camera: Camera) -> Iterator[Wire]:
    with wire_to(camera.loopback.port, bytes_per_s=1e6) as found:
        yield found


def uploads(camera: Camera) -> dict[str, int]:
    """What lies in the upload folder, by name."""
    folder = camera.state / UPLOAD
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "lock"}


def told(result: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on where and when."""
    kept = ("identity", "name", "target", "fits", "basis", "runtime", "self_test", "bench")
    return {key: result[key] for key in kept} | {"key": result["engine"]["key"], "bytes": result["engine"]["bytes"]}


# ---------------------------------------------------------------------------------------------------- where all is well


def test_a_camera_gives_what_this_machine_gives(camera: Camera, tmp_path: Path) -> None:
    there = camera.install(activate=True)
    here = asdict(
        run(EngineJob(camera.bundle, device_named("null"), state=str(tmp_path / "here"), iterations=3, seconds=0))
    )
    assert told(there) == told(here)
    assert there["device"]["name"] == camera.loopback.address()
    assert (there["basis"], there["activated"]) == ("rehearsed", True)
    assert (camera.state / "active").resolve().name == there["engine"]["slot"]


def test_onnx_runtime_there_computes_what_it_computes_here(
    camera: Camera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"runtime": "onnxruntime", "iterations": 3, "seconds": 0.0}
    with loopback(tmp_path / "camera", *pythons.here()) as other:
        monkeypatch.setenv("HOME", str(other.home))
        there = Camera(other, camera.bundle, tmp_path / "there").install(**given)
    here = asdict(run(EngineJob(camera.bundle, device_named("local"), state=str(tmp_path / "here"), **given)))
    assert there["basis"] == here["basis"] == "measured"
    for part in ("identity", "fits", "runtime", "self_test"):
        assert there[part] == here[part]
    for part in ("slot", "key", "bytes", "layers"):
        assert there["engine"][part] == here["engine"][part]


def test_what_is_there_is_not_sent_again(camera: Camera) -> None:
    first = camera.install()["upload"]
    assert first["sent_bytes"] == first["bytes"] > camera.bundle.stat().st_size
    again = camera.install()
    assert again["upload"] == {"bytes": first["bytes"], "sent_bytes": 0}
    assert again["engine"]["changed"] is False


def test_a_damaged_upload_is_sent_again(camera: Camera) -> None:
    path = Path(camera.put().path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert camera.put().sent_bytes == len(content)
    assert camera.put().sent_bytes == 0


@pytest.mark.parametrize("kept", ["none of it", "half of it", "another half", "more than all"])
def test_an_upload_goes_on_after_what_is_right_of_it(camera: Camera, kept: str) -> None:
    content = camera.bundle.read_bytes()
    half = len(content) // 2
    begun = {
        "none of it": b"",
        "half of it": content[:half],
        "another half": b"x" * half,
        "more than all": content + b"x",
    }
    part = camera.state / UPLOAD / f"{file_sha256(camera.bundle)}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(begun[kept])
    placed = camera.put()
    assert placed.bytes - placed.sent_bytes == (half if kept == "half of it" else 0)


def test_the_upload_folder_keeps_nothing_else(camera: Camera) -> None:
    folder = camera.state / UPLOAD
    folder.mkdir(parents=True)
    for name in ("0" * 64, "0" * 64 + ".part"):
        (folder / name).write_bytes(b"an older bundle")
    camera.put()
    assert list(uploads(camera)) == [file_sha256(camera.bundle)]


def test_names_in_the_configuration_of_ssh(camera: Camera) -> None:
    home = camera.loopback.home / SSH
    camera.loopback.address()
    (home / "moved").write_bytes((home / "id_ed25519").read_bytes())
    (home / "moved").chmod(0o600)
    (home / "config").write_text(
        f"Host Gate-7\n  HostName 127.0.0.1\n  Port {camera.loopback.port}\n  User {camera.loopback.user}\n"
        f"  IdentityFile {home / 'moved'}\n"
    )
    assert camera.put(SshDevice("ssh://Gate-7", parse("ssh://Gate-7"))).sent_bytes


# -------------------------------------------------------------------------------------------------- what is not trusted


def test_an_unknown_host_key_is_refused_and_stays_unknown(camera: Camera) -> None:
    job = camera.job()
    known = camera.loopback.home / SSH / "known_hosts"
    known.write_text("")
    with pytest.raises(DeviceError, match="unknown host key") as caught:
        run(job)
    assert f"ssh-keyscan -p {camera.loopback.port} 127.0.0.1 >> ~/.ssh/known_hosts" in str(caught.value)
    assert "ssh-ed25519 SHA256:" in str(caught.value.found)
    assert known.read_text() == ""
    known.unlink()
    with pytest.raises(DeviceError, match="unknown host key"):
        run(job)
    known.touch()


def test_a_changed_host_key_is_refused(camera: Camera, tmp_path: Path) -> None:
    job = camera.job()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    known = camera.loopback.home / SSH / "known_hosts"
    known.write_text(f"[127.0.0.1]:{camera.loopback.port} {(tmp_path / 'other.pub').read_text()}")
    with pytest.raises(DeviceError, match="host key has changed, or the connection is intercepted") as caught:
        run(job)
    assert f"ssh-keygen -R '[127.0.0.1]:{camera.loopback.port}'" in str(caught.value.fix)
    assert caught.value.expected
    assert caught.value.expected.startswith("SHA256:")


def test_a_configuration_that_trusts_everybody_is_refused(camera: Camera) -> None:
    (camera.loopback.home / SSH / "config").write_text("Host *\n  UserKnownHostsFile none\n")
    with pytest.raises(DeviceError, match="would accept every host key"):
        run(camera.job())


def test_a_key_that_the_camera_does_not_know(camera: Camera) -> None:
    known = camera.loopback.folder / "authorized_keys"
    content = known.read_bytes()
    try:
        known.write_text("")
        with pytest.raises(DeviceError, match="none of your keys is accepted") as caught:
            run(camera.job())
    finally:
        known.write_bytes(content)
    assert f"ssh-copy-id -p {camera.loopback.port} {camera.loopback.user}@127.0.0.1" in str(caught.value.fix)


def test_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(SpecError, match="password") as caught:
        parse("ssh://root:hunter2@cam1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["ssh://", "ssh://cam:no", "ssh://cam/path", "ssh://cam?x=1", "ssh://cam:99999", "sh://x"]
)
def test_what_is_no_address(name: str) -> None:
    with pytest.raises(SpecError, match="expected"):
        device_named(name)


def test_addresses() -> None:
    assert parse("ssh://Root@Cam1:2222") == SshAddress("Cam1", "Root", 2222)
    assert parse("ssh://cam1") == SshAddress("cam1", None, None)
    assert parse("ssh://me@[fe80::1]:22") == SshAddress("fe80::1", "me", 22)
    assert parse("ssh://[::1]") == SshAddress("::1", None, None)


# --------------------------------------------------------------------------------------------- what is not as it should


def test_nobody_is_there(camera: Camera) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeviceError, match="cannot be reached") as caught:
        run(camera.job(camera.device(port)))
    assert f"ssh -p {port}" in str(caught.value.fix)


def test_somebody_is_there_who_says_nothing(camera: Camera) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(DeviceError, match=r"no answer; expected one within 0\.5 s"),
    ):
        run(camera.job(camera.device(server.getsockname()[1], connect_s=0.5)))


def test_an_interpreter_that_is_not_there(camera: Camera) -> None:
    with pytest.raises(DeviceError, match=r"no interpreter python3\.99") as caught:
        run(camera.job(python="python3.99"))
    assert "--python" in str(caught.value.fix)


def test_an_interpreter_that_is_too_old(python36: str, camera: Camera) -> None:
    with pytest.raises(DeviceError, match=r"is too old; expected Python 3\.8 or newer; found 3\.6\."):
        run(camera.job(python=python36))


def test_an_interpreter_without_a_numpy_of_its_own(python39: str, camera: Camera) -> None:
    with pytest.raises(DeviceError, match="a library is missing; expected NumPy") as caught:
        run(camera.job(python=python39))
    assert "NumPy" in str(caught.value.fix)


def test_what_the_agent_refuses_is_said_as_it_says_it(camera: Camera) -> None:
    with pytest.raises(DeviceError, match="status: unknown runtime onnxruntim") as caught:
        run(camera.job(runtime="onnxruntim"))
    assert caught.value.fix == "did you mean 'onnxruntime'?"


def test_a_damaged_bundle_goes_nowhere(camera: Camera, tmp_path: Path) -> None:
    content = bytearray(camera.bundle.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.edgekd").write_bytes(content)
    with pytest.raises(HashError):
        run(EngineJob(tmp_path / "damaged.edgekd", camera.device(), state=str(camera.state)))
    assert not camera.state.exists()


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small disk."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_without_room(camera: Camera, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=256k") as folder, pytest.raises(DeviceError, match="no room") as caught:
        run(camera.job(state=str(folder / "state")))
    assert caught.value.fix == "free some space there"


def test_a_disk_that_fills_while_something_is_sent(camera: Camera, until: Callable[..., Any], tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=2m") as folder:

        class Filling(SilentProgress):
            def items(self, iterable: Any, label: str, total: int | None = None) -> Any:
                for index, item in enumerate(iterable):
                    if index == 2:
                        until(lambda: any(path.stat().st_size for path in folder.rglob("*.part")))
                        subprocess.run(["dd", "if=/dev/zero", f"of={folder / 'other'}"], capture_output=True)
                    yield item

        with pytest.raises(DeviceError, match="No space left"):
            camera.put(state=folder / "state", progress=Filling())
        (folder / "other").unlink()
        assert 0 < camera.put(state=folder / "state").sent_bytes < camera.bundle.stat().st_size


def test_a_disk_that_cannot_be_written(camera: Camera, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ro") as folder, pytest.raises(DeviceError, match="Read-only file system") as caught:
        run(camera.job(state=str(folder / "state")))
    assert str(folder) in caught.value.what


def test_two_at_a_time_do_not_mix(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_WAIT_FOR_OTHERS_S", 0.3)
    with camera.device().connect(None) as other:
        other.claim(str(camera.state / UPLOAD))
        with pytest.raises(DeviceError, match="in use by another edgekd"):
            camera.put()
    assert camera.put().sent_bytes


# ----------------------------------------------------------------------------------------------- connections that break


@pytest.mark.parametrize(
    "share", [pytest.param(0.2, marks=pytest.mark.release), 0.6, pytest.param(0.95, marks=pytest.mark.release)]
)
def test_a_wire_that_is_cut_during_the_upload(camera: Camera, wire: Wire, share: float) -> None:
    device, size = camera.device(wire.port), camera.bundle.stat().st_size
    wire.after(int(size * share), wire.cut)
    with pytest.raises(DeviceError, match=GONE):
        camera.put(device)
    assert camera.loopback.quiet() == []
    begun = sum(uploads(camera).values())
    assert camera.put(device).sent_bytes == size - begun
    assert begun > 0


def test_a_wire_that_is_cut_during_a_build(camera: Camera, wire: Wire, until: Callable[..., Any]) -> None:
    cut = threading.Thread(target=lambda: (until(lambda: building(camera)), wire.cut()))
    cut.start()
    with pytest.raises(DeviceError, match=GONE):
        run(camera.job(camera.device(wire.port), runtime="onnxruntime"))
    cut.join()
    assert camera.loopback.quiet() == [], "neither the agent nor what it started"
    found = camera.install()
    assert found["upload"]["sent_bytes"] == 0
    assert found["self_test"]["passed"]


def building(camera: Camera) -> bool:
    """Whether a slow engine is being built."""
    return any(line.startswith("sleep 1000") for line in camera.loopback.processes())


def test_a_network_that_goes_dead_during_the_upload_is_noticed_at_both_ends(camera: Camera, wire: Wire) -> None:
    wire.after(camera.bundle.stat().st_size // 2, wire.go_dead)
    with pytest.raises(DeviceError, match=GONE):
        camera.put(camera.device(wire.port, silence_s=1.0, keepalive_s=0.2))
    assert camera.loopback.quiet() == []
    assert 0 < camera.put().sent_bytes < camera.bundle.stat().st_size


@pytest.mark.slow
def test_a_network_that_goes_dead_during_a_build_is_noticed_at_both_ends(
    camera: Camera, wire: Wire, until: Callable[..., Any]
) -> None:
    device = camera.device(wire.port, silence_s=1.0, keepalive_s=0.2)
    threading.Thread(target=lambda: (until(lambda: building(camera)), wire.go_dead()), daemon=True).start()
    with pytest.raises(DeviceError, match=GONE):
        run(camera.job(device, runtime="onnxruntime"))
    assert camera.loopback.quiet() == []
    assert camera.install()["self_test"]["passed"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)]
)
def test_stopping_edgekd_stops_the_camera(
    camera: Camera, until: Callable[..., Any], number: signal.Signals, code: int
) -> None:
    given = ["--device", camera.loopback.address(), "--state", str(camera.state), "--runtime", "onnxruntime"]
    command = [sys.executable, "-m", "edgekd", "engine", str(camera.bundle), *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: building(camera) or process.poll() is not None)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert camera.loopback.quiet() == []


def test_a_step_that_takes_too_long_is_ended(camera: Camera) -> None:
    late = pytest.raises(DeviceError, match=r"no answer to a nap; expected one within 0\.5 s")
    with late, camera.device().connect(None) as site:
        site.run("a nap", ["sleep", "1000"], 0.5)
    assert camera.loopback.quiet() == []


def test_of_a_long_speech_the_end_is_kept(camera: Camera) -> None:
    script = "import sys; print('a' * 3000000 + 'b'); print('c' * 3000000 + 'd', file=sys.stderr); sys.exit(7)"
    with camera.device().connect(None) as site:
        ended = site.run("a speech", [site.python, "-c", script], 30.0)
    assert (ended.code, ended.out[-2:], ended.err[-2:]) == (7, "b\n", "d\n")
    assert len(ended.out) > 200_000


def test_a_shell_that_greets_is_no_matter(camera: Camera) -> None:
    greeting = camera.loopback.folder / "bin" / "greeting"
    greeting.write_text('#!/bin/sh\necho Welcome to gate 7\necho\nexec python3 "$@"\n')
    greeting.chmod(0o755)
    with camera.device().connect("greeting") as site:
        assert site.run("a word", ["echo", "yes"], 30.0).out == "yes\n"
