"""Printed text of results: `printer` returns the function for a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from edgekd.commands.cli import bundle_printing
from edgekd.commands.cli.build_printing import print_budget, print_outcome
from edgekd.commands.cli.tables import megabytes, print_refused, print_table, score_text
from edgekd.evaluation.report.bench_text import STATISTICS, against_lines, bench_lines, bench_rows

if TYPE_CHECKING:
    from edgekd.builds.speedup import DetectorFigures, Lightened
    from edgekd.commands.check import Checked
    from edgekd.commands.compare import Compared
    from edgekd.commands.describe import Described
    from edgekd.commands.distill import Distilled, ScoredDetector
    from edgekd.commands.doctor import Diagnosis
    from edgekd.commands.evaluate import Scored
    from edgekd.commands.factorize import Factorized
    from edgekd.commands.prune import Pruned
    from edgekd.commands.quantize import FloatGraph, Quantized, QuantizedGraph
    from edgekd.commands.targets import Targets
    from edgekd.commands.validate_report import JudgedEvidence
    from edgekd.deploy.converters.result import Converted, MapScores
    from edgekd.deploy.variant import Variant
    from edgekd.evaluation.bench_result import BenchResult
    from edgekd.evaluation.coco import BoxScore, ClassScore, Score, TailScore
    from edgekd.evaluation.report.document import Analysed
    from edgekd.hardware.predict.result import PredictResult

_METRICS = {"mAP50-95": "map50_95", "mAP50": "map50"}
_COMPARED: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("run", "run", str),
    ("model", "model", str),
    ("target", "target", str),
    ("recipe", "recipe", str),
    ("mAP50-95", "map50_95", score_text),
    ("mAP50", "map50", score_text),
    ("mAP50-95 kept", "kept", "{:.1%}".format),
    ("packed graph", "graph_bytes", megabytes),
    ("bundle", "bundle_bytes", megabytes),
    ("ms a frame, p50", "p50_ms", "{:.2f}".format),
    ("", "basis", str),
    ("ms on the target, predicted", "predicted_ms", "{:.2f}".format),
    ("seconds of all stages", "seconds", "{:.1f}".format),
)


def print_quantized(result: Quantized) -> None:
    """Print the result of `edgekd quantize`."""
    before, after = result.before, result.after
    packed = f"{megabytes(after.bytes)} packed, {megabytes(after.onnx_bytes)} ONNX"
    rows = [
        *(_metric_rows(before, after) if result.metric == "map50_95" else []),
        ["graph", megabytes(before.bytes), packed],
    ]
    print_table(["", "before", "after"], rows)
    for output in result.outputs:
        error = f"relative error {output.relative_error:.4f} ({output.snr_db:.1f} dB)"
        print(f"output {output.name}: {error} on {result.frames} frames")
    print(f"layers: {', '.join(f'{count} in {form}' for form, count in result.forms.items() if count)}")
    print_budget(result.budget)
    print(f"results: {result.graph.parent}")


def print_converted(result: Converted) -> None:
    """Print the result of `edgekd convert`."""
    if result.int8.source:
        print(f"INT8: {result.int8.carried} of {result.int8.source} layers carried over with their scales")
    if (parity := result.parity) is not None:
        found = parity.distance
        errors = f"boxes {found.boxes:.2g} of {parity.allowed_boxes:.2g}, "
        errors += f"scores {found.scores:.2g} of {parity.allowed_scores:.2g}"
        largest = f"largest of a score {found.largest_score:.2g}"
        if found.largest_box is not None:
            largest += f", of a sure box {found.largest_box:.2g}"
        print(f"relative error by {parity.engine} on {parity.frames} frames: {errors}; {largest}")
    if (scores := result.scores) is not None:
        print_table(
            [f"{scores.images} images of {scores.split}", "source", "converted"],
            _metric_rows(scores.source, scores.converted),
        )
    for note in result.notes:
        print(f"note: {note}")
    print(f"{result.format}: {result.out}, {megabytes(result.bytes)}")


def print_adapted(result: Variant) -> None:
    """Print the result of `edgekd adapt`."""
    found, look, error = result.adaptation, result.adaptation.look, result.error
    blur = f", blurred by {look.blur:g} pixels" if look.blur else ""
    gains, noise = (" ".join(f"{value:g}" for value in values) for values in (look.gains, look.noise))
    print(f"the {found.frames} frames: brightness {look.brightness[0]:g} to {look.brightness[1]:g}{blur}")
    print(f"detail, from fine to coarse, times {gains}; added {noise} grey levels")
    print(f"error of scores under these conditions: {error.before:.3f} before, {error.after:.3f} after")
    if found.clean and found.shown:
        labels = {"mAP50-95 as they are": found.clean, "mAP50-95 as the frames would show them": found.shown}
        rows = [[label, score_text(each.before), score_text(each.after)] for label, each in labels.items()]
        print_table([f"{found.clean.images} images of {found.clean.split}", "bundle", "variant"], rows)
    print(f"variant: {result.bundle}, {megabytes(result.bytes)}")
    print(f"delta: {result.delta}, {megabytes(result.delta_bytes)}")


def print_distilled(result: Distilled) -> None:
    """Print the result of `edgekd distill`."""
    both = (result.before, result.after)
    sizes = ["parameters", *(f"{each.parameters / 1e6:.2f} M" for each in both)]
    print_table(["", "teacher", "student"], [*_metric_rows(*both), sizes])
    print(f"epochs: {result.epochs}\nstudent: {result.checkpoint}")


def _metric_rows(
    *detectors: DetectorFigures | ScoredDetector | FloatGraph | QuantizedGraph | MapScores,
) -> list[list[str]]:
    return [[label, *(score_text(getattr(each, key)) for each in detectors)] for label, key in _METRICS.items()]


def print_pruned(result: Pruned) -> None:
    """Print the result of `edgekd prune`."""
    _print_lighter(result)
    print(f"pruned: {result.checkpoint}")


def print_factorized(result: Factorized) -> None:
    """Print the result of `edgekd factorize`."""
    _print_lighter(result)
    print(f"{len(result.layers)} layers replaced\nfactorized: {result.checkpoint}")


def _print_lighter(result: Lightened) -> None:
    """Print a detector and the lighter one derived from it."""
    both = (result.before, result.after)
    rows = _metric_rows(*both)
    rows.append(["parameters", *(f"{each.parameters / 1e6:.2f} M" for each in both)])
    rows.append(["multiply-adds", *(f"{each.multiply_adds / 1e9:.2f} G" for each in both)])
    rows.append(["ms a frame", *(f"{each.latency_ms:.2f}" for each in both)])
    if (on := result.target) is not None and on.basis == "predicted":
        rows.append([f"ms on {on.name}, predicted", f"{on.before_ms:.2f}", f"{on.after_ms:.2f}"])
    print_table(["", "before", "after"], rows)
    print(f"measured on {result.host.cpu} with {result.host.engine}")


def print_validation(result: JudgedEvidence) -> None:
    """Print the result of `edgekd validate-report`."""
    print(f"device: {result.device}{'' if result.complete else ', cut short'}")
    for each in result.verdicts:
        print(f"{each.outcome:10}  {each.text}: {each.detail}")
    if result.problem:
        print(f"problem: {result.problem.message}")
    print(f"report: {result.report}")


def print_report(result: Analysed) -> None:
    """Print the result of `edgekd report`."""
    if (found := result.detections) is not None:
        columns = ("objects", "kept", "lost", "gained", "missed", "false_before", "false_after")
        worst = sorted(found.classes, key=lambda each: (each.gained - each.lost, -each.lost))[:5]
        rows = [found.total, *found.sizes, *(each for each in worst if each.lost > each.gained)]
        cells = [[row.name, *(str(getattr(row, column)) for column in columns)] for row in rows]
        print_table(["detections", *(column.replace("_", " ") for column in columns)], cells)
    for index, each in enumerate(result.inside.compared if result.inside else ()):
        known = [(cka, layer.name) for layer in result.layers if (cka := layer.cka[index]) is not None]
        least = ", ".join(f"{name} {cka:.3f}" for cka, name in sorted(known, key=itemgetter(0))[:3])
        print(f"least alike, {each.reference} and {each.other}: {least}")
    for why in result.missing:
        print(f"missing: {why}")
    print(f"report: {result.report}")


def print_bench(bench: BenchResult) -> None:
    """Print the result of `edgekd bench`."""
    columns = [name.replace("p999", "p99.9") for name in STATISTICS]
    print_table(["ms", *columns], bench_rows(bench.result))
    for line in bench_lines(bench):
        print(line)
    print_refused(bench.refused)
    if (other := bench.against) is not None:
        print_table([f"ms, {other.artifact}", *columns], bench_rows(other.result))
        for line in against_lines(other):
            print(line)
        print_refused([f"{other.artifact}: {reason}" for reason in other.result.refused])


def print_predicted(result: PredictResult) -> None:
    """Print the result of `edgekd predict`."""
    spans = [(result.latency_ms, result.low_ms, result.high_ms), (result.energy_mj, result.low_mj, result.high_mj)]
    rates = (result.fps * result.latency_ms / ms for ms in (result.latency_ms, result.high_ms, result.low_ms))
    label = "ms a frame" if result.batch == 1 else f"ms for {result.batch} frames"
    rows = [[label, *(f"{ms:.2f}" for ms in spans[0])], ["frames a second", *(f"{rate:.1f}" for rate in rates)]]
    if result.energy_mj is not None:
        rows.append(["mJ a frame", *(f"{mj:.0f}" for mj in spans[1])])
    unit = f"{result.target}, {'a core of the DLA, ' if result.unit == 'dla' else ''}{result.precision}"
    print_table([f"{unit}{', 2:4' if result.sparse else ''}", "predicted", "from", "to"], rows)
    if result.transfer_ms is not None:
        print(f"Copies of inputs and outputs, where they are needed, take about {result.transfer_ms:.2f} ms more.")
    total = sum(layer.us for layer in result.layers)
    print(f"the {len(result.layers)} dearest layers take {total / 10 / result.latency_ms:.0f} % of it:")
    print_table(["layer", "", "us"], [[each.name, each.kind, f"{each.us:.1f}"] for each in result.layers])
    print(
        "Predicted, not measured, without pre- and postprocessing: nine of ten measurements should lie in that range."
    )
    if result.measured:
        print(f"Corrected by what was measured: {result.measured}.")
    for doubt in result.doubts:
        print(f"Do not trust it far: {doubt}.")


def print_compared(found: Compared) -> None:
    """Print the result of `edgekd compare`."""
    rows = [_compared(name, getattr(found.a, key), getattr(found.b, key), text) for name, key, text in _COMPARED]
    print_table(["", "a", "b", "b by a"], rows)
    for sentence in found.cautions:
        print(sentence)
    changed = [row for row in found.classes if row.gain is not None]
    if changed:
        rows = [[row.name, score_text(row.a), score_text(row.b), f"{row.gain:+.4f}"] for row in changed]
        print_table(["mAP50-95", "a", "b", "gained"], rows)
    rows = [
        [row.name, _seconds(row.a_seconds), _seconds(row.b_seconds), "the same" if row.same else ""]
        for row in found.stages
    ]
    print_table(["stage, seconds", "a", "b", ""], rows)


def _compared(name: str, a: Any, b: Any, text: Callable[[Any], str]) -> list[str]:
    texts = ["-" if value is None else text(value) for value in (a, b)]
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float)) and a
    return [name, *texts, f"{b / a:.1%}" if numbers else ""]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def print_scores(scored: Scored) -> None:
    """Print the result of `edgekd eval`."""
    for image, reason in zip(scored.skipped, scored.reasons, strict=True):
        print(f"not scored: {image}: {reason}", file=sys.stderr)

    def row(name: str, images: object, objects: object, scores: Score | BoxScore | ClassScore | TailScore) -> list[str]:
        return [name, str(images), str(objects), score_text(scores.map50_95), score_text(scores.map50)]

    rows = [row("all", scored.score.images, "", scored.score)]
    if scored.score.boxes:
        rows.append(row("all, boxes alone", "", "", scored.score.boxes))
    rows += [row(name, of.images, of.instances, of) for name, of in scored.score.per_class.items() if of.instances]
    if (tail := scored.tail) is not None:
        rows.append(row(f"rare: {', '.join(tail.classes) or 'none'}", "", "", tail))
    print_table(["class", "images", "objects", "mAP50-95", "mAP50"], rows)


def print_checked(checked: Checked) -> None:
    """Print the result of `edgekd check`."""
    for finding in checked.findings:
        print(f"{finding.level}: {finding.what} ({finding.where})\n    {finding.change}")
    verdict = "possible" if checked.possible else "impossible as it is"
    print(f"{checked.title}: {verdict}")


def print_targets(found: Targets) -> None:
    """Print the result of `edgekd targets`."""
    if found.facts is None:
        rows = [[t.name, t.title, ", ".join(t.precisions.conv.value), t.engine, t.recipe] for t in found.targets]
        print_table(["target", "device", "convolutions in", "engine", "recipe"], rows)
        return
    marks = {True: "yes", False: "no", None: ""}
    rows = [[fact.group, fact.name, fact.value, marks[fact.verified], fact.source] for fact in found.facts]
    print_table(["", found.targets[0].name, "value", "verified", "source"], rows)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print the result of `edgekd doctor`."""
    rows = [[check.group, check.name, check.state, check.detail, check.fix or ""] for check in diagnosis.checks]
    print_table(["", "what", "state", "detail", "to add it"], rows)


def print_described(described: Described) -> None:
    """Print the result of `edgekd describe`: a file for `--head`, with comments on settings to check."""
    size = described.detector.preprocess
    print(f"# {described.model.name}: input {size.width}x{size.height}, {len(described.detector.classes)} classes")
    if described.unsure:
        print(f"# usual for such outputs, but not confirmed by the graph: {', '.join(described.unsure)}")
    print("# no graph says how frames are prepared; compare with the training: color, scale, mean, std")
    print(described.description, end="")


PRINTERS: Mapping[str, Callable[[Any], None]] = {
    "adapt": print_adapted,
    "bench": print_bench,
    "compare": print_compared,
    "convert": print_converted,
    "distill": print_distilled,
    "factorize": print_factorized,
    "predict": print_predicted,
    "prune": print_pruned,
    "report": print_report,
    "build": print_outcome,
    "quantize": print_quantized,
    "eval": print_scores,
    "check": print_checked,
    "describe": print_described,
    "targets": print_targets,
    "ui": lambda served: print(f"no more pages of {served.runs}"),
    "doctor": print_diagnosis,
    "inspect": bundle_printing.print_inspected,
    "delta": bundle_printing.print_delta,
    "engine": bundle_printing.print_engine,
    "keygen": bundle_printing.print_key,
    "profile": bundle_printing.print_profiled,
    "pack": bundle_printing.print_verified,
    "sign": bundle_printing.print_verified,
    "trust": bundle_printing.print_verified,
    "validate-report": print_validation,
    "verify": bundle_printing.print_verified,
    "demo": lambda demo: print_outcome(demo.outcome),
}
"""Printers of results by command."""


def printer(command: str) -> Callable[[Any], None]:
    """Return the function that prints the result of a command. Raises KeyError if there is none."""
    return PRINTERS[command]
