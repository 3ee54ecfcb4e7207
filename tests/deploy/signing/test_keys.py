"""Private keys are their owner's alone, are read with care, and are never told."""

from __future__ import annotations

import getpass
import os
import stat
import subprocess
import warnings
from pathlib import Path

import pytest

from edgekd.core.bundle import ed25519
from edgekd.core.errors import SignatureError, SpecError
from edgekd.deploy.devices.named import device_named
from edgekd.deploy.signing import load_signers
from edgekd.deploy.signing.key_files import FileSigner, make_key, read_public
from edgekd.deploy.signing.secrets import VARIABLE, Secrets, without_secrets
from edgekd.deploy.signing.signed import signatures_of
from edgekd.deploy.signing.tokens import parse_address


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)


def test_a_new_key_signs_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = make_key(tmp_path / "keys", "release", None)
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert sorted(path.name for path in made.private.parent.iterdir()) == ["release.key", "release.pub"]
    signer = FileSigner(made.private, Secrets())
    assert signer.public == read_public(made.public)
    assert ed25519.verify(signer.public, b"message", signer.sign(b"message"))


def test_openssl_reads_the_keys_and_makes_the_same_signature(tmp_path: Path) -> None:
    made = make_key(tmp_path, "release", None)
    (tmp_path / "message").write_bytes(b"edgekd bundle 1\n")
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", made.private, "-in", tmp_path / "message"]
    signature = subprocess.run(command, check=True, capture_output=True).stdout
    assert FileSigner(made.private, Secrets()).sign(b"edgekd bundle 1\n") == signature


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    made = make_key(tmp_path, "release", None)
    content = made.private.read_bytes()
    with pytest.raises(SpecError, match=r"release\.key: exists already"):
        make_key(tmp_path, "release", None)
    made.private.unlink()
    with pytest.raises(SpecError, match=r"release\.pub: exists already"):
        make_key(tmp_path, "release", None)
    made.private.write_bytes(content)
    for name in ("", "a/b", "..", ".hidden"):
        with pytest.raises(SpecError, match="invalid name of a key"):
            make_key(tmp_path, name, None)


def test_a_full_disk_leaves_no_half_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpecError, match="No space left"):
        make_key(tmp_path, "release", None)
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_comes_from_a_file_the_environment_or_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_key(tmp_path, "release", "correct horse")
    assert made.encrypted
    assert b"ENCRYPTED" in made.private.read_bytes()
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("correct horse\nand more\n", "utf-8")
    wrong.write_text("wrong\n", "utf-8")
    for path in (secret, wrong):
        path.chmod(0o600)
    public = read_public(made.public)
    assert FileSigner(made.private, Secrets(secret)).public == public
    assert FileSigner(made.private, Secrets(ask=lambda what: "correct horse")).public == public
    with pytest.raises(SpecError, match=r"release\.key: no terminal to enter it.*--secret-file"):
        FileSigner(made.private, Secrets())
    with pytest.raises(SpecError, match="expected the right passphrase"):
        FileSigner(made.private, Secrets(wrong))
    monkeypatch.setenv(VARIABLE, str(secret))
    assert FileSigner(made.private, Secrets()).public == public
    secret.write_text("\n", "utf-8")
    with pytest.raises(SpecError, match="empty"):
        FileSigner(made.private, Secrets())


def test_a_new_passphrase_is_asked_for_twice() -> None:
    answers = iter(["one", "one", "one", "two", ""])
    secrets = Secrets(ask=lambda what: next(answers))
    assert secrets.choose("Passphrase") == "one"
    with pytest.raises(SpecError, match="the two entries differ"):
        secrets.choose("Passphrase")
    with pytest.raises(SpecError, match="empty"):
        secrets.choose("Passphrase")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    made = make_key(tmp_path, "release", None)
    for mode in (0o640, 0o604, 0o660):
        made.private.chmod(mode)
        with pytest.raises(SpecError, match=f"others can read this private key.*chmod 600 {made.private}"):
            FileSigner(made.private, Secrets())


def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    made = make_key(tmp_path, "release", None)
    secret = made.private.read_text("ascii").splitlines()[1]
    damaged = tmp_path / "damaged.key"
    damaged.write_text(made.private.read_text("ascii").replace(secret, secret[:-8] + "????????"), "ascii")
    damaged.chmod(0o600)
    rsa = tmp_path / "rsa.key"
    subprocess.run(["openssl", "genrsa", "-out", rsa, "2048"], check=True, capture_output=True)
    rsa.chmod(0o600)
    for path, message in ((damaged, "cannot be read as a private key"), (rsa, "another kind of key")):
        with pytest.raises(SpecError, match=message) as caught:
            FileSigner(path, Secrets())
        assert secret[:-8] not in str(caught.value)
    for path in (made.private, rsa, tmp_path / "none"):
        with pytest.raises(SpecError):
            read_public(path)


def test_a_signer_that_gives_nonsense_is_found_out() -> None:
    class Broken:
        name = "broken"
        public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")

        def sign(self, message: bytes) -> bytes:
            return bytes(64)

    with pytest.raises(SignatureError, match="broken: gave a wrong signature"):
        signatures_of("bundle", "0" * 64, [Broken()])


def test_an_address_of_a_token_is_read_and_a_wrong_one_explained() -> None:
    text = "pkcs11:token=My%20HSM;object=release;id=%01%FF?module-path=/usr/lib/hsm.so&pin-source=file:/run/pin"
    found = parse_address(text)
    assert (found.token, found.object, found.id) == ("My HSM", "release", b"\x01\xff")
    assert (found.module, found.pin_source) == ("/usr/lib/hsm.so", Path("/run/pin"))
    pins = (f"{text}&pin-value=1234", "pkcs11:pin-value=1234", "PKCS11:token=a;pin-value=1234;object=b")
    for wrong in ("pkcs11:", "pkcs11:token=a;object=b", "pkcs11:token=a?module-path=b", *pins):
        with pytest.raises(SpecError, match="invalid address of a key") as caught:
            load_signers([wrong])
        assert "1234" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "the secret"
    secret.write_text("246810\n", "utf-8")
    secret.chmod(mode)
    with pytest.raises(SpecError, match=f"others can read this passphrase or PIN.*chmod 600 '{secret}'") as caught:
        Secrets(secret).get("PIN")
    assert "246810" not in str(caught.value)
    secret.chmod(0o400)
    assert Secrets(secret).get("PIN") == "246810"


def test_a_secret_that_cannot_be_read_is_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    for content in (b"2468\xff10", b"2468" * 100_000):
        secret.write_bytes(content)
        secret.chmod(0o600)
        with pytest.raises(SpecError) as caught:
            Secrets(secret).get("PIN")
        assert "2468" not in str(caught.value)
        assert "0xff" not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(SpecError, match="cannot read"):
        Secrets(Path("\0")).get("PIN")


def test_a_terminal_that_would_show_a_secret_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows(prompt: str) -> str:
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        return "246810"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", shows)
    with pytest.raises(SpecError, match="PIN of token a: this terminal would show it; fix: --secret-file"):
        Secrets().get("PIN of token a")


@pytest.mark.parametrize(
    "text",
    [
        "edgekd sign a --key pkcs11:token=a;object=b?pin-value=246810&module-path=c",
        "edgekd sign a --key pkcs11:token=a?PIN-VALUE=246810",
        "edgekd engine a --device ssh://me:246810@cam --activate",
        "ssh://me:24/68@10@cam",
    ],
)
def test_a_command_line_is_kept_without_its_secrets(text: str) -> None:
    assert "24" not in without_secrets(text)
    assert "10" not in without_secrets(text)
    plain = "edgekd engine a --device ssh://me@cam1:22 --key pkcs11:token=a?pin-source=/run/pin"
    assert without_secrets(plain) == plain


@pytest.mark.parametrize("name", ["ssh://me:246810@cam:99999", "SSH://me:246810@cam", "ssh://me:246/810@cam"])
def test_a_password_in_an_address_is_not_shown(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        device_named(name)
    assert "246" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.key: cannot read"):
        load_signers([str(tmp_path / "none.key")])
