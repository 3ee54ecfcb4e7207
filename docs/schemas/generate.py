"""Write the JSON schemas beside this file, and the pages of keys and of errors, from types: `make schemas`.

A frozen dataclass becomes an object; all fields are required, except those marked as OPTIONAL. The description of the
object is the summary of its docstring. The description of a field is its entry in the section `Args:`, or the summary
of the field's own dataclass.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import key_tables

import edgekd.agent
from edgekd.agent import commands, installation
from edgekd.agent.bench import EngineBenchResult
from edgekd.agent.cameras.statistics import ServiceStatus
from edgekd.agent.cli import Answer
from edgekd.agent.engines.selftest import SelfTestResult
from edgekd.agent.fetching import FetchResult
from edgekd.agent.rebuild_engine import RenewResult
from edgekd.agent.status import StatusResult
from edgekd.agent.tuning import TuneResult
from edgekd.agent.validation.coordinator import ResultDocument, ValidationSummary
from edgekd.builds.ledger import Ledger
from edgekd.builds.run import BuildResult
from edgekd.builds.run_progress import RunProgress
from edgekd.commands.check import Checked
from edgekd.commands.compare import Compared
from edgekd.commands.describe import Described
from edgekd.commands.distill import Distilled
from edgekd.commands.doctor import Check
from edgekd.commands.evaluate import Scored
from edgekd.commands.factorize import Factorized
from edgekd.commands.keygen import NewKey
from edgekd.commands.profile import ProfileResult
from edgekd.commands.prune import Pruned
from edgekd.commands.quantize import Quantized
from edgekd.commands.ui import Served
from edgekd.commands.validate_report import JudgedEvidence
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import INTERNAL, OPTIONAL
from edgekd.core.errors import CAUSES, EdgeKDError
from edgekd.deploy.converters.result import Converted
from edgekd.deploy.delta import DeltaResult
from edgekd.deploy.engine_report import InstallReport
from edgekd.deploy.fleet import FleetReport
from edgekd.deploy.signing.signed import Verified
from edgekd.deploy.variant import Variant
from edgekd.evaluation.bench_result import BenchResult
from edgekd.evaluation.report.document import Analysed
from edgekd.evaluation.search_result import SearchResult
from edgekd.hardware.predict.result import PredictResult
from edgekd.hardware.target import Target

FOLDER = Path(__file__).parent
KEYS_PAGE = FOLDER.parent / "reference" / "json-keys.md"
ERROR_PAGE = FOLDER.parent / "reference" / "errors.md"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclasses.dataclass(frozen=True)
class ManifestDocument(Manifest):
    """The manifest of a bundle.

    Args:
        detector: The contract of the network.
        role: Name of the only model of a camera that may take the bundle; absent for any.
        format: Version of the format.
    """

    detector: DetectorSpec  # type: ignore[assignment]
    role: str = dataclasses.field(default="", metadata=OPTIONAL)
    extensions: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata=INTERNAL)
    format: typing.Literal[1] = 1


AgentResult = (
    installation.InstallResult
    | installation.CommitResult
    | installation.BootResult
    | FetchResult
    | commands.PatchResult
    | commands.VerifyResult
    | commands.TrustResult
    | commands.UnpackResult
    | commands.BuildReport
    | TuneResult
    | SelfTestResult
    | EngineBenchResult
    | StatusResult
    | commands.ServiceChange
    | RenewResult
    | ValidationSummary
    | None
)
"""Results of the agent's commands."""
DOCUMENTS: Mapping[str, tuple[str, Any]] = {
    "adapt": ("`edgekd adapt --json`", Variant),
    "agent": ("Output of every command of the agent", Answer[AgentResult]),
    "bench": ("`edgekd bench --json`", BenchResult),
    "build": ("`edgekd build --json` and `edgekd demo --json`", BuildResult),
    "cameras": ("Status of the service of several cameras", ServiceStatus),
    "check": ("`edgekd check --json`", Checked),
    "compare": ("`edgekd compare --json`", Compared),
    "convert": ("`edgekd convert --json`", Converted),
    "delta": ("`edgekd delta --json`", DeltaResult),
    "describe": ("`edgekd describe --json`", Described),
    "distill": ("`edgekd distill --json`, and the file distill.json", Distilled),
    "doctor": ("`edgekd doctor --json`", tuple[Check, ...]),
    "engine": ("`edgekd engine --device DEVICE --json`", InstallReport),
    "eval": ("`edgekd eval --json`", Scored),
    "factorize": ("`edgekd factorize --json`, and the file factorize.json", Factorized),
    "fleet": ("`edgekd engine --fleet FILE --json`", FleetReport),
    "inspect": ("`edgekd inspect --json`: the manifest of a bundle, format 1", ManifestDocument),
    "keygen": ("`edgekd keygen --json`", NewKey),
    "ledger": ("The file ledger.json of a build", Ledger),
    "predict": ("`edgekd predict --json`", PredictResult),
    "profile": ("`edgekd profile --json`", ProfileResult),
    "progress": (
        "The file progress.json of `edgekd build`, `quantize`, `prune`, `factorize`, `distill` and `engine --fleet`",
        RunProgress,
    ),
    "prune": ("`edgekd prune --json`, and the file prune.json", Pruned),
    "quantize": ("`edgekd quantize --json`, and the file quantize.json", Quantized),
    "report": ("`edgekd report --json`", Analysed),
    "search": ("The file search.json of `edgekd build --search`", SearchResult),
    "signed": ("`edgekd verify`, `sign`, `trust` and `pack` with `--json`", Verified),
    "targets": ("`edgekd targets --json` (a list) and `edgekd targets NAME --json` (one)", tuple[Target, ...] | Target),
    "ui": ("`edgekd ui --json`", Served),
    "validate_report": ("`edgekd validate-report --json`", JudgedEvidence),
    "validation": ("The `result.json` of a validation on hardware", ResultDocument),
}
"""Title and type of each document by the name of its file."""

_SCALARS = {str: "string", Path: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_ARRAYS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)
_ENTRY = re.compile(r" {4}(?P<names>\w+(?:, \w+)*): (?P<text>.+)")
LINE_LENGTH = 120
"""Maximum number of characters in a line of a file, unless a single value is longer."""
ADDITIONS = {"inspect": {"patternProperties": {"^x-": {"description": "An extension, without a meaning here."}}}}
"""Schema keywords that no type expresses, by document."""


class SchemaError(Exception):
    """A type that has no schema, or lacks a description."""


def schema(name: str, title: str, kind: Any) -> dict[str, Any]:
    """Return the schema of a document. Raises SchemaError for a type without schema or description."""
    definitions = Definitions()
    root = definitions.object_of(kind) if _is_object(kind) else definitions.schema_of(kind, title)
    definitions.complete()
    found = {"$schema": DIALECT, "$id": f"{name}.json", "title": title, **root, **ADDITIONS.get(name, {})}
    return {**found, "$defs": definitions.schemas} if definitions.schemas else found


class Definitions:
    """Schemas of the dataclasses that a document refers to, by name (`$defs`)."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}

    def complete(self) -> None:
        """Add the schemas of all classes that are referred to, directly or indirectly."""
        while missing := [name for name in self._kinds if name not in self.schemas]:
            for name in missing:
                self.schemas[name] = self.object_of(self._kinds[name])
        self.schemas = dict(sorted(self.schemas.items()))

    def object_of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a dataclass or TypedDict with all of its fields. Raises SchemaError."""
        properties, fields = self._properties(kind), _documented_fields(_class(kind))
        described = {"type": "object", "description": summary(_class(kind))}
        required = [name for name in properties if not fields.get(name, {}).get("optional")]
        return {**described, "properties": properties, "required": required}

    def _properties(self, kind: Any) -> dict[str, Any]:
        texts, hints, properties = field_descriptions(_class(kind)), _hints(kind), dict[str, Any]()
        for name, metadata in _documented_fields(_class(kind)).items():
            hint = hints[name]
            own = self._properties(hint) if metadata.get("inline") else {name: self._property(kind, name, hint, texts)}
            if repeated := own.keys() & properties.keys():
                raise SchemaError(f"{_class(kind).__name__}.{name}: keys {sorted(repeated)} are there twice")
            properties.update(own)
        return properties

    def _property(self, kind: Any, name: str, hint: Any, texts: Mapping[str, str]) -> dict[str, Any]:
        """Return the schema of a field. Raises SchemaError if it has no description."""
        where = f"{_class(kind).__module__}.{_class(kind).__qualname__}.{name}"
        found = self.schema_of(hint, where)
        if name in texts:
            return {**found, "description": texts[name]}
        members = [each for each in _members(hint) if each is not types.NoneType]
        if not all(map(_is_object, members)):
            raise SchemaError(f"{where}: no description in the `Args:` of its class")
        return found if "$ref" in found else {**found, "description": summary(_class(members[0]))}

    def schema_of(self, hint: Any, where: str) -> dict[str, Any]:
        """Return the schema of an annotation. Raises SchemaError for a type that JSON does not have."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in _SCALARS:
            return {"type": _SCALARS[hint]}
        if hint is object:  # raw JSON
            return {}
        if _is_object(hint):
            return self._reference(hint)
        if origin in (typing.Union, types.UnionType):
            return self._union(hint, where)
        if origin is typing.Literal:
            return {"enum": list(arguments)}
        if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
            return self._array(tuple(typing.get_type_hints(hint).values()), where)
        if origin in _ARRAYS:
            return self._array(arguments, where)
        if origin in _MAPPINGS:
            keys, values = (self.schema_of(each, where) for each in arguments)
            named = {"propertyNames": keys} if "enum" in keys else {}
            return {"type": "object", **named, "additionalProperties": values}
        raise SchemaError(f"{where}: {hint} has no schema")

    def _reference(self, kind: Any) -> dict[str, Any]:
        name = _name(kind)
        known = self._kinds.setdefault(name, kind)
        if known != kind:
            raise SchemaError(f"two classes are called {name}: in {known.__module__} and {kind.__module__}")
        return {"$ref": f"#/$defs/{name}"}

    def _union(self, hint: Any, where: str) -> dict[str, Any]:
        members = [self.schema_of(each, where) for each in _members(hint)]
        if all(member.keys() == {"type"} for member in members):
            return {"type": [member["type"] for member in members]}
        if len(members) == 2 and members[1] == {"type": "null"} and members[0].keys() == {"enum"}:
            return {"enum": [*members[0]["enum"], None]}
        return {"anyOf": members}

    def _array(self, arguments: tuple[Any, ...], where: str) -> dict[str, Any]:
        items = [self.schema_of(each, where) for each in arguments if each is not Ellipsis]
        if len(arguments) == 1 or Ellipsis in arguments:
            return {"type": "array", "items": items[0]}
        if all(each == items[0] for each in items):
            return {"type": "array", "items": items[0], "minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def summary(kind: Any) -> str:
    """Return the first paragraph of a class's docstring. Raises SchemaError if it has none."""
    text = inspect.cleandoc(kind.__doc__ or "")
    if not text or text.startswith(f"{kind.__name__}("):  # the signature, which `dataclass` writes
        raise SchemaError(f"{kind.__module__}.{kind.__qualname__}: no docstring")
    return " ".join(text.partition("\n\n")[0].split())


def field_descriptions(kind: Any) -> dict[str, str]:
    """Return the `Args:` entries of a class and its bases by name. Raises SchemaError for a name that is no field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        found.update(_entries(inspect.cleandoc(base.__dict__.get("__doc__") or "")))
    if unknown := found.keys() - typing.get_type_hints(kind).keys():
        raise SchemaError(f"{kind.__module__}.{kind.__qualname__}: describes {sorted(unknown)}, which are no fields")
    return found


def _entries(docstring: str) -> dict[str, str]:
    """Return the entries of the section `Args:` by name, with their continuation lines."""
    lines = iter(docstring.partition("Args:\n")[2].splitlines())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line.startswith(" " * 8):
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        elif entry := _ENTRY.fullmatch(line):
            names = entry["names"].split(", ")
            found.update(dict.fromkeys(names, entry["text"]))
        else:
            break
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, else the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _class(kind: Any) -> Any:
    """Return the class of a generic one with arguments, else the class itself."""
    return typing.get_origin(kind) or kind


def _name(kind: Any) -> str:
    """Return the name of a class, with the arguments of a generic one."""
    arguments = "".join(f"_{re.sub(r'[^A-Za-z0-9]+', '_', _text(each))}" for each in typing.get_args(kind))
    return f"{_class(kind).__name__}{arguments}".rstrip("_")


def _text(kind: Any) -> str:
    return str(kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""))


def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of the fields by name; type variables of a generic class are replaced by its arguments."""
    bound = dict(zip(getattr(_class(kind), "__parameters__", ()), typing.get_args(kind), strict=False))
    return {name: bound.get(hint, hint) for name, hint in typing.get_type_hints(_class(kind)).items()}


def _is_object(kind: Any) -> bool:
    found = _class(kind)
    return isinstance(found, type) and (dataclasses.is_dataclass(found) or typing.is_typeddict(found))


def _documented_fields(kind: Any) -> dict[str, Mapping[Any, Any]]:
    """Return the metadata of the fields that are written, by name."""
    if not dataclasses.is_dataclass(kind):
        return {name: {} for name in typing.get_type_hints(kind)}
    return {field.name: field.metadata for field in dataclasses.fields(kind) if not field.metadata.get("internal")}


def text_of(name: str) -> str:
    """Return the content of a schema's file. Raises SchemaError."""
    return _formatted(schema(name, *DOCUMENTS[name]), indent=0) + "\n"


def _formatted(value: Any, indent: int) -> str:
    """Return JSON text: a value that fits is on one line, others have one line per entry."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(line) + indent < LINE_LENGTH:
        return line
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {_formatted(each, indent + 2)}" for key, each in value.items()]
    else:
        entries = [_formatted(each, indent + 2) for each in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inner = f",\n{' ' * (indent + 2)}".join(entries)
    return f"{opening}\n{' ' * (indent + 2)}{inner}\n{' ' * indent}{closing}"


def keys_page() -> str:
    """Return docs/reference/json-keys.md. Raises SchemaError."""
    return key_tables.page({name: schema(name, *document) for name, document in DOCUMENTS.items()})


ERROR_TEXT = """# Errors

<!-- Written by docs/schemas/generate.py (`make schemas`) from the classes of errors: do not edit. -->

An error has a kind, the name of its class: `error.kind` in [what the agent prints](agent.md#output)
and in the result of a [fleet](../guides/devices.md), and the class that a [Python](../guides/python.md) caller
catches. Texts of errors are for people, and change; kinds and causes are [as lasting as keys](json.md#the-promise).
New kinds may come, each derived from one that is here.

| kind | derived from | meaning |
|---|---|---|
{kinds}

Where a [trust file](formats/trust-file.md) does not accept a file, the `SignatureError` has a cause,
`error.cause` in what the agent prints; it is null for other problems. Of several causes the first in this order
counts: `revoked-key`, `expired-key`, `too-few`, `unknown-key`, `unsigned`; `found` lists the key of each
signature. Signatures of unknown and revoked keys cannot be verified: anybody can add one, which changes the
cause, and not what is accepted.

| cause | meaning |
|---|---|
{causes}
"""


def error_page() -> str:
    """Return the page of the kinds of errors that an agent or a command may report."""
    for module in pkgutil.walk_packages(edgekd.agent.__path__, "edgekd.agent."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    kinds = (
        f"| `{kind.__name__}` | `{kind.__bases__[0].__name__}` | {_sentence(kind)} |"
        for kind in error_kinds(EdgeKDError)
    )
    causes = (f"| `{cause}` | {meaning} |" for cause, meaning in CAUSES.items())
    return ERROR_TEXT.format(kinds="\n".join(kinds), causes="\n".join(causes))


def error_kinds(kind: type[EdgeKDError]) -> Iterator[type[EdgeKDError]]:
    """Yield an error class, and its subclasses that `core` or the agent defines."""
    yield kind
    for derived in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
        if derived.__module__.startswith(("edgekd.core.", "edgekd.agent.")):
            yield from error_kinds(derived)


def _sentence(kind: type) -> str:
    """Return the first sentence of the docstring."""
    return re.split(r"(?<=\.) ", summary(kind))[0]


def main() -> None:
    """Write every schema, and the pages of keys and errors."""
    for name in DOCUMENTS:
        (FOLDER / f"{name}.json").write_text(text_of(name), "utf-8")
    KEYS_PAGE.write_text(keys_page(), "utf-8")
    ERROR_PAGE.write_text(error_page(), "utf-8")


if __name__ == "__main__":
    main()
