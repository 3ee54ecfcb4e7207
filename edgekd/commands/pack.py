"""`edgekd pack`: a bundle written again, from a bundle or from the folder that one was unpacked into.

For whoever releases: another counter, another name, a changed file, or latencies that were measured on the device after
the build. Everything else stays as it is. What changes the manifest changes what signatures are of, so they go.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.agent.runtimes.types import ON_CPU
from edgekd.core.atomic_files import contents
from edgekd.core.bundle.archive import MANIFEST, extract, file_entry, head_of, pack, read_head
from edgekd.core.bundle.manifest import MAX_BYTES, RESERVED, Latency, Manifest, from_json
from edgekd.core.errors import SpecError
from edgekd.deploy.firmware import Packaging, require_packager, wrap
from edgekd.deploy.sbom import sbom, tools_in
from edgekd.deploy.signing import Signer
from edgekd.deploy.signing.signed import sign_bundle, verify


@dataclass(frozen=True)
class PackJob:
    """What to pack, where to, and what is to be another; None where nothing is.

    source: a bundle, or a folder with a manifest.json and the files it lists, whose lengths and hashes may be others;
    measured: what the agent, or `edgekd bench --json`, has printed; packaging: the firmware system that `out` is for.
    """

    source: Path
    out: Path
    counter: int | None = None
    name: str | None = None
    licence: str | None = None
    measured: Sequence[Path] = ()
    packaging: Packaging | None = None


def run(job: PackJob, signers: Sequence[Signer] = ()) -> Mapping[str, Any]:
    """Pack, sign if there are signers, and tell of the bundle as `edgekd verify` does.

    Raises SpecError, BundleError, HashError, SignatureError; then `out` is as it was.
    """
    if job.packaging:
        require_packager(job.packaging)
    scratch_folder = tempfile.TemporaryDirectory(prefix="edgekd-", dir=_folder(job.out))
    with _unpacked(job.source) as (manifest, folder), scratch_folder as scratch:
        packed = Path(scratch) / "bundle.edgekd"
        files = {entry.path: folder / entry.path for entry in manifest.files}
        changed, files = _with_sbom(_changed(manifest, job), files, Path(scratch))
        pack(changed, files, packed)
        sealed = packed if job.packaging else job.out
        sign_bundle(packed, signers, sealed, _signatures(job.source, changed))
        if job.packaging is None:
            return verify(job.out)
        told, made = verify(packed), wrap(job.packaging, packed, job.out)
        return {**told, "file": str(job.out), "bytes": job.out.stat().st_size, "firmware": made}


def _folder(out: Path) -> Path:
    if not out.absolute().parent.is_dir():
        raise SpecError(f"{out.parent}: no such folder", fix="make it, or write elsewhere")
    return out.absolute().parent


def _signatures(source: Path, changed: Manifest) -> Any:
    """The signatures of a bundle whose manifest stays what it is."""
    if source.is_dir():
        return ()
    head = read_head(source)
    return head.seal.signatures if head.identity == head_of(changed).identity else ()


@contextmanager
def _unpacked(source: Path) -> Iterator[tuple[Manifest, Path]]:
    """The manifest of a bundle or of a folder, as it is for the files that lie there, and where they lie."""
    if source.is_dir():
        yield _of_folder(source), source
        return
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch) / "files"
        yield extract(source, folder), folder


def _of_folder(folder: Path) -> Manifest:
    """The manifest in a folder, with lengths and hashes of the files as they are now. Raises SpecError, BundleError."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            manifest = from_json(stream.read(MAX_BYTES + 1))
        there = {file.relative_to(folder).as_posix() for file in contents(folder) if not file.is_dir()} - set(RESERVED)
    except OSError as error:
        fix = "unpack a bundle there: tar -xf NAME.edgekd"
        raise SpecError(f"{path}: cannot read", found=error.strerror, fix=fix) from error
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


def _changed(manifest: Manifest, job: PackJob) -> Manifest:
    evidence, licences = manifest.evidence, manifest.licences
    more = tuple(found for path in job.measured for found in measured_latencies(path, manifest.target.name))
    if job.licence:
        licences = tuple(replace(each, licence=job.licence) if each.part == "model" else each for each in licences)
    return replace(
        manifest,
        counter=manifest.counter if job.counter is None else job.counter,
        name=job.name or manifest.name,
        licences=licences,
        evidence=replace(evidence, latencies=(*evidence.latencies, *more)),
    )


def _with_sbom(manifest: Manifest, files: Mapping[str, Path], scratch: Path) -> tuple[Manifest, dict[str, Path]]:
    """The manifest and the files with a bill of materials, where there is one, that fits them."""
    found = next((entry for entry in manifest.files if entry.role == "sbom"), None)
    if found is None:
        return manifest, dict(files)
    told = [entry for entry in manifest.files if entry is not found]
    try:
        tools = tools_in(files[found.path].read_bytes())
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{files[found.path]}: no bill of materials", found=str(error), fix="get it again") from error
    path = scratch / "sbom"
    path.write_bytes(sbom(manifest.name, str(manifest.counter), told, tools, manifest.licences))
    entry = file_entry(found.path, path, "sbom")
    entries = tuple(entry if each is found else each for each in manifest.files)
    return replace(manifest, files=entries), {**files, found.path: path}


def measured_latencies(path: Path, target: str) -> list[Latency]:
    """The timings in a file of JSON documents, one a line, as the agent or `edgekd bench --json` prints them.

    What the agent's `build` says of layers goes with the `bench` of the same engine. Raises SpecError.
    """
    try:
        results = [_result(document) for document in _documents(path.read_text("utf-8"))]
        layers = {result["key"]: result["layers"] for result in results if "layers" in result and "key" in result}
        found = [_latency(result, layers, target) for result in results if "inference_ms" in result]
    except OSError as error:
        raise SpecError(f"{path}: cannot read", found=error.strerror, fix="check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"{path}: no timings", expected="what `agent.pyz bench` or `edgekd bench --json` prints", found=str(error)
        ) from error
    if not found:
        raise SpecError(f"{path}: no timings", expected="what `agent.pyz bench` or `edgekd bench --json` prints")
    return found


def _documents(text: str) -> Iterator[Any]:
    """One JSON document after the other. Raises ValueError for anything else."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        document, end = decoder.raw_decode(text)
        yield document
        text = text[end:].lstrip()


def _result(document: Any) -> dict[str, Any]:
    """The figures in one document: the agent wraps them."""
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
        basis = "stand-in" if runtime["name"] in ON_CPU and target != "cpu" else "measured"
    else:
        host = result["host"]
        where = f"{host['cpu']}, {host['engine']}, {host['threads']} threads"
        basis = "measured" if target == "cpu" else "stand-in"
    return Latency(basis, where, times["p50"], times["min"], times["p99"], layers.get(result.get("key", "")))
