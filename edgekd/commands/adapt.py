"""`edgekd adapt`: a bundle for other conditions, of frames that nobody labelled.

The frames say what the new conditions do to pictures (`data.look`), which is done to pictures that the model knows; on
these pairs its layers are fitted (`compress.adapt`). What comes of it is a variant: a bundle of the same graph with
other numbers in it, for the same target, and the delta by which a camera gets it beside the bundle that it has.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.agent.parity import candidates, confidence
from edgekd.agent.slots import MODEL_NAME
from edgekd.builds.stages.base import tool_versions
from edgekd.commands import pack as pack_module
from edgekd.core.atomic_files import copy_file, write_file, writing
from edgekd.core.bundle.archive import MANIFEST, extract, read_head
from edgekd.core.bundle.manifest import FileEntry, Manifest, Score, StageKey, to_json
from edgekd.core.canonical import canonical_json, json_sha256
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.errors import CompressError, DataError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, unlabelled
from edgekd.data.domain_shift import Look, look_of
from edgekd.data.images import Image, ReadableImages, content_hashes
from edgekd.data.shifted_copies import as_seen, write_dataset, write_twins
from edgekd.data.types import Dataset, Split
from edgekd.deploy import delta
from edgekd.deploy.artifact import expanded
from edgekd.deploy.signing import Signer
from edgekd.runtimes.onnxruntime import ONNXRUNTIME_CPU

FEWEST = 16
"""Frames of the new conditions, and pictures that the model knows, that are needed at least."""
FITTED, JUDGED = 64, 16
"""Pictures that layers are fitted on, and others on which it is asked whether that helps; of fewer, a fifth."""
LOOKED = 64
"""Frames of the new conditions that are looked at."""
RANGED = 32
"""Frames of them on which ranges are measured."""
SEED = 0
VARIANT = "x-variant"
"""The field of a manifest that says what a bundle is a variant of."""
TOOLS = ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class AdaptJob:
    """What to adapt, to what.

    data: pictures that the model knows, in the training split; its split `val` is scored, if `score`. name: of the
    variant, by which a camera knows it; counter: of the new bundle, None for the old one's; twins: a folder that `data`
    is written to as the new conditions would show it.
    """

    bundle: Path
    frames: Path
    data: Path
    name: str
    out: Path
    counter: int | None = None
    score: bool = True
    twins: Path | None = None


@dataclass(frozen=True)
class Adapted:
    """A graph that was fitted, as a file, with what it was fitted by.

    quantized: whether it has INT8 layers; ranged: the frames of the new conditions, float32 [1, 3, h, w], on which
    ranges are measured; look: what the new conditions do; errors: how far its scores are from those of the old graph on
    undisturbed pictures, before and after.
    """

    graph: Path
    quantized: bool
    ranged: Sequence[np.ndarray]
    look: Look
    pictures: int
    frames: int
    errors: tuple[float, float]


def run(job: AdaptJob, progress: Progress = SILENT, signers: Sequence[Signer] = ()) -> dict[str, Any]:
    """Adapt, judge, pack, and write the delta; the documented result of `edgekd adapt --json`.

    Raises SpecError, DataError, BundleError, CompressError; then there is no variant.
    """
    began = time.perf_counter()
    dataset, frames = _given(job, progress)
    scored = dataset.split("val") if job.score and "val" in dataset.splits else None
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch) / "bundle"
        manifest = extract(job.bundle, folder)
        base = expanded(folder / manifest.graph.path, Path(scratch) / "base.onnx")
        spec = spec_from_json(manifest.detector)
        made = adapt(base, Path(scratch) / "variant.onnx", spec, dataset.split("train"), frames, progress)
        clean = shown = None
        if scored is not None:
            twins = write_twins(scored, made.look, spec.preprocess, Path(scratch) / "shown", progress)
            clean, shown = (
                _scores(base, made.graph, spec, split, progress, label)
                for split, label in ((scored, "as they are"), (twins, "as the frames show things"))
            )
        key = _key(job, frames, dataset.split("train"))
        record = _write_files(folder, manifest, made, frames, clean, progress)
        _write_manifest(folder, manifest, _told(job, made), record, key, clean)
        packed, shorter = Path(scratch) / "packed.edgekd", Path(scratch) / "packed.edgekd-delta"
        pack_module.run(pack_module.PackJob(folder, packed, job.counter), signers)
        difference = delta.run(job.bundle, packed, shorter)
        if job.twins is not None:
            write_dataset(dataset, made.look, spec.preprocess, job.twins, progress)
        out, way = job.out, job.out.with_name(f"{job.out.name}-delta")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        copy_file(shorter, way)
        copy_file(packed, out)  # last: where it is, all is
    return {
        "bundle": str(out),
        "delta": str(way),
        "variant": job.name,
        "identity": difference["new"],
        "base": difference["old"],
        "bytes": difference["new_bytes"],
        "delta_bytes": difference["bytes"],
        "pictures": made.pictures,
        "frames": made.frames,
        "drift_frames": record,
        "look": look_json(made.look),
        "error": {"before": made.errors[0], "after": made.errors[1]},
        "clean": None if clean is None else clean.told,
        "shown": None if shown is None else shown.told,
        "twins": None if job.twins is None else str(job.twins),
        "seconds": round(time.perf_counter() - began, 3),
    }


def adapt(base: Path, out: Path, spec: DetectorSpec, known: Split, new: Split, progress: Progress = SILENT) -> Adapted:
    """Write `out`: the Q/DQ graph `base` fitted to frames `new`, by pictures that it knows. Labels are not looked at.

    Raises DataError where there are too few readable pictures, CompressError where fitting does not help.
    """
    from edgekd.compress.quantization.adapt import adapt as fit

    how = spec.preprocess
    pictures = _drawn(known, FITTED + JUDGED, spec, progress, "pictures that the model knows")
    frames = _drawn(new, LOOKED, spec, progress, "frames of the new conditions")
    judged = min(JUDGED, len(pictures) // 5)
    progress.note("adapt: what the frames do to pictures ...")
    look, rng = look_of(pictures, frames), np.random.default_rng(SEED)
    shown = [look.put_on(picture, rng) for picture in pictures]
    given, seen, ranged = ([letterbox(each, how)[0] for each in one] for one in (pictures, shown, frames[:RANGED]))
    progress.note(f"adapt: fitting layers on {len(pictures) - judged} pictures ...")
    scales = fit(base, out, given[judged:], seen[judged:], ranged)
    pairs = list(zip(given[:judged], seen[:judged], strict=True))
    errors = _error(base, base, spec, pairs), _error(base, out, spec, pairs)
    if not errors[1] < errors[0]:
        raise CompressError(
            "adapt: fitting to these frames does not help",
            expected=f"scores nearer to those of undisturbed pictures than now ({errors[0]:.3f})",
            found=f"{errors[1]:.3f}",
            fix="keep the bundle as it is, or give frames of conditions under which it is worse",
        )
    return Adapted(out, bool(scales), ranged, look, len(pictures), len(frames), errors)


def _given(job: AdaptJob, progress: Progress) -> tuple[Dataset, Split]:
    """The data and the frames. Raises SpecError, DataError for what cannot be asked for."""
    if not MODEL_NAME.fullmatch(job.name):
        raise SpecError(f"--name {job.name}", expected="1 to 32 of a-z 0-9 _ -, the first a letter or a digit")
    if job.out.suffix != ".edgekd" or job.out.absolute() == job.bundle.absolute():
        raise SpecError(f"--out {job.out}", expected="another file, whose name ends in .edgekd")
    if job.twins is not None and job.twins.exists():
        raise SpecError(f"--twins {job.twins}: is there already", fix="remove it, or name another folder")
    dataset, frames = load_dataset(job.data), unlabelled(job.frames)
    hashes = content_hashes(frames.samples, progress)
    for name in dataset.splits if job.score else ():
        if name == "train":
            continue
        for image, sha256 in content_hashes(dataset.split(name).samples, progress).items():
            shared = next((frame for frame, found in hashes.items() if found == sha256), None)
            if shared is not None:
                raise DataError(
                    f"{shared} is adapted to and, as {image}, scored in split {name!r}",
                    expected="adapting and scoring to share no image",
                    fix="take it out of the frames",
                )
    return dataset, frames


def _drawn(split: Split, count: int, spec: DetectorSpec, progress: Progress, what: str) -> list[Image]:
    """Readable pictures of a split, drawn by chance, as large as the network sees them. Raises DataError."""
    order = np.random.default_rng(SEED).permutation(len(split.samples))[:count]
    found = ReadableImages([split.samples[at] for at in order], progress, label=f"read {what}", max_bad_share=0.5)
    pictures = [as_seen(image, spec.preprocess) for _, image in found]
    if len(pictures) < FEWEST:
        raise DataError(f"{what}: too few", expected=f"at least {FEWEST}", found=str(len(pictures)), fix="add more")
    return pictures


def _error(base: Path, graph: Path, spec: DetectorSpec, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far the confidences of `graph` on the second of each pair are from those of `base` on the first.

    Noise by signal, over all candidates.
    """
    noise = signal = 0.0
    with ONNXRUNTIME_CPU.load(base) as before, ONNXRUNTIME_CPU.load(graph) as after:
        for picture, frame in pairs:
            wanted, found = (
                confidence(candidates(session.run(batch), spec.head), spec.head)
                for session, batch in ((before, picture), (after, frame))
            )
            noise += float(np.square(found - wanted).sum())
            signal += float(np.square(wanted).sum())
    return round(noise / max(signal, 1e-30), 4)


@dataclass(frozen=True)
class _Scores:
    """Scores on labelled images. told: the documented part; results: of the variant, for the evidence."""

    told: Mapping[str, Any]
    results: Mapping[str, Any]


def _scores(base: Path, graph: Path, spec: DetectorSpec, scored: Split, progress: Progress, label: str) -> _Scores:
    """What the old graph and the new one are worth on the same images."""
    from edgekd.evaluation.evaluate import evaluate

    before, after = (
        evaluate(path, spec, scored, progress, f"{label}, {which}").score.to_json()
        for path, which in ((base, "bundle"), (graph, "variant"))
    )
    first, last = before["map50_95"], after["map50_95"]
    told = {"before": first, "after": last, "kept": last / first if first else None}
    return _Scores({"split": scored.name, "images": after["images"], **told}, {**after, "skipped": []})


def _key(job: AdaptJob, frames: Split, known: Split) -> str:
    """SHA-256 of all that a variant follows from."""
    shown = [sorted(content_hashes(split.samples).values()) for split in (frames, known)]
    return json_sha256([read_head(job.bundle).identity, job.name, *shown, SEED, tool_versions(*TOOLS)])


def _told(job: AdaptJob, made: Adapted) -> dict[str, Any]:
    """What the manifest says of a variant."""
    return {
        "name": job.name,
        "of": read_head(job.bundle).identity,
        "frames": made.frames,
        "error": {"before": made.errors[0], "after": made.errors[1]},
    }


def look_json(look: Look) -> dict[str, Any]:
    """What conditions do to pictures, as plain types for JSON."""
    return {
        "blur": look.blur,
        "gains": look.gains.mean(axis=(1, 2), dtype=float).round(3).tolist(),
        "noise": look.noise.mean(axis=(1, 2), dtype=float).round(2).tolist(),
        "brightness": [round(float(mean[0]) / 3**0.5, 1) for mean in (look.before, look.after)],
    }


def _write_files(
    folder: Path, manifest: Manifest, made: Adapted, frames: Split, clean: _Scores | None, progress: Progress
) -> int | None:
    """Give an unpacked bundle the files of the variant. Returns of how many frames its record of statistics is."""
    from edgekd.compress.quantization.activation_scales import write_cache
    from edgekd.core.formats.golden_set import to_bytes
    from edgekd.core.formats.packed_graph import pack
    from edgekd.core.formats.plain_graph import plain_graph
    from edgekd.deploy.golden_set import TRIED, golden_set

    paths = {entry.role: folder / entry.path for entry in manifest.files}
    spec = spec_from_json(manifest.detector)
    paths["graph"].write_bytes(pack(made.graph.read_bytes()))
    if "calibration-cache" in paths and manifest.tensorrt:
        write_cache(made.graph, paths["calibration-cache"], lambda: made.ranged, manifest.tensorrt[0])
    if "golden" in paths:
        floating = made.graph.with_name("floating.onnx")
        floating.write_bytes(plain_graph(made.graph.read_bytes()).onnx)
        images = (image for _, image in ReadableImages(frames.samples[:TRIED], max_bad_share=0.5))
        paths["golden"].write_bytes(
            to_bytes(golden_set(made.graph, floating if made.quantized else None, spec, images))
        )
    if "evidence" in paths and clean is not None:
        evidence = next(path for path in (folder / "evidence.json", paths["evidence"]) if path.is_file())
        evidence.write_bytes(canonical_json({**json.loads(evidence.read_bytes()), "after": clean.results}) + b"\n")
    return _write_record(folder, manifest, made.graph, frames, progress)


def _write_record(folder: Path, manifest: Manifest, graph: Path, frames: Split, progress: Progress) -> int | None:
    """The record of how statistics are spread under the new conditions, in place of the old one; its frames, if any."""
    from edgekd.builds.stages.base import DRIFT
    from edgekd.builds.stages.drift_reference import statistics
    from edgekd.core import drift

    path = next((folder / entry.path for entry in manifest.files if entry.role == "drift"), folder / DRIFT)
    path.unlink(missing_ok=True)
    if len(frames.samples) < drift.LEAST_FRAMES:
        return None
    found = statistics(graph, spec_from_json(manifest.detector), manifest.thresholds, frames, progress, "frames")
    if len(found) < drift.LEAST_FRAMES:
        return None
    path.write_bytes(drift.to_json(drift.record_of(found)))
    return len(found)


def _write_manifest(
    folder: Path, manifest: Manifest, told: Mapping[str, Any], record: int | None, key: str, clean: _Scores | None
) -> None:
    """The manifest of the variant, in the folder with its files; lengths and hashes are for whoever packs it."""
    from edgekd.builds.stages.base import DRIFT

    files = [entry for entry in manifest.files if (folder / entry.path).is_file()]
    if record is not None and not any(entry.role == "drift" for entry in files):
        files.append(FileEntry(DRIFT, 0, "0" * 64, "drift"))
    size = (folder / manifest.graph.path).stat().st_size
    evidence = manifest.evidence
    after = replace(evidence.after, bytes=size)
    if clean is not None:
        classes = spec_from_json(manifest.detector).classes
        by_class = tuple(clean.results["per_class"].get(name, {}).get("map50_95") for name in classes)
        after = Score(clean.results["map50_95"], clean.results["map50"], size, by_class)
    before = evidence.before.map50_95
    lineage = manifest.lineage
    tools = dict(sorted({**lineage.tools, **tool_versions(*TOOLS)}.items()))
    changed = replace(
        manifest,
        name=f"{manifest.name}-{told['name']}",
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        evidence=replace(evidence, after=after, retention=after.map50_95 / before if before else None),
        lineage=replace(lineage, tools=tools, stages=(*lineage.stages, StageKey("adapt", key))),
        extensions={**manifest.extensions, VARIANT: dict(told)},
    )
    write_file(folder / MANIFEST, to_json(changed))
