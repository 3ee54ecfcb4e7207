"""`edgekd adapt`: a bundle for other conditions, adapted to frames without labels.

The domain shift is estimated from the frames (`data.domain_shift`) and applied to images of the training split. Layers
are fitted on these pairs of images (`compress.quantization.adapt`). The result is a variant: a bundle for the same
target, with the same graph and other constants, and the delta to it from the bundle that cameras have.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from edgekd.builds.stages.base import tool_versions
from edgekd.builds.stages.drift_reference import DRIFT, statistics
from edgekd.commands.arguments import path_or_none, signers_of
from edgekd.commands.options import Bundle, Counter, Data, Keys, SecretFile
from edgekd.commands.pack import repack
from edgekd.commands.parameter import Option
from edgekd.compress.quantization.activation_scales import write_cache
from edgekd.compress.quantization.adapt import adapt as fit
from edgekd.core import drift
from edgekd.core.atomic_files import copy_file, write_file, writing
from edgekd.core.bundle.archive import MANIFEST, extract, read_head
from edgekd.core.bundle.manifest import (
    MODEL_NAME,
    MODEL_NAME_TEXT,
    FileEntry,
    GraphScore,
    Manifest,
    StageKey,
    to_json,
)
from edgekd.core.canonical import canonical_json, json_sha256
from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.parity import RelativeError
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import CompressError, DataError, SpecError
from edgekd.core.formats.golden_set import to_bytes
from edgekd.core.formats.packed_graph import pack
from edgekd.core.formats.plain_graph import plain_graph
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset, unlabelled
from edgekd.data.domain_shift import DomainShift, estimate_shift
from edgekd.data.images import Image, ReadableImages, file_hashes
from edgekd.data.shifted_copies import resized_to_input, write_dataset, write_shifted
from edgekd.data.types import Dataset, Split
from edgekd.deploy import delta
from edgekd.deploy.artifact import expanded
from edgekd.deploy.golden_set import TRIED, golden_set
from edgekd.deploy.variant import Adaptation, AdaptedScores, AdaptError, Look, Variant
from edgekd.evaluation.coco import Score
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

FEWEST = 16
"""Minimum number of frames of the new conditions, and of training images."""
FITTED = 64
"""Number of training images on which layers are fitted."""
JUDGED = 16
"""Number of other training images, at most a fifth of all, on which the result is compared with the original."""
LOOKED = 64
"""Number of frames of the new conditions from which the domain shift is estimated."""
RANGED = 32
"""Number of frames of the new conditions on which activation ranges are measured."""
SEED = 0
VARIANT = "x-variant"
"""The field of a manifest that names the variant and its base."""
TOOLS = ("numpy", "onnx", "onnxruntime", "opencv-python-headless", "scipy")


@dataclass(frozen=True)
class Adapted:
    """A fitted graph, and the data that it was fitted on.

    graph: its file; quantized: whether it has INT8 layers; ranged: the frames of the new conditions, float32
    [1, 3, h, w], on which ranges are measured; look: the domain shift; pictures, frames: numbers of training images and
    of frames that were used; errors: relative error of the confidences on shifted images, compared with the original
    graph on unshifted ones, before and after fitting.
    """

    graph: Path
    quantized: bool
    ranged: Sequence[np.ndarray]
    look: DomainShift
    pictures: int
    frames: int
    errors: tuple[float, float]


def adapt(
    bundle: Bundle,
    frames: Annotated[str | Path, Option("Folder of frames of the new conditions.", group="Input")],
    data: Data,
    *,
    name: Annotated[str, Option("Name of the variant, such as night.")] = "variant",
    out: Annotated[
        str | Path | None, Option("Bundle to write. Default: runs/BUNDLE-NAME.edgekd.", group="Output")
    ] = None,
    score: Annotated[bool, Option("Score both on the split val of DATA.", inverse="--no-score")] = True,
    twins: Annotated[
        str | Path | None, Option("Folder for a copy of DATA that looks like the frames.", group="Output")
    ] = None,
    version_counter: Counter = None,
    sign: Keys = (),
    secret_file: SecretFile = None,
    progress: Progress = SILENT,
) -> Variant:
    """Make a variant of a bundle for other conditions, from frames without labels, and the delta to it.

    Layers are fitted on the split `train` of `data`. The delta is written beside the variant.

    Raises SpecError, DataError, BundleError, SignatureError, or CompressError if fitting does not help; then nothing is
    written. The command: `edgekd adapt`. The method, with its sources: docs/guides/adapt.md.
    """
    base, copies, signers = Path(bundle), path_or_none(twins), signers_of(sign, secret_file)
    place = path_or_none(out) or Path("runs") / f"{base.stem}-{name}.edgekd"
    began = time.perf_counter()
    _refuse_places(name, base, place, copies)
    dataset, new = load_dataset(Path(data)), unlabelled(Path(frames))
    hashes = file_hashes(new.images, progress)
    if score:
        _refuse_shared(dataset, hashes, progress)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder, packed, shorter = (Path(scratch) / each for each in ("bundle", "packed.edgekd", "packed.edgekd-delta"))
        manifest = extract(base, folder)
        adapted, adaptation = _variant(base, manifest, folder, name, dataset, new, progress, score=score)
        counter = manifest.counter if version_counter is None else version_counter
        repack(folder, packed, signers, lambda written: replace(written, counter=counter))
        difference = delta.run(base, packed, shorter)
        if copies is not None:
            preprocess = spec_from_json(manifest.detector).preprocess
            write_dataset(dataset, adapted.look, preprocess, copies, progress)
        delta_place = place.with_name(f"{place.name}-delta")
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        copy_file(shorter, delta_place)
        copy_file(packed, place)  # last, so that a bundle is never there without its delta
    if not signers:
        fix = f"edgekd sign {place}, then edgekd delta {base} {place} --out {delta_place}"
        progress.note(f"adapt: not signed, and its delta carries no signature: pass --sign, or {fix}")
    return Variant(
        bundle=place,
        delta=delta_place,
        variant=name,
        identity=difference.new,
        base=difference.old,
        bytes=difference.new_bytes,
        delta_bytes=difference.bytes,
        adaptation=adaptation,
        twins=copies,
        seconds=round(time.perf_counter() - began, 3),
    )


def _variant(
    bundle: Path,
    manifest: Manifest,
    folder: Path,
    name: str,
    dataset: Dataset,
    frames: Split,
    progress: Progress,
    *,
    score: bool,
) -> tuple[Adapted, Adaptation]:
    """Replace the files of an unpacked bundle by those of the variant; return the graph and the documented results."""
    scratch, spec = folder.parent, spec_from_json(manifest.detector)
    base = expanded(folder / manifest.graph.path, scratch / "base.onnx")
    known = dataset.split("train")
    made = adapt_graph(base, scratch / "variant.onnx", spec, known, frames, progress)
    clean = shown = None
    if score and "val" in dataset.splits:
        scored = dataset.split("val", spec.head.task)
        twins = write_shifted(scored, made.look, spec.preprocess, scratch / "shown", progress)
        clean, shown = (
            _scores(base, made.graph, spec, split, progress, label)
            for split, label in ((scored, "as they are"), (twins, "as the frames show things"))
        )
    error = AdaptError(*made.errors)
    about = {"name": name, "of": read_head(bundle).identity, "frames": made.frames, "error": to_plain(error)}
    record = _write_files(folder, manifest, made, frames, clean, progress)
    _write_manifest(folder, manifest, about, record, _key(bundle, name, frames, known), clean)
    return made, Adaptation(
        pictures=made.pictures,
        frames=made.frames,
        drift_frames=record,
        look=look_of(made.look),
        error=error,
        clean=clean.summary if clean else None,
        shown=shown.summary if shown else None,
    )


def adapt_graph(
    base: Path, out: Path, spec: DetectorSpec, known: Split, new: Split, progress: Progress = SILENT
) -> Adapted:
    """Write the Q/DQ graph `base`, fitted to the frames `new`, to `out`. Labels are not used.

    known: training images of the detector. Raises DataError for too few readable images, CompressError if fitting does
    not help.
    """
    how = spec.preprocess
    pictures = _drawn(known, FITTED + JUDGED, spec, progress, "pictures that the model knows")
    frames = _drawn(new, LOOKED, spec, progress, "frames of the new conditions")
    judged = min(JUDGED, len(pictures) // 5)
    progress.note("adapt: what the frames do to pictures ...")
    look, rng = estimate_shift(pictures, frames), np.random.default_rng(SEED)
    shown = [look.apply(picture, rng) for picture in pictures]
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


def _refuse_places(name: str, bundle: Path, out: Path, twins: Path | None) -> None:
    """Raise SpecError for invalid names and paths."""
    if not MODEL_NAME.fullmatch(name):
        raise SpecError(f"--name {name}", expected=MODEL_NAME_TEXT)
    if out.suffix != ".edgekd" or out.absolute() == bundle.absolute():
        raise SpecError(f"--out {out}", expected="another file, whose name ends in .edgekd")
    if twins is not None and twins.exists():
        raise SpecError(f"--twins {twins}: is there already", fix="remove it, or name another folder")


def _refuse_shared(dataset: Dataset, frames: Mapping[Path, str], progress: Progress) -> None:
    """Raise DataError if a frame is also scored; frames: SHA-256 by path."""
    for name in dataset.splits:
        if name == "train":
            continue
        for image, sha256 in file_hashes(dataset.split(name).images, progress).items():
            shared = next((frame for frame, known in frames.items() if known == sha256), None)
            if shared is not None:
                raise DataError(
                    f"{shared} is adapted to and, as {image}, scored in split {name!r}",
                    expected="adapting and scoring to share no image",
                    fix="take it out of the frames",
                )


def _drawn(split: Split, count: int, spec: DetectorSpec, progress: Progress, what: str) -> list[Image]:
    """Draw images of a split at random, resized to the network's input. Raises DataError for too few readable ones."""
    order = np.random.default_rng(SEED).permutation(len(split.samples))[:count]
    found = ReadableImages([split.samples[at] for at in order], progress, label=f"read {what}", max_bad_share=0.5)
    pictures = [resized_to_input(image, spec.preprocess) for _, image in found]
    if len(pictures) < FEWEST:
        raise DataError(f"{what}: too few", expected=f"at least {FEWEST}", found=str(len(pictures)), fix="add more")
    return pictures


def _error(base: Path, graph: Path, spec: DetectorSpec, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return noise power by signal power of the confidences of `graph` on the second image of each pair.

    The signal is the confidences of `base` on the first image.
    """
    error = RelativeError()
    with ONNXRUNTIME_CPU.load(base) as before, ONNXRUNTIME_CPU.load(graph) as after:
        for picture, frame in pairs:
            expected, found = (
                candidate_confidence(candidate_rows(session.run(batch), spec.head), spec.head)
                for session, batch in ((before, picture), (after, frame))
            )
            error.add(found, expected)
    return round(error.power(), 4)


@dataclass(frozen=True)
class _Scores:
    """Scores on labelled images. summary: mAP50-95 of bundle and variant; score: of the variant, for the evidence."""

    summary: AdaptedScores
    score: Score


def _scores(base: Path, graph: Path, spec: DetectorSpec, scored: Split, progress: Progress, label: str) -> _Scores:
    """Score the original graph and the fitted one on the same images."""
    before, after = (
        evaluate(path, spec, scored, progress, f"{label}, {which}").score
        for path, which in ((base, "bundle"), (graph, "variant"))
    )
    first, last = before.map50_95, after.map50_95
    return _Scores(AdaptedScores(scored.name, after.images, first, last, last / first if first else None), after)


def _key(bundle: Path, name: str, frames: Split, known: Split) -> str:
    """Return the SHA-256 of all inputs of a variant."""
    shown = [sorted(file_hashes(split.images).values()) for split in (frames, known)]
    return json_sha256([read_head(bundle).identity, name, *shown, SEED, tool_versions(*TOOLS)])


def look_of(look: DomainShift) -> Look:
    """Return the summary of a domain shift: blur, gain and noise of each band of detail, and brightness."""
    gains, noise = (each.mean(axis=(1, 2), dtype=float) for each in (look.gains, look.noise))
    before, after = (round(float(mean[0]) / 3**0.5, 1) for mean in (look.before, look.after))
    return Look(look.blur, tuple(gains.round(3).tolist()), tuple(noise.round(2).tolist()), (before, after))


def _write_files(
    folder: Path, manifest: Manifest, made: Adapted, frames: Split, clean: _Scores | None, progress: Progress
) -> int | None:
    """Write the files of the variant into an unpacked bundle; return the number of frames in its drift reference.

    None if there are too few frames for a reference; then the variant has none.
    """
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
        after = {**to_plain(clean.score), "skipped": []}
        evidence.write_bytes(canonical_json({**json.loads(evidence.read_bytes()), "after": after}) + b"\n")
    return _write_record(folder, manifest, made.graph, frames, progress)


def _write_record(folder: Path, manifest: Manifest, graph: Path, frames: Split, progress: Progress) -> int | None:
    """Replace the drift reference by one of the new conditions; return its number of frames, None if too few."""
    path = next((folder / entry.path for entry in manifest.files if entry.role == "drift"), folder / DRIFT)
    path.unlink(missing_ok=True)
    if len(frames.samples) < drift.MIN_FRAMES:
        return None
    found = statistics(graph, spec_from_json(manifest.detector), manifest.thresholds, frames, progress, "frames")
    if len(found) < drift.MIN_FRAMES:
        return None
    path.write_bytes(drift.to_json(drift.record_of(found)))
    return len(found)


def _write_manifest(
    folder: Path, manifest: Manifest, about: Mapping[str, Any], record: int | None, key: str, clean: _Scores | None
) -> None:
    """Write the manifest of the variant into its folder; packing sets lengths and hashes."""
    files = [entry for entry in manifest.files if (folder / entry.path).is_file()]
    if record is not None and not any(entry.role == "drift" for entry in files):
        files.append(FileEntry(DRIFT, 0, "0" * 64, "drift"))
    size = (folder / manifest.graph.path).stat().st_size
    evidence = manifest.evidence
    after = replace(evidence.after, bytes=size)
    if clean is not None:
        classes = spec_from_json(manifest.detector).classes
        found = (clean.score.per_class.get(name) for name in classes)
        by_class = tuple(each.map50_95 if each else None for each in found)
        after = GraphScore(clean.score.map50_95, clean.score.map50, size, by_class)
    before = evidence.before.map50_95
    lineage = manifest.lineage
    tools = dict(sorted({**lineage.tools, **tool_versions(*TOOLS)}.items()))
    changed = replace(
        manifest,
        name=f"{manifest.name}-{about['name']}",
        role=manifest.role and about["name"],
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        evidence=replace(evidence, after=after, retention=after.map50_95 / before if before else None),
        lineage=replace(lineage, tools=tools, stages=(*lineage.stages, StageKey("adapt", key))),
        extensions={**manifest.extensions, VARIANT: dict(about)},
    )
    write_file(folder / MANIFEST, to_json(changed))
