"""What firmware engineers call: keys, signatures, trust files, and bundles packed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.options import Json, Keys, Licence, SecretFile
from edgekd.cli.printing import print_json

FirmwareKey = Annotated[
    str | None, typer.Option(help="Sign the firmware system's file: a key's file, or a pkcs11: address.")
]
FirmwareCert = Annotated[str | None, typer.Option(help="The certificate of that key, for RAUC and SWUpdate.")]
FirmwareIntermediate = Annotated[list[Path] | None, typer.Option(help="A certificate between it and the cameras' own.")]
Compatible = Annotated[
    list[str] | None, typer.Option(help="What the firmware system calls the device, if not what the bundle says.")
]
Signed = Annotated[Path, typer.Argument(help="A .edgekd bundle, or a trust file.", show_default=False)]


def keygen(
    name: Annotated[str, typer.Argument(help="What the key is called: NAME.key, NAME.pub.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the two files.")] = Path(),
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Ask for a passphrase; implied by --secret-file.")] = False,
    secret_file: SecretFile = None,
    as_json: Json = False,
) -> None:
    """Make a key pair: NAME.key, which only its owner can read, and NAME.pub for everybody."""
    from edgekd.deploy.signing.key_files import make_key
    from edgekd.deploy.signing.secrets import Secrets

    secrets = Secrets(secret_file)
    passphrase = secrets.choose(f"Passphrase for {name}.key") if encrypt or secrets.given else None
    made = make_key(out, name, passphrase)
    if as_json:
        print_json(
            {"key": made.id, "private": str(made.private), "public": str(made.public), "encrypted": made.encrypted}
        )
        return
    print(f"key {made.id}\nprivate: {made.private}{', encrypted' if made.encrypted else ''}\npublic: {made.public}")


def trust(
    table: Annotated[Path, typer.Argument(help="TOML table of keys and thresholds.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The trust file to write.")] = Path("trust.json"),
    previous: Annotated[Path | None, typer.Option(help="The one that it is to follow.", show_default=False)] = None,
    key: Keys = None,
    secret_file: SecretFile = None,
    as_json: Json = False,
) -> None:
    """Make a trust file, which says whose bundles a camera takes, and sign it with the keys that are at hand."""
    from edgekd.deploy.signing import load_signers
    from edgekd.deploy.signing.signed import make_trust

    _tell(make_trust(table, out, load_signers(key or (), secret_file), previous), as_json)


def sign(
    file: Signed,
    key: Annotated[list[str], typer.Option(help="A private key's file, or pkcs11: address.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write it. Default: in place.", show_default=False)] = None,
    secret_file: SecretFile = None,
    as_json: Json = False,
) -> None:
    """Add signatures to a bundle or a trust file."""
    from edgekd.deploy.signing import load_signers
    from edgekd.deploy.signing.signed import sign

    _tell(sign(file, load_signers(key, secret_file), out), as_json)


def verify(
    file: Signed,
    trust: Annotated[Path | None, typer.Option(help="Trust file that decides.", show_default=False)] = None,
    key: Annotated[list[Path] | None, typer.Option(help="A .pub that must have signed it.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Check a bundle or trust file from its first byte to its last, and who signed it."""
    from edgekd.commands.api import query as api

    _tell(api.verify(file, trust=trust, keys=key or ()).document, as_json)


def pack(
    source: Annotated[Path, typer.Argument(help="A bundle, or the folder it was unpacked into.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    version_counter: Annotated[int | None, typer.Option(help="No device goes back to a lower one.", min=0)] = None,
    name: Annotated[str | None, typer.Option(help="Another name for the model.", show_default=False)] = None,
    licence: Licence = None,
    measured: Annotated[
        list[Path] | None, typer.Option(help="Timings to add: what `agent.pyz bench` printed.", show_default=False)
    ] = None,
    sign: Keys = None,
    secret_file: SecretFile = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--format", help="edgekd, mender, oci, rauc or swupdate. Default: by the name of OUT.", show_default=False
        ),
    ] = None,
    firmware_key: FirmwareKey = None,
    firmware_cert: FirmwareCert = None,
    firmware_intermediate: FirmwareIntermediate = None,
    compatible: Compatible = None,
    state: Annotated[str | None, typer.Option(help="Folder of the slots on the camera.", show_default=False)] = None,
    rauc_plain: Annotated[
        bool, typer.Option("--rauc-plain", help="RAUC's format for cameras without dm-verity.")
    ] = False,
    mender_module: Annotated[
        Path | None, typer.Option(help="Also write the update module that cameras need.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle again: with another counter, changed files, measured latencies; or for a firmware system."""
    from edgekd.commands import pack as pack_module
    from edgekd.deploy.firmware import STATE, Packaging, packaging_for
    from edgekd.deploy.signing import load_signers

    told = Packaging(
        system=system or "",
        key=firmware_key,
        certificate=firmware_cert,
        intermediates=tuple(firmware_intermediate or ()),
        compatible=tuple(compatible or ()),
        state=state or STATE,
        plain=rauc_plain,
        module=mender_module,
    )
    job = pack_module.PackJob(source, out, version_counter, name, licence, measured or (), packaging_for(told, out))
    _tell(pack_module.run(job, load_signers(sign or (), secret_file)), as_json)


def delta(
    old: Annotated[Path, typer.Argument(help="The bundle that the cameras have.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="The bundle that they should have.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The delta to write.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write what a camera needs of a new bundle beyond the one it has; `agent.pyz install` takes it."""
    from edgekd.deploy import delta as deltas

    found = deltas.run(old, new, out)
    if as_json:
        print_json(found)
        return
    print(f"{found['file']}: {found['bytes']:,} bytes in place of {found['new_bytes']:,} ({found['share']:.1%})")
    print(f"from {found['old'][:16]} to {found['new'][:16]}")


def _tell(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    counted = "counter" if found["kind"] == "bundle" else "version"
    until = f", expires {found['expires']}" if found["expires"] else ""
    print(f"{found['file']}: {found['kind']} {found['identity'][:16]}, {counted} {found['version']}{until}")
    for signature in found["signatures"]:
        print(f"signed by {signature['name'] or 'key'} {signature['key']}")
    if not found["signatures"]:
        print("not signed")
    if found["firmware"]:
        print(_firmware_line(found))
    if found["trusted"]:
        print("trusted" if found["trust_version"] is None else f"trusted by trust file {found['trust_version']}")
    else:
        print("whole; signatures were compared with no trust file and no key")


def _firmware_line(found: Mapping[str, Any]) -> str:
    """What the file around the bundle is."""
    made = found["firmware"]
    signed = "signed" if made["signed"] else "not signed"
    return f"in a file for {made['system']}, {found['bytes']:,} bytes, {signed}; for {', '.join(made['compatible'])}"
