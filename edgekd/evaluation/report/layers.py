"""The section on layers: bits, bytes, time, error and similarity of each, from the first to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekd.evaluation.analysis.types import Compared, Inside
from edgekd.evaluation.report import charts, curves, text
from edgekd.evaluation.report.markup import Html, details, join, section, table, tag
from edgekd.evaluation.report.types import LayerRow, Report

CHART_ROWS = 20
Column = tuple[str, Callable[[LayerRow], str]]


def layers_section(report: Report) -> Html:
    """The largest layers as a chart, all of them as bands and as a table."""
    rows, inside = report.layers, report.inside
    if not rows:
        return Html()
    listed = sorted(rows, key=_weight, reverse=True)[:CHART_ROWS]
    which = "The layers" if len(listed) == len(rows) else f"The {len(listed)} largest of {len(rows)} layers"
    why = f"{which} that hold weights, the largest first. Bits are stored bits per weight, scales included."
    if _estimated(rows):
        why += " Error is a layer’s part of what quantizing was estimated to cost, on calibration frames."
    columns = _stored(_estimated(rows))
    heads = tuple(name for name, _ in columns)
    largest = _weight(listed[0])
    cells = (
        (
            _plotted(_path(r.name), charts.size_strip(r.bytes_before, r.bytes_after, largest)),
            *(value(r) for _, value in columns),
        )
        for r in listed
    )
    every = [*_named(), *columns, *(_seen(rows, inside) if inside else ())]
    every_cells = [tuple(value(row) for _, value in every) for row in rows]
    all_of_them = table(
        "Every layer with weights, in graph order",
        tuple(name for name, _ in every),
        every_cells,
        class_="sortable layers" if inside else None,
    )
    return section(
        "Layers" if inside else "Size by layer",
        why,
        _precisions(rows),
        _bands(rows, inside) if inside else Html(),
        charts.legend("bars"),
        table("Size by layer", ("Layer", *heads), cells, class_="plot"),
        details(f"All {len(rows)} layers", _filter() if inside else Html(), all_of_them),
        id_="layers" if inside else None,
    )


def _named() -> tuple[Column, ...]:
    return (("Layer", lambda r: _path(r.name)), ("Operator", lambda r: r.op), ("Shape", lambda r: _shape(r.shape)))


def _stored(estimated: bool) -> tuple[Column, ...]:
    columns: tuple[Column, ...] = (
        ("Stored as", lambda row: row.precision),
        ("Bits", lambda row: text.MISSING if row.bits is None else f"{row.bits:.2f}"),
        ("Before", lambda row: text.size(row.bytes_before)),
        ("After", lambda row: text.size(row.bytes_after)),
    )
    return (*columns, ("Error", lambda row: text.percent(row.error_share))) if estimated else columns


def _seen(rows: Sequence[LayerRow], inside: Inside) -> list[Column]:
    """Columns of what was measured for a plan, and seen inside the networks."""
    columns: list[Column] = [
        ("SNR", lambda row: text.MISSING if row.snr_db is None else f"{row.snr_db:.1f}{text.NBSP}dB")
    ]
    for form in dict.fromkeys(form for row in rows for form in row.options):
        columns.append((f"Error as {form}", lambda row, form=form: _error(row.options.get(form))))  # type: ignore[misc]
    for word, times in zip(("before", "after"), inside.times, strict=True):
        columns.append((f"Time {word}", lambda row, us=times.us: _us(us.get(row.name))))  # type: ignore[misc]
    for each in inside.compared:
        columns.append((f"CKA {each.name}", lambda row, each=each: _cka(each.values.get(row.output))))  # type: ignore[misc]
    return columns


def _bands(rows: Sequence[LayerRow], inside: Inside) -> Html:
    """Small charts under each other, a column for each layer, from the first layer to the last."""
    after = inside.times[1]
    shown: list[tuple[str, str, list[float | None]]] = [
        ("Bits a weight", "", [row.bits for row in rows]),
        ("Stored bytes", "", [row.bytes_after for row in rows]),
        ("Time", f"{after.basis}: {after.where}", [after.us.get(row.name) for row in rows]),
    ]
    if _estimated(rows):
        shown.append(("Error", "share of what quantizing costs", [row.error_share for row in rows]))
    for each in inside.compared:
        values = [each.values.get(row.output) for row in rows]
        shown.append((f"Unlike, {each.name}", "1 − CKA", [None if v is None else 1 - v for v in values]))
    figures = (_band(*each) for each in shown if any(text.known(value) for value in each[2]))
    return join(
        (
            tag("h3", "From the first layer to the last"),
            tag("p", _explained(inside), class_="why"),
            tag("div", *figures, class_="bands", data_layers=len(rows)),
        )
    )


def _band(name: str, unit: str, values: Sequence[float | None]) -> Html:
    top = max(value for value in values if text.known(value))
    words = _tops(name, top)
    said = f"{name} of {len(values)} layers in graph order: at most {words}. The table of all layers has the numbers."
    caption = tag("figcaption", tag("b", name), f" {unit} " if unit else " ", tag("span", f"at most {words}"))
    return tag("figure", caption, curves.band(values, said))


def _tops(name: str, top: float) -> str:
    if name == "Stored bytes":
        return text.size(top)
    if name == "Time":
        return _us(top)
    return text.percent(top) if name == "Error" else text.three_digits(top)


def _explained(inside: Inside) -> str:
    """What the bands and the columns of the table mean."""
    words = []
    if inside.compared:
        words.append(
            f"Similarity is linear CKA (Kornblith et al., 2019) of what a layer writes, behind its activation, on "
            f"{inside.frames} scored images: 1 is the same up to what a later layer could undo. "
            + " ".join(_meaning(each) for each in inside.compared)
        )
    after = inside.times[1]
    rest = f"; {_us(after.other_us)} belong to no layer" if after.other_us else ""
    how = {
        "predicted": "Times are predicted, not measured",
        "measured": "Times are ONNX Runtime’s profile on this machine",
        "stand-in": "Times are ONNX Runtime’s profile on this machine, not on the target",
    }[after.basis]
    words.append(f"{how}: {after.where}{rest}.")
    return " ".join(words)


def _meaning(each: Compared) -> str:
    names = {
        "given": "the given detector",
        "float": "its float graph",
        "untrained": "the quantized graph before training",
        "shipped": "the graph that ships",
    }
    return f"{each.name}: {names.get(each.reference, each.reference)} beside {names.get(each.other, each.other)}."


def _filter() -> Html:
    """Controls for the script, hidden without it."""
    field = tag("input", type="search", name="text", placeholder="name, operator or format", autocomplete="off")
    count = tag("output", role="status")
    return tag("form", tag("label", "Only layers with ", field), count, class_="filters", hidden="", data_for="layers")


def _precisions(rows: Sequence[LayerRow]) -> Html:
    """How many layers are stored as what, the bytes of each kind, and its part of the error."""
    estimated = _estimated(rows)
    cells = []
    for kind in sorted({row.precision for row in rows}):
        those = [row for row in rows if row.precision == kind]
        totals = (sum(row.bytes_before or 0 for row in those), sum(row.bytes_after or 0 for row in those))
        error = (text.percent(sum(row.error_share or 0 for row in those)),) if estimated else ()
        cells.append((kind, text.count(len(those)), *map(text.size, totals), *error))
    heads = ("Stored as", "Layers", "Before", "After", *(("Error",) if estimated else ()))
    return table("Weights by how they are stored", heads, cells)


def _estimated(rows: Sequence[LayerRow]) -> bool:
    return any(text.known(row.error_share) for row in rows)


def _weight(row: LayerRow) -> int:
    return max(row.bytes_before or 0, row.bytes_after or 0)


def _path(name: str) -> Html:
    """A layer's name, which a narrow column may break after a slash."""
    return join(name.split("/"), Html("/<wbr>"))


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or text.MISSING


def _us(value: float | None) -> str:
    return f"{text.three_digits(value)}{text.NBSP}µs" if text.known(value) else text.MISSING


def _error(value: float | None) -> str:
    return f"{value:.2e}" if text.known(value) else text.MISSING


def _cka(value: float | None) -> str:
    return f"{value:.4f}" if text.known(value) else text.MISSING


def _plotted(name: str, strip: Html) -> Html:
    return tag("div", tag("span", name, class_="name"), strip, class_="plotted")
