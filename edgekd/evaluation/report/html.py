"""The report of one build as one self-contained HTML page: no network, no external file.

The same report gives the same bytes. Sections without content are left out, headings and all. Only a page with an
analysis has a script, which filters and sorts what is there without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgekd.core.detection.types import Detections
from edgekd.data.long_tail import TAIL
from edgekd.evaluation.coco import mean_known
from edgekd.evaluation.report import charts, pictures, text
from edgekd.evaluation.report.changes import changes_section, confidence_section, confusion_section
from edgekd.evaluation.report.inside import attention_section, training_section
from edgekd.evaluation.report.layers import CHART_ROWS, layers_section
from edgekd.evaluation.report.markup import Html, details, join, page, safe, section, table, tag
from edgekd.evaluation.report.search import search_section
from edgekd.evaluation.report.types import (
    Basis,
    BudgetRow,
    Change,
    ClassRow,
    Latency,
    Moment,
    Report,
    SamplePicture,
    SizeRow,
    StageRow,
)

MEANING: dict[Basis, str] = {
    "measured": "read from the finished files, scored on labelled images, or timed on the target itself",
    "stand-in": "timed on another machine in place of the target; compare before with after, "
    "and expect other times on the target",
    "predicted": "calculated for the target; nothing was run there",
}


def render(report: Report) -> str:
    """The whole page."""
    sections = (
        _headline,
        _budget,
        _search,
        _stages,
        _classes,
        _sizes,
        lambda r: changes_section(r.analysis),
        lambda r: confusion_section(r.analysis),
        lambda r: confidence_section(r.analysis),
        _latencies,
        layers_section,
        lambda r: attention_section(r.inside),
        lambda r: training_section(r.training),
        _pictures,
        _missing,
        _notes,
        _provenance,
    )
    analysed = report.analysis is not None or report.inside is not None or bool(report.training)
    styles, script = (("analysis.css",), "report.js") if analysed else ((), None)
    return page(report.title, (part(report) for part in sections), styles, script)


def verdict(budget: Sequence[BudgetRow]) -> tuple[str, str]:
    """(state, sentence) of a budget; state is "met", "missed" or "open". A single miss decides."""
    missed = [row for row in budget if row.met is False]
    unchecked = [row.name for row in budget if row.met is None]
    if missed:
        return "missed", "Budget missed: " + "; ".join(
            f"{r.name} is {r.value or text.MISSING}, limit {r.limit}" for r in missed
        )
    if not budget:
        return "open", "No budget was set"
    if len(unchecked) == len(budget):
        return "open", "Budget not checked: " + ", ".join(unchecked)
    if unchecked:
        return "open", "Budget met so far; not checked: " + ", ".join(unchecked)
    return "met", "Budget met"


def _headline(report: Report) -> Html:
    state, sentence = verdict(report.budget)
    return tag(
        "header",
        tag("p", "edgekd report", class_="kicker"),
        tag("h1", report.title),
        tag("p", report.model, ", recipe ", tag("b", report.recipe), ", for ", report.target, class_="lead"),
        tag("p", _mark(state), " ", sentence, class_=f"verdict {state}"),
        _figures(report),
        tag("p", _legend_text(report), class_="why"),
    )


def _legend_text(report: Report) -> str:
    scored = f" Accuracy is scored on {text.count(report.images)} labelled images." if report.images else ""
    graphs = "“Before” is the detector as it was given, as a float ONNX file; “after” is the packed graph that ships."
    return graphs + scored


def _figures(report: Report) -> Html:
    accuracy, size = report.map50_95, report.bytes
    tiles = [
        _figure(
            "Accuracy, mAP50-95",
            text.accuracy(accuracy.after),
            f"was {text.accuracy(accuracy.before)}",
            f"{text.percent(accuracy.share)} kept",
        ),
        _figure(
            "Model size",
            text.size(size.after),
            f"was {text.size(size.before)}",
            text.times(size.share, "smaller", "larger"),
        ),
    ]
    before, after = _first(report.latencies, "before"), _first(report.latencies, "after")
    if after:
        was = before.p50_ms if before else None
        speed = Change(was, after.p50_ms)
        tiles.append(
            _figure(
                "Latency, median",
                text.milliseconds(after.p50_ms),
                f"was {text.milliseconds(was)}, {text.times(speed.share, 'faster', 'slower')}",
                join((text.rate(after.fps), " ", _basis(after.basis))),
            )
        )
    if report.bundle_bytes is not None:
        tiles.append(
            _figure(
                "Bundle size", text.size(report.bundle_bytes), *_bundle_room(report.bundle_bytes, report.bundle_limit)
            )
        )
    return tag("dl", *tiles, class_="figures")


def _bundle_room(size: int, limit: int | None) -> tuple[str, str]:
    if not limit:
        return "no limit set", ""
    return f"limit {text.size(limit)}", f"{text.percent(size / limit)} of it used"


def _figure(name: str, value: str, first: str, second: str) -> Html:
    details = (tag("span", line) for line in (first, second))
    return tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", *details))


def _budget(report: Report) -> Html:
    if not report.budget:
        return Html()
    heads = ("Limit on", "Reached", "Verdict")
    content = table("Limits and what the build reached", heads, map(_budget_cells, report.budget))
    return section("Budget", "", content, _meanings(row.basis for row in report.budget))


def _budget_cells(row: BudgetRow) -> Sequence[str]:
    state, word = {True: ("met", "met"), False: ("missed", "missed"), None: ("open", "not checked")}[row.met]
    value = join((row.value or text.MISSING, tag("small", _basis(row.basis)) if row.basis else ""))
    verdict = tag("span", _mark(state), " ", word, class_=f"state {state}")
    return join((row.name, tag("small", row.limit))), value, verdict


def _search(report: Report) -> Html:
    return search_section(report.search)


def _stages(report: Report) -> Html:
    if not report.stages:
        return Html()
    timed = any(text.known(row.seconds) for row in report.stages)
    heads = ("Stage", *(("Time",) if timed else ()), "Size", "mAP50-95", "mAP50")
    return section(
        "Stages",
        "What each step took, and the size and accuracy of what came out of it.",
        table("Stages of the build, in order", heads, (_stage_cells(row, timed) for row in report.stages)),
    )


def _stage_cells(row: StageRow, timed: bool) -> Sequence[str]:
    why = "taken from an earlier build with the same inputs"
    reused = tag("span", "reused", class_="pill", title=why) if row.cached else ""
    name = join((row.name, " ", reused, tag("small", row.note) if row.note else ""))
    time = (text.duration(row.seconds),) if timed else ()
    return name, *time, text.size(row.bytes), text.accuracy(row.map50_95), text.accuracy(row.map50)


def _classes(report: Report) -> Html:
    if not report.classes:
        return Html()
    ticks = charts.nice_ticks(0.0, _highest(report.classes))
    listed = _most_changed(report.classes)
    content = [_change_table("mAP50-95 by class", "Class", listed, ticks)]
    why = "Average precision of each class, the largest loss first."
    if len(listed) < len(report.classes):
        why = f"The {len(listed)} classes of {len(report.classes)} that changed most, the largest loss first."
        every = (
            (row.name, text.count(row.instances), *_numbers(row))
            for row in sorted(report.classes, key=lambda row: (row.name, _numbers(row)))
        )
        heads = ("Class", "Objects", "Before", "After", "Change")
        content.append(details(f"All {len(report.classes)} classes", table("mAP50-95 of every class", heads, every)))
    return section("Accuracy by class", f"{why}{_rare(report.classes)}", charts.legend("dumbbell"), *content)


def _rare(rows: Sequence[ClassRow]) -> str:
    """What became of the classes that the training split has few objects of."""
    rare = [row for row in rows if row.rare]
    both = (mean_known([row.before for row in rare]), mean_known([row.after for row in rare]))
    if None in both:
        return ""
    changed = " to ".join(map(text.accuracy, both))
    return f" The rare classes, each with less than {TAIL:.0%} of the training objects, went from a mean of {changed}."


def _most_changed(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """At most CHART_ROWS rows: those whose accuracy moved most, losses first, rows without both numbers last."""

    def size(row: ClassRow) -> float:
        return abs(difference) if text.known(difference := row.change.difference) else -1.0

    def order(row: ClassRow) -> float:
        return difference if text.known(difference := row.change.difference) else 2.0

    return sorted(sorted(rows, key=size, reverse=True)[:CHART_ROWS], key=order)


def _sizes(report: Report) -> Html:
    if not report.sizes:
        return Html()
    ticks = charts.nice_ticks(0.0, _highest(report.sizes))
    content = _change_table("mAP50-95 by object size", "Objects", report.sizes, ticks)
    why = "Small is less than 32 × 32 pixels of the frame, large is more than 96 × 96, as COCO counts."
    return section("Accuracy by object size", why, charts.legend("dumbbell"), content)


def _highest(rows: Sequence[ClassRow | SizeRow]) -> float:
    """The top of the scale: the highest accuracy, but at least 0.1, so that noise does not fill the chart."""
    return max([0.1, *(value for row in rows for value in (row.before, row.after) if text.known(value))])


def _change_table(caption: str, head: str, rows: Sequence[ClassRow | SizeRow], ticks: Sequence[float]) -> Html:
    cells = ((_plotted(_named(row), charts.change_strip(row.before, row.after, ticks)), *_numbers(row)) for row in rows)
    heads = (_plotted(head, charts.change_axis(ticks)), "Before", "After", "Change")
    return table(caption, heads, cells, class_="plot")


def _named(row: ClassRow | SizeRow) -> Html:
    if isinstance(row, ClassRow) and row.instances is not None:
        return join((row.name, " ", tag("small", f"{text.count(row.instances)} objects{', rare' if row.rare else ''}")))
    return safe(row.name)


def _numbers(row: ClassRow | SizeRow) -> tuple[str, str, str]:
    return text.accuracy(row.before), text.accuracy(row.after), text.difference(row.change.difference)


def _latencies(report: Report) -> Html:
    rows = report.latencies
    if not rows:
        return Html()
    ticks = charts.latency_ticks(rows)
    beyond = sum(sample > ticks[-1] for row in rows for sample in row.samples_ms)
    clipped = f" {text.count(beyond)} slower frames lie beyond the right edge." if beyond else ""
    heads = ("Graph", "p50", "p90", "p99", "Mean", "Rate", "Preprocess", "Inference", "Postprocess")
    return section(
        "Latency",
        "From frame to detections, in milliseconds: half of the frames take at most p50, 99 in 100 at most p99."
        + clipped,
        tag("figure", charts.latency_chart(rows, ticks), class_="chart"),
        table("Latency; the parts are medians", heads, map(_latency_cells, rows)),
        _meanings(row.basis for row in rows),
    )


def _latency_cells(row: Latency) -> Sequence[str]:
    parts = (row.preprocess_ms, row.inference_ms, row.postprocess_ms)
    return (
        join((row.label, " ", _basis(row.basis), tag("small", row.engine))),
        *map(text.milliseconds, (row.p50_ms, row.p90_ms, row.p99_ms, row.mean_ms)),
        text.rate(row.fps),
        *map(text.milliseconds, parts),
    )


def _pictures(report: Report) -> Html:
    if not report.pictures:
        return Html()
    why = (
        f"Detections with a score of at least {pictures.SHOWN_SCORE} on scored frames. "
        "White corners mark the labelled objects."
    )
    return section("Sample detections", why, *(_sample(sample, report.class_names) for sample in report.pictures))


def _sample(sample: SamplePicture, classes: Sequence[str]) -> Html:
    pair = (_picture(sample, "before", sample.before, classes), _picture(sample, "after", sample.after, classes))
    return tag("article", tag("h3", sample.title), tag("div", *pair, class_="pair"))


def _picture(sample: SamplePicture, label: Moment, found: Detections, classes: Sequence[str]) -> Html:
    drawn = pictures.draw(sample.image, sample.truth, found, classes)
    summary = pictures.summary(found, classes)
    alt = f"{sample.title}, {label}: {summary}"
    image = tag("img", src=pictures.data_uri(drawn), alt=alt, width=drawn.shape[1], height=drawn.shape[0])
    return tag("figure", image, tag("figcaption", tag("b", label.capitalize()), f": {summary}"))


def _missing(report: Report) -> Html:
    if not report.missing:
        return Html()
    return section("Missing", "What this report could not say.", tag("ul", *(tag("li", why) for why in report.missing)))


def _notes(report: Report) -> Html:
    if not report.notes:
        return Html()
    return section("Notes", "", tag("ul", *(tag("li", note) for note in report.notes)))


def _provenance(report: Report) -> Html:
    if not report.provenance:
        return Html()
    rows = ((name, tag("code", value)) for name, value in report.provenance.items())
    why = "What this build was made from, so that it can be made again."
    return section("Provenance", why, table("Inputs, versions and hashes", ("What", "Value"), rows, class_="facts"))


def _plotted(name: str, strip: Html) -> Html:
    """A table cell that holds a name and its row of a chart: side by side where there is room, else stacked."""
    return tag("div", tag("span", name, class_="name"), strip, class_="plotted")


def _mark(state: str) -> Html:
    return tag("span", {"met": "✓", "missed": "✕", "open": "○"}[state], class_="sign", aria_hidden="true")


def _basis(basis: Basis) -> Html:
    return tag("span", basis, class_="pill", title=MEANING[basis])


def _meanings(used: Iterable[Basis | None]) -> Html:
    present = set(used)
    lines = (join((tag("b", basis), f": {meaning}. ")) for basis, meaning in MEANING.items() if basis in present)
    return tag("p", *lines, class_="why")


def _first(latencies: Sequence[Latency], label: Moment) -> Latency | None:
    return next((row for row in latencies if row.label == label), None)
