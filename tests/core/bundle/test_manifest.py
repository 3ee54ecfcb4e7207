"""A manifest reads back as it was written, and nothing but a manifest is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.bundle.detector_rule import DETECTOR
from edgekd.core.bundle.manifest import (
    BASES,
    MAX_BYTES,
    MAX_FILES,
    MAX_TOTAL,
    MODEL_NAME,
    ROLES,
    BuildLimits,
    DetectionThresholds,
    Evidence,
    FileEntry,
    GraphScore,
    Latency,
    Licence,
    Lineage,
    Manifest,
    StageKey,
    TargetName,
    from_json,
    to_json,
)
from edgekd.core.detection.types import HEADS, DetectorSpec, Head, Preprocess, spec_from_json
from edgekd.core.documents import to_plain
from edgekd.core.errors import BundleError

HASH = "0123456789abcdef" * 4
SPEC = DetectorSpec(("person", "car"), Preprocess(640, 640), Head("yolo"))
MANIFEST = Manifest(
    name="yolo11n",
    created_by="edgekd 0.1.0",
    counter=7,
    target=TargetName("xavier", "nvidia,p2972-0000"),
    tensorrt=("8.5", "8.6.1"),
    detector=to_plain(SPEC),
    thresholds=DetectionThresholds((0.25, 0.3), 0.7, 300),
    files=(FileEntry("graph.onnx", 12, HASH, "graph"), FileEntry("report/index.html", 0, HASH, "report")),
    limits=BuildLimits(12_000_000, 0.98, None),
    evidence=Evidence(
        48,
        GraphScore(0.412, 0.57, 10_710_834, (0.412, None)),
        GraphScore(0.4, 0.56, 3_000_000, (0.4, None)),
        0.971,
        (Latency("predicted", "xavier", 2.7, 2.1, 3.5, None),),
    ),
    lineage=Lineage(HASH, None, HASH, HASH, "ptq", HASH, 0, {"onnx": "1.18.0"}, (StageKey("export", HASH),)),
    licences=(Licence("model", "AGPL-3.0-only"),),
)

texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF), min_size=1).filter(str.isprintable)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
shares = st.floats(0, 1)
counts = st.integers(0, 2**53)
triples = st.tuples(*[st.floats(1e-9, 1e9)] * 3)
segments = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,7}", fullmatch=True)
# Every path in a folder of its own number: no path is then another's folder, or the same but for case.
paths = st.lists(segments, max_size=5).map(lambda names: sorted(f"{i}/{name}" for i, name in enumerate(names)))
preprocessing = st.builds(
    Preprocess,
    height=st.integers(1, 65536),
    width=st.integers(1, 65536),
    color=st.sampled_from(["rgb", "bgr"]),
    scale=st.floats(1e-9, 1e9),
    mean=triples,
    std=triples,
    pad_value=st.integers(0, 255),
    center=st.booleans(),
    upscale=st.booleans(),
)
heads = st.builds(
    Head, kind=st.sampled_from(HEADS), nms=st.booleans(), strides=st.lists(st.integers(1, 65536), max_size=4).map(tuple)
)
specs = st.builds(DetectorSpec, st.lists(texts, min_size=1, max_size=5).map(tuple), preprocessing, heads)
latencies = st.builds(
    Latency,
    st.sampled_from(BASES),
    texts,
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.none() | st.dictionaries(texts, counts, max_size=3),
)
limits = st.builds(BuildLimits, st.none() | counts, st.none() | shares, st.none() | st.floats(0, 1e9))
json_values = st.recursive(
    st.none() | st.booleans() | counts | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
other_roles = st.sampled_from([role for role in ROLES if role != "graph"])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    spec = draw(specs)
    share = st.lists(st.none() | shares, min_size=len(spec.classes), max_size=len(spec.classes)).map(tuple)
    sure = st.lists(shares, min_size=len(spec.classes), max_size=len(spec.classes)).map(tuple)
    scores = st.builds(GraphScore, shares, shares, counts, share)
    others = [FileEntry(path, draw(counts) % 2**20, draw(hashes), draw(other_roles)) for path in draw(paths)]
    graph = FileEntry("graph.onnx", draw(counts) % 2**30, draw(hashes), "graph")
    versions = sorted(draw(st.tuples(st.integers(8, 11), st.integers(8, 11))))
    return Manifest(
        name=draw(texts),
        created_by=draw(texts),
        counter=draw(counts),
        target=TargetName(draw(texts), draw(texts)),
        tensorrt=draw(st.none() | st.just((f"{versions[0]}.2", f"{versions[1]}.10.1"))),
        detector=DETECTOR(to_plain(spec), "detector"),
        thresholds=DetectionThresholds(draw(sure), draw(shares), draw(counts)),
        files=(*others, graph),
        limits=draw(limits),
        evidence=Evidence(
            draw(counts),
            draw(scores),
            draw(scores),
            draw(st.none() | shares),
            tuple(draw(st.lists(latencies, max_size=3))),
        ),
        lineage=Lineage(
            draw(hashes),
            draw(st.none() | hashes),
            draw(hashes),
            draw(st.none() | hashes),
            draw(texts),
            draw(hashes),
            draw(counts),
            draw(st.dictionaries(texts, texts, max_size=3)),
            tuple(draw(st.lists(st.builds(StageKey, texts, hashes), max_size=3))),
        ),
        licences=tuple(draw(st.lists(st.builds(Licence, texts, texts), max_size=3))),
        role=draw(st.none() | st.from_regex(MODEL_NAME, fullmatch=True)),
        extensions=draw(st.dictionaries(texts.map("x-{}".format), json_values, max_size=3)),
    )


@given(manifests())
def test_a_manifest_reads_back_as_it_was_written(manifest: Manifest) -> None:
    content = to_json(manifest)
    assert from_json(content) == manifest
    assert to_json(from_json(content)) == content


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_with_a_bundle_error(content: bytes) -> None:
    with pytest.raises(BundleError):
        from_json(content)


def test_the_byte_form_is_pinned() -> None:
    """Format 1 stays what it is: a change that breaks this needs a new format number."""
    assert hashlib.sha256(to_json(MANIFEST)).hexdigest() == (
        "e343a52eb7b0ccc767d3a3ca9170177752dbabb53456c12284bc2d287141e32c"
    )
    assert to_json(MANIFEST).startswith(
        b'{"counter":7,"created_by":"edgekd 0.1.0","detector":{"classes":["person","car"],'
    )


def test_a_role_is_written_only_where_there_is_one() -> None:
    assert b'"role":"night"' in to_json(replace(MANIFEST, role="night"))
    assert b'"role":' not in to_json(MANIFEST).replace(b'"role":"graph"', b"").replace(b'"role":"report"', b"")


@given(specs)
def test_the_detector_becomes_a_spec_again(spec: DetectorSpec) -> None:
    count, evidence = len(spec.classes), MANIFEST.evidence
    before, after = (replace(score, classes=(None,) * count) for score in (evidence.before, evidence.after))
    told = replace(
        MANIFEST,
        detector=to_plain(spec),
        thresholds=DetectionThresholds((0.25,) * count, 0.7, 300),
        evidence=replace(evidence, before=before, after=after),
    )
    manifest = from_json(to_json(told))
    assert spec_from_json(manifest.detector) == spec


def test_integers_are_numbers_and_become_floats() -> None:
    detector = to_plain(replace(SPEC, preprocess=replace(SPEC.preprocess, scale=1, std=(1, 2, 3))))
    assert to_json(replace(MANIFEST, detector=detector)).count(b'"scale":1.0,"std":[1.0,2.0,3.0]') == 1


def change(*route: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for step in route[:-1]:
            place = place[step]
        place[route[-1]] = to

    return edit


def remove(*route: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for step in route[:-1]:
            place = place[step]
        del place[route[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("format", to=0), "manifest.format: unknown; expected 1; found 0; fix: update edgekd"),
        (change("format", to=False), "manifest.format"),
        (remove("format"), "manifest.format"),
        (remove("name"), "manifest.name: missing"),
        (remove("lineage", "seed"), "manifest.lineage.seed: missing"),
        (change("surprise", to=1), '"surprise"'),
        (change("extensions", to={}), '"extensions"'),
        (change("evidence", "after", "x-note", to=1), "manifest.evidence.after"),
        (change("name", to=3), "manifest.name: wrong; expected text of printable characters; found 3"),
        (change("name", to=""), "manifest.name"),
        (change("name", to="a\x1b[31m"), "manifest.name"),
        (change("name", to="a\ud800"), "JSON cannot hold"),
        (change("x-note", to="\ud800"), "JSON cannot hold"),
        (change("x-note", to=float("inf")), "JSON cannot hold"),
        (change("role", to=None), "manifest.role: wrong; expected 1 to 32 of a-z 0-9 _ -"),
        (change("role", to="Night"), "manifest.role"),
        (change("role", to="../day"), "manifest.role"),
        (change("target", to=None), "manifest.target: wrong; expected an object; found null"),
        (change("tensorrt", to=["8.6", "8.5"]), "manifest.tensorrt"),
        (change("tensorrt", to=["8.10", "8.9"]), "manifest.tensorrt"),
        (change("tensorrt", to=["8.5"]), "manifest.tensorrt"),
        (change("tensorrt", to=[8, 9]), "manifest.tensorrt[0]"),
        (change("detector", "classes", to=[]), "manifest.detector.classes"),
        (change("detector", "preprocess", "height", to=0), "manifest.detector.preprocess.height"),
        (change("detector", "preprocess", "height", to=True), "manifest.detector.preprocess.height"),
        (change("detector", "preprocess", "std", 1, to=0), "manifest.detector.preprocess.std[1]"),
        (change("detector", "preprocess", "scale", to="1"), "manifest.detector.preprocess.scale"),
        (change("detector", "head", "kind", to="ssd"), "expected one of yolo, yolox, end2end"),
        (change("detector", "head", "nms", to=1), "manifest.detector.head.nms"),
        (change("evidence", "after", "map50", to=1.5), "manifest.evidence.after.map50"),
        (change("evidence", "after", "map50", to=float("nan")), "JSON cannot hold"),
        (change("evidence", "after", "classes", to=[0.4]), "manifest.evidence.after.classes: wrong; expected 2 values"),
        (change("evidence", "latencies", 0, "basis", to="guessed"), "manifest.evidence.latencies[0].basis"),
        (change("thresholds", "confidence", to=[0.4]), "manifest.thresholds.confidence: wrong; expected 2 values"),
        (change("counter", to=-1), "manifest.counter"),
        (change("counter", to=1.0), "manifest.counter"),
        (change("limits", "max_bytes", to=1.5), "manifest.limits.max_bytes"),
        (
            change("files", 1, "length", to=MAX_TOTAL),
            "expected at most 2147483648 bytes together",
        ),
        (change("files", to={}), "manifest.files"),
        (change("files", 0, "role", to="engine"), "manifest.files[0].role"),
        (change("files", 1, "role", to="graph"), "exactly one file with role graph"),
        (change("files", 0, "role", to="labels"), "exactly one file with role graph"),
        (change("files", 0, "length", to=-1), "manifest.files[0].length"),
        (change("files", 0, "length", to=MAX_TOTAL + 1), "manifest.files[0].length"),
        (change("files", 0, "length", to=12.0), "manifest.files[0].length"),
        (change("files", 0, "sha256", to=HASH.upper()), "manifest.files[0].sha256"),
        (change("files", 0, "sha256", to=HASH + "\n"), "manifest.files[0].sha256"),
        (change("lineage", "calibration_sha256", to=""), "manifest.lineage.calibration_sha256"),
        (change("lineage", "tools", to=["onnx"]), "manifest.lineage.tools"),
    ],
)
def test_a_broken_rule_is_named(edit: Callable[[dict[str, Any]], None], message: str) -> None:
    document = json.loads(to_json(MANIFEST))
    edit(document)
    with pytest.raises(BundleError) as caught:
        from_json(json.dumps(document).encode())
    assert message in str(caught.value)


LATENCY, STAGE, LICENCE = (
    asdict(entries[0]) for entries in (MANIFEST.evidence.latencies, MANIFEST.lineage.stages, MANIFEST.licences)
)


@pytest.mark.parametrize(
    ("route", "last", "beyond"),
    [
        (("counter",), 2**53, 2**53 + 1),
        (("counter",), 0, -1),
        (("detector", "preprocess", "width"), 65536, 65537),
        (("detector", "preprocess", "scale"), 1e9, 1.1e9),
        (("detector", "preprocess", "scale"), 1e-9, 0.9e-9),
        (("detector", "preprocess", "mean"), [-1e9, 0, 1e9], [-1.1e9, 0, 0]),
        (("detector", "preprocess", "mean"), [0, 0, 0], [0, 0, 1.1e9]),
        (("detector", "preprocess", "mean"), [0, 0, 0], [0, 0]),
        (("detector", "preprocess", "mean"), [0, 0, 0], [0, 0, 0, 0]),
        (("detector", "preprocess", "std"), [1, 1, 1], [1, 1]),
        (("detector", "preprocess", "pad_value"), 0, -1),
        (("detector", "preprocess", "pad_value"), 255, 256),
        (("detector", "head", "strides"), [8] * 16, [8] * 17),
        (("detector", "head", "strides"), [], [0]),
        (("thresholds", "iou"), 0, -0.01),
        (("thresholds", "iou"), 1, 1.01),
        (("files", 1, "length"), 2**31 - 12, 2**31 - 11),
        (("limits", "min_fps"), 1e9, 1.1e9),
        (("limits", "min_fps"), 0, -0.01),
        (("evidence", "retention"), 1e9, 1.1e9),
        (("evidence", "latencies"), [LATENCY] * 64, [LATENCY] * 65),
        (("evidence", "latencies", 0, "ms"), 1e9, 1.1e9),
        (("evidence", "latencies", 0, "ms"), 0, -0.01),
        (("lineage", "stages"), [], [{**STAGE, "name": ""}]),
        (("lineage", "stages"), [STAGE] * 1000, [STAGE] * 1001),
        (("licences",), [LICENCE] * 100, [LICENCE] * 101),
        (("name",), "a", ""),
    ],
)
def test_the_last_value_in_a_range_is_taken_and_none_beyond_it(route: tuple[Any, ...], last: Any, beyond: Any) -> None:
    document = json.loads(to_json(MANIFEST))
    change(*route, to=last)(document)
    from_json(json.dumps(document).encode())
    change(*route, to=beyond)(document)
    with pytest.raises(BundleError, match=r"manifest\."):
        from_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    "value",
    [
        *(MANIFEST, MANIFEST.target, MANIFEST.thresholds, MANIFEST.limits, MANIFEST.evidence, MANIFEST.lineage),
        *(MANIFEST.files[0], MANIFEST.evidence.after, MANIFEST.evidence.latencies[0], MANIFEST.lineage.stages[0]),
        MANIFEST.licences[0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_checked_stays_as_it_was(value: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)


def test_a_manifest_of_a_megabyte_is_taken_and_no_longer_one() -> None:
    spare = 2**20 - len(to_json(replace(MANIFEST, extensions={"x-note": ""})))
    content = to_json(replace(MANIFEST, extensions={"x-note": "a" * spare}))
    assert len(content) == 2**20
    assert to_json(from_json(content)) == content
    with pytest.raises(BundleError, match="at most 1048576 bytes"):
        to_json(replace(MANIFEST, extensions={"x-note": "a" * (spare + 1)}))


def test_a_list_has_at_most_ten_thousand_items() -> None:
    document = json.loads(to_json(MANIFEST))
    change("detector", "classes", to=["a"] * 10_001)(document)
    with pytest.raises(BundleError, match="a list of 1 to 10000 items"):
        from_json(json.dumps(document).encode())


@pytest.mark.parametrize(("length", "shown"), [(78, '"' + "a" * 78 + '"'), (79, '"' + "a" * 76 + "...")])
def test_what_was_found_is_shown_in_80_characters(length: int, shown: str) -> None:
    document = json.loads(to_json(MANIFEST))
    change("counter", to="a" * length)(document)
    with pytest.raises(BundleError) as caught:
        from_json(json.dumps(document).encode())
    assert f"found {shown}" in str(caught.value)
    assert len(shown) == 80


PATHS = [
    *("", "/graph", "..", "../graph", "a/../b", "./a", "a/.", "a//b", "a/", "a\\b", "c:graph", ".hidden", "a/.hidden"),
    *("-rf", "a\0b", "a\nb", "a\n", "é", "~/a", "a*", "a b", "a" * 101, "manifest.json", "Signatures.JSON", 7),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_is_unsafe_somewhere_is_refused(path: Any) -> None:
    document = json.loads(to_json(replace(MANIFEST, files=MANIFEST.files[:1])))
    document["files"][0]["path"] = path
    with pytest.raises(BundleError, match=r"manifest\.files"):
        from_json(json.dumps(document).encode())


@pytest.mark.parametrize(
    "paths", [["a", "a"], ["A", "a"], ["b", "a"], ["a", "a/b"], ["A/b", "a"], ["A/B/c", "a/b"]], ids=" ".join
)
def test_paths_that_a_file_system_could_confuse_are_refused(paths: list[str]) -> None:
    graph, labels = (FileEntry(path, 0, HASH, role) for path, role in zip(paths, ("graph", "labels"), strict=True))
    with pytest.raises(BundleError, match=r"manifest\.files"):
        to_json(replace(MANIFEST, files=(graph, labels)))


def test_the_number_of_files_is_limited() -> None:
    files = [FileEntry(f"{index:06d}", 0, HASH, "labels") for index in range(MAX_FILES)]
    files[0] = replace(files[0], role="graph")
    assert len(from_json(to_json(replace(MANIFEST, files=tuple(files)))).files) == MAX_FILES
    with pytest.raises(BundleError, match="1 to 1024 items"):
        to_json(replace(MANIFEST, files=(*files, FileEntry("z", 0, HASH, "labels"))))


def test_a_name_given_twice_is_refused() -> None:
    content = to_json(MANIFEST).replace(b'"format":1', b'"format":1,"format":1')
    with pytest.raises(BundleError, match="twice"):
        from_json(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"9" * 100_000,
        b'{"format":' + b"9" * 5000 + b"}",
        b"\xff\xfe{\0}\0",
        b"\xef\xbb\xbf{}",
        b" " * (MAX_BYTES + 1),
    ],
    ids=["nested", "digits", "huge format", "utf-16", "byte order mark", "too long"],
)
def test_hostile_json_is_a_bundle_error(content: bytes) -> None:
    with pytest.raises(BundleError):
        from_json(content)


def test_what_cannot_be_read_is_not_written() -> None:
    for broken in (
        replace(MANIFEST, name=""),
        replace(MANIFEST, extensions={"note": 1}),
        replace(MANIFEST, extensions={"name": "other"}),
        replace(MANIFEST, extensions={"x-note": "a" * MAX_BYTES}),
        replace(MANIFEST, extensions={"x-note": object()}),
        replace(MANIFEST, files=()),
    ):
        with pytest.raises(BundleError):
            to_json(broken)
