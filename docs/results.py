"""Write docs/results.md, and the table of results in README.md, from bench/results/*.json: `make schemas`.

No number is typed in: after a new run of a benchmark the text follows its JSON. `--check` writes nothing, and fails
where the files are not what would be written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from generated import write
from result_values import (
    RESULTS,
    Row,
    average,
    by_method,
    count,
    detector,
    extent,
    grouped,
    link,
    listed,
    megabytes,
    number,
    only,
    percent,
    result,
    score,
    share,
    table,
    wrapped,
)

PAGE = Path(__file__).parent / "results.md"
README = Path(__file__).parents[1] / "README.md"
LOW_RANK_ENERGY = 0.97  # the default of `edgekd factorize`
HEAD = """\
# Results

<!-- Written by docs/results.py (`make schemas`) from bench/results/*.json: do not edit. -->

Each number is from the table beside it. A table names its command, machine and date, and has the rows in which
edgekd is behind. Nothing was measured on a Jetson: a time measured on another machine than the target is called a
*stand-in*, here and in every report. How it is measured: [benchmarks](../bench/README.md)."""


# Quantization


def quantization() -> Iterator[str]:
    """Yield the section about quantization without training."""
    run, fine_tuned = result("quantization_baselines"), result("quantization_baselines_ppe")
    images = run["images"]
    yield "## Quantization without training"
    yield f"""\
No labels; the same float graph, {images["calibration"]} calibration frames and scorer for every tool, on
{run["host"]["threads"]} CPU cores; scored on {images["val"]} other COCO images {link("quantization_baselines")}. MB: of
edgekd's packed file, and of the ONNX file of the others. Bold: the best graph in plain INT8."""
    yield baselines(run["rows"], "val")
    yield from calibration_draws(run["rows"])
    yield from coded_weights()
    for split in fine_tuned["scored"]:
        yield f"""\
A fine-tuned detector, {fine_tuned["images"][split]} images of the split `{split}` of ppe
{link("quantization_baselines_ppe")}:"""
        yield baselines(fine_tuned["rows"], split)
    yield "How it works: [quantization](quantization.md)."


def baselines(rows: list[Row], split: str) -> str:
    """Return the table of all tools: score, seconds and size for each detector."""
    models = grouped(rows, lambda row: row["model"])
    plain = [
        row for row in rows if row["scores"] and not row["method"].startswith(("float32", "edgekd, recipe `mixed`"))
    ]
    best = {model: max(map_of(row, split) for row in plain if row["model"] == model) for model in models}
    columns = (column for model in models for column in (f"{detector(model)} mAP50-95", "seconds", "MB"))
    lines = []
    for method, group in by_method(rows).items():
        cells = [method]
        for model in models:
            row = only(group, model=model)
            if not row["scores"]:
                cells += ["failed", "", ""]
                continue
            bold = "**" if row in plain and map_of(row, split) == best[model] else ""
            packed = row["packed_bytes"] if method.startswith("edgekd") else row["bytes"]
            cells += [f"{bold}{score(map_of(row, split))}{bold}", number(row["seconds"], 1), f"{packed / 1e6:.2f}"]
        lines.append(cells)
    return table(["", *columns], lines)


def map_of(row: Row, split: str) -> float:
    """Return the mAP50-95 of a row of quantization_baselines."""
    return float(row["scores"][split][0])


def calibration_draws(beside: list[Row]) -> Iterator[str]:
    """Yield the comparison on several draws of calibration images, and the noise at the end of the network."""
    rows = result("calibration_draws")["rows"]
    draws = {row["draw"] for row in rows} - {None}
    yield f"""\
These images are few: scores move by several thousandths with small changes of the rounding. So two tools were also
calibrated on {len(draws)} draws of the same images {link("calibration_draws")}. Noise: of the outputs of the last
convolutions, relative to their signal {link("quantization_baselines")}."""
    lines = []
    for model, of_model in grouped(rows, lambda row: row["model"]).items():
        methods = by_method(of_model)
        (whole,) = methods.pop("float32")
        for method, group in methods.items():
            shares = [map_of(row, "val") / map_of(whole, "val") for row in group]
            noise = average((row for row in beside if (row["model"], row["method"]) == (model, method)), "noise")
            lines.append(
                [detector(model), method, percent(mean(shares)), number(average(group, "seconds"), 1), score(noise)]
            )
    yield table(["detector", "tool", "share of float32's mAP50-95", "seconds", "noise"], lines)


def coded_weights() -> Iterator[str]:
    """Yield what graphs in few bits keep."""
    run, (whole, small) = result("coded_weights"), result("large_detector")["rows"]
    shares = listed(f"{percent(coded_share(part))} in 1/{part:g} of the float file" for part in run["parts"])
    ((split, (before, _)),) = whole["scores"].items()
    yield f"""\
- **Weights in few bits.** `mixed` stores weights in few bits where the loss is small ([coded
  INT8](formats/coded-int8.md));
  layers compute in INT8 with the same values, bit for bit. {listed(map(detector, run["models"]))} keep {shares},
  means of
  {run["draws"]} draws of calibration images, without training and without labels {link("coded_weights")}.
- **A large detector.** A YOLO11x fine-tuned on ppe, {megabytes(whole["bytes"], 0)} as float32 ONNX, takes
  {megabytes(small["bytes"], 0)} with weights of 4 bits. It keeps {percent(small["scores"][split][0] / before)} of its
  mAP50-95 on the split `{split}` {link("large_detector")}."""


def coded_share(part: float) -> float:
    """Return the share of float32's mAP50-95 that coded INT8 keeps in 1/part of the file, mean of the detectors."""
    run = result("coded_weights")
    return mean(coded_share_of(model, part) for model in run["models"])


def coded_share_of(model: str, part: float) -> float:
    """Return the share that a detector keeps, mean of draws and splits."""
    rows = [row for row in result("coded_weights")["rows"] if row["model"] == model]
    whole = only(rows, form="float32")["scores"]
    drawn = [row["scores"] for row in rows if row["form"] == "coded" and row["part"] == part]
    return mean(float(value) / whole[split] for scores in drawn for split, value in scores.items())


# Training


def training() -> Iterator[str]:
    """Yield the section about pruning, distillation and low rank."""
    yield "## Pruning and training"
    yield from pruning()
    yield from distillation()
    yield from quantization_aware()
    yield from shapes_and_low_rank()


def pruning() -> Iterator[str]:
    """Yield what is left of a pruned detector, before and after its recovery."""
    lines = []
    for name in ("recovery_30_cpu", "recovery_cpu"):
        run = result(name)
        (whole,), *pruned = by_method(run["rows"]).values()
        for group in pruned:
            what = f"{percent(run['ratio'], 0)}, {group[0]['method']} {link(name)}"
            seconds, kept = average(group, "cpu_seconds"), average(group, "map50_95", "test")
            lines.append([what, number(seconds), score(kept), percent(share(group, whole, "map50_95", "test"))])
    yield """\
A YOLO11n that was fine-tuned on ppe loses a share of its multiply-adds; the weights that are left are refitted by least
squares (*pruned*), and trained beside cached predictions of the whole detector, without labels (*recovered*). Mean
of the
seeds, on the split `test`, in CPU seconds of one core:"""
    yield table(["multiply-adds removed", "CPU seconds", "mAP50-95", "of the whole detector's"], lines)
    (whole,), *pruned = by_method(result("pruning_refit")["rows"]).values()
    yield f"""\
Before any training, with the refit by least squares and with new batch-norm statistics alone
{link("pruning_refit")}:"""
    yield table(
        ["multiply-adds removed", "mAP50-95", "of the whole detector's"],
        (
            [
                group[0]["method"],
                score(average(group, "map50_95", "test")),
                percent(share(group, whole, "map50_95", "test")),
            ]
            for group in pruned
        ),
    )


def distillation() -> Iterator[str]:
    """Yield the comparisons of distillation in equal time."""
    for name, title in (
        ("distillation_minutes_cpu", "A YOLO11n from a COCO checkpoint"),
        ("distillation_pruned_cpu", "A YOLO11n without half of its multiply-adds"),
    ):
        methods = {method: group for method, group in by_method(result(name)["rows"]).items() if method != "teacher"}
        ranked = sorted(methods.items(), key=lambda entry: -(average(entry[1], "map50_95", "test") or 0.0))
        seconds = average((row for group in methods.values() for row in group), "seconds")
        yield f"""\
{title}, trained on ppe for about {number(seconds)} CPU seconds by each method, and scored on the split `test`
{link(name)}:"""
        yield table(
            ["method", "seeds", "mAP50-95"],
            ([method, str(len(group)), score(average(group, "map50_95", "test"))] for method, group in ranked),
        )


def quantization_aware() -> Iterator[str]:
    """Yield the comparison of quantization-aware training."""
    run = result("quantization_aware")
    methods = by_method(sorted(run["rows"], key=lambda row: row["seed"] is not None))
    (whole,) = methods["float32"]
    yield f"""\
Quantization-aware distillation of a YOLO11n, one epoch of {run["images"]["train"]} images, mean of
{len(run["seeds"])} seeds
{link("quantization_aware")}. Ultralytics picks its epoch by the split `val`; so `test` is the split to compare."""
    yield table(
        ["method", "of the float file", "`val`, of float32's mAP50-95", "`test`"],
        (
            [
                method,
                f"1/{1 / share(group, whole, 'bytes'):.1f}",
                *(percent(share(group, whole, "map50_95", split)) for split in ("val", "test")),
            ]
            for method, group in methods.items()
        ),
    )


def shapes_and_low_rank() -> Iterator[str]:
    """Yield how much faster pruned and factorized detectors are."""
    rows = result("pruning_shapes")["rows"]
    ratio = max(row["ratio"] for row in rows)
    halved = [row for row in rows if row["ratio"] == ratio]
    gains = [before / after for row in halved for before, after in row["latency_ms"].values()]
    longest = max(row["seconds"] for row in halved)
    yield f"""\
- **Pruning** {percent(ratio, 0)} of the multiply-adds makes
  {listed(dict.fromkeys(detector(row["model"]) for row in halved))}
  {extent(gains, ".1f")} times as fast on this CPU; the longest took {longest:.0f} s {link("pruning_shapes")}."""
    rows = [row for row in result("low_rank")["rows"] if (row["way"], row["energy"]) == ("edgekd", LOW_RANK_ENERGY)]
    kept = min(after / before for before, after in (row["map50_95"] for row in rows))
    gains = [f"{detector(row['model'])} {extent(speedups(row), '.2f')}" for row in rows]
    yield f"""\
- **Low rank.** `edgekd factorize` at its defaults, without training, keeps at least {percent(kept)} of the
  mAP50-95. Times
  as fast, on the slower and the faster of two engines: {", ".join(gains)} {link("low_rank")}."""


def speedups(row: Row) -> list[float]:
    """Return the speed-up on each engine."""
    return [before / after for before, after in row["latency_ms"].values()]


# Speed


def speed() -> Iterator[str]:
    """Yield the section about times."""
    yield "## Speed"
    yield from frames()
    yield from build_time()
    overhead, predicted, agent = result("harness_overhead"), result("predictor"), result("agent")
    devices = only(predicted["devices"], what="all")
    pages = result("report_page")["rows"]
    (steps,) = agent["seconds"].values()
    packing = result("bundle_speed")["seconds"]["pack and sign"]["p50_s"]
    alone = overhead["harness_alone_us_per_frame"]
    yield f"""\
- **Overhead.** The latency harness adds {alone:.2f} µs to a frame, {percent(alone / 1000 / overhead["bare_ms"], 3)}
  of the demo
  detector's latency {link("harness_overhead")}.
- **Prediction.** For devices that no coefficient was fitted on, the median error of predicted latencies is
  {percent(devices["error"])}; {percent(devices["inside"], 0)} of them lie in the interval. Scaling by peak rates has
  {percent(devices["peak_error"], 0)}, by multiply-adds {percent(devices["multiply_adds_error"], 0)}
  {link("predictor")}.
- **Verification.** The agent verifies a bundle of {megabytes(agent["bundle_bytes"], 0)} in
  {steps["verify"]["p50_s"]:.2f} s, its
  start included {link("agent")}; packing and signing take {packing:.2f} s {link("bundle_speed")}.
- **Reports.** Those of {len(pages)} builds have {extent((page["bytes"] / 1e6 for page in pages), ".1f")} MB, and
  load in
  {extent((page["loaded_ms"] / 1000 for page in pages), ".1f")} s in Chromium {link("report_page")}."""


def frames() -> Iterator[str]:
    """Yield what happens to a frame: throughput from JPEG, and processor time outside the engine."""
    run = result("camera_to_detections")
    yield f"""\
From JPEG to detections on {run["cores"]} cores: frames per second beside Ultralytics' `predict`, with the interval over
{run["rounds"]} rounds. `benchmark_app` times the engine alone {link("camera_to_detections")}."""
    yield across(run["models"], lambda row: f"{row['times_as_fast']:.2f} ({extent(row['interval'], '.2f')})")
    run = result("outside_engine")
    beside = next(iter(run["models"].values()))[0]["contender"]
    yield f"""\
Processor time of a frame outside the engine: decoded image to input, output to boxes. In ms and, in brackets, as a
share of
that of {beside} {link("outside_engine")}."""
    yield across(run["models"], lambda row: f"{row['outside_ms']:.2f} ({row[beside]['share']:.2f})")


def across(models: dict[str, list[Row]], cell: Any) -> str:
    """Return a table with a row for each contender and a column for each network."""
    contenders = dict.fromkeys(row["contender"] for rows in models.values() for row in rows)
    return table(
        ["", *models],
        ([name, *(cell(only(rows, contender=name)) for rows in models.values())] for name in contenders),
    )


def build_time() -> Iterator[str]:
    """Yield the time of a whole build beside Ultralytics' export and validation."""
    run = result("build_vs_ultralytics")
    ours, theirs = (only(run["tools"], tool=name) for name in ("edgekd", "ultralytics"))
    yield f"""\
- **Build.** From `{run["model"]}` to a scored INT8 model, `edgekd build` takes {ours["seconds"]["median"]:.1f} s,
  and `yolo export` with
  INT8 and `yolo val` {theirs["seconds"]["median"]:.1f} s, at {score(ours["map50_95"])} and
  {score(theirs["map50_95"])} mAP50-95.
  edgekd also scores the float model, times both, and packs: without that it takes {ours["like_for_like"]:.1f} s
  {link("build_vs_ultralytics")}. An identical second build takes every stage from the store."""


# What ships


def shipping() -> Iterator[str]:
    """Yield the section about conversions, adaptation and deltas."""
    scorers, engines = result("scorer_agreement")["rows"], result("compile_matrix")["rows"]
    apart = max(abs(row["edgekd"] - row["ultralytics_detections_by_coco"]) for row in scorers)
    own = extent((row["edgekd"] - row["ultralytics"] for row in scorers), ".4f")
    made = [row for row in engines if row["bytes"]]
    demo = result("demo_detector")
    yield "## Conversion, adaptation and deltas"
    yield f"""\
- **Scorer.** On the same graph, with the same metric, it differs from Ultralytics' `val` by at most {apart:.4f}
  mAP50-95.
  Ultralytics' own average precision is {own} lower on these images {link("scorer_agreement")}.
- **Converted** to OpenVINO and ncnn, detectors stay within these mAP50-95 of their source, with every INT8 layer kept:
  {conversions()} {link("conversions")}.
- **TensorRT for RTX** compiled {len(made)} of {len(engines)} engines: {len({row["network"] for row in engines})}
  networks,
  {len({row["precision"] for row in engines})} precisions, {len({row["sm"] for row in engines})} generations of
  GPUs. None was run
  {link("compile_matrix")}.
{adaptation()}
- **Deltas.** {deltas()} {link("deltas")}.
- **The demo's detector**, {demo["training"]["parameters"] / 1e6:.2f} M parameters, reaches mAP50
  {demo["score"]["map50"]:.3f} on
  {demo["score"]["scenes"]} rendered scenes that it was not trained on {link("demo_detector", suffix="json")}."""


def conversions() -> str:
    """Return the largest difference from the source for each of its precisions."""
    rows = [row for row in result("conversions")["rows"] if row["difference"] is not None]
    return ", ".join(
        f"{source} {max(abs(row['difference']) for row in group):.4f}"
        for source, group in grouped(rows, lambda row: row["source"]).items()
    )


def adaptation() -> str:
    """Return what variants for other conditions regain."""
    run = result("adaptation")
    rows = [row for row in run["rows"] if row["severity"] == max(run["severities"])]
    gains = [((row["variant"] or row["corrupted"]) - row["corrupted"], row["clean"] - row["corrupted"]) for row in rows]
    refused = sum(row["variant"] is None for row in rows)
    shares = [gain / loss for gain, loss in gains]
    return f"""\
- **Adaptation** by unlabelled frames regains {percent(mean(shares), 0)} of what
  {len({row["corruption"] for row in rows})} corruptions
  of severity {max(run["severities"])} cost two YOLO11n, mean of {len(rows)} cases; the least is
  {percent(min(shares), 0)}, the most
  {percent(max(shares), 0)}, {refused} refused as useless. Of all that they lose together it is
  {percent(sum(gain for gain, _ in gains) / sum(loss for _, loss in gains), 0)} {link("adaptation")}."""


def deltas() -> str:
    """Return the size of each kind of delta."""
    shares = (f"{row['change']} {percent(row['bytes'] / row['new_bytes'])}" for row in result("deltas")["rows"])
    return f"Of a new bundle's bytes: {', '.join(shares)}"


# Robustness


def robustness() -> Iterator[str]:
    """Yield the section about hostile input and interruptions."""
    mutations, attacks = result("mutations"), result("attacks")["rows"]
    cuts, connections, searches = result("power_cut"), result("ssh_kills")["kills"], result("search_kills")["kills"]
    yield "## Robustness"
    yield f"""\
- **Hostile input.** Of {number(mutations["attempts"])} mutated bundles, trust files, models and texts
  {count(mutations["accepted"])} was accepted,
  and {count(mutations["crashes"])} crashed a reader {link("mutations")}. Of {len(attacks)} attacks
  {count(sum(not row["holds"] for row in attacks))}
  succeeded {link("attacks")}.
- **Power cuts.** {number(cuts["cuts"])} were simulated, at every file operation of installations, deltas, trial
  starts, commits
  and rollbacks, on a disk that keeps everything and on one that keeps only flushed data. Faults:
  {count(sum(len(row["faults"]) for row in cuts["rows"]))} {link("power_cut")}.
- **Broken connections.** {len(connections)} connections to a camera were broken at random moments;
  {count(sum(bool(row["left"]) for row in connections))} left a process running there;
  {sum(row["identical"] for row in connections)} next runs
  gave the result of an undisturbed one {link("ssh_kills")}.
- **Killed searches.** {len(searches)} were killed at random moments. {sum(row["same"] for row in searches)} found
  the winner of an
  undisturbed one, and of the finished trials {count(sum(row["repeated"] for row in searches))} was repeated
  {link("search_kills")}."""


def every_table() -> Iterator[str]:
    """Yield the list of all tables."""
    yield "## Every table"
    yield "\n".join(
        f"- [{path.read_text('utf-8').partition(chr(10))[0].removeprefix('# ')}](../bench/results/{path.name}), "
        f"`{path.stem}`"
        for path in sorted(RESULTS.glob("*.md"))
    )


def main() -> None:
    sections = (quantization, training, speed, shipping, robustness, every_table)
    blocks = [wrapped(block) for section in sections for block in section()]
    write({PAGE: "\n\n".join([HEAD, *blocks]) + "\n"})


if __name__ == "__main__":
    main()
