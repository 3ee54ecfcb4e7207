"""`edgekd pack --format`: what is chosen, told and refused, whatever the system."""

from __future__ import annotations

from pathlib import Path

import pytest
from firmware import COMPATIBLE, OnCamera
from running import EdgeKD
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import read_head


def test_what_it_says(edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.swu"
    told = edgekd(
        "pack", bundle, "--out", out, "--version-counter", 3, "--firmware-key", keys / "rsa.key", "--json"
    ).json
    assert_documented(told, "signed")
    assert told["firmware"] == {"system": "swupdate", "version": "3", "compatible": [COMPATIBLE], "signed": True}
    assert (told["file"], told["bytes"]) == (str(out), out.stat().st_size)
    assert told["version"] == 3
    assert "in a file for swupdate" in edgekd("pack", bundle, "--out", out, "--firmware-unsigned").out


def test_a_plain_bundle_is_none(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    told = edgekd("pack", bundle, "--out", tmp_path / "model.edgekd", "--json").json
    assert told["firmware"] is None
    assert edgekd("pack", bundle, "--out", tmp_path / "odd.swu", "--format", "edgekd").code == 0
    assert read_head(tmp_path / "odd.swu") == read_head(bundle)


def script_in(swu: Path) -> str:
    """The settings of the script in an update for SWUpdate."""
    return swu.read_bytes().split(b"#!/bin/sh\n")[1].split(b"\n\n")[0].decode()


def test_a_bundle_with_a_role_is_installed_as_that_model(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    swu = tmp_path / "model.swu"
    assert edgekd("pack", bundle, "--out", swu, "--firmware-unsigned", "--role", "night").code == 0
    assert script_in(swu) == "state=/var/lib/edgekd\nfile=bundle.edgekd\nmodel=night"
    assert edgekd("pack", bundle, "--out", swu, "--firmware-unsigned", "--model", "day").code == 0
    assert "model=day" in script_in(swu)
    ran = edgekd("pack", bundle, "--out", swu, "--firmware-unsigned", "--role", "night", "--model", "day")
    assert (ran.code, "expected the bundle's role, night" in ran.err) == (2, True), ran.err
    assert edgekd("pack", bundle, "--out", tmp_path / "model.oci.tar", "--role", "night").code == 0


def test_a_delta_is_packed_as_it_is(edgekd: EdgeKD, bundle: Path, newer: Path, tmp_path: Path) -> None:
    delta, swu = tmp_path / "d.edgekd-delta", tmp_path / "model.swu"
    assert edgekd("delta", bundle, newer, "--out", delta).code == 0
    ran = edgekd("pack", delta, "--out", swu, "--firmware-unsigned", "--json")
    assert_documented(ran.json, "signed")
    assert (ran.json["kind"], ran.json["identity"], ran.json["firmware"]["version"]) == (
        "delta",
        read_head(newer).identity,
        "7",
    )
    assert delta.read_bytes() in swu.read_bytes()
    assert "file=bundle.edgekd-delta" in script_in(swu)
    for flags in (["--version-counter", "9"], ["--slim"]):
        ran = edgekd("pack", delta, "--out", swu, "--firmware-unsigned", *flags)
        assert (ran.code, "a delta file is not changed" in ran.err) == (2, True), ran.err
    assert edgekd("pack", delta, "--out", tmp_path / "x.edgekd").code == 2
    assert "for bundles only" in edgekd("pack", delta, "--out", tmp_path / "x.oci.tar").err


def test_a_trust_file_is_packed_as_it_is(edgekd: EdgeKD, trust: Path, tmp_path: Path) -> None:
    swu = tmp_path / "trust.swu"
    ran = edgekd("pack", trust, "--out", swu, "--firmware-unsigned")
    assert (ran.code, "fix: --compatible NAME" in ran.err) == (2, True), ran.err
    told = edgekd("pack", trust, "--out", swu, "--firmware-unsigned", "--compatible", "camera", "--json").json
    assert (told["kind"], told["firmware"]["version"]) == ("trust", "1")
    assert trust.read_bytes() in swu.read_bytes()
    assert "file=trust.json" in script_in(swu)


def test_a_slim_bundle_has_what_a_camera_reads(edgekd: EdgeKD, bundle: Path, on_camera: OnCamera) -> None:
    slim = on_camera.folder / "slim.edgekd"
    assert edgekd("pack", bundle, "--out", slim, "--slim").code == 0
    roles = {entry.role for entry in read_head(slim).manifest.files}
    assert not roles & {"agent", "calibration-set", "evidence", "report"}
    assert {entry.part for entry in read_head(slim).manifest.licences} == {"model"}
    on_camera.agent("install", slim, "--runtime", "null")
    assert on_camera.serves(slim)


def test_the_name_of_another_kind_of_file_is_refused(edgekd: EdgeKD, bundle: Path, tmp_path: Path) -> None:
    ran = edgekd("pack", bundle, "--out", tmp_path / "model.deb")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "found .deb; fix: --format edgekd" in ran.err
    assert not list(tmp_path.iterdir())
    assert edgekd("pack", bundle, "--out", tmp_path / "model.deb", "--format", "edgekd").code == 0


TOKEN = "pkcs11:token=release;object=firmware"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "rauk"], "did you mean 'rauc'?"),
        ([], "expected a name that ends in .edgekd, .mender, .oci.tar, .raucb, .swu; found no suffix; fix: --format"),
        (["--format", "edgekd", "--rauc-plain"], "has no options of firmware systems"),
        (["--format", "swupdate", "--rauc-plain"], "for RAUC only"),
        (["--format", "swupdate", "--mender-module", "edgekd"], "for Mender only"),
        (["--format", "swupdate", "--state", "relative"], "an absolute path on the camera"),
        (["--format", "swupdate", "--state", f"/{'x' * 240}"], "--state too long"),
        (["--format", "swupdate", "--compatible", "a\nb"], "printable"),
        (["--format", "swupdate", "--firmware-key", "missing.key"], "missing.key: no such file"),
        (["--format", "swupdate", "--firmware-cert", "{pem}"], "a certificate without its key"),
        (["--format", "swupdate", "--firmware-key", "pkcs11:token=a;object=b?pin-value=1234"], "a PIN in an address"),
        (["--format", "oci", "--firmware-key", "{pem}"], "not signed here"),
        (["--format", "oci", "--firmware-unsigned"], "not signed here"),
        (["--format", "edgekd", "--firmware-unsigned"], "has no options of firmware systems"),
        (["--format", "swupdate"], "swupdate: no signature; expected --firmware-key FILE; found no key"),
        (["--format", "swupdate", "--firmware-unsigned", "--firmware-key", "{pem}"], "expected one of them"),
        (["--format", "oci", "--compatible", "x"], "has no kinds of devices"),
        (["--format", "oci", "--state", "/x"], "installs nothing on a camera"),
        (["--format", "oci", "--model", "night"], "installs nothing on a camera"),
        (["--format", "swupdate", "--model", "../x"], "1 to 32 of a-z"),
    ],
)
def test_mistakes(edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    told = [flag.format(pem=keys / "ours.pem") for flag in flags]
    ran = edgekd("pack", bundle, "--out", tmp_path / "out" / "model", *told)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    assert words in ran.err
    assert "1234" not in ran.err


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("rauc", "rauc: not installed; fix: apt-get install rauc"),
        ("mender", "mender-artifact: not installed; fix: apt-get install mender-artifact"),
        ("swupdate", "openssl: not installed; fix: apt-get install openssl"),
    ],
)
def test_a_program_that_is_missing(
    edgekd: EdgeKD, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = edgekd("pack", bundle, "--out", tmp_path / "model", "--format", system)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert words in ran.err
    assert not (tmp_path / "model").exists()


def test_a_program_that_fails_is_quoted(
    edgekd: EdgeKD, bundle: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "openssl").write_text("#!/bin/sh\necho first >&2; echo 'no such token' >&2; exit 3\n", "utf-8")
    (programs / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    ran = edgekd("pack", bundle, "--out", tmp_path / "model.swu", "--firmware-key", keys / "rsa.key")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "openssl dgst: failed; found first; no such token" in ran.err
    assert not (tmp_path / "model.swu").exists()


@pytest.mark.parametrize(
    ("program", "system", "words"),
    [
        ("openssl", "swupdate", f"-sign {TOKEN} "),
        ("mender-artifact", "mender", f"--key-pkcs11 {TOKEN} "),
        ("rauc", "rauc", f"--cert={TOKEN} --key={TOKEN} "),
    ],
)
def test_the_address_of_a_key_is_passed_on(
    edgekd: EdgeKD,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    system: str,
    words: str,
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (program, "mksquashfs"):
        (programs / name).write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told; exit 3\n', "utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    told = ("--firmware-key", TOKEN, *(("--firmware-cert", TOKEN) if system == "rauc" else ()))
    assert edgekd("pack", bundle, "--out", tmp_path / "model", "--format", system, *told).code == 2
    assert words in (tmp_path / "told").read_text("utf-8")


def test_a_disk_that_is_full(edgekd: EdgeKD, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgekd.deploy.firmware.swupdate.cpio", full)
    ran = edgekd("pack", bundle, "--out", tmp_path / "model.swu", "--firmware-unsigned")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "free some space" in ran.err
    assert not (tmp_path / "model.swu").exists()
