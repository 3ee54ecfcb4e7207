"""Sections of docs/reference/results.md about speed, about what ships, and about robustness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean

from result_values import Row, count, extent, grouped, link, megabytes, number, only, percent, result, score, table

# Speed


def speed() -> Iterator[str]:
    """Yield the section about times."""
    yield "## Speed"
    yield from frames()
    yield "\n".join([build_time(), overhead(), prediction(), verification(), reports()])


def frames() -> Iterator[str]:
    """Yield the throughput from JPEG to detections, and the processor time of a frame outside the engine."""
    run = result("camera_to_detections")
    yield f"""\
From JPEG to detections on {run["cores"]} cores: frames per second beside Ultralytics' `predict`, with the interval over
{run["rounds"]} rounds. `benchmark_app` times the engine alone {link("camera_to_detections")}."""
    yield across(run["models"], lambda row: f"{row['times_as_fast']:.2f} ({extent(row['interval'], '.2f')})")
    run = result("outside_engine")
    beside = next(iter(run["models"].values()))[0]["contender"]
    yield f"""\
Processor time of a frame outside the engine, from the decoded image to the input and from the outputs to boxes: ms and,
in brackets, the share of that of {beside} {link("outside_engine")}."""
    yield across(run["models"], lambda row: f"{row['outside_ms']:.2f} ({row[beside]['share']:.2f})")


def across(models: dict[str, list[Row]], cell: Callable[[Row], str]) -> str:
    """Return a table with a row for each contender and a column for each network."""
    cells = {name: {row["contender"]: cell(row) for row in rows} for name, rows in models.items()}
    contenders = dict.fromkeys(contender for column in cells.values() for contender in column)
    rows = ([contender, *(column.get(contender, "–") for column in cells.values())] for contender in contenders)
    return table(["", *models], rows)


def build_time() -> str:
    """Return the time of a complete build, compared with Ultralytics' export and validation."""
    run = result("build_vs_ultralytics")
    ours, theirs = (only(run["tools"], tool=name) for name in ("edgekd", "ultralytics"))
    seconds = f"{ours['seconds']['median']:.1f} s", f"{theirs['seconds']['median']:.1f} s"
    return f"""\
- **Build.** From `{run["model"]}` to a scored INT8 model, `edgekd build` takes {seconds[0]}, and `yolo export` with
  INT8 and `yolo val` {seconds[1]}, at {score(ours["map50_95"])} and {score(theirs["map50_95"])} mAP50-95. edgekd also
  scores the float model, times both, and packs: without that it takes {ours["like_for_like"]:.1f} s
  {link("build_vs_ultralytics")}. An identical second build takes every stage from the store."""


def overhead() -> str:
    """Return the overhead of the latency harness."""
    run = result("harness_overhead")
    alone = run["harness_alone_us_per_frame"]
    part = percent(alone / 1000 / run["bare_ms"], 3)
    return f"""\
- **Overhead.** The latency harness adds {alone:.2f} µs to a frame, {part} of the demo detector's latency
  {link("harness_overhead")}."""


def prediction() -> str:
    """Return the errors of predicted latencies."""
    devices = only(result("predictor")["devices"], what="all")
    peaks, multiply_adds = percent(devices["peak_error"], 0), percent(devices["multiply_adds_error"], 0)
    return f"""\
- **Prediction.** For devices that no coefficient was fitted on, the median error of predicted latencies is
  {percent(devices["error"])}, and {percent(devices["inside"], 0)} of them lie in the interval. Scaling by peak rates
  has {peaks}, by multiply-adds {multiply_adds} {link("predictor")}."""


def verification() -> str:
    """Return the time to pack and to verify a bundle."""
    agent, packing = result("agent"), result("bundle_speed")["seconds"]["pack and sign"]["p50_s"]
    seconds = next(iter(agent["seconds"].values()))["verify"]["p50_s"]
    return f"""\
- **Verification.** The agent verifies a bundle of {megabytes(agent["bundle_bytes"], 0)} in {seconds:.2f} s, its start
  included {link("agent")}; packing and signing take {packing:.2f} s {link("bundle_speed")}."""


def reports() -> str:
    """Return the size and the load time of reports."""
    pages = result("report_page")["rows"]
    size = extent((page["bytes"] / 1e6 for page in pages), ".1f")
    seconds = extent((page["loaded_ms"] / 1000 for page in pages), ".1f")
    return f"- **Reports** of {len(pages)} builds have {size} MB, and load in {seconds} s {link('report_page')}."


# What ships


def shipping() -> Iterator[str]:
    """Yield the section about conversions, adaptation and deltas."""
    yield "## Conversion, adaptation and deltas"
    yield "\n".join([scorer(), conversions(), engines(), adaptation(), deltas(), demo_detector()])


def scorer() -> str:
    """Return the differences between the scores of edgekd and of Ultralytics."""
    rows = result("scorer_agreement")["rows"]
    apart = max(abs(row["edgekd"] - row["ultralytics_detections_by_coco"]) for row in rows)
    own = extent((row["edgekd"] - row["ultralytics"] for row in rows), ".4f")
    return f"""\
- **Scorer.** On the same graph, with the same metric, it differs from Ultralytics' `val` by at most {apart:.4f}
  mAP50-95. Ultralytics' own average precision is {own} lower on these images {link("scorer_agreement")}."""


def conversions() -> str:
    """Return the largest difference from the source for each of its precisions."""
    rows = [row for row in result("conversions")["rows"] if row["difference"] is not None]
    formats = ", ".join(sorted({row["to"] for row in rows}))
    apart = ", ".join(
        f"{max(abs(row['difference']) for row in group):.4f} from {source}"
        for source, group in grouped(rows, lambda row: row["source"]).items()
    )
    layers = [row["int8_layers"] for row in rows if row["int8_layers"]]
    kept = f"{sum(kept for kept, _ in layers)} of {sum(of_source for _, of_source in layers)}"
    return f"""\
- **Converted** to {formats}, detectors stay within these mAP50-95 of their source: {apart}. INT8 layers kept: {kept}
  {link("conversions")}."""


def engines() -> str:
    """Return how many engines were compiled."""
    rows = result("compile_matrix")["rows"]
    networks, precisions, generations = (len({row[key] for row in rows}) for key in ("network", "precision", "sm"))
    compiled = sum(bool(row["bytes"]) for row in rows)
    return f"""\
- **TensorRT for RTX** compiled {compiled} of {len(rows)} engines: {networks} networks, {precisions} precisions,
  {generations} generations of GPUs. None was run {link("compile_matrix")}."""


def adaptation() -> str:
    """Return the share of the lost mAP that adapted variants regain; a refused variant counts as 0."""
    run = result("adaptation")
    severity = max(run["severities"])
    rows = [row for row in run["rows"] if row["severity"] == severity]
    losses = [row["clean"] - row["corrupted"] for row in rows]
    gains = [row["variant"] - row["corrupted"] if row["variant"] else 0.0 for row in rows]
    shares = [gain / loss for gain, loss in zip(gains, losses, strict=True)]
    detectors, corruptions = (len({row[key] for row in rows}) for key in ("case", "corruption"))
    refused = count(sum(row["variant"] is None for row in rows))
    return f"""\
- **Adaptation** by unlabelled frames regains {percent(mean(shares), 0)} of what {corruptions} corruptions of severity
  {severity} cost {detectors} detectors, mean of {len(rows)} cases from {percent(min(shares), 0)} to
  {percent(max(shares), 0)}; refused as useless: {refused}. Of all that they lose together it is
  {percent(sum(gains) / sum(losses), 0)} {link("adaptation")}."""


def deltas() -> str:
    """Return the size of each kind of delta."""
    shares = (f"{row['change']} {percent(row['bytes'] / row['new_bytes'])}" for row in result("deltas")["rows"])
    return f"- **Deltas**, of the new bundle's bytes: {', '.join(shares)} {link('deltas')}."


def demo_detector() -> str:
    """Return the score of the demo's detector."""
    run = result("demo_detector")
    parameters, scored = run["training"]["parameters"] / 1e6, run["score"]
    return f"""\
- **The demo's detector**, {parameters:.2f} M parameters, reaches mAP50 {scored["map50"]:.3f} on {scored["scenes"]}
  rendered scenes that it was not trained on {link("demo_detector", suffix="json")}."""


# Robustness


def robustness() -> Iterator[str]:
    """Yield the section about hostile input and interruptions."""
    yield "## Robustness"
    yield "\n".join([hostile_input(), power_cuts(), connections(), searches()])


def hostile_input() -> str:
    """Return the results of mutations and attacks."""
    run, attacks = result("mutations"), result("attacks")["rows"]
    accepted, crashed = count(run["accepted"]), count(run["crashes"])
    succeeded = count(sum(not row["holds"] for row in attacks))
    return f"""\
- **Hostile input.** Of {number(run["attempts"])} mutated bundles, trust files, models and texts {accepted} was
  accepted, and {crashed} crashed a reader {link("mutations")}. Of {len(attacks)} attacks {succeeded}
  succeeded {link("attacks")}."""


def power_cuts() -> str:
    """Return the results of simulated power cuts."""
    run = result("power_cut")
    faults = count(sum(len(row["faults"]) for row in run["rows"]))
    return f"""\
- **Power cuts.** {number(run["cuts"])} were simulated, at every file operation of installations, deltas, trial starts,
  commits and rollbacks, on a disk that keeps everything and on one that keeps only flushed data. Faults: {faults}
  {link("power_cut")}."""


def connections() -> str:
    """Return the results of broken connections."""
    kills = result("ssh_kills")["kills"]
    left, same = count(sum(bool(row["left"]) for row in kills)), sum(row["identical"] for row in kills)
    return f"""\
- **Broken connections.** {len(kills)} connections to a camera were broken at random moments; {left} left a process
  running there; {same} next runs gave the result of an undisturbed one {link("ssh_kills")}."""


def searches() -> str:
    """Return the results of killed searches."""
    kills = result("search_kills")["kills"]
    same, repeated = sum(row["same"] for row in kills), count(sum(row["repeated"] for row in kills))
    return f"""\
- **Killed searches.** {len(kills)} were killed at random moments. {same} found the winner of an undisturbed one, and of
  the finished trials {repeated} was repeated {link("search_kills")}."""
