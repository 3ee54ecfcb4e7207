"""Signing with a key that stays in a token: SoftHSM, which is a hardware module in software."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = next(
    (path for path in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so") if Path(path).exists()),
    "",
)
PIN = "246810"

# A process of its own, because the library reads where its tokens are only once.
MAKE_KEYS = """
import sys, pkcs11
from pkcs11 import Attribute, KeyType, Mechanism
token = pkcs11.lib(sys.argv[1]).get_token(token_label="edgekd")
with token.open(rw=True, user_pin=sys.argv[2]) as session:
    curve = {Attribute.EC_PARAMS: b"\\x13\\x0cedwards25519"}
    parameters = session.create_domain_parameters(KeyType.EC_EDWARDS, curve, local=True)
    parameters.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, label="release", id=b"\\x01")
    other = {Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107")}
    session.create_domain_parameters(KeyType.EC, other, local=True).generate_keypair(store=True, label="p256")
"""
SIGN = """
import sys
from pathlib import Path
from edgekd.core.bundle import ed25519
from edgekd.core.errors import EdgeKDError
from edgekd.deploy.signing import load_signers
try:
    (signer,) = load_signers([sys.argv[1]], Path(sys.argv[2]))
    message = b"edgekd bundle 1"
    assert ed25519.verify(signer.public, message, signer.sign(message))
    print(repr(signer), signer.public.hex())
except EdgeKDError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a token called edgekd, with two keys in it, and with the PIN in a file."""
    tool = shutil.which("softhsm2-util")
    if not tool or not MODULE:
        pytest.skip("no SoftHSM on this host: apt-get install softhsm2")
    pytest.importorskip("pkcs11")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n", "utf-8")
    (folder / "pin").write_text(f"{PIN}\n", "utf-8")
    (folder / "pin").chmod(0o600)
    make = [tool, "--init-token", "--free", "--label", "edgekd", "--pin", PIN, "--so-pin", "13579"]
    subprocess.run(make, check=True, capture_output=True, env=environment(folder))
    subprocess.run([sys.executable, "-c", MAKE_KEYS, MODULE, PIN], check=True, env=environment(folder))
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "SOFTHSM2_CONF": str(folder / "softhsm2.conf")}


def told(folder: Path, address: str, pin: str = "pin") -> str:
    command = [sys.executable, "-c", SIGN, address, folder / pin]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_token_signs(token: Path) -> None:
    by_name = told(token, f"pkcs11:token=edgekd;object=release?module-path={MODULE}")
    assert by_name.startswith("TokenSigner(token edgekd) ")
    assert told(token, f"pkcs11:token=edgekd;id=%01?module-path={MODULE}") == by_name
    assert PIN not in by_name


def test_its_pin_can_come_from_a_file_of_its_own(token: Path) -> None:
    source = f"&pin-source=file:{token / 'pin'}"
    assert "TokenSigner" in told(token, f"pkcs11:token=edgekd;object=release?module-path={MODULE}{source}", "none")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pkcs11:token=other;object=release?module-path={}", "token other: cannot sign; found NoSuchToken"),
        ("pkcs11:token=edgekd;object=other?module-path={}", "token edgekd: cannot sign; found NoSuchKey"),
        ("pkcs11:token=edgekd;object=release?module-path=/none.so", "token edgekd: cannot sign; found"),
        ("pkcs11:token=edgekd;object=p256?module-path={}", "token edgekd: another kind of key"),
    ],
)
def test_what_is_wrong_is_one_line(token: Path, address: str, message: str) -> None:
    found = told(token, address.format(MODULE))
    assert found.startswith(message)
    assert "\n" not in found


def test_a_wrong_pin_is_refused_and_not_shown(token: Path) -> None:
    (token / "wrong").write_text("99998888\n", "utf-8")
    (token / "wrong").chmod(0o600)
    found = told(token, f"pkcs11:token=edgekd;object=release?module-path={MODULE}", "wrong")
    assert "PinIncorrect" in found
    assert "99998888" not in found
