"""keygen, trust, sign, verify and pack, as a firmware engineer calls them, on a real bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Built, EdgeKD
from test_json_contract import assert_documented

from edgekd.core.bundle.archive import extract, read_head, read_manifest, verify
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.bundle.trust import CounterReset
from edgekd.deploy.signing.trust_files import read_trust_file

TABLE = """
version = {version}
issued = 2026-01-01
expires = 2126-01-01

[keys.release]
file = "release.pub"

[keys.root-a]
file = "root-a.pub"

[keys.root-b]
file = "root-b.pub"
expires = "2100-01-01T12:00:00+01:00"

[bundle]
keys = ["release"]

[trust]
keys = ["root-a", "root-b"]
threshold = 2
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys and a trust file, made as docs/guides/sign.md says: not to be changed."""
    from edgekd.deploy.signing.key_files import make_key

    folder = tmp_path_factory.mktemp("keys")
    for name in ("release", "root-a", "root-b", "stranger"):
        make_key(folder, name, None)
    (folder / "trust.toml").write_text(TABLE.format(version=1), "utf-8")
    return folder


@pytest.fixture
def trust(edgekd: EdgeKD, keys: Path, tmp_path: Path) -> Path:
    """A trust file that both root keys have signed."""
    path = tmp_path / "trust.json"
    both = ("--key", keys / "root-a.key", "--key", keys / "root-b.key")
    made = edgekd("trust", keys / "trust.toml", "--out", path, *both, "--json").json
    assert_documented(made, "signed")
    assert sorted(row["name"] for row in made["signatures"]) == ["root-a", "root-b"]
    return path


def test_keygen_tells_where_the_halves_are(edgekd: EdgeKD, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n", "utf-8")
    secret.chmod(0o600)
    ran = edgekd("keygen", "ci", "--out", tmp_path, "--json")
    assert_documented(ran.json, "keygen")
    assert ran.json["encrypted"] is False
    more = edgekd("keygen", "hsm", "--out", tmp_path, "--secret-file", secret)
    assert "encrypted" in more.out
    again = edgekd("keygen", "ci", "--out", tmp_path)
    assert (again.code, again.out) == (2, "")
    assert "exists already" in again.err


def test_from_build_to_a_camera_that_trusts(
    edgekd: EdgeKD, keys: Path, trust: Path, tiny_build: Built, tmp_path: Path
) -> None:
    bundle = shutil.copy(tiny_build.bundle, tmp_path / "b.edgekd")
    unsigned = edgekd("verify", bundle, "--json").json
    assert_documented(unsigned, "signed")
    assert (unsigned["signatures"], unsigned["trusted"]) == ([], None)
    refused = edgekd("verify", bundle, "--trust", trust)
    assert (refused.code, refused.out) == (2, "")
    assert "not signed" in refused.err
    signed = edgekd("sign", bundle, "--key", keys / "release.key", "--json").json
    assert_documented(signed, "signed")
    assert signed["identity"] == unsigned["identity"]
    assert signed["identity"] in edgekd("verify", bundle).out, "whole, to be revoked by"
    good = edgekd("verify", bundle, "--trust", trust, "--json").json
    assert (good["trusted"], good["trust_version"]) == (True, 1)
    assert [row["name"] for row in good["signatures"]] == ["release"]
    assert "signed by release" in edgekd("verify", bundle, "--trust", trust).out
    assert edgekd("verify", bundle, "--key", keys / "release.pub").code == 0
    assert "not signed by stranger.pub" in edgekd("verify", bundle, "--key", keys / "stranger.pub").err
    assert read_manifest(bundle) == read_manifest(tiny_build.bundle)


def test_the_same_key_signs_the_same_bytes_and_another_adds_a_signature(
    edgekd: EdgeKD, keys: Path, tiny_build: Built, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("a.edgekd", "b.edgekd", "c.edgekd")]
    for out in outs:
        assert edgekd("sign", tiny_build.bundle, "--key", keys / "release.key", "--out", out).code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    edgekd("sign", outs[2], "--key", keys / "stranger.key", "--key", keys / "release.key")
    assert len(read_head(outs[2]).envelope.signatures) == 2


def test_openssl_can_check_a_signature_by_the_page(
    edgekd: EdgeKD, keys: Path, tiny_build: Built, tmp_path: Path
) -> None:
    """docs/reference/formats/bundle.md says what is signed: a third party needs nothing of edgekd's."""
    edgekd("sign", tiny_build.bundle, "--key", keys / "release.key", "--out", tmp_path / "s.edgekd")
    subprocess.run(["tar", "-xf", tmp_path / "s.edgekd", "-C", tmp_path], check=True)
    told = json.loads((tmp_path / "signatures.json").read_bytes())
    hashed = subprocess.run(["sha256sum", tmp_path / "manifest.json"], check=True, capture_output=True, text=True)
    sha256 = hashed.stdout.split()[0]
    assert told["manifest_sha256"] == sha256
    (tmp_path / "statement").write_text(f"edgekd bundle 1\n{sha256}\n", "ascii")
    (tmp_path / "signature").write_bytes(bytes.fromhex(told["signatures"][0]["signature"]))
    check = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", keys / "release.pub"]
    subprocess.run([*check, "-in", tmp_path / "statement", "-sigfile", tmp_path / "signature"], check=True)


# -------------------------------------------------------------------------------------------------------------- trust


def test_a_trust_file_is_signed_by_one_after_the_other(edgekd: EdgeKD, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    assert edgekd("trust", keys / "trust.toml", "--out", path, "--key", keys / "root-a.key").code == 0
    assert "its own keys" in edgekd("verify", path, "--trust", path).err
    assert edgekd("sign", path, "--key", keys / "root-b.key").code == 0
    assert edgekd("verify", path).code == 0


def test_a_trust_file_follows_another(edgekd: EdgeKD, keys: Path, trust: Path, tmp_path: Path) -> None:
    table = keys / "next.toml"
    table.write_text(TABLE.format(version=2) + f'\n[revoked]\nbundles = ["{"a" * 64}"]\n', "utf-8")
    both = ("--key", keys / "root-a.key", "--key", keys / "root-b.key")
    second = tmp_path / "2.json"
    assert edgekd("trust", table, "--out", second, "--previous", trust, *both).code == 0
    assert edgekd("verify", second, "--trust", trust, "--json").json["trusted"]
    assert "not newer" in edgekd("verify", trust, "--trust", second).err
    forgotten = keys / "forgotten.toml"
    forgotten.write_text(TABLE.format(version=3), "utf-8")
    ran = edgekd("trust", forgotten, "--out", tmp_path / "3.json", "--previous", second, *both)
    assert "an earlier revocation is missing" in ran.err
    assert "not newer" in edgekd("trust", table, "--out", tmp_path / "2b.json", "--previous", second, *both).err
    assert not (tmp_path / "3.json").exists()


def test_a_table_revokes_a_bundle_by_its_path(edgekd: EdgeKD, keys: Path, tiny_build: Built, tmp_path: Path) -> None:
    shutil.copy(tiny_build.bundle, keys / "bad.edgekd")
    identity = read_head(tiny_build.bundle).identity
    table = keys / "revoking.toml"
    table.write_text(TABLE.format(version=2) + f'\n[revoked]\nbundles = ["bad.edgekd", "{"a" * 64}"]\n', "utf-8")
    assert edgekd("trust", table, "--out", tmp_path / "2.json").code == 0
    assert read_trust_file(tmp_path / "2.json").trust.revoked_bundles == tuple(sorted((identity, "a" * 64)))
    table.write_text(table.read_text("utf-8").replace("bad.edgekd", "a07e..."), "utf-8")
    assert "revoked.bundles; expected identities" in edgekd("trust", table, "--out", tmp_path / "3.json").err


def test_what_has_expired_already_is_a_warning(edgekd: EdgeKD, keys: Path, tmp_path: Path) -> None:
    text = TABLE.format(version=1).replace("2126-01-01", "2026-01-03")
    table = keys / "expired.toml"
    table.write_text(text.replace('"release.pub"', '"release.pub"\nexpires = 2026-01-02'), "utf-8")
    ran = edgekd("trust", table, "--out", tmp_path / "1.json", "--json")
    assert_documented(ran.json, "signed")
    assert f"{tmp_path / '1.json'} expired at 2026-01-03T00:00:00Z: nothing is accepted by it" in ran.err
    assert "key release expired at 2026-01-02T00:00:00Z" in ran.err
    assert "expired" not in edgekd("trust", keys / "trust.toml", "--out", tmp_path / "2.json").err


def test_a_table_resets_counters_and_keeps_the_reset(edgekd: EdgeKD, keys: Path, trust: Path, tmp_path: Path) -> None:
    both = ("--key", keys / "root-a.key", "--key", keys / "root-b.key")
    paths = {}
    for version, reset in ((2, "counter = 7\nversion = 2"), (3, "counter = 7\nversion = 2"), (4, None)):
        table = keys / f"reset-{version}.toml"
        table.write_text(TABLE.format(version=version) + (f"\n[counter_reset]\n{reset}\n" if reset else ""), "utf-8")
        paths[version] = tmp_path / f"{version}.json"
        previous = paths.get(version - 1, trust)
        ran = edgekd("trust", table, "--out", paths[version], "--previous", previous, *both)
        assert (ran.code == 0) is (reset is not None)
    assert "counter_reset: an earlier one is changed" in ran.err
    assert read_trust_file(paths[3]).trust.counter_reset == CounterReset(7, 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"release.pub"', '"none.pub"', "none.pub: cannot read"),
        ('["release"]', '["nobody"]', "bundle.keys; expected names of release, root-a, root-b; found nobody"),
        ("threshold = 2", "threshold = 3", "a threshold from 1 to 2"),
        ("2026-01-01\n", '"yesterday"\n', "issued; expected a time such as 2027-01-31"),
        ("[trust]", "[truth]", "unknown key 'truth'"),
        ("version = 1", "version = 0", "an integer from 1"),
    ],
)
def test_a_mistake_in_the_table_is_one_line(
    edgekd: EdgeKD, keys: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = TABLE.format(version=1)
    assert old in text
    table = keys / "wrong.toml"
    table.write_text(text.replace(old, new), "utf-8")
    ran = edgekd("trust", table, "--out", tmp_path / "trust.json")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert message in ran.err


# --------------------------------------------------------------------------------------------------------------- pack


def test_packing_what_nobody_changed_gives_the_same_bytes_and_keeps_signatures(
    edgekd: EdgeKD, keys: Path, tiny_build: Built, tmp_path: Path
) -> None:
    signed = tmp_path / "signed.edgekd"
    edgekd("sign", tiny_build.bundle, "--key", keys / "release.key", "--out", signed)
    ran = edgekd("pack", signed, "--out", tmp_path / "again.edgekd", "--json")
    assert_documented(ran.json, "signed")
    assert (tmp_path / "again.edgekd").read_bytes() == signed.read_bytes()
    extract(signed, tmp_path / "folder")
    edgekd("pack", tmp_path / "folder", "--out", tmp_path / "plain.edgekd")
    assert (tmp_path / "plain.edgekd").read_bytes() == tiny_build.bundle.read_bytes()


def test_another_counter_is_another_bundle_and_loses_its_signatures(
    edgekd: EdgeKD, keys: Path, tiny_build: Built, tmp_path: Path
) -> None:
    signed, out = tmp_path / "signed.edgekd", tmp_path / "out.edgekd"
    edgekd("sign", tiny_build.bundle, "--key", keys / "stranger.key", "--out", signed)
    flags = ("--version-counter", 12, "--name", "gate-7", "--licence", "AGPL-3.0-only", "--sign", keys / "release.key")
    told = edgekd("pack", signed, "--out", out, *flags, "--json").json
    assert [row["key"] for row in told["signatures"]] == [told["signatures"][0]["key"]]
    assert edgekd("verify", out, "--key", keys / "release.pub").code == 0
    found = verify(out)
    assert (found.counter, found.name) == (12, "gate-7")
    materials = sbom_of(found, out, tmp_path / "unpacked")
    assert materials["metadata"]["component"] == {
        "bom-ref": "bundle",
        "name": "gate-7",
        "type": "firmware",
        "version": "12",
    }
    (model,) = [each for each in materials["components"] if each["type"] == "machine-learning-model"]
    assert model["licenses"] == [{"license": {"id": "AGPL-3.0-only"}}]
    before = sbom_of(verify(tiny_build.bundle), tiny_build.bundle, tmp_path / "before")
    assert materials["metadata"]["tools"] == before["metadata"]["tools"]
    assert materials["serialNumber"] != before["serialNumber"]


def sbom_of(manifest: Manifest, bundle: Path, folder: Path) -> Any:
    (entry,) = [entry for entry in manifest.files if entry.role == "sbom"]
    extract(bundle, folder)
    return json.loads((folder / entry.path).read_bytes())


def test_a_folder_is_packed_with_what_lies_there_now(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out.edgekd"
    extract(tiny_build.bundle, folder)
    (folder / "labels.txt").write_text("rot\ngrün\n", "utf-8")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["thresholds"]["iou"] = 0.5
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), "utf-8")
    assert edgekd("pack", folder, "--out", out).code == 0
    found = verify(out)
    assert found.thresholds.iou == 0.5
    (labels,) = [entry for entry in found.files if entry.role == "labels"]
    hashes = {each["name"]: each["hashes"][0]["content"] for each in sbom_of(found, out, tmp_path / "o")["components"]}
    assert hashes["labels.txt"] == labels.sha256
    (folder / "extra.txt").write_text("?", "utf-8")
    ran = edgekd("pack", folder, "--out", out)
    assert "extra.txt: not listed in its manifest" in ran.err
    (folder / "extra.txt").unlink()
    (folder / "labels.txt").unlink()
    assert "labels.txt: missing" in edgekd("pack", folder, "--out", out).err
    (folder / "labels.txt").symlink_to("/etc/passwd")
    assert "a symbolic link" in edgekd("pack", folder, "--out", out).err
    assert verify(out) == found
    assert (
        "no unpacked bundle; expected a bundle, or a folder with its manifest.json"
        in edgekd("pack", tmp_path, "--out", out).err
    )
    assert "no such folder" in edgekd("pack", tiny_build.bundle, "--out", tmp_path / "none" / "a.edgekd").err


def test_a_bundle_is_packed_for_one_model_of_a_camera(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    out, again = tmp_path / "night.edgekd", tmp_path / "again.edgekd"
    assert edgekd("pack", tiny_build.bundle, "--out", out, "--role", "night").code == 0
    assert verify(out) == replace(verify(tiny_build.bundle), role="night")
    assert "for cameras' --model night alone" in edgekd("inspect", out).out
    inspected = edgekd("inspect", out, "--json").json
    assert_documented(inspected, "inspect")
    assert inspected["role"] == "night"
    assert edgekd("pack", out, "--out", again, "--name", "other").code == 0
    assert verify(again).role == "night", "it stays where no other is given"
    assert "manifest.role" in edgekd("pack", out, "--out", again, "--role", "Night").err


def test_latencies_measured_on_the_device_are_added(edgekd: EdgeKD, tiny_build: Built, tmp_path: Path) -> None:
    times = {"p50": 4.0, "p90": 4.5, "p99": 5.0, "mean": 4.1, "min": 3.5}
    runtime, mode = {"name": "tensorrt", "version": "8.5.2"}, {"id": 0, "name": "MAXN"}
    bench = {"key": "k", "runtime": runtime, "model": "Xavier", "power_mode": mode, "inference_ms": times}
    build = {"key": "k", "layers": {"int8": 80, "fp16": 4}}
    answers = [{"command": "build", "ok": True, "error": None, "result": build}, {"command": "bench", "result": bench}]
    log = tmp_path / "camera.jsonl"
    log.write_text("".join(json.dumps(answer) + "\n" for answer in answers), "utf-8")
    out = tmp_path / "out.edgekd"
    assert edgekd("pack", tiny_build.bundle, "--out", out, "--measured", log).code == 0
    *_, found = verify(out).evidence.latencies
    assert (found.basis, found.ms, found.low_ms, found.high_ms) == ("measured", 4.0, 3.5, 5.0)
    assert found.where == "Xavier, tensorrt 8.5.2, MAXN"
    assert found.layers == {"int8": 80, "fp16": 4}
    host = edgekd("bench", tiny_build.bundle, "--iterations", 5, "--seconds", 0, "--json")
    log.write_text(host.out, "utf-8")
    assert edgekd("pack", tiny_build.bundle, "--out", out, "--measured", log).code == 0
    assert verify(out).evidence.latencies[-1].basis == "stand-in"
    for wrong in (
        "",
        "{}",
        "nonsense",
        json.dumps({"command": "bench", "result": {**bench, "runtime": {"name": "null"}}}),
    ):
        log.write_text(wrong, "utf-8")
        ran = edgekd("pack", tiny_build.bundle, "--out", out, "--measured", log)
        assert "no timings" in ran.err


# ------------------------------------------------------------------------------------------------------------- build


def test_a_build_signs_and_no_secret_is_left_anywhere(
    edgekd: EdgeKD, keys: Path, tiny_model: Path, tiny_data: Path, tiny_build: Built, tmp_path: Path
) -> None:
    out = shutil.copytree(tiny_build.out, tmp_path / "out")
    flags = ("--sign", keys / "release.key", "--version-counter", 3, "--licence", "MIT")
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", out, *flags, "--json")
    assert ran.code == 0, ran.err
    bundle = Path(ran.json["bundle"])
    assert edgekd("verify", bundle, "--key", keys / "release.pub").code == 0
    found = verify(bundle)
    assert found.counter == 3
    assert {each.part: each.licence for each in found.licences} == {"agent": "Apache-2.0", "model": "MIT"}
    (kept,) = [path for path in (out / "stages").glob("pack-*/bundle.edgekd") if verify(path).counter == 3]
    assert read_head(kept).envelope.signatures == (), "what is kept for the next build is not signed"
    assert read_head(kept).identity == read_head(bundle).identity
    secret = (keys / "release.key").read_text("ascii").splitlines()[1].encode("ascii")
    raw = raw_secret(keys / "release.key")
    for path in [path for path in out.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        assert not any(each in content for each in (secret, raw, raw.hex().encode("ascii"), b"PRIVATE KEY")), path
    assert not any(each in ran.out + ran.err for each in (secret.decode("ascii"), raw.hex(), "PRIVATE KEY"))


def raw_secret(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), None)
    return key.private_bytes_raw()  # type: ignore[union-attr]


def test_a_key_that_cannot_be_used_stops_a_build_before_it_begins(
    edgekd: EdgeKD, tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    ran = edgekd("build", tiny_model, "--data", tiny_data, "--out", tmp_path / "out", "--sign", tmp_path / "none.key")
    assert (ran.code, ran.out) == (2, "")
    assert "none.key: cannot read" in ran.err
    assert not (tmp_path / "out").exists()
