"""What the command line prints on stdout: tables and lines for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekd.builds.budget import Line
    from edgekd.builds.run import Outcome


def print_outcome(outcome: Outcome) -> None:
    """What a build did, for people."""
    run = outcome.run
    if run.job.search is not None:
        print_searched(run.job.search)
    scores = [score.results for score in run.scores]
    timings = [run.timing.results[label] for label in ("before", "after")]
    timed = [f"{t['total_ms']['p50']:.1f} ms, {rate_text(t['fps'])}" for t in timings]
    host = run.timing.results["host"]
    print_table(
        ["", "before", "after"],
        [
            ["mAP50-95", *(score_text(score["map50_95"]) for score in scores)],
            ["mAP50", *(score_text(score["map50"]) for score in scores)],
            ["graph", megabytes(run.before.results["bytes"]), f"{megabytes(run.encoded.results['bytes'])} packed"],
            ["bundle", "", megabytes(outcome.bundle.stat().st_size)],
            [f"latency p50 ({timings[0]['basis']})", *timed],
        ],
    )
    print(
        f"timed on {host['cpu']}, {host['threads']} threads, {host['engine']}; engine: {run.compiled.results['note']}"
    )
    if run.compiled.results["check"]:
        print(f"parser and builder check by TensorRT for RTX: {run.compiled.results['check']}")
    print_budget(outcome.budget)
    for timing in timings[1:]:
        print_refused(timing["refused"])
    print(f"bundle: {outcome.bundle}\nreport: {outcome.report}\nledger: {outcome.ledger}")


def print_searched(result: Mapping[str, Any]) -> None:
    """What a search found, for people."""
    front = [point for point in result["points"] if point["front"]]
    rows = [[point["text"], *(text(point[key]) for key, text in _SEARCHED)] for point in front]
    print_table(["the front", "kept", "bundle", "ms a frame", "mJ a frame"], rows)
    saved, tried = result["trainings_saved"], result["tried"]
    print(f"{tried} of {result['candidates']} candidates tried, {result['refused']} refused; {saved} trainings saved")
    print(f"search ended: {result['reason']}\nwinner: {result['winner']['text']}")
    for line in result["why"]:
        print(line)


def print_quantized(result: Mapping[str, Any]) -> None:
    """The result of `edgekd quantize`, for people."""
    before, after = result["before"], result["after"]
    rows = [
        [
            "graph",
            megabytes(before["bytes"]),
            f"{megabytes(after['bytes'])} packed, {megabytes(after['onnx_bytes'])} ONNX",
        ]
    ]
    if result["metric"] == "map50_95":
        scores = [[label, score_text(before[key]), score_text(after[key])] for label, key in _METRICS.items()]
        rows = [*scores, *rows]
    print_table(["", "before", "after"], rows)
    for output in result["outputs"]:
        error, ratio = output["relative_error"], output["snr_db"]
        print(f"output {output['name']}: relative error {error:.4f} ({ratio:.1f} dB) on {result['frames']} frames")
    formats = ", ".join(f"{count} in {form}" for form, count in result["forms"].items() if count)
    print(f"layers: {formats}")


def print_converted(result: Mapping[str, Any]) -> None:
    """The result of `edgekd convert`, for people."""
    parity, scores, int8 = result["parity"], result["scores"], result["int8"]
    if int8["source"]:
        print(f"INT8: {int8['carried']} of {int8['source']} layers carried over with their scales")
    if parity is not None:
        errors = (f"{part} {parity[part]:.2g} of {parity[f'allowed_{part}']:.2g}" for part in ("boxes", "scores"))
        largest = f"largest of a score {parity['largest_score']:.2g}"
        if parity["largest_box"] is not None:
            largest += f", of a sure box {parity['largest_box']:.2g}"
        print(f"relative error by {parity['engine']} on {parity['frames']} frames: {', '.join(errors)}; {largest}")
    if scores is not None:
        rows = [[label, *(score_text(scores[side][key]) for side in _SIDES)] for label, key in _METRICS.items()]
        print_table([f"{scores['images']} images of {scores['split']}", *_SIDES], rows)
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"{result['format']}: {result['out']}, {megabytes(result['bytes'])}")


_SIDES = ("source", "converted")


def print_adapted(result: Mapping[str, Any]) -> None:
    """The result of `edgekd adapt`, for people."""
    look, error, clean = result["look"], result["error"], result["clean"]
    blur = f", blurred by {look['blur']:g} pixels" if look["blur"] else ""
    gains, noise = (" ".join(f"{value:g}" for value in look[name]) for name in ("gains", "noise"))
    print(f"the {result['frames']} frames: brightness {look['brightness'][0]:g} to {look['brightness'][1]:g}{blur}")
    print(f"detail, from fine to coarse, times {gains}; added {noise} grey levels")
    print(f"error of scores under these conditions: {error['before']:.3f} before, {error['after']:.3f} after")
    if clean is not None:
        labels = {"clean": "mAP50-95 as they are", "shown": "mAP50-95 as the frames would show them"}
        rows = [
            [label, *(score_text(result[key][side]) for side in ("before", "after"))] for key, label in labels.items()
        ]
        print_table([f"{clean['images']} images of {clean['split']}", "bundle", "variant"], rows)
    print(f"variant: {result['bundle']}, {megabytes(result['bytes'])}")
    print(f"delta: {result['delta']}, {megabytes(result['delta_bytes'])}")


def print_distilled(result: Mapping[str, Any]) -> None:
    """The result of `edgekd distill`, for people."""
    both = (result["before"], result["after"])
    rows = [[label, *(score_text(each[key]) for each in both)] for label, key in _METRICS.items()]
    sizes = ["parameters", *(f"{each['parameters'] / 1e6:.2f} M" for each in both)]
    print_table(["", "teacher", "student"], [*rows, sizes])
    print(f"epochs: {result['epochs']}\nstudent: {result['checkpoint']}")


def print_pruned(result: Mapping[str, Any]) -> None:
    """The result of `edgekd prune`, for people."""
    _print_lighter(result)
    print(f"pruned: {result['checkpoint']}")


def print_factorized(result: Mapping[str, Any]) -> None:
    """The result of `edgekd factorize`, for people."""
    _print_lighter(result)
    print(f"{len(result['layers'])} layers replaced\nfactorized: {result['checkpoint']}")


def _print_lighter(result: Mapping[str, Any]) -> None:
    """A detector before and after something was taken from it."""
    both = (result["before"], result["after"])
    rows = [[label, *(score_text(each[key]) for each in both)] for label, key in _METRICS.items()]
    rows.append(["parameters", *(f"{each['parameters'] / 1e6:.2f} M" for each in both)])
    rows.append(["multiply-adds", *(f"{each['multiply_adds'] / 1e9:.2f} G" for each in both)])
    rows.append(["ms a frame", *(f"{each['latency_ms']:.2f}" for each in both)])
    if (on := result["target"]) is not None and on["basis"] == "predicted":
        rows.append([f"ms on {on['name']}, predicted", *(f"{on[side]:.2f}" for side in ("before_ms", "after_ms"))])
    print_table(["", "before", "after"], rows)
    print(f"measured on {result['host']['cpu']} with {result['host']['engine']}")


def print_validation(result: Mapping[str, Any]) -> None:
    """The result of `edgekd validate-report`, for people: a line for each verdict, and where the page is."""
    print(f"device: {result['device']}{'' if result['complete'] else ', cut short'}")
    for each in result["verdicts"]:
        print(f"{each['outcome']:10}  {each['text']}: {each['detail']}")
    if result["problem"]:
        print(f"problem: {result['problem']['message']}")
    print(f"report: {result['report']}")


def print_report(result: Mapping[str, Any]) -> None:
    """The result of `edgekd report`, for people: what changed most, and where the page is."""
    if (found := result["detections"]) is not None:
        columns = ("objects", "kept", "lost", "gained", "missed", "false_before", "false_after")
        worst = sorted(found["classes"], key=lambda each: (each["gained"] - each["lost"], -each["lost"]))[:5]
        rows = [found["total"], *found["sizes"], *(each for each in worst if each["lost"] > each["gained"])]
        cells = [[row["name"], *(str(row[column]) for column in columns)] for row in rows]
        print_table(["detections", *(column.replace("_", " ") for column in columns)], cells)
    inside = result["inside"]
    for at, each in enumerate(inside["compared"] if inside else ()):
        known = [layer for layer in result["layers"] if layer["cka"][at] is not None]
        least = ", ".join(f"{layer['name']} {layer['cka'][at]:.3f}" for layer in sorted(known, key=_cka_at(at))[:3])
        print(f"least alike, {each['reference']} and {each['other']}: {least}")
    for why in result["missing"]:
        print(f"missing: {why}")
    print(f"report: {result['report']}")


def _cka_at(at: int) -> Callable[[Mapping[str, Any]], float]:
    return lambda layer: float(layer["cka"][at])


def print_bench(result: Mapping[str, Any]) -> None:
    """The result of `edgekd bench`, for people."""
    from edgekd.evaluation.report.bench_text import STATISTICS, against_lines, bench_lines, bench_rows

    columns = [name.replace("p999", "p99.9") for name in STATISTICS]
    print_table(["ms", *columns], bench_rows(result))
    for line in bench_lines(result):
        print(line)
    print_refused(result["refused"])
    if (other := result["against"]) is not None:
        print_table([f"ms, {other['artifact']}", *columns], bench_rows(other))
        for line in against_lines(other):
            print(line)
        print_refused([f"{other['artifact']}: {reason}" for reason in other["refused"]])


_METRICS = {"mAP50-95": "map50_95", "mAP50": "map50"}


def print_predicted(result: Mapping[str, Any]) -> None:
    """The result of `edgekd predict`, for people."""
    rows = [["ms a frame", *(f"{result[key]:.2f}" for key in ("latency_ms", "low_ms", "high_ms"))]]
    rows.append(["frames a second", *(f"{result['fps'] * result['latency_ms'] / result[key]:.1f}" for key in _SPAN)])
    if result["energy_mj"] is not None:
        rows.append(["mJ a frame", *(f"{result[key]:.0f}" for key in ("energy_mj", "low_mj", "high_mj"))])
    print_table([f"{result['target']}, {result['precision']}", "predicted", "from", "to"], rows)
    total = sum(layer["us"] for layer in result["layers"])
    print(f"the {len(result['layers'])} dearest layers take {total / 10 / result['latency_ms']:.0f} % of it:")
    print_table(["layer", "", "us"], [[each["name"], each["kind"], f"{each['us']:.1f}"] for each in result["layers"]])
    print("Predicted, not measured: nine of ten measurements should lie in that range.")
    if result["measured"]:
        print(f"Corrected by what was measured: {result['measured']}.")
    for doubt in result["doubts"]:
        print(f"Do not trust it far: {doubt}.")


def print_engine(result: Mapping[str, Any]) -> None:
    """The result of `edgekd engine`, for people."""
    device, engine, tested, timed = (result[key] for key in ("device", "engine", "self_test", "bench"))
    where = device["model"] or device["cpu"] or "a device that does not say what it is"
    mode = f", power mode {device['power_mode']['name'] or device['power_mode']['id']}" if device["power_mode"] else ""
    upload = result["upload"]
    print(f"{result['name']} for {result['target']} on {device['name']}: {where}{mode}")
    if result["fits"] is None:
        print(f"that it is a {result['target']} is not known: it does not say so")
    print(f"sent {megabytes(upload['sent_bytes'])} of {megabytes(upload['bytes'])}; the rest was there")
    made = f"built in {engine['seconds']:.1f} s" if engine["changed"] else "was there"
    print(f"engine: {engine['file']}, {megabytes(engine['bytes'])}, {_version(result['runtime'])}, {made}")
    for line in _precision_lines(engine):
        print(line)
    if result["tuning"]:
        print(_tuned_text(result["tuning"]))
    drift = (f"{part} {tested['error'][part]:.4f} of {tested['tolerance'][part]:.4f}" for part in ("boxes", "scores"))
    print(f"self-test: passed on {tested['frames']} frames; drift, of what is allowed: {', '.join(drift)}")
    columns = ("p50", "p90", "p99", "mean", "min")
    print_table(["ms", *columns], [["engine", *(f"{timed['inference_ms'][column]:.2f}" for column in columns)]])
    said = f"measured on {where}" if result["basis"] == "measured" else "rehearsed: nothing was computed"
    print(f"{rate_text(timed['fps'])} of the engine alone over {timed['iterations']} runs, {said}")
    print_refused(timed["refused"])
    print(f"in service: slot {engine['slot']}" if result["activated"] else "not put into service: --activate does that")


def _precision_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the precision of an engine's layers."""
    layers = engine["layers"] or {}
    if layers:
        yield f"layers: {', '.join(f'{count} {kind}' for kind, count in layers.items())}"
    if engine["float_layers"]:
        yield f"in float, although INT8 in the graph: {len(engine['float_layers'])} layers"
    if "dla" in layers and engine["missing_scales"] is not None:
        missing = len(engine["missing_scales"])
        yield (
            f"DLA: {missing} activations without a scale; INT8 and FP16 look alike in the list of its layers: --tune "
            "compares with an FP16 engine"
        )


def _tuned_text(tuning: Mapping[str, Any]) -> str:
    """Return a line that compares the choice of `--tune` with the engine as shipped."""
    form = {name: tuning[name] for name in ("source", "float_layers")}
    chosen = next(each for each in tuning["candidates"] if {name: each[name] for name in form} == form)
    shipped, ms = tuning["candidates"][0]["ms"]["p50"], chosen["ms"]["p50"]
    what = "all layers in float" if form["source"] == "float" else f"{len(form['float_layers'])} layers in float"
    if chosen is tuning["candidates"][0]:
        what = f"INT8 as shipped stays; of {len(tuning['candidates']) - 1} others none is faster and passes"
    low, high = chosen["ms"]["interval"]
    text = f"tuned: {what}; {ms:.2f} ms, shipped {shipped:.2f} ms, ratio {low:.3f} to {high:.3f}"
    if scored := tuning["accuracy"]:
        text += f"; mAP50-95 {scored['map50_95']:.4f} on {scored['images']} images"
    return text


def print_fleet(result: Mapping[str, Any]) -> None:
    """The result of `edgekd engine --fleet`, for people."""
    print(f"{result['name']} for {result['target']}, the engine alone")
    header = ["board", "p50 ms", "p90 ms", "p99 ms", "FPS", "layers", "power mode", "system", "runtime", ""]
    print_table(header, [_board_row(board) for board in result["boards"]])
    failed = [board for board in result["boards"] if board["error"]]
    for board in failed:
        print(f"{board['name']}: {board['error']['text']}")
    count = len(result["boards"])
    print(f"{count - len(failed)} of {count} boards passed; all of it: {result['out']}")


def print_profiled(result: Mapping[str, Any]) -> None:
    """The result of `edgekd profile`, for people."""
    print(f"{result['target']}, {result['precision']}: {result['measured']}")
    columns = ("p50", "p90", "p99", "mean", "min")
    rows = [[each["graph"], *(f"{each['inference_ms'][name]:.2f}" for name in columns)] for each in result["networks"]]
    print_table(["ms", *columns], rows)
    print(f"for `edgekd predict MODEL --target {result['target']} --table`: {result['table']}")


def _board_row(board: Mapping[str, Any]) -> list[str]:
    found = board["result"]
    if found is None:
        return [board["name"], *["-"] * 8, "FAILED"]
    times, device, mode = found["bench"]["inference_ms"], found["device"], found["device"]["power_mode"]
    jetpack = f"JetPack {board['jetpack']}, " if board["jetpack"] else ""
    return [
        board["name"],
        *(f"{times[column]:.2f}" for column in ("p50", "p90", "p99")),
        "-" if (fps := found["bench"]["fps"]) is None else f"{fps:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in (found["engine"]["layers"] or {}).items()) or "not said",
        str(mode["name"] or mode["id"]) if mode else "-",
        f"{jetpack}L4T {device['l4t']}" if device["l4t"] else device["os"] or "-",
        _version(found["runtime"]),
        f"{found['basis']}, kept of {board['measured_at']}" if board["kept"] else found["basis"],
    ]


def _version(runtime: Mapping[str, Any]) -> str:
    return f"{runtime['name']} {runtime['version']}"


def print_compared(result: Mapping[str, Any]) -> None:
    """The result of `edgekd compare`, for people."""
    a, b = result["a"], result["b"]
    print_table(["", "a", "b", "b by a"], [_compared(name, a[key], b[key], text) for name, key, text in _COMPARED])
    for key, what in _DIFFERENT.items():
        if not result[key]:
            print(what)
    changed = [row for row in result["classes"] if row["a"] is not None and row["b"] is not None]
    if changed:
        rows = [[row["name"], score_text(row["a"]), score_text(row["b"]), _gained(row)] for row in changed]
        print_table(["mAP50-95", "a", "b", "gained"], rows)
    rows = [
        [row["name"], *(_seconds(row[f"{side}_seconds"]) for side in "ab"), "the same" if row["same"] else ""]
        for row in result["stages"]
    ]
    print_table(["stage, seconds", "a", "b", ""], rows)


def _compared(name: str, a: Any, b: Any, text: Callable[[Any], str]) -> list[str]:
    told = ["-" if value is None else text(value) for value in (a, b)]
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float)) and a
    return [name, *told, f"{b / a:.1%}" if numbers else ""]


def _gained(row: Mapping[str, Any]) -> str:
    return f"{row['b'] - row['a']:+.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


_SPAN = ("latency_ms", "high_ms", "low_ms")


def print_scores(result: Mapping[str, Any]) -> None:
    """The result of `edgekd eval`, for people."""

    def row(name: str, images: object, objects: object, scores: Mapping[str, Any]) -> list[str]:
        return [name, str(images), str(objects), score_text(scores["map50_95"]), score_text(scores["map50"])]

    rows = [row("all", result["images"], "", result)]
    rows += [
        row(name, of["images"], of["instances"], of) for name, of in result["per_class"].items() if of["instances"]
    ]
    if (tail := result["tail"]) is not None:
        rows.append(row(f"rare: {', '.join(tail['classes']) or 'none'}", "", "", tail))
    print_table(["class", "images", "objects", "mAP50-95", "mAP50"], rows)


def print_budget(lines: Sequence[Line]) -> None:
    """Each limit, and what was reached."""
    marks = {True: "met", False: "MISSED", None: "undecided here"}
    for line in lines:
        reached = f"{line.text(line.value)} ({line.basis})"
        print(f"budget, {line.label}: limit {line.text(line.limit)}, reached {reached}: {marks[line.met]}")


def print_refused(refused: Sequence[str]) -> None:
    """What a run was too short or too noisy for, and what to do."""
    for reason in refused:
        print(f"not told: {reason}")


def print_json(value: Any) -> None:
    """One JSON document, and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns under a header, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Where nobody's terminal sets the width, nothing is cut off or folded.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def score_text(value: float | None) -> str:
    """A score from 0 to 1, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def rate_text(fps: float | None) -> str:
    """Frames per second, or a dash where a run was too short or too noisy to say."""
    return "- FPS" if fps is None else f"{fps:.1f} FPS"


def megabytes(count: int) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.2f} MB"


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
_SEARCHED: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("kept", "{:.1%}".format),
    ("bytes", megabytes),
    ("latency_ms", lambda value: "-" if value is None else f"{value:.2f}"),
    ("energy_mj", lambda value: "-" if value is None else f"{value:.0f}"),
)
_DIFFERENT = {
    "same_model": "They were made of different detectors.",
    "same_data": "They were scored on different images or labels: their scores do not compare.",
    "same_host": "They were timed on machines, or with libraries, that differ: their times do not compare.",
}
