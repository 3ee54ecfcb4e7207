"""`edgekd pack`: repack a bundle, from a bundle or from the folder that it was unpacked into.

For releases: another counter, name or role, a changed file, fewer files, or latencies that were measured on the device
after the build. Everything else is unchanged. A changed manifest has another identity, so its signatures are dropped.
Deltas and trust files are put into files of firmware systems unchanged.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from edgekd.agent.runtimes.types import ON_CPU
from edgekd.commands.arguments import path_or_none, paths_of, signers_of
from edgekd.commands.options import Counter, Keys, Licence, Paths, SecretFile
from edgekd.commands.parameter import Argument, Option
from edgekd.core.atomic_files import contents, writing
from edgekd.core.bundle.archive import MANIFEST, extract, file_entry, head_of, opened, read_head
from edgekd.core.bundle.archive import pack as pack_archive
from edgekd.core.bundle.delta import DeltaReader
from edgekd.core.bundle.manifest import MAX_BYTES, RESERVED, Basis, Latency, Manifest, from_json
from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_file, read_input
from edgekd.deploy.firmware import STATE, Packaging, kind_of, packaging_for, require_packager, wrap
from edgekd.deploy.sbom import sbom, tools_in
from edgekd.deploy.signing import Signer
from edgekd.deploy.signing.signed import NamedSignature, Verified, sign_bundle, verify

HOST_ROLES = ("agent", "calibration-set", "evidence", "report")
"""Roles of files that a camera with its own agent does not read."""
MAX_TIMINGS_BYTES = 1 << 26
"""Maximum bytes of a file of timings; one document has 2 kB, or 100 kB with all layers."""


def pack(
    source: Annotated[
        str | Path,
        Argument("A bundle, or the folder it was unpacked into; for a firmware system a delta or trust file."),
    ],
    out: Annotated[str | Path, Option("File to write.", group="Output")],
    *,
    version_counter: Counter = None,
    name: Annotated[str | None, Option("Another name for the model.")] = None,
    role: Annotated[str | None, Option("Only model of a camera (--model there) that may take the bundle.")] = None,
    licence: Licence = None,
    slim: Annotated[bool, Option("Leave out what a camera with an agent of its own does not read.")] = False,
    measured: Annotated[
        str | Path | Sequence[str | Path], Option("Timings to add: what `agent.pyz bench` printed.")
    ] = (),
    sign: Keys = (),
    secret_file: SecretFile = None,
    system: Annotated[
        str | None, Option("edgekd, mender, oci, rauc or swupdate. Default: by the name of OUT.", flag="--format")
    ] = None,
    firmware_key: Annotated[
        str | None, Option("Sign the firmware system's file: a key's file, or a pkcs11: address.", group="Security")
    ] = None,
    firmware_cert: Annotated[
        str | None, Option("The certificate of that key, for RAUC and SWUpdate.", group="Security")
    ] = None,
    firmware_intermediate: Annotated[
        Paths, Option("A certificate between it and the cameras' own.", group="Security")
    ] = (),
    firmware_unsigned: Annotated[
        bool, Option("Leave the file for SWUpdate or Mender unsigned.", group="Security")
    ] = False,
    compatible: Annotated[
        Sequence[str], Option("Name of the device in the firmware system. Default: the bundle's.")
    ] = (),
    state: Annotated[str | None, Option("Folder of the slots on the camera.")] = None,
    model: Annotated[str | None, Option("Model of a camera that the file is for. Default: the bundle's role.")] = None,
    rauc_plain: Annotated[bool, Option("RAUC's format for cameras without dm-verity.")] = False,
    mender_module: Annotated[str | Path | None, Option("Also write the update module that cameras need.")] = None,
) -> Verified:
    """Repack a bundle with the given changes, or write a firmware system's file with a bundle, delta or trust file.

    Raises SpecError, BundleError, HashError, SignatureError; then `out` is unchanged. The command: `edgekd pack`.
    """
    wanted = Packaging(
        system=system or "",
        key=firmware_key,
        certificate=firmware_cert,
        intermediates=paths_of(firmware_intermediate),
        unsigned=firmware_unsigned,
        compatible=tuple(compatible),
        state=state or STATE,
        model=model,
        plain=rauc_plain,
        module=path_or_none(mender_module),
    )
    packaging, signers = packaging_for(wanted, Path(out)), signers_of(sign, secret_file)
    changes = _Changes(version_counter, name, role, licence, paths_of(measured), slim=slim)
    if (kind := "bundle" if Path(source).is_dir() else kind_of(Path(source))) == "bundle":
        return repack(Path(source), Path(out), signers, partial(_changed, changes=changes), packaging)
    if packaging is None or signers or changes != _Changes():
        expected, fix = f"a firmware system's file for it, as a {kind} file is not changed", "--format, without changes"
        raise SpecError(f"{source}: no bundle", expected=expected, fix=fix)
    return _wrapped(Path(source), Path(out), packaging)


@dataclass(frozen=True)
class _Changes:
    """Changes of a bundle: counter, name, role and licence of the model, None for no change; measured: timing files."""

    counter: int | None = None
    name: str | None = None
    role: str | None = None
    licence: str | None = None
    measured: Sequence[Path] = ()
    slim: bool = False


def _wrapped(source: Path, out: Path, packaging: Packaging) -> Verified:
    """Write a firmware system's file with an unchanged delta or trust file."""
    report = _delta_report(source) if kind_of(source) == "delta" else verify(source)
    firmware = wrap(packaging, source, out)
    return replace(report, file=out, bytes=out.stat().st_size, firmware=firmware)


def _delta_report(source: Path) -> Verified:
    """Describe a delta by the head of its new bundle; the camera verifies the rest when it applies the delta."""
    with opened(source) as stream:
        head = DeltaReader(stream, source).head
    return Verified(
        file=source,
        kind="delta",
        identity=head.identity,
        version=head.manifest.counter,
        expires=None,
        bytes=source.stat().st_size,
        signatures=tuple(NamedSignature(each.key, None) for each in head.envelope.signatures),
        trusted=None,
        trust_version=None,
    )


def repack(
    source: Path,
    out: Path,
    signers: Sequence[Signer],
    change: Callable[[Manifest], Manifest],
    packaging: Packaging | None = None,
) -> Verified:
    """Pack a bundle or a folder with a changed manifest; return what `edgekd verify` reports on the result.

    A folder has a manifest.json that lists its files, whose lengths and hashes may have changed. packaging: firmware
    system that `out` is for. Raises SpecError, BundleError, HashError, SignatureError; then `out` is unchanged.
    """
    if packaging:
        require_packager(packaging)
    with writing(out):
        scratch_folder = tempfile.TemporaryDirectory(prefix="edgekd-", dir=_folder(out))
    with _unpacked(source) as (manifest, folder), scratch_folder as scratch:
        packed = Path(scratch) / "bundle.edgekd"
        changed = change(manifest)
        files = {entry.path: folder / entry.path for entry in changed.files}
        changed, files = _with_sbom(changed, files, Path(scratch))
        pack_archive(changed, files, packed)
        sign_bundle(packed, signers, packed if packaging else out, _signatures(source, changed))
        if packaging is None:
            return verify(out)
        report, firmware = verify(packed), wrap(packaging, packed, out)
        return replace(report, file=out, bytes=out.stat().st_size, firmware=firmware)


def _folder(out: Path) -> Path:
    if not out.absolute().parent.is_dir():
        raise SpecError(f"{out.parent}: no such folder", fix="make it, or write elsewhere")
    return out.absolute().parent


def _signatures(source: Path, changed: Manifest) -> Any:
    """Return the signatures of a bundle if its manifest did not change; none for a folder."""
    if source.is_dir():
        return ()
    head = read_head(source)
    return head.envelope.signatures if head.identity == head_of(changed).identity else ()


@contextmanager
def _unpacked(source: Path) -> Iterator[tuple[Manifest, Path]]:
    """Yield the manifest of a bundle or of a folder, with current lengths and hashes, and the folder with the files."""
    if source.is_dir():
        yield _of_folder(source), source
        return
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch) / "files"
        yield extract(source, folder), folder


def _of_folder(folder: Path) -> Manifest:
    """Return the manifest in a folder, with current lengths and hashes of the files. Raises SpecError, BundleError."""
    path = folder / MANIFEST
    if not is_file(path):
        expected, fix = f"a bundle, or a folder with its {MANIFEST}", "unpack a bundle there: tar -xf NAME.edgekd"
        raise SpecError(f"{folder}: no unpacked bundle", expected=expected, fix=fix)
    manifest = from_json(read_input(path, MAX_BYTES, SpecError))
    try:
        there = {file.relative_to(folder).as_posix() for file in contents(folder) if not file.is_dir()} - set(RESERVED)
    except OSError as error:
        raise SpecError(f"{folder}: cannot read", found=error.strerror, fix="check its rights") from error
    listed = {entry.path for entry in manifest.files}
    if there != listed:
        (odd, *_) = sorted(there ^ listed)
        what = "not listed in its manifest" if odd in there else "missing"
        expected = "the files that `files` in manifest.json lists"
        raise SpecError(f"{folder / odd}: {what}", expected=expected, fix="list, add or remove it")
    links = [entry.path for entry in manifest.files if (folder / entry.path).is_symlink()]
    if links:
        raise SpecError(f"{folder / links[0]}: a symbolic link", expected="a file", fix="put the file itself there")
    files = tuple(file_entry(entry.path, folder / entry.path, entry.role) for entry in manifest.files)
    return replace(manifest, files=files)


def _changed(manifest: Manifest, changes: _Changes) -> Manifest:
    """Return the manifest with the changes, and with measured latencies added. Raises SpecError."""
    evidence, licences, files = manifest.evidence, manifest.licences, manifest.files
    more = tuple(latency for path in changes.measured for latency in measured_latencies(path, manifest.target.name))
    if changes.licence:
        licences = tuple(replace(each, licence=changes.licence) if each.part == "model" else each for each in licences)
    if changes.slim:
        files = tuple(entry for entry in files if entry.role not in HOST_ROLES)
        licences = tuple(each for each in licences if each.part != "agent")
    return replace(
        manifest,
        counter=manifest.counter if changes.counter is None else changes.counter,
        name=changes.name or manifest.name,
        role=manifest.role if changes.role is None else changes.role,
        files=files,
        licences=licences,
        evidence=replace(evidence, latencies=(*evidence.latencies, *more)),
    )


def _with_sbom(manifest: Manifest, files: Mapping[str, Path], scratch: Path) -> tuple[Manifest, dict[str, Path]]:
    """Return manifest and files with a new bill of materials, if they have one. Raises SpecError."""
    old = next((entry for entry in manifest.files if entry.role == "sbom"), None)
    if old is None:
        return manifest, dict(files)
    others = [entry for entry in manifest.files if entry is not old]
    try:
        tools = tools_in(files[old.path].read_bytes())
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{files[old.path]}: no bill of materials", found=str(error), fix="get it again") from error
    path = scratch / "sbom"
    path.write_bytes(sbom(manifest.name, str(manifest.counter), others, tools, manifest.licences))
    entry = file_entry(old.path, path, "sbom")
    entries = tuple(entry if each is old else each for each in manifest.files)
    return replace(manifest, files=entries), {**files, old.path: path}


def measured_latencies(path: Path, target: str) -> list[Latency]:
    """Read timings from a file of JSON documents, as the agent or `edgekd bench --json` prints them.

    Layers from the agent's `build` are added to the `bench` of the same engine. Raises SpecError.
    """
    content = read_input(path, MAX_TIMINGS_BYTES, SpecError)
    try:
        results = [_result(document) for document in _documents(content.decode("utf-8"))]
        layers = {result["key"]: result["layers"] for result in results if "layers" in result and "key" in result}
        found = [_latency(result, layers, target) for result in results if "inference_ms" in result]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"{path}: no timings", expected="what `agent.pyz bench` or `edgekd bench --json` prints", found=str(error)
        ) from error
    if not found:
        raise SpecError(f"{path}: no timings", expected="what `agent.pyz bench` or `edgekd bench --json` prints")
    return found


def _documents(text: str) -> Iterator[Any]:
    """Yield the JSON documents in a text. Raises ValueError for anything else."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].lstrip()


def _result(document: Any) -> dict[str, Any]:
    """Return the result in a document, without the agent's envelope."""
    result = document["result"] if "command" in document else document
    return dict(result or {})


def _latency(result: Mapping[str, Any], layers: Mapping[str, Any], target: str) -> Latency:
    times = result["inference_ms"]
    if "runtime" in result:
        runtime, mode = result["runtime"], result.get("power_mode")
        if runtime["name"] == "null":
            raise ValueError("the null runtime computes nothing")
        where = f"{result['model'] or 'unknown device'}, {runtime['name']} {runtime['version']}"
        where += f", {mode['name']}" if mode else ""
        basis: Basis = "stand-in" if runtime["name"] in ON_CPU and target != "cpu" else "measured"
    else:
        host = result["host"]
        where = f"{host['cpu']}, {host['engine']}, {host['threads']} threads"
        basis = "measured" if target == "cpu" else "stand-in"
    return Latency(basis, where, times["p50"], times["min"], times["p99"], layers.get(result.get("key", "")))
