"""Mutate valid files a million times, and count how the parsers of untrusted input react.

No mutation of signed or hashed content may be accepted, every refusal must be an error of the error tree, and the
process may grow by at most 64 MB. To reach parsers behind a signature or checksum, mutations are signed again.
"""

import copy
import hashlib
import io
import json
import random
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import tomli_w
import tomllib
from bundle_mutations import NOW, WAYS, attempt, make_victim, taken
from common import HERE
from frame import Blocks, Document, Given, Option, Result, done_in_process, head, main, note, read, table

sys.path.extend(
    str(HERE.parent / "tests" / each) for each in ("", "core/bundle", "data", "deploy", "deploy/devices", "graph")
)
from keys import sealed, signed_by, trust_of

from edgekd.core.bundle import archive, delta, ed25519, manifest, signatures, trust
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import EdgeKDError

EACH = 36_000
SLOW = (
    *("bundle", "bundle_by_format", "manifest_signed", "trust_signed_again", "delta_file", "delta_records"),
    *("target", "answers"),
)
"""Slow parsers, which get a third of EACH: they take milliseconds, mostly for a signature or a bundle."""
QUICK = ("signature_list", "trust_file", "golden", "onnx_file", "description", "contract", "image", "checkpoint")
"""Fast parsers, which get 2.4 times EACH."""
GROWTH = 64 << 20
"""Goal: most bytes by which a process may grow during all mutations of one kind."""
TOKENS = [
    *(b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"null", b"true", b"-", b"0", b"1e999", b"NaN", b"\\ud800"),
    *(b"9" * 30, b"[" * 500, b'{"":' * 50, b"\xff", b"\x00", b"\xf0\x9f\x98\x80", b"../", b"/", b"\n", b" "),
    *(
        bytes(512),
        b"\xff" * 16,
        b"\x00\x01\x02\x03\x04",
        b'"keys":[],',
        b'"format":2,',
        b'"x-":',
        b"9" * 5000,
        b"0x" + b"f" * 5000,
    ),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 10**19, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
    *("", "a", "8.5", "\x1b[2J", "\ud800", "../../etc/passwd", "a" * 5000, "/", "a\0b", "1" * 5000, "float16"),
    *([], {}, [[]], [{}], {"": {}}, [0] * 300, {"a": [1, None]}, 2**20_000),
]
"""Replacement values. TOKENS has further numbers and nesting that only JSON text can express."""


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a few random edits: bits flipped, tokens inserted, ranges replaced, deleted or copied."""
    new = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at, other = chance.randrange(len(new) + 1), chance.randrange(len(new) + 1)
        count = chance.choice((1, 1, 2, 4, 16, 64, 512))
        edit = chance.randrange(7)
        if edit == 0 and at < len(new):
            new[at] ^= 1 << chance.randrange(8)
        elif edit == 1:
            new[at : at + count] = chance.randbytes(count)
        elif edit == 2:
            new[at:at] = chance.choice(TOKENS)
        elif edit == 3:
            new[at : at + count] = chance.choice(TOKENS)
        elif edit == 4:
            del new[at : at + count]
        elif edit == 5:
            new[at:at] = new[other : other + count]
        else:
            del new[at : at + (1 if chance.random() < 0.8 else len(new))]
    return bytes(new)


def with_other_values(document: Any, chance: random.Random) -> Any:
    """Return a copy of plain values with a few of them replaced, moved, repeated or removed."""
    root = [copy.deepcopy(document)]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        places = list(_places(root))
        (holder, key), (source, other) = chance.choice(places), chance.choice(places)
        edit = chance.randrange(8)
        value = copy.deepcopy(source[other] if edit < 3 else chance.choice(VALUES))
        if edit == 7 and holder is not root:
            del holder[key]
        elif edit in (0, 6) and isinstance(holder, list):
            holder.insert(key, value)
        elif edit in (0, 6):
            holder[f"{key}{chance.choice(('', 'x', ' ', 'X'))}"] = value
        else:
            holder[key] = value
    return root[0]


def _places(holder: Any) -> Any:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _places(holder[key])


def as_text(content: bytes, chance: random.Random) -> bytes:
    """Mutate the values of JSON or TOML, or its bytes."""
    if chance.random() < 0.4:
        return mutated(content, chance)
    try:
        if content[:1] == b"{":
            return json_text(with_other_values(json.loads(content), chance), canonical=chance.random() < 0.7)
        return tomli_w.dumps(with_other_values(tomllib.loads(content.decode()), chance)).encode()
    except (AttributeError, TypeError, ValueError):  # the values cannot be serialized
        return mutated(content, chance)


def json_text(value: Any, *, canonical: bool) -> bytes:
    return canonical_json(value) + b"\n" if canonical else json.dumps(value).encode()


class Parser(NamedTuple):
    """make: returns a mutated input; read: parses it, and returns whether it was wrongly accepted."""

    make: Callable[[random.Random], Any]
    read: Callable[[Any], bool]


def of_bytes(valid: bytes, read: Callable[[bytes], object], change: Any = mutated) -> Parser:
    """Return the parser of a file without signature or hash: any content that keeps the format may be read."""

    def parse(content: bytes) -> bool:
        read(content)
        return False

    parse(valid)
    return Parser(lambda chance: change(valid, chance), parse)


def of_covered(valid: bytes, let_in: Callable[[bytes], bool], change: Any = mutated) -> Parser:
    """Return the parser of a signed or hashed file, of which only the valid content may be accepted."""
    return Parser(lambda chance: change(valid, chance), lambda content: content != valid and let_in(content))


def of_file(path: Path, read: Callable[[Path], object], change: Any = mutated) -> Parser:
    """Return the parser of a file that is read from a path."""

    def parse(content: bytes) -> None:
        path.write_bytes(content)
        read(path)

    return of_bytes(path.read_bytes(), parse, change)


# ------------------------------------------------------------------------------------------- bundles, deltas and trust


class Bundles:
    """A signed bundle, an older one, the delta between them, and the trust file."""

    def __init__(self, folder: Path) -> None:
        from test_archive import manifest_of, write_sources
        from test_hostile import network

        from edgekd.deploy.delta import run as make_delta

        self.old, self.new = folder / "old", folder / "new"
        for number, path in enumerate((self.old, self.new)):
            contents = {"a.txt": b"old new"[number * 4 :] * 400, "graph.packed": network(number // 2, layers=1)}
            sources = write_sources(folder / f"sources{number}", contents)
            archive.pack(manifest_of(sources), sources, path)
            identity = archive.read_head(path).identity
            archive.replace_signatures(path, signed_by("bundle", identity, 1), path)
        archive.extract(self.old, folder / "files")
        make_delta(self.old, self.new, folder / "delta")
        self.folder, self.mutated = folder, folder / "mutated"
        self.bundle, self.delta = self.new.read_bytes(), (folder / "delta").read_bytes()
        self.head = archive.read_head(self.new)
        self.begin = 1024 + len(archive.head_members(self.head))
        self.records = self.delta[self.begin + 512 :][: int(self.delta[self.begin :][124:135], 8)]
        self.trust = sealed(trust_of(), 8, 9)

        from edgekd.agent.trust_state import head_judge

        self.judge = head_judge(self.trust, NOW)

    def verified(self, content: bytes) -> bool:
        self.mutated.write_bytes(content)
        archive.verify(self.mutated, self.judge)
        return True

    def under_old_signature(self, content: bytes) -> bool:
        """Verify the bundle with this manifest and its hash, and the old signature."""
        envelope = signatures.SignatureEnvelope(hashlib.sha256(content).hexdigest(), self.head.envelope.signatures)
        members = archive.member("manifest.json", content)
        members += archive.member("signatures.json", signatures.to_json(envelope))
        return self.verified(members + self.bundle[len(archive.head_members(self.head)) :])

    def rebuilt(self, content: bytes) -> bool:
        """Return whether a delta rebuilds a bundle that differs from the valid one."""
        self.mutated.write_bytes(content)
        out = io.BytesIO()
        with delta.OldBundle(self.folder / "files") as old, delta.opened_delta(self.mutated, self.judge) as reader:
            reader.rebuild(old, out)
        return out.getvalue() != self.bundle

    def with_records(self, content: bytes) -> bool:
        return self.rebuilt(self.delta[: self.begin] + archive.member(delta.DATA, content) + archive.END)


def bundle(folder: Path) -> Parser:
    """Signed bundle"""
    made = Bundles(folder)
    assert made.verified(made.bundle)
    return of_covered(made.bundle, made.verified)


def bundle_by_format(folder: Path) -> Parser:
    """Signed bundle, in 15 ways that know the format, some with its key"""
    victim, path = make_victim(folder), folder / "met.edgekd"
    return Parser(
        lambda chance: attempt(chance.choice(WAYS), chance, victim), lambda content: taken(content, victim, path)
    )


def manifest_signed(folder: Path) -> Parser:
    """Manifest, with its hash under the old signature"""
    made = Bundles(folder)
    return of_covered(made.head.content, made.under_old_signature, as_text)


def manifest_alone(folder: Path) -> Parser:
    """Manifest, where nobody has to sign it"""
    return of_bytes(
        Bundles(folder).head.content,
        lambda each: manifest.from_json(manifest.to_json(manifest.from_json(each))),
        as_text,
    )


def signature_list(folder: Path) -> Parser:
    """Signatures, which have one form"""

    def read(content: bytes) -> None:
        assert signatures.to_json(signatures.from_json(content)) == content

    return of_bytes(signatures.to_json(Bundles(folder).head.envelope), read, as_text)


def trust_file(folder: Path) -> Parser:
    """Trust file"""

    def complete(content: bytes) -> bool:
        trust.require_complete(trust.from_json(content))
        return True

    valid = trust.to_json(sealed(trust_of(), 8, 9))
    assert complete(valid)
    return of_covered(valid, complete, as_text)


def trust_signed_again(folder: Path) -> Parser:
    """Trust file, signed again by its keys"""

    def change(content: bytes, chance: random.Random) -> bytes:
        document = with_other_values(json.loads(content), chance)
        try:
            sha256 = hashlib.sha256(canonical_json(document["signed"])).hexdigest()
            return json_text(
                {**document, "signatures": signatures.listed(signed_by("trust", sha256, 8, 9))}, canonical=True
            )
        except (KeyError, TypeError, ValueError):
            return mutated(content, chance)

    def read(content: bytes) -> None:
        trust.require_complete(trust.from_json(content))

    return of_bytes(trust.to_json(sealed(trust_of(), 8, 9)), read, change)


def delta_file(folder: Path) -> Parser:
    """Delta of a signed bundle"""
    made = Bundles(folder)
    assert not made.rebuilt(made.delta)
    return of_covered(made.delta, made.rebuilt)


def delta_records(folder: Path) -> Parser:
    """Records of a delta"""
    made = Bundles(folder)
    return of_covered(made.records, made.with_records)


# --------------------------------------------------------------------------------------------------- networks, frames


def packed(folder: Path) -> Parser:
    """Packed graph, with the checksum that fits it"""
    import numpy as np
    from onnx import numpy_helper
    from small_graph import small_model

    from edgekd.core.formats import packed_graph
    from edgekd.core.formats.packed_layout import PREFIX
    from edgekd.deploy.artifact import expanded

    model = small_model()
    coarse = 3 * np.random.default_rng(0).integers(-9, 10, (8, 2, 3, 3)).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(coarse, "coarse"))  # stored in coded INT8
    onnx = model.SerializeToString()
    valid, out = packed_graph.pack(onnx), folder / "graph.onnx"
    _, version, _, stored, _ = PREFIX.unpack_from(valid)
    header, streams = packed_graph.parts(valid)[packed_graph.HEADER], valid[PREFIX.size + stored :]

    def change(_: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.1:
            return mutated(valid, chance)
        new = (
            (as_text(header, chance).rstrip(b"\n"), streams)
            if chance.random() < 0.5
            else (header, mutated(streams, chance))
        )
        return packed_graph._assembled(version, new[0], [new[1]])

    def another(content: bytes) -> bool:
        (folder / "a.packed").write_bytes(content)
        expanded(folder / "a.packed", out)
        return out.read_bytes() != onnx

    assert not another(valid)
    return of_covered(valid, another, change)


def golden(folder: Path) -> Parser:
    """Golden set, compressed again"""
    from edgekd.agent.state.golden import batches, read_golden
    from edgekd.core.formats import golden_set

    rng = np.random.default_rng(0)
    frames = golden_set.coarse(rng.integers(0, 256, (2, 8, 8, 3), np.uint8))
    places, values = rng.integers(0, 100, (2, 4)).astype(np.uint32), rng.normal(size=(2, 4, 7)).astype(np.float16)
    valid = golden_set.to_bytes(
        golden_set.GoldenSet("int8", (0.01, 0.25), (1, 7, 100), zoom=8, frames=frames, places=places, values=values)
    )
    prefix = golden_set._PREFIX
    begin = prefix.size + prefix.unpack_from(valid)[2]
    header, content = valid[prefix.size : begin], zlib.decompress(valid[begin:], -zlib.MAX_WBITS)

    def change(_: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.2:
            return mutated(valid, chance)
        new = as_text(header, chance).rstrip(b"\n") if chance.random() < 0.7 else header
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        rest = deflate.compress(content if new != header else mutated(content, chance)) + deflate.flush()
        return prefix.pack(golden_set.MAGIC, golden_set.FORMAT, len(new)) + new + rest

    (folder / "golden").write_bytes(valid)
    slot: Any = SimpleNamespace(
        name="a", file=lambda role: folder / "golden", manifest=SimpleNamespace(detector=spec_document())
    )

    def read(path: Path) -> None:
        found = read_golden(slot)
        next(batches(found.set, found.spec))

    return of_file(folder / "golden", read, change)


def spec_document() -> Any:
    from edgekd.core.detection.types import DetectorSpec, Head, Preprocess

    return json.loads(json.dumps(asdict(DetectorSpec(("a", "b"), Preprocess(64, 64), Head("yolo")))))


def onnx_file(folder: Path) -> Parser:
    """ONNX file, before a library reads it"""
    from test_untrusted_onnx import outside, saved

    from edgekd.graph.model_file import require_safe

    (folder / "w.bin").write_bytes(bytes(48))
    return of_file(saved(outside("w.bin", offset=0, length=48), folder), require_safe)


def description(folder: Path) -> Parser:
    """Metadata of an ONNX graph that describe its detector"""
    from onnx import TensorProto, helper
    from test_generated_files import SPEC_KEY, describe, graph_with

    def change(valid: bytes, chance: random.Random) -> dict[str, str]:
        text = as_text(valid, chance).decode("utf-8", "replace").replace("\0", "")
        return {chance.choice((SPEC_KEY, SPEC_KEY, "names", "imgsz", "stride")): text.replace("\0", "")}

    def read(metadata: dict[str, str]) -> bool:
        model = graph_with({"names": "{0: 'a', 1: 'b'}", **metadata})
        if SPEC_KEY not in metadata:
            model.graph.output[0].CopyFrom(helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 84]))
        describe(model, Path("m.onnx"), None if SPEC_KEY in metadata else "yolo")
        return False

    return Parser(partial(change, canonical_json(spec_document())), read)


def contract(folder: Path) -> Parser:
    """Contract of a converted folder"""
    from edgekd.deploy.converters.contract import NAME, read_contract

    document = {"format": "onnx", "entry": "m", "engine": None, "detector": spec_document()}
    (folder / NAME).write_bytes(canonical_json(document))
    return of_file(folder / NAME, lambda _: read_contract(folder), as_text)


def image(folder: Path) -> Parser:
    """Image, before a library decodes it"""
    from edgekd.core.errors import DataError
    from edgekd.data.image_headers import require_small

    valid = [
        cv2.imencode(f".{kind}", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
        for kind in ("png", "jpg", "tiff", "webp", "bmp")
    ]

    def read(content: bytes) -> bool:
        try:
            require_small(content)
        except ValueError as error:
            raise DataError(str(error)) from error  # as `read_image` does
        return False

    return Parser(lambda chance: mutated(chance.choice(valid), chance), read)


def checkpoint(folder: Path) -> Parser:
    """Checkpoint, before PyTorch reads it"""
    import torch

    from edgekd.detectors.checkpoint_scan import scan_checkpoint

    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "a.pt")
    return of_file(folder / "a.pt", scan_checkpoint)


# --------------------------------------------------------------------------------------------- hand-written text files


def plan(folder: Path) -> Parser:
    """Plan of number formats"""
    from edgekd.compress.quantization.plan import Plan, PlannedLayer, load_plan, plan_toml

    layers = tuple(PlannedLayer(f"layer{each}", "int8", 100, 90, 0.001) for each in range(3))
    (folder / "plan.toml").write_text(plan_toml(Plan(layers, "0" * 64, 270, 0.003, 300)))
    return of_file(folder / "plan.toml", load_plan, as_text)


def recipe(folder: Path) -> Parser:
    """Recipe"""
    from edgekd.builds.recipe import load_recipe, recipe_names

    texts = [(resources.files("edgekd.builds.recipes") / f"{name}.toml").read_bytes() for name in recipe_names()]
    path = folder / "recipe.toml"
    path.write_bytes(texts[0])
    return of_file(path, load_recipe, lambda _, chance: as_text(chance.choice(texts), chance))


def target(folder: Path) -> Parser:
    """Target"""
    from edgekd.hardware.target import cache_version, explain, load_target, opset_for, target_names, to_dict

    texts = [(resources.files("edgekd.targets") / f"{name}.toml").read_bytes() for name in target_names()]
    path = folder / "target.toml"
    path.write_bytes(texts[0])

    def read(path: Path) -> None:
        found = load_target(path)
        assert [explain(found), to_dict(found), opset_for(found)]
        assert cache_version(found) or not found.strongly_typed or found.name is not None

    return of_file(path, read, lambda _, chance: as_text(chance.choice(texts), chance))


def fleet(folder: Path) -> Parser:
    """List of a fleet's boards"""
    from edgekd.deploy.fleet import load_fleet

    (folder / "fleet.toml").write_text(
        'uploads = 2\n[[boards]]\nname = "a"\ndevice = "ssh://root@cam:22"\n[[boards]]\nname = "b"\ndevice = "null"\n'
    )
    return of_file(folder / "fleet.toml", load_fleet, as_text)


def dataset(folder: Path) -> Parser:
    """Data set in COCO's format, or its YAML"""
    from test_untrusted_data import coco, yolo

    from edgekd.data.dataset import load_dataset

    files = coco(folder / "coco"), yolo(folder / "yolo")
    texts = [file.read_bytes() for file in files]

    def make(chance: random.Random) -> tuple[int, bytes]:
        number = chance.randrange(2)
        return number, as_text(texts[number], chance) if number == 0 else mutated(texts[number], chance)

    def read(made: tuple[int, bytes]) -> bool:
        files[made[0]].write_bytes(made[1])
        load_dataset(files[made[0]]).split(("val", "train")[made[0]])
        return False

    return Parser(make, read)


# ------------------------------------------------------------------------------------------------ answers and evidence


def answers(folder: Path) -> Parser:
    """Answers of a camera's agent"""
    from test_hostile_device import HONEST, IDENTITY, Agent, Contents, installed, print_engine, to_plain

    path = folder / "a.edgekd"
    path.write_bytes(b"bundle")
    named: Any = SimpleNamespace(name="a", target=SimpleNamespace(name="xavier"), role=None)
    files = path, Contents(named, IDENTITY, path, None, path)
    whole = [json.dumps({"error": None, "result": result}).encode() for result in HONEST.values()]
    error = {"kind": "HashError", "what": "a", "expected": None, "found": None, "fix": None}
    whole.append(json.dumps({"error": error, "result": None}).encode())

    def make(chance: random.Random) -> Agent:
        if chance.random() < 0.3:
            return Agent({}, as_text(chance.choice(whole), chance).decode("utf-8", "replace"))
        command = chance.choice(list(HONEST))
        try:
            result = json.loads(json.dumps(with_other_values(HONEST[command], chance)))
        except ValueError:  # an integer of thousands of digits cannot be formatted
            result = None
        return Agent({**HONEST, command: result})

    def read(agent: Agent) -> bool:
        report, shown = installed(files, agent), io.StringIO()
        with redirect_stdout(shown):
            print_engine(report)
        json.dumps(to_plain(report), allow_nan=False)
        return not shown.getvalue().replace("\n", "").isprintable()

    return Parser(make, read)


PARSERS: tuple[Callable[[Path], Parser], ...] = (
    *(bundle, bundle_by_format, manifest_signed, manifest_alone, signature_list, trust_file, trust_signed_again),
    *(delta_file, delta_records, packed, golden, onnx_file, description, contract, image, checkpoint),
    *(plan, recipe, target, fleet, dataset, answers),
)


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def tried(parser: str, each: int, folder: str) -> Result:
    """Run a parser on `each` mutations in this process. The random generator is seeded with the parser's name."""
    make, read = {known.__name__: known for known in PARSERS}[parser](Path(folder))
    chance = random.Random(parser)
    ed25519.verify = lru_cache(maxsize=10_000)(ed25519.verify)  # 5 ms in pure Python, mostly for one signature
    counts = {"refused": 0, "read": 0, "accepted": 0, "crashes": 0}
    first: dict[str, str] = {}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    before = peak_bytes()
    for _ in range(each):
        attempt = make(chance)
        try:
            outcome = "accepted" if read(attempt) else "read"
        except EdgeKDError:
            outcome = "refused"
        except Exception as error:  # any other error counts as a crash
            outcome = "crashes"
            first.setdefault(f"{type(error).__name__}: {error}"[:200], str(attempt)[:300])
        counts[outcome] += 1
    return {**counts, "growth_bytes": peak_bytes() - before, "found": dict(list(first.items())[:5])}


def run(given: Given) -> Result:
    def row(number: int) -> Result:
        parser = PARSERS[number]
        (given.scratch / parser.__name__).mkdir()
        folder = str(given.scratch / parser.__name__)
        note(parser.__name__)
        factor = 1 / 3 if parser.__name__ in SLOW else 2.4 if parser.__name__ in QUICK else 1
        each = round(given.each * factor)
        found = done_in_process(tried, parser=parser.__name__, each=each, folder=folder)
        return {"parser": (parser.__doc__ or "").strip(), "attempts": each, **found}

    kept = read(given.out.read_text("utf-8")).rows if given.again else []
    chosen = [at for at, parser in enumerate(PARSERS) if not given.again or parser.__name__ in given.again]
    with ThreadPoolExecutor(given.processes) as pool:
        new = {row["parser"]: row for row in [*kept, *pool.map(row, chosen)]}
    rows = list(new.values())
    return {**{name: sum(row[name] for row in rows) for name in ("attempts", "accepted", "crashes")}, "rows": rows}


def page(found: Document) -> Blocks:
    yield from head("Mutated input", found)
    yield (
        f"{found.attempts:,} mutations of valid files. Refused: by an error of edgekd's error tree. Read: it keeps the "
        "rules of a format that nothing covers, or nothing that matters has changed. Accepted: although a signature or "
        "hash covers it, or with text that changes a terminal. Crashes: any other error. The chance is seeded."
    )
    yield table(
        "input | attempts | refused | read | accepted | crashes | growth MB",
        (
            f"{row.parser} | {row.attempts:,} | {row.refused:,} | {row.read:,} | {row.accepted} | {row.crashes} | "
            f"{row.growth_bytes / 1e6:.1f}"
            for row in found.rows
        ),
    )


def as_claimed(found: Document) -> bool:
    """Return whether nothing was accepted, nothing crashed, and no process grew by more than GROWTH."""
    return not (found.accepted or found.crashes) and all(row.growth_bytes <= GROWTH for row in found.rows)


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--each", EACH, "mutations for each parser (%(default)s)"),
        Option("--again", help="functions of this file: measure these again, keep the other rows", nargs="+"),
        Option("--processes", 2, "at a time (%(default)s)"),
        holds=as_claimed,
        cores=2,
    )
