"""Values of bench/results/*.json, and how docs/reference/results.md writes them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

RESULTS = Path(__file__).parents[1] / "bench" / "results"
OLDER = {
    "large_detector": ("2026-12-01T00", "weights were stored in fp4x"),
    "storage_formats": ("2026-12-01T00", "coded INT8 was not among the formats"),
    "pruning_shapes": ("2026-12-01T05", "channels were chosen by `taylor`"),
    "pruning_refit": ("2026-12-01T05", "channels were chosen by `taylor`"),
    "recovery_30_cpu": ("2026-12-01T05", "channels were chosen by `taylor`"),
    "build_vs_ultralytics": ("2026-12-01T19", "Ultralytics scored on all cores of the machine, edgekd on one"),
    "low_rank": ("2026-12-01T00", "layers behind a product were not refitted"),
}
"""Results that are older than their code: time of the change, and difference. The note is omitted after a later run."""

Row = Mapping[str, Any]


def result(name: str) -> dict[str, Any]:
    """Return the JSON of a benchmark."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text("utf-8")))


def link(name: str, folder: str = "../../", suffix: str = "md") -> str:
    """Return the link to a benchmark's table, with a note if the code has changed since it ran."""
    return f"([table]({folder}bench/results/{name}.{suffix}){age(name)})"


def age(name: str) -> str:
    """Return a note on a result that is older than the code, else an empty string."""
    changed, difference = OLDER.get(name, ("", ""))
    date = result(name)["date"] if changed else ""
    return f"; of {date[:10]}, when {difference}" if date < changed else ""


def wrapped(block: str) -> str:
    """Return a block of Markdown wrapped to 120 characters; tables and headings are unchanged."""
    if block.startswith(("|", "#")):
        return block
    parts = block.replace("\n- ", "\n\0- ").split("\n\0")
    return "\n".join(
        textwrap.fill(
            " ".join(part.split()),
            width=120,
            subsequent_indent="  " if part.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in parts
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    titles = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *rows])


def score(value: float | None) -> str:
    """Return a mAP with four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"  # a no-break space, as cells of tables wrap


def count(value: int) -> str:
    """Return a count with thousands separators; `none` for zero."""
    return f"{value:,}" if value else "none"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def cores(count: int) -> str:
    """Return a number of CPU cores."""
    return "one CPU core" if count == 1 else f"{count} CPU cores"


def megabytes(count: float, digits: int = 2) -> str:
    """Return bytes as MB."""
    return f"{count / 1e6:.{digits}f} MB"


def extent(values: Iterable[float], form: str) -> str:
    """Return the range of values as `MIN to MAX`, or one number if both have the same text."""
    every = sorted(values)
    texts = dict.fromkeys(format(value, form) for value in (every[0], every[-1]))
    return " to ".join(texts)


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def value_at(row: Row, *keys: str) -> Any:
    """Return the value under nested keys, None if one is missing."""
    value: Any = row
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def average(rows: Iterable[Row], *keys: str) -> float | None:
    """Return the mean of a value over the rows that have it, None if none has."""
    values = [value for row in rows if (value := value_at(row, *keys)) is not None]
    return mean(values) if values else None


def share(group: list[Row], whole: list[Row], *keys: str) -> float:
    """Return the mean of a value over rows as a share of its mean over other rows."""
    return (average(group, *keys) or 0.0) / (average(whole, *keys) or 1.0)


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Return the rows of each key, in the order in which keys appear."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each method."""
    return grouped(rows, lambda row: row["method"])


def only(rows: Iterable[Row], **values: Any) -> dict[str, Any]:
    """Return the only row with these values. Raises ValueError for none or several."""
    (row,) = (row for row in rows if all(row.get(name) == value for name, value in values.items()))
    return dict(row)


def detector(model: str) -> str:
    """Return the name of a detector: its file name without suffix."""
    return model.removesuffix(".pt").removesuffix(".onnx")
