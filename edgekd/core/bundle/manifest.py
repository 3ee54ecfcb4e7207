"""The manifest of a bundle, and its rules. No I/O.

The rules are not derived from the classes that use the values, because a format must not change when a class elsewhere
does. docs/reference/formats/bundle.md describes them.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from edgekd.core.bundle.detector_rule import DETECTOR
from edgekd.core.bundle.rules import (
    integer,
    list_of,
    matching,
    number,
    object_of,
    one_of,
    optional,
    refuse,
    shown,
    table,
    text,
)
from edgekd.core.canonical import SHA256_TEXT, bounded_json, canonical_json
from edgekd.core.errors import BundleError

FORMAT = 1
Role = Literal[
    "graph", "calibration-cache", "calibration-set", "golden", "drift", "report", "evidence", "labels", "agent", "sbom"
]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_BYTES = 1 << 20
MAX_VALUES = 1 << 16
"""Maximum values and names, as `bounded_json` counts: 10,000 classes in four lists, 1024 files and 1000 stages fit."""
MAX_FILES = 1024
MAX_PATH = 100  # characters: what the name field of a ustar header holds
MAX_TOTAL = 1 << 31  # bytes: of all files together
RESERVED = ("manifest.json", "signatures.json")
Basis = Literal["measured", "stand-in", "predicted"]
BASES: tuple[Basis, ...] = get_args(Basis)
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""Name of one of several models on a camera, which is the name of a folder there."""
MODEL_NAME_TEXT = "1 to 32 of a-z 0-9 _ -, the first a letter or a digit"
"""The same, for errors."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}")
_EXTENSION = "x-"


@dataclass(frozen=True)
class TargetName:
    """Target of a bundle.

    Args:
        name: Its name in `edgekd targets`.
        compatible: Its name in the firmware.
    """

    name: str
    compatible: str


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle.

    Args:
        path: Its name in the bundle.
        length: Bytes.
        sha256: SHA-256, as 64 hexadecimal digits.
        role: Its use.
    """

    path: str
    length: int
    sha256: str
    role: Role


@dataclass(frozen=True)
class DetectionThresholds:
    """Thresholds of detections.

    Args:
        confidence: Minimum score, for each class.
        iou: Overlap above which two boxes are one object.
        max_detections: Maximum number of detections of a frame.
    """

    confidence: tuple[float, ...]
    iou: float
    max_detections: int


@dataclass(frozen=True)
class BuildLimits:
    """Limits of the build; null where there is none.

    Args:
        max_bytes: Bytes of the bundle.
        min_retention: Share of the mAP50-95.
        min_fps: Frames per second.
    """

    max_bytes: int | None
    min_retention: float | None
    min_fps: float | None


@dataclass(frozen=True)
class GraphScore:
    """Accuracy and size of a graph.

    Args:
        map50_95, map50: COCO's mAP, 0 to 1; of keypoints (by OKS), rotated boxes or masks where the detector has some.
        bytes: Size of the graph.
        classes: mAP50-95 of each class in the network's order; null where the scored images have no object of it.
    """

    map50_95: float
    map50: float
    bytes: int
    classes: tuple[float | None, ...]


@dataclass(frozen=True)
class Latency:
    """Latency of the network for one frame.

    Args:
        basis: Measured on the target or on another machine, or predicted.
        where: Device and runtime.
        ms: Milliseconds: median of a measurement, or the prediction.
        low_ms: Minimum of a measurement, or lower end of the interval of a prediction.
        high_ms: 99th percentile of a measurement, or upper end of the interval of a prediction.
        layers: Number of layers by precision; null where that is not known.
    """

    basis: Basis
    where: str
    ms: float
    low_ms: float
    high_ms: float
    layers: Mapping[str, int] | None


@dataclass(frozen=True)
class Evidence:
    """Evidence on the graph.

    Args:
        images: Number of scored images.
        before: The given detector's float graph.
        after: The graph of the bundle.
        retention: mAP50-95 after / before; null where that is 0 / 0.
        latencies: Latencies as predicted, or as added afterwards.
    """

    images: int
    before: GraphScore
    after: GraphScore
    retention: float | None
    latencies: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class StageKey:
    """A stage of the build.

    Args:
        name: Name of the stage.
        key: SHA-256 of its inputs.
    """

    name: str
    key: str


@dataclass(frozen=True)
class Origin:
    """Inputs of a build. Hashes are 64 hexadecimal digits.

    Args:
        model_sha256: SHA-256 of the model as given, which is also the teacher.
        student_sha256: SHA-256 of the checkpoint that was trained or pruned; null where the graph is the model's.
        data_sha256: SHA-256 of the scored images and labels.
        calibration_sha256: Identity of the calibration set; null without one.
        recipe: Name of the recipe.
        recipe_sha256: SHA-256 of its steps.
        seed: Seed of every random choice.
        tools: Versions of libraries.
    """

    model_sha256: str
    student_sha256: str | None
    data_sha256: str
    calibration_sha256: str | None
    recipe: str
    recipe_sha256: str
    seed: int
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Lineage(Origin):
    """Origin of a bundle.

    Args:
        stages: The stages that it follows from.
    """

    stages: tuple[StageKey, ...]


@dataclass(frozen=True)
class Licence:
    """Licence of a part of a bundle.

    Args:
        part: `model` or `agent`.
        licence: An SPDX expression, or NOASSERTION where it is unknown.
    """

    part: str
    licence: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a bundle.

    Args:
        name: Name of the model.
        created_by: Program that wrote it, with its version.
        counter: Against rollback, a device accepts no lower one than that of a bundle it has run; 0 for no counter.
        target: The device that it is for.
        tensorrt: Oldest and newest TensorRT version that can build the graph; null where TensorRT is not used.
        detector: `dataclasses.asdict` of a `DetectorSpec`; `spec_from_json` gives that back.
        thresholds: The thresholds that ship.
        files: Every file, in ascending order of path.
        limits: The limits of the build.
        evidence: Accuracy, size and latencies.
        lineage: The inputs of the build.
        licences: Licences of its parts.
        role: Name of the only model of a camera as which it may be installed; null for any, and then not written.
        extensions: Fields whose name begins with `x-`, without a meaning here.
    """

    name: str
    created_by: str
    counter: int
    target: TargetName
    tensorrt: tuple[str, str] | None
    detector: Mapping[str, Any]
    thresholds: DetectionThresholds
    files: tuple[FileEntry, ...]
    limits: BuildLimits
    evidence: Evidence
    lineage: Lineage
    licences: tuple[Licence, ...]
    role: str | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graph(self) -> FileEntry:
        """Entry of the network."""
        return next(entry for entry in self.files if entry.role == "graph")


def to_json(manifest: Manifest) -> bytes:
    """Return the canonical JSON of a manifest. Raises BundleError when it breaks a rule."""
    document, extensions = _document(manifest), dict(manifest.extensions)
    _canonical({**document, **extensions})
    checked = _document(_checked(document, extensions))
    content = _canonical({**checked, **extensions, "format": FORMAT}) + b"\n"
    from_json(content)
    return content


def _document(manifest: Manifest) -> dict[str, Any]:
    """Return the fields of a manifest, without format and extensions."""
    document = asdict(manifest)
    del document["extensions"]
    if manifest.role is None:
        del document["role"]  # bundles without one stay as older agents read them
    return document


def from_json(content: bytes) -> Manifest:
    """Parse a manifest. Raises BundleError with the field, the expected and the found value."""
    _check_size(content)
    try:
        document = bounded_json(content, MAX_VALUES, _unique)
    except ValueError as error:
        raise BundleError("manifest: cannot be parsed", found=str(error), fix="get the bundle again") from error
    _canonical(document)
    if not isinstance(document, dict):
        refuse("manifest", "an object", document)
    found = document.pop("format", None)
    if type(found) is not int or found != FORMAT:
        raise BundleError("manifest.format: unknown", expected=str(FORMAT), found=shown(found), fix="update edgekd")
    extensions = {name: document.pop(name) for name in list(document) if name.startswith(_EXTENSION)}
    return _checked(document, extensions)


def _checked(document: dict[str, Any], extensions: dict[str, Any]) -> Manifest:
    for name in extensions:
        if not name.startswith(_EXTENSION):
            refuse("manifest", f"extensions whose names begin with {_EXTENSION}", name)
    manifest = Manifest(**_FIELDS(document, "manifest"), extensions=extensions)
    _check_files(manifest.files)
    _check_classes(manifest)
    return manifest


def _check_size(content: bytes) -> None:
    if len(content) > MAX_BYTES:
        refuse("manifest", f"at most {MAX_BYTES} bytes", f"{len(content)} bytes")


def _check_files(files: tuple[FileEntry, ...]) -> None:
    """Check the rules on all files: order, no paths that a file system could confuse, one graph."""
    paths = [entry.path for entry in files]
    if paths != sorted(paths):
        refuse("manifest.files", "files in ascending order of path", paths)
    earlier = set(RESERVED)
    folders = {"/".join(path.lower().split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1)}
    for path in paths:
        if path.lower() in earlier or path.lower() in folders:
            refuse("manifest.files", "paths that differ in more than case, from each other and from folders", path)
        earlier.add(path.lower())
    graphs = [entry.path for entry in files if entry.role == "graph"]
    if len(graphs) != 1:
        refuse("manifest.files", "exactly one file with role graph", graphs)
    total = sum(entry.length for entry in files)
    if total > MAX_TOTAL:
        refuse("manifest.files", f"at most {MAX_TOTAL} bytes together", total)


def _check_classes(manifest: Manifest) -> None:
    """Check that lists by class have a value for each class."""
    count, evidence = len(manifest.detector["classes"]), manifest.evidence
    for where, values in (
        ("thresholds.confidence", manifest.thresholds.confidence),
        ("evidence.before.classes", evidence.before.classes),
        ("evidence.after.classes", evidence.after.classes),
    ):
        if len(values) != count:
            refuse(f"manifest.{where}", f"{count} values, one for each class", f"{len(values)} values")


def _canonical(document: Any) -> bytes:
    """Return the canonical JSON of a document. Raises BundleError where it has none, such as for infinity."""
    try:
        return canonical_json(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"manifest: a value that JSON cannot hold: {error}", fix="get the bundle again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"the name {shown(name)} twice in one object")
        document[name] = value
    return document


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_PATH or not all(map(_SEGMENT.fullmatch, value.split("/"))):
        refuse(where, f"a relative path of at most {MAX_PATH} characters A-Z a-z 0-9 _ . + - between /", value)
    return value


def _tensorrt(value: Any, where: str) -> tuple[str, str]:
    oldest, newest = list_of(matching(_VERSION, "a version such as 8.5"), 2, 2)(value, where)
    if _numbers(oldest) > _numbers(newest):
        refuse(where, "the oldest version, then the newest", value)
    return oldest, newest


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


_COUNT = integer(0, 2**53)
_SHARE = number(0, 1)
_HASH = matching(SHA256_TEXT, "64 hexadecimal digits in lower case")

_SCORE = object_of(GraphScore, map50_95=_SHARE, map50=_SHARE, bytes=_COUNT, classes=list_of(optional(_SHARE), 1))
_TIME = number(0, 1e9)
_LATENCY = object_of(
    Latency,
    basis=one_of(*BASES),
    where=text,
    ms=_TIME,
    low_ms=_TIME,
    high_ms=_TIME,
    layers=optional(table(_COUNT)),
)
_ENTRY = object_of(FileEntry, path=_path, length=integer(0, MAX_TOTAL), sha256=_HASH, role=one_of(*ROLES))
_FIELDS = object_of(
    dict,
    ("role",),
    role=matching(MODEL_NAME, MODEL_NAME_TEXT),
    name=text,
    created_by=text,
    counter=_COUNT,
    target=object_of(TargetName, name=text, compatible=text),
    tensorrt=optional(_tensorrt),
    detector=DETECTOR,
    thresholds=object_of(DetectionThresholds, confidence=list_of(_SHARE, 1), iou=_SHARE, max_detections=_COUNT),
    files=list_of(_ENTRY, 1, MAX_FILES),
    limits=object_of(
        BuildLimits, max_bytes=optional(_COUNT), min_retention=optional(_SHARE), min_fps=optional(number(0, 1e9))
    ),
    evidence=object_of(
        Evidence,
        images=_COUNT,
        before=_SCORE,
        after=_SCORE,
        retention=optional(number(0, 1e9)),
        latencies=list_of(_LATENCY, 0, 64),
    ),
    lineage=object_of(
        Lineage,
        model_sha256=_HASH,
        student_sha256=optional(_HASH),
        data_sha256=_HASH,
        calibration_sha256=optional(_HASH),
        recipe=text,
        recipe_sha256=_HASH,
        seed=_COUNT,
        tools=table(text),
        stages=list_of(object_of(StageKey, name=text, key=_HASH), 0, 1000),
    ),
    licences=list_of(object_of(Licence, part=text, licence=text), 0, 100),
)
