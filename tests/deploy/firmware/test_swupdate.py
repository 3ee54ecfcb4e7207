"""SWUpdate's own program takes our updates, refuses them changed, and installs them on this machine."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from firmware import COMPATIBLE, OnCamera, accepted, flipped, need, place_in, run
from running import EdgeKD

BOARD = f"camera:{COMPATIBLE}"


def packed(edgekd: EdgeKD, bundle: Path, out: Path, *flags: object) -> Path:
    ran = edgekd("pack", bundle, "--out", out, "--format", "swupdate", *flags)
    assert ran.code == 0, ran.err
    return out


def ours(keys: Path, on_camera: OnCamera) -> tuple[object, ...]:
    """The flags of an update that is signed by CMS, for a camera."""
    return ("--firmware-key", keys / "ours.key", "--firmware-cert", keys / "ours.pem", "--state", on_camera.state)


@pytest.fixture
def swu(edgekd: EdgeKD, bundle: Path, keys: Path, on_camera: OnCamera, tmp_path: Path) -> Path:
    """An update signed by CMS."""
    return packed(edgekd, bundle, tmp_path / "model.swu", *ours(keys, on_camera))


def swupdate(
    swu: Path, certificate: Path, *flags: str, on_camera: OnCamera, board: str = BOARD
) -> subprocess.CompletedProcess[str]:
    """The program on one file, all it writes below the camera's folder."""
    need("swupdate")
    scratch = on_camera.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = {**on_camera.environment, "TMPDIR": str(scratch)}
    return run("swupdate", "-v", "-i", swu, "-k", certificate, "-H", board, *flags, environment=environment)


def test_it_is_accepted_and_nothing_is_installed(swu: Path, keys: Path, on_camera: OnCamera) -> None:
    done = swupdate(swu, keys / "ours.pem", "-c", on_camera=on_camera)
    assert done.returncode == 0, done.stdout + done.stderr
    assert on_camera.status()["active"] is None


def test_it_is_installed_and_again_without_a_word_of_an_error(
    swu: Path, bundle: Path, keys: Path, on_camera: OnCamera
) -> None:
    on_camera.settle(restart="echo a warning of some service >&2")
    for _ in range(2):
        done = swupdate(swu, keys / "ours.pem", on_camera=on_camera)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
        assert "[ERROR]" not in said.split("Installation in progress")[1]
        assert on_camera.serves(bundle)
    assert not list((on_camera.state / "incoming").iterdir())


def test_a_newer_one_is_installed_and_an_older_one_is_a_failed_update(
    edgekd: EdgeKD, swu: Path, newer: Path, keys: Path, on_camera: OnCamera, tmp_path: Path
) -> None:
    second = packed(edgekd, newer, tmp_path / "newer.swu", *ours(keys, on_camera))
    assert swupdate(second, keys / "ours.pem", on_camera=on_camera).returncode == 0
    assert swupdate(swu, keys / "ours.pem", on_camera=on_camera).returncode != 0
    assert on_camera.serves(newer)


def test_a_bundle_that_the_agent_refuses_is_a_failed_update(
    edgekd: EdgeKD, newer: Path, bundle: Path, swu: Path, keys: Path, on_camera: OnCamera, tmp_path: Path
) -> None:
    """Signed by the firmware's key, and yet not for this device: the agent has the last word."""
    assert swupdate(swu, keys / "ours.pem", on_camera=on_camera).returncode == 0
    on_camera.become_another()
    second = packed(edgekd, newer, tmp_path / "newer.swu", *ours(keys, on_camera))
    done = swupdate(second, keys / "ours.pem", on_camera=on_camera)
    assert done.returncode != 0
    assert "for another device" in done.stdout + done.stderr
    assert on_camera.serves(bundle)


def test_another_key_is_refused(swu: Path, keys: Path, on_camera: OnCamera) -> None:
    for flags in ((), ("-c",)):
        assert swupdate(swu, keys / "theirs.pem", *flags, on_camera=on_camera).returncode != 0
    assert on_camera.status()["active"] is None


def test_another_device_is_refused(swu: Path, keys: Path, on_camera: OnCamera) -> None:
    assert swupdate(swu, keys / "ours.pem", on_camera=on_camera, board="camera:other").returncode != 0
    assert on_camera.status()["active"] is None


@pytest.mark.parametrize("part", ["description", "signature", "bundle", "script"])
def test_what_was_changed_is_not_installed(
    swu: Path, bundle: Path, keys: Path, on_camera: OnCamera, tmp_path: Path, part: str
) -> None:
    at = {
        "description": place_in(swu, b'type = "shellscript"'),
        "signature": place_in(swu, b"sw-description.sig") + 400,
        "bundle": place_in(swu, bundle.read_bytes()[-4000:-3000]),
        "script": place_in(swu, b'find_agent "$content"'),
    }[part]
    done = swupdate(flipped(swu, tmp_path / "bad.swu", at), keys / "ours.pem", on_camera=on_camera)
    assert done.returncode != 0
    assert on_camera.status()["active"] is None


def test_no_random_bit_changes_what_is_checked(swu: Path, keys: Path, on_camera: OnCamera, tmp_path: Path) -> None:
    chance, size = random.Random(0), swu.stat().st_size
    for _ in range(5):
        bad = flipped(swu, tmp_path / "bad.swu", chance.randrange(size - 512), chance.randrange(8))
        assert swupdate(bad, keys / "ours.pem", on_camera=on_camera).returncode != 0


def test_the_same_bytes_each_time(edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path) -> None:
    """With an RSA key; ECDSA signatures are different each time."""
    given = ("--firmware-key", keys / "rsa.key")
    made = [packed(edgekd, bundle, tmp_path / f"{at}.swu", *given).read_bytes() for at in range(2)]
    assert made[0] == made[1]


def test_an_rsa_key_alone_signs_as_the_manual_says(edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path) -> None:
    need("cpio")
    swu = packed(edgekd, bundle, tmp_path / "model.swu", "--firmware-key", keys / "rsa.key")
    subprocess.run(["cpio", "-id", "--quiet"], stdin=swu.open("rb"), cwd=tmp_path, check=True)
    signed = ("-signature", tmp_path / "sw-description.sig", tmp_path / "sw-description")
    assert "OK" in accepted("openssl", "dgst", "-sha256", "-verify", keys / "rsa.pub", *signed)
    assert (tmp_path / "bundle.edgekd").read_bytes() == bundle.read_bytes()


def test_a_certificate_between_is_in_the_signature(
    edgekd: EdgeKD, bundle: Path, chain: Path, on_camera: OnCamera, tmp_path: Path
) -> None:
    """OpenSSL finds it there. SWUpdate with wolfSSL, as Debian has it, looks for it beside the camera's own."""
    need("cpio")
    told = ("--firmware-key", chain / "leaf.key", "--firmware-cert", chain / "leaf.pem")
    swu = packed(edgekd, bundle, tmp_path / "m.swu", *told, "--firmware-intermediate", chain / "middle.pem")
    subprocess.run(["cpio", "-id", "--quiet"], stdin=swu.open("rb"), cwd=tmp_path, check=True)
    given = ("-inform", "DER", "-in", tmp_path / "sw-description.sig", "-content", tmp_path / "sw-description")
    out = ("-binary", "-out", tmp_path / "content")
    accepted("openssl", "cms", "-verify", "-CAfile", chain / "root.pem", *given, *out)
    both = tmp_path / "both.pem"
    both.write_bytes((chain / "root.pem").read_bytes() + (chain / "middle.pem").read_bytes())
    assert swupdate(swu, both, "-c", on_camera=on_camera).returncode == 0


def test_cpio_finds_every_checksum_right(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    need("cpio")
    swu = packed(edgekd, bundle, tmp_path / "model.swu", "--firmware-unsigned")
    listed = subprocess.run(["cpio", "-t", "--only-verify-crc"], stdin=swu.open("rb"), capture_output=True, text=True)
    assert (listed.returncode, listed.stderr.replace("blocks", "").strip().isdigit()) == (0, True), listed.stderr
    listed = subprocess.run(["cpio", "-t", "--quiet"], stdin=swu.open("rb"), capture_output=True, text=True)
    assert listed.stdout.split() == ["sw-description", "bundle.edgekd", "install.sh"]


def test_awkward_names_and_several_devices(
    edgekd: EdgeKD, bundle: Path, keys: Path, on_camera: OnCamera, tmp_path: Path
) -> None:
    more = ("--name", 'a "model" \\ of ours', "--compatible", "1.0", "--compatible", 'rev "B"')
    swu = packed(edgekd, bundle, tmp_path / "model.swu", *ours(keys, on_camera), *more)
    for board in ("camera:1.0", 'camera:rev "B"'):
        done = swupdate(swu, keys / "ours.pem", "-c", on_camera=on_camera, board=board)
        assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_left_of_what_failed(edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    given = ("--firmware-key", keys / "ours.key", "--firmware-cert", keys / "theirs.pem")
    ran = edgekd("pack", bundle, "--out", out / "model.swu", *given)
    assert ran.code == 2
    assert "openssl cms: failed" in ran.err
    assert ran.err.count("\n") == 1
    assert not list(out.iterdir())


def test_what_is_there_is_replaced_whole(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.swu"
    out.write_text("old", "utf-8")
    assert edgekd("pack", bundle, "--out", out, "--firmware-cert", bundle).code == 2
    assert out.read_text("utf-8") == "old"
    packed(edgekd, bundle, out, "--firmware-unsigned")
    assert out.stat().st_size > bundle.stat().st_size
