"""Sections of docs/reference/results.md about accuracy: quantization, pruning, training."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from result_values import (
    RESULTS,
    Row,
    average,
    by_method,
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
)

LOW_RANK_ENERGY = 0.97  # the default of `edgekd factorize`


# Quantization


def quantization() -> Iterator[str]:
    """Yield the section about quantization without training."""
    run, fine_tuned = result("quantization_baselines"), result("quantization_baselines_ppe")
    images = run["images"]
    yield "## Quantization without training"
    yield f"""\
No labels; the same float graph, {images["calibration"]} calibration frames and scorer for every tool; scored on
{images["val"]} other COCO images {link("quantization_baselines")}. Seconds are CPU seconds. MB: of
edgekd's packed file, and of the ONNX file of the others. Bold: the best graph in plain INT8."""
    yield baselines(run["rows"], "val")
    yield from noise(run["rows"])
    yield from coded_weights()
    for split in fine_tuned["scored"]:
        yield f"""\
A fine-tuned detector, {fine_tuned["images"][split]} images of the split `{split}` of ppe
{link("quantization_baselines_ppe")}:"""
        yield baselines(fine_tuned["rows"], split)
    yield "How it works: [quantization](../concepts/quantization.md)."


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
            row = next((row for row in group if row["model"] == model), None)
            if row is None or not row["scores"]:
                cells += ["–" if row is None else "failed", "", ""]
                continue
            bold = "**" if row in plain and map_of(row, split) == best[model] else ""
            packed = row["packed_bytes"] if method.startswith("edgekd") else row["bytes"]
            cells += [f"{bold}{score(map_of(row, split))}{bold}", number(row["seconds"], 1), f"{packed / 1e6:.2f}"]
        lines.append(cells)
    return table(["", *columns], lines)


def map_of(row: Row, split: str) -> float:
    """Return the mAP50-95 of a row of quantization_baselines."""
    return float(row["scores"][split][0])


def noise(rows: list[Row]) -> Iterator[str]:
    """Yield the output noise of the last convolutions, by tool."""
    yield f"""\
On so few images a score changes by several thousandths with small changes of the rounding. The noise of the outputs of
the last convolutions, relative to their signal, is a more sensitive measure {link("quantization_baselines")}:"""
    models = grouped(rows, lambda row: row["model"])
    lines = []
    for method, group in by_method(rows).items():
        values = {row["model"]: row["noise"] for row in group if row["noise"]}
        if values:
            lines.append([method, *(score(values[model]) if model in values else "–" for model in models)])
    yield table(["tool", *map(detector, models)], lines)


def coded_weights() -> Iterator[str]:
    """Yield the accuracy of graphs with weights in few bits."""
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
    whole: dict[str, float] = only(rows, form="float32")["scores"]
    drawn = [row["scores"] for row in rows if row["form"] == "coded" and row["part"] == part]
    return float(mean(value / whole[split] for scores in drawn for split, value in scores.items()))


# Training


def training() -> Iterator[str]:
    """Yield the section about pruning, distillation, low rank and searches."""
    yield "## Pruning and training"
    yield from pruning()
    yield from distillation()
    yield from quantization_aware()
    yield from shapes_and_low_rank()
    yield from search()


def pruning() -> Iterator[str]:
    """Yield the accuracy of pruned detectors, before and after recovery."""
    lines = []
    for name in ("recovery_30_cpu", "recovery_cpu"):
        run = result(name)
        whole, *pruned = by_method(run["rows"]).values()
        for group in pruned:
            what = f"{percent(run['ratio'], 0)}, {group[0]['method']} {link(name)}"
            seconds, kept = average(group, "cpu_seconds"), average(group, "map50_95", "test")
            lines.append([what, number(seconds), score(kept), percent(share(group, whole, "map50_95", "test"))])
    run = result("recovery_cpu")
    yield f"""\
A share of the multiply-adds of a YOLO11n, fine-tuned on ppe, is removed, and the remaining weights are refitted by
least squares (*pruned*). Then it is trained without labels to predict as the whole detector does (*recovered*). Labels
are used to choose the channels. Input of {run["image_size"]} pixels; means of {len(run["seeds"])} seeds on the
{run["images"]["test"]} images of the split `test`; CPU seconds of one core, of pruning, or of the predictions and the
training:"""
    yield table(["multiply-adds removed", "CPU seconds", "mAP50-95", "of the whole detector's"], lines)
    run = result("orders")
    whole, *orders = by_method(run["rows"]).values()
    yield f"""\
Half of its multiply-adds pruned, INT8, and {run["epochs"]} epochs without labels on {run["images"]["train"]} images of
{run["image_size"]} pixels, in different orders. The score is the bundle's, compared with the whole detector in INT8
{link("orders")}:"""
    yield table(
        ["order", "seeds", "mAP50-95", "of the whole detector's"],
        (
            [
                group[0]["method"],
                str(len(group)),
                score(average(group, "map50_95", "test")),
                percent(share(group, whole, "map50_95", "test")),
            ]
            for group in orders
        ),
    )
    whole, *pruned = by_method(result("pruning_refit")["rows"]).values()
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
        ("distillation_pruned_cpu", "A YOLO11n without half of its multiply-adds; `recover` reads no labels"),
        (
            "distillation_few_labels_cpu",
            "The same detector with labels for a tenth of the images; only `recover` sees the other images",
        ),
        (
            "distillation_pseudo_labels_cpu",
            "The same, trained longer; edgekd alone also sees the other images, which the teacher labels at 640 pixels",
        ),
    ):
        methods = {method: group for method, group in by_method(result(name)["rows"]).items() if method != "teacher"}
        seconds = average((row for group in methods.values() for row in group), "seconds")
        yield f"""\
{title}. Scores at {result(name)["image_size"]} pixels on the split `test` of ppe after about {number(seconds)} CPU
seconds of training by each method {link(name)}."""
        yield table(
            ["method", "seeds", "mAP50-95"],
            ([method, str(len(group)), score(average(group, "map50_95", "test"))] for method, group in methods.items()),
        )


def quantization_aware() -> Iterator[str]:
    """Yield the comparison of quantization-aware training."""
    run = result("quantization_aware")
    methods = by_method(sorted(run["rows"], key=lambda row: row["seed"] is not None))
    whole = methods["float32"]
    yield f"""\
Quantization-aware training without labels of a YOLO11n that was pruned and recovered: {run["epochs"]} epochs of
{run["images"]["train"]} images of {run["image_size"]} pixels, {len(run["seeds"])} seeds {link("quantization_aware")}.
The teacher is the whole detector."""
    yield table(
        ["method", "bytes, of the float file", "`val`, of float32's mAP50-95", "`test`"],
        (
            [
                method,
                percent(share(group, whole, "bytes")),
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
- **Low rank.** `edgekd factorize` at its defaults, without training, keeps at least {percent(kept)} of the mAP50-95.
  Speed-up with the slower and the faster of two runtimes: {", ".join(gains)} {link("low_rank")}."""


def speedups(row: Row) -> list[float]:
    """Return the speed-up with each runtime."""
    return [before / after for before, after in row["latency_ms"].values()]


def search() -> Iterator[str]:
    """Yield the number of full trials that a search needs; nothing if the benchmark has no result yet."""
    name = "search_efficiency"
    if not (RESULTS / f"{name}.json").is_file():
        return
    run = result(name)
    ways = (f"{way} {run['share'][way]:.2f} (at most {run['worst'][way]:.2f})" for way in run["share"])
    yield f"""\
- **Search.** Number of full trials until a candidate is near the best one within a budget, relative to random search;
  median of {len(run["rows"])} budgets, on a table of {run["candidates"]} candidates: {", ".join(ways)} {link(name)}."""
